"""The reading half of the SQLite store.

An auditor's check opens it alone, on a connection that can change nothing: beside a running service, or in a copy. It takes no
lock, raises no epoch, migrates nothing. Knows: SQL that reads, and that a file from elsewhere may hold anything where the schema
promises a type. Does not know: how commits are made (sqlite.py), what a log has to look like (audit/store_check.py).
"""

import sqlite3
import threading
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, Self
from urllib.parse import quote

from lionrock.audit.failures import StoreFailed
from lionrock.audit.store import LogId, OpenIntent, StoredLeaf, StoredLog
from lionrock.audit.store.departures import DepartureReader
from lionrock.audit.store.records import RecordReader
from lionrock.audit.store.sqlite_schema import schema_differences
from lionrock.audit.store.tables import TABLES, TableReader
from lionrock.tlog.merkle import HASH_BYTES, Subtree, where_stored

_LOGS: Final = "SELECT log_id, origin, verifier_key, size, root, checkpoint FROM logs"
_LEAF: Final = "SELECT leaf_index, event_id, recorded_at_us, subtree_hashes, data FROM leaves"
_STRAYS: Final = "SELECT count(*) FROM {} WHERE log_id NOT IN (SELECT log_id FROM logs)"
_BUSY_TIMEOUT_S: Final = 5.0
_FLAWS_MAX: Final = 20
_SIZE_MAX: Final = 2**62


class SqliteLogReader:
    """Reads logs from one file. Any thread may call; calls wait for each other."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        """Own a connection, which is used by one call at a time."""
        self._reader_lock = threading.Lock()
        self._reader = connection

    @classmethod
    def open(cls, path: Path) -> Self:
        """Open a file that is there, for reading alone. Raises StoreFailed."""
        with sqlite_failures("opening the store"):
            connection = sqlite3.connect(
                f"file:{quote(str(path.absolute()))}?mode=ro", uri=True, timeout=_BUSY_TIMEOUT_S, check_same_thread=False
            )
            connection.execute("PRAGMA query_only=ON")
            connection.execute("PRAGMA trusted_schema=OFF")
            connection.execute("PRAGMA cell_size_check=ON")
        return cls(connection)

    @property
    def records(self) -> RecordReader:
        """Records beside the leaves."""
        return RecordReader(self._read)

    @property
    def departures(self) -> DepartureReader:
        """Tenants that leave."""
        return DepartureReader(self._read)

    @property
    def tables(self) -> TableReader:
        """What is beside leaves and heads, row by row."""
        return TableReader(self._read)

    @contextmanager
    def snapshot(self) -> Iterator[None]:
        """Have the reads of a block see one state. One thread, no block within another. Raises StoreFailed.

        A service cannot empty its write-ahead log meanwhile: keep blocks short.
        """
        self._read("BEGIN", ())
        try:
            yield
        finally:
            self._read("ROLLBACK", ())

    def find_log(self, origin: str) -> StoredLog | None:
        """Head of a log."""
        rows = self._read(f"{_LOGS} WHERE origin = ?", (origin,))
        return stored_log(rows[0]) if rows else None

    def logs(self) -> list[StoredLog]:
        """Heads of all logs, by origin."""
        return [stored_log(row) for row in self._read(f"{_LOGS} ORDER BY origin", ())]

    def leaf(self, log_id: LogId, index: int) -> StoredLeaf | None:
        """Leaf at an index."""
        rows = self._read(f"{_LEAF} WHERE log_id = ? AND leaf_index = ?", (log_id, index))
        return stored_leaf(rows[0]) if rows else None

    def leaf_of_event(self, log_id: LogId, event_id: str) -> StoredLeaf | None:
        """Leaf of an event."""
        rows = self._read(f"{_LEAF} WHERE log_id = ? AND event_id = ?", (log_id, event_id))
        return stored_leaf(rows[0]) if rows else None

    def leaves_of_events(self, log_id: LogId, event_ids: Collection[str]) -> dict[str, StoredLeaf]:
        """Leaves of those events that are there, by event id."""
        found = {}
        with self._reader_lock, sqlite_failures("reading"):
            for event_id in event_ids:
                row = self._reader.execute(f"{_LEAF} WHERE log_id = ? AND event_id = ?", (log_id, event_id)).fetchone()
                if row is not None:
                    found[event_id] = stored_leaf(row)
        return found

    def leaves(self, log_id: LogId, start: int, stop: int, max_bytes: int) -> list[StoredLeaf]:
        """Leaves [start, stop) as far as `max_bytes` of data go, at least one if there is one."""
        page: list[StoredLeaf] = []
        with self._reader_lock, sqlite_failures("reading leaves"):
            rows = self._reader.execute(
                f"{_LEAF} WHERE log_id = ? AND leaf_index >= ? AND leaf_index < ? ORDER BY leaf_index", (log_id, start, stop)
            )
            try:
                for row in rows:
                    page.append(stored_leaf(row))
                    max_bytes -= len(page[-1].data)
                    if max_bytes <= 0:
                        break
            finally:
                rows.close()  # a statement left open would pin the write-ahead log
        return page

    def next_index(self, log_id: LogId) -> int:
        """One more than the highest index present."""
        ((highest,),) = self._read("SELECT max(leaf_index) FROM leaves WHERE log_id = ?", (log_id,))
        return highest + 1 if isinstance(highest, int) else 0

    def subtree_hashes(self, log_id: LogId, subtrees: Sequence[Subtree]) -> list[bytes]:
        """Hashes in the order asked. Raises StoreFailed when one is absent."""
        hashes = []
        with self._reader_lock, sqlite_failures("reading hashes"):
            for subtree in subtrees:
                row = self._reader.execute(
                    "SELECT substr(subtree_hashes, ?, ?) FROM leaves WHERE log_id = ? AND leaf_index = ?",
                    (subtree.level * HASH_BYTES + 1, HASH_BYTES, log_id, where_stored(subtree)),
                ).fetchone()
                if row is None or len(row[0]) != HASH_BYTES:
                    raise StoreFailed(f"the store has no hash for the subtree of level {subtree.level}, index {subtree.index}")
                hashes.append(row[0])
        return hashes

    def open_intents(self, log_id: LogId, below: int, limit: int) -> list[OpenIntent]:
        """Return open intents with an index below `below`, oldest first."""
        rows = self._read(
            "SELECT leaf_index, request_id FROM open_intents WHERE log_id = ? AND leaf_index < ? ORDER BY leaf_index LIMIT ?",
            (log_id, below, limit),
        )
        return [stored_intent(row) for row in rows]

    def flaws(self) -> list[str]:
        """Say what SQLite's own check of its pages, rows and indexes finds; the first 20. Reads the whole file."""
        try:
            rows = self._read(f"PRAGMA integrity_check({_FLAWS_MAX})", ())
            strays = self._read("PRAGMA foreign_key_check(leaves)", ())
            beside = sum(self._read(_STRAYS.format(table.name), ())[0][0] for table in TABLES)
            with self._reader_lock, sqlite_failures("reading the schema"):
                differences = schema_differences(self._reader)
        except StoreFailed as failure:
            return [str(failure)]
        flaws = [str(row[0]) for row in rows if row[0] != "ok"]
        if strays:
            flaws.append(f"{len(strays)} leaves belong to no log")
        if beside:
            flaws.append(f"{beside} rows of what is beside the leaves belong to no log")
        if differences:
            flaws.append(f"the schema differs in {differences} entries from the one that this program makes")
        return flaws

    def close(self) -> None:
        """Close the connection."""
        with self._reader_lock:
            self._reader.close()

    def _read(self, sql: str, parameters: Sequence[object]) -> list[tuple[Any, ...]]:
        with self._reader_lock, sqlite_failures("reading"):
            return self._reader.execute(sql, parameters).fetchall()


