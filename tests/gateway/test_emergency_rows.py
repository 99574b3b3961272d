"""The rows of emergencies, over SQLite and PostgreSQL alike, as two gateways share them; what counts of them; how they end."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from lionrock.audit.v1 import audit_pb2 as audit
from lionrock.chassis.ids import uuid7
from lionrock.common.v1 import context_pb2 as ctx
from lionrock.gateway.authorization import BreakGlass
from lionrock.gateway.emergencies import closing, leaves, live, rows
from lionrock.gateway.emergencies.emergency import Emergency, EmergencyId, State
from lionrock.gateway.emergencies.live import EmergenciesUnknownError, LiveEmergencies
from lionrock.gateway.errors import AuditUnavailable
from lionrock.gateway.state.opening import StateSettings, open_state
from lionrock.gateway.state.store import StateStore
from lionrock.gateway.tenants import Grant, Principal, Tenant, TenantName
from postgres_server import PostgresServer, running_postgres

GUARD, OFFICER = "spiffe://td/tenant/bank/user/guard", "spiffe://td/tenant/bank/user/officer"
HOUR_US = 3600 * 1_000_000
Stores = tuple[StateStore, StateStore]


@pytest.fixture(scope="module")
def postgres() -> Iterator[PostgresServer]:
    with running_postgres() as server:
        yield server


@pytest.fixture(params=["sqlite", "postgres"])
async def stores(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Stores]:
    """Two gateways' views of one database."""
    settings = StateSettings(sqlite_file=tmp_path / "gateway.sqlite")
    if request.param == "postgres":
        dsn = tmp_path / "dsn"
        dsn.write_text(request.getfixturevalue("postgres").new_database())
        dsn.chmod(0o600)
        settings = StateSettings(postgres_dsn_file=dsn)
    async with AsyncExitStack() as stack:
        yield await stack.enter_async_context(open_state(settings)), await stack.enter_async_context(open_state(settings))


async def asked(store: StateStore, *, by: str = GUARD, tenant: str = "bank", **changes: Any) -> Emergency:
    """A request, kept."""
    now_us, context = await store.read(lambda state: state.now_us), ctx.RequestContext(tenant=tenant, actor=by, roles=["security"])
    emergency = Emergency(
        EmergencyId(uuid7()), tenant, State.REQUESTED, by, "", now_us, HOUR_US, False, now_us + HOUR_US, context.SerializeToString()
    )
    emergency = replace(emergency, **changes)
    await rows.insert(store, emergency)
    return emergency


async def decided(store: StateStore, emergency: Emergency, what: State = State.APPROVED, by: str = OFFICER) -> Emergency:
    """The same, decided."""
    decision_id = uuid7()
    where = (store, emergency.tenant, emergency.emergency_id)
    await rows.claim(*where, decision=what, by=by, decision_id=decision_id)
    return await rows.settle(*where, decision_id)


async def make_stale(store: StateStore, emergency: Emergency) -> None:
    """Let the time of a claim pass."""
    older = "UPDATE emergencies SET claimed_at_us = claimed_at_us - ? WHERE emergency_id = ?"
    await store.write(lambda state: state.write(older, (rows.CLAIM_US, emergency.emergency_id)))


async def let_time_pass(store: StateStore, emergency: Emergency) -> None:
    """Let its time be up."""
    await store.write(
        lambda state: state.write("UPDATE emergencies SET ends_at_us = 1 WHERE emergency_id = ?", (emergency.emergency_id,))
    )


def principal(actor: str = GUARD, tenant: str = "bank") -> Principal:
    grant = Grant(("security",), ("testing",), frozenset({"*"}), frozenset({"personal"}), "default")
    return Principal(actor, Tenant(TenantName(tenant), "HK", 1, {}), grant)


async def test_a_request_comes_back_as_it_was_kept_and_to_its_own_tenant_alone(stores: Stores) -> None:
    emergency = await asked(stores[0], suspicion=True, requested_with="spiffe://td/tenant/bank/user/desk")
    assert await rows.find(stores[1], "bank", emergency.emergency_id) == emergency
    assert await rows.find(stores[1], "broker", emergency.emergency_id) is None
    assert await rows.page(stores[1], "broker", "", 10) == []
    with pytest.raises(rows.EmergencyNotFoundError):
        await rows.claim(stores[1], "broker", emergency.emergency_id, decision=State.DENIED, by=OFFICER, decision_id=uuid7())


