"""The key of a record: made once, wrapped by the keys of its scopes, durable before anything is sealed with it, destroyed for good.

Knows: the hierarchy. A record's key is wrapped by the key of every person whom it concerns, one around the other, so that
destroying any one of them kills it; a record that concerns nobody by name is wrapped by the key of its case, one without either
by the tenant's own key. Keys of scopes are wrapped by the tenant's (key_management.py). Does not know: what is sealed, what may
be destroyed.

Keys that are being made at the same time are kept in one transaction of the key store, without linger, as leaves are.
"""

import asyncio
import hmac
import secrets
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Final, Literal, TypeVar

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from lionrock.audit.canonical_json import canonical_json
from lionrock.audit.failures import EventAlreadyRecorded, KeysUnavailable, QueueFull, RecordErased
from lionrock.audit.vault.key_cache import KeyCache
from lionrock.audit.vault.key_management import KEY_BYTES, KeyManagement, seal, unseal
from lionrock.audit.vault.key_store import KeyStore, StoredKey, StoredScopeKey, WrappedKey
from lionrock.audit.vault.telemetry import VaultMetrics
from lionrock.audit.wall_clock import ClockUs, wall_clock_us
from lionrock.chassis.telemetry import meter

_T = TypeVar("_T")
_MAX_WAITING: Final = 8192
_MAX_BATCH: Final = 1024
_ATTEMPTS: Final = 4
"""A scope may be destroyed while a key is being wrapped by it; the next attempt makes a new one."""


@dataclass(frozen=True, slots=True)
class KeyScope:
    """Whose key wraps a record's."""

    kind: Literal["subject", "case"]
    value: str


