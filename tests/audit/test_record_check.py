"""The auditor's check of what lies beside the leaves: a store in which everything happened, and each edit of its rows."""

from __future__ import annotations

import asyncio
import random
import sqlite3
import time
from contextlib import closing

import pytest
from audit_harness import PLATFORM, Place, intent, outcome
from checked_stores import CheckedStore, flaws
from records_harness import Clock, Opened, RecordsPlace, concerning, decision, who

from lionrock.audit.failures import StoreFailed
from lionrock.audit.findings import Flaw
from lionrock.audit.records.holds import RecordScope
from lionrock.audit.records.retention import DAY_US
from lionrock.audit.store.tables import TABLES
from lionrock.tlog.keys import VerifierKey

OFFICER, AUDITOR = who("privacy_officer"), who("auditor")
OF_BANK = f"log_id = (SELECT log_id FROM logs WHERE origin = '{PLATFORM}/audit/bank')"
KEPT = f"{OF_BANK} AND request_id = (SELECT min(request_id) FROM records WHERE {OF_BANK} AND state = 'kept' AND case_id = 'case-1')"
A_STATE = f"{OF_BANK} AND request_id = (SELECT min(request_id) FROM records WHERE {OF_BANK} AND state = '{{}}')"
A_PAYLOAD = f"{KEPT} AND kind = 'prompt'"


async def live(opened: Opened, clock: Clock) -> None:
    """Have everything happen that leaves rows beside leaves."""
    records = opened.records
    for number in range(6):
        await opened.say(subjects=(f"c-{number % 2}",), case_id="case-1", purpose="advice")
    erased = [await opened.say(subjects=("c-9",)) for _ in range(3)]
    hidden = await opened.say(data_class="suspicion", purpose="chit_chat")
    await opened.say(purpose="chit_chat")
    await opened.logs.append(concerning(intent(prompt=b"left open"), ("c-1",)), want_receipt=False)
    await opened.logs.append(outcome(intent(), None, status="blocked"), want_receipt=False)  # refused before an intent
    await opened.logs.append(outcome(intent(), None, answer=b"cut", status="blocked"), want_receipt=False)
    await records.correct(OFFICER, opened.said[0].request_id, "no, that")
    for event in (
        decision(),
        decision(statement=b"why", subjects=("c-3",)),
        decision(request_id=hidden.request_id, statement=b"so"),
    ):
        await opened.logs.append(event, want_receipt=False)
    await records.log_refusal(OFFICER, request="access", subject_id="c-1", ground="s.20", particulars="why")
    await records.place_hold(OFFICER, RecordScope("subject", "c-0"), "court")
    released, _ = await records.place_hold(OFFICER, RecordScope("case", "case-1"), "mistake")
    await records.release_hold(OFFICER, released)
    await records.place_hold(who("mlro"), RecordScope("request", hidden.request_id), "report")
    await records.erase(OFFICER, RecordScope("request", erased[0].request_id), basis="PDPO s.26", allow_partial=False)
    await records.erase(OFFICER, RecordScope("subject", "c-9"), basis="PDPO s.26", allow_partial=True)
    clock.advance(31)
    assert await opened.upkeep.expire("bank") == 1
    await records.search(AUDITOR, RecordScope("subject", "c-1"), 10)


@pytest.fixture
async def keys(checked: CheckedStore) -> list[VerifierKey]:
    """A closed store in which everything happened; the keys that an auditor trusts."""
    clock = Clock()
    async with RecordsPlace(checked.place).open(store=checked.open(), clock=clock) as opened:
        await live(opened, clock)
    return checked.keys()


def test_a_store_in_which_everything_happened_has_no_flaw(checked: CheckedStore, keys: list[VerifierKey]) -> None:
    assert {row[0] for row in checked.ask("SELECT DISTINCT state FROM records")} == {"kept", "erased", "expired"}
    assert checked.check(keys).findings == []


