"""Several servers of one service: calls are shared, and one that leaves takes no call with it."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import grpc

from lionrock.chassis.channel import open_channel
from lionrock.chassis.server import RunningServer, start_server
from lionrock.chassis.settings import PeerSettings
from lionrock.guardrails.v1 import guardrails_pb2 as pb
from lionrock.guardrails.v1 import guardrails_pb2_grpc as rpc

SERVICE = "lionrock.guardrails.v1.GuardrailsService"


class Replica(rpc.GuardrailsServiceServicer):
    """Says its name; a stream echoes until its caller has done."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.streams = 0

    async def Inspect(self, request: Any, context: Any) -> Any:
        return pb.InspectResponse(action=pb.ACTION_ALLOW, safe_message=self.name)

    async def InspectStream(self, request_iterator: Any, context: Any) -> AsyncIterator[Any]:
        self.streams += 1
        async for request in request_iterator:
            yield pb.InspectStreamResponse(released=request.chunk.text)


@asynccontextmanager
async def replicas(mesh: Any, **server: Any) -> AsyncIterator[tuple[list[Replica], list[RunningServer], Any]]:
    """Two servers, and a stub whose channel knows the addresses of both."""
    servicers, running = [Replica("a"), Replica("b")], []
    for servicer in servicers:
        registration = mesh.registration()
        registration = type(registration)(registration.add, servicer, SERVICE, registration.callers)
        running.append(await start_server(mesh.settings(**server), "guardrails", [registration]))
    target = "ipv4:" + ",".join(f"127.0.0.1:{each.port}" for each in running)
    peer = PeerSettings(target=target, service="guardrails", timeout_s=10)
    try:
        async with open_channel(peer, mesh.ca.issue("gateway"), name="gateway") as channel:
            yield servicers, running, rpc.GuardrailsServiceStub(channel)
    finally:
        for each in running:
            await each.stop()


async def asked(stub: Any, request: Any) -> str:
    """Which replica answered, or the status."""
    try:
        return str((await stub.Inspect(request)).safe_message)
    except grpc.aio.AioRpcError as error:
        return error.code().name


async def both_answer(stub: Any, request: Any) -> None:
    seen: set[str] = set()
    async with asyncio.timeout(10):
        while not seen >= {"a", "b"}:
            seen.add(await asked(stub, request))


async def test_calls_are_shared_by_all_addresses_of_a_name(small_mesh: Any, inspect: Callable[..., Any]) -> None:
    async with replicas(small_mesh) as (_, _, stub):
        await both_answer(stub, inspect())
        counted = Counter([await asked(stub, inspect()) for _ in range(40)])
        assert counted == {"a": 20, "b": 20}


async def test_a_replica_that_leaves_finishes_its_streams_and_gets_no_new_calls(
    small_mesh: Any, inspect: Callable[..., Any]
) -> None:
    async with replicas(small_mesh, leave_on_drain=True) as (servicers, running, stub):
        await both_answer(stub, inspect())
        streams = [stub.InspectStream() for _ in range(4)]
        for stream in streams:
            await stream.write(pb.InspectStreamRequest(chunk=pb.StreamChunk(text="first")))
            assert (await stream.read()).released == "first"
        assert [servicer.streams for servicer in servicers] == [2, 2]
        leaving = asyncio.create_task(running[0].stop(grace_s=30))
        async with asyncio.timeout(10):
            while await asked(stub, inspect()) != "b" or await asked(stub, inspect()) != "b":
                pass
        assert Counter([await asked(stub, inspect()) for _ in range(40)]) == {"b": 40}
        assert not leaving.done()
        for stream in streams:
            await stream.write(pb.InspectStreamRequest(chunk=pb.StreamChunk(text="second")))
            assert (await stream.read()).released == "second"
            await stream.done_writing()
            assert await stream.read() is grpc.aio.EOF
        await asyncio.wait_for(leaving, 10)


async def test_a_replica_that_leaves_ends_what_outlasts_its_grace(small_mesh: Any, inspect: Callable[..., Any]) -> None:
    async with replicas(small_mesh, leave_on_drain=True) as (_, running, stub):
        await both_answer(stub, inspect())
        streams = [stub.InspectStream() for _ in range(2)]
        for stream in streams:
            await stream.write(pb.InspectStreamRequest(chunk=pb.StreamChunk(text="first")))
            await stream.read()
        await asyncio.wait_for(asyncio.gather(*(each.stop(grace_s=0.2) for each in running)), 10)
        for stream in streams:
            assert await stream.code() is grpc.StatusCode.UNAVAILABLE
