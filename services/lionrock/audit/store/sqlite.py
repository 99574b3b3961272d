"""Logs in one SQLite file: write-ahead log, synchronous=FULL (an fsync a commit), one writer connection, one reader connection.

Knows: SQL, the lock file, the schema and its migrations. Does not know: what leaves mean, when to commit.
Source of the durability settings: sqlite.org/pragma.html (synchronous, journal_mode), sqlite.org/wal.html.
"""

import fcntl
import json
import os
import socket
import sqlite3
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from itertools import chain
from pathlib import Path
from typing import Final

from lionrock.audit.failures import StoreConflict, StoreFailed, StoreHeld
from lionrock.audit.store import LogId, OpenIntent, StoredLeaf, StoredLog, Transaction
from lionrock.audit.store.departures import DepartureWriter
from lionrock.audit.store.records import RecordReader, RecordWriter
from lionrock.audit.store.sqlite_reader import SqliteLogReader, sqlite_failures, stored_intent, stored_leaf
from lionrock.audit.store.sqlite_schema import migrate
from lionrock.audit.store.tables import TableReader, TableWriter
from lionrock.chassis.durable_files import make_directory_through, write_again

_LEAVES: Final = "leaves (log_id, leaf_index, event_id, recorded_at_us, subtree_hashes, data)"
_LEAVES_OF_EVENTS: Final = """
    SELECT leaf_index, event_id, recorded_at_us, subtree_hashes, data FROM leaves WHERE log_id = ? AND event_id IN"""
_LOOKUPS_AT_ONCE: Final = (1, 16, 128)
"""Sizes of the statements that look for events: few, so that each is prepared once."""
_ROWS_AT_ONCE: Final = 32
"""Rows an INSERT. A statement costs as much as a row, and Python's lock is given away and won back around each."""
_BUSY_TIMEOUT_S: Final = 5.0
_WAL_CHECKPOINT_PAGES: Final = 4000
"""Folding the write-ahead log into the file costs fsyncs of both; every 16 MiB, not every 4 as by default."""
_WAL_LIMIT_BYTES: Final = 64 * 2**20


class SqliteLogStore(SqliteLogReader):
    """A LogStore in one file. The writer side belongs to one thread at a time, the reader side to any (it locks)."""

    def __init__(self, path: Path) -> None:
        """Open or create. Raises StoreHeld, StoreFailed (also for a schema newer than this program)."""
        make_directory_through(path.parent)
        self._lock: int | None = _take_lock(path)
        try:
            _write_log_again(path)
            self._writer = _connect(path)
            with sqlite_failures("migrating the schema"):
                migrate(self._writer)
            with sqlite_failures("taking the store over"):
                self._epoch = _take_over(self._writer)
            reader = _connect(path)
            reader.execute("PRAGMA query_only=ON")
        except BaseException:
            os.close(self._lock)
            raise
        super().__init__(reader)

    @contextmanager
    def transaction(self) -> Iterator[Transaction]:
        """Commit at the end of the block, or roll back if it raises."""
        with sqlite_failures("beginning a transaction"):
            self._writer.execute("BEGIN IMMEDIATE")
            (epoch,) = self._writer.execute("SELECT epoch FROM sequencer").fetchone()
        try:
            if epoch != self._epoch:
                raise StoreConflict(f"the store was taken over: its epoch is {epoch}, this writer's is {self._epoch}")
            with sqlite_failures("writing"):
                yield _SqliteTransaction(self._writer)
        except BaseException:
            with sqlite_failures("rolling back"):
                if self._writer.in_transaction:
                    self._writer.execute("ROLLBACK")
            raise
        with sqlite_failures("committing"):
            self._writer.execute("COMMIT")

    @property
    def records(self) -> RecordReader:
        """Records beside the leaves."""
        return RecordReader(self._read)

    @property
    def tables(self) -> TableReader:
        """What is beside leaves and heads, row by row."""
        return TableReader(self._read)

    def forget_deleted(self) -> None:
        """Fold the write-ahead log into the file and empty it: it holds old pages. Deleted rows are overwritten (secure_delete)."""
        with self._reader_lock, sqlite_failures("emptying the write-ahead log"):
            (busy, _, _) = self._writer.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        if busy:
            raise StoreFailed("emptying the write-ahead log: another connection reads it")

    def heartbeat(self) -> None:
        """Check that the store is still this writer's; the lock needs no upkeep."""
        with sqlite_failures("keeping the store"):
            (epoch,) = self._writer.execute("SELECT epoch FROM sequencer").fetchone()
        if epoch != self._epoch:
            raise StoreConflict(f"the store was taken over: its epoch is {epoch}, this writer's is {self._epoch}")

    def create_log(self, origin: str, verifier_key: str, root: bytes, checkpoint: str) -> StoredLog:
        """Create an empty log, durably."""
        with self.transaction(), sqlite_failures("creating a log"):
            cursor = self._writer.execute(
                "INSERT INTO logs (origin, verifier_key, size, root, checkpoint) VALUES (?, ?, 0, ?, ?)",
                (origin, verifier_key, root, checkpoint),
            )
        assert cursor.lastrowid is not None
        return StoredLog(LogId(cursor.lastrowid), origin, verifier_key, 0, root, checkpoint)

    def close(self) -> None:
        """Release the store; the last connection to close folds the write-ahead log into the file. Twice is no harm."""
        super().close()
        try:
            with sqlite_failures("closing"):
                self._writer.close()
        finally:
            lock, self._lock = self._lock, None  # by the second time the number may be another file's
            if lock is not None:
                os.close(lock)


