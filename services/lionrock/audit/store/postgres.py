"""Logs in PostgreSQL: one writer session that holds an advisory lock, one reader session.

Knows: SQL, the lock, the epoch, what a transaction's end means. Does not know: what leaves mean, when to commit, how a session is
made safe (postgres_session.py), the schema's history (postgres_schema.py).

One writer
- The lock is the session's: it goes when the session goes, by the server's hand, whatever became of the process. A writer never
  opens a second session; when its first is gone, so is its right to write.
- Taking over raises the epoch. Every transaction reads the epoch under a shared lock before it writes, so it ends before the next
  writer reads a head, or does not commit.

The end of a transaction
- Writes wait in this process until `COMMIT`: a batch costs one round trip for what it asks, one for what it writes, one to commit.
- Only the server's answer "COMMIT" is success. When it does not come, or comes with a warning (a wait for a synchronous replica
  that somebody cancelled), nobody knows what is durable: this store then refuses every transaction, and the stored head decides
  at the next start. PostgreSQL itself panics when an fsync fails and comes back from its log.
"""

import json
import os
import socket
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

import psycopg

from lionrock.audit.failures import StoreConflict, StoreFailed, StoreHeld
from lionrock.audit.store import LogId, OpenIntent, StoredLeaf, StoredLog, Transaction
from lionrock.audit.store.departures import DepartureWriter
from lionrock.audit.store.postgres_reader import PostgresLogReader, leaf_of_row, own_placeholders
from lionrock.audit.store.postgres_schema import migrate
from lionrock.audit.store.postgres_session import Deadlines, connect, failures, timeline
from lionrock.audit.store.records import RecordWriter
from lionrock.audit.store.tables import TableWriter

_LOCK_KEY: Final = 0x6C696F6E726F636B
"""Of the advisory lock: "lionrock" in ASCII. Locks are a database's own, so one database has one mesh's logs."""
_LEAVES_OF_EVENTS: Final = """
    SELECT leaf_index, event_id, recorded_at_us, subtree_hashes, data FROM leaves WHERE log_id = %s AND event_id = ANY(%b)"""
_FENCE: Final = """
    SELECT epoch, pg_backend_pid(), current_setting('fsync'), current_setting('synchronous_commit') FROM sequencer FOR SHARE"""
_ADD_LEAVES: Final = """
    INSERT INTO leaves (log_id, leaf_index, event_id, recorded_at_us, subtree_hashes, data)
    SELECT %s, * FROM unnest(%b::bigint[], %b::text[], %b::bigint[], %b::bytea[], %b::bytea[])"""
_ADD_OPEN_INTENTS: Final = "INSERT INTO open_intents SELECT %s, * FROM unnest(%b::text[], %b::bigint[])"
_CLOSE_INTENTS: Final = """
    DELETE FROM open_intents USING unnest(%b::text[], %b::bigint[]) AS closed (request_id, leaf_index)
    WHERE log_id = %s AND open_intents.request_id = closed.request_id AND open_intents.leaf_index = closed.leaf_index"""
_KEEP_RETRY_SALTS: Final = """
    INSERT INTO retry_salts (log_id, leaf_index, recorded_at_us, salt)
    SELECT %s, * FROM unnest(%b::bigint[], %b::bigint[], %b::bytea[])"""
_FORGET_RETRY_SALTS: Final = """
    DELETE FROM retry_salts WHERE (recorded_at_us, log_id, leaf_index) IN
    (SELECT recorded_at_us, log_id, leaf_index FROM retry_salts WHERE recorded_at_us < %s LIMIT %s)"""
_ADVANCE: Final = """
    UPDATE logs SET size = %s, root = %s, checkpoint = %s, timeline = %s WHERE log_id = %s AND size = %s AND root = %s"""


@dataclass(frozen=True, slots=True)
class _Statement:
    """What waits to be sent, and what its answer must satisfy."""

    sql: str
    parameters: Sequence[object] | None = None
    check: Callable[[psycopg.Cursor[Any]], None] | None = None


