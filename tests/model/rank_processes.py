"""Ranks of a shard group as plain processes over gloo, which replay recorded steps. What each rank runs is at the top level."""

from __future__ import annotations

import datetime
import os
import queue
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing import resource_tracker
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from small_models import LocalRunner, engine_over, plan_for, run_requests

from lionrock.inference.engine.batch import StepBatch, StepResult
from lionrock.inference.engine.errors import ShardGroupLost
from lionrock.inference.engine.runner import RunnerSpec
from lionrock.inference.engine.sequence import Request, SequenceId
from lionrock.inference.model.collectives import form_groups
from lionrock.inference.model.weights import open_weights
from lionrock.inference.model.worker import ShardTimings, ShardWorker
from lionrock.planner.plan import ShardPlan

TIMEOUT = datetime.timedelta(seconds=30)


@dataclass(frozen=True, slots=True)
class Job:
    """Run these steps on a model under a plan. lose_rank: this one leaves before the last step."""

    path: Path
    tensor_parallel: int
    pipeline_parallel: int
    kv_blocks: int
    steps: tuple[bytes, ...]
    lose_rank: int | None = None
    shared_memory: bool = False
    rank_weights: tuple[float, ...] | None = None
    """Relative share of each layer a tensor rank; None: even."""
    stage_weights: tuple[float, ...] | None = None
    """Relative share of the layers a stage; None: even."""
    weight_dtype: str | None = None

    @property
    def plan(self) -> ShardPlan:
        """The planner's plan."""
        return plan_for(
            open_weights(self.path).config,
            tensor_parallel=self.tensor_parallel,
            pipeline_parallel=self.pipeline_parallel,
            rank_weights=self.rank_weights,
            stage_weights=self.stage_weights,
            weight_dtype=self.weight_dtype,
        )


@dataclass(frozen=True, slots=True)
class RankReport:
    """What one rank saw."""

    rank: int
    results: tuple[StepResult | None, ...]
    weight_bytes: int
    spec: RunnerSpec
    lost: bool
    timings: ShardTimings | None


class Recorder:
    """A ModelRunner that keeps what passed through another one."""

    def __init__(self, runner: LocalRunner) -> None:
        self._runner = runner
        self.spec = runner.spec
        self.steps: list[tuple[bytes, StepResult]] = []

    def execute(self, batch: StepBatch) -> StepResult:
        result = self._runner.execute(batch)
        self.steps.append((batch.encode(), result))
        return result

    def close(self) -> None:
        self._runner.close()


def record(runner: LocalRunner, requests: Sequence[Request], **limits: int) -> tuple[tuple[bytes, ...], tuple[StepResult, ...]]:
    """Steps of an undisturbed run on one rank and their results."""
    recorder = Recorder(runner)
    run_requests(engine_over(recorder, **limits), requests)
    return tuple(step for step, _ in recorder.steps), tuple(result for _, result in recorder.steps)


def run_ranks(jobs: Sequence[Job], store: Path) -> list[list[RankReport]]:
    """Run jobs of one world size one after the other in the same processes; a report a job and rank."""
    world = jobs[0].tensor_parallel * jobs[0].pipeline_parallel
    with warnings.catch_warnings():  # a tracker that another test took along with its processes is started again, with a warning
        warnings.simplefilter("ignore")
        resource_tracker.ensure_running()
    context = mp.get_context("spawn")
    reports: Any = context.Queue()
    processes = [context.Process(target=_rank, args=(rank, world, jobs, store, reports), daemon=True) for rank in range(world)]
    for process in processes:
        process.start()
    by_job: list[list[RankReport]] = [[] for _ in jobs]
    try:
        for _ in range(world * len(jobs)):
            index, report = reports.get(timeout=100)
            by_job[index].append(report)
    except queue.Empty:
        raise AssertionError(f"a rank did not report; exit codes {[process.exitcode for process in processes]}") from None
    finally:
        for process in processes:
            process.join(timeout=10)
            process.kill()
    return [sorted(ranks, key=lambda report: report.rank) for ranks in by_job]


def _rank(rank: int, world: int, jobs: Sequence[Job], store: Path, reports: Any) -> None:
    torch.set_num_threads(1)
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=world, timeout=TIMEOUT)
    for index, job in enumerate(jobs):
        reports.put((index, _run(rank, job)))
    reports.close()
    reports.join_thread()
    os._exit(0)  # a lost peer would hold up an orderly end


def _run(rank: int, job: Job) -> RankReport:
    plan = job.plan
    groups = form_groups(job.tensor_parallel, job.pipeline_parallel, TIMEOUT, shared_memory=job.shared_memory)
    worker = ShardWorker(job.path, plan, rank, groups=groups)
    weight_bytes = worker.load()
    worker.allocate_kv_cache(job.kv_blocks)
    results: list[StepResult | None] = []
    lost = False
    for number, step in enumerate(job.steps):
        if rank == job.lose_rank and number == len(job.steps) - 1:
            break
        try:
            encoded = worker.execute(step)
        except ShardGroupLost:
            lost = True
            break
        results.append(None if encoded is None else StepResult.decode(encoded))
    return RankReport(rank, tuple(results), weight_bytes, worker.spec(), lost, worker.finished_timings(SequenceId(0)))
