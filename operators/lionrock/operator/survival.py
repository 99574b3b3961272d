"""Which replicas of a placement still have their chips, and why the others do not.

A slot whose pod runs there is lost only with its node: when that is gone, leaves the territory, evicts its pods, or has not been
ready for longer than a grace period. A slot whose pod is not there yet must still be one that would be given today: on a node of
the pool that takes pods, with room for it. A replica is lost whole, for its shards are of no use alone.
"""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from lionrock.operator.pools import ResolvedPool, belongs, evicts_pods, takes_pods
from lionrock.operator.resources import Node, NodeName, ObjectKey, Revision, Slot
from lionrock.operator.world import World


@dataclass(frozen=True, slots=True, kw_only=True)
class Survival:
    """What is left of a revision's slots."""

    kept: tuple[Slot, ...]
    """Of whole replicas, in order."""
    given_up: tuple[Slot, ...]
    """Of replicas that lost a slot, all of their slots."""
    why: Mapping[int, str]
    """By lost replica."""
    leaving: frozenset[int]
    """Kept replicas with a pod on a cordoned node: they run on, but not for long."""
    recheck_after_s: float | None
    """When a node that is not ready now will count as lost; None: none is."""

    @property
    def replicas(self) -> tuple[int, ...]:
        """Numbers of the kept replicas."""
        return tuple(sorted({slot.replica for slot in self.kept}))


def survivors(
    world: World,
    model: ObjectKey,
    revision: Revision,
    *,
    territory: str,
    node_grace_s: float,
    now: datetime,
    pods_per_replica: int | None = None,
    avoid: Container[NodeName] = (),
) -> Survival:
    """Look at every slot of a revision.

    pods_per_replica: None: as many as its largest replica has. avoid: nodes on which the scheduler refuses its pods.
    """
    slots = [slot for slot in world.slots_of(model) if slot.revision == revision]
    parts = pods_per_replica or max((slot.part + 1 for slot in slots), default=0)
    occupied = _occupied(world, model, revision, slots)
    why: dict[int, str] = {}
    leaving: set[int] = set()
    recheck: list[float] = []
    short = _short_of_room(world, model, revision, [slot for slot in slots if slot not in occupied])
    for slot in slots:
        node = world.nodes.get(slot.node)
        problem = _node_problem(world, node, slot, territory, node_grace_s, now)
        if problem is None and slot not in occupied:
            problem = _vacancy_problem(world, node, slot) or short.get(slot)
            if slot.node in avoid:
                problem = problem or f"the scheduler refuses its pod on node {slot.node}"
        if problem is not None:
            why.setdefault(slot.replica, problem)
        elif node is not None and node.is_cordoned:
            leaving.add(slot.replica)
        elif node is not None and not node.is_ready and node.ready_since is not None:
            recheck.append(max(0.0, node_grace_s - (now - node.ready_since).total_seconds()))
    for replica in {slot.replica for slot in slots}:
        found = sorted(slot.part for slot in slots if slot.replica == replica)
        if found != list(range(parts)):
            why.setdefault(replica, f"it has chips for {len(found)} pods, not for {parts}")
    return Survival(
        kept=tuple(slot for slot in slots if slot.replica not in why),
        given_up=tuple(slot for slot in slots if slot.replica in why),
        why=why,
        leaving=frozenset(leaving - why.keys()),
        recheck_after_s=min(recheck, default=None),
    )


def _occupied(world: World, model: ObjectKey, revision: Revision, slots: Sequence[Slot]) -> frozenset[Slot]:
    """Slots with a pod: on each node the first ones, as many as pods of the revision hold chips there and stay."""
    pods: dict[NodeName, int] = {}
    for pod in world.pods_of(model):
        if pod.revision == revision and pod.node is not None and pod.holds_chips and pod.deleted_at is None:
            pods[pod.node] = pods.get(pod.node, 0) + 1
    occupied = set()
    for slot in slots:
        if pods.get(slot.node, 0) > 0:
            pods[slot.node] -= 1
            occupied.add(slot)
    return frozenset(occupied)


def _node_problem(world: World, node: Node | None, slot: Slot, territory: str, grace_s: float, now: datetime) -> str | None:
    """Why the slot is lost, whether its pod is there or not."""
    rule = world.rules.territories.get(territory)
    pool = world.resolved(slot.pool)
    if node is None:
        return f"node {slot.node} is gone"
    if rule is not None and not rule.holds(node.labels):
        return f"node {slot.node} is no longer labelled as standing in {territory}"
    if isinstance(pool, ResolvedPool) and evicts_pods(node, pool):
        return f"node {slot.node} evicts its pods by a taint"
    if not node.is_ready and (node.ready_since is None or (now - node.ready_since).total_seconds() >= grace_s):
        return f"node {slot.node} has not been ready for {grace_s:.0f} s"
    return None


def _vacancy_problem(world: World, node: Node | None, slot: Slot) -> str | None:
    """Why no pod can come to a slot that has none. A node that is not ready for a moment is waited for."""
    pool = world.resolved(slot.pool)
    if node is None or not isinstance(pool, ResolvedPool):
        return f"pool {slot.pool} cannot be used"
    if node.is_cordoned or node.is_deleting:
        return f"node {slot.node} is cordoned"
    if slot.resource != pool.resource or not belongs(node, pool):
        return f"node {slot.node} no longer belongs to pool {slot.pool}"
    if node.is_ready and not takes_pods(node, pool):
        return f"node {slot.node} has a taint that pods of pool {slot.pool} do not tolerate"
    return None


def _short_of_room(world: World, model: ObjectKey, revision: Revision, vacant: Sequence[Slot]) -> Mapping[Slot, str]:
    """Vacant slots for which there is no room any longer, since others took it: on each node the last ones.

    Chips of the model's other revisions count as there: when one takes the place of another, both are on one node for a while.
    """
    short: dict[Slot, str] = {}
    for node, resource in {(slot.node, slot.resource) for slot in vacant}:
        chips, own = world.chips(node, resource), world.kept_by(model, node, resource)
        there = chips.total - chips.foreign - (chips.kept - sum(own.values()))
        missing = own.get(revision, 0) - there
        for slot in sorted(vacant, reverse=True):
            if missing > 0 and (slot.node, slot.resource) == (node, resource):
                short[slot] = f"others took chips of node {node} that were kept"
                missing -= slot.chips
    return short
