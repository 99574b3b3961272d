"""Builds the shard groups of one replica, one after the other, from processes that outlive a group where they can.

A start of a rank is mostly the start of its process, PyTorch's import and the loading of weights. So after a loss the ranks that
are well stand by and keep their weights, and a spare, a process that has imported PyTorch already, takes the place of the lost one.
Signs of life are watched from the moment at which a rank is attached: a rank that freezes while it loads holds nobody up for long.

Knows ranks by what it can ask of them; not where they come from (`shard_actors`: Ray; `local_ranks`: this machine).
"""

from __future__ import annotations

import asyncio
import logging
import tempfile
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Protocol, TypeVar

from lionrock.inference.engine.errors import ShardGroupLost
from lionrock.inference.engine.runner import RunnerSpec
from lionrock.inference.links import Kind, Link, LinkAddress, LinkClosed, LinkListener
from lionrock.inference.settings import HealthSettings
from lionrock.inference.shard_process import Placement, RankSettings, Rendezvous
from lionrock.inference.sharding import ShardGroup

log = logging.getLogger("lionrock.inference")

_STAND_BY_S = 2.0
_PING_S = 1.0
_ATTACH_S = 10.0
_LOADING_SILENCE = 4.0
"""How many heartbeat time-outs a rank may be silent for while it loads: imports and allocations hold Python's lock."""


class RankProcess(Protocol):
    """The process of a rank, or of a spare. Every method raises ShardGroupLost when it has ended, or failed."""

    async def place(self) -> Placement:
        """Wait until it runs and return where. Called first, and once."""
        ...

    async def call(self, method: str, *arguments: object) -> Any:
        """Call a method of its ShardProcess."""
        ...

    def kill(self) -> None:
        """End it, whatever it does, from any thread. Does not raise; may be called twice."""
        ...


class SpawnRank(Protocol):
    """Begins to start processes."""

    def __call__(self, rank: int | None) -> RankProcess:
        """Start the process of a rank, or a spare on this node (None)."""
        ...


@dataclass(frozen=True, slots=True)
class _Started:
    """A process, and where it runs once it does."""

    process: RankProcess
    placing: asyncio.Task[Placement]

    def kill(self) -> None:
        """End it (on the event loop)."""
        self.placing.cancel()
        self.process.kill()


