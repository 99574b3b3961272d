"""Clients that hold something open and do nothing with it: connections without a handshake, answers that nobody reads.

Requests that dribble in, readers that stall on HTTP/1.1 and calls without a message are tested at their doors (tests/chassis/
test_http_server.py, test_calls_over_the_wire.py, tests/gateway/test_openai_door.py). Here HTTP/2 is spoken by hand, for what no
client library does: a window of nothing, a call whose own side never ends.
"""

from __future__ import annotations

import asyncio
import json
import ssl
import struct
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import h2.config
import h2.connection
import h2.events
import h2.settings
import pytest

from http_calls import body, official
from lionrock.audit.v1 import audit_pb2 as audit
from lionrock.chassis.settings import TlsSettings
from lionrock.common.v1 import chat_pb2 as chat
from lionrock.gateway.v1 import gateway_pb2 as gw
from scripted_mesh import ScriptedMesh

STRANGERS = 60
"""Connections of a flood. Of them none shows who it is."""
DEADLINE_S = 1.5
SOON_S = 15.0
CHAT_PATH = "/lionrock.gateway.v1.GatewayService/Chat"


@pytest.fixture
async def web(idle_mesh: ScriptedMesh, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[ScriptedMesh]:
    """A gateway with both doors, at which a handshake has half a second."""
    monkeypatch.setattr("lionrock.chassis.server.HANDSHAKE_TIMEOUT_MS", 500)
    monkeypatch.setattr("lionrock.chassis.http_server._HANDSHAKE_TIMEOUT_S", 0.5)
    idle_mesh.http = {"keep_alive_s": 1.0}
    async with idle_mesh.running():
        yield idle_mesh


@pytest.fixture
def idle_mesh(tmp_path: Any) -> ScriptedMesh:
    """Answers are long."""
    mesh = ScriptedMesh(tmp_path)
    mesh.engine.text, mesh.engine.chunk = "x" * 1_000_000, 10_000
    return mesh


def port_of(mesh: ScriptedMesh, door: str) -> int:
    return int(mesh.targets[door].rpartition(":")[2])


async def still_served(mesh: ScriptedMesh) -> None:
    """Others are answered, at both doors."""
    short = gw.ChatRequest(messages=[chat.ChatMessage(role=chat.CHAT_ROLE_USER, content="hello")])
    short.sampling.max_tokens = 20
    async with asyncio.timeout(SOON_S), mesh.calling(mesh.identity("broker")) as stub:
        assert [response async for response in stub.Chat(short)][-1].finished.receipt.tlog_proof
        async with official(mesh, mesh.identity("broker")) as other:
            answer = await other.chat.completions.create(**body(max_tokens=20))
            assert answer.choices[0].message.content == "x" * 20


HALF_A_HELLO = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\x00" * 20
BEGINNINGS = {"nothing": b"", "half a hello": HALF_A_HELLO, "no TLS": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"}


@pytest.mark.parametrize("door", ["gateway", "http"])
@pytest.mark.parametrize("said", BEGINNINGS)
async def test_connections_that_never_finish_a_handshake_are_closed_and_hold_nobody_up(
    web: ScriptedMesh, door: str, said: str
) -> None:
    connections = [await asyncio.open_connection("127.0.0.1", port_of(web, door)) for _ in range(STRANGERS)]
    for _, writer in connections:
        writer.write(BEGINNINGS[said])
    await still_served(web)
    async with asyncio.timeout(SOON_S):
        for reader, writer in connections:
            await until_closed(reader)
            writer.transport.abort()
    assert len(web.log.intents) == 2


async def until_closed(reader: asyncio.StreamReader) -> None:
    try:
        while await reader.read(65536):
            pass
    except OSError:
        pass


class Http2:
    """A client that speaks as it is told."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer
        self.connection = h2.connection.H2Connection(h2.config.H2Configuration(header_encoding="utf-8"))
        self.events: list[h2.events.Event] = []

    def send(self) -> None:
        self.writer.write(self.connection.data_to_send())

    async def heard(self, ended: Callable[[h2.events.Event], bool]) -> h2.events.Event:
        """Read until something happens; what comes is acknowledged, but no window is opened."""
        while True:
            for event in self.events:
                if ended(event):
                    return event
            data = await self.reader.read(65536)
            assert data, "the connection was closed"
            self.events += self.connection.receive_data(data)
            self.send()

    @property
    def data(self) -> bytes:
        return b"".join(event.data for event in self.events if isinstance(event, h2.events.DataReceived))


@asynccontextmanager
async def speaking(mesh: ScriptedMesh, door: str, *, window: int) -> AsyncIterator[Http2]:
    """A connection with the bank's certificate whose streams have a window of so many bytes."""
    tls: TlsSettings = mesh.identity()
    context = ssl.create_default_context(cafile=str(tls.ca_file))
    context.load_cert_chain(tls.cert_file, tls.key_file)
    context.set_alpn_protocols(["h2"])
    reader, writer = await asyncio.open_connection("localhost", port_of(mesh, door), ssl=context)
    client = Http2(reader, writer)
    client.connection.local_settings = h2.settings.Settings(
        client=True, initial_values={h2.settings.SettingCodes.INITIAL_WINDOW_SIZE: window}
    )
    client.connection.initiate_connection()
    client.send()
    try:
        yield client
    finally:
        writer.transport.abort()


def grpc_chat(client: Http2, stream: int, *, end: bool = True) -> None:
    """Ask for a long answer over gRPC, by hand."""
    question = gw.ChatRequest(messages=[chat.ChatMessage(role=chat.CHAT_ROLE_USER, content="hello")]).SerializeToString()
    head = [(":method", "POST"), (":scheme", "https"), (":path", CHAT_PATH), (":authority", "localhost"), ("te", "trailers")]
    head += [("content-type", "application/grpc"), ("grpc-timeout", f"{int(DEADLINE_S * 1000)}m")]
    client.connection.send_headers(stream, head)
    client.connection.send_data(stream, struct.pack(">?I", False, len(question)) + question, end_stream=end)
    client.send()


def http_chat(client: Http2, stream: int) -> None:
    """Ask for a long answer over HTTP/2, by hand."""
    question = json.dumps(body(stream=True)).encode()
    head = [(":method", "POST"), (":scheme", "https"), (":path", "/v1/chat/completions"), (":authority", "localhost")]
    head += [("content-type", "application/json"), ("lionrock-timeout", str(DEADLINE_S))]
    client.connection.send_headers(stream, head)
    client.connection.send_data(stream, question, end_stream=True)
    client.send()


@pytest.mark.parametrize("window", [0, 1, 1000])
@pytest.mark.parametrize("door", ["gateway", "http"])
async def test_an_answer_that_nobody_reads_ends_with_its_deadline_and_holds_nobody_up(
    web: ScriptedMesh, door: str, window: int
) -> None:
    async with speaking(web, door, window=window) as client:
        for stream in range(1, 21, 2):
            (grpc_chat if door == "gateway" else http_chat)(client, stream)
        await still_served(web)
        async with asyncio.timeout(SOON_S):
            outcomes = [(await web.log.outcome(number)).outcome for number in range(12)]
        unread = [outcome for outcome in outcomes if outcome.status != audit.OUTCOME_STATUS_ANSWERED]
        assert [outcome.reason for outcome in unread] == ["DEADLINE_EXCEEDED"] * 10
        assert web.engine.running == 0
        assert len(client.data) <= 10 * window
    assert max(len(outcome.answer) for outcome in unread) < 500_000, "a stalled reader stalls its engine"


async def test_a_call_that_never_ends_its_own_side_is_answered_all_the_same(web: ScriptedMesh) -> None:
    web.engine.text = "Hello."
    async with speaking(web, "gateway", window=65_535) as client, asyncio.timeout(SOON_S):
        grpc_chat(client, 1, end=False)
        trailers = await client.heard(lambda event: isinstance(event, h2.events.TrailersReceived))
        assert isinstance(trailers, h2.events.TrailersReceived)
        assert dict(trailers.headers)["grpc-status"] == "0"


async def test_a_connection_that_says_nothing_after_its_handshake_is_closed_over_http(web: ScriptedMesh) -> None:
    """Over gRPC it idles, as connections of services do; how many there may be is bounded, and so is their life."""
    async with speaking(web, "http", window=65_535) as client, asyncio.timeout(SOON_S):
        await until_closed(client.reader)
    await still_served_over_grpc(web)


async def still_served_over_grpc(mesh: ScriptedMesh) -> None:
    async with mesh.calling() as stub:
        assert (await stub.ListModels(gw.ListModelsRequest())).models