async def test_who_has_one_open_asks_for_no_other_and_who_had_one_does(stores: Stores) -> None:
    first = await asked(stores[0])
    with pytest.raises(rows.TooManyEmergenciesError):
        await asked(stores[1])
    await asked(stores[1], tenant="broker")
    assert await rows.close(stores[1], first, State.ENDED, b"leaf")
    await asked(stores[0])


async def test_a_tenant_has_a_bounded_number(stores: Stores, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(rows.MAX_OPEN_PER_TENANT):
        await asked(stores[0], by=f"person-{number}")
    with pytest.raises(rows.TooManyEmergenciesError):
        await asked(stores[1])
    monkeypatch.setattr(rows, "MAX_PER_TENANT", 5)
    for number in range(20):
        one = await asked(stores[0], tenant="broker", by=f"person-{number}")
        await decided(stores[0], one, State.DENIED)
    assert len(await rows.page(stores[0], "broker", "", 100)) == 5


async def test_of_many_who_decide_at_once_one_does(stores: Stores) -> None:
    emergency = await asked(stores[0])

    async def one(number: int) -> str:
        what = State.APPROVED if number % 2 else State.DENIED
        try:
            return (await decided(stores[number % 2], emergency, what, by=f"officer-{number}")).decided_by
        except (rows.DecidedError, rows.BeingDecidedError):
            return ""

    found = await asyncio.gather(*map(one, range(10)))
    winners = [who for who in found if who]
    kept = await rows.find(stores[0], "bank", emergency.emergency_id)
    assert kept is not None
    assert winners == [kept.decided_by]


async def test_settling_twice_changes_nothing_and_a_claim_of_somebody_else_settles_nothing(stores: Stores) -> None:
    emergency = await asked(stores[0])
    approved = await decided(stores[0], emergency)
    assert await rows.settle(stores[1], "bank", emergency.emergency_id, approved.decision_id) == approved
    with pytest.raises(rows.DecidedError):
        await rows.settle(stores[1], "bank", emergency.emergency_id, uuid7())


async def test_a_claim_that_nobody_settled_is_shown_to_the_next_who_decides(stores: Stores) -> None:
    emergency, where = await asked(stores[0]), "bank"
    lost, mine = uuid7(), uuid7()
    await rows.claim(stores[0], where, emergency.emergency_id, decision=State.APPROVED, by=OFFICER, decision_id=lost)
    with pytest.raises(rows.BeingDecidedError):
        await rows.claim(stores[1], where, emergency.emergency_id, decision=State.DENIED, by="other", decision_id=mine)
    await make_stale(stores[0], emergency)
    with pytest.raises(rows.StaleClaimError) as stale:
        await rows.claim(stores[1], where, emergency.emergency_id, decision=State.DENIED, by="other", decision_id=mine)
    assert stale.value.emergency.decision_id == lost
    await rows.claim(stores[1], where, emergency.emergency_id, decision=State.DENIED, by="other", decision_id=mine, instead_of=lost)
    with pytest.raises(rows.DecidedError):  # whoever was lost comes back too late
        await rows.settle(stores[0], where, emergency.emergency_id, lost)
    assert (await rows.settle(stores[1], where, emergency.emergency_id, mine)).state is State.DENIED


async def test_what_lapsed_is_not_decided_and_what_ended_is_not_settled(stores: Stores) -> None:
    lapsed = await asked(stores[0])
    await let_time_pass(stores[0], lapsed)
    with pytest.raises(rows.DecidedError):
        await decided(stores[0], lapsed)
    ended, decision_id = await asked(stores[0], by="other"), uuid7()
    await rows.claim(stores[0], "bank", ended.emergency_id, decision=State.APPROVED, by=OFFICER, decision_id=decision_id)
    assert await rows.close(stores[1], ended, State.ENDED, b"leaf")
    with pytest.raises(rows.DecidedError):
        await rows.settle(stores[0], "bank", ended.emergency_id, decision_id)


# What counts


def receipt_of(leaf: dict[str, Any]) -> audit.Receipt:
    """A proof with this leaf in it; who believes a leaf here got it from the audit service."""
    extra = base64.b64encode(json.dumps(leaf).encode()).decode()
    return audit.Receipt(tlog_proof=f"c2sp.org/tlog-proof@v1\nextra {extra}\nindex 0\n\na checkpoint\n")


def leaf_of(emergency: Emergency, **changes: Any) -> dict[str, Any]:
    """The leaf of an approval."""
    leaf = {
        "type": "governance",
        "operation": "break_glass.approved",
        "event_id": emergency.decision_id,
        "object_id": emergency.emergency_id,
        "break_glass_id": emergency.emergency_id,
        "tenant": emergency.tenant,
        "actor": emergency.decided_by,
        "details": dict(leaves.details(emergency)),
        "ts": "2100-01-01T00:00:00.000000Z",
    }
    return leaf | changes


class Log:
    """Leaves by event id, as a log would show them."""

    def __init__(self) -> None:
        self.leaves: dict[str, dict[str, Any]] = {}
        self.answers = True

    async def confirm(self, emergency: Emergency) -> leaves.Approval | None:
        if not self.answers:
            raise AuditUnavailable("no answer")
        found = self.leaves.get(emergency.decision_id)
        return None if found is None else leaves.approval(receipt_of(found), emergency)


class Clock:
    def __init__(self) -> None:
        self.at = 1000.0

    def __call__(self) -> float:
        return self.at


async def look(view: LiveEmergencies) -> None:
    await view.look()
    await view.confirm()


async def test_what_one_gateway_heard_counts_at_the_other_until_it_ends(stores: Stores) -> None:
    log, emergency = Log(), await asked(stores[0])
    view = LiveEmergencies(stores[1], log.confirm)
    await look(view)
    assert view.of(principal()) is None
    approved = await decided(stores[0], emergency)
    log.leaves[approved.decision_id] = leaf_of(approved)
    await look(view)
    assert view.of(principal()) == BreakGlass(emergency.emergency_id, suspicion=False)
    assert view.of(principal(OFFICER)) is None
    assert view.of(principal(tenant="broker")) is None
    assert await rows.close(stores[0], approved, State.ENDED, b"leaf")
    await view.look()
    assert view.of(principal()) is None


@pytest.mark.parametrize(
    "forged",
    [
        {"operation": "break_glass.denied"},
        {"operation": "break_glass.requested"},
        {"actor": GUARD},
        {"tenant": "broker"},
        {"object_id": "01930000-0000-7000-8000-000000000000"},
        {"type": "intent"},
        {"details": {"duration_s": "3600", "suspicion": "true", "requested_by_digest": "sha256:" + "0" * 64}},
        {"ts": "2020-01-01T00:00:00.000000Z"},
    ],
)
async def test_a_row_that_the_log_does_not_bear_out_opens_nothing(stores: Stores, forged: dict[str, Any]) -> None:
    log = Log()
    view = LiveEmergencies(stores[1], log.confirm)
    approved = await decided(stores[0], await asked(stores[0]))
    log.leaves[approved.decision_id] = leaf_of(approved, **forged)
    await look(view)
    assert view.of(principal()) is None


async def test_a_longer_or_wider_row_than_was_approved_opens_nothing(stores: Stores) -> None:
    log = Log()
    view = LiveEmergencies(stores[1], log.confirm)
    approved = await decided(stores[0], await asked(stores[0]))
    log.leaves[approved.decision_id] = leaf_of(approved)
    widen = "UPDATE emergencies SET suspicion = 1, duration_us = duration_us * 2 WHERE emergency_id = ?"
    await stores[0].write(lambda state: state.write(widen, (approved.emergency_id,)))
    await look(view)
    assert view.of(principal()) is None


async def test_while_the_log_does_not_answer_nothing_new_opens_and_then_it_does(stores: Stores) -> None:
    log = Log()
    view = LiveEmergencies(stores[1], log.confirm)
    approved = await decided(stores[0], await asked(stores[0]))
    log.leaves[approved.decision_id], log.answers = leaf_of(approved), False
    await look(view)
    assert view.of(principal()) is None
    log.answers = True
    await view.confirm()
    assert view.of(principal()) is not None


async def test_it_ends_by_itself_at_the_states_clock(stores: Stores) -> None:
    log, clock = Log(), Clock()
    view = LiveEmergencies(stores[1], log.confirm, clock)
    approved = await decided(stores[0], await asked(stores[0], duration_us=2_000_000))
    log.leaves[approved.decision_id] = leaf_of(approved)
    await look(view)
    assert view.of(principal()) is not None
    clock.at += 2.0
    assert view.of(principal()) is None


async def test_when_the_state_cannot_be_looked_at_nobody_knows_whether_it_is_in_force(stores: Stores) -> None:
    log, clock = Log(), Clock()
    view = LiveEmergencies(stores[1], log.confirm, clock)
    approved = await decided(stores[0], await asked(stores[0]))
    log.leaves[approved.decision_id] = leaf_of(approved)
    await look(view)
    clock.at += live.MAX_STALE_S + 0.1
    with pytest.raises(EmergenciesUnknownError):
        view.of(principal())
    assert view.of(principal(OFFICER)) is None


# How they end


async def test_what_is_over_is_closed_once_and_its_leaf_is_owed_until_the_log_has_it(stores: Stores) -> None:
    approved = await decided(stores[0], await asked(stores[0]))
    waiting = await asked(stores[0], by="other")
    for one in (approved, waiting):
        await let_time_pass(stores[0], one)
    appended: list[audit.AppendRequest] = []
    expired: list[str] = []

    async def broken(leaf: audit.AppendRequest) -> audit.AppendResponse:
        raise AuditUnavailable("no answer")

    async def append(leaf: audit.AppendRequest) -> audit.AppendResponse:
        appended.append(leaf)
        return audit.AppendResponse()

    async def both(how: closing.Append) -> None:
        await asyncio.gather(*(closing.close_what_is_over(store, how, expired.append) for store in stores))

    await both(broken)
    assert (expired, appended) == (["bank", "bank"], [])
    await both(append)
    await both(append)
    # Two gateways may append a leaf at once, as the same event with the same content; none is appended after the log has it.
    by_event = {leaf.event_id: leaf for leaf in appended}
    assert len(by_event) == 2
    assert len(appended) <= 4
    assert all(leaf == by_event[leaf.event_id] for leaf in appended)
    told = {leaf.governance.object_id: dict(leaf.governance.details) for leaf in by_event.values()}
    assert {name: details["was"] for name, details in told.items()} == {
        approved.emergency_id: "approved",
        waiting.emergency_id: "requested",
    }
    assert {details["recorded_by"] for details in told.values()} == {"gateway"}
    assert all(leaf.governance.operation == "break_glass.expired" for leaf in by_event.values())
    states = [one.state for one in await rows.page(stores[1], "bank", "", 10)]
    assert states == [State.EXPIRED, State.EXPIRED]


async def test_a_request_on_which_somebody_decides_does_not_lapse_under_their_hands(stores: Stores) -> None:
    emergency, decision_id = await asked(stores[0]), uuid7()
    await rows.claim(stores[0], "bank", emergency.emergency_id, decision=State.APPROVED, by=OFFICER, decision_id=decision_id)
    await let_time_pass(stores[0], emergency)
    assert (await rows.due(stores[1]))[0] == []
    await make_stale(stores[0], emergency)
    assert [one.emergency_id for one in (await rows.due(stores[1]))[0]] == [emergency.emergency_id]


def test_who_asked_is_known_by_both_of_their_credentials() -> None:
    person, certificate = "https://i#ada", "spiffe://td/tenant/bank/user/ada"
    one = Emergency(EmergencyId("x"), "bank", State.REQUESTED, person, certificate, 0, 0, False, 0, b"")
    assert one.is_of(person, "")
    assert one.is_of(certificate, "")
    assert replace(one, requested_by=certificate, requested_with="").is_of(person, certificate)
    assert not one.is_of("https://i#bob", "spiffe://td/tenant/bank/user/bob")
    assert not replace(one, requested_with="").is_of("https://i#bob", "")
