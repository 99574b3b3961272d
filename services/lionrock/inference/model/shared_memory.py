"""Small collectives between ranks on CPUs of one node, over shared memory.

A decoding step makes two all-reduces a layer of a few kilobytes each. Over loopback sockets each costs two thread wake-ups,
which take longer than the arithmetic between them. Here a rank copies its part into its slot, counts up, and watches the others'
counters.

Each operation uses one of two slots a rank in turn. A rank that writes slot n + 2 has seen all counters at n + 1, and so knows that
everybody has read slot n. Relies on stores being seen in program order, as x86 guarantees (Intel SDM 3A, section 9.2.2; AMD64
vol. 2, section 7.2); on other processors the back end's own collectives are used. Knows no model.
"""

from __future__ import annotations

import datetime
import mmap
import os
import platform
import select
import tempfile
import time

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import ProcessGroup

from lionrock.inference.engine.errors import ShardGroupLost

SLOT_BYTES = 1 << 20
"""Largest tensor that a slot holds; larger ones are the back end's business."""
_LINE = 64  # bytes of a cache line: two counters on one would slow each other down
_SPINS = 200  # looks at the counters before the processor is offered to others
_LOOKS_BETWEEN_CHECKS = 2000


def usable(device: torch.device) -> bool:
    """Whether ranks on this device of one node can use it."""
    return device.type == "cpu" and platform.machine() in ("x86_64", "AMD64")


def _make_file(length: int) -> str:
    descriptor, name = tempfile.mkstemp(prefix="lionrock-", dir="/dev/shm")
    try:
        os.ftruncate(descriptor, length)
    finally:
        os.close(descriptor)
    return name


class SharedSlots:
    """One rank's view of the slots of all ranks of a group on this node."""

    def __init__(self, group: ProcessGroup, timeout: datetime.timedelta) -> None:
        """Map memory that rank 0 of the group makes; all its ranks call this at the same time. Raises RuntimeError, OSError."""
        self.size, self.rank = dist.get_world_size(group), dist.get_rank(group)
        self._timeout_s = timeout.total_seconds()
        length = self.size * (_LINE + 2 * SLOT_BYTES)
        pids: list[int] = [0] * self.size
        names = [_make_file(length) if self.rank == 0 else ""]
        try:
            dist.broadcast_object_list(names, group=group, group_src=0)
            descriptor = os.open(names[0], os.O_RDWR)
            try:
                self._memory = mmap.mmap(descriptor, length)
            finally:
                os.close(descriptor)
            dist.all_gather_object(pids, os.getpid(), group=group)  # after it all have mapped the file
        finally:
            if self.rank == 0:
                os.unlink(names[0])
        self._counters = memoryview(self._memory).cast("q")
        data = torch.frombuffer(self._memory, dtype=torch.uint8, offset=self.size * _LINE)
        self._slots = data.view(2, self.size, SLOT_BYTES)
        self._done = 0
        self._peers = select.poll()
        self._processes = [os.pidfd_open(pid) for pid in pids if pid != os.getpid()]
        for process in self._processes:
            self._peers.register(process, select.POLLIN)  # readable once the process has ended

    def holds(self, x: Tensor) -> bool:
        """Whether a tensor fits a slot."""
        return x.numel() * x.element_size() <= SLOT_BYTES

    def exchange(self, x: Tensor) -> list[Tensor]:
        """Show x to all ranks and see theirs: one view a rank, in rank order, valid until the next but one exchange.

        x: any shape, the same on every rank. Raises ShardGroupLost when a peer has ended or does not come in time.
        """
        self._done += 1
        slots = self._slots[self._done % 2]
        length = x.numel() * x.element_size()
        mine = slots[self.rank][:length].view(x.dtype).view(x.shape)
        mine.copy_(x)
        step = _LINE // 8
        self._counters[self.rank * step] = self._done
        for rank in range(self.size):
            self._await(rank * step)
        return [slots[rank][:length].view(x.dtype).view(x.shape) for rank in range(self.size)]

    def close(self) -> None:
        """Let go of the peers' processes. The memory goes with the last tensor over it."""
        processes, self._processes = self._processes, []
        for process in processes:
            self._peers.unregister(process)
            os.close(process)

    def _await(self, counter: int) -> None:
        counters, wanted = self._counters, self._done
        for _ in range(_SPINS):
            if counters[counter] >= wanted:
                return
        deadline_s = time.monotonic() + self._timeout_s
        while True:
            for _ in range(_LOOKS_BETWEEN_CHECKS):
                if counters[counter] >= wanted:
                    return
                os.sched_yield()
            if self._peers.poll(0):
                raise ShardGroupLost("a rank of the tensor group has ended")
            if time.monotonic() > deadline_s:
                raise ShardGroupLost("a rank of the tensor group does not come to a collective")


def add_up(parts: list[Tensor], into: Tensor) -> None:
    """Sum in rank order, so that every rank gets the same bits; more than two parts of a short type in float32."""
    if len(parts) == 2:
        torch.add(parts[0], parts[1], out=into)
    else:
        into.copy_(torch.stack(parts).sum(0, dtype=torch.float32))
