"""Every service that needs no Ray, started for real in one process, and raw calls of any of their methods.

The gateway runs before the scripted inner services of tests/scripted_mesh.py: what is under test here is what each server does with
hostile bytes, and those of the inner services are tried on the inner services themselves.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Coroutine
from contextlib import AsyncExitStack, asynccontextmanager, closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
from google.protobuf import message_factory
from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.message import DecodeError, Message
from grpc_health.v1 import health_pb2, health_pb2_grpc

from hostile import payloads
from lionrock.audit.keys import KeyDirectory
from lionrock.audit.log import Limits, open_logs
from lionrock.audit.platform_log import PlatformLog, open_platform_log
from lionrock.audit.records.opening import open_records
from lionrock.audit.records.servicer import RecordsServicer
from lionrock.audit.servicer import AuditServicer
from lionrock.audit.signed_checkpoints import SignedCheckpoints
from lionrock.audit.store.sqlite import SqliteLogStore
from lionrock.audit.v1 import audit_pb2, audit_pb2_grpc, records_pb2, records_pb2_grpc
from lionrock.audit.vault.settings import VaultSettings
from lionrock.chassis.channel import open_channel
from lionrock.chassis.errors import remote_error
from lionrock.chassis.ids import uuid7
from lionrock.chassis.server import Registration, start_server
from lionrock.chassis.settings import PeerSettings, ServerSettings, ServiceSettings
from lionrock.common.v1 import context_pb2
from lionrock.gateway.v1 import gateway_pb2
from lionrock.guardrails.policy import load_policies
from lionrock.guardrails.servicer import GuardrailsServicer
from lionrock.guardrails.settings import WorkSettings
from lionrock.guardrails.v1 import guardrails_pb2, guardrails_pb2_grpc
from lionrock.tokenization.codec import open_codec
from lionrock.tokenization.heavy_work import HeavyWork
from lionrock.tokenization.servicer import TokenizationServicer
from lionrock.tokenization.v1 import tokenization_pb2, tokenization_pb2_grpc
from mesh_ca import TRUST_DOMAIN, DevCa
from models import SMOLLM2, smollm2_path
from scripted_mesh import ScriptedMesh

SERVICES = {
    "gateway": gateway_pb2.DESCRIPTOR.services_by_name["GatewayService"],
    "tokenization": tokenization_pb2.DESCRIPTOR.services_by_name["TokenizationService"],
    "guardrails": guardrails_pb2.DESCRIPTOR.services_by_name["GuardrailsService"],
    "audit": audit_pb2.DESCRIPTOR.services_by_name["AuditService"],
    "records": records_pb2.DESCRIPTOR.services_by_name["RecordsService"],
}
METHODS: list[MethodDescriptor] = [method for service in SERVICES.values() for method in service.methods]
TIMEOUT_S = 20.0
MAX_MESSAGE_BYTES = ServerSettings.model_fields["max_message_bytes"].default


def context() -> context_pb2.RequestContext:
    """A context as the gateway writes it."""
    return context_pb2.RequestContext(
        request_id=uuid7(),
        tenant="bank",
        actor="spiffe://lionrock.local/tenant/bank/user/ada",
        auth_method=context_pb2.AUTH_METHOD_MTLS,
        roles=["auditor", "mlro", "privacy_officer", "user"],
        purpose="testing",
        territory="HK",
        profile="default",
    )


def sensible(request: Message) -> None:
    """Give a message the context and the model that let it pass the door."""
    for descriptor, _ in request.ListFields():
        if descriptor.message_type is not None and not descriptor.is_repeated:
            sensible(getattr(request, descriptor.name))
    names = {descriptor.name for descriptor in request.DESCRIPTOR.fields}
    if "context" in names:
        request.context.CopyFrom(context())  # type: ignore[attr-defined]
    if "model" in names and request.DESCRIPTOR.fields_by_name["model"].message_type is None:
        request.model = SMOLLM2  # type: ignore[attr-defined]
    if "profile" in names:
        request.profile = ""  # type: ignore[attr-defined]


@dataclass(slots=True)
class Served:
    """Channels to the running services, by name."""

    channels: dict[str, grpc.aio.Channel] = field(default_factory=dict)

    async def call(self, method: MethodDescriptor, seed: int) -> tuple[grpc.StatusCode, str]:
        """Send the hostile requests of a seed as raw bytes; return the status and its machine-readable reason."""
        channel = self.channels[_room(method)]
        path = f"/{method.containing_service.full_name}/{method.name}"
        sent = list(payloads(method, seed, sensible))
        try:
            if method.client_streaming:
                # One answer a message: grpc.aio calls it INTERNAL when a client writes to a stream that the server has ended.
                call = channel.stream_stream(path)(timeout=TIMEOUT_S)
                for data in sent:
                    await call.write(data)
                    if await call.read() is grpc.aio.EOF:
                        break
                else:
                    await call.done_writing()
                    assert await call.read() is grpc.aio.EOF
            elif method.server_streaming:
                async for _ in channel.unary_stream(path)(sent[0], timeout=TIMEOUT_S):
                    pass
            else:
                await channel.unary_unary(path)(sent[0], timeout=TIMEOUT_S)
        except grpc.aio.AioRpcError as error:
            too_large = any(len(data) > MAX_MESSAGE_BYTES for data in sent)
            if error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED and too_large:
                return error.code(), "refused by gRPC before it is read, which has no reasons of ours"
            return error.code(), remote_error(error).reason
        return grpc.StatusCode.OK, ""

    async def still_serves(self, method: MethodDescriptor) -> None:
        """Raise unless the service of the method says SERVING."""
        stub = health_pb2_grpc.HealthStub(self.channels[_room(method)])
        response = await stub.Check(health_pb2.HealthCheckRequest(service=method.containing_service.full_name), timeout=TIMEOUT_S)
        assert response.status == health_pb2.HealthCheckResponse.SERVING

    def whole_text(self, text: str) -> list[Coroutine[Any, Any, tuple[grpc.StatusCode, str]]]:
        """Calls that carry one long text, each through the RPC that would meet it first."""
        conversation = tokenization_pb2.Conversation(messages=[{"role": 2, "content": text}])  # type: ignore[list-item]
        encode = tokenization_pb2.EncodeRequest(context=context(), model=SMOLLM2, conversation=conversation)
        inspect = guardrails_pb2.InspectRequest(
            context=context(),
            direction=guardrails_pb2.DIRECTION_PROMPT,
            parts=[guardrails_pb2.TextPart(text=text, source=guardrails_pb2.TEXT_SOURCE_USER)],
        )
        chat = gateway_pb2.ChatRequest(messages=[{"role": 2, "content": text}])  # type: ignore[list-item]
        return [
            self._status("tokenization", "Encode", encode),
            self._status("guardrails", "Inspect", inspect),
            self._status("gateway", "Chat", chat),
        ]

    async def _status(self, room: str, name: str, request: Message) -> tuple[grpc.StatusCode, str]:
        path = f"/{SERVICES[room].full_name}/{name}"
        data = request.SerializeToString()
        try:
            if SERVICES[room].methods_by_name[name].server_streaming:
                async for _ in self.channels[room].unary_stream(path)(data, timeout=TIMEOUT_S):
                    pass
            else:
                await self.channels[room].unary_unary(path)(data, timeout=TIMEOUT_S)
        except grpc.aio.AioRpcError as error:
            return error.code(), remote_error(error).reason
        return grpc.StatusCode.OK, ""


def decoded(method: MethodDescriptor, seed: int) -> list[Message | None]:
    """What `call` sends for a seed, decoded where it can be; for a person who looks into a failure."""
    messages: list[Message | None] = []
    for data in payloads(method, seed, sensible):
        message = message_factory.GetMessageClass(method.input_type)()
        try:
            message.ParseFromString(data)
        except (ValueError, DecodeError):
            messages.append(None)
        else:
            messages.append(message)
    return messages


@asynccontextmanager
async def serve_all(directory: Path) -> AsyncIterator[Served]:
    """Start all services below a directory."""
    async with AsyncExitStack() as stack:
        mesh = ScriptedMesh(directory / "mesh")
        await stack.enter_async_context(mesh.running())
        ca = DevCa(directory / "inner")
        log_store = stack.enter_context(closing(SqliteLogStore(directory / "audit.sqlite")))
        signed = stack.enter_context(closing(SignedCheckpoints(directory / "keys" / "signed-checkpoints.jsonl")))
        limits = Limits(1024, 256, 60.0)
        keys = KeyDirectory(directory / "keys")
        logs = open_logs(log_store, keys, signed, ["bank"], platform="lionrock.local", region="HK", limits=limits)
        platform_log = PlatformLog(open_platform_log("lionrock.local", log_store, keys, signed), logs, log_store, signed)
        await stack.enter_async_context(logs)
        await platform_log.begin(None)
        vault = VaultSettings(key_store_file=directory / "vault" / "keys.sqlite", local_key_dir=directory / "tenant-keys")
        records = await stack.enter_async_context(open_records(vault, logs, ["bank"]))
        heavy_work = HeavyWork(1, 8)
        stack.callback(heavy_work.close)
        codecs = {SMOLLM2: open_codec(SMOLLM2, smollm2_path(), max_tokens=1_048_576)}
        guardrails = GuardrailsServicer(load_policies(None), WorkSettings())
        stack.callback(guardrails.close)
        tokenization = TokenizationServicer(codecs, heavy_work, heavy_chars=32_768)
        rooms = {
            "tokenization": (tokenization_pb2_grpc.add_TokenizationServiceServicer_to_server, tokenization),
            "guardrails": (guardrails_pb2_grpc.add_GuardrailsServiceServicer_to_server, guardrails),
            "audit": (audit_pb2_grpc.add_AuditServiceServicer_to_server, AuditServicer(logs, platform_log)),
            "records": (records_pb2_grpc.add_RecordsServiceServicer_to_server, RecordsServicer(records)),
        }
        served = Served()
        for room, (add, servicer) in rooms.items():
            settings = ServiceSettings(server=ServerSettings(tls=ca.issue(room), trust_domain=TRUST_DOMAIN))
            registration = Registration(add, servicer, SERVICES[room].full_name, frozenset({"gateway"}))
            server = await start_server(settings, room, [registration])
            stack.push_async_callback(server.stop)
            peer = PeerSettings(target=f"127.0.0.1:{server.port}", service=room, timeout_s=TIMEOUT_S)
            served.channels[room] = await stack.enter_async_context(open_channel(peer, ca.issue("gateway"), name="test"))
        door = PeerSettings(target=mesh.targets["gateway"], service="gateway", timeout_s=TIMEOUT_S)
        served.channels["gateway"] = await stack.enter_async_context(open_channel(door, mesh.identity(), name="test"))
        yield served


def _room(method: MethodDescriptor) -> str:
    return next(room for room, service in SERVICES.items() if service.full_name == method.containing_service.full_name)
