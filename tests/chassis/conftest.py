"""A small real service on the guardrails contract, whose handlers do what the profile of the request says."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest

from lionrock.chassis.channel import open_channel
from lionrock.chassis.errors import MeshError
from lionrock.chassis.identity import caller
from lionrock.chassis.server import AnyTenant, Registration, RunningServer, start_server
from lionrock.chassis.settings import PeerSettings, ServerSettings, ServiceSettings, TlsSettings
from lionrock.guardrails.v1 import guardrails_pb2 as pb
from lionrock.guardrails.v1 import guardrails_pb2_grpc as rpc
from mesh_ca import TRUST_DOMAIN, DevCa

SERVICE = "lionrock.guardrails.v1.GuardrailsService"
SECRET = "canary-4f1d-陳大文"


class PolicyRefused(MeshError):
    """An error with everything that an error can carry."""

    status, reason = grpc.StatusCode.FAILED_PRECONDITION, "POLICY_REFUSED"


class SmallGuardrails(rpc.GuardrailsServiceServicer):
    """Answers with the caller's id; profiles select how it misbehaves."""

    def __init__(self) -> None:
        self.entered = asyncio.Event()
        self.release = asyncio.Event()
        self.cancelled = asyncio.Event()
        self.closed = asyncio.Event()
        self.behaviours: dict[str, Callable[[Any], Awaitable[Any]]] = {}

    async def _misbehave(self, profile: str, context: Any) -> None:
        if profile in self.behaviours:
            await self.behaviours[profile](context)
        if profile == "raise":
            raise ValueError(SECRET)
        if profile == "refuse":
            raise PolicyRefused(
                "not now",
                metadata={"profile": "strict"},
                retry_after_s=1.5,
                field_violations=[("parts[0].text", "too rude")],
                quota_violations=[("tenant", "too many")],
            )
        if profile == "wait":
            self.entered.set()
            try:
                await self.release.wait()
            except asyncio.CancelledError:
                self.cancelled.set()
                raise
        if profile == "wrong-type":
            raise AssertionError

    async def Inspect(self, request: Any, context: Any) -> Any:
        await self._misbehave(request.profile, context)
        if request.profile == "nothing":
            return None
        return pb.InspectResponse(action=pb.ACTION_ALLOW, safe_message=str(caller(context)))

    async def InspectStream(self, request_iterator: Any, context: Any) -> AsyncIterator[Any]:
        try:
            profile = ""
            async for request in request_iterator:
                if request.WhichOneof("message") == "open":
                    profile = request.open.profile
                    yield pb.InspectStreamResponse(released="open")
                    await self._misbehave(profile, context)
                elif request.WhichOneof("message") == "chunk":
                    yield pb.InspectStreamResponse(released=request.chunk.text)
                    if profile == "raise-late":
                        raise ValueError(SECRET)
                else:
                    return
        finally:
            self.closed.set()

    async def ListProfiles(self, request: Any, context: Any) -> Any:
        return pb.ListProfilesResponse()


class SmallSettings(ServiceSettings):
    """Settings of the small service."""


class SmallMesh:
    """A directory with a CA, from which servers and callers are started."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.ca = DevCa(directory)
        self.servicer = SmallGuardrails()

    def settings(self, tls: TlsSettings | None = None, **server: Any) -> SmallSettings:
        return SmallSettings(
            server=ServerSettings(tls=tls or self.ca.issue("guardrails"), trust_domain=TRUST_DOMAIN, **server),
        )

    def registration(self, callers: frozenset[str] | AnyTenant = frozenset({"gateway"})) -> Registration:
        return Registration(rpc.add_GuardrailsServiceServicer_to_server, self.servicer, SERVICE, callers)

    @asynccontextmanager
    async def serving(
        self,
        callers: frozenset[str] | AnyTenant = frozenset({"gateway"}),
        tls: TlsSettings | None = None,
        parts: tuple[str, ...] = (),
        **server: Any,
    ) -> AsyncIterator[RunningServer]:
        running = await start_server(self.settings(tls, **server), "guardrails", [self.registration(callers)], parts)
        try:
            yield running
        finally:
            await running.stop()

    @asynccontextmanager
    async def calling(
        self, running: RunningServer, tls: TlsSettings | None = None, *, timeout_s: float = 10
    ) -> AsyncIterator[rpc.GuardrailsServiceAsyncStub]:
        peer = PeerSettings(target=f"127.0.0.1:{running.port}", service="guardrails", timeout_s=timeout_s)
        async with open_channel(peer, tls or self.ca.issue("gateway"), name="gateway") as channel:
            yield rpc.GuardrailsServiceStub(channel)


@pytest.fixture
def small_mesh(tmp_path: Path) -> SmallMesh:
    """A mesh directory of its own."""
    return SmallMesh(tmp_path)


@pytest.fixture
def inspect() -> Callable[..., Any]:
    """Make a valid request of `Inspect`."""

    def build(profile: str = "", text: str = "hello") -> Any:
        part = pb.TextPart(text=text, source=pb.TEXT_SOURCE_USER)
        return pb.InspectRequest(profile=profile, direction=pb.DIRECTION_PROMPT, parts=[part])

    return build
