"""What a witness remembers: the last checkpoint that it cosigned of every log, durable before anyone hears of the cosignature.

Knows: SQLite, and that a failed write ends all writing. Does not know: whether a checkpoint is right (witness.py).

A lock gives the file to one process, and `advance` compares and swaps inside one transaction all the same. The write-ahead log is
synced with every commit (synchronous=FULL). After a failed commit nobody knows what the disk holds, so the state refuses
everything until it is opened again, and opening writes over again what the page cache shows. A state that forgets makes a witness
lie: it is bound to its keys, and neither is ever made anew beside the other (`open_state`).
"""

import fcntl
import sqlite3
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from lionrock.chassis.durable_files import make_directory_through, sync_directory, write_again
from lionrock.tlog.merkle import EMPTY_ROOT
from lionrock.witness.failures import CannotStart, OtherSize, StateFailed

_SCHEMA = """
CREATE TABLE IF NOT EXISTS keys (verifier_key TEXT PRIMARY KEY) STRICT, WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS cosigned (
  origin TEXT PRIMARY KEY, size INTEGER NOT NULL, root BLOB NOT NULL, note TEXT NOT NULL
) STRICT, WITHOUT ROWID;
"""
_BUSY_S = 5.0


@dataclass(frozen=True, slots=True)
class Cosigned:
    """Last cosigned checkpoint of a log; `note` is None when there was none yet."""

    size: int
    root: bytes
    note: str | None


NEVER = Cosigned(0, EMPTY_ROOT, None)


class WitnessState:
    """The file. One thread at a time."""

    def __init__(self, connection: sqlite3.Connection, lock: IO[bytes]) -> None:
        """Use a connection until it is closed, under a lock that dies with the process."""
        self._connection = connection
        self._lock = lock
        self._broken: str | None = None

    def last(self, origin: str) -> Cosigned:
        """Last cosigned checkpoint of a log, `NEVER` without one. Raises StateFailed."""
        self._check()
        try:
            row = self._connection.execute("SELECT size, root, note FROM cosigned WHERE origin = ?", (origin,)).fetchone()
        except sqlite3.Error as error:
            raise self._failed(error) from error
        return NEVER if row is None else Cosigned(*row)

    def advance(self, origin: str, old: Cosigned, new: Cosigned) -> None:
        """Remember `new` in the place of `old`, durably. Raises OtherSize when something else is there, StateFailed."""
        self._check()
        try:
            self._connection.execute("BEGIN IMMEDIATE")
            if old.note is None:
                statement = "INSERT INTO cosigned (origin, size, root, note) VALUES (?, ?, ?, ?) ON CONFLICT DO NOTHING"
                changed = self._connection.execute(statement, (origin, new.size, new.root, new.note)).rowcount
            else:
                changed = self._connection.execute(
                    "UPDATE cosigned SET size = ?, root = ?, note = ? WHERE origin = ? AND size = ? AND root = ?",
                    (new.size, new.root, new.note, origin, old.size, old.root),
                ).rowcount
            self._connection.execute("COMMIT" if changed == 1 else "ROLLBACK")
        except sqlite3.Error as error:
            raise self._failed(error) from error
        if changed != 1:
            raise OtherSize(self.last(origin).size)

    def close(self) -> None:
        """Close the file, then give it free."""
        self._connection.close()
        self._lock.close()

    def _check(self) -> None:
        if self._broken is not None:
            raise StateFailed(self._broken)

    def _failed(self, error: sqlite3.Error) -> StateFailed:
        self._broken = f"the state failed ({error.sqlite_errorname if hasattr(error, 'sqlite_errorname') else 'SQLite'})"
        return StateFailed(self._broken)


def create_state(path: Path, verifier_keys: list[str]) -> None:
    """Begin a state for new keys, durably. Raises CannotStart when one that has cosigned is there, or for a file that fails."""
    try:
        make_directory_through(path.parent)
        with _locked(path), closing(_connect(path)) as connection:
            if connection.execute("SELECT count(*) FROM cosigned").fetchone() != (0,):
                raise CannotStart(f"{path} has cosigned checkpoints: restore its keys from their backup")
            connection.execute("BEGIN IMMEDIATE")
            connection.execute("DELETE FROM keys")
            connection.executemany("INSERT INTO keys (verifier_key) VALUES (?)", [(key,) for key in verifier_keys])
            connection.execute("COMMIT")
        sync_directory(path.parent)
    except (sqlite3.Error, OSError) as error:
        raise CannotStart(f"{path}: {error}") from error


def open_state(path: Path, verifier_keys: list[str]) -> WitnessState:
    """Open the state that belongs to these keys. Raises CannotStart."""
    if not path.exists():
        raise CannotStart(
            f"{path} is gone: a witness that forgot what it cosigned can cosign a fork; retire its keys and make new ones"
        )
    lock = _locked(path)
    try:
        log = path.with_name(f"{path.name}-wal")
        if log.exists():
            write_again(log)  # the last process may have ended over an fsync that failed
        connection = _connect(path)
        known = {key for (key,) in connection.execute("SELECT verifier_key FROM keys")}
    except (sqlite3.Error, OSError) as error:
        lock.close()
        raise CannotStart(f"{path}: {error}") from error
    if known != set(verifier_keys):
        connection.close()
        lock.close()
        raise CannotStart(f"{path} is the state of other keys: use each with its own")
    return WitnessState(connection, lock)


def _locked(path: Path) -> IO[bytes]:
    """Take the file for this process, until what is returned is closed. Raises CannotStart."""
    try:
        lock = path.with_name(f"{path.name}.lock").open("wb")
    except OSError as error:
        raise CannotStart(f"{path}: {error.strerror}") from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        lock.close()
        raise CannotStart(f"{path} is used by another process") from None
    return lock


def _connect(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=_BUSY_S)
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = FULL")
    connection.executescript(_SCHEMA)
    path.chmod(0o600)
    return connection
