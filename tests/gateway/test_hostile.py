"""Whatever a client of a tenant sends, it gets a precise status, and the gateway answers the next one."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc
import pytest
from google.protobuf.message import Message

from hostile import payloads
from lionrock.chassis.channel import open_channel
from lionrock.chassis.errors import remote_error
from lionrock.chassis.settings import PeerSettings
from lionrock.gateway.v1 import gateway_pb2 as gw
from scripted_mesh import ScriptedMesh

SERVICE = gw.DESCRIPTOR.services_by_name["GatewayService"]
ROUNDS = 150
# What a caller can bring about; UNKNOWN and INTERNAL would be ours. CANCELLED and RESOURCE_EXHAUSTED may come from gRPC itself.
EXPECTED = {
    grpc.StatusCode.OK,
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.PERMISSION_DENIED,
    grpc.StatusCode.NOT_FOUND,
    grpc.StatusCode.UNIMPLEMENTED,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
}


def sensible(request: Message) -> None:
    """Make what is checked first acceptable, so that the rest is reached."""
    if isinstance(request, gw.ChatRequest):
        request.purpose, request.model = "testing", "parrot"
        request.case_id = request.conversation_id = ""


@pytest.mark.parametrize("method", [method.name for method in SERVICE.methods])
async def test_no_request_brings_about_an_internal_error(mesh: ScriptedMesh, ask: Any, hear: Any, method: str) -> None:
    descriptor = SERVICE.methods_by_name[method]
    peer = PeerSettings(target=mesh.targets["gateway"], service="gateway", timeout_s=10)
    reasons: dict[int, tuple[Any, Any]] = {}
    async with open_channel(peer, mesh.identity(), name="test") as channel:
        path = f"/{SERVICE.full_name}/{method}"
        for seed in range(ROUNDS):
            (payload,) = payloads(descriptor, seed, sensible)
            try:
                if descriptor.server_streaming:
                    async for _ in channel.unary_stream(path)(payload):
                        pass
                else:
                    await channel.unary_unary(path)(payload)
            except grpc.aio.AioRpcError as failure:
                error = remote_error(failure)
                reasons[seed] = (error.status, error.reason)
    wrong = {seed: found for seed, found in reasons.items() if found[0] not in EXPECTED or found[1] is None}
    assert not wrong, f"seeds and what they brought about: {wrong}"
    async with mesh.calling() as stub:
        assert (await hear(stub.Chat(ask()))).text == mesh.engine.text
    assert mesh.engine.running == 0


async def test_a_million_characters_of_every_kind_are_answered_or_refused_by_field(
    mesh: ScriptedMesh, stub: Any, ask: Any, hear: Any, failure: Any
) -> None:
    for character in ("a", "\x00", "😀"):
        heard = await hear(stub.Chat(ask(character * 1_000_000)))
        assert heard.finished.usage.prompt_tokens == 1_000_001
    together = gw.ChatRequest(messages=[*ask("y" * 1000).messages] * 1024)
    assert (await failure(stub.Chat(together))).field_violations[0][0] == "messages"


async def test_many_idle_answers_of_one_caller_leave_room_for_others(mesh: ScriptedMesh, stub: Any, ask: Any, hear: Any) -> None:
    mesh.engine.pace = asyncio.Semaphore(0)
    calls = [stub.Chat(ask()) for _ in range(200)]

    async def status(call: Any) -> grpc.StatusCode:
        try:
            await anext(aiter(call))
        except grpc.aio.AioRpcError as error:
            return error.code()
        return grpc.StatusCode.OK

    statuses = await asyncio.gather(*map(status, calls))
    assert statuses.count(grpc.StatusCode.OK) == 64
    assert set(statuses) == {grpc.StatusCode.OK, grpc.StatusCode.RESOURCE_EXHAUSTED}
    mesh.engine.pace = None
    async with mesh.calling(mesh.identity("broker")) as broker:
        assert (await hear(broker.Chat(ask()))).text == mesh.engine.text
    for call in calls:
        call.cancel()
