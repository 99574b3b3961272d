"""Which models would use a pool's chips, so that they are looked at again when it changes. Does not know how much room there is."""

from __future__ import annotations

from lionrock.operator.pools import ResolvedPool
from lionrock.operator.resources import ModelDeployment, PoolName
from lionrock.operator.waiting import placed_replicas


def may_use(model: ModelDeployment, pool: PoolName, territory: str | None) -> bool:
    """Whether the model may be placed on that pool, which stands in that territory."""
    return pool in model.spec.pools if model.spec.pools else model.spec.territory == territory


def is_unsettled(model: ModelDeployment) -> bool:
    """Whether the model lacks replicas, or would rather be on another pool."""
    status, placement = model.status, model.status.placement
    if model.meta.is_deleting or status.desired_replicas == 0:
        return False
    if placement is None or placement.pool is None or status.plan is None or status.desired_replicas is None:
        return True
    if model.spec.pools and placement.pool != model.spec.pools[0]:
        return True
    return placed_replicas(placement, placement.pool, status.plan.pods_per_replica) < status.desired_replicas


def prefers(model: ModelDeployment, pool: ResolvedPool) -> bool:
    """Whether an unsettled model would use that pool. Without a list of pools none is better than the one that it has."""
    if model.spec.territory != pool.pool.territory:
        return False
    current = None if model.status.placement is None else model.status.placement.pool
    if not model.spec.pools:
        return True
    if pool.name not in model.spec.pools:
        return False
    before = model.spec.pools.index(current) if current in model.spec.pools else len(model.spec.pools)
    return model.spec.pools.index(pool.name) <= before
