from __future__ import annotations

import asyncio
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any

import psycopg
import pytest
from audit_harness import PLATFORM, Place, check_leaves, intent, outcome

from lionrock.audit.failures import MoveRefused, StoreFailed
from lionrock.audit.log import AuditLogs
from lionrock.audit.moving import move_logs
from lionrock.audit.store import LogStore, Transaction
from lionrock.audit.store.postgres import PostgresLogStore
from lionrock.audit.store.postgres_schema import SCHEMA
from lionrock.audit.store.sqlite import SqliteLogStore
from lionrock.audit.store.tables import TABLES
from lionrock.audit.verify import verify_receipt

ORIGIN = f"{PLATFORM}/audit/bank"
DIRECTIONS = ["sqlite to postgresql", "postgresql to sqlite"]


@pytest.fixture(params=DIRECTIONS)
def ends(request: pytest.FixtureRequest, place: Place, database: str) -> tuple[Any, Any]:
    """Open the source and the target."""
    sqlite, postgres = (lambda: SqliteLogStore(place.store_file)), (lambda: PostgresLogStore(database))
    return (sqlite, postgres) if request.param == DIRECTIONS[0] else (postgres, sqlite)


async def fill(logs: AuditLogs, count: int) -> list[str]:
    """Append to both tenants. Returns receipts of the bank's intents, the last of which stays without an outcome."""
    receipts = []
    for number in range(count):
        asked = intent(prompt=b"prompt %d" % number)
        appended = await logs.append(asked, want_receipt=True)
        receipts.append(appended.proof or "")
        if number < count - 1:
            await logs.append(outcome(asked, appended.leaf_index, answer=b"answer"), want_receipt=False)
    await asyncio.gather(*(logs.append(intent("broker"), want_receipt=False) for _ in range(3)))
    return receipts


async def test_after_a_move_the_logs_go_on_and_every_proof_verifies(place: Place, ends: tuple[Any, Any]) -> None:
    open_source, open_target = ends
    repeated = intent(prompt=b"again")
    async with place.open(open_source()) as logs:
        receipts = await fill(logs, 8)
        first = await logs.append(repeated, want_receipt=False)
        old = logs.checkpoint("bank")
    steps: list[tuple[str, int, int]] = []
    with closing(open_source()) as source, closing(open_target()) as target:
        moved = move_logs(source, target, lambda *step: steps.append(step))
        assert [log.origin for log in moved] == [f"{PLATFORM}/audit", ORIGIN, f"{PLATFORM}/audit/broker"]
        assert check_leaves(source) == check_leaves(target)
        for origin in (ORIGIN, f"{PLATFORM}/audit/broker"):
            there, here = target.find_log(origin), source.find_log(origin)
            assert there is not None
            assert here is not None
            assert there.checkpoint == here.checkpoint
            for table in TABLES:
                assert target.tables.page(table, there.log_id, None, 99) == source.tables.page(table, here.log_id, None, 99)
    assert (ORIGIN, 16, 16) in steps
    async with place.open(open_target()) as logs:
        assert logs.read_only_reasons() == {}
        assert logs.checkpoint("bank") == old
        again = await logs.append(repeated, want_receipt=False)
        assert (again.leaf_index, again.salt) == (first.leaf_index, first.salt)
        assert len(await logs.open_intents("bank", 99, 99)) == 2
        for receipt in receipts:
            assert verify_receipt(receipt, logs.verifier_keys("bank")).tree_size <= 16
        now = await logs.receipt("bank", 3)
        assert verify_receipt(now.proof or "", logs.verifier_keys("bank")).tree_size == 16
        await fill(logs, 2)
    async with place.open(open_source()) as logs:  # what was moved away from is behind by now, and is not signed for
        assert "rolled back" in logs.read_only_reasons()["bank"]


class Interrupted(Exception):
    pass


class BreaksOff:
    """A store whose connection breaks after so many transactions."""

    def __init__(self, store: LogStore, transactions: int) -> None:
        self._store, self._left = store, transactions

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    @contextmanager
    def transaction(self) -> Iterator[Transaction]:
        if self._left == 0:
            raise Interrupted
        self._left -= 1
        with self._store.transaction() as transaction:
            yield transaction