class PostgresLogStore(PostgresLogReader):
    """A LogStore in one database. The writer side belongs to one thread at a time, the reader side to any (it locks)."""

    def __init__(self, dsn: str, *, lease_s: float = 15, deadline_s: float = 10, accept_timeline: int | None = None) -> None:
        """Take the store over, bringing its schema forward.

        `dsn`: a connection string of libpq. `lease_s`: a writer that is silent for so long loses the store. `deadline_s`: of every
        statement and commit. `accept_timeline`: fail-overs up to this timeline lost nothing, says the operator.
        Raises StoreHeld, StoreFailed (also for a server under which commits could be lost).
        """
        self._dsn, self._deadline_s, self._accept_timeline = dsn, deadline_s, accept_timeline or 0
        self._doubt: str | None = None
        self._warnings: list[str] = []
        self._deadlines = Deadlines()
        try:
            self._writer = connect(dsn, deadline_s=deadline_s, lease_s=lease_s)
            self._writer.add_notice_handler(lambda notice: self._warnings.append(notice.message_primary or "a warning"))
            with self._deadlines.within(self._writer, 4 * deadline_s), failures("taking the store over"):
                self._take_over()
            super().__init__(self._connect_reader(), self._deadlines, deadline_s=deadline_s)
        except BaseException:
            self._deadlines.close()
            if hasattr(self, "_writer"):
                self._writer.close()
            raise

    def _take_over(self) -> None:
        (locked,) = _one(self._writer.execute("SELECT pg_try_advisory_lock(%s)", (_LOCK_KEY,)))
        if not locked:
            raise StoreHeld(f"the audit store is held by {self._holder()}; one database has one writing audit service")
        migrate(self._writer)
        self._timeline = timeline(self._writer)
        (self._session,) = _one(self._writer.execute("SELECT pg_backend_pid()"))
        taken = self._writer.execute("UPDATE sequencer SET epoch = epoch + 1, holder = %s RETURNING epoch", (_describe_holder(),))
        (self._epoch,) = _one(taken)

    def _connect_reader(self) -> psycopg.Connection:
        return connect(self._dsn, deadline_s=self._deadline_s, lease_s=None)

    def _reading_session(self) -> psycopg.Connection:
        """Replace a reading session that was lost: it holds nothing."""
        if self._reader.closed:
            self._reader = self._connect_reader()
        return self._reader

    def _failed_over(self, timeline: int) -> str | None:
        if max(timeline, self._accept_timeline) < self._timeline:
            return f"the database failed over, from timeline {timeline} to {self._timeline}"
        return None

    def _holder(self) -> str:
        try:
            return str(_one(self._writer.execute("SELECT holder FROM sequencer"))[0]) or "a process that has not said its name yet"
        except psycopg.Error:
            return "a process that is making its tables"

    @contextmanager
    def transaction(self) -> Iterator[Transaction]:
        """Commit at the end of the block, or roll back if it raises."""
        if self._doubt is not None:
            raise StoreFailed(self._doubt)
        transaction = _PostgresTransaction(self._writer, self._fence, self._timeline)
        with self._deadlines.within(self._writer, 2 * self._deadline_s):
            try:
                with failures("writing"):
                    yield transaction
                    transaction.flush()
            except BaseException:
                self._roll_back()
                raise
        with self._deadlines.within(self._writer, self._deadline_s):
            self._commit()

    def _commit(self) -> None:
        self._warnings.clear()
        self._doubt = "the end of a commit was not learnt: restart, and the stored head decides"
        with failures("committing, with an unknown outcome"):
            ended = self._writer.execute("COMMIT").statusmessage
        if ended != "COMMIT":
            raise StoreFailed(f"committing: the server answered {ended}")
        if self._warnings:
            raise StoreFailed(f"committing, with an unknown outcome: {self._warnings[0]}")
        self._doubt = None

    def _roll_back(self) -> None:
        """End what was begun. When even that fails the session is over, and the server rolls back."""
        try:
            if not self._writer.closed and self._writer.info.transaction_status != psycopg.pq.TransactionStatus.IDLE:
                self._writer.execute("ROLLBACK")
        except psycopg.Error:
            self._doubt = "the session with the store is lost: restart"

    def _fence(self, row: Sequence[Any]) -> None:
        """Check that this is still the writer, on the session and with the promises that it took over with."""
        epoch, session, fsync, synchronous_commit = row
        if epoch != self._epoch:
            raise StoreConflict(f"the store was taken over: its epoch is {epoch}, this writer's is {self._epoch}")
        if session != self._session:
            raise StoreFailed(
                "the session changed under the writer: connect to the server itself, or through a pool of whole sessions"
            )
        if fsync != "on" or synchronous_commit not in {"on", "remote_apply"}:
            raise StoreFailed(f"fsync is {fsync} and synchronous_commit is {synchronous_commit} by now: set both on and restart")

    def forget_deleted(self) -> None:
        """Leave deleted rows to VACUUM and the server's own log to its recycling: neither can be ordered to overwrite in time."""

    def heartbeat(self) -> None:
        """Keep the lease, and learn whether it was lost. Raises StoreFailed, StoreConflict."""
        if self._doubt is not None:
            raise StoreFailed(self._doubt)
        with self._deadlines.within(self._writer, self._deadline_s), failures("keeping the store"):
            self._fence(_one(self._writer.execute(_FENCE.removesuffix("FOR SHARE"))))

    def create_log(self, origin: str, verifier_key: str, root: bytes, checkpoint: str) -> StoredLog:
        """Create an empty log, durably."""
        with self.transaction() as transaction:
            assert isinstance(transaction, _PostgresTransaction)
            row = transaction.ask(
                "INSERT INTO logs (origin, verifier_key, size, root, checkpoint, timeline) VALUES (%s, %s, 0, %s, %s, %s)"
                " RETURNING log_id",
                (origin, verifier_key, root, checkpoint, self._timeline),
            )[0]
        return StoredLog(LogId(row[0]), origin, verifier_key, 0, root, checkpoint)

    def close(self) -> None:
        """Release the store; whoever waits may have it at once."""
        with self._reader_lock:
            self._deadlines.close_session(self._reader)
        if self._doubt is None and not self._writer.closed:
            with suppress(psycopg.Error), self._deadlines.within(self._writer, self._deadline_s):
                self._writer.execute("SELECT pg_advisory_unlock(%s)", (_LOCK_KEY,))
        self._deadlines.close_session(self._writer)
        self._deadlines.close()


