"""The key store: wrapped keys of records and of scopes, and which record belongs to which scope; one SQLite file of its own.

Knows: SQL, that what is destroyed is overwritten (secure_delete) and leaves the write-ahead log at once, the lock of its one
user. Does not know: how a key is wrapped, what it opens.

It is apart from the store of logs because erasure has to be real here: copies of the logs' store may live as long as they like,
those of this file must be short-lived, for a copy of it undoes the erasures since. A scope is named by a tag, HMAC(index key of
the tenant, scope): nothing in this file names a person.
"""

import fcntl
import os
import sqlite3
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

from lionrock.audit.failures import KeysUnavailable

TAG_BYTES: Final = 32
_SCHEMA_VERSION: Final = 1
_SCHEMA: Final = (
    "CREATE TABLE index_keys (tenant TEXT PRIMARY KEY, wrapped BLOB NOT NULL) STRICT, WITHOUT ROWID",
    """CREATE TABLE scope_keys (tenant TEXT NOT NULL, tag BLOB NOT NULL, wrapped BLOB NOT NULL, PRIMARY KEY (tenant, tag))
        STRICT, WITHOUT ROWID""",
    """CREATE TABLE record_keys (
        tenant TEXT NOT NULL, record_id TEXT NOT NULL, wrapped BLOB NOT NULL, tags BLOB NOT NULL,
        created_at_us INTEGER NOT NULL, PRIMARY KEY (tenant, record_id)) STRICT, WITHOUT ROWID""",
    """CREATE TABLE members (
        tenant TEXT NOT NULL, tag BLOB NOT NULL, record_id TEXT NOT NULL, PRIMARY KEY (tenant, tag, record_id))
        STRICT, WITHOUT ROWID""",
)


_Kind = Literal["index", "scope", "record"]
_WRAPPED_BY_TENANT: Final[Mapping[_Kind, tuple[str, str, str]]] = {
    "index": ("index_keys", "''", "1 = 1"),
    "scope": ("scope_keys", "tag", "1 = 1"),
    "record": ("record_keys", "record_id", "tags = x''"),
}
"""Table, what names a key there, and which of its rows the tenant's key wraps."""


@dataclass(frozen=True, slots=True)
class StoredKey:
    """A record's key, wrapped by its scopes' keys one around the other, in the order of `tags`; without tags by the tenant's."""

    tenant: str
    record_id: str
    wrapped: bytes
    tags: Sequence[bytes]
    created_at_us: int


@dataclass(frozen=True, slots=True)
class StoredScopeKey:
    """The key of a person or a case, wrapped by the tenant's."""

    tenant: str
    tag: bytes
    wrapped: bytes


@dataclass(frozen=True, slots=True)
class WrappedKey:
    """A key that the tenant's wraps. `name`: tag of a scope in hexadecimal, id of a record; empty for the key of the tags."""

    kind: _Kind
    name: str
    wrapped: bytes