@contextmanager
def sqlite_failures(doing: str) -> Iterator[None]:
    """Turn what SQLite raises into StoreFailed. Its messages name tables and files, never values."""
    try:
        yield
    except (sqlite3.Error, sqlite3.Warning, OverflowError, UnicodeDecodeError) as error:
        raise StoreFailed(f"{doing}: {getattr(error, 'sqlite_errorname', type(error).__name__)}: {error}") from error


def stored_log(row: Sequence[object]) -> StoredLog:
    """Head of a log from its row. Raises StoreFailed for values that no writer of ours leaves."""
    log_id, origin, verifier_key, size, root, checkpoint = row
    if not (
        isinstance(log_id, int)
        and isinstance(origin, str)
        and isinstance(verifier_key, str)
        and isinstance(size, int)
        and 0 <= size < _SIZE_MAX
        and isinstance(root, bytes)
        and isinstance(checkpoint, str)
    ):
        raise StoreFailed("the head of a log does not have the types of the schema")
    return StoredLog(LogId(log_id), origin, verifier_key, size, root, checkpoint)


def stored_leaf(row: Sequence[object]) -> StoredLeaf:
    """Leaf from its row. Raises StoreFailed for values that no writer of ours leaves."""
    index, event_id, recorded_at_us, hashes, data = row
    if not (
        isinstance(index, int)
        and isinstance(event_id, str)
        and isinstance(recorded_at_us, int)
        and isinstance(hashes, bytes)
        and isinstance(data, bytes)
        and len(hashes) >= HASH_BYTES
    ):
        raise StoreFailed("a stored leaf does not have the types of the schema")
    completed = [hashes[start : start + HASH_BYTES] for start in range(0, len(hashes), HASH_BYTES)]
    return StoredLeaf(index, event_id, recorded_at_us, completed, data)


def stored_intent(row: Sequence[object]) -> OpenIntent:
    """Open intent from its row. Raises StoreFailed for values that no writer of ours leaves."""
    index, request_id = row
    if not (isinstance(index, int) and isinstance(request_id, str)):
        raise StoreFailed("an open intent does not have the types of the schema")
    return OpenIntent(index, request_id)
