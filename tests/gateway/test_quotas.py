"""Quotas that gateways share: the sum holds whatever happens, and nobody waits for what is free."""

from __future__ import annotations

import asyncio
import os
import random
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lionrock.gateway.quotas.admission import QuotaAdmission, QuotaExceededError, Reservation
from lionrock.gateway.quotas.leases import IDLE_S, LACK_S, StoreClock
from lionrock.gateway.quotas.ledger import QuotaLedger
from lionrock.gateway.quotas.limits import DAY_US, MINUTE_US, NO_QUOTAS, Quota, Quotas, slice_of, window_at
from lionrock.gateway.quotas.places import TERM_S
from lionrock.gateway.state.postgres import PostgresSession
from lionrock.gateway.state.sqlite import SqliteSession
from lionrock.gateway.state.store import StateStore, StateUnavailable
from lionrock.gateway.tenants import Grant, Principal, Tenant, TenantName
from postgres_server import PostgresServer, running_postgres

EXAMPLES = int(os.environ.get("LIONROCK_QUOTA_EXAMPLES", "40"))
"""Histories that the property is tried with; 400 take some ten seconds."""
NOON_US = 1_800_000_000_000_000 - 1_800_000_000_000_000 % DAY_US + 4 * 3_600_000_000  # in Hong Kong; a minute begins


class Time:
    """The one true time, and steady clocks that begin anywhere."""

    def __init__(self) -> None:
        self.us = NOON_US

    def advance(self, seconds: float) -> None:
        self.us += round(seconds * 1e6)

    def steady(self, began: float = 0.0) -> Callable[[], float]:
        start_us = self.us
        return lambda: began + (self.us - start_us) / 1e6


def caller(quotas: Quotas, own: Quotas = NO_QUOTAS, name: str = "an", tenant_name: str = "bank") -> Principal:
    grant = Grant(("user",), ("test",), frozenset({"*"}), frozenset({"personal"}), "default", quotas=own)
    tenant = Tenant(TenantName(tenant_name), "HK", 64, {}, quotas=quotas)
    return Principal(f"spiffe://lionrock.local/tenant/bank/user/{name}", tenant, grant)


class FailingLedger(QuotaLedger):
    """The ledger over a network that loses questions, and answers."""

    loses = ""

    async def take(self, *args: Any, **kwargs: Any) -> Any:
        return await self._over(super().take(*args, **kwargs))

    async def give_back(self, *args: Any) -> Any:
        return await self._over(super().give_back(*args))

    async def hold_places(self, *args: Any, **kwargs: Any) -> Any:
        return await self._over(super().hold_places(*args, **kwargs))

    async def _over(self, call: Any) -> Any:
        if self.loses == "questions":
            call.close()
            raise StateUnavailable("lost on the way there")
        answer = await call
        if self.loses == "answers":
            raise StateUnavailable("lost on the way back")
        return answer


class Gateway:
    """One gateway's quotas."""

    def __init__(self, name: str, store: StateStore, time: Time, began: float = 0.0) -> None:
        self.ledger = FailingLedger(store, name)
        self.quotas = QuotaAdmission(self.ledger, StoreClock(time.steady(began)))
        self.open: list[Reservation] = []


@asynccontextmanager
async def fleet(path: Path, time: Time, number: int) -> AsyncIterator[list[Gateway]]:
    store = StateStore(SqliteSession(path, busy_timeout_s=5, clock_us=lambda: time.us), deadline_s=20)
    try:
        yield [Gateway(f"g{n}", store, time, began=1000.0 * n) for n in range(number)]
    finally:
        await store.close()


@pytest.fixture
async def time() -> Time:
    return Time()


@pytest.fixture
async def one(tmp_path: Path, time: Time) -> AsyncIterator[Gateway]:
    async with fleet(tmp_path / "s.sqlite", time, 1) as (gateway,):
        yield gateway


@pytest.fixture
async def two(tmp_path: Path, time: Time) -> AsyncIterator[list[Gateway]]:
    async with fleet(tmp_path / "s.sqlite", time, 2) as gateways:
        yield gateways


