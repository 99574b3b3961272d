"""Shards and replicas that die or freeze: streams end with a reason, and the model is back without a hand."""

from __future__ import annotations

import asyncio
import signal
import time

import grpc
import pytest
from grpc_health.v1 import health_pb2
from inference_service import PROMPT, InferenceService, generate_request

pytestmark = pytest.mark.timeout(240)


async def lose_a_shard(service: InferenceService, number: signal.Signals) -> tuple[float, list[int]]:
    """Signal rank 1 while a stream runs. Returns seconds until the stream ended and the tokens that it brought."""
    async with service.stub() as stub:
        stream = asyncio.create_task(service.answer(stub, generate_request(max_tokens=1500), timeout_s=60))
        call = stub.Generate(generate_request(max_tokens=1500), timeout=60)
        async for message in call:
            if message.HasField("tokens"):
                break
        shards = service.shards()
        assert len(shards) == 2
        begin_s = time.monotonic()
        shards[1].send_signal(number)
        answer = await stream
        took_s = time.monotonic() - begin_s
        call.cancel()
        assert answer.error is not None
        assert (answer.error.status, answer.error.reason) == (grpc.StatusCode.UNAVAILABLE, "SHARD_GROUP_LOST")
        assert answer.error.retry_after_s is not None
        refused = await service.answer(stub, generate_request(max_tokens=2))
        assert refused.error is not None
        assert refused.error.status == grpc.StatusCode.UNAVAILABLE
        assert refused.error.retry_after_s is not None
        assert not (await service.served(stub)).ready
        assert await service.health() == health_pb2.HealthCheckResponse.NOT_SERVING
    return took_s, answer.tokens


async def resume(service: InferenceService, tokens: list[int]) -> list[int]:
    """The next tokens of an answer that was cut off."""
    async with service.stub() as stub:
        request = generate_request(max_tokens=len(tokens) + 4, token_ids=PROMPT + tuple(tokens), resumed_tokens=len(tokens))
        answer = await service.answer(stub, request)
        assert answer.error is None
        return answer.tokens


async def test_a_killed_shard_ends_streams_at_once_and_the_group_is_back_in_place(service: InferenceService) -> None:
    async with service.stub() as stub:
        undisturbed = await service.answer(stub, generate_request(max_tokens=24))
    replicas = [process.pid for process in service.descendants("ServeReplica")]
    took_s, tokens = await lose_a_shard(service, signal.SIGKILL)
    assert took_s <= 0.5
    back_s = await service.wait_ready(within_s=60)
    assert await service.health() == health_pb2.HealthCheckResponse.SERVING
    assert [process.pid for process in service.descendants("ServeReplica")] == replicas
    known = tokens[:16]
    assert known == undisturbed.tokens[: len(known)]
    assert await resume(service, known) == undisturbed.tokens[len(known) : len(known) + 4]
    print(f"streams ended after {took_s * 1000:.0f} ms, ready after {back_s:.1f} s")


async def test_a_frozen_shard_is_found_by_its_silence_and_replaced(service: InferenceService) -> None:
    frozen = service.shards()[1].pid
    took_s, _ = await lose_a_shard(service, signal.SIGSTOP)
    assert took_s <= 2.0
    await service.wait_ready(within_s=60)
    assert frozen not in [process.pid for process in service.shards()]
    assert len(service.shards()) == 2
    print(f"a frozen rank was found after {took_s:.2f} s")


async def test_an_idle_group_notices_a_killed_shard_by_itself(service: InferenceService) -> None:
    before = {process.pid for process in service.shards()}
    service.shards()[0].kill()
    await service.wait_ready(ready=False, within_s=5)
    await service.wait_ready(within_s=60)
    assert before.isdisjoint(process.pid for process in service.shards())


async def test_a_killed_replica_is_replaced_by_serve(service: InferenceService) -> None:
    (replica,) = service.descendants("ServeReplica")
    shards = service.shards()
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
