"""Why a model does not get chips of a pool, in words that a person can act on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from lionrock.operator.capacity import Room
from lionrock.operator.fairness import Claims
from lionrock.operator.pools import PoolProblem, ResolvedPool
from lionrock.operator.resources import NodeName, PoolName
from lionrock.operator.world import World

_SHOWN: Final = 6


@dataclass(frozen=True, slots=True)
class Refusal:
    """A pool that does not hold all replicas, and why."""

    pool: PoolName
    message: str

    def __str__(self) -> str:
        return f"pool {self.pool}: {self.message}"


def unusable(world: World, pool: PoolName, territory: str, chips_per_pod: int) -> str | None:
    """Why nothing of the kind can be placed on the pool, however many chips are free; None: it can."""
    resolved = world.resolved(pool)
    if resolved is None:
        return "there is no such pool"
    if isinstance(resolved, PoolProblem):
        return f"not ready: {resolved.reason}: {resolved.message}"
    if resolved.pool.territory != territory:
        return f"it stands in {resolved.pool.territory}, the model stays in {territory}"
    if resolved.pool.meta.is_deleting:
        return "it is being deleted"
    if resolved.problem is not None:
        return f"not ready: {resolved.problem.reason}: {resolved.problem.message}"
    capacity = world.capacity(pool)
    if not capacity.nodes:
        return f"no node of {territory} has the chip ({resolved.resource})"
    if not capacity.ready_nodes:
        return f"none of its {capacity.nodes} nodes takes pods: they are not ready, cordoned, or tainted"
    if resolved.chip.even_counts_only and chips_per_pod > 1 and chips_per_pod % 2:
        return f"chips of {resolved.chip.name} are handed out in even numbers, and a pod asks for {chips_per_pod}"
    return None


def no_room(world: World, pool: ResolvedPool, room: Room, claims: Claims, chips_per_pod: int, pods: int) -> str:
    """Why one more replica of so many pods does not fit. room: after what was placed and set aside."""
    capacity, needs = world.capacity(pool.name), chips_per_pod * pods
    members = world.pool_nodes(pool.name)
    assert members is not None, "a pool with a chip has a list of nodes, be it empty"
    free = {node: room.free(node) for node in members.counted()}
    total_free = sum(free.values())
    a_pod = "a pod" if pods == 1 else f"each of {pods} pods"
    largest = max((chips.total for chips in members.counted().values()), default=0)
    if largest < chips_per_pod:
        told = f"its nodes have {largest} chips at most, and a pod needs {chips_per_pod} on one node"
    elif total_free < needs:
        told = f"{total_free} of {capacity.total} chips free, and a replica needs {needs}"
    else:
        told = (
            f"{total_free} of {capacity.total} chips free but on nodes {_listed(free)}; {a_pod} needs {chips_per_pod} on one node"
        )
        if fitting := room.pods_that_fit(chips_per_pod):
            told += f", and {fitting} would fit"
    if claims.ahead:
        told += f"; {_named([str(model) for model in claims.ahead])} waited longer and come first"
    if claims.holder is not None:
        since = f"{claims.holder.since:%Y-%m-%d %H:%M} UTC"
        told += f"; {_named(claims.held)} are held for {claims.holder.model}, which waits since {since}"
    return told


def _listed(free: dict[NodeName, int]) -> str:
    some = sorted((node for node in free if free[node]), key=lambda node: (-free[node], node))
    return _named([f"{node} ({free[node]})" for node in some])


def _named(names: Sequence[str]) -> str:
    shown = ", ".join(names[:_SHOWN])
    return shown if len(names) <= _SHOWN else f"{shown} and {len(names) - _SHOWN} more"
