"""Ranks as Ray actors in the replica's placement group.

`placement` says which bundle a rank is in. A rank that is lost is started anew in its bundle; a spare takes no chip and no core
from anybody until it has taken over the place of a lost rank. Ray carries the set-up; steps go over links (see sharding).
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from typing import Any

import ray
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from lionrock.inference.engine.errors import ShardGroupLost
from lionrock.inference.group_builder import GroupBuilder
from lionrock.inference.placement import ReplicaPlacement, chip_resource
from lionrock.inference.settings import HealthSettings
from lionrock.inference.shard_process import Placement, RankSettings, ShardProcess
from lionrock.planner.chips import Chip


def _node_address() -> str:
    return str(ray.util.get_node_ip_address())  # type: ignore[no-untyped-call]


class ShardActor(ShardProcess):
    """A rank's process as a Ray actor."""

    def where(self) -> Placement:
        """Return this process's node and pid."""
        context = ray.get_runtime_context()
        return Placement(context.get_node_id(), _node_address(), os.getpid())


def _actor_options(row: Chip, placement: ReplicaPlacement, rank: int | None) -> dict[str, Any]:
    resources = {} if rank is None else chip_resource(row)
    gpus = resources.pop("GPU", 0)
    group = ray.util.get_current_placement_group()
    assert group is not None, "Serve runs the replica in a placement group"
    bundle = 0 if rank is None else placement.bundle_of(rank)
    strategy = PlacementGroupSchedulingStrategy(placement_group=group, placement_group_bundle_index=bundle)
    cpus = 0 if rank is None else 1
    return {"num_cpus": cpus, "num_gpus": gpus, "resources": resources, "scheduling_strategy": strategy, "max_restarts": 0}


def _visible_devices(row: Chip, placement: ReplicaPlacement, rank: int | None) -> str | None:
    """Devices of a rank where Ray does not know the chip. A pod sees the chips of its bundle, numbered from 0."""
    if rank is None or row.ray_sets_visible_devices or row.visible_devices is None:
        return None
    return str(placement.device_of(rank))


class ActorRank:
    """See RankProcess."""

    def __init__(self, settings: RankSettings, placement: ReplicaPlacement, rank: int | None) -> None:
        """Begin to start the actor. rank: None for a spare."""
        row = settings.chip
        actor_class = ray.remote(ShardActor).options(**_actor_options(row, placement, rank))
        self._actor: Any = actor_class.remote(settings, _visible_devices(row, placement, rank))
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


def actor_group_builder(settings: RankSettings, health: HealthSettings, placement: ReplicaPlacement) -> GroupBuilder:
    """Return what builds the groups of the replica that this process is."""

    def spawn(rank: int | None) -> ActorRank:
        return ActorRank(settings, placement, rank)

    node_id = ray.get_runtime_context().get_node_id()
    return GroupBuilder(settings, health, spawn, node_id=node_id, node_address=_node_address())