class GroupBuilder:
    """Owns the processes of one replica's ranks."""

    def __init__(
        self,
        settings: RankSettings,
        health: HealthSettings,
        spawn: SpawnRank,
        *,
        node_id: str,
        node_address: str,
        restock_after_s: float = 5.0,
    ) -> None:
        """node_id, node_address: where this process runs, in the words of `RankProcess.place`.

        restock_after_s: time between a group's start and that of spares, whose imports would slow its first answers down.
        """
        self._settings = settings
        self._health = health
        self._spawn = spawn
        self._node_id = node_id
        self._node_address = node_address
        self._restock_after_s = restock_after_s
        self._processes: dict[int, RankProcess] = {}
        self._placements: dict[int, Placement] = {}
        self._spares: list[_Started] = []
        self._restocking: asyncio.TimerHandle | None = None
        self._longest_place_s = 0.0
        self._place_limit_s = health.process_start_timeout_s
        self._loaded: dict[int, int] = {}
        # A spare must be able to become any rank: so no devices that are chosen before the chip's module is imported.
        self._wanted_spares = health.warm_spares if settings.chip.visible_devices is None else 0

    @property
    def processes(self) -> Mapping[int, RankProcess]:
        """Those of the present group, or of the one being built, by rank."""
        return MappingProxyType(self._processes)

    @property
    def loaded_percent(self) -> int | None:
        """How much of its weights the slowest rank has read; None while none is loading."""
        return min(self._loaded.values(), default=None)

    async def build(self, on_lost: Callable[[ShardGroup, str], None]) -> ShardGroup:
        """Start or restart what is missing, load, connect. Raises ShardGroupLost; then no rank is left."""
        begin_s = time.monotonic()
        try:
            async with asyncio.timeout(self._health.start_timeout_s):
                kept = await self._gather()
                group = await self._connect(on_lost)
        except BaseException as error:
            self._kill_ranks()
            if isinstance(error, LinkClosed | OSError | TimeoutError):
                raise ShardGroupLost(f"the shard group did not come up: {type(error).__name__} {error}") from error
            raise
        took_s = time.monotonic() - begin_s
        log.info("shard group of %d ranks, %d of them kept, is up in %.2f s", len(self._processes), kept, took_s)
        if self._restocking is not None:
            self._restocking.cancel()
        self._restocking = asyncio.get_running_loop().call_later(self._restock_after_s, self._restock)
        return group

    async def close(self) -> None:
        """End every process."""
        if self._restocking is not None:
            self._restocking.cancel()
        self._kill_ranks()
        for spare in self._spares:
            spare.kill()
        self._spares.clear()

    # ---- processes -------------------------------------------------------------------------------------------------------

    async def _gather(self) -> int:
        """Have a process for every rank; returns how many of them were kept."""
        ranks = range(self._settings.plan.ranks)
        standing = await asyncio.gather(*(self._stand_by(rank) for rank in self._processes))
        for rank, stands in zip(tuple(self._processes), standing, strict=True):
            if not stands:
                self._processes.pop(rank).kill()
                self._placements.pop(rank, None)
        missing = [rank for rank in ranks if rank not in self._processes]
        placing: list[asyncio.Task[Placement]] = []
        for rank in missing:
            started = await self._take_spare() or self._start(rank)
            self._processes[rank] = started.process
            placing.append(started.placing)
        self._placements.update(zip(missing, await asyncio.gather(*placing), strict=True))
        return len(ranks) - len(missing)

    def _start(self, rank: int | None) -> _Started:
        process = self._spawn(rank)
        placing = asyncio.create_task(self._place(process))
        placing.add_done_callback(lambda task: task.cancelled() or task.exception())  # a spare's failure waits for its use
        return _Started(process, placing)

    async def _place(self, process: RankProcess) -> Placement:
        """Wait until a process runs, not much longer than others took: one that freezes in its imports gives no other sign."""
        begin_s = time.monotonic()
        try:
            async with asyncio.timeout(self._place_limit_s):
                placement = await process.place()
        except TimeoutError:
            process.kill()
            self._place_limit_s = min(self._health.process_start_timeout_s, 2 * self._place_limit_s)  # the machine may be slow
            raise ShardGroupLost("the process of a rank did not start in time") from None
        self._longest_place_s = max(self._longest_place_s, time.monotonic() - begin_s)
        self._place_limit_s = min(self._health.process_start_timeout_s, 3 * self._longest_place_s + 2)
        return placement

    async def _stand_by(self, rank: int) -> bool:
        try:
            async with asyncio.timeout(2 * _STAND_BY_S):
                return bool(await self._processes[rank].call("stand_by", _STAND_BY_S))
        except (ShardGroupLost, TimeoutError):
            return False

    async def _take_spare(self) -> _Started | None:
        while self._spares:
            spare = self._spares.pop(0)
            if not spare.placing.done():
                return spare  # begun before any other could be
            if await self._is_well(spare):
                return spare
            spare.kill()
        return None

    async def _is_well(self, spare: _Started) -> bool:
        try:
            await spare.placing
            async with asyncio.timeout(_PING_S):
                await spare.process.call("ping")
        except (ShardGroupLost, TimeoutError) as error:
            log.warning("a spare rank is of no use: %s", error)
            return False
        return True

    def _restock(self) -> None:
        """Start spares, some time after a group, which they would slow down."""
        if {placement.node_id for placement in self._placements.values()} == {self._node_id}:
            self._spares += [self._start(None) for _ in range(self._wanted_spares - len(self._spares))]

    def _kill(self, ranks: frozenset[int]) -> None:
        """End these processes (any thread); `_gather` finds out."""
        for rank, process in tuple(self._processes.items()):
            if rank in ranks:
                process.kill()

    def _kill_ranks(self) -> None:
        for process in self._processes.values():
            process.kill()
        self._processes.clear()
        self._placements.clear()

    # ---- a group ---------------------------------------------------------------------------------------------------------

    async def _connect(self, on_lost: Callable[[ShardGroup, str], None]) -> ShardGroup:
        ranks = [self._processes[rank] for rank in sorted(self._processes)]
        nodes = [self._placements[rank].node_id for rank in sorted(self._processes)]
        one_node = set(nodes) == {self._node_id}
        listener = LinkListener(node_address=None if one_node else self._node_address, tls=self._settings.tls)
        try:
            links = await self._attach(ranks, nodes, listener)
        finally:
            listener.close()
        try:
            spec = await _while_alive(links, self._health, self._load(ranks, nodes), self._loaded)
        except BaseException:
            for link in links:
                link.close()
            raise
        return ShardGroup(
            links,
            spec,
            heartbeat_interval_s=self._health.heartbeat_interval_s,
            heartbeat_timeout_s=self._health.heartbeat_timeout_s,
            kill=self._kill,
            on_lost=on_lost,
        )

    async def _attach(self, ranks: Sequence[RankProcess], nodes: Sequence[str], listener: LinkListener) -> list[Link]:
        address: LinkAddress = listener.address
        deadline_s = time.monotonic() + self._health.start_timeout_s
        accepting = asyncio.ensure_future(asyncio.to_thread(listener.accept, len(ranks), deadline_s))
        calls = [process.call("attach", rank, address, nodes[rank] == self._node_id) for rank, process in enumerate(ranks)]
        try:
            async with asyncio.timeout(_ATTACH_S):
                await asyncio.gather(*calls)
                return await accepting
        except BaseException:
            listener.close()
            (accepted,) = await asyncio.gather(accepting, return_exceptions=True)
            for link in accepted if isinstance(accepted, list) else ():
                link.close()
            raise

    async def _load(self, ranks: Sequence[RankProcess], nodes: Sequence[str]) -> RunnerSpec:
        with tempfile.TemporaryDirectory(prefix="lionrock-store-") as directory:
            rendezvous = Rendezvous(str(Path(directory) / "store"))
            if set(nodes) != {self._node_id}:
                host = self._placements[0].node_address
                rendezvous = Rendezvous(None, host, await ranks[0].call("open_store", host))
            joins = [process.call("join", rendezvous, nodes.count(node)) for process, node in zip(ranks, nodes, strict=True)]
            blocks = min(await asyncio.gather(*joins))
        specs: list[RunnerSpec] = await asyncio.gather(*(process.call("allocate", blocks) for process in ranks))
        return specs[0]


_T = TypeVar("_T")


async def _while_alive(links: Sequence[Link], health: HealthSettings, work: Coroutine[Any, Any, _T], loaded: dict[int, int]) -> _T:
    """Await work while every rank gives signs of life. Raises what the work raises, or ShardGroupLost.

    loaded: takes the percentages of the ranks that load, and is empty afterwards.
    """
    task = asyncio.create_task(work)
    seen_s = [time.monotonic()] * len(links)
    try:
        while not task.done():
            await asyncio.wait((task,), timeout=health.heartbeat_interval_s)
            now_s = time.monotonic()
            for rank, link in enumerate(links):
                try:
                    for kind, payload in link.received():
                        seen_s[rank] = now_s
                        if kind is Kind.BEAT and payload:
                            loaded[rank] = payload[0]
                except LinkClosed:
                    if not task.done():
                        raise ShardGroupLost(f"rank {rank} died while the group was built") from None
                if now_s - seen_s[rank] > _LOADING_SILENCE * health.heartbeat_timeout_s and not task.done():
                    raise ShardGroupLost(f"rank {rank} gave no sign of life while the group was built")
        return task.result()
    finally:
        loaded.clear()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
