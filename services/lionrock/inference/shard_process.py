"""One rank's process: device, process group, worker, and the loop that answers steps beside the methods that the group calls.

Steps run in a thread of their own, so that the process stays answerable, and another thread gives signs of life: a frozen process
gives none. When another rank is lost, a rank over gloo leaves the collective, keeps its weights and stands by to form a group with
new peers; over other back ends, whose collectives cannot be left safely, it ends. Knows torch, links and the worker; not who calls
these methods, nor policy.
"""

from __future__ import annotations

import contextlib
import datetime
import importlib
import logging
import os
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from lionrock.chassis.settings import TelemetrySettings
from lionrock.inference.engine.errors import ShardGroupLost
from lionrock.inference.engine.runner import RunnerSpec
from lionrock.inference.engine.sequence import SequenceId
from lionrock.inference.links import Kind, Link, LinkAddress, LinkClosed, LinkTls, connect
from lionrock.inference.loading import LoadProgress
from lionrock.inference.model.native.build import NativeKernels
from lionrock.inference.spans import ENDED, emit_shard_span
from lionrock.planner.chips import Chip
from lionrock.planner.plan import ShardPlan

if TYPE_CHECKING:
    from torch.distributed import TCPStore  # type: ignore[attr-defined]

    from lionrock.inference.model.collectives import RankGroups
    from lionrock.inference.model.worker import ShardWorker

log = logging.getLogger("lionrock.inference")

_IDLE_WAIT_S = 1.0
STAND_BY_S = 60.0
"""Longest wait of a rank without a group; then its owner is gone too."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RankSettings:
    """What every rank of a group is told.

    collective_interface: gloo's network interface, None: its choice. native_directory: of compiled kernels, None: the user's cache.
    """

    chip: Chip
    plan: ShardPlan
    source: Path
    collective: str | None
    collective_interface: str | None
    collective_timeout_s: float
    threads: int | None
    kv_cache_bytes: int
    heartbeat_interval_s: float
    telemetry: TelemetrySettings
    tls: LinkTls | None
    native_kernels: NativeKernels = "auto"
    native_directory: Path | None = None


@dataclass(frozen=True, slots=True)
class Placement:
    """Where a rank's process runs."""

    node_id: str
    node_address: str
    pid: int


@dataclass(frozen=True, slots=True)
class Rendezvous:
    """Where the ranks of one group find each other: a file on their common node, else a store that rank 0 keeps."""

    file: str | None
    host: str | None = None
    port: int | None = None


