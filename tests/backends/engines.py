"""Each backend as a replica would make it, and requests to put to it."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from lionrock.inference.backends.backend import EngineBackend
from lionrock.inference.backends.torch_engine import TorchEngine
from lionrock.inference.backends.vllm_engine import VllmEngine
from lionrock.inference.backends.vllm_options import VllmOptions
from lionrock.inference.engine.batch import StepBatch, StepResult
from lionrock.inference.engine.engine import EngineLimits
from lionrock.inference.engine.errors import ShardGroupLost
from lionrock.inference.engine.sequence import Request, RequestId, Sampling, SequenceId, StepOutput
from lionrock.inference.engine.stream import Stream
from lionrock.inference.model.weights import open_weights
from lionrock.inference.model.worker import LocalRunner, ShardWorker
from lionrock.inference.served_model import shape_of, vocabulary_of
from lionrock.modelstore.source import locate
from lionrock.planner.chips import chip
from lionrock.planner.plan import plan_shards

MAX_RUNNING, MAX_WAITING = 2, 2
KV_CACHE_BYTES = 16 << 20
LIMITS = EngineLimits(max_running=MAX_RUNNING, max_waiting=MAX_WAITING, max_step_tokens=256)
PROMPT = (1, 75, 202, 111, 40, 63, 250, 17, 99)

_numbers = itertools.count()


@dataclass(slots=True)
class Started:
    """An engine that has started, a way to take from it what runs its model, and what it then said."""

    name: str
    engine: EngineBackend
    lose: Callable[[], None]
    losses: asyncio.Queue[str] = field(default_factory=asyncio.Queue)

    async def start(self) -> None:
        """Start the engine, at first or anew."""
        loop = asyncio.get_running_loop()
        await self.engine.start(lambda reason: loop.call_soon_threadsafe(self.losses.put_nowait, reason))


class _Runner(LocalRunner):
    """One rank in this process, which can be lost; it makes no spans."""

    lost = False

    def execute(self, batch: StepBatch) -> StepResult:
        if self.lost:
            raise ShardGroupLost("the rank died")
        return super().execute(batch)

    def sequence_ended(self, sequence_id: SequenceId, traceparent: str) -> None:
        """See TracedRunner."""


def torch_engine(directory: Path) -> tuple[TorchEngine, Callable[[], None]]:
    """The engine, and what loses its runner."""
    runners: list[_Runner] = []

    def lose() -> None:
        runners[-1].lost = True

    async def start(on_lost: Callable[[str], None]) -> _Runner:
        config = open_weights(directory).config
        worker = ShardWorker(directory, plan_shards(shape_of(config), chip("cpu"), dtype="float32"), 0)
        worker.load()
        worker.allocate_kv_cache(worker.kv_blocks_within(KV_CACHE_BYTES))
        runners.append(_Runner(worker))
        return runners[-1]

    return TorchEngine(LIMITS, start, vocabulary=vocabulary_of(locate("model", directory))), lose


def vllm_options(checkpoint: Path, **changed: Any) -> VllmOptions:
    config = open_weights(checkpoint).config
    told: dict[str, Any] = {
        "directory": checkpoint,
        "config": config,
        "plan": plan_shards(shape_of(config), chip("cpu"), dtype="float32"),
        "limits": LIMITS,
        "kv_cache_bytes": KV_CACHE_BYTES,
        "threads": 1,
        "enforce_eager": True,
    }
    return VllmOptions(**{**told, **changed})


def vllm_processes(title: str = "VLLM::") -> list[psutil.Process]:
    """vLLM's processes below this one; it titles them."""
    return [process for process in psutil.Process().children(recursive=True) if title in process.name()]


def kill_vllm() -> None:
    (core,) = vllm_processes("VLLM::EngineCor")
    core.kill()


async def start_engine(name: str, directory: Path) -> Started:
    started = Started("torch", *torch_engine(directory)) if name == "torch" else vllm_engine(directory)
    await started.start()
    return started


def vllm_engine(directory: Path) -> Started:
    return Started("vllm", VllmEngine(vllm_options(directory)), kill_vllm)


def a_request(*, token_ids: tuple[int, ...] = PROMPT, max_tokens: int | None = 16, sampling: Any = None, **fields: Any) -> Request:
    """A request of a number of its own. sampling: fields of Sampling; a model's end is ignored unless they say otherwise."""
    options = {"ignore_eos": True, "max_tokens": max_tokens, **(sampling or {})}
    return Request(RequestId(f"request-{next(_numbers)}"), token_ids, Sampling(**options), **fields)


@dataclass(slots=True)
class Answer:
    """What a stream brought."""

    outputs: list[StepOutput]

    @property
    def tokens(self) -> tuple[int, ...]:
        return tuple(token_id for output in self.outputs for token_id in output.token_ids)

    @property
    def last(self) -> StepOutput:
        return self.outputs[-1]


async def answer(engine: EngineBackend, request: Request) -> Answer:
    """Submit and read to the end."""
    return await read(engine.submit(request))


async def read(stream: Stream) -> Answer:
    """Read what is left of a stream."""
    try:
        return Answer([output async for output in stream])
    finally:
        stream.close()
