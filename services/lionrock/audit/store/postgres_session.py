"""Sessions with PostgreSQL that keep a writer's promises: durable commits, one writer, an end to every wait.

Knows: which settings of server and session would break those promises, the lease of the writer, deadlines on both sides. Does not
know: tables of logs.
Sources: postgresql.org/docs/current/runtime-config-wal.html (fsync, synchronous_commit), runtime-config-error-handling.html
(data_sync_retry), runtime-config-client.html (timeouts), libpq-connect.html.

The lease: a session that says nothing for `lease_s` is ended by the server (idle_session_timeout and its likes), and with it goes
its advisory lock. That is the only way to be rid of a writer whose process stands still: its kernel goes on answering TCP.
"""

import contextlib
import os
import socket
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final

import psycopg
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from lionrock.audit.failures import StoreFailed
from lionrock.audit.store.postgres_schema import SCHEMA

OLDEST_SERVER: Final = 140000
"""idle_session_timeout came with version 14."""
_TRANSACTION_TIMEOUT_SINCE: Final = 170000
_DURABLE_COMMITS: Final = ("on", "remote_apply")
_DEFAULTS: Final = {
    "connect_timeout": "10",
    "keepalives": "1",
    "keepalives_idle": "5",
    "keepalives_interval": "2",
    "keepalives_count": "3",
    "tcp_user_timeout": "10000",
    "application_name": "lionrock-audit",
    "sslmode": "verify-full",
    "target_session_attrs": "read-write",
}
"""Libpq's parameters where the connection string does not say otherwise; over a Unix socket those of TCP and TLS mean nothing."""
_WATCH_INTERVAL_S: Final = 0.5


def connect(dsn: str, *, deadline_s: float, lease_s: float | None) -> psycopg.Connection:
    """Open a session in autocommit mode, after checking what it promises. `lease_s`: for the writer. Raises StoreFailed."""
    connection = _open(dsn, {})
    try:
        with failures("preparing the session"):
            _check(connection)
            _set(connection, deadline_s, lease_s)
    except BaseException:
        connection.close()
        raise
    return connection


def connect_for_reading(dsn: str, *, deadline_s: float) -> psycopg.Connection:
    """Open a session in autocommit mode that can change nothing, on the primary or a replica. Raises StoreFailed."""
    connection = _open(dsn, {"target_session_attrs": "any", "application_name": "lionrock-audit-check"})
    try:
        with failures("preparing the session"):
            settings = {
                "default_transaction_read_only": "on",
                "search_path": SCHEMA,
                "statement_timeout": _milliseconds(deadline_s),
            }
            for name, value in settings.items():
                connection.execute("SELECT set_config(%s, %s, false)", (name, value))
    except BaseException:
        connection.close()
        raise
    return connection


def _open(dsn: str, defaults: Mapping[str, str]) -> psycopg.Connection:
    try:
        parameters: dict[str, Any] = {**_DEFAULTS, **defaults, **conninfo_to_dict(dsn), "client_encoding": "UTF8"}
    except psycopg.ProgrammingError:  # its message quotes the string, and with it maybe the password
        raise StoreFailed("the connection string of the store is neither libpq's key=value form nor its URL form") from None
    with failures("connecting to the store"):
        return psycopg.connect(make_conninfo(**parameters), autocommit=True, prepare_threshold=0)


def timeline(connection: psycopg.Connection) -> int:
    """Return the number of the server's history; every promotion of a replica begins a new one."""
    row = connection.execute("SELECT substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8)").fetchone()
    assert row is not None
    return int(row[0], 16)


@contextmanager
def failures(doing: str) -> Iterator[None]:
    """Turn what psycopg raises into StoreFailed, with the server's message but without its detail, which quotes values."""
    try:
        yield
    except psycopg.Error as error:
        what = error.diag.message_primary or (str(error).splitlines() or [""])[0]
        raise StoreFailed(f"{doing}: {error.sqlstate or type(error).__name__}: {what}") from None


