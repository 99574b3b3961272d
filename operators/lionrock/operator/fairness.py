"""Who gets free chips first.

Models that wait are served in the order in which they began to wait. One that cannot be placed now is passed by smaller ones behind
it, since holding everything for it would leave chips idle that serve somebody. So that a large replica is not passed for ever, the
first that has waited for `hold_after_s` has nodes held for it: those of its pool with most chips free, as few as it needs, and only
if the pool could hold it once its other models were gone. Chips that become free there stay so until it fits. At most one model
holds nodes of a pool, and never more than one replica needs, so what is idle is bounded. Replicas that lost their chips go before
the queue: they have been served.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from lionrock.operator.capacity import Room
from lionrock.operator.resources import NodeName, ObjectKey, PoolName
from lionrock.operator.waiting import Waiting
from lionrock.operator.world import World


@dataclass(frozen=True, slots=True, kw_only=True)
class Claims:
    """What others have a right to before a model."""

    ahead: tuple[ObjectKey, ...] = ()
    """Models before it in the queue that there is room for now."""
    holder: Waiting | None = None
    """The model that nodes are held for."""
    held: tuple[NodeName, ...] = ()


def set_aside(world: World, pool: PoolName, room: Room, model: ObjectKey, *, hold_after_s: float, now: datetime) -> Claims:
    """Take from the room what those before the model in the queue have a right to. One that does not wait is behind all that do."""
    own = world.waiting_of(model)
    ahead: list[ObjectKey] = []
    holder: Waiting | None = None
    held: Sequence[NodeName] = ()
    for waiting in world.waiting(pool):
        if waiting.model == model or (own is not None and waiting.rank > own.rank):
            break
        refused = {node: room.free(node) for node in waiting.avoids}
        for node in refused:
            room.put(node, 0)
        placed = 0
        while placed < waiting.replicas and room.take_together(waiting.chips_per_pod, waiting.pods_per_replica) is not None:
            placed += 1
        for node, free in refused.items():
            room.put(node, free)
        if placed:
            ahead.append(waiting.model)
        elif holder is None and (now - waiting.since).total_seconds() >= hold_after_s:
            held = nodes_to_hold(world, pool, room, waiting)
            holder = waiting if held else None
            for node in held:
                room.put(node, 0)
    return Claims(ahead=tuple(ahead), holder=holder, held=tuple(held))


def nodes_to_hold(world: World, pool: PoolName, room: Room, waiting: Waiting) -> Sequence[NodeName]:
    """Nodes that are to become free for one replica; none if the pool could not hold it even without its other models."""
    members = world.pool_nodes(pool)
    assert members is not None, "whoever has room has nodes"
    missing, nodes = waiting.pods_per_replica, []
    for node in sorted(members.counted(), key=lambda name: (-room.free(name), name)):
        chips = members.counted()[node]
        pods = (chips.total - chips.foreign) // waiting.chips_per_pod
        if pods > 0 and missing > 0 and node not in waiting.avoids:
            nodes.append(node)
            missing -= pods
    return nodes if missing <= 0 else ()
