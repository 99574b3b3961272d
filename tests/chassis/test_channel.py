"""The calling side: cancellation, deadlines, traces, rotation."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest

from lionrock.chassis.channel import MeshChannel
from lionrock.chassis.errors import remote_error
from lionrock.chassis.settings import PeerSettings, TelemetrySettings
from lionrock.chassis.telemetry import set_request_id, start_telemetry, tracer
from lionrock.guardrails.v1 import guardrails_pb2 as pb
from lionrock.guardrails.v1 import guardrails_pb2_grpc as rpc

PROMPT_S = 1.0


def opening(profile: str = "") -> Any:
    return pb.InspectStreamRequest(open=pb.StreamOpen(profile=profile, direction=pb.DIRECTION_ANSWER))


async def test_cancelling_a_unary_call_cancels_the_handler(small_mesh: Any, inspect: Any) -> None:
    async with small_mesh.serving() as running, small_mesh.calling(running) as stub:
        call = stub.Inspect(inspect("wait"))
        await small_mesh.servicer.entered.wait()
        call.cancel()
        await asyncio.wait_for(small_mesh.servicer.cancelled.wait(), PROMPT_S)
        with pytest.raises(asyncio.CancelledError):
            await call


async def test_cancelling_the_task_that_awaits_cancels_the_handler(small_mesh: Any, inspect: Any) -> None:
    async with small_mesh.serving() as running, small_mesh.calling(running) as stub:

        async def ask() -> None:
            await stub.Inspect(inspect("wait"))

        task = asyncio.create_task(ask())
        await small_mesh.servicer.entered.wait()
        task.cancel()
        await asyncio.wait_for(small_mesh.servicer.cancelled.wait(), PROMPT_S)
        with pytest.raises(asyncio.CancelledError):
            await task


async def test_cancelling_a_stream_closes_the_handler(small_mesh: Any) -> None:
    async with small_mesh.serving() as running, small_mesh.calling(running) as stub:
        call = stub.InspectStream()
        await call.write(opening())
        await call.read()
        call.cancel()
        await asyncio.wait_for(small_mesh.servicer.closed.wait(), PROMPT_S)


async def test_cancelling_the_task_that_reads_a_stream_closes_the_handler(small_mesh: Any) -> None:
    async with small_mesh.serving() as running, small_mesh.calling(running) as stub:
        reading = asyncio.Event()

        async def read() -> None:
            async for _ in stub.InspectStream(iter([opening("wait")])):
                reading.set()

        task = asyncio.create_task(read())
        await reading.wait()
        task.cancel()
        await asyncio.wait_for(small_mesh.servicer.closed.wait(), PROMPT_S)
        with pytest.raises(asyncio.CancelledError):
            await task


async def test_a_call_without_a_deadline_gets_that_of_the_peer(small_mesh: Any, inspect: Any) -> None:
    async with small_mesh.serving() as running, small_mesh.calling(running, timeout_s=0.2) as stub:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.Inspect(inspect("wait"))
        assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        await asyncio.wait_for(small_mesh.servicer.cancelled.wait(), PROMPT_S)


@asynccontextmanager
async def two_hops(mesh: Any, **server: Any) -> AsyncIterator[tuple[Any, Any]]:
    """A server whose profile "hop" calls a second one; yields a stub of the first, and the second's servicer."""
    far = type(mesh)(mesh.directory)
    async with far.serving() as far_running, far.calling(far_running, timeout_s=30) as far_stub:

        async def hop(context: Any) -> None:
            del context
            set_request_id("request-7")
            part = pb.TextPart(text="x", source=pb.TEXT_SOURCE_USER)
            await far_stub.Inspect(pb.InspectRequest(profile="wait", direction=pb.DIRECTION_PROMPT, parts=[part]))

        mesh.servicer.behaviours["hop"] = hop
        async with mesh.serving(**server) as running, mesh.calling(running) as stub:
            yield stub, far.servicer


async def test_a_call_made_while_serving_ends_with_the_served_calls_deadline(small_mesh: Any, inspect: Any) -> None:
    async with two_hops(small_mesh) as (stub, far):
        began = time.monotonic()
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.Inspect(inspect("hop"), timeout=0.3)
        assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        await asyncio.wait_for(far.cancelled.wait(), PROMPT_S)
        assert time.monotonic() - began < 0.3 + PROMPT_S


async def test_cancellation_travels_over_two_hops(small_mesh: Any, inspect: Any) -> None:
    async with two_hops(small_mesh) as (stub, far):
        call = stub.Inspect(inspect("hop"))
        await far.entered.wait()
        call.cancel()
        await asyncio.wait_for(far.cancelled.wait(), PROMPT_S)


