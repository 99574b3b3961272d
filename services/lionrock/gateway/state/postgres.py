"""The shared state in PostgreSQL: one session a gateway, replaced when it is lost.

Knows: SQL, what a lost session or commit means, serialisation failures. Does not know: what rows mean.
Sources: postgresql.org/docs/current/transaction-iso.html (Serializable and its failures), runtime-config-wal.html
(synchronous_commit), runtime-config-client.html (timeouts), libpq-connect.html.

Transactions are SERIALIZABLE; one that PostgreSQL could not fit into an order is rolled back and run again. A session that is
lost before a transaction began is replaced at once; one that is lost later fails the call, whose end is then unknown.
"""

from __future__ import annotations

import contextlib
import os
import random
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final

import psycopg
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from lionrock.gateway.state.schema import POSTGRES, VERSIONS_TABLE, steps_from
from lionrock.gateway.state.store import Result, Row, StateConflict, StateTransaction, StateUnavailable, Value

SCHEMA: Final = "lionrock_gateway"
OLDEST_SERVER: Final = 140000
_MIGRATION_LOCK: Final = 0x6C696F6E67617465
"""Of the advisory lock under which the schema moves: "liongate" in ASCII."""
_DEFAULTS: Final = {
    "connect_timeout": "5",
    "keepalives": "1",
    "keepalives_idle": "5",
    "keepalives_interval": "2",
    "keepalives_count": "3",
    "tcp_user_timeout": "10000",
    "application_name": "lionrock-gateway",
    "sslmode": "verify-full",
    "target_session_attrs": "read-write",
}
"""Libpq's parameters where the connection string does not say otherwise; over a Unix socket those of TCP and TLS mean nothing."""
_RUN_AGAIN: Final = ("40001", "40P01")  # serialization_failure, deadlock_detected
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.002, 0.1


class PostgresSession:
    """A StateSession on one database."""

    def __init__(self, dsn: str, *, deadline_s: float, clock_us: Callable[[], int] | None = None) -> None:
        """Connect, bringing the schema forward.

        `dsn`: a connection string of libpq. `deadline_s`: of every statement, and of running a transaction again. `clock_us`: the
        server's clock where it is None. Raises StateUnavailable.
        """
        self._dsn, self._deadline_s, self._clock_us = dsn, deadline_s, clock_us
        self._connection: psycopg.Connection | None = None
        connection = self._connected()
        try:
            with _failures("bringing the schema of the state forward"):
                _migrate(connection)
        except BaseException:
            self._drop()
            raise

    def run(self, work: Callable[[StateTransaction], Result], *, read_only: bool) -> Result:
        """Run work in a transaction of its own and commit. Raises StateUnavailable, StateConflict, and what work raises."""
        until, pause_s = time.monotonic() + self._deadline_s, _FIRST_PAUSE_S
        begin = f"BEGIN ISOLATION LEVEL SERIALIZABLE {'READ ONLY' if read_only else 'READ WRITE'}"
        with _failures("reading or writing the state"):
            while True:
                try:
                    return self._once(begin, work)
                except psycopg.Error as error:
                    if error.sqlstate not in _RUN_AGAIN or time.monotonic() + pause_s > until:
                        raise
                time.sleep(pause_s * (0.5 + random.random()))  # noqa: S311  spreads those that met; nothing is secret
                pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)

    def cut_off(self) -> None:
        """Shut the session's socket: the thread that waits on it gets an error, and the next call a new session."""
        connection = self._connection
        if connection is not None:
            with contextlib.suppress(psycopg.Error, OSError), socket.socket(fileno=os.dup(connection.fileno())) as end:
                end.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Close the session."""
        self._drop()

    def _once(self, begin: str, work: Callable[[StateTransaction], Result]) -> Result:
        connection = self._begun(begin)
        try:
            result = work(_PostgresTransaction(connection, self._clock_us))
            ended = connection.execute("COMMIT").statusmessage
            if ended != "COMMIT":
                raise StateUnavailable(f"committing the state: the server answered {ended}")
        except BaseException:
            try:
                connection.execute("ROLLBACK")
            except psycopg.Error:
                self._drop()
            raise
        return result

    def _begun(self, begin: str) -> psycopg.Connection:
        """Begin a transaction. A session that was lost while it was idle is replaced once: nothing was asked of it yet."""
        if self._connection is not None:
            try:
                self._connection.execute(begin)
            except psycopg.Error:
                self._drop()
            else:
                return self._connection
        connection = self._connected()
        connection.execute(begin)
        return connection

    def _connected(self) -> psycopg.Connection:
        try:
            parameters: dict[str, Any] = {**_DEFAULTS, **conninfo_to_dict(self._dsn), "client_encoding": "UTF8"}
        except psycopg.ProgrammingError:  # its message quotes the string, and with it maybe the password
            raise StateUnavailable(
                "the connection string of the state is neither libpq's key=value form nor its URL form"
            ) from None
        with _failures("connecting to the state"):
            connection = psycopg.connect(make_conninfo(**parameters), autocommit=True, prepare_threshold=None)
        try:
            with _failures("preparing the session"):
                _check_and_set(connection, self._deadline_s)
        except BaseException:
            connection.close()
            raise
        self._connection = connection
        return connection

    def _drop(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()


class _PostgresTransaction:
    """A StateTransaction on the session."""

    __slots__ = ("_clock_us", "_connection", "_now_us")

    def __init__(self, connection: psycopg.Connection, clock_us: Callable[[], int] | None) -> None:
        self._connection = connection
        self._clock_us = clock_us
        self._now_us: int | None = None

    @property
    def now_us(self) -> int:
        if self._now_us is None:
            if self._clock_us is not None:
                self._now_us = self._clock_us()
            else:
                ((now_us,),) = self.ask("SELECT (extract(epoch FROM clock_timestamp()) * 1000000)::bigint")
                self._now_us = int(now_us)
        return self._now_us

    def ask(self, sql: str, parameters: Sequence[Value] = ()) -> list[Row]:
        cursor = self._connection.execute(sql.replace("?", "%s").encode(), parameters or None)
        return cursor.fetchall() if cursor.description is not None else []

    def write(self, sql: str, parameters: Sequence[Value] = ()) -> int:
        return self._connection.execute(sql.replace("?", "%s").encode(), parameters or None).rowcount


def _check_and_set(connection: psycopg.Connection, deadline_s: float) -> None:
    """Refuse a server under which a commit could be lost, and fix what the session's promises rest on. Raises StateUnavailable."""
    if connection.info.server_version < OLDEST_SERVER:
        raise StateUnavailable(f"the state needs PostgreSQL {OLDEST_SERVER // 10000} or newer")
    row = connection.execute(
        "SELECT pg_is_in_recovery() OR current_setting('transaction_read_only') = 'on', current_setting('fsync'),"
        " current_setting('synchronous_commit'), current_setting('server_encoding')"
    ).fetchone()
    assert row is not None
    read_only, fsync, synchronous_commit, encoding = row
    if read_only:
        raise StateUnavailable("the state's server is read-only: connect to the primary, as a role that may write")
    if fsync != "on":
        raise StateUnavailable("fsync is off on the state's server, so a commit could be lost: set fsync = on there")
    if encoding != "UTF8":
        raise StateUnavailable(f"the state's database has the encoding {encoding}: create it with ENCODING 'UTF8'")
    settings = {
        "search_path": SCHEMA,
        "synchronous_commit": synchronous_commit if synchronous_commit in ("on", "remote_apply") else "on",
        "statement_timeout": _milliseconds(deadline_s),
        "lock_timeout": _milliseconds(deadline_s),
        "idle_in_transaction_session_timeout": _milliseconds(2 * deadline_s),
        "jit": "off",
    }
    for name, value in settings.items():
        connection.execute("SELECT set_config(%s, %s, false)", (name, value))


