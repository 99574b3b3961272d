"""The process groups of one rank, and the few collectives that a step needs, timed, with one error for a lost peer.

Over any `torch.distributed` back end (gloo, nccl, hccl, …), and over shared memory where that is faster: the caller has
initialised the default group. Frozen peers show only when the group's time-out passes; whoever owns the ranks sets it low and
watches heartbeats.
"""

from __future__ import annotations

import datetime
import time
from collections.abc import Callable
from collections.abc import Sequence as Seq

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import ProcessGroup

from lionrock.inference.engine.errors import ShardGroupLost
from lionrock.inference.model.shared_memory import SharedSlots, add_up


class CollectiveClock:
    """Seconds spent inside collectives, waiting for peers included. On asynchronous devices: until the call returns."""

    __slots__ = ("seconds",)

    def __init__(self) -> None:
        self.seconds = 0.0

    def run(self, collective: Callable[[], object]) -> None:
        """Call and time. Raises ShardGroupLost when the back end fails."""
        begin = time.perf_counter()
        try:
            collective()
        except (RuntimeError, ValueError) as error:  # DistError is a RuntimeError; gloo raises bare ones too
            raise ShardGroupLost(f"a collective failed: {type(error).__name__}") from error
        finally:
            self.seconds += time.perf_counter() - begin


class TensorGroup:
    """The tensor-parallel ranks of one pipeline stage."""

    def __init__(self, group: ProcessGroup, clock: CollectiveClock, slots: SharedSlots | None = None) -> None:
        """Take the ranks' process group, and their shared memory where all are on CPUs of this node."""
        self._group = group
        self._clock = clock
        self._slots = slots
        self.size = dist.get_world_size(group)
        self.rank = dist.get_rank(group)

    def take_over(self, other: TensorGroup) -> None:
        """Go on over the process group of another one of the same shape, which is not used further."""
        assert (self.size, self.rank) == (other.size, other.rank), "the shape of the mesh does not change"
        self.close()
        self._group, self._slots = other._group, other._slots

    def close(self) -> None:
        """Let go of the peers; collectives fail from now on."""
        if self._slots is not None:
            self._slots.close()
        self._slots = None

    def all_reduce(self, x: Tensor) -> Tensor:
        """Sum over the ranks, in place."""
        slots = self._slots
        if slots is not None and slots.holds(x):
            self._clock.run(lambda: add_up(slots.exchange(x), x))
        else:
            self._clock.run(lambda: dist.all_reduce(x, group=self._group))
        return x

    def gather(self, x: Tensor) -> list[Tensor] | None:
        """Collect equal-shaped tensors on rank 0 of the group; None elsewhere."""
        slots = self._slots
        if slots is not None and slots.holds(x):
            found: list[Tensor] = []
            self._clock.run(lambda: found.extend(slots.exchange(x)))
            return [part.clone() for part in found] if self.rank == 0 else None
        into = [torch.empty_like(x) for _ in range(self.size)] if self.rank == 0 else None
        self._clock.run(lambda: dist.gather(x, into, group=self._group, group_dst=0))
        return into


class StageLink:
    """The same tensor rank of the stages before and after."""

    def __init__(self, group: ProcessGroup, clock: CollectiveClock) -> None:
        self.group = group
        self._clock = clock
        self.stage = dist.get_rank(group)
        self.stages = dist.get_world_size(group)

    def send(self, x: Tensor) -> None:
        """Pass the hidden state to the next stage."""
        self._clock.run(lambda: dist.send(x.contiguous(), group=self.group, group_dst=self.stage + 1))

    def receive(self, shape: Seq[int], dtype: torch.dtype, device: torch.device) -> Tensor:
        """Take the hidden state from the stage before."""
        x = torch.empty(tuple(shape), dtype=dtype, device=device)
        self._clock.run(lambda: dist.recv(x, group=self.group, group_src=self.stage - 1))
        return x


class RankGroups:
    """The groups of one rank in a TP × PP mesh, rank = stage × TP + tensor rank. A group of one rank is None."""

    def __init__(
        self, tensor: ProcessGroup | None = None, pipeline: ProcessGroup | None = None, slots: SharedSlots | None = None
    ) -> None:
        self.clock = CollectiveClock()
        self.tensor = None if tensor is None else TensorGroup(tensor, self.clock, slots)
        self.pipeline = None if pipeline is None else StageLink(pipeline, self.clock)

    def take_over(self, other: RankGroups) -> None:
        """Go on over the process groups of another mesh of the same shape: what holds a TensorGroup keeps it."""
        if self.tensor is not None and other.tensor is not None:
            self.tensor.take_over(other.tensor)
        self.pipeline = None if other.pipeline is None else StageLink(other.pipeline.group, self.clock)

    def leave(self) -> None:
        """End the process groups of this rank after a loss, so that it can form others with new peers."""
        if self.tensor is not None:
            self.tensor.close()
        if dist.is_initialized():
            dist.destroy_process_group()


def form_groups(
    tensor_parallel: int, pipeline_parallel: int, timeout: datetime.timedelta, *, shared_memory: bool = False
) -> RankGroups:
    """Make this rank's groups; every rank of the initialised default group calls this at the same time.

    shared_memory: all ranks are on this node, and shared_memory.usable for their device.
    Raises ShardGroupLost when a peer does not come.
    """
    rank = dist.get_rank()
    assert dist.get_world_size() == tensor_parallel * pipeline_parallel, "the default group is not the mesh"
    tensor: ProcessGroup | None = None
    pipeline: ProcessGroup | None = None
    stages = [range(stage * tensor_parallel, (stage + 1) * tensor_parallel) for stage in range(pipeline_parallel)]
    columns = [range(column, tensor_parallel * pipeline_parallel, tensor_parallel) for column in range(tensor_parallel)]
    try:
        for ranks in stages if tensor_parallel > 1 else ():
            group = dist.new_group(list(ranks), timeout=timeout)
            tensor = group if rank in ranks else tensor
        for ranks in columns if pipeline_parallel > 1 else ():
            group = dist.new_group(list(ranks), timeout=timeout)
            pipeline = group if rank in ranks else pipeline
        slots = SharedSlots(tensor, timeout) if shared_memory and tensor is not None else None
    except (RuntimeError, OSError) as error:
        raise ShardGroupLost(f"the process groups did not form: {type(error).__name__}") from error
    return RankGroups(tensor, pipeline, slots)
