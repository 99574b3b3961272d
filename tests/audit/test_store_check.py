"""The auditor's check of a store: clean logs, each flaw by name, a service that writes on, memory and speed."""

from __future__ import annotations

import asyncio
import time
import tracemalloc
from contextlib import closing
from pathlib import Path

import pytest
from audit_harness import PLATFORM, Place, intent, outcome
from checked_stores import CheckedStore, flaws

from lionrock.audit.failures import StoreFailed
from lionrock.audit.findings import Flaw
from lionrock.audit.store.postgres_reader import PostgresLogReader
from lionrock.audit.store.sqlite_reader import SqliteLogReader
from lionrock.tlog.keys import VerifierKey

BANK = f"{PLATFORM}/audit/bank"
OF_BANK = f"(SELECT log_id FROM logs WHERE origin = '{BANK}')"


@pytest.fixture
async def keys(checked: CheckedStore) -> list[VerifierKey]:
    """A closed store with 40 leaves a tenant; the keys that an auditor trusts."""
    async with checked.place.open(checked.open()) as logs:
        for tenant in ("bank", "broker"):
            for number in range(22):
                asked = intent(tenant, prompt=b"prompt")
                told = await logs.append(asked, want_receipt=False)
                if number >= 4:
                    await logs.append(outcome(asked, told.leaf_index if number % 2 else None), want_receipt=False)
    return checked.keys()


def test_a_store_as_it_was_written_has_no_flaw(checked: CheckedStore, keys: list[VerifierKey]) -> None:
    found = checked.check(keys)
    assert found.findings == []
    assert found.leaves >= 80


@pytest.mark.parametrize(
    ("sql", "flaw"),
    [
        (
            f"UPDATE leaves SET data = {{altered}} WHERE log_id = {OF_BANK} AND leaf_index = 0",
            Flaw.LEAF_ALTERED,
        ),
        (f"UPDATE leaves SET recorded_at_us = 7 WHERE log_id = {OF_BANK} AND leaf_index = 3", Flaw.LEAF_ALTERED),
        (f"UPDATE leaves SET event_id = 'x' WHERE log_id = {OF_BANK} AND leaf_index = 3", Flaw.LEAF_ALTERED),
        (f"DELETE FROM leaves WHERE log_id = {OF_BANK} AND leaf_index = 5", Flaw.LEAF_MISSING),
        (f"UPDATE logs SET size = size - 1 WHERE origin = '{BANK}'", Flaw.HEAD_MISMATCH),
        (f"UPDATE logs SET root = {{zeros}} WHERE origin = '{BANK}'", Flaw.ROOT_MISMATCH),
        (f"UPDATE logs SET checkpoint = 'none' WHERE origin = '{BANK}'", Flaw.CHECKPOINT_INVALID),
        (f"UPDATE logs SET verifier_key = 'none' WHERE origin = '{BANK}'", Flaw.KEY_MISMATCH),
        (f"DELETE FROM open_intents WHERE log_id = {OF_BANK} AND leaf_index = 0", Flaw.INTENTS_MISMATCH),
        (f"UPDATE logs SET origin = 'elsewhere' WHERE origin = '{BANK}'", Flaw.LOG_MISSING),
        (f"UPDATE logs SET origin = 'elsewhere' WHERE origin = '{BANK}'", Flaw.LOG_UNKNOWN),
        (
            "INSERT INTO leaves (log_id, leaf_index, event_id, recorded_at_us, subtree_hashes, data)"
            f" SELECT log_id, 99, 'x', 1, subtree_hashes, data FROM leaves WHERE log_id = {OF_BANK} AND leaf_index = 0",
            Flaw.LEAF_SURPLUS,
        ),
        (
            "INSERT INTO leaves (log_id, leaf_index, event_id, recorded_at_us, subtree_hashes, data)"
            f" SELECT 99, 0, 'x', 1, subtree_hashes, data FROM leaves WHERE log_id = {OF_BANK} AND leaf_index = 0",
            Flaw.STORE_DAMAGED,
        ),
    ],
)
def test_each_edit_is_found_and_named(checked: CheckedStore, keys: list[VerifierKey], sql: str, flaw: Flaw) -> None:
    assert checked.edit(sql) > 0
    assert flaw in flaws(checked.check(keys))


def test_a_trigger_that_somebody_put_into_the_store_is_found(checked: CheckedStore, keys: list[VerifierKey]) -> None:
    if checked.database is None:
        checked.edit("CREATE TRIGGER quiet BEFORE INSERT ON leaves BEGIN DELETE FROM leaves WHERE leaf_index = 0; END")
    else:
        checked.edit("CREATE FUNCTION quiet() RETURNS trigger LANGUAGE plpgsql AS $$BEGIN RETURN NULL; END$$")
        checked.edit("CREATE TRIGGER quiet BEFORE INSERT ON leaves FOR EACH ROW EXECUTE FUNCTION quiet()")
    assert flaws(checked.check(keys)) == {Flaw.STORE_DAMAGED}


