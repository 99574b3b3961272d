"""Shards and replicas that die or freeze: streams go on or end with a reason, and the model is back without a hand."""

from __future__ import annotations

import asyncio
import signal
import time

import grpc
import pytest
from grpc_health.v1 import health_pb2
from inference_service import RANKS, Answer, InferenceService, generate_request

from lionrock.inference.v1 import inference_pb2 as pb

pytestmark = pytest.mark.timeout(240)


async def lose_a_shard(service: InferenceService, number: signal.Signals, request: pb.GenerateRequest) -> tuple[Answer, float]:
    """Signal rank 1 while a stream runs. Returns its answer, and the longest that it paused, in seconds."""
    shards = service.shards()
    assert len(shards) == RANKS
    answer, longest_s, last_s = Answer([]), 0.0, time.monotonic()
    async with service.stub() as stub:
        async for message in stub.Generate(request, timeout=90):
            now_s = time.monotonic()
            longest_s, last_s = max(longest_s, now_s - last_s), now_s
            answer.tokens += message.tokens.token_ids
            if shards and answer.tokens:
                shards[1].send_signal(number)
                shards = []
                other = asyncio.create_task(service.answer(stub, generate_request(max_tokens=2)))
        later = await other
        assert (len(later.tokens), later.error) == (2, None), "a request that comes meanwhile waits for the group"
    return answer, longest_s


def seeded(max_tokens: int) -> pb.GenerateRequest:
    request = generate_request(max_tokens=max_tokens)
    request.sampling.temperature, request.sampling.seed = 0.7, 11
    return request


async def test_streams_outlive_a_killed_shard_and_the_group_is_back_in_place(service: InferenceService) -> None:
    request = generate_request(max_tokens=60)
    async with service.stub() as stub:
        undisturbed = await service.answer(stub, request)
    replicas = [process.pid for process in service.descendants("ServeReplica")]
    killed = service.shards()[1]
    answer, paused_s = await lose_a_shard(service, signal.SIGKILL, generate_request(max_tokens=60))
    assert answer.tokens == undisturbed.tokens
    await service.wait_ready(within_s=60)
    assert killed.pid not in [process.pid for process in service.shards()]
    assert await service.health() == health_pb2.HealthCheckResponse.SERVING
    assert [process.pid for process in service.descendants("ServeReplica")] == replicas
    print(f"a stream paused for {paused_s:.1f} s after a kill")


async def test_streams_outlive_a_frozen_shard_which_is_replaced(service: InferenceService) -> None:
    async with service.stub() as stub:
        undisturbed = await service.answer(stub, seeded(60))
    frozen = service.shards()[1].pid
    answer, paused_s = await lose_a_shard(service, signal.SIGSTOP, seeded(60))
    assert answer.tokens == undisturbed.tokens
    await service.wait_ready(within_s=60)
    assert frozen not in [process.pid for process in service.shards()]
    assert len(service.shards()) == RANKS
    print(f"a stream paused for {paused_s:.1f} s after a freeze")


async def test_an_idle_group_notices_a_killed_shard_by_itself(service: InferenceService) -> None:
    killed, other = service.shards()
    killed.kill()
    async with asyncio.timeout(60):
        while len(service.shards()) < RANKS or killed.pid in [process.pid for process in service.shards()]:  # noqa: ASYNC110
            await asyncio.sleep(0.05)
    await service.wait_ready(within_s=60)
    assert other.is_running(), "a rank that is well keeps its process and its weights"


async def test_a_killed_replica_is_replaced_by_serve(service: InferenceService) -> None:
    (replica,) = service.descendants("ServeReplica")
    shards = service.descendants("ShardActor")
    async with service.stub() as stub:
        call = stub.Generate(generate_request(max_tokens=4), timeout=60)
        stream = asyncio.create_task(service.answer(stub, generate_request(max_tokens=1500)))
        async for _ in call:
            pass
        replica.kill()
        answer = await stream
        assert answer.error is not None
        assert answer.error.status == grpc.StatusCode.UNAVAILABLE
        assert answer.error.retry_after_s is not None
        assert "Traceback" not in answer.error.message
    await service.wait_ready(ready=False, within_s=10)
    await service.wait_ready(within_s=90)
    assert all(not shard.is_running() for shard in shards)
    async with service.stub() as stub:
        assert (await service.answer(stub, generate_request(max_tokens=2))).error is None
