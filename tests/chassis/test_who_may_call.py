"""Strangers are refused at the handshake, members without permission by status, and rotation changes who is which."""

from __future__ import annotations

import asyncio
import datetime as dt
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from lionrock.chassis.errors import remote_error
from lionrock.chassis.server import AnyTenant, CannotListen, start_server
from lionrock.chassis.tls import TlsFilesUnusable
from lionrock.guardrails.v1 import guardrails_pb2 as pb
from lionrock.guardrails.v1 import guardrails_pb2_grpc as rpc
from mesh_ca import DevCa

SERVER_NAME = [("grpc.ssl_target_name_override", "guardrails.lionrock.internal")]


async def attempt(channel: grpc.aio.Channel, request: Any) -> tuple[grpc.StatusCode, str | None]:
    """Call Inspect once; OK or how it was refused."""
    async with channel:
        try:
            await rpc.GuardrailsServiceStub(channel).Inspect(request, timeout=5)
        except grpc.aio.AioRpcError as error:
            return error.code(), remote_error(error).reason
        return grpc.StatusCode.OK, None


def stranger(port: int, *, ca: bytes, certificate: bytes | None = None, key: bytes | None = None) -> grpc.aio.Channel:
    return grpc.aio.secure_channel(f"127.0.0.1:{port}", grpc.ssl_channel_credentials(ca, key, certificate), SERVER_NAME)


def member(port: int, tls: Any) -> grpc.aio.Channel:
    return stranger(port, ca=tls.ca_file.read_bytes(), certificate=tls.cert_file.read_bytes(), key=tls.key_file.read_bytes())


REFUSED_BY_TRANSPORT = (grpc.StatusCode.UNAVAILABLE, None)
NOT_PERMITTED = (grpc.StatusCode.PERMISSION_DENIED, "CALLER_NOT_PERMITTED")
SERVED = (grpc.StatusCode.OK, None)


async def test_plain_text_is_refused(small_mesh: Any, inspect: Any) -> None:
    async with small_mesh.serving() as running:
        assert await attempt(grpc.aio.insecure_channel(f"127.0.0.1:{running.port}"), inspect()) == REFUSED_BY_TRANSPORT


async def test_a_caller_without_a_certificate_is_refused(small_mesh: Any, inspect: Any) -> None:
    async with small_mesh.serving() as running:
        assert await attempt(stranger(running.port, ca=small_mesh.ca.authority.certificate_pem), inspect()) == REFUSED_BY_TRANSPORT


async def test_a_certificate_of_another_authority_is_refused(small_mesh: Any, inspect: Any, tmp_path: Path) -> None:
    forged = DevCa(tmp_path / "other").issue("gateway")
    channel_arguments = {"certificate": forged.cert_file.read_bytes(), "key": forged.key_file.read_bytes()}
    async with small_mesh.serving() as running:
        channel = stranger(running.port, ca=small_mesh.ca.authority.certificate_pem, **channel_arguments)
        assert await attempt(channel, inspect()) == REFUSED_BY_TRANSPORT


async def test_an_expired_certificate_is_refused(small_mesh: Any, inspect: Any) -> None:
    yesterday = dt.datetime.now(dt.UTC) - dt.timedelta(days=1)
    expired = small_mesh.ca.issue("gateway", not_before=yesterday, lifetime=dt.timedelta(hours=1))
    async with small_mesh.serving() as running:
        assert await attempt(member(running.port, expired), inspect()) == REFUSED_BY_TRANSPORT


async def test_a_certificate_that_is_not_valid_yet_is_refused(small_mesh: Any, inspect: Any) -> None:
    early = small_mesh.ca.issue("gateway", not_before=dt.datetime.now(dt.UTC) + dt.timedelta(hours=1))
    async with small_mesh.serving() as running:
        assert await attempt(member(running.port, early), inspect()) == REFUSED_BY_TRANSPORT