def test_a_second_place_that_is_behind_or_damaged_is_found(checked: CheckedStore, keys: list[VerifierKey]) -> None:
    place = checked.place
    content = place.signed_file.read_bytes()
    lines = content.splitlines(keepends=True)
    place.signed_file.write_bytes(b"".join(lines[:-1]))
    assert flaws(checked.check(keys)) == {Flaw.SECOND_PLACE_BEHIND}
    place.signed_file.write_bytes(b"".join([lines[0], b"damaged\n", *lines[1:]]))
    assert Flaw.STORE_DAMAGED in flaws(checked.check(keys))


@pytest.mark.parametrize(
    "sql",
    [
        "ALTER TABLE leaves ADD COLUMN more text",
        "ALTER TABLE leaves DROP CONSTRAINT leaves_log_id_event_id_key",
        "CREATE RULE quiet AS ON DELETE TO holds DO INSTEAD NOTHING",
        "ALTER TABLE records ENABLE ROW LEVEL SECURITY; CREATE POLICY quiet ON records USING (false)",
    ],
)
def test_a_database_whose_schema_was_altered_is_found(database: str, place: Place, sql: str) -> None:
    stored = CheckedStore(place, database)
    stored.open().close()
    stored.edit(sql)
    with closing(stored.reader()) as reader:
        assert len(reader.flaws()) == 1


async def test_rolling_back_both_places_is_found_by_a_checkpoint_that_was_brought(place: Place) -> None:
    stored = CheckedStore(place, None)
    async with place.open() as logs:
        await logs.append(intent(), want_receipt=False)
    files = {path: path.read_bytes() for path in (place.store_file, place.signed_file)}
    async with place.open() as logs:
        await logs.append(intent(), want_receipt=False)
        kept = logs.checkpoint("bank")
    for path, content in files.items():
        path.write_bytes(content)
    keys = stored.keys()
    assert stored.check(keys).findings == []
    assert flaws(stored.check(keys, [kept])) == {Flaw.ROLLED_BACK}


async def test_a_running_service_can_be_checked_while_it_writes(checked: CheckedStore) -> None:
    async with checked.place.open(checked.open()) as logs:
        await logs.append(intent(), want_receipt=False)
        keys = checked.keys()
        ending = asyncio.Event()

        async def write() -> None:
            while not ending.is_set():
                asked = intent(prompt=b"prompt")
                told = await logs.append(asked, want_receipt=False)
                await logs.append(outcome(asked, told.leaf_index), want_receipt=False)

        writing = [asyncio.create_task(write()) for _ in range(4)]
        try:
            for _ in range(5):
                found = await asyncio.to_thread(checked.check, keys)
                assert found.findings == []
        finally:
            ending.set()
            await asyncio.gather(*writing)


def test_a_check_of_a_database_writes_nothing_and_takes_no_lock(database: str, place: Place) -> None:
    stored = CheckedStore(place, database)
    stored.open().close()
    with closing(stored.reader()) as reader, reader.snapshot():
        assert isinstance(reader, PostgresLogReader)
        with closing(stored.open()):  # a service takes the store over meanwhile
            assert reader.logs() == []
        with pytest.raises(StoreFailed, match="read-only transaction"):
            reader._read("UPDATE sequencer SET epoch = 0 RETURNING 1", ())


def test_a_database_without_logs_of_ours_is_refused(database: str) -> None:
    with pytest.raises(StoreFailed, match="holds no audit logs"):
        PostgresLogReader.open(database)


def test_a_file_that_is_no_store_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StoreFailed):
        SqliteLogReader.open(tmp_path / "absent.db")
    (tmp_path / "noise.db").write_bytes(b"noise" * 1000)
    with pytest.raises(StoreFailed):
        SqliteLogReader.open(tmp_path / "noise.db").find_log("any")


async def test_memory_does_not_grow_with_the_log_and_a_thousand_leaves_take_no_second(place: Place) -> None:
    async with place.open() as logs:
        for _ in range(20):
            await asyncio.gather(*(logs.append(intent(prompt=b"prompt"), want_receipt=False) for _ in range(200)))
    stored = CheckedStore(place, None)
    keys = stored.keys()
    begun = time.perf_counter()
    found = stored.check(keys)
    took_s = time.perf_counter() - begun
    assert found.leaves >= 4000
    print(f"{found.leaves / took_s:.0f} leaves/s")
    assert took_s < 4
    tracemalloc.start()
    stored.check(keys)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 12 * 2**20
