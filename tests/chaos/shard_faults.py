"""Kills and freezes ranks of a live shard group under load, from one seed, and holds every stream against an undisturbed run.

    python tests/chaos/shard_faults.py --faults 200 --seed 1

Real rank processes over real links; the group is kept by a Replica, as in production, without Ray. Answers come as the frames that
a replica writes. Each stream must end in time: identical to the undisturbed run, or with UNAVAILABLE and a reason after a part of
it. Exits 1 and names the seed when one does not.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import logging
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

sys.path.insert(0, str(Path(__file__).parent.parent / "model"))

import grpc
from checkpoints import save_llama
from small_models import plan_for

from lionrock.chassis.errors import MeshError
from lionrock.chassis.settings import TelemetrySettings
from lionrock.common.v1 import context_pb2, model_pb2, sampling_pb2
from lionrock.inference.backends.torch_engine import TorchEngine
from lionrock.inference.engine.engine import EngineLimits
from lionrock.inference.errors import EngineFull, ShardGroupLost, decode_error
from lionrock.inference.group_builder import GroupBuilder, RankProcess
from lionrock.inference.local_ranks import LocalRank, local_group_builder
from lionrock.inference.model.weights import open_weights
from lionrock.inference.replica import RESPONSE, Replica
from lionrock.inference.settings import HealthSettings
from lionrock.inference.shard_process import RankSettings
from lionrock.inference.sharding import ShardGroup
from lionrock.inference.v1 import inference_pb2 as pb
from lionrock.planner.chips import chip

LIMITS = EngineLimits(max_running=6, max_waiting=8, max_step_tokens=48, max_answer_tokens=400)
HEALTH = HealthSettings(process_start_timeout_s=120, start_timeout_s=120, warm_spares=2)
STREAM_S = 600.0
"""Deadline of a stream."""
LOOK_S = 0.005
READY_S = 300.0
"""Longest wait for a group to come back."""
POOL = 40
"""Requests that a long run's load draws from."""

Moment = Literal["load", "prefill", "rebuild"]


@dataclass(frozen=True, slots=True)
class Fault:
    """What is done to which ranks, and when: under load, while a long prompt is prefilled, or while the group is built anew."""

    kind: Literal["kill", "freeze"]
    ranks: tuple[int, ...]
    moment: Moment
    pause_s: float
    """After the group is ready, or, for a rebuild, after the loss that causes it."""


@dataclass(slots=True)
class Report:
    """What a run saw."""

    identical: int = 0
    lost: Counter[str] = field(default_factory=Counter)
    """Messages of the streams that ended with UNAVAILABLE and a reason, after a part of their answer."""
    left: int = 0
    """Streams whose reader went away."""
    refused: int = 0
    """Requests that came while the queue was full."""
    wrong: list[str] = field(default_factory=list)
    detected_s: dict[str, list[float]] = field(default_factory=lambda: {"kill": [], "freeze": []})
    restart_s: list[float] = field(default_factory=list)
    """From a loss to the next ready group, rebuilds that were disturbed not counted."""

    @property
    def share(self) -> float:
        """Part of the streams that finished identical, of those that were read to their end."""
        return self.identical / max(1, self.identical + self.lost.total() + len(self.wrong))


def faults_from(rng: random.Random, count: int, ranks: int) -> list[Fault]:
    """Draw a sequence of faults."""
    faults = []
    for _ in range(count):
        hit = tuple(range(ranks)) if rng.random() < 0.1 else (rng.randrange(ranks),)
        moment: Moment = rng.choices(("load", "prefill", "rebuild"), (0.7, 0.15, 0.15))[0]
        faults.append(Fault(rng.choices(("kill", "freeze"), (0.6, 0.4))[0], hit, moment, rng.uniform(0.0, 1.0)))
    return faults


def requests_from(rng: random.Random, vocab_size: int, count: int) -> list[pb.GenerateRequest]:
    """Draw greedy and seeded requests with short and long prompts and answers."""
    requests = []
    for _ in range(count):
        prompt = rng.choice((rng.randint(1, 12), rng.randint(60, 200)))
        params = sampling_pb2.SamplingParams(max_tokens=rng.randint(1, 70), ignore_eos=True)
        if rng.random() < 0.5:
            params.temperature, params.seed, params.top_p = 0.8, rng.getrandbits(63), 0.95
        token_ids = [rng.randrange(3, vocab_size) for _ in range(prompt)]
        requests.append(pb.GenerateRequest(token_ids=token_ids, sampling=params))
    return requests


