"""Each backend as a replica would make it, and requests to put to it."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lionrock.inference.backends.backend import EngineBackend
from lionrock.inference.backends.torch_engine import TorchEngine
from lionrock.inference.backends.vllm_engine import VllmEngine
from lionrock.inference.backends.vllm_options import VllmOptions
from lionrock.inference.engine.engine import EngineLimits
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
    """An engine that has started, and what it said of losses."""

    name: str
    engine: EngineBackend
    losses: list[str] = field(default_factory=list)


class _Runner(LocalRunner):
    """One rank in this process; it makes no spans."""

    def sequence_ended(self, sequence_id: SequenceId, traceparent: str) -> None:
        """See TracedRunner."""


def torch_engine(directory: Path) -> TorchEngine:
    async def start(on_lost: Callable[[str], None]) -> _Runner:
        config = open_weights(directory).config
        worker = ShardWorker(directory, plan_shards(shape_of(config), chip("cpu"), dtype="float32"), 0)
        worker.load()
        worker.allocate_kv_cache(worker.kv_blocks_within(KV_CACHE_BYTES))
        return _Runner(worker)

    return TorchEngine(LIMITS, start, vocabulary=vocabulary_of(locate("model", directory)))


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


async def start_engine(name: str, directory: Path) -> Started:
    engine: EngineBackend = torch_engine(directory) if name == "torch" else VllmEngine(vllm_options(directory))
    started = Started(name, engine)
    await engine.start(started.losses.append)
    return started


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