def _check(connection: psycopg.Connection) -> None:
    """Refuse a server or session under which a commit could be lost. Raises StoreFailed with the remedy."""
    if connection.info.server_version < OLDEST_SERVER:
        raise StoreFailed(f"the store needs PostgreSQL {OLDEST_SERVER // 10000} or newer")
    row = connection.execute(
        "SELECT pg_is_in_recovery(), current_setting('transaction_read_only') = 'on', current_setting('fsync'),"
        " current_setting('full_page_writes'), current_setting('synchronous_commit'), current_setting('data_sync_retry'),"
        " current_setting('server_encoding')"
    ).fetchone()
    assert row is not None
    in_recovery, read_only, fsync, full_page_writes, synchronous_commit, data_sync_retry, encoding = row
    if in_recovery or read_only:
        raise StoreFailed("the server or the session of the store is read-only: connect to the primary, as a role that may write")
    if encoding != "UTF8":
        raise StoreFailed(f"the store's database has the encoding {encoding}: create it with ENCODING 'UTF8'")
    if synchronous_commit not in _DURABLE_COMMITS:
        raise StoreFailed(
            f"synchronous_commit is {synchronous_commit}, so a commit could be lost: set it to on for the role, database and server"
        )
    for name, value, wanted in (
        ("fsync", fsync, "on"),
        ("full_page_writes", full_page_writes, "on"),
        ("data_sync_retry", data_sync_retry, "off"),
    ):
        if value != wanted:
            raise StoreFailed(f"{name} is {value} on the store's server, so a commit could be lost: set {name} = {wanted} there")


def _set(connection: psycopg.Connection, deadline_s: float, lease_s: float | None) -> None:
    """Fix what the session's promises rest on, so that a reload of the server's configuration does not change it."""
    settings = {
        "search_path": SCHEMA,  # pg_catalog comes first by itself
        "synchronous_commit": connection.execute("SELECT current_setting('synchronous_commit')").fetchone(),
        "statement_timeout": _milliseconds(deadline_s),
        "lock_timeout": _milliseconds(deadline_s / 2),
        "jit": "off",
    }
    if lease_s is None:
        settings["default_transaction_read_only"] = "on"
    else:
        settings["idle_session_timeout"] = settings["idle_in_transaction_session_timeout"] = _milliseconds(lease_s)
        if connection.info.server_version >= _TRANSACTION_TIMEOUT_SINCE:
            settings["transaction_timeout"] = _milliseconds(lease_s)
    for name, value in settings.items():
        text = value[0] if isinstance(value, tuple) else value
        connection.execute("SELECT set_config(%s, %s, false)", (name, text))


def _milliseconds(seconds: float) -> str:
    return str(max(1, round(seconds * 1000)))


class Deadlines:
    """Cuts a session off when a step takes longer than it may.

    The server's own timeouts need a server that runs, and none of them counts while a commit waits for a synchronous replica;
    libpq waits for ever. One thread looks twice a second. Cutting off makes the waiting thread's call fail.
    """

    def __init__(self) -> None:
        """Start the thread; `close` ends it."""
        self._due: dict[psycopg.Connection, float] = {}
        self._lock = threading.Lock()  # between cutting a session off and closing it, after which its descriptor is another's
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="audit-store-deadlines", daemon=True)
        self._thread.start()

    @contextmanager
    def within(self, connection: psycopg.Connection, seconds: float) -> Iterator[None]:
        """Give a block so many seconds. Blocks on one connection do not nest."""
        self._due[connection] = time.monotonic() + seconds
        try:
            yield
        finally:
            self._due.pop(connection, None)

    def close_session(self, connection: psycopg.Connection) -> None:
        """Close a session."""
        with self._lock:
            self._due.pop(connection, None)
            connection.close()

    def close(self) -> None:
        """End the thread."""
        self._over.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._over.wait(_WATCH_INTERVAL_S):
            now = time.monotonic()
            with self._lock:
                for connection, due in list(self._due.items()):
                    if now >= due:
                        _cut_off(connection)


def _cut_off(connection: psycopg.Connection) -> None:
    with contextlib.suppress(psycopg.Error, OSError), socket.socket(fileno=os.dup(connection.fileno())) as end:
        end.shutdown(socket.SHUT_RDWR)
