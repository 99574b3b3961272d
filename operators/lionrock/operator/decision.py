"""One pure function from the observed world to what is to be written now.

Level-triggered: it looks at what is, not at what happened, and remembers nothing but what stands in the objects. Carrying a
decision out and deciding again leads to a quiet decision after a few rounds, whatever the world was like before.
"""

from __future__ import annotations

from datetime import datetime

from lionrock.operator.actions import Decision, Key, Kind
from lionrock.operator.decision_settings import DecisionSettings
from lionrock.operator.model_decision import decide_model
from lionrock.operator.namespace_decision import decide_namespace
from lionrock.operator.pool_decision import decide_discovery, decide_pool
from lionrock.operator.reports import NO_REPORTS, Reports
from lionrock.operator.resources import ObjectKey, PoolName
from lionrock.operator.tenant_decision import decide_tenant
from lionrock.operator.world import World


def decide(world: World, key: Key, now: datetime, settings: DecisionSettings, reports: Reports = NO_REPORTS) -> Decision:
    """Decide about one key. reports: what revisions say of themselves, as far as it is known. Changes nothing."""
    if key.kind is Kind.MODEL:
        return decide_model(world, ObjectKey(key.namespace, key.name), now, settings, reports)
    if key.kind is Kind.POOL:
        return decide_pool(world, PoolName(key.name), now)
    if key.kind is Kind.TENANT:
        return decide_tenant(world, ObjectKey(key.namespace, key.name), now)
    if key.kind is Kind.NAMESPACE:
        return decide_namespace(world, key.namespace)
    return decide_discovery(world, settings)


__all__ = ["Decision", "Key", "Kind", "decide"]