async def admitted(gateway: Gateway, principal: Principal, times: int = 1) -> list[Reservation]:
    """Ask as often; return what was let in."""
    ends = await asyncio.gather(*(gateway.quotas.admit(principal) for _ in range(times)), return_exceptions=True)
    unexpected = [end for end in ends if not isinstance(end, (Reservation, QuotaExceededError))]
    assert not unexpected, unexpected
    return [end for end in ends if isinstance(end, Reservation)]


async def quiet() -> None:
    """Wait until nothing runs beside the test."""
    while others := [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]:
        await asyncio.wait(others)


async def idle(gateway: Gateway, time: Time) -> None:
    await quiet()
    time.advance(IDLE_S + 0.1)
    await gateway.quotas.upkeep()


# The sum


class Accounts:
    """What was really used, seen from outside."""

    def __init__(self) -> None:
        self.requests: Counter[int] = Counter()
        self.tokens: Counter[tuple[str, int]] = Counter()


def _steps() -> st.SearchStrategy[tuple[str, int, int]]:
    kind = st.sampled_from(
        ["ask"] * 8 + ["crowd"] * 2 + ["end"] * 4 + ["upkeep"] * 4 + ["wait"] * 3 + ["minute", "crash", "lose", "lose back", "heal"]
    )
    return st.tuples(kind, st.integers(0, 3), st.integers(0, 400))


@given(
    steps=st.lists(_steps(), min_size=20, max_size=120),
    quotas=st.builds(
        Quotas,
        st.sampled_from([None, 1, 3, 20, 100]),
        st.sampled_from([None, 1, 500, 3000]),
        st.sampled_from([None, 700, 20_000]),
        st.sampled_from([None, 1, 2, 9, 30]),
    ),
)
@settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_quota_is_exceeded_by_the_sum_of_gateways_that_crash_and_lose_the_store(
    steps: list[tuple[str, int, int]], quotas: Quotas, tmp_path_factory: pytest.TempPathFactory
) -> None:
    asyncio.run(_run(steps, quotas, tmp_path_factory.mktemp("quotas") / "s.sqlite"))