class ShardFaults:
    """One shape of group under load and faults. Use `async with`."""

    def __init__(self, model: Path, tensor_parallel: int, pipeline_parallel: int, seed: int, pool: int = POOL) -> None:
        """pool: distinct requests."""
        config = open_weights(model).config
        settings = RankSettings(
            chip=chip("cpu"),
            plan=plan_for(config, tensor_parallel=tensor_parallel, pipeline_parallel=pipeline_parallel),
            source=model,
            collective=None,
            collective_interface="lo",
            collective_timeout_s=30,
            threads=1,
            kv_cache_bytes=2 << 20,
            heartbeat_interval_s=HEALTH.heartbeat_interval_s,
            telemetry=TelemetrySettings(log_level="ERROR"),
            tls=None,
        )
        self._rng = random.Random(seed)
        self._builder: GroupBuilder = local_group_builder(settings, HEALTH, restock_after_s=0)
        self._replica: Replica | None = None
        self._requests = requests_from(self._rng, config.vocab_size, pool)
        self._expected: list[tuple[int, ...]] = []
        self._numbers = iter(range(1 << 30))
        self._losses_s: list[float] = []
        self.report = Report()
        self._loop = asyncio.get_running_loop()

    async def __aenter__(self) -> ShardFaults:
        async def start(on_lost: Callable[[str], None]) -> ShardGroup:
            def lost(_: ShardGroup, reason: str) -> None:
                now_s = time.monotonic()
                on_lost(reason)
                self._loop.call_soon_threadsafe(self._losses_s.append, now_s)

            return await self._builder.build(lost)

        self._replica = Replica(pb.ServedModel(identity=model_pb2.ModelIdentity(model="tiny")), "chaos", TorchEngine(LIMITS, start))
        await self._ready()
        at_once = asyncio.Semaphore(LIMITS.max_running)

        async def undisturbed(request: pb.GenerateRequest) -> tuple[int, ...]:
            async with at_once:
                answer, error = await self._answer(request)
            assert error is None, f"the undisturbed run failed with {error}"
            return answer

        self._expected = await asyncio.gather(*(undisturbed(request) for request in self._requests))
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._replica is not None
        await self._replica.close()
        await self._builder.close()

    async def run(self, faults: Sequence[Fault], clients: int = 12) -> None:
        """Load the group, inflict the faults one after the other, let the load end."""
        ending = asyncio.Event()
        load = [asyncio.create_task(self._load(ending, random.Random(self._rng.random()))) for _ in range(clients)]
        try:
            for number, fault in enumerate(faults):
                await self._inflict(number, fault)
        finally:
            ending.set()
            done, hanging = await asyncio.wait(load, timeout=STREAM_S + 10)
            for task in hanging:
                task.cancel()
                self.report.wrong.append("a stream hangs beyond its deadline")
            for task in done:
                task.result()

    # ---- the load --------------------------------------------------------------------------------------------------------

    async def _load(self, ending: asyncio.Event, rng: random.Random) -> None:
        while not ending.is_set():
            index = rng.randrange(len(self._requests))
            leave_after = rng.randint(1, 30) if rng.random() < 0.1 else None
            await self._check(index, priority=rng.randint(0, 2), leave_after=leave_after)

    async def _check(self, index: int, *, priority: int = 0, leave_after: int | None = None) -> None:
        """Run one request of the pool and judge how it ended."""
        report, expected = self.report, self._expected[index]
        answer, error = await self._answer(self._requests[index], priority=priority, leave_after=leave_after)
        if answer != expected[: len(answer)]:
            report.wrong.append(f"request {index} differs at token {_first_difference(answer, expected)}")
        elif error is None and leave_after is not None and len(answer) >= leave_after:
            report.left += 1
        elif error is None and answer == expected:
            report.identical += 1
        elif isinstance(error, EngineFull):
            report.refused += 1
            await asyncio.sleep(error.retry_after_s or 0.1)
        elif isinstance(error, ShardGroupLost):
            assert error.status is grpc.StatusCode.UNAVAILABLE
            report.lost[error.message] += 1
            await asyncio.sleep(error.retry_after_s or 0.1)
        else:
            report.wrong.append(f"request {index} ended after {len(answer)} of {len(expected)} tokens with {error!r}")

    async def _answer(
        self, request: pb.GenerateRequest, *, priority: int = 0, leave_after: int | None = None
    ) -> tuple[tuple[int, ...], MeshError | None]:
        """The tokens of an answer as its frames bring them, and the error that ended it."""
        assert self._replica is not None
        sent = pb.GenerateRequest()
        sent.CopyFrom(request)
        sent.context.CopyFrom(context_pb2.RequestContext(request_id=f"request-{next(self._numbers)}"))
        sent.priority = priority
        answer: list[int] = []
        frames = self._replica.generate(sent.SerializeToString(), None, STREAM_S)
        async with contextlib.aclosing(frames):  # type: ignore[type-var]
            async for frame in frames:
                if frame[:1] != RESPONSE:
                    return tuple(answer), decode_error(frame[1:])
                message = pb.GenerateResponse.FromString(frame[1:])
                answer += message.tokens.token_ids
                if leave_after is not None and len(answer) >= leave_after:
                    break
        return tuple(answer), None

    # ---- the faults ------------------------------------------------------------------------------------------------------

    async def _inflict(self, number: int, fault: Fault) -> None:
        prefill: asyncio.Task[None] | None = None
        self._losses_s.clear()
        if fault.moment == "rebuild":
            first = self._signal("kill", (0,))
            while not self._losses_s and not first.isdisjoint(self._builder.processes.values()):  # noqa: ASYNC110
                await asyncio.sleep(LOOK_S)
        await asyncio.sleep(fault.pause_s)
        if fault.moment == "prefill":
            longest = max(range(len(self._requests)), key=lambda index: len(self._requests[index].token_ids))
            prefill = asyncio.create_task(self._check(longest, priority=9))
            await asyncio.sleep(0)
        self._losses_s.clear()
        begin_s = time.monotonic()
        hit = self._signal(fault.kind, fault.ranks)
        try:
            await self._ready(without=hit)
        except TimeoutError:
            raise AssertionError(f"the group did not come back after fault {number}: {fault}") from None
        if fault.moment != "rebuild" and len(self._losses_s) == 1:
            self.report.detected_s[fault.kind].append(self._losses_s[0] - begin_s)
            self.report.restart_s.append(time.monotonic() - self._losses_s[0])
        if prefill is not None:
            await prefill

    def _signal(self, kind: str, ranks: tuple[int, ...]) -> frozenset[RankProcess]:
        """Kill or freeze ranks; returns their processes."""
        hit = frozenset(process for rank, process in self._builder.processes.items() if rank in ranks)
        for process in hit:
            assert isinstance(process, LocalRank)
            process.process.send_signal(signal.SIGKILL if kind == "kill" else signal.SIGSTOP)
        return hit

    async def _ready(self, *, without: frozenset[RankProcess] = frozenset()) -> None:
        """Wait until the replica is ready with a group that has none of these processes."""
        assert self._replica is not None
        async with asyncio.timeout(READY_S):
            while not self._replica.status().ready or not without.isdisjoint(self._builder.processes.values()):  # noqa: ASYNC110
                await asyncio.sleep(LOOK_S)


