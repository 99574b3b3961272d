"""The reading half of the PostgreSQL store.

An auditor's check opens it alone, in a session that can change nothing: beside a running service, or on a replica. It takes no
lock, raises no epoch, migrates nothing. Knows: SQL that reads. Does not know: how commits are made (postgres.py), what a log has
to look like (audit/store_check.py).
"""

import threading
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, Final, Self

import psycopg

from lionrock.audit.failures import StoreFailed
from lionrock.audit.store import LogId, OpenIntent, StoredLeaf, StoredLog
from lionrock.audit.store.departures import DepartureReader
from lionrock.audit.store.postgres_schema import MIGRATIONS, SCHEMA
from lionrock.audit.store.postgres_session import Deadlines, connect_for_reading, failures
from lionrock.audit.store.records import RecordReader
from lionrock.audit.store.tables import TABLES, TableReader
from lionrock.tlog.merkle import HASH_BYTES, Subtree, where_stored

_LEAF: Final = "SELECT leaf_index, event_id, recorded_at_us, subtree_hashes, data FROM leaves WHERE log_id = %s"
_LEAF_AT: Final = f"{_LEAF} AND leaf_index = %s"
_LEAF_OF_EVENT: Final = f"{_LEAF} AND event_id = %s"
_LEAVES_OF_EVENTS: Final = f"{_LEAF} AND event_id = ANY(%b)"
_LEAVES_BETWEEN: Final = f"{_LEAF} AND leaf_index >= %s AND leaf_index < %s ORDER BY leaf_index LIMIT %s"
_SUBTREE_HASHES: Final = """
    SELECT substr(subtree_hashes, wanted.start, %s)
    FROM unnest(%b::bigint[], %b::integer[]) WITH ORDINALITY AS wanted (leaf_index, start, place)
    JOIN leaves ON leaves.log_id = %s AND leaves.leaf_index = wanted.leaf_index ORDER BY wanted.place"""
_ROWS_AT_ONCE: Final = 256
_CHECK_DEADLINE_S: Final = 600.0
"""Of each statement of a check: some count every row of a table."""
_ADDITIONS: Final = """
    SELECT 'trigger', count(*) FROM pg_trigger AS t JOIN pg_class AS c ON c.oid = t.tgrelid
        WHERE c.relnamespace = %(schema)s::regnamespace AND NOT t.tgisinternal
    UNION ALL SELECT 'rule', count(*) FROM pg_rewrite AS r JOIN pg_class AS c ON c.oid = r.ev_class
        WHERE c.relnamespace = %(schema)s::regnamespace
    UNION ALL SELECT 'row security policy', count(*) FROM pg_policy AS p JOIN pg_class AS c ON c.oid = p.polrelid
        WHERE c.relnamespace = %(schema)s::regnamespace
    UNION ALL SELECT 'function', count(*) FROM pg_proc WHERE pronamespace = %(schema)s::regnamespace
    UNION ALL SELECT 'inheriting table', count(*) FROM pg_inherits AS i JOIN pg_class AS c ON c.oid = i.inhparent
        WHERE c.relnamespace = %(schema)s::regnamespace
    UNION ALL SELECT 'invalid index', count(*) FROM pg_index AS i JOIN pg_class AS c ON c.oid = i.indrelid
        WHERE c.relnamespace = %(schema)s::regnamespace AND NOT (i.indisvalid AND i.indisready)"""
"""What our statements never make, and what hides, alters or adds rows behind those who read and write them."""
_COLUMNS: Final = """
    SELECT c.relname::text, a.attname::text FROM pg_class AS c JOIN pg_attribute AS a ON a.attrelid = c.oid
    WHERE c.relnamespace = %s::regnamespace AND c.relkind = 'r' AND a.attnum > 0 AND NOT a.attisdropped"""
_UNIQUE: Final = """
    SELECT c.relname::text FROM pg_index AS i JOIN pg_class AS c ON c.oid = i.indrelid
    WHERE c.relnamespace = %s::regnamespace AND i.indisunique"""
_OWN_COLUMNS: Final = {
    "sequencer": ("single", "epoch", "holder"),
    "logs": ("log_id", "origin", "verifier_key", "size", "root", "checkpoint", "timeline"),
    "leaves": ("log_id", "leaf_index", "recorded_at_us", "event_id", "subtree_hashes", "data"),
    "schema_versions": ("version", "applied_at"),
}
_EXPECTED_COLUMNS: Final = frozenset(
    [(table, column) for table, columns in _OWN_COLUMNS.items() for column in columns]
    + [(table.name, column) for table in TABLES for column in ("log_id", *table.columns)]
)
_EXPECTED_UNIQUE: Final = sorted([*_OWN_COLUMNS, "logs", "leaves", *(table.name for table in TABLES if table.name != "payloads")])
"""Tables by their unique indexes, without which rows could be doubled."""


