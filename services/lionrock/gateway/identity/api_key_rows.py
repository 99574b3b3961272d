"""The rows of API keys in the state that gateways share (state/schema.py has the tables).

Knows statements, each a transaction of its own. Does not know secrets: a row has the mark of its key (api_keys.py).

- `api_key_changes` has one row, whose number grows with every change. Whoever follows the keys asks for that number alone.
- A row is never deleted while its key could be accepted. Rows of keys that ended KEPT_US ago are forgotten when another is made.
- After StateUnavailable nobody knows whether a change was made. A key that was made like this has a secret that nobody was told;
  a revocation is done again without harm.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Final

from lionrock.gateway.identity.api_keys import ApiKey, KeyId
from lionrock.gateway.state.store import Row, StateStore, StateTransaction
from lionrock.gateway.tenants import Grant

MAX_KEYS_PER_TENANT: Final = 256
KEPT_US: Final = 400 * 24 * 3600 * 1_000_000
_COLUMNS: Final = "key_id, tenant, mark, description, scope, created_by, created_at_us, expires_at_us, retires_at_us, revoked_at_us"
_ALL: Final = f"SELECT {_COLUMNS} FROM api_keys WHERE expires_at_us > ? AND revoked_at_us IS NULL"  # noqa: S608
_ONE: Final = f"SELECT {_COLUMNS} FROM api_keys WHERE tenant = ? AND key_id = ?"  # noqa: S608
_PAGE: Final = f"SELECT {_COLUMNS} FROM api_keys WHERE tenant = ? AND key_id > ? ORDER BY key_id LIMIT ?"  # noqa: S608
_INSERT: Final = f"INSERT INTO api_keys ({_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"  # noqa: S608
_LIVING: Final = """SELECT count(*) FROM api_keys WHERE tenant = ? AND expires_at_us > ? AND revoked_at_us IS NULL
    AND (retires_at_us IS NULL OR retires_at_us > ?)"""
_RETIRE: Final = "UPDATE api_keys SET retires_at_us = ? WHERE key_id = ?"
_REVOKE: Final = "UPDATE api_keys SET revoked_at_us = ? WHERE tenant = ? AND key_id = ? AND revoked_at_us IS NULL"
_FORGET: Final = "DELETE FROM api_keys WHERE tenant = ? AND expires_at_us < ?"
_CHANGED: Final = """INSERT INTO api_key_changes (one, changes) VALUES (1, 1)
    ON CONFLICT (one) DO UPDATE SET changes = api_key_changes.changes + 1"""


class KeyNotFoundError(Exception):
    """The tenant has no such key, or it has ended."""


class TooManyKeysError(Exception):
    """The tenant has MAX_KEYS_PER_TENANT keys that are accepted."""


@dataclass(frozen=True, slots=True)
class KeyRow:
    """A key and its mark."""

    key: ApiKey
    mark: bytes


async def insert(store: StateStore, row: KeyRow) -> None:
    """Keep a new key. Raises TooManyKeysError, StateConflict, StateUnavailable."""
    await store.write(lambda state: _insert(state, row))


async def rotate(store: StateStore, old: KeyId, retires_at_us: int, successor: KeyRow) -> None:
    """Keep the successor of a key, which goes on until then. Raises KeyNotFoundError and as `insert`."""

    def work(state: StateTransaction) -> None:
        _without_successor(state, successor.key.tenant, old)
        state.write(_RETIRE, (retires_at_us, old))
        _insert(state, successor)

    await store.write(work)


async def revoke(store: StateStore, tenant: str, key_id: KeyId) -> None:
    """End a key; one that is revoked already stays so. Raises KeyNotFoundError, StateUnavailable."""

    def work(state: StateTransaction) -> None:
        _one(state, tenant, key_id)
        if state.write(_REVOKE, (state.now_us, tenant, key_id)):
            state.write(_CHANGED)

    await store.write(work)


async def without_successor(store: StateStore, tenant: str, key_id: KeyId) -> ApiKey:
    """Return a key of the tenant that is accepted now and can be replaced. Raises KeyNotFoundError, StateUnavailable."""
    return await store.read(lambda state: _without_successor(state, tenant, key_id))


async def one(store: StateStore, tenant: str, key_id: KeyId) -> ApiKey:
    """Return a key of the tenant, ended or not. Raises KeyNotFoundError, StateUnavailable."""
    return await store.read(lambda state: _one(state, tenant, key_id))


async def check_room(store: StateStore, tenant: str) -> None:
    """Raise TooManyKeysError when the tenant can have no further key now, StateUnavailable."""
    await store.read(lambda state: _check_room(state, tenant))


async def page(store: StateStore, tenant: str, after: str, size: int) -> list[ApiKey]:
    """Return keys of the tenant whose ids follow `after`, in their order. Raises StateUnavailable."""
    return [_row(row).key for row in await store.read(lambda state: state.ask(_PAGE, (tenant, after, size)))]


async def changes(store: StateStore) -> int:
    """Return the number of changes. Raises StateUnavailable."""
    return await store.read(_changes)


async def accepted(store: StateStore) -> tuple[int, list[KeyRow]]:
    """Return the number of changes and all keys that may be accepted. Raises StateUnavailable."""
    number, rows = await store.read(lambda state: (_changes(state), state.ask(_ALL, (state.now_us,))))
    return number, [_row(row) for row in rows]


def _changes(state: StateTransaction) -> int:
    rows = state.ask("SELECT changes FROM api_key_changes WHERE one = 1")
    return int(rows[0][0]) if rows else 0


def _one(state: StateTransaction, tenant: str, key_id: KeyId) -> ApiKey:
    rows = state.ask(_ONE, (tenant, key_id))
    if not rows:
        raise KeyNotFoundError("no such key")
    return _row(rows[0]).key


def _without_successor(state: StateTransaction, tenant: str, key_id: KeyId) -> ApiKey:
    key = _one(state, tenant, key_id)
    if key.revoked_at_us is not None or key.ends_at_us <= state.now_us:
        raise KeyNotFoundError("the key has ended")
    if key.retires_at_us is not None:
        raise KeyNotFoundError("the key has a successor already")
    return key


def _check_room(state: StateTransaction, tenant: str) -> None:
    ((count,),) = state.ask(_LIVING, (tenant, state.now_us, state.now_us))
    if count >= MAX_KEYS_PER_TENANT:
        raise TooManyKeysError(f"the tenant has {MAX_KEYS_PER_TENANT} keys")


def _insert(state: StateTransaction, row: KeyRow) -> None:
    key, now_us = row.key, state.now_us
    _check_room(state, key.tenant)
    state.write(_FORGET, (key.tenant, now_us - KEPT_US))
    kept = (key.key_id, key.tenant, row.mark, key.description, _scope(key.grant), key.created_by)
    state.write(_INSERT, (*kept, key.created_at_us, key.expires_at_us, key.retires_at_us, key.revoked_at_us))
    state.write(_CHANGED)


def _scope(grant: Grant) -> str:
    scope = {
        "roles": grant.roles,
        "purposes": grant.purposes,
        "models": sorted(grant.models),
        "data_classes": sorted(grant.data_classes),
        "profile": grant.profile,
        "max_streams": grant.max_streams,
        "batch": grant.batch,
    }
    return json.dumps(scope, separators=(",", ":"))


def _row(row: Row) -> KeyRow:
    key_id, tenant, mark, description, scope, created_by, created_at_us, expires_at_us, retires_at_us, revoked_at_us = row
    said = json.loads(scope)
    grant = Grant(
        roles=tuple(said["roles"]),
        purposes=tuple(said["purposes"]),
        models=frozenset(said["models"]),
        data_classes=frozenset(said["data_classes"]),
        profile=said["profile"],
        max_streams=said["max_streams"],
        batch=said["batch"],
    )
    times = (created_at_us, expires_at_us, retires_at_us, revoked_at_us)
    return KeyRow(ApiKey(KeyId(key_id), tenant, description, grant, created_by, *times), bytes(mark))