@pytest.mark.parametrize(
    "spiffe_id",
    [
        "spiffe://lionrock.local/service/audit",
        "spiffe://lionrock.local/service/gateway2",
        "spiffe://lionrock.local/service/gateway/x",
        "spiffe://lionrock.local/tenant/acme/user/gateway",
        "spiffe://lionrock.local/gateway",
        "spiffe://other.local/service/gateway",
    ],
)
async def test_an_identity_that_is_not_on_the_list_is_denied(small_mesh: Any, inspect: Any, spiffe_id: str) -> None:
    async with small_mesh.serving() as running:
        assert await attempt(member(running.port, small_mesh.ca.issue(spiffe_id=spiffe_id)), inspect()) == NOT_PERMITTED


async def test_nobody_may_call_what_names_no_callers(small_mesh: Any, inspect: Any) -> None:
    async with small_mesh.serving(callers=frozenset()) as running:
        assert await attempt(member(running.port, small_mesh.ca.issue("gateway")), inspect()) == NOT_PERMITTED


async def test_a_door_for_tenants_lets_tenants_in_and_services_not(small_mesh: Any, inspect: Any) -> None:
    async with small_mesh.serving(callers=AnyTenant()) as running:
        assert await attempt(member(running.port, small_mesh.ca.issue_tenant("acme")), inspect()) == SERVED
        assert await attempt(member(running.port, small_mesh.ca.issue("gateway")), inspect()) == NOT_PERMITTED


async def test_a_client_refuses_a_server_with_the_certificate_of_another_service(small_mesh: Any, inspect: Any) -> None:
    async with small_mesh.serving(tls=small_mesh.ca.issue("audit")) as running, small_mesh.calling(running) as stub:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.Inspect(inspect())
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE


async def test_a_rotated_certificate_serves_new_connections_and_old_ones_live_on(small_mesh: Any, inspect: Any) -> None:
    tls = small_mesh.ca.issue("guardrails")
    async with small_mesh.serving(tls=tls) as running, small_mesh.calling(running) as stub:
        before = await stub.Inspect(inspect())
        stream = stub.InspectStream()
        await stream.write(pb.InspectStreamRequest(open=pb.StreamOpen(direction=pb.DIRECTION_ANSWER)))
        assert (await stream.read()).released == "open"
        old = tls.cert_file.read_bytes()
        small_mesh.ca.issue("guardrails")
        assert tls.cert_file.read_bytes() != old
        assert await _certificate_shown(small_mesh, running.port) == _der(tls.cert_file.read_bytes())
        await stream.write(pb.InspectStreamRequest(chunk=pb.StreamChunk(text="still here")))
        assert (await stream.read()).released == "still here"
        assert await stub.Inspect(inspect()) == before


async def test_after_the_authority_is_replaced_its_old_certificates_are_refused(
    small_mesh: Any, inspect: Any, tmp_path: Path
) -> None:
    tls, old_caller = small_mesh.ca.issue("guardrails"), small_mesh.ca.issue("gateway")
    successor = DevCa(tmp_path / "successor")
    async with small_mesh.serving(tls=tls) as running:
        assert await attempt(member(running.port, old_caller), inspect()) == SERVED
        successor.issue("guardrails", directory=tls.cert_file.parent)
        assert await attempt(member(running.port, successor.issue("gateway")), inspect()) == SERVED
        key, certificate = old_caller.key_file.read_bytes(), old_caller.cert_file.read_bytes()
        # Trusts the new authority, so that it is the server who refuses.
        trusting = stranger(running.port, ca=successor.authority.certificate_pem, certificate=certificate, key=key)
        assert await attempt(trusting, inspect()) == REFUSED_BY_TRANSPORT


async def test_half_a_rotation_keeps_the_last_good_certificate(small_mesh: Any, inspect: Any) -> None:
    tls = small_mesh.ca.issue("guardrails")
    async with small_mesh.serving(tls=tls) as running:
        good = tls.cert_file.read_bytes()
        other = small_mesh.ca.authority.issue_service("guardrails")
        tls.key_file.write_bytes(other.private_key)
        assert await _certificate_shown(small_mesh, running.port) == _der(good)
        tls.cert_file.write_bytes(other.certificate)
        assert await _certificate_shown(small_mesh, running.port) == _der(other.certificate)