class PostgresLogReader:
    """Reads logs from one database. Any thread may call; calls wait for each other."""

    def __init__(self, connection: psycopg.Connection, deadlines: Deadlines, *, deadline_s: float) -> None:
        """Own a session, which is used by one call at a time. `deadlines` cuts it off, `deadline_s` after a statement began."""
        self._reader_lock = threading.Lock()
        self._reader = connection
        self._deadlines = deadlines
        self._deadline_s = deadline_s

    @classmethod
    def open(cls, dsn: str) -> Self:
        """Open a database for reading alone, a replica's as well. Raises StoreFailed, also for one without our tables."""
        connection = connect_for_reading(dsn, deadline_s=_CHECK_DEADLINE_S)
        try:
            with failures("reading the schema"):
                row = connection.execute("SELECT to_regclass(%s) IS NOT NULL", (f"{SCHEMA}.schema_versions",)).fetchone()
                version = connection.execute("SELECT max(version) FROM schema_versions").fetchone() if row == (True,) else None
        except BaseException:
            connection.close()
            raise
        if version != (len(MIGRATIONS),):
            connection.close()
            what = "holds no audit logs" if version is None else f"has schema {version[0]}, this program reads {len(MIGRATIONS)}"
            raise StoreFailed(f"the database {what}")
        return cls(connection, Deadlines(), deadline_s=_CHECK_DEADLINE_S)

    @property
    def records(self) -> RecordReader:
        """Records beside the leaves."""
        return RecordReader(self._ask)

    @property
    def departures(self) -> DepartureReader:
        """Tenants that leave."""
        return DepartureReader(self._ask)

    @property
    def tables(self) -> TableReader:
        """What is beside leaves and heads, row by row."""
        return TableReader(self._ask)

    def find_log(self, origin: str) -> StoredLog | None:
        """Head of a log."""
        rows = self._read(
            "SELECT log_id, origin, verifier_key, size, root, checkpoint, timeline FROM logs WHERE origin = %s", (origin,)
        )
        return self._stored_log(rows[0]) if rows else None

    def logs(self) -> list[StoredLog]:
        """Heads of all logs, by origin."""
        sql = "SELECT log_id, origin, verifier_key, size, root, checkpoint, timeline FROM logs ORDER BY origin"
        return [self._stored_log(row) for row in self._read(sql, ())]

    def leaf(self, log_id: LogId, index: int) -> StoredLeaf | None:
        """Leaf at an index."""
        if index >= 1 << 63:
            return None
        rows = self._read(_LEAF_AT, (log_id, index))
        return leaf_of_row(rows[0]) if rows else None

    def leaf_of_event(self, log_id: LogId, event_id: str) -> StoredLeaf | None:
        """Leaf of an event."""
        if "\0" in event_id:
            return None
        rows = self._read(_LEAF_OF_EVENT, (log_id, event_id))
        return leaf_of_row(rows[0]) if rows else None

    def leaves(self, log_id: LogId, start: int, stop: int, max_bytes: int) -> list[StoredLeaf]:
        """Leaves [start, stop) as far as `max_bytes` of data go, at least one if there is one."""
        page: list[StoredLeaf] = []
        while start < stop:
            rows = self._read(_LEAVES_BETWEEN, (log_id, start, stop, _ROWS_AT_ONCE))
            for row in rows:
                page.append(leaf_of_row(row))
                max_bytes -= len(page[-1].data)
                if max_bytes <= 0:
                    return page
            if len(rows) < _ROWS_AT_ONCE:
                break
            start = page[-1].index + 1
        return page

    def next_index(self, log_id: LogId) -> int:
        """One more than the highest index present."""
        return int(self._read("SELECT coalesce(max(leaf_index) + 1, 0) FROM leaves WHERE log_id = %s", (log_id,))[0][0])

    def subtree_hashes(self, log_id: LogId, subtrees: Sequence[Subtree]) -> list[bytes]:
        """Hashes in the order asked. Raises StoreFailed when one is absent."""
        places = [where_stored(subtree) for subtree in subtrees]
        starts = [subtree.level * HASH_BYTES + 1 for subtree in subtrees]
        hashes = [row[0] for row in self._read(_SUBTREE_HASHES, (HASH_BYTES, places, starts, log_id))]
        if len(hashes) != len(subtrees) or any(len(hash_) != HASH_BYTES for hash_ in hashes):
            raise StoreFailed(f"the store does not have all {len(subtrees)} hashes that were asked for")
        return hashes

    def open_intents(self, log_id: LogId, below: int, limit: int) -> list[OpenIntent]:
        """Return open intents with an index below `below`, oldest first."""
        rows = self._read(
            "SELECT leaf_index, request_id FROM open_intents WHERE log_id = %s AND leaf_index < %s ORDER BY leaf_index LIMIT %s",
            (log_id, below, limit),
        )
        return [OpenIntent(*row) for row in rows]

    @contextmanager
    def snapshot(self) -> Iterator[None]:
        """Have the reads of a block see one state. One thread, no block within another. Raises StoreFailed."""
        self._run("BEGIN ISOLATION LEVEL REPEATABLE READ, READ ONLY")
        try:
            yield
        except BaseException:
            with suppress(StoreFailed):
                self._run("ROLLBACK")
            raise
        self._run("COMMIT")

    def leaves_of_events(self, log_id: LogId, event_ids: Collection[str]) -> dict[str, StoredLeaf]:
        """Leaves of those events that are there, by event id."""
        rows = self._read(_LEAVES_OF_EVENTS, (log_id, [event_id for event_id in event_ids if "\0" not in event_id]))
        return {leaf.event_id: leaf for leaf in map(leaf_of_row, rows)}

    def flaws(self) -> list[str]:
        """Say how the schema differs from the one that this program makes, and which rows belong to no log.

        Pages, and indexes that disagree with them, are the server's to check (data checksums, amcheck).
        """
        try:
            flaws = [f"the schema has {count} of {kind}" for kind, count in self._read(_ADDITIONS, {"schema": SCHEMA}) if count]
            columns = {(table, column) for table, column in self._read(_COLUMNS, (SCHEMA,))}
            unique = sorted(str(row[0]) for row in self._read(_UNIQUE, (SCHEMA,)))
            if differences := len(columns ^ _EXPECTED_COLUMNS):
                flaws.append(f"the schema differs in {differences} columns from the one that this program makes")
            if unique != _EXPECTED_UNIQUE:
                flaws.append("the schema has other unique indexes than the one that this program makes")
            for table in ("leaves", *(table.name for table in TABLES)):
                sql = f"SELECT count(*) FROM {table} AS t WHERE NOT EXISTS (SELECT FROM logs WHERE logs.log_id = t.log_id)"  # noqa: S608
                if strays := self._read(sql, ())[0][0]:
                    flaws.append(f"{strays} rows of {table} belong to no log")
        except StoreFailed as failure:
            return [str(failure)]
        return flaws

    def close(self) -> None:
        """Close the session."""
        with self._reader_lock:
            self._deadlines.close_session(self._reader)
        self._deadlines.close()

    def _stored_log(self, row: Sequence[Any]) -> StoredLog:
        log_id, origin, verifier_key, size, root, checkpoint, committed_on = row
        return StoredLog(log_id, origin, verifier_key, size, root, checkpoint, self._failed_over(committed_on))

    def _failed_over(self, timeline: int) -> str | None:
        """Say that commits after one on `timeline` may be lost: the writer's concern."""
        del timeline
        return None

    def _reading_session(self) -> psycopg.Connection:
        """Return the session, which the caller has to itself."""
        return self._reader

    def _ask(self, sql: str, parameters: Sequence[object]) -> list[tuple[Any, ...]]:
        return self._read(own_placeholders(sql), parameters)

    def _read(self, sql: str, parameters: "Sequence[object] | dict[str, object]") -> list[tuple[Any, ...]]:
        with self._reader_lock:
            session = self._reading_session()
            with self._deadlines.within(session, 2 * self._deadline_s), failures("reading"):
                return session.execute(sql, parameters, binary=True).fetchall()

    def _run(self, sql: str) -> None:
        with self._reader_lock:
            session = self._reading_session()
            with self._deadlines.within(session, 2 * self._deadline_s), failures("reading"):
                session.execute(sql)


def own_placeholders(sql: str) -> str:
    """Write the shared SQL of records with the driver's own placeholders."""
    return sql.replace("?", "%s")


def leaf_of_row(row: Sequence[Any]) -> StoredLeaf:
    """Leaf from its row. Raises StoreFailed for hashes that no writer of ours leaves."""
    index, event_id, recorded_at_us, hashes, data = row
    if not hashes or len(hashes) % HASH_BYTES:
        raise StoreFailed(f"the hashes of leaf {index} are not whole")
    completed = [hashes[start : start + HASH_BYTES] for start in range(0, len(hashes), HASH_BYTES)]
    return StoredLeaf(index, event_id, recorded_at_us, completed, data)
