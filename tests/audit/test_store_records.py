"""What every store does with records: the tables' own rules, and the whole life of a record on each."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from audit_harness import Place
from records_harness import Clock, RecordsPlace, who

from lionrock.audit import failures
from lionrock.audit.records.holds import RecordScope
from lionrock.audit.store import LogStore, OpenIntent, StoredLog
from lionrock.audit.store.records import SealedPayload, StoredDestruction, StoredHold, StoredRecord

OpenStore = Callable[[], LogStore]


def record(number: int, **changes: object) -> StoredRecord:
    values: dict[str, object] = {
        "request_id": f"r{number:03}",
        "state": "kept",
        "retention_class": "standard",
        "case_id": "",
        "restricted": False,
        "log_book": False,
        "recorded_at_us": 1000 + number,
    }
    return StoredRecord(**values | changes)  # type: ignore[arg-type]


def test_records_come_back_as_they_went_in(store: LogStore, bank: StoredLog) -> None:
    kept = [record(number, case_id="C" if number % 2 else "", restricted=number == 3) for number in range(300)]
    with store.transaction() as transaction:
        transaction.records.add_records(bank.log_id, kept)
        transaction.records.add_leaves_of(bank.log_id, [("r001", 7, "intent"), ("r001", 3, "outcome")])
        transaction.records.add_payloads(bank.log_id, [("r001", SealedPayload(7, "prompt", "e", b"\x00\xff"))])
        assert len(transaction.records.records(bank.log_id, ["r001", "r002", "nobody", "\0"])) == 2
    reader = store.records
    assert list(reader.records(bank.log_id, [one.request_id for one in kept]).values()) == kept
    assert reader.records(bank.log_id, []) == {}
    assert reader.leaves_of(bank.log_id, "r001") == [(3, "outcome"), (7, "intent")]
    assert reader.payloads(bank.log_id, "r001") == [SealedPayload(7, "prompt", "e", b"\x00\xff")]
    assert [one.request_id for one in reader.records_of_case(bank.log_id, "C", 2)] == ["r299", "r297"]
    assert reader.records_of_case(bank.log_id, "", 2) == reader.records_of_case(bank.log_id, "\0", 2) == []
    assert reader.records(bank.log_id + 1, ["r001"]) == {}
    counts = reader.counts(bank.log_id, with_restricted=False)
    assert (counts.records, counts.payload_bytes, counts.open_intents, counts.holds) == ({"kept": 299}, 2, 0, 0)
    assert reader.counts(bank.log_id, with_restricted=True).records == {"kept": 300}


def test_the_classes_that_kept_records_have_are_found_one_by_one(store: LogStore, bank: StoredLog) -> None:
    names = ["advice", "advice/2557/never", "standard", "standard/0/400", "standard/30/400"]
    changes = [{"retention_class": name} for name in names for _ in range(3)]
    changes += [{"retention_class": "hidden/0/1", "restricted": True}, {"retention_class": "gone/0/1", "state": "expired"}]
    with store.transaction() as transaction:
        transaction.records.add_records(bank.log_id, [record(number, **change) for number, change in enumerate(changes)])
    assert sorted(store.records.retention_classes(bank.log_id, restricted=False)) == names
    assert store.records.retention_classes(bank.log_id, restricted=True) == ["hidden/0/1"]
    assert store.records.retention_classes(bank.log_id + 1, restricted=False) == []


def test_older_records_are_paged_by_age_and_class(store: LogStore, bank: StoredLog) -> None:
    with store.transaction() as transaction:
        for number in range(10):
            changes = {
                "recorded_at_us": 1000 + number // 2,
                "restricted": number == 4,
                "state": "erased" if number == 5 else "kept",
            }
            transaction.records.add_records(bank.log_id, [record(number, **changes)])
        transaction.records.add_records(bank.log_id, [record(99, retention_class="other", recorded_at_us=0)])
    seen: list[str] = []
    after = (-1, "")
    while page := store.records.older_records(bank.log_id, "standard", restricted=False, before_us=1004, after=after, limit=3):
        seen += [one.request_id for one in page]
        after = (page[-1].recorded_at_us, page[-1].request_id)
    assert seen == ["r000", "r001", "r002", "r003", "r006", "r007"]


def test_a_destruction_is_listed_carried_out_and_forgotten(store: LogStore, bank: StoredLog) -> None:
    with store.transaction() as transaction:
        transaction.records.add_records(bank.log_id, [record(1), record(2), record(3)])
        transaction.records.add_payloads(bank.log_id, [(f"r00{n}", SealedPayload(n, "prompt", "e", b"x")) for n in (1, 2, 3)])
    plan = StoredDestruction("d1", b'{"plan": 1}')
    with store.transaction() as transaction:
        transaction.records.begin_destruction(bank.log_id, plan, ["r001", "r002"])
    assert store.records.destructions(bank.log_id) == [plan]
    assert store.records.listed_for(bank.log_id, "d1", 1) == ["r001"]
    assert store.records.listed_for(bank.log_id, "d2", 9) == []
    with store.transaction() as transaction:
        transaction.records.destroy(bank.log_id, ["r001"], "erased")
    assert store.records.listed_for(bank.log_id, "d1", 9) == ["r002"]
    with store.transaction() as transaction:
        transaction.records.destroy(bank.log_id, ["r002"], "erased")
        transaction.records.end_destruction(bank.log_id, "d1")
    assert store.records.destructions(bank.log_id) == []
    states = {one.request_id: one.state for one in store.records.records(bank.log_id, ["r001", "r002", "r003"]).values()}
    assert states == {"r001": "erased", "r002": "erased", "r003": "kept"}
    assert store.records.payloads(bank.log_id, "r001") == []
    assert len(store.records.payloads(bank.log_id, "r003")) == 1
    store.forget_deleted()


def test_holds_and_hidden_intents_are_counted_by_who_may_know(store: LogStore, bank: StoredLog) -> None:
    hold = StoredHold("h1", 4, 5, True, b"sealed")
    with store.transaction() as transaction:
        transaction.records.add_hold(bank.log_id, hold)
        transaction.records.add_records(bank.log_id, [record(1, restricted=True), record(2)])
        transaction.add_open_intents(bank.log_id, [OpenIntent(1, "r001"), OpenIntent(2, "r002"), OpenIntent(3, "unrecorded")])
    assert store.records.holds(bank.log_id) == [hold]
    hidden, whole = (store.records.counts(bank.log_id, with_restricted=cleared) for cleared in (False, True))
    assert (hidden.holds, hidden.open_intents, whole.holds, whole.open_intents) == (0, 2, 1, 3)
    with store.transaction() as transaction:
        transaction.records.remove_hold(bank.log_id, "h1")
        transaction.records.remove_hold(bank.log_id, "h1")
    assert store.records.holds(bank.log_id) == []


def test_what_is_rolled_back_was_never_there(store: LogStore, bank: StoredLog) -> None:
    def fail() -> None:
        with store.transaction() as transaction:
            transaction.records.add_records(bank.log_id, [record(1)])
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert store.records.records(bank.log_id, ["r001"]) == {}


async def test_a_record_lives_and_is_destroyed_on_every_store(open_store: OpenStore, tmp_path: Path) -> None:
    clock = Clock()
    async with RecordsPlace(Place(tmp_path)).open(store=open_store(), clock=clock) as opened:
        said = await opened.say("點呀？".encode(), subjects=("one",), case_id="C")
        due = await opened.say(purpose="chit_chat")
        assert (await opened.logs.append(said.events[0], want_receipt=False)).salt == said.salts[0]
        hold_id, _ = await opened.records.place_hold(who("mlro"), RecordScope("case", "C"), "inquiry")
        with pytest.raises(failures.LegalHoldApplies):
            await opened.records.erase(who("privacy_officer"), RecordScope("subject", "one"), basis="asked", allow_partial=False)
        await opened.records.release_hold(who("mlro"), hold_id)
        erased = await opened.records.erase(
            who("privacy_officer"), RecordScope("subject", "one"), basis="asked", allow_partial=False
        )
        assert erased.records == 1
        clock.advance(31)
        assert await opened.upkeep.expire("bank") == 1
        for request_id in (said.request_id, due.request_id):
            with pytest.raises(failures.RecordErased):
                await opened.records.read(who("auditor"), request_id)
        with pytest.raises(failures.EventAlreadyRecorded):
            await opened.logs.append(said.events[0], want_receipt=False)
