"""What a caller gets back: answers, errors, limits. Every test runs a real server and a real channel over mutual TLS."""

from __future__ import annotations

import asyncio
import json
import logging
from typing import Any

import grpc
import pytest
from google.protobuf.message import Message
from grpc_health.v1 import health_pb2, health_pb2_grpc
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lionrock.chassis.errors import RemoteError, remote_error
from lionrock.guardrails.v1 import guardrails_pb2 as pb

METHOD = "/lionrock.guardrails.v1.GuardrailsService/Inspect"
STREAM = "/lionrock.guardrails.v1.GuardrailsService/InspectStream"


async def refused(call: Any) -> RemoteError:
    """Await a call that must fail, and return its error."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return remote_error(caught.value)


def raw_unary(stub_channel: grpc.aio.Channel, method: str = METHOD) -> Any:
    return stub_channel.unary_unary(method, lambda data: data, lambda data: data)


def opening(profile: str = "") -> Any:
    return pb.InspectStreamRequest(open=pb.StreamOpen(profile=profile, direction=pb.DIRECTION_ANSWER))


def chunk(text: str) -> Any:
    return pb.InspectStreamRequest(chunk=pb.StreamChunk(text=text))


async def test_a_handler_sees_the_identity_of_its_caller(small_mesh: Any, inspect: Any) -> None:
    async with small_mesh.serving() as running, small_mesh.calling(running) as stub:
        answer = await stub.Inspect(inspect())
    assert answer.safe_message == "spiffe://lionrock.local/service/gateway"


async def test_an_error_arrives_with_all_its_details(small_mesh: Any, inspect: Any) -> None:
    async with small_mesh.serving() as running, small_mesh.calling(running) as stub:
        error = await refused(stub.Inspect(inspect("refuse")))
    assert (error.status, error.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "POLICY_REFUSED")
    assert error.message == "not now"
    assert error.metadata == {"profile": "strict"}
    assert error.retry_after_s == 1.5
    assert error.field_violations == (("parts[0].text", "too rude"),)
    assert error.quota_violations == (("tenant", "too many"),)


@pytest.mark.parametrize("profile", ["raise", "nothing", "wrong-type"])
async def test_an_unknown_exception_becomes_an_id_that_the_log_carries(
    small_mesh: Any, inspect: Any, profile: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with small_mesh.serving() as running, small_mesh.calling(running) as stub:
        error = await refused(stub.Inspect(inspect(profile)))
    assert (error.status, error.reason) == (grpc.StatusCode.INTERNAL, "INTERNAL_ERROR")
    (record,) = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert vars(record)["error_id"] == error.metadata["error_id"]
    assert "canary" not in error.message
    assert "canary" not in json.dumps(vars(record), default=str)


async def test_an_exception_in_the_middle_of_a_stream_becomes_an_id_too(small_mesh: Any) -> None:
    async with small_mesh.serving() as running, small_mesh.calling(running) as stub:
        call = stub.InspectStream(iter([opening("raise-late"), chunk("x")]))
        assert (await call.read()).released == "open"
        assert (await call.read()).released == "x"
        error = await refused(call.read())
    assert error.reason == "INTERNAL_ERROR"
    assert "error_id" in error.metadata


async def test_a_broken_rule_names_the_field_and_not_its_value(small_mesh: Any, inspect: Any) -> None:
    request = inspect("UPPER canary")
    request.parts.add(text="x")
    async with small_mesh.serving() as running, small_mesh.calling(running) as stub:
        error = await refused(stub.Inspect(request))
    assert (error.status, error.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD")
    assert {field for field, _ in error.field_violations} == {"profile", "parts[1].source"}
    assert "canary" not in str(error.field_violations)


async def test_every_message_of_a_stream_is_checked(small_mesh: Any) -> None:
    async with small_mesh.serving() as running, small_mesh.calling(running) as stub:
        call = stub.InspectStream(iter([opening(), chunk("x"), pb.InspectStreamRequest()]))
        assert [(await call.read()).released, (await call.read()).released] == ["open", "x"]
        error = await refused(call.read())
    assert error.reason == "INVALID_FIELD"


async def test_a_handler_cannot_hide_that_a_message_of_its_stream_was_refused(small_mesh: Any) -> None:
    async def swallow(context: Any) -> None:
        del context

    class Swallowing(type(small_mesh.servicer)):  # type: ignore[misc]
        async def InspectStream(self, request_iterator: Any, context: Any) -> Any:
            try:
                async for _ in request_iterator:
                    pass
            except Exception:  # noqa: BLE001  the mistake that this test is about
                return
            yield pb.InspectStreamResponse()

    small_mesh.servicer = Swallowing()
    async with small_mesh.serving() as running, small_mesh.calling(running) as stub:
        error = await refused(stub.InspectStream(iter([opening(), pb.InspectStreamRequest()])).read())
    assert error.reason == "INVALID_FIELD"


async def test_bytes_that_are_no_message_are_malformed_and_never_internal(small_mesh: Any) -> None:
    from lionrock.chassis.channel import MeshChannel
    from lionrock.chassis.settings import PeerSettings

    async with small_mesh.serving() as running:
        peer = PeerSettings(target=f"127.0.0.1:{running.port}", service="guardrails")
        async with MeshChannel(peer, small_mesh.ca.issue("gateway")) as channel:
            error = await refused(raw_unary(channel)(b"\xff\xff\xff"))
            assert (error.status, error.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "MALFORMED_REQUEST")
            surrogate = bytes([0x12, 3, 0xED, 0xA0, 0x80])
            assert (await refused(raw_unary(channel)(surrogate))).reason == "MALFORMED_REQUEST"
            streaming = channel.stream_stream(STREAM, lambda data: data, lambda data: data)
            assert (await refused(streaming(iter([b"\xff"])).read())).reason == "MALFORMED_REQUEST"

            empty = channel.stream_unary(METHOD, lambda data: data, lambda data: data)
            assert (await refused(empty(iter([])))).reason == "MALFORMED_REQUEST"


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.binary(max_size=300))
def test_no_bytes_make_the_server_answer_internal(small_mesh: Any, data: bytes) -> None:
    from lionrock.chassis.channel import MeshChannel
    from lionrock.chassis.settings import PeerSettings

    async def once() -> None:
        async with small_mesh.serving() as running:
            peer = PeerSettings(target=f"127.0.0.1:{running.port}", service="guardrails")
            async with MeshChannel(peer, small_mesh.ca.issue("gateway")) as channel:
                try:
                    await raw_unary(channel)(data)
                except grpc.aio.AioRpcError as error:
                    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT  # noqa: PT017  a success is fine too

    asyncio.run(once())


async def test_an_unknown_method_is_unimplemented(small_mesh: Any) -> None:
    from lionrock.chassis.channel import MeshChannel
    from lionrock.chassis.settings import PeerSettings

    async with small_mesh.serving() as running:
        peer = PeerSettings(target=f"127.0.0.1:{running.port}", service="guardrails")
        async with MeshChannel(peer, small_mesh.ca.issue("gateway")) as channel:
            for method in ("/lionrock.guardrails.v1.GuardrailsService/Nope", "/nope/Nope", "/", "/a/b/c"):
                error = await refused(raw_unary(channel, method)(b""))
                assert (error.status, error.reason) == (grpc.StatusCode.UNIMPLEMENTED, "METHOD_NOT_FOUND")


async def test_a_call_without_a_deadline_gets_the_default_one_and_is_really_cancelled(small_mesh: Any, inspect: Any) -> None:
    async with small_mesh.serving(default_deadline_s=0.2) as running:
        channel = _bare_channel(small_mesh, running)
        call = channel.unary_unary(METHOD, pb.InspectRequest.SerializeToString, pb.InspectResponse.FromString)
        error = await refused(call(inspect("wait")))
        await asyncio.wait_for(small_mesh.servicer.cancelled.wait(), 2)
        await channel.close()
    assert (error.status, error.reason) == (grpc.StatusCode.DEADLINE_EXCEEDED, "DEADLINE_EXCEEDED")


async def test_a_deadline_that_is_too_long_is_cut(small_mesh: Any, inspect: Any) -> None:
    async with small_mesh.serving(max_deadline_s=0.2, default_deadline_s=0.1) as running, small_mesh.calling(running) as stub:
        error = await refused(stub.Inspect(inspect("wait"), timeout=500))
        await asyncio.wait_for(small_mesh.servicer.cancelled.wait(), 2)
        assert error.reason == "DEADLINE_EXCEEDED"
        stream = stub.InspectStream(iter([opening("wait")]), timeout=500)
        assert (await stream.read()).released == "open"
        assert (await refused(stream.read())).reason == "DEADLINE_EXCEEDED"
        await asyncio.wait_for(small_mesh.servicer.closed.wait(), 2)


async def test_a_stream_on_which_nothing_arrives_is_ended(small_mesh: Any) -> None:
    async with small_mesh.serving(stream_idle_timeout_s=0.2) as running, small_mesh.calling(running) as stub:
        call = stub.InspectStream()
        await call.write(opening())
        assert (await call.read()).released == "open"
        error = await refused(call.read())
        assert (error.status, error.reason) == (grpc.StatusCode.DEADLINE_EXCEEDED, "STREAM_IDLE")


async def test_a_unary_call_that_sends_headers_only_is_bounded_like_a_stream(small_mesh: Any) -> None:
    async with small_mesh.serving(stream_idle_timeout_s=0.2) as running:
        channel = _bare_channel(small_mesh, running)
        call = channel.stream_unary(METHOD, lambda data: data, lambda data: data)()
        assert (await refused(call)).reason == "STREAM_IDLE"
        await channel.close()


async def test_a_message_above_the_limit_is_refused_and_the_next_call_is_served(small_mesh: Any, inspect: Any) -> None:
    async with small_mesh.serving(max_message_bytes=64 * 1024) as running, small_mesh.calling(running) as stub:
        error = await refused(stub.Inspect(inspect(text="x" * 100_000)))
        assert error.status is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert (await stub.Inspect(inspect(text="x" * 10_000))).action == pb.ACTION_ALLOW


async def test_a_server_that_is_full_says_when_to_come_back(small_mesh: Any, inspect: Any) -> None:
    async with small_mesh.serving(max_concurrent_rpcs=1) as running, small_mesh.calling(running) as stub:
        first = asyncio.ensure_future(_result(stub.Inspect(inspect("wait"))))
        await small_mesh.servicer.entered.wait()
        error = await refused(stub.Inspect(inspect()))
        assert (error.status, error.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "OVERLOADED")
        assert error.retry_after_s is not None
        assert error.retry_after_s > 0
        async with _bare_channel(small_mesh, running) as channel:
            healthy = await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=5)
        assert healthy.status == health_pb2.HealthCheckResponse.SERVING, "a busy server is not a broken one"
        small_mesh.servicer.release.set()
        assert (await first).action == pb.ACTION_ALLOW
        assert (await stub.Inspect(inspect())).action == pb.ACTION_ALLOW


async def _result(call: Any) -> Message:
    answer: Message = await call
    return answer


def _bare_channel(mesh: Any, running: Any, service: str = "gateway", tls: Any = None) -> grpc.aio.Channel:
    """A channel without the mesh's client side, as a stranger would open it."""
    files = tls or mesh.ca.issue(service)
    credentials = grpc.ssl_channel_credentials(
        files.ca_file.read_bytes(), files.key_file.read_bytes(), files.cert_file.read_bytes()
    )
    options = [("grpc.ssl_target_name_override", "guardrails.lionrock.internal")]
    return grpc.aio.secure_channel(f"127.0.0.1:{running.port}", credentials, options)
