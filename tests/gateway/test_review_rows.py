"""Rows of held answers, over both kinds of database."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from lionrock.chassis.ids import uuid7
from lionrock.gateway.reviews import rows
from lionrock.gateway.reviews.rows import QueueFullError, Review
from lionrock.gateway.reviews.rules import Cause, Decision, ReviewRules
from lionrock.gateway.state.opening import StateSettings, open_state
from lionrock.gateway.state.store import StateStore
from postgres_server import PostgresServer, running_postgres

HOUR_US = 3600 * 1_000_000
ALL = ("public", "internal", "personal", "identity", "suspicion")


@pytest.fixture(scope="module")
def postgres() -> Iterator[PostgresServer]:
    with running_postgres() as server:
        yield server


@pytest.fixture(params=["sqlite", "postgres"])
async def store(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[StateStore]:
    settings = StateSettings(sqlite_file=tmp_path / "state.sqlite")
    if request.param == "postgres":
        file = tmp_path / "dsn"
        file.write_text(request.getfixturevalue("postgres").new_database())
        file.chmod(0o600)
        settings = StateSettings(postgres_dsn_file=file)
    async with open_state(settings) as opened:
        yield opened


@pytest.fixture
def review() -> Callable[..., Review]:
    def make(tenant: str = "bank", data_class: str = "personal") -> Review:
        facts = (tenant, uuid7(), uuid7(), "ada", frozenset({"ada", "api-key:1"}), "drafting", "case-1", data_class)
        return Review(*facts, Cause.PURPOSE, held_at_us=0, expires_at_us=0)

    return make


async def test_a_row_comes_back_as_it_was(store: StateStore, review: Callable[..., Review]) -> None:
    held = await rows.hold(store, review(), HOUR_US, notify=False)
    assert held.expires_at_us == held.held_at_us + HOUR_US
    assert await rows.find(store, "bank", held.request_id) == held
    assert await rows.find(store, "broker", held.request_id) is None


async def test_the_first_decision_stays(store: StateStore, review: Callable[..., Review]) -> None:
    held = await rows.hold(store, review(), HOUR_US, notify=False)
    await rows.decide(store, held, Decision.REFUSE, "rita", 5)
    await rows.decide(store, held, Decision.RELEASE, "rob", 6)
    expected = replace(held, decision=Decision.REFUSE, decided_by="rita", decided_at_us=5)
    assert await rows.find(store, "bank", held.request_id) == expected


async def test_pages_have_every_row_of_the_classes_once_and_in_order(store: StateStore, review: Callable[..., Review]) -> None:
    held = [await rows.hold(store, review(data_class=name), HOUR_US, notify=False) for name in (*ALL, *ALL)]
    await rows.hold(store, review("broker"), HOUR_US, notify=False)
    classes = ("personal", "public", "suspicion")
    found: list[Review] = []
    while page := await rows.page(
        store, "bank", classes, (found[-1].held_at_us, found[-1].request_id) if found else (0, ""), 2, decided=False
    ):
        found += page
    expected = sorted((one for one in held if one.data_class in classes), key=lambda one: (one.held_at_us, one.request_id))
    assert found == expected
    assert await rows.page(store, "bank", (), (0, ""), 10, decided=True) == []


async def test_a_tenant_has_so_many_that_wait_and_no_more(
    store: StateStore, review: Callable[..., Review], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rows, "MAX_WAITING", 2)
    first = await rows.hold(store, review(), HOUR_US, notify=False)
    await rows.hold(store, review(), HOUR_US, notify=False)
    with pytest.raises(QueueFullError):
        await rows.hold(store, review(), HOUR_US, notify=False)
    await rows.hold(store, review("broker"), HOUR_US, notify=False)
    await rows.decide(store, first, Decision.RELEASE, "rita", 1)
    await rows.hold(store, review(), HOUR_US, notify=False)


async def test_only_what_nobody_is_deciding_on_is_overdue(store: StateStore, review: Callable[..., Review]) -> None:
    late = await rows.hold(store, review(), 0, notify=False)
    begun = await rows.hold(store, review(), 0, notify=False)
    decided = await rows.hold(store, review(), 0, notify=False)
    await rows.hold(store, review(), HOUR_US, notify=False)
    await rows.claim(store, begun)
    await rows.decide(store, decided, Decision.RELEASE, "rita", 1)
    assert [one.request_id for one in await rows.overdue(store, 10)] == [late.request_id]


async def test_old_rows_that_were_decided_on_are_forgotten(store: StateStore, review: Callable[..., Review]) -> None:
    old, waiting = [await rows.hold(store, review(), -rows.KEPT_US - HOUR_US, notify=False) for _ in range(2)]
    young = await rows.hold(store, review(), 0, notify=False)
    await rows.decide(store, old, Decision.EXPIRED, "", 1)
    await rows.decide(store, young, Decision.REFUSE, "rita", 1)
    await rows.forget(store)
    left = [await rows.find(store, "bank", one.request_id) is not None for one in (old, waiting, young)]
    assert left == [False, True, True]


async def test_a_notice_is_taken_by_one_and_comes_again_until_it_was_delivered(
    store: StateStore, review: Callable[..., Review], monkeypatch: pytest.MonkeyPatch
) -> None:
    held = await rows.hold(store, review(), HOUR_US, notify=True)
    await rows.hold(store, review(), HOUR_US, notify=False)
    assert [one.request_id for one in await rows.to_notify(store, 10)] == [held.request_id]
    assert await rows.to_notify(store, 10) == [], "another gateway does not take it as well"
    monkeypatch.setattr(rows, "_FIRST_RETRY_US", 0)
    await store.write(lambda state: state.write("UPDATE reviews SET notify_at_us = 0 WHERE notify_at_us IS NOT NULL"))
    tries = 1
    while await rows.to_notify(store, 10):
        tries += 1
    assert tries == rows.NOTIFY_TRIES
    again = await rows.hold(store, review(), HOUR_US, notify=True)
    assert len(await rows.to_notify(store, 10)) == 1
    await rows.notified(store, again)
    assert await rows.to_notify(store, 10) == []


def test_purpose_or_profile_make_answers_wait() -> None:
    rules = ReviewRules(frozenset({"advice"}), frozenset({"retail"}), 60)
    assert rules.cause("advice", "retail") is Cause.PURPOSE
    assert rules.cause("other", "retail") is Cause.PROFILE
    assert rules.cause("other", "default") is None
