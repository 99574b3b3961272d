"""The second port, whose callers show no certificate: what reaches a service through it, and what does not."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from lionrock.chassis.calls import current_call
from lionrock.chassis.errors import RemoteError, remote_error
from lionrock.chassis.server import AnyTenant
from lionrock.guardrails.v1 import guardrails_pb2 as pb
from lionrock.guardrails.v1 import guardrails_pb2_grpc as rpc

REQUEST = pb.ListProfilesRequest()
TOKENS = AnyTenant(tokens=True)


@asynccontextmanager
async def without_certificate(mesh: Any, port: int | None) -> AsyncIterator[grpc.aio.Channel]:
    authorities = mesh.ca.authority.certificate_pem
    name = [("grpc.ssl_target_name_override", "guardrails.lionrock.internal")]
    async with grpc.aio.secure_channel(f"127.0.0.1:{port}", grpc.ssl_channel_credentials(authorities), options=name) as channel:
        yield channel


async def failure(call: Any) -> RemoteError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return remote_error(caught.value)


async def test_a_service_that_takes_tokens_is_told_that_nobody_showed_a_certificate(small_mesh: Any) -> None:
    seen: list[object] = []

    async def look(context: Any) -> None:
        call = current_call()
        assert call is not None
        seen.append(call.caller)
        seen.append(dict(call.context.invocation_metadata())["authorization"])

    async def list_profiles(request: Any, context: Any) -> Any:
        await look(context)
        return pb.ListProfilesResponse()

    small_mesh.servicer.ListProfiles = list_profiles  # type: ignore[method-assign]
    async with (
        small_mesh.serving(TOKENS, token_listen="127.0.0.1:0") as server,
        without_certificate(small_mesh, server.token_port) as channel,
    ):
        await rpc.GuardrailsServiceStub(channel).ListProfiles(REQUEST, metadata=[("authorization", "Bearer x")])
    assert seen == [None, "Bearer x"]


@pytest.mark.parametrize("callers", [AnyTenant(), frozenset({"gateway"}), frozenset()])
async def test_a_service_that_takes_none_cannot_be_called_without_a_certificate(small_mesh: Any, callers: Any) -> None:
    async with (
        small_mesh.serving(callers, token_listen="127.0.0.1:0") as server,
        without_certificate(small_mesh, server.token_port) as channel,
    ):
        metadata = [("authorization", "Bearer x")]
        error = await failure(rpc.GuardrailsServiceStub(channel).ListProfiles(REQUEST, metadata=metadata))
        assert error.reason == "CALLER_NOT_PERMITTED"


async def test_health_and_reflection_are_not_for_strangers(small_mesh: Any) -> None:
    async with (
        small_mesh.serving(TOKENS, token_listen="127.0.0.1:0", reflection=True) as server,
        without_certificate(small_mesh, server.token_port) as channel,
    ):
        error = await failure(health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest()))
        assert error.reason == "CALLER_NOT_PERMITTED"


async def test_the_first_port_asks_for_a_certificate_as_ever(small_mesh: Any) -> None:
    async with (
        small_mesh.serving(TOKENS, token_listen="127.0.0.1:0") as server,
        without_certificate(small_mesh, server.port) as channel,
    ):
        error = await failure(rpc.GuardrailsServiceStub(channel).ListProfiles(REQUEST, timeout=5))
        assert error.status is grpc.StatusCode.UNAVAILABLE


async def test_a_certificate_is_not_looked_at_where_none_is_asked_for(small_mesh: Any) -> None:
    """One that is shown all the same makes nobody of its holder, and surely not a service."""
    tls = small_mesh.ca.issue("gateway")
    credentials = grpc.ssl_channel_credentials(tls.ca_file.read_bytes(), tls.key_file.read_bytes(), tls.cert_file.read_bytes())
    name = [("grpc.ssl_target_name_override", "guardrails.lionrock.internal")]
    async with (
        small_mesh.serving(frozenset({"gateway"}), token_listen="127.0.0.1:0") as server,
        grpc.aio.secure_channel(f"127.0.0.1:{server.token_port}", credentials, options=name) as channel,
    ):
        error = await failure(rpc.GuardrailsServiceStub(channel).ListProfiles(REQUEST))
        assert error.reason == "CALLER_NOT_PERMITTED"


async def test_bearers_of_one_token_share_one_bound(small_mesh: Any) -> None:
    bound = {"token_listen": "127.0.0.1:0", "max_concurrent_rpcs_per_caller": 1}
    async with small_mesh.serving(TOKENS, **bound) as server, without_certificate(small_mesh, server.token_port) as channel:
        stub = rpc.GuardrailsServiceStub(channel)
        held = stub.InspectStream(metadata=[("authorization", "Bearer a")])
        await held.write(pb.InspectStreamRequest(open=pb.StreamOpen(profile="wait", direction=pb.DIRECTION_ANSWER)))
        await small_mesh.servicer.entered.wait()
        assert (await failure(stub.ListProfiles(REQUEST, metadata=[("authorization", "Bearer a")]))).reason == "OVERLOADED"
        await stub.ListProfiles(REQUEST, metadata=[("authorization", "Bearer b")])
        held.cancel()
