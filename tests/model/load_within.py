"""Loads one rank under a hard limit of its memory, in a process of its own: `python load_within.py JOB`, a LoadJob as JSON.

The limit is RLIMIT_DATA, which the kernel enforces on all private writable mappings: heap, anonymous memory, and the mapped files
of weights, which are mapped before the limit is set. What lies in the page cache is not a process's own and does not count.
Prints the bytes that the rank holds, or leaves with status 3 when the limit was reached.
"""

from __future__ import annotations

import json
import resource
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

import torch
from small_models import plan_for

from lionrock.inference.model.collectives import RankGroups
from lionrock.inference.model.weights import open_weights
from lionrock.inference.model.worker import ShardWorker
from lionrock.planner.plan import ShardPlan

LIMIT_REACHED = 3


@dataclass(frozen=True, slots=True)
class LoadJob:
    """Load a rank with as much memory as its weights take, and so many bytes more."""

    path: str
    more_bytes: int
    rank: int = 0
    dtype: str = "bfloat16"
    tensor_parallel: int = 1
    pipeline_parallel: int = 1

    @property
    def plan(self) -> ShardPlan:
        """The planner's plan."""
        return plan_for(
            open_weights(Path(self.path)).config,
            tensor_parallel=self.tensor_parallel,
            pipeline_parallel=self.pipeline_parallel,
            dtype=self.dtype,
        )

    def encode(self) -> str:
        """As this script's argument."""
        return json.dumps(asdict(self))

    def worker(self) -> ShardWorker:
        """The rank, not loaded, in a group that never communicates: nothing is computed here."""
        plan, groups = self.plan, RankGroups()
        shard = plan.shards[self.rank]
        places: Any = groups
        if plan.tensor_parallel > 1:
            places.tensor = Place(shard.tensor_rank, plan.tensor_parallel)
        if plan.pipeline_parallel > 1:
            places.pipeline = Place(shard.stage, plan.pipeline_parallel)
        return ShardWorker(Path(self.path), plan, self.rank, groups=groups)

    def largest_bytes(self) -> int:
        """Bytes of the rank's largest tensor."""
        item = {"bfloat16": 2, "float32": 4}[self.dtype]
        return item * max(weight.numel for weight in self.worker()._model.weights())


@dataclass(frozen=True, slots=True)
class Place:
    """A rank's place in a group."""

    rank: int
    size: int


def private_bytes() -> int:
    """What RLIMIT_DATA counts."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmData:"):
            return int(line.split()[1]) * 1024
    raise AssertionError("the kernel reports VmData")


def main(job: LoadJob) -> int:
    """Load. Returns the exit status."""
    torch.set_num_threads(1)
    worker, shard = job.worker(), job.plan.shards[job.rank]
    for weight in worker._model.weights():  # maps the files that hold them
        for part in weight.slices:
            worker._source.check(f"{part.name}.{weight.kind}", part.shape)
    limit = private_bytes() + shard.weight_bytes + shard.packed_bytes + job.more_bytes
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    try:
        held = worker.load()
    except (RuntimeError, MemoryError) as error:
        print(type(error).__name__, str(error)[:200], file=sys.stderr)
        return LIMIT_REACHED
    print(held)
    return 0


if __name__ == "__main__":
    sys.exit(main(LoadJob(**json.loads(sys.argv[1]))))