async def test_a_server_does_not_start_without_usable_certificates(small_mesh: Any) -> None:
    tls = small_mesh.ca.issue("guardrails")
    tls.key_file.write_bytes(b"not a key")
    with pytest.raises(TlsFilesUnusable):
        await start_server(small_mesh.settings(tls), "guardrails", [small_mesh.registration()])


async def test_a_taken_port_is_refused_by_name_and_not_shared(small_mesh: Any) -> None:
    async with small_mesh.serving() as running:
        settings = small_mesh.settings(listen=f"127.0.0.1:{running.port}")
        with pytest.raises(CannotListen, match=str(running.port)):
            await start_server(settings, "guardrails", [small_mesh.registration()])


async def test_health_answers_every_member_and_no_stranger(small_mesh: Any) -> None:
    async with small_mesh.serving() as running:
        for tls in (small_mesh.ca.issue("audit"), small_mesh.ca.issue_tenant("acme")):
            async with member(running.port, tls) as channel:
                stub = health_pb2_grpc.HealthStub(channel)
                for service in ("", "lionrock.guardrails.v1.GuardrailsService"):
                    answer = await stub.Check(health_pb2.HealthCheckRequest(service=service), timeout=5)
                    assert answer.status == health_pb2.HealthCheckResponse.SERVING
                with pytest.raises(grpc.aio.AioRpcError) as caught:
                    await stub.Check(health_pb2.HealthCheckRequest(service="nope"), timeout=5)
                assert caught.value.code() is grpc.StatusCode.NOT_FOUND
        foreign = small_mesh.ca.issue(spiffe_id="spiffe://other.local/service/audit")
        async with member(running.port, foreign) as channel:
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=5)
            assert caught.value.code() is grpc.StatusCode.PERMISSION_DENIED


async def test_reflection_is_off_unless_set_and_then_only_for_members(small_mesh: Any) -> None:
    from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

    request = reflection_pb2.ServerReflectionRequest(list_services="")
    caller = small_mesh.ca.issue_tenant("acme")
    foreign = small_mesh.ca.issue(spiffe_id="spiffe://other.local/service/audit")

    async def listed(port: int, tls: Any) -> set[str] | grpc.StatusCode:
        async with member(port, tls) as channel:
            try:
                call = reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo(iter([request]), timeout=5)
                answer = await call.read()
            except grpc.aio.AioRpcError as error:
                return error.code()
            return {service.name for service in answer.list_services_response.service}

    async with small_mesh.serving() as running:
        assert await listed(running.port, caller) is grpc.StatusCode.UNIMPLEMENTED
    async with small_mesh.serving(reflection=True) as running:
        names = await listed(running.port, caller)
        assert isinstance(names, set)
        assert {"lionrock.guardrails.v1.GuardrailsService", "grpc.health.v1.Health"} <= names
        assert await listed(running.port, foreign) is grpc.StatusCode.PERMISSION_DENIED


def _der(pem: bytes) -> bytes:
    import ssl

    return ssl.PEM_cert_to_DER_cert(pem.decode().partition("-----END CERTIFICATE-----")[0] + "-----END CERTIFICATE-----\n")


async def _certificate_shown(mesh: Any, port: int) -> bytes:
    """Return the certificate (DER) of a new handshake, seen by another TLS implementation than gRPC's."""
    import ssl

    caller = mesh.ca.issue("gateway", directory=mesh.directory / "probe")
    context = ssl.create_default_context(cafile=str(caller.ca_file))
    context.load_cert_chain(caller.cert_file, caller.key_file)
    context.set_alpn_protocols(["h2"])
    _, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context, server_hostname="guardrails.lionrock.internal")
    shown: bytes = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
    writer.transport.abort()
    return shown
