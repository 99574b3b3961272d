"""Ranks as Ray actors in the replica's placement group.

Bundle 0 of the placement group is the replica's own, bundle 1 + r is rank r's, one chip each. A rank that is lost is started anew
in its bundle; a spare has none, as it takes a core from nobody until it has taken over the bundle of a lost rank. Ray carries the
set-up; steps go over links (see sharding).
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Sequence
from typing import Any

import ray
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from lionrock.inference.engine.errors import ShardGroupLost
from lionrock.inference.group_builder import GroupBuilder
from lionrock.inference.settings import HealthSettings
from lionrock.inference.shard_process import Placement, RankSettings, ShardProcess
from lionrock.planner.chips import Chip, chip
from lionrock.planner.plan import ShardPlan


def _node_address() -> str:
    return str(ray.util.get_node_ip_address())  # type: ignore[no-untyped-call]


class ShardActor(ShardProcess):
    """A rank's process as a Ray actor."""

    def where(self) -> Placement:
        """Return this process's node and pid."""
        context = ray.get_runtime_context()
        return Placement(context.get_node_id(), _node_address(), os.getpid())


_NODE_SHARE = 0.001
"""Of a node's own resource: a mark of where a bundle may be, not something that runs out."""


def bundles(plan: ShardPlan, node_resources: Sequence[str | None] | None = None) -> list[dict[str, float]]:
    """Bundles of one replica's placement group: the replica, then a chip a rank.

    node_resources: Ray resource of the nodes that each pipeline stage must be on, where stages are on unlike chips.
    """
    marks = node_resources or [None] * plan.pipeline_parallel
    resources = _chip_resource(chip(plan.chip))
    ranks = ({} if (mark := marks[shard.stage]) is None else {mark: _NODE_SHARE} for shard in plan.shards)
    return [{"CPU": 1}, *({"CPU": 1} | resources | mark for mark in ranks)]


def _chip_resource(row: Chip) -> dict[str, float]:
    return {} if row.ray_resource == "CPU" else {row.ray_resource: 1}


def _actor_options(row: Chip, rank: int | None) -> dict[str, Any]:
    resources = {} if rank is None else _chip_resource(row)
    gpus = resources.pop("GPU", 0)
    group = ray.util.get_current_placement_group()
    assert group is not None, "Serve runs the replica in a placement group"
    bundle = 0 if rank is None else 1 + rank
    strategy = PlacementGroupSchedulingStrategy(placement_group=group, placement_group_bundle_index=bundle)
    cpus = 0 if rank is None else 1
    return {"num_cpus": cpus, "num_gpus": gpus, "resources": resources, "scheduling_strategy": strategy, "max_restarts": 0}


def _visible_devices(row: Chip, rank: int | None) -> str | None:
    """Devices of a rank where Ray does not know the chip: one group a node, device r for rank r modulo chips a node."""
    if rank is None or row.ray_sets_visible_devices or row.visible_devices is None:
        return None
    return str(rank % row.chips_per_node if row.chips_per_node else rank)


class ActorRank:
    """See RankProcess."""

    def __init__(self, settings: RankSettings, rank: int | None) -> None:
        """Begin to start the actor. rank: None for a spare."""
        row = chip(settings.plan.chip)
        actor_class = ray.remote(ShardActor)
        self._actor: Any = actor_class.options(**_actor_options(row, rank)).remote(settings, _visible_devices(row, rank))
        self._killing = threading.Lock()
        self._process: int | None = None  # pidfd of a rank on this node: a frozen process obeys the kernel only

    async def place(self) -> Placement:
        """See RankProcess."""
        placement: Placement = await self.call("where")
        if placement.node_id == ray.get_runtime_context().get_node_id():
            with contextlib.suppress(ProcessLookupError):
                self._process = os.pidfd_open(placement.pid)
        return placement

    async def call(self, method: str, *arguments: object) -> Any:
        """See RankProcess. The error has the failure's type and own words."""
        try:
            return await getattr(self._actor, method).remote(*arguments)
        except ray.exceptions.RayTaskError as error:
            cause = error.cause
            raise ShardGroupLost(f"a rank failed with {type(cause).__name__}: {cause}") from None
        except ray.exceptions.RayError as error:
            raise ShardGroupLost(f"a rank failed with {type(error).__name__}") from None

    def kill(self) -> None:
        """See RankProcess."""
        with self._killing:
            process, self._process = self._process, None
        if process is not None:
            with contextlib.suppress(ProcessLookupError):  # it is the one that died
                signal.pidfd_send_signal(process, signal.SIGKILL)
            os.close(process)
        ray.kill(self._actor)


def actor_group_builder(settings: RankSettings, health: HealthSettings) -> GroupBuilder:
    """Return what builds the groups of the replica that this process is."""

    def spawn(rank: int | None) -> ActorRank:
        return ActorRank(settings, rank)

    node_id = ray.get_runtime_context().get_node_id()
    return GroupBuilder(settings, health, spawn, node_id=node_id, node_address=_node_address())
