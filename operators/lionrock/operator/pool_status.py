"""What a ChipPool's status says of it: its chip, nodes and chips, and whether models can be placed on it."""

from __future__ import annotations

from typing import Any

from lionrock.operator.conditions import ConditionType, Finding, Reason, Status
from lionrock.operator.pools import PoolProblem, ResolvedPool, chip_of_node, rows_of
from lionrock.operator.quantities import format_bytes
from lionrock.operator.resources import PoolName
from lionrock.operator.world import World


def pool_status(world: World, name: PoolName) -> dict[str, Any]:
    """`status` of a pool that is there, without observedGeneration and conditions."""
    resolved, capacity = world.resolved(name), world.capacity(name)
    status: dict[str, Any] = {
        "nodes": {"matched": capacity.nodes, "ready": capacity.ready_nodes},
        "chips": {
            "total": capacity.total,
            "reserved": capacity.reserved,
            "foreign": capacity.foreign,
            "free": capacity.free,
        },
    }
    if isinstance(resolved, ResolvedPool):
        chip = resolved.chip
        said: dict[str, Any] = {"name": str(chip.name), "extendedResource": resolved.resource, "proven": chip.proven}
        if chip.memory_bytes is not None:
            said["memory"] = format_bytes(chip.memory_bytes)
        if chip.chips_per_node is not None:
            said["chipsPerNode"] = chip.chips_per_node
        status["chip"] = said
    return status


def pool_readiness(world: World, name: PoolName) -> Finding:
    """Condition Ready of a pool that is there."""
    resolved, capacity = world.resolved(name), world.capacity(name)
    if isinstance(resolved, PoolProblem):
        return _not_ready(resolved.reason, resolved.message)
    assert resolved is not None, "the pool is there"
    if resolved.problem is not None:
        return _not_ready(resolved.problem.reason, resolved.problem.message)
    if not capacity.nodes:
        values = ", ".join(sorted(resolved.territory.values))
        told = f"no node with {resolved.territory.key} in {values} advertises {resolved.resource}"
        told += ", carries the pool's node selector" if resolved.pool.node_selector else ""
        return _not_ready(Reason.NO_NODES, f"{told} and is not labelled as having another chip or less memory")
    if not capacity.ready_nodes:
        return _not_ready(
            Reason.NO_READY_NODES, f"none of {capacity.nodes} nodes takes pods: they are not ready, cordoned, or tainted"
        )
    told = f"{capacity.free} of {capacity.total} chips are free on {capacity.ready_nodes} nodes"
    if (doubt := _doubt(world, resolved)) is not None:
        told += f"; {doubt}"
    return Finding(ConditionType.READY, Status.TRUE, Reason.POOL_USABLE, told)


def _not_ready(reason: Reason, message: str) -> Finding:
    return Finding(ConditionType.READY, Status.FALSE, reason, message)


def _doubt(world: World, pool: ResolvedPool) -> str | None:
    """Say so if labels do not tell which of several chips with one resource the nodes have."""
    rows, members = rows_of(pool.resource), world.pool_nodes(pool.name)
    if len(rows) < 2 or members is None or pool.pool.description is not None:
        return None
    silent = [name for name in members.names() if not chip_of_node(world.nodes[name], pool.resource)[1]]
    if not silent:
        return None
    others = ", ".join(row.name for row in rows if row.name != pool.chip.name)
    nodes = f"node {silent[0]}" if len(silent) == 1 else f"node {silent[0]} and {len(silent) - 1} more"
    return f"labels of {nodes} do not say whether the chip is {pool.chip.name} or {others}: check it"
