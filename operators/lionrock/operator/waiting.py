"""Models that wait for chips, in the order in which they are served.

Read from what their status says, so that a restarted operator serves them in the same order. Does not know how much room there is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

from lionrock.operator.conditions import ConditionType, Reason
from lionrock.operator.resources import ModelDeployment, NodeName, ObjectKey, Placement, PoolName
from lionrock.operator.rollout_record import record_of

_LATEST: Final = datetime.max.replace(tzinfo=UTC)
_REASONS: Final = frozenset({Reason.NO_ROOM.word, Reason.WAITING_FOR_CHIPS.word})


@dataclass(frozen=True, slots=True, kw_only=True)
class Waiting:
    """A model that lacks chips of its first pool with a plan."""

    model: ObjectKey
    pool: PoolName
    chips_per_pod: int
    pods_per_replica: int
    replicas: int
    """That have no chips yet."""
    since: datetime
    created_at: datetime
    avoids: frozenset[NodeName] = frozenset()
    """Nodes on which the scheduler refuses its pods: their chips are of no use to it."""

    @property
    def rank(self) -> tuple[datetime, datetime, ObjectKey]:
        """Place in the queue: who has waited longest, then the older object, then its name."""
        return self.since, self.created_at, self.model


class Queue:
    """Who waits for which pool."""

    def __init__(self) -> None:
        self._by_model: dict[ObjectKey, Waiting] = {}
        self._by_pool: dict[PoolName, dict[ObjectKey, Waiting]] = {}
        self._ordered: dict[PoolName, tuple[Waiting, ...]] = {}

    def put(self, model: ObjectKey, waiting: Waiting | None) -> None:
        """Note that a model waits, or no longer does."""
        before = self._by_model.pop(model, None)
        if before is not None:
            del self._by_pool[before.pool][model]
            self._ordered.pop(before.pool, None)
            if not self._by_pool[before.pool]:
                del self._by_pool[before.pool]
        if waiting is not None:
            self._by_model[model] = waiting
            self._by_pool.setdefault(waiting.pool, {})[model] = waiting
            self._ordered.pop(waiting.pool, None)

    def of(self, model: ObjectKey) -> Waiting | None:
        """Return what a model waits for, or None."""
        return self._by_model.get(model)

    def for_pool(self, pool: PoolName) -> Sequence[Waiting]:
        """Who waits for the pool, the first in the queue first."""
        if pool not in self._ordered:
            self._ordered[pool] = tuple(sorted(self._by_pool.get(pool, {}).values(), key=lambda waiting: waiting.rank))
        return self._ordered[pool]


def waiting_of(model: ModelDeployment) -> Waiting | None:
    """Read from a model's status what it waits for; None: it does not, or its first plan is not known."""
    status, scheduled = model.status, model.status.condition(ConditionType.SCHEDULED)
    if model.meta.is_deleting or scheduled is None or scheduled.status != "False" or scheduled.reason not in _REASONS:
        return None
    plan, wanted = status.plan, status.desired_replicas
    if plan is None or plan.pool is None or not wanted or (model.spec.pools and plan.pool not in model.spec.pools):
        return None
    missing = wanted - placed_replicas(status.placement, plan.pool, plan.pods_per_replica)
    if missing <= 0:
        return None
    return Waiting(
        model=model.key,
        pool=plan.pool,
        chips_per_pod=plan.chips_per_pod,
        pods_per_replica=plan.pods_per_replica,
        replicas=missing,
        since=scheduled.since or model.meta.created_at or _LATEST,
        created_at=model.meta.created_at or _LATEST,
        avoids=frozenset(record_of(status).refused),
    )


def placed_replicas(placement: Placement | None, pool: PoolName, pods_per_replica: int) -> int:
    """How many replicas of the newest revision have all their chips in that pool."""
    if placement is None or placement.revision is None:
        return 0
    parts: dict[int, int] = {}
    for slot in placement.slots:
        if slot.revision == placement.revision and slot.pool == pool:
            parts[slot.replica] = parts.get(slot.replica, 0) + 1
    return sum(count >= pods_per_replica for count in parts.values())