class KeyStore:
    """The file. Any thread may call; calls wait for each other. All raise KeysUnavailable."""

    def __init__(self, path: Path) -> None:
        """Open or create; one process at a time."""
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._path = path
        self._lock = threading.Lock()
        self._broken = False
        self._holding = _take_lock(path)
        try:
            self._connection = _connect(path)
        except BaseException:
            os.close(self._holding)
            raise

    def index_key(self, tenant: str) -> bytes | None:
        """Return the wrapped key of a tenant's tags."""
        rows = self._ask("SELECT wrapped FROM index_keys WHERE tenant = ?", (tenant,))
        return rows[0][0] if rows else None

    def add_index_key(self, tenant: str, wrapped: bytes) -> None:
        """Keep the key of a tenant's tags, durably, once for ever."""
        with self._transaction() as connection:
            connection.execute("INSERT INTO index_keys VALUES (?, ?)", (tenant, wrapped))

    def scope_key(self, tenant: str, tag: bytes) -> bytes | None:
        """Return the wrapped key of a scope."""
        rows = self._ask("SELECT wrapped FROM scope_keys WHERE tenant = ? AND tag = ?", (tenant, tag))
        return rows[0][0] if rows else None

    def record_key(self, tenant: str, record_id: str) -> StoredKey | None:
        """Return the key of a record."""
        sql = "SELECT record_id, wrapped, tags, created_at_us FROM record_keys WHERE tenant = ? AND record_id = ?"
        rows = self._ask(sql, (tenant, record_id))
        return _stored_key(tenant, rows[0]) if rows else None

    def add_keys(self, keys: Sequence[StoredKey | StoredScopeKey]) -> list[bool]:
        """Keep keys, durably, in one transaction. Returns for each whether it was kept.

        It is not when the record or scope has a key already, or when a scope that wraps it was destroyed in the meantime.
        """
        with self._transaction() as connection:
            there: set[tuple[str, bytes]] = set()  # scopes that were found, which nothing removes before the transaction ends
            return [
                _add_scope_key(connection, key) if isinstance(key, StoredScopeKey) else _add_record_key(connection, key, there)
                for key in keys
            ]

    def members(self, tenant: str, tag: bytes, limit: int) -> list[str]:
        """Return ids of what belongs to a scope, newest first as far as ids tell."""
        sql = "SELECT record_id FROM members WHERE tenant = ? AND tag = ? ORDER BY record_id DESC LIMIT ?"
        return [row[0] for row in self._ask(sql, (tenant, tag, limit))]

    def tags_of(self, tenant: str, record_ids: Sequence[str]) -> dict[str, list[bytes]]:
        """Return the tags of records that have a key."""
        sql = "SELECT tags FROM record_keys WHERE tenant = ? AND record_id = ?"
        found = {}
        for record_id in record_ids:
            for row in self._ask(sql, (tenant, record_id)):
                found[record_id] = _tags(row[0])
        return found

    def keys_before(self, tenant: str, before_us: int, after: str, limit: int) -> list[str]:
        """Return ids with a key from before a time, in order, those after an id."""
        sql = """SELECT record_id FROM record_keys WHERE tenant = ? AND created_at_us < ? AND record_id > ?
            ORDER BY record_id LIMIT ?"""
        return [row[0] for row in self._ask(sql, (tenant, before_us, after, limit))]

    def wrapped_otherwise(self, tenant: str, mark: bytes, limit: int) -> list[WrappedKey]:
        """Return keys that the tenant's key wraps and whose wrapping does not begin with `mark`."""
        found: list[WrappedKey] = []
        for kind, (table, name, rule) in _WRAPPED_BY_TENANT.items():
            sql = f"SELECT {name}, wrapped FROM {table} WHERE tenant = ? AND {rule} AND substr(wrapped, 1, ?) <> ? LIMIT ?"  # noqa: S608
            rows = self._ask(sql, (tenant, len(mark), mark, limit - len(found)))
            found += [WrappedKey(kind, each.hex() if isinstance(each, bytes) else each, wrapped) for each, wrapped in rows]
        return found

    def exchange(self, tenant: str, keys: Sequence[tuple[WrappedKey, bytes]]) -> None:
        """Put other wrappings in the place of those that were found, but for keys that are destroyed or others meanwhile."""
        with self._transaction() as connection:
            for key, wrapped in keys:
                table, name, _ = _WRAPPED_BY_TENANT[key.kind]
                place = bytes.fromhex(key.name) if key.kind == "scope" else key.name
                sql = f"UPDATE {table} SET wrapped = ? WHERE tenant = ? AND {name} = ? AND wrapped = ?"  # noqa: S608
                connection.execute(sql, (wrapped, tenant, place, key.wrapped))

    def destroy(self, tenant: str, record_ids: Sequence[str]) -> list[bytes]:
        """Destroy keys, and those of scopes to which nothing else belongs. Returns the tags of these.

        When this returns the file and its write-ahead log no longer hold them. Destroying twice does no harm.
        """
        emptied: list[bytes] = []
        with self._transaction() as connection:
            touched: set[bytes] = set()
            for record_id in record_ids:
                place = (tenant, record_id)
                found = connection.execute("SELECT tags FROM record_keys WHERE tenant = ? AND record_id = ?", place).fetchone()
                if found is None:
                    continue
                tags = _tags(found[0])
                touched.update(tags)
                connection.executemany(
                    "DELETE FROM members WHERE tenant = ? AND tag = ? AND record_id = ?",
                    [(tenant, tag, record_id) for tag in tags],
                )
                connection.execute("DELETE FROM record_keys WHERE tenant = ? AND record_id = ?", place)
            for tag in sorted(touched):
                if (
                    connection.execute("SELECT 1 FROM members WHERE tenant = ? AND tag = ? LIMIT 1", (tenant, tag)).fetchone()
                    is None
                ):
                    connection.execute("DELETE FROM scope_keys WHERE tenant = ? AND tag = ?", (tenant, tag))
                    emptied.append(tag)
        self.empty_write_ahead_log()
        return emptied

    def destroy_tenant(self, tenant: str) -> None:
        """Destroy every key of a tenant, and its index. Durable and out of the write-ahead log as `destroy` is."""
        with self._transaction() as connection:
            for table in ("members", "record_keys", "scope_keys", "index_keys"):
                connection.execute(f"DELETE FROM {table} WHERE tenant = ?", (tenant,))  # noqa: S608  tables are named here
        self.empty_write_ahead_log()

    def empty_write_ahead_log(self) -> None:
        """Fold the write-ahead log, which holds old pages, into the file."""
        with self._lock, _failures("emptying the write-ahead log"):
            (busy, _, _) = self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        if busy:
            raise KeysUnavailable("the key store: another process reads it, so what was destroyed is not gone yet")

    def size_bytes(self) -> int | None:
        """Size of the file and its write-ahead log; None when the disk does not say. Waits for nobody."""
        try:
            log = self._path.with_name(f"{self._path.name}-wal")
            return self._path.stat().st_size + (log.stat().st_size if log.exists() else 0)
        except OSError:
            return None

    def close(self) -> None:
        """Release the file."""
        with self._lock:
            try:
                self._connection.close()
            finally:
                os.close(self._holding)

    def _ask(self, sql: str, parameters: Sequence[Any]) -> list[Any]:
        with self._lock, _failures("reading"):
            return self._connection.execute(sql, parameters).fetchall()

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        """Commit at the end of the block, or roll back. After a commit that failed nothing is written until restart."""
        with self._lock, _failures("writing"):
            if self._broken:
                raise KeysUnavailable("the key store: a commit failed, and what is on the disk is unknown until restart")
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield self._connection
            except BaseException:
                self._connection.execute("ROLLBACK")
                raise
            self._broken = True
            self._connection.execute("COMMIT")
            self._broken = False


