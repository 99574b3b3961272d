"""Opens the store that settings or a command line name: a file of SQLite, or a database whose connection string a file holds.

`open_for_reading` is for checks: it takes no lock and can change nothing.

The connection string is a secret: it comes in a file that others cannot read, never as a setting, an argument or in a message.
"""

import stat
from pathlib import Path
from typing import TYPE_CHECKING, Final, Union

from lionrock.audit.failures import StoreFailed
from lionrock.audit.store import LogStore
from lionrock.audit.store.sqlite import SqliteLogStore
from lionrock.audit.store.sqlite_reader import SqliteLogReader

if TYPE_CHECKING:
    from lionrock.audit.store.postgres_reader import PostgresLogReader

DSN_MAX_BYTES: Final = 16 * 1024
_OTHERS_OR_GROUP_WRITE: Final = stat.S_IRWXO | stat.S_IWGRP
"""Group read is allowed: a mounted secret often comes with it."""

Reader = Union["SqliteLogReader", "PostgresLogReader"]


class StoreMisnamed(Exception):
    """What a command line names is no store."""


def open_named(name: str) -> LogStore:
    """Open what a command line names: "sqlite:FILE" or "postgresql:FILE", the latter a file with the connection string.

    Raises StoreHeld, StoreFailed.
    """
    kind, _, path = name.partition(":")
    if kind == "sqlite" and path:
        return open_sqlite(Path(path))
    if kind == "postgresql" and path and not path.startswith("//"):
        return open_postgres(Path(path), lease_s=60, accept_timeline=None)
    raise StoreFailed("a store is named sqlite:FILE, or postgresql:FILE with the file that holds the connection string")


def open_for_reading(name: str) -> Reader:
    """Open what a command line names: FILE or "sqlite:FILE", or "postgresql:FILE" with the connection string's file.

    Raises StoreMisnamed, StoreFailed.
    """
    kind, _, path = name.partition(":")
    if kind == "postgresql":
        if not path or path.startswith("//"):
            raise StoreMisnamed("a connection string is a secret: put it into a file, and name that: postgresql:FILE")
        if not Path(path).is_file():
            raise StoreMisnamed(f"there is no file {path}, which should hold a connection string")
        from lionrock.audit.store.postgres_reader import PostgresLogReader  # as above

        return PostgresLogReader.open(read_dsn(Path(path)))
    file = Path(path if kind == "sqlite" and path else name)
    if not file.is_file():
        raise StoreMisnamed(f"there is no store {file}")
    return SqliteLogReader.open(file)


def open_sqlite(path: Path) -> LogStore:
    """Open or create a file. Raises StoreHeld, StoreFailed."""
    return SqliteLogStore(path)


def open_postgres(dsn_file: Path, *, lease_s: float, accept_timeline: int | None) -> LogStore:
    """Open the database that `dsn_file` names. Raises StoreHeld, StoreFailed."""
    from lionrock.audit.store.postgres import PostgresLogStore  # where SQLite serves, the driver is not loaded

    return PostgresLogStore(read_dsn(dsn_file), lease_s=lease_s, accept_timeline=accept_timeline)


def read_dsn(path: Path) -> str:
    """Read a connection string of libpq. Raises StoreFailed for a file that is absent, open to others, empty or no text."""
    try:
        with path.open("rb") as file:
            if path.stat().st_mode & _OTHERS_OR_GROUP_WRITE:
                raise StoreFailed(f"{path} is open to others: chmod 600 it, and change the password if it may have been read")
            dsn = file.read(DSN_MAX_BYTES).decode().strip()
    except OSError as error:
        raise StoreFailed(f"the connection string of the store is not readable: {path}: {error.strerror}") from error
    except UnicodeDecodeError:
        raise StoreFailed(f"{path} is not text") from None
    if not dsn:
        raise StoreFailed(f"{path} is empty; it holds the connection string of the store")
    return dsn
