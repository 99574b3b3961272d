"""Ranks as Ray actors in the replica's placement group, and how a shard group is put together from them.

Bundle 0 of the placement group is the replica's own, bundle 1 + r is rank r's, one chip each. A group that is lost is built anew in
the same bundles. Ray carries the set-up; steps go over links (see sharding).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from lionrock.inference.engine.errors import ShardGroupLost
from lionrock.inference.links import Link, LinkAddress, LinkClosed, LinkListener
from lionrock.inference.settings import HealthSettings
from lionrock.inference.shard_process import RankSettings, Rendezvous, ShardProcess
from lionrock.inference.sharding import ShardGroup
from lionrock.planner.chips import Chip, chip

log = logging.getLogger("lionrock.inference")


@dataclass(frozen=True, slots=True)
class Placement:
    """Where a rank's process runs."""

    node_id: str
    node_address: str
    pid: int


def _node_address() -> str:
    return str(ray.util.get_node_ip_address())  # type: ignore[no-untyped-call]


class ShardActor(ShardProcess):
    """A rank's process as a Ray actor."""

    def where(self) -> Placement:
        """Return this process's node and pid."""
        context = ray.get_runtime_context()
        return Placement(context.get_node_id(), _node_address(), os.getpid())


def bundles(chip_name: str, ranks: int) -> list[dict[str, float]]:
    """Bundles of one replica's placement group: the replica, then a chip a rank."""
    return [{"CPU": 1}, *({"CPU": 1} | _chip_resource(chip(chip_name)) for _ in range(ranks))]


def _chip_resource(row: Chip) -> dict[str, float]:
    return {} if row.ray_resource == "CPU" else {row.ray_resource: 1}


def _actor_options(row: Chip, rank: int) -> dict[str, Any]:
    resources = _chip_resource(row)
    gpus = resources.pop("GPU", 0)
    group = ray.util.get_current_placement_group()
    assert group is not None, "Serve runs the replica in a placement group"
    strategy = PlacementGroupSchedulingStrategy(placement_group=group, placement_group_bundle_index=1 + rank)
    return {"num_cpus": 1, "num_gpus": gpus, "resources": resources, "scheduling_strategy": strategy, "max_restarts": 0}


class _Ranks:
    """The actors of one group while it is put together, and the means to end them."""

    def __init__(self, settings: RankSettings) -> None:
        row = chip(settings.plan.chip)
        actor_class = ray.remote(ShardActor)
        self.node_id = ray.get_runtime_context().get_node_id()
        self.actors: list[Any] = [
            actor_class.options(**_actor_options(row, shard.rank)).remote(settings, shard.rank, _visible_devices(row, shard.rank))
            for shard in settings.plan.shards
        ]
        self._processes: list[int] = []  # pidfds of ranks on this node: a frozen process obeys the kernel only

    async def call(self, method: str, *arguments: object) -> list[Any]:
        """Call a method on every rank and wait for all. Raises ShardGroupLost with the first failure's type and own words."""
        return await _all([getattr(actor, method).remote(*arguments) for actor in self.actors])

    def watch(self, placements: Sequence[Placement]) -> None:
        self._processes = [os.pidfd_open(place.pid) for place in placements if place.node_id == self.node_id]

    def kill(self) -> None:
        """End every rank's process. May be called twice."""
        processes, self._processes = self._processes, []
        for process in processes:
            with contextlib.suppress(ProcessLookupError):  # it is the one that died
                signal.pidfd_send_signal(process, signal.SIGKILL)
            os.close(process)
        for actor in self.actors:
            ray.kill(actor)


def _visible_devices(row: Chip, rank: int) -> str | None:
    """Devices of a rank where Ray does not know the chip: one group a node, device r for rank r modulo chips a node."""
    if row.ray_sets_visible_devices or row.visible_devices is None:
        return None
    return str(rank % row.chips_per_node if row.chips_per_node else rank)


async def _all(calls: Sequence[Any]) -> list[Any]:
    try:
        return list(await asyncio.gather(*calls))
    except ray.exceptions.RayTaskError as error:
        cause = error.cause
        raise ShardGroupLost(f"a rank failed to start with {type(cause).__name__}: {cause}") from None
    except ray.exceptions.RayError as error:
        raise ShardGroupLost(f"a rank failed to start with {type(error).__name__}") from None


async def start_group(settings: RankSettings, health: HealthSettings, on_lost: Callable[[ShardGroup, str], None]) -> ShardGroup:
    """Start the ranks, load the model, connect. Raises ShardGroupLost; then nothing of the group is left."""
    begin_s = time.monotonic()
    ranks = _Ranks(settings)
    try:
        async with asyncio.timeout(health.start_timeout_s):
            group = await _connect(ranks, settings, health, on_lost)
    except BaseException as error:
        ranks.kill()
        if isinstance(error, LinkClosed | OSError | TimeoutError):
            raise ShardGroupLost(f"the shard group did not come up: {type(error).__name__} {error}") from error
        raise
    log.info("shard group of %d ranks is up in %.1f s", settings.plan.ranks, time.monotonic() - begin_s)
    return group


async def _connect(
    ranks: _Ranks, settings: RankSettings, health: HealthSettings, on_lost: Callable[[ShardGroup, str], None]
) -> ShardGroup:
    placements: list[Placement] = await ranks.call("where")
    ranks.watch(placements)
    nodes = [place.node_id for place in placements]
    one_node = set(nodes) == {ranks.node_id}
    with tempfile.TemporaryDirectory(prefix="lionrock-store-") as directory:
        rendezvous = Rendezvous(str(Path(directory) / "store"))
        if not one_node:
            host = placements[0].node_address
            (port,) = await _all([ranks.actors[0].open_store.remote(host)])
            rendezvous = Rendezvous(None, host, port)
        calls = [actor.join.remote(rendezvous, nodes.count(node)) for actor, node in zip(ranks.actors, nodes, strict=True)]
        blocks = min(await _all(calls))
    specs = await ranks.call("allocate", blocks)
    listener = LinkListener(node_address=None if one_node else _node_address(), tls=settings.tls)
    try:
        links = await _attach(ranks, nodes, listener, health)
    finally:
        listener.close()
    return ShardGroup(
        links,
        specs[0],
        heartbeat_interval_s=health.heartbeat_interval_s,
        heartbeat_timeout_s=health.heartbeat_timeout_s,
        kill=ranks.kill,
        on_lost=on_lost,
    )


async def _attach(ranks: _Ranks, nodes: Sequence[str], listener: LinkListener, health: HealthSettings) -> list[Link]:
    address: LinkAddress = listener.address
    deadline_s = time.monotonic() + health.start_timeout_s
    accepting = asyncio.ensure_future(asyncio.to_thread(listener.accept, len(nodes), deadline_s))
    try:
        await _all([actor.attach.remote(address, node == ranks.node_id) for actor, node in zip(ranks.actors, nodes, strict=True)])
    except ShardGroupLost:
        listener.close()
        await asyncio.gather(accepting, return_exceptions=True)
        raise
    return await accepting