@pytest.mark.parametrize(
    ("sql", "expected"),
    [
        (f"DELETE FROM records WHERE {KEPT}", Flaw.RECORD_MISSING),
        (f"DELETE FROM record_leaves WHERE {KEPT}", Flaw.RECORD_MISMATCH),
        (f"DELETE FROM record_leaves WHERE {KEPT} AND type = 'intent'", Flaw.RECORD_MISMATCH),
        (f"DELETE FROM record_leaves WHERE {KEPT} AND type = 'outcome'", Flaw.RECORD_MISMATCH),
        (f"UPDATE record_leaves SET type = 'correction' WHERE {KEPT} AND type = 'outcome'", Flaw.RECORD_MISMATCH),
        (f"UPDATE record_leaves SET leaf_index = 10000 WHERE {KEPT} AND type = 'outcome'", Flaw.RECORD_SURPLUS),
        (
            f"INSERT INTO record_leaves SELECT log_id, request_id, leaf_index + 9000, type FROM record_leaves WHERE {KEPT}",
            Flaw.RECORD_SURPLUS,
        ),
        (f"UPDATE records SET retention_class = 'free' WHERE {KEPT}", Flaw.RECORD_MISMATCH),
        (f"UPDATE records SET case_id = 'case-2' WHERE {KEPT}", Flaw.RECORD_MISMATCH),
        (f"UPDATE records SET restricted = 1 WHERE {KEPT}", Flaw.RECORD_MISMATCH),
        (f"UPDATE records SET log_book = 1 WHERE {KEPT}", Flaw.RECORD_MISMATCH),
        (f"UPDATE records SET recorded_at_us = recorded_at_us - 1 WHERE {KEPT}", Flaw.RECORD_MISMATCH),
        (f"UPDATE records SET state = 'lost' WHERE {KEPT}", Flaw.RECORD_MISMATCH),
        (f"UPDATE records SET destruction_id = 'x' WHERE {KEPT}", Flaw.RECORD_MISMATCH),
        (
            f"INSERT INTO records SELECT log_id, 'x', state, retention_class, case_id, restricted, log_book, recorded_at_us, ''"
            f" FROM records WHERE {KEPT}",
            Flaw.RECORD_SURPLUS,
        ),
        (f"UPDATE records SET state = 'erased' WHERE {KEPT}", Flaw.PAYLOAD_NOT_GONE),
        (f"UPDATE records SET state = 'erased' WHERE {KEPT}", Flaw.DESTRUCTIONS_MISMATCH),
        (f"UPDATE records SET state = 'kept' WHERE {A_STATE.format('erased')}", Flaw.PAYLOAD_MISSING),
        (f"UPDATE records SET state = 'expired' WHERE {A_STATE.format('erased')}", Flaw.DESTRUCTIONS_MISMATCH),
        (f"UPDATE records SET state = 'erased' WHERE {A_STATE.format('expired')}", Flaw.DESTRUCTIONS_MISMATCH),
        (f"UPDATE records SET state = 'destroying', destruction_id = 'x' WHERE {KEPT}", Flaw.DESTRUCTIONS_MISMATCH),
        (f"INSERT INTO destructions SELECT log_id, 'x', {{zeros}} FROM records WHERE {KEPT}", Flaw.DESTRUCTIONS_MISMATCH),
        (f"DELETE FROM payloads WHERE {A_PAYLOAD}", Flaw.PAYLOAD_MISSING),
        (f"UPDATE payloads SET kind = 'answer' WHERE {A_PAYLOAD}", Flaw.PAYLOAD_MISSING),
        (f"UPDATE payloads SET event_id = 'x' WHERE {A_PAYLOAD}", Flaw.RECORD_MISMATCH),
        (f"UPDATE payloads SET sealed = {{one}} WHERE {A_PAYLOAD}", Flaw.RECORD_MISMATCH),
        (f"UPDATE payloads SET leaf_index = 10000 WHERE {A_PAYLOAD}", Flaw.RECORD_SURPLUS),
        (f"UPDATE payloads SET request_id = 'x' WHERE {A_PAYLOAD}", Flaw.RECORD_SURPLUS),
        (f"INSERT INTO payloads SELECT * FROM payloads WHERE {A_PAYLOAD}", Flaw.RECORD_SURPLUS),
        (
            f"INSERT INTO payloads SELECT log_id, request_id, leaf_index, 'prompt', 'x', {{zeros}} FROM record_leaves"
            f" WHERE {A_STATE.format('erased')}",
            Flaw.PAYLOAD_NOT_GONE,
        ),
        (f"DELETE FROM holds WHERE {OF_BANK}", Flaw.HOLDS_MISMATCH),
        (f"UPDATE holds SET leaf_index = leaf_index + 1 WHERE {OF_BANK}", Flaw.HOLDS_MISMATCH),
        (f"UPDATE holds SET restricted = 1 - restricted WHERE {OF_BANK}", Flaw.HOLDS_MISMATCH),
        (f"UPDATE holds SET placed_at_us = placed_at_us - {DAY_US} WHERE {OF_BANK}", Flaw.HOLDS_MISMATCH),
        (f"UPDATE holds SET sealed = {{one}} WHERE {OF_BANK}", Flaw.HOLDS_MISMATCH),
        (f"INSERT INTO holds SELECT log_id, 'x', leaf_index, placed_at_us, restricted, sealed FROM holds WHERE {OF_BANK} AND"
         f" leaf_index = (SELECT min(leaf_index) FROM holds)", Flaw.HOLDS_MISMATCH),
        (f"INSERT INTO retired_keys SELECT log_id, 1, verifier_key, checkpoint FROM logs WHERE {OF_BANK}", Flaw.KEYS_MISMATCH),
        *[
            (f"UPDATE {name} SET log_id = 99 WHERE {KEPT if name != 'holds' else OF_BANK}", Flaw.STORE_DAMAGED)
            for name in ("records", "record_leaves", "payloads", "holds")
        ],
    ],
)  # fmt: skip
def test_each_edit_of_a_row_is_found_and_named(checked: CheckedStore, keys: list[VerifierKey], sql: str, expected: Flaw) -> None:
    assert checked.edit(sql) > 0
    found = checked.check(keys)
    assert expected in flaws(found)
    shown = " ".join(map(str, found.findings))
    assert "case-1" not in shown
    ids = [str(request_id) for (request_id,) in checked.ask("SELECT request_id FROM records")]
    assert not any(len(request_id) == 36 and request_id in shown for request_id in ids)