class _PostgresTransaction:
    """A Transaction on the writer's session. Writes wait for the next question, or for the end."""

    __slots__ = ("_begun", "_connection", "_fence", "_timeline", "_waiting")

    def __init__(self, connection: psycopg.Connection, fence: Callable[[Sequence[Any]], None], timeline: int) -> None:
        self._connection = connection
        self._fence = fence
        self._timeline = timeline
        self._waiting: list[_Statement] = []
        self._begun = False

    @property
    def records(self) -> RecordWriter:
        return RecordWriter(lambda sql, parameters: self.ask(own_placeholders(sql), parameters), self._write_rows)

    @property
    def departures(self) -> DepartureWriter:
        return DepartureWriter(lambda sql, parameters: self.ask(own_placeholders(sql), parameters), self._write_rows)

    @property
    def tables(self) -> TableWriter:
        return TableWriter(self._write_rows)

    def _write_rows(self, sql: str, rows: Sequence[Any]) -> None:
        for row in rows:
            self._write(own_placeholders(sql), row)

    def flush(self) -> None:
        """Send what waits, in one round trip, and look at every answer."""
        waiting, self._waiting = self._waiting, []
        if not self._begun:
            self._begun = True
            waiting = [_Statement("BEGIN"), _Statement(_FENCE, (), lambda cursor: self._fence(_one(cursor))), *waiting]
        with self._connection.pipeline():
            cursors = [self._connection.execute(statement.sql, statement.parameters, binary=True) for statement in waiting]
        for statement, cursor in zip(waiting, cursors, strict=True):
            if statement.check is not None:
                statement.check(cursor)

    def ask(self, sql: str, parameters: Sequence[object]) -> list[tuple[Any, ...]]:
        """Send what waits and a question. Returns its rows."""
        answer: list[tuple[Any, ...]] = []
        self._waiting.append(_Statement(sql, parameters, lambda cursor: answer.extend(cursor.fetchall())))
        self.flush()
        return answer

    def leaves_of_events(self, log_id: LogId, event_ids: Collection[str]) -> dict[str, StoredLeaf]:
        rows = self.ask(_LEAVES_OF_EVENTS, (log_id, list(event_ids)))
        return {leaf.event_id: leaf for leaf in map(leaf_of_row, rows)}

    def retry_salt(self, log_id: LogId, leaf: StoredLeaf) -> bytes | None:
        rows = self.ask(
            "SELECT salt FROM retry_salts WHERE recorded_at_us = %s AND log_id = %s AND leaf_index = %s",
            (leaf.recorded_at_us, log_id, leaf.index),
        )
        return rows[0][0] if rows else None

    def open_intent(self, log_id: LogId, index: int) -> OpenIntent | None:
        rows = self.ask("SELECT leaf_index, request_id FROM open_intents WHERE log_id = %s AND leaf_index = %s", (log_id, index))
        return OpenIntent(*rows[0]) if rows else None

    def open_intents_of(self, log_id: LogId, request_ids: Collection[str]) -> list[OpenIntent]:
        rows = self.ask(
            "SELECT leaf_index, request_id FROM open_intents WHERE log_id = %s AND request_id = ANY(%b) ORDER BY leaf_index",
            (log_id, list(request_ids)),
        )
        return [OpenIntent(*row) for row in rows]

    def add_leaves(self, log_id: LogId, leaves: Sequence[StoredLeaf]) -> None:
        columns = (
            [leaf.index for leaf in leaves],
            [leaf.event_id for leaf in leaves],
            [leaf.recorded_at_us for leaf in leaves],
            [b"".join(leaf.completed) for leaf in leaves],
            [leaf.data for leaf in leaves],
        )
        self._write(_ADD_LEAVES, (log_id, *columns))

    def add_open_intents(self, log_id: LogId, intents: Sequence[OpenIntent]) -> None:
        if intents:
            requests, indexes = [intent.request_id for intent in intents], [intent.index for intent in intents]
            self._write(_ADD_OPEN_INTENTS, (log_id, requests, indexes))

    def close_intents(self, log_id: LogId, intents: Sequence[OpenIntent]) -> None:
        if intents:
            requests, indexes = [intent.request_id for intent in intents], [intent.index for intent in intents]
            self._write(_CLOSE_INTENTS, (requests, indexes, log_id))

    def keep_retry_salts(self, log_id: LogId, salts: Sequence[tuple[int, int, bytes]]) -> None:
        if salts:
            indexes, times, values = zip(*salts, strict=True)
            self._write(_KEEP_RETRY_SALTS, (log_id, list(indexes), list(times), list(values)))

    def forget_retry_salts(self, before_us: int, limit: int) -> int:
        forgotten: list[int] = []
        self._write(_FORGET_RETRY_SALTS, (before_us, limit), lambda cursor: forgotten.append(cursor.rowcount))
        self.flush()
        return forgotten[0]

    def set_key(self, log_id: LogId, verifier_key: str) -> None:
        self._write("UPDATE logs SET verifier_key = %s WHERE log_id = %s", (verifier_key, log_id))

    def advance(self, log_id: LogId, old_size: int, old_root: bytes, size: int, root: bytes, checkpoint: str) -> None:
        def check(cursor: psycopg.Cursor[Any]) -> None:
            if cursor.rowcount != 1:
                raise StoreConflict(f"the log no longer ends at {old_size} leaves under the root that this writer signed")

        self._write(_ADVANCE, (size, root, checkpoint, self._timeline, log_id, old_size, old_root), check)

    def _write(self, sql: str, parameters: Sequence[object], check: "Callable[[psycopg.Cursor[Any]], None] | None" = None) -> None:
        self._waiting.append(_Statement(sql, parameters, check))


def _one(cursor: psycopg.Cursor[Any]) -> tuple[Any, ...]:
    row = cursor.fetchone()
    if row is None:
        raise StoreFailed("the store's row of its writer is gone: restore the store from its backup")
    return tuple(row)


def _describe_holder() -> str:
    return json.dumps({"pid": os.getpid(), "host": socket.gethostname(), "since": datetime.now(UTC).isoformat(timespec="seconds")})