class _SqliteTransaction:
    """A Transaction on the writer's connection."""

    __slots__ = ("_connection",)

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection

    @property
    def records(self) -> RecordWriter:
        return RecordWriter(
            lambda sql, parameters: self._connection.execute(sql, parameters).fetchall(), self._connection.executemany
        )

    @property
    def departures(self) -> DepartureWriter:
        return DepartureWriter(
            lambda sql, parameters: self._connection.execute(sql, parameters).fetchall(), self._connection.executemany
        )

    @property
    def tables(self) -> TableWriter:
        return TableWriter(self._connection.executemany)

    def leaves_of_events(self, log_id: LogId, event_ids: Collection[str]) -> dict[str, StoredLeaf]:
        wanted, found = list(event_ids), {}
        for start in range(0, len(wanted), _LOOKUPS_AT_ONCE[-1]):
            some = wanted[start : start + _LOOKUPS_AT_ONCE[-1]]
            size = next(size for size in _LOOKUPS_AT_ONCE if len(some) <= size)
            some += some[:1] * (size - len(some))  # to ask for one of them again changes nothing
            for row in self._connection.execute(f"{_LEAVES_OF_EVENTS} ({', '.join('?' * size)})", (log_id, *some)):
                leaf = stored_leaf(row)
                found[leaf.event_id] = leaf
        return found

    def retry_salt(self, log_id: LogId, leaf: StoredLeaf) -> bytes | None:
        row = self._connection.execute(
            "SELECT salt FROM retry_salts WHERE recorded_at_us = ? AND log_id = ? AND leaf_index = ?",
            (leaf.recorded_at_us, log_id, leaf.index),
        ).fetchone()
        if row is not None and not isinstance(row[0], bytes):
            raise StoreFailed("a salt does not have the type of the schema")
        return None if row is None else row[0]

    def open_intent(self, log_id: LogId, index: int) -> OpenIntent | None:
        row = self._connection.execute(
            "SELECT leaf_index, request_id FROM open_intents WHERE log_id = ? AND leaf_index = ?", (log_id, index)
        ).fetchone()
        return None if row is None else stored_intent(row)

    def open_intents_of(self, log_id: LogId, request_ids: Collection[str]) -> list[OpenIntent]:
        statement = "SELECT leaf_index, request_id FROM open_intents WHERE log_id = ? AND request_id = ?"
        return sorted(
            (stored_intent(row) for request_id in request_ids for row in self._connection.execute(statement, (log_id, request_id))),
            key=lambda intent: intent.index,
        )

    def add_leaves(self, log_id: LogId, leaves: Sequence[StoredLeaf]) -> None:
        rows = [(log_id, leaf.index, leaf.event_id, leaf.recorded_at_us, b"".join(leaf.completed), leaf.data) for leaf in leaves]
        self._insert(_LEAVES, rows)

    def add_open_intents(self, log_id: LogId, intents: Sequence[OpenIntent]) -> None:
        self._insert("open_intents", [(log_id, intent.request_id, intent.index) for intent in intents])

    def close_intents(self, log_id: LogId, intents: Sequence[OpenIntent]) -> None:
        self._connection.executemany(
            "DELETE FROM open_intents WHERE log_id = ? AND request_id = ? AND leaf_index = ?",
            [(log_id, intent.request_id, intent.index) for intent in intents],
        )

    def keep_retry_salts(self, log_id: LogId, salts: Sequence[tuple[int, int, bytes]]) -> None:
        self._insert("retry_salts", [(recorded_at_us, log_id, index, salt) for index, recorded_at_us, salt in salts])

    def forget_retry_salts(self, before_us: int, limit: int) -> int:
        return self._connection.execute(
            "DELETE FROM retry_salts WHERE (recorded_at_us, log_id, leaf_index) IN"
            " (SELECT recorded_at_us, log_id, leaf_index FROM retry_salts WHERE recorded_at_us < ? LIMIT ?)",
            (before_us, limit),
        ).rowcount

    def set_key(self, log_id: LogId, verifier_key: str) -> None:
        self._connection.execute("UPDATE logs SET verifier_key = ? WHERE log_id = ?", (verifier_key, log_id))

    def advance(self, log_id: LogId, old_size: int, old_root: bytes, size: int, root: bytes, checkpoint: str) -> None:
        moved = self._connection.execute(
            "UPDATE logs SET size = ?, root = ?, checkpoint = ? WHERE log_id = ? AND size = ? AND root = ?",
            (size, root, checkpoint, log_id, old_size, old_root),
        ).rowcount
        if moved != 1:
            raise StoreConflict(f"the log no longer ends at {old_size} leaves under the root that this writer signed")

    def _insert(self, table: str, rows: Sequence[tuple[object, ...]]) -> None:
        """Add rows, many a statement, the rest one by one. `table`: with the columns, unless it is all of them."""
        whole = len(rows) - len(rows) % _ROWS_AT_ONCE
        for some, at_once in ((rows[:whole], _ROWS_AT_ONCE), (rows[whole:], 1)):
            if some:
                row = f"({', '.join('?' * len(some[0]))})"
                statement = f"INSERT INTO {table} VALUES {', '.join([row] * at_once)}"  # noqa: S608  tables are named here
                values = [list(chain.from_iterable(some[start : start + at_once])) for start in range(0, len(some), at_once)]
                self._connection.executemany(statement, values)