async def test_a_destruction_that_a_crash_cut_off_is_no_flaw_at_any_step(checked: CheckedStore) -> None:
    class Cut(Exception):
        pass

    for step in ("listed", "logged", "keys_destroyed", "data_destroyed"):

        def cut(at: str, step: str = step) -> None:
            if at == step:
                raise Cut

        place = RecordsPlace(checked.place)
        async with place.open(store=checked.open()) as opened:
            await opened.say(subjects=("c-1",))
            await opened.say(subjects=("c-1",))
        with pytest.raises(Cut):
            async with place.open(store=checked.open(), at=cut) as opened:
                await opened.records.erase(OFFICER, RecordScope("subject", "c-1"), basis="s.26", allow_partial=False)
        assert checked.check(checked.keys()).findings == []
        if step in ("listed", "logged"):
            checked.edit("UPDATE records SET state = 'kept', destruction_id = '' WHERE state = 'destroying'")
            assert flaws(checked.check(checked.keys())) == {Flaw.DESTRUCTIONS_MISMATCH}
            return_to = "UPDATE records SET state = 'destroying', destruction_id = (SELECT destruction_id FROM destructions)"
            checked.edit(f"{return_to} WHERE state = 'kept'")


async def test_records_are_checked_while_they_are_erased_and_expire(checked: CheckedStore) -> None:
    clock = Clock()
    async with RecordsPlace(checked.place).open(store=checked.open(), clock=clock, batch=3) as opened:
        await opened.say()
        keys, ending = checked.keys(), asyncio.Event()

        async def go_on() -> None:
            while not ending.is_set():
                said = await opened.say(subjects=("c-1",))
                await opened.say(purpose="chit_chat")
                held, _ = await opened.records.place_hold(OFFICER, RecordScope("subject", "c-2"), "court")
                await opened.records.erase(OFFICER, RecordScope("request", said.request_id), basis="s.26", allow_partial=False)
                await opened.records.release_hold(OFFICER, held)
                clock.advance(7)
                await opened.upkeep.expire("bank")

        going = asyncio.create_task(go_on())
        try:
            for _ in range(8):
                assert (await asyncio.to_thread(checked.check, keys)).findings == []
        finally:
            ending.set()
            await going


async def test_a_vault_that_is_switched_on_later_is_no_flaw(checked: CheckedStore) -> None:
    place = RecordsPlace(checked.place)
    async with place.open(store=checked.open(), vaulted=()) as opened:
        await opened.say()
        waiting = intent(prompt=b"from before")
        first = await opened.logs.append(waiting, want_receipt=False)
    async with place.open(store=checked.open()) as opened:
        await opened.logs.append(outcome(waiting, first.leaf_index, answer=b"from after"), want_receipt=False)
        await opened.say()
    assert checked.check(checked.keys()).findings == []


async def test_bytes_of_the_file_that_lie_beside_the_leaves_change_nothing_or_are_found(place: Place) -> None:
    """Random bytes of rows and indexes: a check ends in an answer, and says so where a table reads otherwise."""
    clock = Clock()
    stored = CheckedStore(place, None)
    async with RecordsPlace(place).open(clock=clock) as opened:
        await live(opened, clock)
    keys, pristine = stored.keys(), place.store_file.read_bytes()
    tables = [table for table in TABLES if table.name != "retry_salts"]
    before = read_tables(place, [table.name for table in tables])
    seed = time.time_ns() % 10**9
    chance, found, altered = random.Random(seed), 0, 0
    for _ in range(150):
        content = bytearray(pristine)
        for _ in range(chance.choice((1, 1, 8))):
            content[chance.randrange(100, len(content))] = chance.randrange(256)
        place.store_file.write_bytes(content)
        differs = read_tables(place, [table.name for table in tables]) != before
        try:
            missed = not stored.check(keys).findings
        except StoreFailed:
            missed = False
        altered += differs
        found += differs and not missed
    assert found == altered, f"seed {seed}"


def read_tables(place: Place, names: list[str]) -> object:
    """Rows of tables as anybody reads them; of ciphertexts their lengths, which is all that can be seen without a key."""
    sized = {"payloads": "log_id, request_id, leaf_index, kind, event_id, length(sealed)"}
    sized["holds"] = "log_id, hold_id, leaf_index, restricted, length(sealed)"
    try:
        with closing(sqlite3.connect(f"file:{place.store_file}?mode=ro", uri=True)) as connection:
            return [connection.execute(f"SELECT {sized.get(name, '*')} FROM {name} ORDER BY 1, 2, 3").fetchall() for name in names]
    except (sqlite3.Error, OverflowError, UnicodeDecodeError):
        return "unreadable"