def _first_difference(answer: tuple[int, ...], expected: tuple[int, ...]) -> int:
    return next((n for n, (ours, theirs) in enumerate(zip(answer, expected, strict=False)) if ours != theirs), len(expected))


def save_tiny(directory: Path) -> Path:
    """Write the model that is served: four layers, so that pipelines have two each."""
    save_llama(directory, num_hidden_layers=4, max_position_embeddings=512)
    return directory


def percentiles(values: Sequence[float]) -> str:
    """Median, 95th and 99th percentile and maximum."""
    if not values:
        return "none"
    ordered = sorted(values)
    picked = [ordered[min(len(ordered) - 1, int(len(ordered) * part))] for part in (0.5, 0.95, 0.99)]
    return "p50 {:.3f} s, p95 {:.3f} s, p99 {:.3f} s, max {:.3f} s".format(*picked, ordered[-1]) + f" (n = {len(ordered)})"


async def main(faults: int, seed: int) -> int:
    """Run both shapes and print what was seen. Returns the exit status."""
    logging.getLogger("lionrock.inference").setLevel(logging.CRITICAL)
    total, begin_s, wrong = Report(), time.monotonic(), 0
    with tempfile.TemporaryDirectory() as directory:
        model = save_tiny(Path(directory))
        for tensor_parallel, pipeline_parallel in ((2, 1), (1, 2)):
            count = faults // 2
            async with ShardFaults(model, tensor_parallel, pipeline_parallel, seed) as chaos:
                await chaos.run(faults_from(random.Random(seed + pipeline_parallel), count, 2))
            report = chaos.report
            print(f"tensor parallel {tensor_parallel} x pipeline parallel {pipeline_parallel}: {count} faults")
            print(f"  streams: {report.identical} identical, {report.lost.total()} UNAVAILABLE: {report.share:.2%} identical")
            print(f"           {report.left} left by their readers, {report.refused} requests refused by a full queue")
            for kind, seen_s in report.detected_s.items():
                print(f"  {kind} found: {percentiles(seen_s)}")
            print(f"  restart after a loss: {percentiles(report.restart_s)}")
            for message, times in report.lost.items():
                print(f"  UNAVAILABLE, {times} times: {message}")
            for line in report.wrong:
                print(f"  WRONG (seed {seed}): {line}")
            wrong += len(report.wrong)
            total.identical, total.lost = total.identical + report.identical, total.lost + report.lost
    streams, took_s = total.identical + total.lost.total(), time.monotonic() - begin_s
    print(f"seed {seed}: {total.share:.2%} of {streams} streams identical, {wrong} wrong, {took_s:.0f} s")
    return 1 if wrong else 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--faults", type=int, default=200)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(1 << 32))
    arguments = parser.parse_args()
    sys.exit(asyncio.run(main(arguments.faults, arguments.seed)))
