"""A replica whose runner is lost: what its streams and its status say until there is another one, or no hope of one. No Ray."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable

import pytest

from lionrock.common.v1 import context_pb2, model_pb2, sampling_pb2
from lionrock.inference import replica as replica_module
from lionrock.inference.backends.torch_engine import TorchEngine
from lionrock.inference.engine.batch import StepBatch, StepResult
from lionrock.inference.engine.engine import EngineLimits
from lionrock.inference.engine.errors import ShardGroupLost
from lionrock.inference.engine.runner import RunnerSpec
from lionrock.inference.engine.sequence import SequenceId
from lionrock.inference.errors import decode_error
from lionrock.inference.replica import MAX_START_FAILURES, RESPONSE, Replica
from lionrock.inference.v1 import inference_pb2 as pb

TOKEN = 7
TINY = pb.ServedModel(identity=model_pb2.ModelIdentity(model="tiny"))


class Runner:
    """Answers every step with one token, until it is lost in the middle of a step."""

    spec = RunnerSpec(100, 64, frozenset({0}), 4, 16, 8, frozenset())

    def __init__(self, on_lost: Callable[[str], None], steps: int | None) -> None:
        self._on_lost = on_lost
        self._steps = steps

    def execute(self, batch: StepBatch) -> StepResult:
        if self._steps == 0:
            self._on_lost("rank 1 died")
            raise ShardGroupLost("rank 1 died")
        if self._steps is not None:
            self._steps -= 1
        return StepResult(tuple(TOKEN for row in batch.rows for _ in range(row.samples)))

    def sequence_ended(self, sequence_id: SequenceId, traceparent: str) -> None:
        del sequence_id, traceparent

    def close(self) -> None:
        return


class Starts:
    """Builds runners as the test says: a number of steps that one does, None: it lives on, "fails", or when the test allows it."""

    def __init__(self, *script: int | str | None) -> None:
        self._script = list(script)
        self.allowed = asyncio.Event()

    async def __call__(self, on_lost: Callable[[str], None]) -> Runner:
        match self._script.pop(0):
            case "fails":
                raise ShardGroupLost("no cards")
            case "waits":
                await self.allowed.wait()
                return Runner(on_lost, None)
            case steps:
                assert not isinstance(steps, str)
                return Runner(on_lost, steps)


def request(name: str, max_tokens: int = 10) -> bytes:
    return pb.GenerateRequest(
        context=context_pb2.RequestContext(request_id=name),
        token_ids=[1, 2, 3],
        sampling=sampling_pb2.SamplingParams(max_tokens=max_tokens, ignore_eos=True),
    ).SerializeToString()


async def tokens_and_reason(frames: AsyncIterator[bytes]) -> tuple[list[int], str | None]:
    """The tokens of an answer and the reason of its error, if it ended with one."""
    tokens: list[int] = []
    async for frame in frames:
        if frame[:1] != RESPONSE:
            return tokens, decode_error(frame[1:]).reason
        tokens += pb.GenerateResponse.FromString(frame[1:]).tokens.token_ids
    return tokens, None


async def until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(30):
        while not holds():  # noqa: ASYNC110  # other tasks bring it about
            await asyncio.sleep(0)


def replica_of(starts: Starts) -> Replica:
    return Replica(TINY, "r1", TorchEngine(EngineLimits(), starts))


async def test_a_replica_without_a_group_is_not_ready_and_its_streams_and_new_requests_go_on_with_the_next() -> None:
    starts = Starts(4, "waits")
    replica = replica_of(starts)
    await until(lambda: replica.status().ready)
    running = asyncio.create_task(tokens_and_reason(replica.generate(request("running"), None, 60)))
    await until(lambda: not replica.status().ready)
    assert replica.status().problem == "rank 1 died"
    later = asyncio.create_task(tokens_and_reason(replica.generate(request("later"), None, 60)))
    await until(lambda: replica.status().waiting == 2)
    starts.allowed.set()
    assert await running == ([TOKEN] * 10, None)
    assert await later == ([TOKEN] * 10, None)
    assert replica.status().ready
    await replica.close()


async def test_streams_end_with_their_reason_when_the_group_cannot_be_built(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replica_module, "_BACKOFF_S", (0.0,))
    starts = Starts(4, *["fails"] * MAX_START_FAILURES, "waits")
    replica = replica_of(starts)
    await until(lambda: replica.status().ready)
    tokens, reason = await tokens_and_reason(replica.generate(request("running"), None, 60))
    assert (tokens, reason) == ([TOKEN] * 4, "SHARD_GROUP_LOST")
    assert replica.hopeless == "no cards"
    assert await tokens_and_reason(replica.generate(request("refused"), None, 60)) == ([], "SHARD_GROUP_LOST")
    starts.allowed.set()
    await until(lambda: replica.status().ready)
    assert replica.hopeless is None
    assert await tokens_and_reason(replica.generate(request("again"), None, 60)) == ([TOKEN] * 10, None)
    await replica.close()


async def test_a_runner_that_fails_without_noticing_it_is_closed_and_replaced() -> None:
    closed: list[Runner] = []

    class Broken(Runner):
        def execute(self, batch: StepBatch) -> StepResult:
            raise ZeroDivisionError

        def close(self) -> None:
            closed.append(self)

    runners: list[type[Runner]] = [Broken, Runner]

    async def start(on_lost: Callable[[str], None]) -> Runner:
        return runners.pop(0)(on_lost, None)

    replica = Replica(TINY, "r1", TorchEngine(EngineLimits(), start))
    await until(lambda: replica.status().ready)
    assert await tokens_and_reason(replica.generate(request("r"), None, 60)) == ([TOKEN] * 10, None)
    assert len(closed) == 1
    await replica.close()