class RecordKeys:
    """Keys of records, by tenant and record id. Belongs to one event loop."""

    def __init__(
        self,
        store: KeyStore,
        management: KeyManagement,
        cache: KeyCache,
        clock_us: ClockUs = wall_clock_us,
        metrics: VaultMetrics | None = None,
    ) -> None:
        self.metrics = metrics or VaultMetrics(meter())
        self.metrics.measure_key_store(store.size_bytes)
        self._store = store
        self._management = management
        self._cache = cache
        self._clock_us = clock_us
        self._threads = ThreadPoolExecutor(max_workers=2, thread_name_prefix="audit-keys")
        self._waiting: list[tuple[StoredKey | StoredScopeKey, asyncio.Future[bool]]] = []
        self._scopes_in_making: dict[tuple[str, bytes, bool], asyncio.Task[bytes]] = {}
        self._flushing: asyncio.Task[None] | None = None
        self._making: dict[str, asyncio.Lock] = {}

    async def prepare(self, tenant: str) -> None:
        """Make what a tenant needs before the first record, and check that its key opens what it wrapped.

        Raises KeysUnavailable.
        """
        await self._index_key(tenant)

    async def key_for(
        self,
        tenant: str,
        record_id: str,
        scopes: Sequence[KeyScope] | None,
        *,
        expect_new: bool = False,
        join: bool = False,
    ) -> bytes:
        """Key of a record, made and durable if there was none.

        `scopes`: those of a record that begins; None adds to one that has them, if it began. `expect_new`: do not look for it
        first. `join`: a record that is there is taken whatever its scopes are. Raises KeysUnavailable, QueueFull,
        EventAlreadyRecorded when the record has other scopes.
        """
        await self._index_key(tenant)  # also makes sure that the tenant's key is there, and is the one of before
        tags = None if scopes is None else await self.tags(tenant, scopes)
        for attempt in range(_ATTEMPTS):
            if not expect_new or attempt:
                key = await self._existing(tenant, record_id, None if join else tags)
                if key is not None:
                    return key
            key = secrets.token_bytes(KEY_BYTES)
            wrapped = await self._wrap(tenant, record_id, key, tags or ())
            if await self._keep(StoredKey(tenant, record_id, wrapped, tags or (), self._clock_us())):
                self._cache.put((tenant, record_id), key)
                self.metrics.made()
                return key
            for tag in tags or ():
                self._cache.forget((tenant, tag))
        raise KeysUnavailable("a key could not be made: its scope was destroyed again and again")

    async def key_of(self, tenant: str, record_id: str) -> bytes:
        """Key of a record. Raises RecordErased without one, KeysUnavailable."""
        key = await self._existing(tenant, record_id, None)
        if key is None:
            raise RecordErased("the record's key is destroyed")
        return key

    async def tags(self, tenant: str, scopes: Sequence[KeyScope]) -> tuple[bytes, ...]:
        """Tags of scopes, sorted: HMAC-SHA256(index key of the tenant, kind and value). Raises KeysUnavailable."""
        if not scopes:
            return ()
        index_key = await self._index_key(tenant)
        return tuple(sorted({hmac.digest(index_key, canonical_json([scope.kind, scope.value]), "sha256") for scope in scopes}))

    async def members(self, tenant: str, scope: KeyScope, limit: int) -> list[str]:
        """Ids of the records of a scope, newest first. Raises KeysUnavailable."""
        (tag,) = await self.tags(tenant, [scope])
        return await self._call(partial(self._store.members, tenant, tag, limit))

    async def tags_of(self, tenant: str, record_ids: Sequence[str]) -> dict[str, list[bytes]]:
        """Tags of the scopes of records that have a key. Raises KeysUnavailable."""
        return await self._call(partial(self._store.tags_of, tenant, record_ids))

    async def destroy(self, tenant: str, record_ids: Sequence[str]) -> None:
        """Destroy keys for good, and those of scopes to which nothing else belongs. Raises KeysUnavailable."""
        for record_id in record_ids:
            self._cache.forget((tenant, record_id))
        for tag in await self._call(partial(self._store.destroy, tenant, list(record_ids))):
            self._cache.forget((tenant, tag))
        for record_id in record_ids:
            self._cache.forget((tenant, record_id))  # whoever was reading meanwhile may have put one back

    async def destroy_tenant(self, tenant: str) -> bool:
        """Destroy every key of a tenant, last the one that wraps them. Returns whether that one is this program's to destroy.

        Raises KeysUnavailable.
        """
        self._cache.forget_of(tenant)
        await self._call(partial(self._store.destroy_tenant, tenant))
        self._cache.forget_of(tenant)  # whoever was reading meanwhile may have put one back
        self._making.pop(tenant, None)
        return await self._management.destroy(tenant)

    def mark(self, tenant: str) -> bytes | None:
        """Return how everything begins that is wrapped by the key that the tenant states; None where it states none."""
        return self._management.mark(tenant)

    async def rewrap(self, tenant: str, mark: bytes, limit: int) -> int:
        """Wrap anew what another key than the tenant's of now wrapped. Returns how many keys were found. Raises KeysUnavailable."""
        found = await self._call(partial(self._store.wrapped_otherwise, tenant, mark, limit))
        anew = []
        for key in found:
            aad = _bound(tenant, key)
            anew.append((key, await self._management.wrap(tenant, await self._management.unwrap(tenant, key.wrapped, aad), aad)))
        if anew:
            await self._call(partial(self._store.exchange, tenant, anew))
        return len(found)

    async def made_before(self, tenant: str, before_us: int, after: str, limit: int) -> list[str]:
        """Ids that have had a key since before a time, in order, those after an id. Raises KeysUnavailable."""
        return await self._call(partial(self._store.keys_before, tenant, before_us, after, limit))

    def forget_stale(self) -> None:
        """Overwrite unwrapped keys whose time is over."""
        self._cache.forget_stale()

    async def close(self) -> None:
        """Write what waits, forget all keys."""
        if self._flushing is not None:
            await self._flushing
        self._cache.clear()
        self._threads.shutdown()
        await self._management.close()

    async def _existing(self, tenant: str, record_id: str, tags: Sequence[bytes] | None) -> bytes | None:
        key = self._cache.get((tenant, record_id)) if tags is None else None
        if key is not None:
            return key
        stored = await self._call(partial(self._store.record_key, tenant, record_id))
        if stored is None:
            return None
        if tags is not None and tuple(stored.tags) != tuple(tags):
            raise EventAlreadyRecorded("the request was recorded for other data subjects, or for another case")
        if stored.tags:
            key = stored.wrapped
            for tag in reversed(stored.tags):
                key = _unwrap(await self._scope_key(tenant, tag, may_make=False), key, _bound_to(tenant, record_id, tag))
        else:
            key = await self._management.unwrap(tenant, stored.wrapped, _bound_to(tenant, record_id, b""))
        self._cache.put((tenant, record_id), key)
        return key

    async def _wrap(self, tenant: str, record_id: str, key: bytes, tags: Sequence[bytes]) -> bytes:
        if not tags:
            return await self._management.wrap(tenant, key, _bound_to(tenant, record_id, b""))
        for tag in tags:
            key = seal(AESGCM(await self._scope_key(tenant, tag, may_make=True)), key, _bound_to(tenant, record_id, tag))
        return key

    async def _scope_key(self, tenant: str, tag: bytes, *, may_make: bool) -> bytes:
        key = self._cache.get((tenant, tag))
        if key is not None:
            return key
        # Two that made the same key at once would each wrap with their own.
        place = (tenant, tag, may_make)
        making = self._scopes_in_making.get(place)
        if making is None:
            finding = self._find_or_make_scope_key(tenant, tag, may_make=may_make)
            making = self._scopes_in_making[place] = asyncio.create_task(finding, name="lionrock-audit-scope-key")
            making.add_done_callback(partial(self._made_scope_key, place))
        return await asyncio.shield(making)

    def _made_scope_key(self, place: tuple[str, bytes, bool], made: "asyncio.Task[bytes]") -> None:
        del self._scopes_in_making[place]
        if not made.cancelled():
            made.exception()  # nobody may be waiting any more

    async def _find_or_make_scope_key(self, tenant: str, tag: bytes, *, may_make: bool) -> bytes:
        aad = _scope_bound_to(tenant, tag.hex())
        for _ in range(_ATTEMPTS):
            wrapped = await self._call(partial(self._store.scope_key, tenant, tag))
            if wrapped is not None:
                key = await self._management.unwrap(tenant, wrapped, aad)
                break
            if not may_make:
                raise RecordErased("the key of a scope of the record is destroyed")
            key = secrets.token_bytes(KEY_BYTES)
            if await self._keep(StoredScopeKey(tenant, tag, await self._management.wrap(tenant, key, aad))):
                break
        else:
            raise KeysUnavailable("a scope's key could not be made: it was destroyed again and again")
        self._cache.put((tenant, tag), key)
        return key

    async def _index_key(self, tenant: str) -> bytes:
        key = self._cache.get((tenant, "index"))
        if key is not None:
            return key
        aad = _index_bound_to(tenant)
        async with self._making.setdefault(tenant, asyncio.Lock()):
            wrapped = await self._call(partial(self._store.index_key, tenant))
            if wrapped is not None:
                key = await self._management.unwrap(tenant, wrapped, aad)
            else:
                await self._management.prepare(tenant)
                key = secrets.token_bytes(KEY_BYTES)
                await self._call(partial(self._store.add_index_key, tenant, await self._management.wrap(tenant, key, aad)))
        self._cache.put((tenant, "index"), key)
        return key

    async def _keep(self, key: StoredKey | StoredScopeKey) -> bool:
        """Write a key through with whatever else waits. Returns whether it was kept."""
        if len(self._waiting) >= _MAX_WAITING:
            raise QueueFull(f"{_MAX_WAITING} keys wait already")
        done: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self._waiting.append((key, done))
        if self._flushing is None or self._flushing.done():
            self._flushing = asyncio.create_task(self._flush(), name="lionrock-audit-keys")
        return await done

    async def _flush(self) -> None:
        while self._waiting:
            batch, self._waiting = self._waiting[:_MAX_BATCH], self._waiting[_MAX_BATCH:]
            try:
                kept = await self._call(partial(self._store.add_keys, [key for key, _ in batch]))
            except KeysUnavailable as failure:
                for _, done in batch:
                    if not done.done():
                        done.set_exception(KeysUnavailable(str(failure)))
                continue
            for (_, done), was_kept in zip(batch, kept, strict=True):
                if not done.done():
                    done.set_result(was_kept)

    async def _call(self, call: Callable[[], _T]) -> _T:
        try:
            return await asyncio.get_running_loop().run_in_executor(self._threads, call)
        except KeysUnavailable:
            self.metrics.key_store_failed()
            raise


def _bound(tenant: str, key: WrappedKey) -> bytes:
    match key.kind:
        case "index":
            return _index_bound_to(tenant)
        case "scope":
            return _scope_bound_to(tenant, key.name)
        case "record":
            return _bound_to(tenant, key.name, b"")


def _index_bound_to(tenant: str) -> bytes:
    return canonical_json(["lionrock/index-key/v1", tenant])


def _scope_bound_to(tenant: str, tag: str) -> bytes:
    return canonical_json(["lionrock/scope-key/v1", tenant, tag])


def _bound_to(tenant: str, record_id: str, tag: bytes) -> bytes:
    return canonical_json(["lionrock/record-key/v1", tenant, record_id, tag.hex()])


def _unwrap(scope_key: bytes, wrapped: bytes, aad: bytes) -> bytes:
    try:
        return unseal(AESGCM(scope_key), wrapped, aad)
    except InvalidTag:
        raise KeysUnavailable("the key store: a record's key is not what was wrapped: restore the key store") from None
