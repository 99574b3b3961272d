"""From what informers report to the World and the keys that are to be looked at again.

The one owner of the World: every change of it and every decision upon it happens under the lock that is here. Knows which kinds
exist; does not know what is decided.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final

from lionrock.operator.actions import DISCOVERY, Key, Kind, model_key, namespace_key, pool_key, tenant_key
from lionrock.operator.api_resources import CHILDREN, CHIP_POOL, MODEL_DEPLOYMENT, NODE, POD, TENANT
from lionrock.operator.informers import Change
from lionrock.operator.resources import (
    ChildKey,
    Malformed,
    NodeName,
    ObjectKey,
    PoolName,
    parse_child,
    parse_chip_pool,
    parse_model_deployment,
    parse_node,
    parse_pod,
)
from lionrock.operator.tenant import parse_tenant
from lionrock.operator.world import Touched, World

log = logging.getLogger("lionrock.operator")

_CHILD_KINDS: Final = frozenset(CHILDREN)


class Observation:
    """The World, kept current. `enqueue` is told the keys that a change touches, those that wait longest first."""

    def __init__(self, world: World, enqueue: Callable[[Key], None]) -> None:
        self._world = world
        self._enqueue = enqueue
        self._lock = threading.RLock()

    @contextmanager
    def world(self) -> Iterator[World]:
        """Have the World to oneself."""
        with self._lock:
            yield self._world

    def take(self, change: Change) -> None:
        """Take a change in. An object that cannot be read is reported and otherwise as if it were not there."""
        with self._lock:
            body = change.after if change.after is not None else change.before
            assert body is not None, "a change has a before or an after"
            metadata = body["metadata"]
            key = ObjectKey(str(metadata.get("namespace") or ""), str(metadata["name"]))
            try:
                touched = self._forget(change, key) if change.after is None else self._apply(change, change.after)
            except Malformed as error:
                log.error("%s %s cannot be read: %s", change.resource.kind, key, error)
                touched = self._forget(change, key)
            self.touch(touched)

    def touch(self, touched: Touched) -> None:
        """Look again at what was touched."""
        for model in touched.models:
            self._enqueue(model_key(*model))
        for pool in sorted(touched.pools):
            self._enqueue(pool_key(pool))
        for tenant in sorted(touched.tenants):
            self._enqueue(tenant_key(*tenant))
        for namespace in sorted(touched.namespaces):
            self._enqueue(namespace_key(namespace))
        if touched.discovery:
            self._enqueue(DISCOVERY)

    def all_keys(self) -> list[Key]:
        """Return every key that there is something for."""
        with self._lock:
            models = sorted(self._world.models)
            namespaces = dict.fromkeys((*(model.namespace for model in models), *self._world.tenants_namespaces()))
            return [
                DISCOVERY,
                *(pool_key(pool) for pool in sorted(self._world.pools)),
                *(model_key(*model) for model in models),
                *(tenant_key(*tenant) for tenant in sorted(self._world.tenants)),
                *(namespace_key(namespace) for namespace in namespaces),
            ]

    def _apply(self, change: Change, body: dict[str, Any]) -> Touched:
        if change.resource is NODE:
            return self._world.apply_node(parse_node(body))
        if change.resource is POD:
            return self._world.apply_pod(parse_pod(body))
        if change.resource is CHIP_POOL:
            return self._world.apply_pool(parse_chip_pool(body))
        if change.resource is MODEL_DEPLOYMENT:
            return self._world.apply_model(parse_model_deployment(body))
        if change.resource is TENANT:
            return self._world.apply_tenant(parse_tenant(body))
        assert change.resource in _CHILD_KINDS, f"nobody asked for {change.resource.kind}"
        return self._world.apply_child(parse_child(change.resource.kind, body))

    def _forget(self, change: Change, key: ObjectKey) -> Touched:
        if change.resource is NODE:
            return self._world.forget_node(NodeName(key.name))
        if change.resource is POD:
            return self._world.forget_pod(key)
        if change.resource is CHIP_POOL:
            return self._world.forget_pool(PoolName(key.name))
        if change.resource is MODEL_DEPLOYMENT:
            return self._world.forget_model(key)
        if change.resource is TENANT:
            return self._world.forget_tenant(key)
        return self._world.forget_child(ChildKey(change.resource.kind, *key))


def uid_of(world: World, key: Key) -> str | None:
    """Return the uid of a key's object; None: the key has none, or it is gone."""
    if key.kind is Kind.MODEL:
        model = world.models.get(ObjectKey(key.namespace, key.name))
        return None if model is None else model.meta.uid
    if key.kind is Kind.TENANT:
        tenant = world.tenants.get(ObjectKey(key.namespace, key.name))
        return None if tenant is None else tenant.meta.uid
    if key.kind is Kind.POOL:
        pool = world.pools.get(PoolName(key.name))
        return None if pool is None else pool.meta.uid
    return None
