"""One rank's process: device, process group, worker, and the loop that answers steps beside the methods that the group calls.

Steps run in a thread of their own, so that the process stays answerable, and another thread gives signs of life: a frozen process
gives none. Knows torch, links and the worker; not Ray, which calls these methods, nor policy.
"""

from __future__ import annotations

import datetime
import importlib
import logging
import os
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from lionrock.chassis.settings import TelemetrySettings
from lionrock.inference.engine.runner import RunnerSpec
from lionrock.inference.engine.sequence import SequenceId
from lionrock.inference.links import Kind, Link, LinkAddress, LinkClosed, LinkTls, connect
from lionrock.inference.spans import ENDED, emit_shard_span
from lionrock.planner.chips import chip
from lionrock.planner.plan import ShardPlan

if TYPE_CHECKING:
    from torch.distributed import TCPStore  # type: ignore[attr-defined]

    from lionrock.inference.model.worker import ShardWorker

log = logging.getLogger("lionrock.inference")

_IDLE_WAIT_S = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class RankSettings:
    """What every rank of a group is told. collective_interface: gloo's network interface, None: its choice."""

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


@dataclass(frozen=True, slots=True)
class Rendezvous:
    """Where the ranks of one group find each other: a file on their common node, else a store that rank 0 keeps."""

    file: str | None
    host: str | None = None
    port: int | None = None


class ShardProcess:
    """One rank. The group calls prepare (or the constructor does), join, allocate and attach, in that order."""

    def __init__(self, settings: RankSettings, rank: int, visible_devices: str | None = None) -> None:
        """Import what the chip needs. visible_devices: value for the chip's variable where Ray does not set it."""
        self._settings = settings
        self._rank = rank
        self._chip = chip(settings.plan.chip)
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

    def ping(self) -> bool:
        """Answer while steps run."""
        return True

    def open_store(self, host: str) -> int:
        """Keep the group's store (rank 0 of a group on several nodes). Returns its port."""
        from torch.distributed import TCPStore  # type: ignore[attr-defined]

        self._store = TCPStore(host, 0, len(self._settings.plan.shards), is_master=True, wait_for_workers=False)
        return int(self._store.port)

    def join(self, rendezvous: Rendezvous, local_ranks: int) -> int:
        """Form the process groups and load the weights. Returns how many KV blocks this rank can hold.

        local_ranks: ranks of the group on this node, which share its cores.
        Raises ShardGroupLost when a peer does not come, and what ShardWorker raises for a bad model.
        """
        import torch
        import torch.distributed as dist
        from torch.distributed import FileStore, Store, TCPStore  # type: ignore[attr-defined]

        from lionrock.inference.model import shared_memory
        from lionrock.inference.model.collectives import form_groups
        from lionrock.inference.model.worker import ShardWorker

        settings, plan = self._settings, self._settings.plan
        self._threads = settings.threads or max(1, len(os.sched_getaffinity(0)) // local_ranks)
        torch.set_num_threads(self._threads)
        timeout = datetime.timedelta(seconds=settings.collective_timeout_s)
        groups = None
        if plan.ranks > 1:
            store: Store
            if rendezvous.file is not None:
                store = FileStore(rendezvous.file, plan.ranks)
            else:
                assert rendezvous.host is not None
                assert rendezvous.port is not None
                store = self._store or TCPStore(rendezvous.host, rendezvous.port, plan.ranks, timeout=timeout)
            backend = settings.collective or self._chip.collective
            dist.init_process_group(backend, store=store, rank=self._rank, world_size=plan.ranks, timeout=timeout)
            one_node = local_ranks == plan.ranks and shared_memory.usable(torch.device(self._chip.torch_device))
            groups = form_groups(plan.tensor_parallel, plan.pipeline_parallel, timeout, shared_memory=one_node)
        worker = ShardWorker(settings.source, plan, self._rank, self._chip.torch_device, groups)
        worker.load()
        self._worker = worker
        return worker.kv_blocks_within(settings.kv_cache_bytes)

    def allocate(self, blocks: int) -> RunnerSpec:
        """Allocate the KV cache, the same number of blocks on every rank."""
        assert self._worker is not None, "join comes first"
        self._worker.allocate_kv_cache(blocks)
        return self._worker.spec()

    def attach(self, address: LinkAddress, same_node: bool) -> None:
        """Connect to the engine and answer steps from now on. Raises LinkClosed, OSError."""
        assert self._worker is not None, "join comes first"
        link = connect(address, self._rank, same_node=same_node, tls=self._settings.tls)
        leaving = threading.Event()
        for name, target, arguments in (
            ("lionrock-beat", self._beat, (link, leaving)),
            ("lionrock-rank", self._answer, (link, leaving, self._worker)),
        ):
            threading.Thread(target=target, args=arguments, name=name, daemon=True).start()

    def _beat(self, link: Link, leaving: threading.Event) -> None:
        """Give signs of life (a thread)."""
        while not leaving.wait(self._settings.heartbeat_interval_s):
            try:
                link.send(Kind.BEAT)
            except LinkClosed:
                return  # the other thread sees it too and ends the process

    def _answer(self, link: Link, leaving: threading.Event, worker: ShardWorker) -> None:
        """Answer steps until the engine goes away (a thread), then end the process: a rank alone is of no use."""
        import torch

        torch.set_num_threads(self._threads)
        try:
            while not leaving.is_set():
                link.wait(_IDLE_WAIT_S)
                for kind, payload in link.received():
                    self._handle(kind, payload, link, leaving, worker)
        except LinkClosed:
            log.info("the engine is gone; rank %d leaves", self._rank)
        except Exception as error:
            log.exception("rank %d failed", self._rank)
            try:
                link.send(Kind.FAILED, type(error).__name__.encode())
            except LinkClosed:
                log.info("the engine is gone; rank %d leaves", self._rank)
        leaving.set()
        self._telemetry.close()
        os._exit(0)

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
                    emit_shard_span(timings, traceparent.decode("ascii"), self._rank, self._settings.plan.chip)
            case Kind.CLOSE:
                leaving.set()
            case _:
                raise LinkClosed("the engine speaks another protocol")
