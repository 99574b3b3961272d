"""A gateway before scripted inner services (tests/scripted_mesh.py), and short ways to ask it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import grpc
import pytest

from lionrock.chassis.errors import RemoteError, remote_error
from lionrock.common.v1 import chat_pb2 as chat
from lionrock.gateway.v1 import gateway_pb2 as gw
from scripted_mesh import ScriptedMesh


@pytest.fixture
def idle_mesh(tmp_path: Path) -> ScriptedMesh:
    """Not started, so that a test can change it first."""
    return ScriptedMesh(tmp_path)


@pytest.fixture
async def mesh(idle_mesh: ScriptedMesh) -> AsyncIterator[ScriptedMesh]:
    """A running mesh."""
    async with idle_mesh.running():
        yield idle_mesh


@pytest.fixture
async def stub(mesh: ScriptedMesh) -> AsyncIterator[Any]:
    """The gateway, for a user of the bank."""
    async with mesh.calling() as gateway:
        yield gateway


def question(text: str = "Say hello.", **fields: Any) -> gw.ChatRequest:
    """One user turn."""
    return gw.ChatRequest(messages=[chat.ChatMessage(role=chat.CHAT_ROLE_USER, content=text)], **fields)


@pytest.fixture
def ask() -> Callable[..., gw.ChatRequest]:
    """Make a ChatRequest."""
    return question


class Heard:
    """All messages of one answer."""

    def __init__(self, responses: list[gw.ChatResponse]) -> None:
        self.responses = responses
        self.kinds = [response.WhichOneof("message") for response in responses]
        self.deltas = [response.delta for response in responses if response.HasField("delta")]
        self.text = "".join(delta.text for delta in self.deltas)
        self.started = responses[0].started
        self.finished = responses[-1].finished


@pytest.fixture
def hear() -> Callable[..., Any]:
    """Read a whole answer."""

    async def read(call: Any) -> Heard:
        return Heard([response async for response in call])

    return read


async def drain(call: Any) -> None:
    """Read a stream to its end."""
    async for _ in call:
        pass


@pytest.fixture
def failure() -> Callable[..., Any]:
    """Await a call that has to fail, and return its error as its caller sees it."""

    async def read(call: Any) -> RemoteError:
        answered = drain(call) if hasattr(call, "read") else call
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await answered
        return remote_error(caught.value)

    return read