def _connect(path: Path) -> sqlite3.Connection:
    with sqlite_failures("opening the store"):
        connection = sqlite3.connect(path, timeout=_BUSY_TIMEOUT_S, isolation_level=None, check_same_thread=False)
        (mode,) = connection.execute("PRAGMA journal_mode=WAL").fetchone()
        connection.execute("PRAGMA synchronous=FULL")
        connection.execute("PRAGMA foreign_keys=ON")
        connection.execute("PRAGMA secure_delete=ON")  # a salt that was forgotten is overwritten
        connection.execute(f"PRAGMA wal_autocheckpoint={_WAL_CHECKPOINT_PAGES}")
        connection.execute(f"PRAGMA journal_size_limit={_WAL_LIMIT_BYTES}")
    if mode != "wal":
        connection.close()
        raise StoreFailed(f"the file system under the store has no write-ahead log (journal mode {mode})")
    path.chmod(0o600)
    return connection


def _write_log_again(path: Path) -> None:
    """Make sure that the commits which the write-ahead log shows are on the disk, before anything is built on them.

    The last process may have ended over a failed fsync: its commits then stand in the page cache and not on the disk, and no later
    fsync brings them there. What lies in the database file alone needs no such care: until it is safe there, SQLite keeps it here.
    """
    wal = path.with_name(path.name + "-wal")
    try:
        if wal.exists():
            write_again(wal)
    except OSError as error:
        raise StoreFailed(f"writing {wal}: {error.strerror}") from error


def _take_over(connection: sqlite3.Connection) -> int:
    holder = json.dumps(_describe_holder())
    row = connection.execute("UPDATE sequencer SET epoch = epoch + 1, holder = ? RETURNING epoch", (holder,)).fetchone()
    if row is None:
        raise StoreFailed("the store has lost the row that says who may write: restore the store from its backup")
    return int(row[0])


def _describe_holder() -> dict[str, str | int]:
    return {"pid": os.getpid(), "host": socket.gethostname(), "since": datetime.now(UTC).isoformat(timespec="seconds")}


def _take_lock(path: Path) -> int:
    """Take the lock file beside the store; the kernel drops it with the process. Raises StoreHeld."""
    lock_path = path.with_name(path.name + ".lock")
    descriptor = os.open(lock_path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        held_by = os.pread(descriptor, 4096, 0).decode("utf-8", "replace").strip() or "a process that has not said its name yet"
        os.close(descriptor)
        raise StoreHeld(f"the audit store {path} is held by {held_by}; one store has one audit service") from None
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, json.dumps(_describe_holder()).encode(), 0)
    return descriptor
