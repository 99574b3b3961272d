"""Decisions about pools: what a pool's status says, when it may go, and which pools are proposed.

A proposal is made once. What has been proposed stands in a ConfigMap of the operator's namespace, so that a pool that its owner
deletes does not come back; deleting its name there, or the ConfigMap, has it proposed again.

The finalizer is on pools whose chips models have, and on no others: what nobody uses can be deleted when there is no operator.
"""

from __future__ import annotations

import json
from datetime import datetime
from typing import Any, Final

from lionrock.operator.actions import FINALIZER, Decision, Event, Manifest, ObjectRef, Severity
from lionrock.operator.conditions import ConditionType, Finding, Reason, Status, carried_on
from lionrock.operator.decision_settings import DecisionSettings
from lionrock.operator.discovery import proposals
from lionrock.operator.pool_status import pool_readiness, pool_status
from lionrock.operator.resources import (
    API_VERSION,
    MANAGED_BY,
    MANAGED_BY_LABEL,
    PART_OF,
    PART_OF_LABEL,
    ChildKey,
    ChipPool,
    PoolName,
    UnreadablePool,
)
from lionrock.operator.world import World

PROPOSED_NAME: Final = "lionrock-proposed-pools"
PROPOSED_KEY: Final = "pools.json"


def decide_pool(world: World, name: PoolName, now: datetime) -> Decision:
    """Decide about a pool."""
    pool = world.pools.get(name)
    if pool is None:
        return Decision()
    users = world.models_on(name)
    if pool.meta.is_deleting and not users:
        return Decision(apply=(_reference(pool),)) if FINALIZER in pool.meta.finalizers else Decision()
    finding = pool_readiness(world, name)
    if pool.meta.is_deleting:
        told = ", ".join(str(user) for user in users[:8]) + ("" if len(users) <= 8 else f" and {len(users) - 8} more")
        finding = Finding(ConditionType.READY, Status.FALSE, Reason.POOL_IN_USE, f"models still have chips of it: {told}")
    conditions = carried_on(pool.status.get("conditions") or (), [finding], generation=pool.meta.generation, now=now)
    status = {"observedGeneration": pool.meta.generation, **pool_status(world, name), "conditions": conditions}
    apply: tuple[Manifest, ...] = ()
    if (FINALIZER in pool.meta.finalizers) != bool(users) and not pool.meta.is_deleting:
        apply = (_kept(pool) if users else _reference(pool),)
    return Decision(status=None if status == dict(pool.status) else status, apply=apply)


def decide_discovery(world: World, settings: DecisionSettings) -> Decision:
    """Propose pools for chips that no pool covers."""
    key = ChildKey("ConfigMap", settings.namespace, PROPOSED_NAME)
    child = world.child(key)
    made_before = set() if child is None else _names(child.body)
    found = proposals(world, made_before)
    if not found:
        return Decision()
    record: Manifest = {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {
            "name": PROPOSED_NAME,
            "namespace": settings.namespace,
            "labels": {MANAGED_BY_LABEL: MANAGED_BY, PART_OF_LABEL: PART_OF},
        },
        "data": {PROPOSED_KEY: json.dumps(sorted({*made_before, *(each.name for each in found)}))},
    }
    # Pools first: where the record were written and the pool not, it would never be proposed.
    events = tuple(
        Event(
            about=ObjectRef(api_version=API_VERSION, kind="ChipPool", namespace="", name=each.name),
            severity=Severity.WARNING if each.doubtful else Severity.NORMAL,
            reason=Reason.POOL_PROPOSED.word,
            message=each.message,
        )
        for each in found
    )
    return Decision(apply=(*(each.manifest() for each in found), record), events=events)


def _names(body: Any) -> set[str]:
    """Names in the record; one that cannot be read has none, and what it had is proposed again."""
    try:
        names = json.loads(str((body.get("data") or {}).get(PROPOSED_KEY, "[]")))
    except ValueError:
        return set()
    return {name for name in names if isinstance(name, str)} if isinstance(names, list) else set()


def _kept(pool: ChipPool | UnreadablePool) -> Manifest:
    reference = _reference(pool)
    return {**reference, "metadata": {**reference["metadata"], "finalizers": [FINALIZER]}}


def _reference(pool: ChipPool | UnreadablePool) -> Manifest:
    """Refer to a pool. Applied as it is, this gives up what is ours of it: the finalizer."""
    return {"apiVersion": API_VERSION, "kind": "ChipPool", "metadata": {"name": str(pool.name), "uid": pool.meta.uid}}