async def test_an_interrupted_move_is_signed_for_by_nobody_and_goes_on(
    place: Place, ends: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lionrock.audit.moving._BATCH_LEAVES", 3)
    monkeypatch.setattr("lionrock.audit.moving._ROWS_AT_ONCE", 2)
    open_source, open_target = ends
    async with place.open(open_source()) as logs:
        await fill(logs, 6)
    interruptions = 0
    for transactions in range(1, 99):
        with closing(open_source()) as source, closing(open_target()) as target:
            try:
                move_logs(source, BreaksOff(target, 2 + transactions % 3))  # type: ignore[arg-type]
            except Interrupted:
                interruptions += 1
            else:
                break
        if interruptions == 3:
            async with place.open(open_target()) as logs:
                assert "not wholly moved" in logs.read_only_reasons()["bank"]
    assert interruptions > 3
    with closing(open_source()) as source, closing(open_target()) as target:
        assert check_leaves(source) == check_leaves(target)
        here, there = source.find_log(ORIGIN), target.find_log(ORIGIN)
        assert here is not None
        assert there is not None
        for table in TABLES:
            assert target.tables.page(table, there.log_id, None, 99) == source.tables.page(table, here.log_id, None, 99)
        assert [log.size for log in move_logs(source, target)] == [0, 11, 3]  # again, with nothing to do


async def test_a_target_with_other_logs_is_refused(place: Place, tmp_path: Path, ends: tuple[Any, Any]) -> None:
    open_source, open_target = ends
    async with place.open(open_source()) as logs:
        await fill(logs, 2)
    async with Place(tmp_path / "other").open(open_target()) as logs:
        await fill(logs, 2)
    with closing(open_source()) as source, closing(open_target()) as target, pytest.raises(MoveRefused, match="not empty"):
        move_logs(source, target)


async def test_a_target_that_was_signed_for_is_refused(place: Place, tmp_path: Path, ends: tuple[Any, Any]) -> None:
    open_source, open_target = ends
    async with place.open(open_source()) as logs:
        await fill(logs, 2)
    with closing(open_source()) as source, closing(open_target()) as target:
        move_logs(source, target)
    async with place.open(open_target()) as logs:
        await fill(logs, 1)
    with closing(open_source()) as source, closing(open_target()) as target, pytest.raises(MoveRefused, match="no prefix"):
        move_logs(source, target)


def test_an_empty_source_is_refused(ends: tuple[Any, Any]) -> None:
    open_source, open_target = ends
    with closing(open_source()) as source, closing(open_target()) as target, pytest.raises(MoveRefused, match="no logs"):
        move_logs(source, target)


@pytest.mark.parametrize(
    ("edit", "reason"),
    [
        ("UPDATE leaves SET data = cast(data || 'x' AS BLOB) WHERE leaf_index = 2", "leaf 2 of .* is not what was hashed"),
        ("UPDATE leaves SET subtree_hashes = zeroblob(32) WHERE leaf_index = 2", "leaf 2 of .* is not what was hashed"),
        ("DELETE FROM leaves WHERE leaf_index = 2 AND log_id = 1", "lacks leaves"),
        ("UPDATE logs SET root = zeroblob(32) WHERE log_id = 1", "another head"),
        (
            "UPDATE logs SET checkpoint = replace(checkpoint, '5', '6') WHERE log_id = 1",
            "not signed by its key",
        ),
    ],
)
async def test_a_source_that_was_edited_is_not_moved(place: Place, tmp_path: Path, edit: str, reason: str) -> None:
    async with place.open() as logs:
        await fill(logs, 3)
    with closing(sqlite3.connect(place.store_file)) as connection:
        connection.execute(edit)
        connection.commit()
    with ExitStack() as ends:
        source = ends.enter_context(closing(SqliteLogStore(place.store_file)))
        target = ends.enter_context(closing(SqliteLogStore(tmp_path / "target.db")))
        with pytest.raises(MoveRefused, match=reason):
            move_logs(source, target)


async def test_every_table_of_a_schema_is_moved(place: Place, database: str) -> None:
    names = {table.name for table in TABLES} | {"schema_versions", "sequencer", "logs", "leaves"}
    SqliteLogStore(place.store_file).close()
    with closing(sqlite3.connect(place.store_file)) as connection:
        columns = {
            name: {row[1] for row in connection.execute(f"PRAGMA table_info({name})")}
            for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite_%'")
        }
    assert set(columns) == names
    for table in TABLES:
        assert {"log_id", *table.columns} == columns[table.name]
    PostgresLogStore(database).close()
    with psycopg.connect(database) as reader:
        rows = reader.execute("SELECT tablename FROM pg_tables WHERE schemaname = %s", (SCHEMA,)).fetchall()
    assert {name for (name,) in rows} == names


async def test_the_command_moves_refuses_what_is_held_and_keeps_the_connection_string_to_itself(
    place: Place, tmp_path: Path, database: str
) -> None:
    dsn_file = tmp_path / "dsn"
    dsn_file.write_text(f"{database} password=hunter2", encoding="utf-8")
    dsn_file.chmod(0o600)
    command = [sys.executable, "-m", "lionrock.cli", "audit", "migrate"]
    command += ["--from", f"sqlite:{place.store_file}", "--to", f"postgresql:{dsn_file}"]
    async with place.open() as logs:
        await fill(logs, 3)
        held = await asyncio.to_thread(subprocess.run, command, capture_output=True, text=True, check=False, timeout=60)
    assert held.returncode == 1
    assert "is held by" in held.stderr
    assert "stop the audit service" in held.stderr
    moved = await asyncio.to_thread(subprocess.run, command, capture_output=True, text=True, check=False, timeout=60)
    assert (moved.returncode, moved.stdout) == (
        0,
        f"{PLATFORM}/audit  0 leaves\n{ORIGIN}  5 leaves\n{PLATFORM}/audit/broker  3 leaves\n",
    ), moved.stderr
    assert "hunter2" not in held.stderr + moved.stderr
    with closing(PostgresLogStore(database)) as store:
        assert len(check_leaves(store)) == 5
    absent = [*command[:5], "--from", f"sqlite:{tmp_path}/absent.db", "--to", f"sqlite:{tmp_path}/new.db"]
    refused = await asyncio.to_thread(subprocess.run, absent, capture_output=True, text=True, check=False, timeout=60)
    assert refused.returncode == 1
    assert not (tmp_path / "absent.db").exists()


def test_a_store_is_named_by_kind_and_file(tmp_path: Path) -> None:
    from lionrock.audit.store.opening import open_named

    for name in ("audit.db", "mysql:x", "sqlite:", "postgresql://user:hunter2@db/audit"):
        with pytest.raises(StoreFailed, match="sqlite:FILE") as refusal:
            open_named(name)
        assert "hunter2" not in str(refusal.value)