class ShardProcess:
    """One rank, or a spare that becomes one. A group calls attach, join and allocate in that order, and stand_by after a loss."""

    def __init__(self, settings: RankSettings, visible_devices: str | None = None) -> None:
        """Import what the chip needs. visible_devices: value for the chip's variable where Ray does not set it."""
        self._settings = settings
        self._rank: int | None = None
        self._chip = settings.chip
        if self._chip.visible_devices is not None and visible_devices is not None:
            os.environ[self._chip.visible_devices] = visible_devices
        if settings.collective_interface is not None:
            os.environ["GLOO_SOCKET_IFNAME"] = settings.collective_interface
        import torch  # noqa: F401  # the slow part of a start, before the group waits for it

        if self._chip.torch_module is not None:
            importlib.import_module(self._chip.torch_module)
        from lionrock.chassis.telemetry import start_telemetry

        self._telemetry = start_telemetry("inference-shard", settings.telemetry)
        self._store: TCPStore | None = None
        self._threads = 1
        self._worker: ShardWorker | None = None
        self._groups: RankGroups | None = None
        self._link: Link | None = None
        self._leaving = threading.Event()
        self._answering: threading.Thread | None = None
        self._orphaned: threading.Timer | None = None
        self._loading: LoadProgress | None = None

    @property
    def _stands_by(self) -> bool:
        """Whether it can outlive its group: gloo's collectives fail when a peer ends, and hold nothing on a device."""
        return (self._settings.collective or self._chip.collective) == "gloo"

    def ping(self) -> bool:
        """Answer while steps run."""
        return True

    def where(self) -> Placement:
        """Return this process's node and pid; all processes that know no nodes are on one."""
        return Placement("here", "127.0.0.1", os.getpid())

    def open_store(self, host: str) -> int:
        """Keep the group's store (rank 0 of a group on several nodes). Returns its port."""
        from torch.distributed import TCPStore  # type: ignore[attr-defined]

        self._store = TCPStore(host, 0, len(self._settings.plan.shards), is_master=True, wait_for_workers=False)
        return int(self._store.port)

    def attach(self, rank: int, address: LinkAddress, same_node: bool) -> None:
        """Become that rank: connect to the engine and give signs of life from now on. Raises LinkClosed, OSError."""
        assert self._rank in (None, rank), "a rank that has loaded its weights stays what it is"
        self._rank = rank
        self._adopt()
        self._leaving = threading.Event()
        self._link = link = connect(address, rank, same_node=same_node, tls=self._settings.tls)
        threading.Thread(target=self._beat, args=(link, self._leaving), name="lionrock-beat", daemon=True).start()

    def join(self, rendezvous: Rendezvous, local_ranks: int) -> int:
        """Form the process groups, and load the weights unless they are there. Returns how many KV blocks this rank can hold.

        local_ranks: ranks of the group on this node, which share its cores.
        Raises ShardGroupLost when a peer does not come, and what ShardWorker raises for a bad model.
        """
        import torch
        import torch.distributed as dist
        from torch.distributed import DistError, FileStore, Store, TCPStore  # type: ignore[attr-defined]

        from lionrock.inference.model import shared_memory
        from lionrock.inference.model.collectives import RankGroups, form_groups
        from lionrock.inference.model.worker import ShardWorker

        settings, plan, rank = self._settings, self._settings.plan, self._rank
        assert rank is not None, "attach comes first"
        self._threads = settings.threads or max(1, len(os.sched_getaffinity(0)) // local_ranks)
        torch.set_num_threads(self._threads)
        timeout = datetime.timedelta(seconds=settings.collective_timeout_s)
        groups = RankGroups()
        if plan.ranks > 1:
            store: Store
            if rendezvous.file is not None:
                store = FileStore(rendezvous.file, plan.ranks)
            else:
                assert rendezvous.host is not None
                assert rendezvous.port is not None
                store = self._store or TCPStore(rendezvous.host, rendezvous.port, plan.ranks, timeout=timeout)
            backend = settings.collective or self._chip.collective
            try:
                dist.init_process_group(backend, store=store, rank=rank, world_size=plan.ranks, timeout=timeout)
            except DistError as error:
                raise ShardGroupLost(f"the ranks did not find each other: {type(error).__name__}") from error
            one_node = local_ranks == plan.ranks and shared_memory.usable(torch.device(self._chip.torch_device))
            groups = form_groups(plan.tensor_parallel, plan.pipeline_parallel, timeout, shared_memory=one_node)
        if self._worker is None or self._groups is None:
            worker = ShardWorker(
                settings.source, plan, rank, self._chip.torch_device, groups,
                native_kernels=settings.native_kernels, native_directory=settings.native_directory,
            )  # fmt: skip
            self._loading = LoadProgress(rank, plan.shards[rank].weight_bytes)
            worker.load(self._loading)
            self._loading = None
            self._worker, self._groups = worker, groups
        else:
            self._worker.rejoin(groups)
        return self._worker.kv_blocks_within(settings.kv_cache_bytes)

    def allocate(self, blocks: int) -> RunnerSpec:
        """Allocate the KV cache, the same number of blocks on every rank, and answer steps from now on."""
        assert self._worker is not None, "join comes first"
        assert self._link is not None, "attach comes first"
        self._worker.allocate_kv_cache(blocks)
        arguments = (self._link, self._leaving, self._worker)
        self._answering = threading.Thread(target=self._answer, args=arguments, name="lionrock-rank", daemon=True)
        self._answering.start()
        return self._worker.spec()

    def stand_by(self, timeout_s: float) -> bool:
        """Leave the group that was lost. Returns whether this rank can form another one: it has left and kept its weights."""
        if not self._stands_by or self._answering is None or self._link is None or self._groups is None:
            return False
        self._answering.join(timeout_s)  # a step fails as soon as the lost rank has ended
        if self._answering.is_alive():
            return False
        self._link.close()
        self._groups.leave()
        return True

    def _adopt(self) -> None:
        """Note that there is a group again."""
        if self._orphaned is not None:
            self._orphaned.cancel()
        self._orphaned = None

    def _orphan(self) -> None:
        """End the process unless a group wants it soon: a rank alone is of no use."""
        self._adopt()
        self._orphaned = threading.Timer(STAND_BY_S, os._exit, (0,))
        self._orphaned.daemon = True
        self._orphaned.start()

    def _beat(self, link: Link, leaving: threading.Event) -> None:
        """Give signs of life (a thread)."""
        while not leaving.wait(self._settings.heartbeat_interval_s):
            try:
                loading = self._loading
                link.send(Kind.BEAT, b"" if loading is None else bytes((loading.percent,)))
            except LinkClosed:
                return  # the other thread sees it too

    def _answer(self, link: Link, leaving: threading.Event, worker: ShardWorker) -> None:
        """Answer steps until the engine goes away or another rank is lost (a thread), then stand by or end the process."""
        import torch

        torch.set_num_threads(self._threads)
        ends = not self._stands_by
        try:
            while not leaving.is_set():
                link.wait(_IDLE_WAIT_S)
                for kind, payload in link.received():
                    self._handle(kind, payload, link, leaving, worker)
            ends = True
        except LinkClosed:
            log.info("the engine has given up the group of rank %d", self._rank)
        except ShardGroupLost as error:
            log.warning("rank %d lost its peers: %s", self._rank, error)
            self._tell(link, Kind.PEER_LOST)
        except Exception as error:
            log.exception("rank %d failed", self._rank)
            self._tell(link, Kind.FAILED, type(error).__name__.encode())
            ends = True
        leaving.set()
        if ends:
            self._telemetry.close()
            os._exit(0)
        self._orphan()

    def _tell(self, link: Link, kind: Kind, payload: bytes = b"") -> None:
        with contextlib.suppress(LinkClosed):  # then the engine knows more than we do
            link.send(kind, payload)

    def _handle(self, kind: Kind, payload: bytes, link: Link, leaving: threading.Event, worker: ShardWorker) -> None:
        match kind:
            case Kind.STEP:
                result = worker.execute(payload)
                if result is not None:
                    link.send(Kind.RESULT, result)
            case Kind.ENDED:
                sequence_id, traceparent = ENDED.unpack(payload)
                timings = worker.finished_timings(SequenceId(sequence_id))
                if timings is not None:
                    emit_shard_span(timings, traceparent.decode("ascii"), worker.shard.rank, self._settings.plan.chip)
            case Kind.CLOSE:
                leaving.set()
            case _:
                raise LinkClosed("the engine speaks another protocol")