def _milliseconds(seconds: float) -> str:
    return str(max(1, round(seconds * 1000)))


def _migrate(connection: psycopg.Connection) -> None:
    """Bring the schema forward, one gateway at a time. Raises StateUnavailable, psycopg.Error."""
    with connection.transaction():
        connection.execute("SELECT pg_advisory_xact_lock(%s)", (_MIGRATION_LOCK,))
        if connection.execute("SELECT to_regnamespace(%s)", (SCHEMA,)).fetchone() == (None,):
            connection.execute(f"CREATE SCHEMA {SCHEMA}")  # apart from the question, because it needs a right that may be missing
        if connection.execute("SELECT to_regclass(%s)", (f"{SCHEMA}.{VERSIONS_TABLE}",)).fetchone() == (None,):
            connection.execute(
                f"CREATE TABLE {VERSIONS_TABLE} (version bigint PRIMARY KEY, applied_at timestamptz NOT NULL DEFAULT now())"
            )
        found = f"SELECT coalesce(max(version), 0), count(*) FROM {VERSIONS_TABLE}"  # noqa: S608  the name is ours
        row = connection.execute(found.encode()).fetchone()
        assert row is not None
        for number, statements in steps_from(row, POSTGRES):
            for statement in statements:
                connection.execute(statement.encode())
            insert = f"INSERT INTO {VERSIONS_TABLE} VALUES (%s)"  # noqa: S608  the name is ours
            connection.execute(insert.encode(), (number,))


@contextmanager
def _failures(doing: str) -> Iterator[None]:
    """Turn what psycopg raises into our errors, with the server's message but without its detail, which quotes values."""
    try:
        yield
    except psycopg.errors.UniqueViolation:
        raise StateConflict(f"{doing}: a row with this key is there already") from None
    except psycopg.Error as error:
        what = error.diag.message_primary or (str(error).splitlines() or [""])[0]
        raise StateUnavailable(f"{doing}: {error.sqlstate or type(error).__name__}: {what}") from None