async def _run(steps: list[tuple[str, int, int]], quotas: Quotas, path: Path) -> None:
    time, accounts, principal = Time(), Accounts(), caller(quotas)
    async with fleet(path, time, 4) as gateways:
        lost_since: dict[str, int] = {}

        async def ask(gateway: Gateway, tokens: int) -> None:
            try:
                reservation = await gateway.quotas.admit(principal)
            except (QuotaExceededError, StateUnavailable):
                return
            gateway.open.append(reservation)
            for _, window in reservation.requests:
                accounts.requests[window.start_us] += 1
            try:
                await gateway.quotas.reserve_tokens(reservation, tokens)
            except (QuotaExceededError, StateUnavailable):
                gateway.open.remove(reservation)
                gateway.quotas.settle(reservation, 0)
                return
            for share, window, held in reservation.tokens:
                accounts.tokens[share.budget.quota, window.start_us] += held

        async def pass_time(seconds: float) -> None:
            while seconds > 0:  # upkeep runs twice a second; once in eight is enough to stay far within the term
                time.advance(min(4.0, seconds))
                seconds -= 4.0
                if quotas.concurrent_streams is not None and not lost_since:
                    for gateway in gateways:
                        await gateway.quotas.upkeep()

        def end(gateway: Gateway, part: int) -> None:
            reservation = gateway.open.pop(part % len(gateway.open))
            for share, window, held in reservation.tokens:
                if window.end_us > time.us:
                    accounts.tokens[share.budget.quota, window.start_us] -= held - held * part // 400
            used = {held * part // 400 for _, _, held in reservation.tokens} or {0}
            gateway.quotas.settle(reservation, used.pop())

        for number, (kind, which, size) in enumerate(steps):
            gateway = gateways[which]
            match kind:
                case "ask":
                    await ask(gateway, 1 + size)
                case "crowd":
                    await asyncio.gather(*(ask(gateways[(which + n) % 4], 1 + size // 8) for n in range(size // 8)))
                case "end" if gateway.open:
                    end(gateway, size)
                case "upkeep":
                    await gateway.quotas.upkeep()
                case "wait":
                    await pass_time(size / 50)
                case "minute":
                    await pass_time(60)
                case "crash":
                    await quiet()
                    gateways[which] = Gateway(f"g{which}.{number}", gateway.ledger._store, time, began=7.0 * number)
                case "lose" | "lose back":
                    gateway.ledger.loses = "questions" if kind == "lose" else "answers"
                    lost_since.setdefault(gateway.ledger._gateway, time.us)
                case "heal":
                    gateway.ledger.loses = ""
            if quotas.requests_per_minute is not None:
                assert max(accounts.requests.values(), default=0) <= quotas.requests_per_minute
            for (quota, _), used_tokens in accounts.tokens.items():
                limit = quotas.limit(Quota(quota))
                assert limit is not None
                assert used_tokens <= limit
            if quotas.concurrent_streams is not None and not lost_since:
                assert sum(len(gateway.open) for gateway in gateways) <= quotas.concurrent_streams
        await quiet()


@pytest.fixture(scope="module")
def postgres() -> Iterator[PostgresServer]:
    with running_postgres() as server:
        yield server


@pytest.mark.parametrize("kind", ["sqlite", "postgres"])
async def test_two_hundred_clients_at_four_gateways_get_the_quota_and_no_more(
    kind: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    database = request.getfixturevalue("postgres").new_database() if kind == "postgres" else ""
    time, principal, chance = Time(), caller(Quotas(requests_per_minute=90, concurrent_streams=170)), random.Random(7)
    async with AsyncExitStack() as stack:
        gateways = []
        for n in range(4):  # each with a session of its own
            session = (
                PostgresSession(database, deadline_s=5, clock_us=lambda: time.us)
                if database
                else SqliteSession(tmp_path / "s.sqlite", busy_timeout_s=5, clock_us=lambda: time.us)
            )
            store = StateStore(session, deadline_s=20)
            stack.push_async_callback(store.close)
            gateways.append(Gateway(f"g{n}", store, time))
        ends = await asyncio.gather(*(admitted(chance.choice(gateways), principal) for _ in range(200)))
        let_in = sum(map(len, ends))
        assert 90 * 5 // 8 <= let_in <= 90
        for gateway in gateways:
            await idle(gateway, time)
        let_in += len(await admitted(gateways[0], principal, 200))
        assert let_in == 90  # what idle gateways held has come back to the last unit
        for _ in range(60):
            time.advance(1)
            for gateway in gateways:
                await gateway.quotas.upkeep()
        ends = await asyncio.gather(*(admitted(gateway, principal, 50) for gateway in gateways))
        assert sum(map(len, ends)) <= 80  # open answers are 170 at most, and 90 are open


# Who is let in, and when to come back


async def test_a_lone_gateway_uses_the_whole_quota_at_once(one: Gateway) -> None:
    for quota in (1, 2, 7, 8, 100, 1000):
        principal = caller(Quotas(requests_per_minute=quota), tenant_name=f"t{quota}")
        assert len(await admitted(one, principal, quota + 50)) == quota


async def test_a_refused_request_is_told_the_exact_time_at_which_there_is_room(one: Gateway, time: Time) -> None:
    principal = caller(Quotas(requests_per_minute=2))
    time.advance(17.25)
    assert len(await admitted(one, principal, 2)) == 2
    with pytest.raises(QuotaExceededError) as refused:
        await one.quotas.admit(principal)
    assert refused.value.retry_after_s == pytest.approx(42.75, abs=0.001)
    assert refused.value.budget.quota is Quota.REQUESTS_PER_MINUTE
    time.advance(refused.value.retry_after_s - 0.01)
    assert not await admitted(one, principal)
    time.advance(0.01)
    assert len(await admitted(one, principal, 5)) == 2


async def test_a_day_is_hong_kongs(one: Gateway, time: Time) -> None:
    principal = caller(Quotas(daily_tokens=100))
    reservation = await one.quotas.admit(principal)
    await one.quotas.reserve_tokens(reservation, 100)
    with pytest.raises(QuotaExceededError) as refused:
        await one.quotas.reserve_tokens(reservation, 1)
    assert refused.value.retry_after_s == 12 * 3600  # from noon to midnight there
    time.advance(12 * 3600)
    await one.quotas.reserve_tokens(reservation, 100)


async def test_tokens_that_an_answer_did_not_use_are_there_for_the_next(one: Gateway) -> None:
    principal = caller(Quotas(tokens_per_minute=1000))
    first = await one.quotas.admit(principal)
    await one.quotas.reserve_tokens(first, 900)
    second = await one.quotas.admit(principal)
    with pytest.raises(QuotaExceededError):
        await one.quotas.reserve_tokens(second, 300)
    one.quotas.settle(first, 150)
    await one.quotas.reserve_tokens(second, 850)


async def test_a_tenant_without_tokens_left_is_refused_before_any_work(one: Gateway) -> None:
    principal = caller(Quotas(tokens_per_minute=100, requests_per_minute=10))
    first = await one.quotas.admit(principal)
    await one.quotas.reserve_tokens(first, 100)
    with pytest.raises(QuotaExceededError):
        await one.quotas.reserve_tokens(first, 1)
    with pytest.raises(QuotaExceededError) as refused:
        await one.quotas.admit(principal)
    assert refused.value.budget.quota is Quota.TOKENS_PER_MINUTE


async def test_a_request_beyond_the_whole_quota_is_not_told_to_come_back(one: Gateway) -> None:
    principal = caller(Quotas(tokens_per_minute=100))
    with pytest.raises(QuotaExceededError) as refused:
        await one.quotas.reserve_tokens(await one.quotas.admit(principal), 101)
    assert refused.value.retry_after_s is None


async def test_a_refused_request_counts_on_nothing(one: Gateway) -> None:
    principal = caller(Quotas(requests_per_minute=5, concurrent_streams=3), own=Quotas(requests_per_minute=1))
    assert len(await admitted(one, principal, 4)) == 1
    others = [caller(principal.tenant.quotas, name=f"other{n}") for n in range(4)]
    let_in = [await admitted(one, other) for other in others]
    assert sum(map(len, let_in)) == 2  # three places in all, whoever was refused in between
    for (reservation,) in let_in[:2]:
        one.quotas.settle(reservation, 0)
    assert len(await admitted(one, others[0], 5)) == 2  # five requests in all


async def test_callers_of_one_grant_have_their_own_quota_within_the_tenants(one: Gateway) -> None:
    an = caller(Quotas(requests_per_minute=5), own=Quotas(requests_per_minute=3), name="an")
    bo = caller(Quotas(requests_per_minute=5), own=Quotas(requests_per_minute=3), name="bo")
    assert (len(await admitted(one, an, 9)), len(await admitted(one, bo, 9))) == (3, 2)


async def test_without_a_state_a_quota_refuses_and_no_quota_asks_nobody() -> None:
    quotas = QuotaAdmission(None)
    quotas.settle(await quotas.admit(caller(Quotas())), 10)
    assert await quotas.use(caller(Quotas())) == ()
    with pytest.raises(StateUnavailable):
        await quotas.admit(caller(Quotas(requests_per_minute=1)))


# Idle, crashed, cut off


async def test_an_idle_gateway_returns_what_it_holds(two: list[Gateway], time: Time) -> None:
    principal = caller(Quotas(requests_per_minute=100, concurrent_streams=10, daily_tokens=1000))
    first, second = two
    (reservation,) = await admitted(first, principal)
    await first.quotas.reserve_tokens(reservation, 40)
    first.quotas.settle(reservation, 10)
    await idle(first, time)
    taken = {use.budget.quota: use.taken for use in await second.quotas.use(principal)}
    assert taken == {Quota.REQUESTS_PER_MINUTE: 1, Quota.DAILY_TOKENS: 10, Quota.CONCURRENT_STREAMS: 0}


async def test_a_gateway_that_stops_returns_what_it_holds(two: list[Gateway]) -> None:
    principal = caller(Quotas(requests_per_minute=100))
    async with two[0].quotas.running():
        await admitted(two[0], principal)
    (use,) = await two[1].quotas.use(principal)
    assert use.taken == 1


async def test_a_crashed_gateways_units_end_with_their_window_and_are_a_slice_at_most(two: list[Gateway], time: Time) -> None:
    principal = caller(Quotas(requests_per_minute=80))
    await admitted(two[0], principal, 1)  # and is never heard of again
    let_in = len(await admitted(two[1], principal, 100))
    assert 80 - 2 * slice_of(Quota.REQUESTS_PER_MINUTE, 80) <= let_in < 80
    time.advance(60)
    assert len(await admitted(two[1], principal, 100)) == 80


async def test_a_crashed_gateways_places_are_free_after_the_term(two: list[Gateway], time: Time) -> None:
    principal = caller(Quotas(concurrent_streams=4))
    assert len(await admitted(two[0], principal, 9)) == 4
    assert not await admitted(two[1], principal)
    time.advance(TERM_S - 0.1)
    assert not await admitted(two[1], principal)
    time.advance(0.1 + LACK_S)
    assert len(await admitted(two[1], principal, 9)) == 4


async def test_a_gateway_that_loses_the_store_opens_nothing_more_after_the_term(one: Gateway, time: Time) -> None:
    principal = caller(Quotas(concurrent_streams=100))
    await admitted(one, principal)
    one.ledger.loses = "questions"
    assert await admitted(one, principal)  # from what it holds
    for _ in range(40):
        time.advance(TERM_S / 40)
        await one.quotas.upkeep()
    with pytest.raises(StateUnavailable):
        await one.quotas.admit(principal)
    one.ledger.loses = ""
    assert await admitted(one, principal)


async def test_a_long_answer_keeps_its_place_through_renewals(two: list[Gateway], time: Time) -> None:
    principal = caller(Quotas(concurrent_streams=1))
    (reservation,) = await admitted(two[0], principal)
    for _ in range(100):
        time.advance(1)
        await two[0].quotas.upkeep()
        assert not await admitted(two[1], principal)
    two[0].quotas.settle(reservation, 0)
    await idle(two[0], time)
    assert await admitted(two[1], principal)


async def test_a_client_that_goes_away_while_the_ledger_is_asked_costs_nothing(one: Gateway, time: Time) -> None:
    principal = caller(Quotas(requests_per_minute=80, concurrent_streams=8))
    for _ in range(5):
        asking = asyncio.create_task(one.quotas.admit(principal))
        await asyncio.sleep(0)  # lets it begin
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking
        await idle(one, time)
    assert {use.taken for use in await one.quotas.use(principal)} == {0}
    assert len(await admitted(one, principal, 100)) == 8


async def test_a_gateway_in_use_asks_the_ledger_beside_requests_not_on_their_way(one: Gateway, time: Time) -> None:
    principal = caller(Quotas(requests_per_minute=6000))
    waited = 0
    for n in range(1800):  # twenty a second, through a minute's turn
        share = next(iter(one.quotas._windows.values()), None)
        if share is None or share.spend(1) is None:
            waited += 1
            await admitted(one, principal)
        time.advance(0.05)
        if n % 10 == 0:
            await one.quotas.upkeep()
        await quiet()
    assert waited == 1  # the first


# Windows


@given(st.sampled_from(sorted(Quota)), st.integers(0, 4_000_000_000_000_000))
def test_windows_follow_one_another_without_a_gap(quota: Quota, now_us: int) -> None:
    window = window_at(quota, now_us)
    assert window.start_us <= now_us < window.end_us
    assert window_at(quota, window.end_us) == window.next
    length = DAY_US if quota is Quota.DAILY_TOKENS else MINUTE_US
    assert window.end_us - window.start_us == length
    assert (window.start_us + (8 * 3_600_000_000 if length == DAY_US else 0)) % length == 0