def _add_scope_key(connection: sqlite3.Connection, key: StoredScopeKey) -> bool:
    added = connection.execute("INSERT OR IGNORE INTO scope_keys VALUES (?, ?, ?)", (key.tenant, key.tag, key.wrapped))
    return added.rowcount == 1


def _add_record_key(connection: sqlite3.Connection, key: StoredKey, there: set[tuple[str, bytes]]) -> bool:
    scope = "SELECT 1 FROM scope_keys WHERE tenant = ? AND tag = ?"
    for place in {(key.tenant, tag) for tag in key.tags} - there:
        if connection.execute(scope, place).fetchone() is None:
            return False
        there.add(place)
    row = (key.tenant, key.record_id, key.wrapped, b"".join(key.tags), key.created_at_us)
    if connection.execute("INSERT OR IGNORE INTO record_keys VALUES (?, ?, ?, ?, ?)", row).rowcount != 1:
        return False
    connection.executemany("INSERT INTO members VALUES (?, ?, ?)", [(key.tenant, tag, key.record_id) for tag in key.tags])
    return True


def _connect(path: Path) -> sqlite3.Connection:
    with _failures("opening"):
        connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        # Nobody else opens it, so the index of the write-ahead log needs no memory that a network's disk cannot share.
        connection.execute("PRAGMA locking_mode=EXCLUSIVE")
        (mode,) = connection.execute("PRAGMA journal_mode=WAL").fetchone()
        connection.execute("PRAGMA synchronous=FULL")
        connection.execute("PRAGMA secure_delete=ON")
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        if mode != "wal" or version > _SCHEMA_VERSION:
            connection.close()
            raise KeysUnavailable(f"the key store has schema {version} and journal mode {mode}: run the program that wrote it")
        if version == 0:
            connection.execute("BEGIN IMMEDIATE")
            for statement in _SCHEMA:
                connection.execute(statement)
            connection.execute(f"PRAGMA user_version={_SCHEMA_VERSION}")
            connection.execute("COMMIT")
    path.chmod(0o600)
    return connection


def _take_lock(path: Path) -> int:
    descriptor = os.open(path.with_name(path.name + ".lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise KeysUnavailable(f"the key store {path} is held by another process; one key store has one audit service") from None
    return descriptor


def _tags(joined: bytes) -> list[bytes]:
    return [joined[start : start + TAG_BYTES] for start in range(0, len(joined), TAG_BYTES)]


def _stored_key(tenant: str, row: Sequence[Any]) -> StoredKey:
    record_id, wrapped, tags, created_at_us = row
    return StoredKey(tenant, record_id, wrapped, _tags(tags), created_at_us)


@contextmanager
def _failures(doing: str) -> Iterator[None]:
    """Turn what SQLite raises into KeysUnavailable. Its messages name tables and files, never values."""
    try:
        yield
    except (sqlite3.Error, sqlite3.Warning) as error:
        raise KeysUnavailable(
            f"the key store: {doing}: {getattr(error, 'sqlite_errorname', type(error).__name__)}: {error}"
        ) from error