async def test_a_dependency_that_does_not_answer_is_unavailable_and_not_internal(small_mesh: Any, inspect: Any) -> None:
    nobody = MeshChannel(PeerSettings(target="127.0.0.1:1", service="audit"), small_mesh.ca.issue("guardrails"))

    async def ask(context: Any) -> None:
        del context
        await rpc.GuardrailsServiceStub(nobody).Inspect(pb.InspectRequest())

    small_mesh.servicer.behaviours["ask"] = ask
    async with nobody, small_mesh.serving() as running, small_mesh.calling(running) as stub:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.Inspect(inspect("ask"))
    error = remote_error(caught.value)
    assert (error.status, error.reason) == (grpc.StatusCode.UNAVAILABLE, "DEPENDENCY_UNAVAILABLE")


def spans_of(directory: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for file in directory.glob("*.jsonl") for line in file.read_text().splitlines()]
    return [
        span for line in lines for resource in line["resourceSpans"] for scope in resource["scopeSpans"] for span in scope["spans"]
    ]


async def test_one_trace_spans_all_hops_and_carries_the_request_id(small_mesh: Any, inspect: Any, tmp_path: Path) -> None:
    telemetry = start_telemetry("test", TelemetrySettings(span_dir=tmp_path / "spans"))
    async with two_hops(small_mesh) as (stub, far):
        far.release.set()
        with tracer().start_as_current_span("root") as root:
            await stub.Inspect(inspect("hop"))
    telemetry.close()
    trace_id = format(root.get_span_context().trace_id, "032x")
    spans = {span["spanId"]: span for span in spans_of(tmp_path / "spans") if span["traceId"] == trace_id}
    chain: list[tuple[str, int]] = []
    span = next(span for span in spans.values() if span["spanId"] not in {other.get("parentSpanId") for other in spans.values()})
    while True:
        chain.append((span["name"].rpartition("/")[2], span["kind"]))
        if "parentSpanId" not in span:
            break
        span = spans[span["parentSpanId"]]
    server, client, internal = 2, 3, 1
    assert chain == [("Inspect", server), ("Inspect", client), ("Inspect", server), ("Inspect", client), ("root", internal)]
    ids = {
        attribute["value"]["stringValue"]
        for span in spans.values()
        for attribute in span.get("attributes", [])
        if attribute["key"] == "lionrock.request_id"
    }
    assert ids == {"request-7"}


async def test_no_exception_text_reaches_a_span(small_mesh: Any, inspect: Any, tmp_path: Path) -> None:
    async def record(context: Any) -> None:
        del context
        with tracer().start_as_current_span("inner"):
            raise ValueError("canary-4f1d")

    small_mesh.servicer.behaviours["record"] = record
    telemetry = start_telemetry("test", TelemetrySettings(span_dir=tmp_path / "spans"))
    async with small_mesh.serving() as running, small_mesh.calling(running) as stub:
        for profile in ("record", "raise"):
            with pytest.raises(grpc.aio.AioRpcError):
                await stub.Inspect(inspect(profile))
    telemetry.close()
    written = "".join(file.read_text() for file in (tmp_path / "spans").iterdir())
    assert "inner" in written
    assert "ValueError" in written
    assert "canary" not in written


async def test_a_stranger_cannot_continue_our_traces(small_mesh: Any, inspect: Any, tmp_path: Path) -> None:
    telemetry = start_telemetry("test", TelemetrySettings(span_dir=tmp_path / "spans"))
    forged = "00-" + "ab" * 16 + "-" + "cd" * 8 + "-01"
    files = small_mesh.ca.issue("audit")
    credentials = grpc.ssl_channel_credentials(
        files.ca_file.read_bytes(), files.key_file.read_bytes(), files.cert_file.read_bytes()
    )
    async with small_mesh.serving() as running:
        options = [("grpc.ssl_target_name_override", "guardrails.lionrock.internal")]
        async with grpc.aio.secure_channel(f"127.0.0.1:{running.port}", credentials, options) as channel:
            with pytest.raises(grpc.aio.AioRpcError):
                await rpc.GuardrailsServiceStub(channel).Inspect(inspect(), metadata=[("traceparent", forged)])
    telemetry.close()
    assert not [span for span in spans_of(tmp_path / "spans") if span["traceId"] == "ab" * 16]


async def test_a_new_certificate_is_used_by_new_calls_while_old_ones_go_on(small_mesh: Any, inspect: Any) -> None:
    clock = 0.0
    caller = small_mesh.ca.issue("gateway")
    async with small_mesh.serving() as running:
        peer = PeerSettings(target=f"127.0.0.1:{running.port}", service="guardrails")
        async with MeshChannel(peer, caller, clock=lambda: clock) as channel:
            stub = rpc.GuardrailsServiceStub(channel)
            stream = stub.InspectStream()
            await stream.write(opening())
            assert (await stream.read()).released == "open"
            first, _ = channel.connection()
            small_mesh.ca.issue(spiffe_id="spiffe://lionrock.local/service/audit", directory=caller.cert_file.parent)
            clock += 2
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await stub.Inspect(inspect())
            assert caught.value.code() is grpc.StatusCode.PERMISSION_DENIED
            assert channel.connection()[0] == first + 1
            await stream.write(pb.InspectStreamRequest(chunk=pb.StreamChunk(text="old identity")))
            assert (await stream.read()).released == "old identity"
            await stream.done_writing()
