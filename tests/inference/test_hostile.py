"""Hostile requests to the engine's front: a precise status for each, and the engine goes on."""

from __future__ import annotations

import grpc
import pytest
from google.protobuf.message import Message
from inference_service import InferenceService, generate_request

from hostile import payloads
from lionrock.chassis.channel import open_channel
from lionrock.chassis.errors import remote_error
from lionrock.chassis.settings import PeerSettings
from lionrock.inference.v1 import inference_pb2 as pb

pytestmark = pytest.mark.timeout(180)

SEEDS = range(60)
METHODS = list(pb.DESCRIPTOR.services_by_name["InferenceService"].methods)


def served_and_short(request: Message) -> None:
    """Name the model that is served and ask for little, so that what is hostile in the rest reaches the engine."""
    if isinstance(request, pb.GenerateRequest):
        request.model = "smollm2"
        request.ClearField("context")
        if request.sampling.max_tokens > 4 or not request.sampling.HasField("max_tokens"):
            request.sampling.max_tokens = 4


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
async def test_hostile_requests_get_a_precise_status_and_the_engine_goes_on(service: InferenceService, method: object) -> None:
    imprecise = []
    peer = PeerSettings(target=service.target, service="inference")
    async with open_channel(peer, service.gateway, name="gateway") as channel:
        path = f"/{method.containing_service.full_name}/{method.name}"  # type: ignore[attr-defined]
        for seed in SEEDS:
            (data,) = payloads(method, seed, served_and_short)  # type: ignore[arg-type]
            try:
                async for _ in channel.unary_stream(path)(data, timeout=20):
                    pass
            except grpc.aio.AioRpcError as error:
                if error.code() in (grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN) or not remote_error(error).reason:
                    imprecise.append((seed, error.code()))
    assert not imprecise
    async with service.stub() as stub:
        assert (await service.answer(stub, generate_request(max_tokens=2))).error is None


@pytest.mark.parametrize(
    ("field", "request_"),
    [
        ("token_ids", pb.GenerateRequest(model="smollm2", sampling={"max_tokens": 1})),
        ("sampling.max_tokens", pb.GenerateRequest(model="smollm2", token_ids=[1], sampling={"max_tokens": 0})),
        ("sampling.temperature", pb.GenerateRequest(model="smollm2", token_ids=[1], sampling={"temperature": -1})),
        ("sampling.logprobs", pb.GenerateRequest(model="smollm2", token_ids=[1], sampling={"logprobs": 21})),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
async def test_a_limit_that_makes_no_sense_is_named(service: InferenceService, field: str, request_: pb.GenerateRequest) -> None:
    async with service.stub() as stub:
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await stub.Generate(request_, timeout=20).read()
    error = remote_error(refused.value)
    assert (error.status, error.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD")
    assert field in [path for path, _ in error.field_violations]
