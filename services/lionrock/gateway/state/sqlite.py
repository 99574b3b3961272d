"""The shared state in one SQLite file, for the gateways of one machine: write-ahead log, an fsync a commit.

Knows: SQL, how writers of several processes wait for one another. Does not know: what rows mean.
Source of the settings: sqlite.org/pragma.html (synchronous, journal_mode), sqlite.org/wal.html, sqlite.org/isolation.html.

Writers take the file's one write lock before they read (BEGIN IMMEDIATE), so transactions are serial without ever being run again.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from lionrock.chassis.durable_files import make_directory_through
from lionrock.gateway.state.schema import SQLITE, VERSIONS_TABLE, steps_from
from lionrock.gateway.state.store import Result, Row, StateConflict, StateTransaction, StateUnavailable, Value


class SqliteSession:
    """A StateSession on one file."""

    def __init__(self, path: Path, *, busy_timeout_s: float, clock_us: Callable[[], int] | None = None) -> None:
        """Open or create the file, bringing its schema forward.

        `busy_timeout_s`: how long other writers are waited for. `clock_us`: the machine's clock where it is None.
        Raises StateUnavailable.
        """
        self._clock_us = clock_us or (lambda: time.time_ns() // 1000)
        with _failures("opening the state"):
            make_directory_through(path.parent)
            self._connection = sqlite3.connect(path, timeout=busy_timeout_s, isolation_level=None, check_same_thread=False)
        try:
            with _failures("opening the state"):
                path.chmod(0o600)
                (mode,) = self._connection.execute("PRAGMA journal_mode=WAL").fetchone()
                if mode != "wal":
                    raise StateUnavailable(f"the file system under the state has no write-ahead log (journal mode {mode})")
                self._connection.execute("PRAGMA synchronous=FULL")
                self._connection.execute("PRAGMA secure_delete=ON")
                self._migrate()
        except BaseException:
            self._connection.close()
            raise

    def run(self, work: Callable[[StateTransaction], Result], *, read_only: bool) -> Result:
        """Run work in a transaction of its own and commit. Raises StateUnavailable, StateConflict, and what work raises."""
        with _failures("reading or writing the state"):
            self._connection.execute(f"PRAGMA query_only={'ON' if read_only else 'OFF'}")
            with self._transaction("BEGIN" if read_only else "BEGIN IMMEDIATE"):
                return work(_SqliteTransaction(self._connection, self._clock_us()))

    def cut_off(self) -> None:
        """Interrupt a statement that runs. A wait for another writer ends by itself, at the busy timeout."""
        self._connection.interrupt()

    def close(self) -> None:
        """Close the file."""
        with _failures("closing the state"):
            self._connection.close()

    def _migrate(self) -> None:
        table = f"CREATE TABLE IF NOT EXISTS {VERSIONS_TABLE} (version INTEGER PRIMARY KEY, applied_at TEXT NOT NULL) STRICT"
        with self._transaction("BEGIN IMMEDIATE"):
            self._connection.execute(table)
            found = f"SELECT coalesce(max(version), 0), count(*) FROM {VERSIONS_TABLE}"  # noqa: S608  the name is ours
            for number, statements in steps_from(self._connection.execute(found).fetchone(), SQLITE):
                for statement in statements:
                    self._connection.execute(statement)
                applied_at = datetime.now(UTC).isoformat(timespec="seconds")
                insert = f"INSERT INTO {VERSIONS_TABLE} VALUES (?, ?)"  # noqa: S608  the name is ours
                self._connection.execute(insert, (number, applied_at))

    @contextmanager
    def _transaction(self, begin: str) -> Iterator[None]:
        self._connection.execute(begin)
        try:
            yield
            self._connection.execute("COMMIT")
        except BaseException:
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK")
            raise


class _SqliteTransaction:
    """A StateTransaction on the connection."""

    __slots__ = ("_connection", "_now_us")

    def __init__(self, connection: sqlite3.Connection, now_us: int) -> None:
        self._connection = connection
        self._now_us = now_us

    @property
    def now_us(self) -> int:
        return self._now_us

    def ask(self, sql: str, parameters: Sequence[Value] = ()) -> list[Row]:
        return self._connection.execute(sql, parameters).fetchall()

    def write(self, sql: str, parameters: Sequence[Value] = ()) -> int:
        return self._connection.execute(sql, parameters).rowcount


@contextmanager
def _failures(doing: str) -> Iterator[None]:
    """Turn what SQLite raises into our errors, which quote no value."""
    try:
        yield
    except sqlite3.IntegrityError as error:
        if error.sqlite_errorname in ("SQLITE_CONSTRAINT_PRIMARYKEY", "SQLITE_CONSTRAINT_UNIQUE"):
            raise StateConflict(f"{doing}: a row with this key is there already") from None
        raise StateUnavailable(f"{doing}: {error.sqlite_errorname}") from None
    except (sqlite3.Error, sqlite3.Warning) as error:
        raise StateUnavailable(f"{doing}: {getattr(error, 'sqlite_errorname', type(error).__name__)}") from None
    except OSError as error:
        raise StateUnavailable(f"{doing}: {error.strerror}") from error
