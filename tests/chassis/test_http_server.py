"""The HTTP server against clients that mean harm, that stop in the middle, and that are only slow."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
import signal
import socket
import ssl
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lionrock.chassis.http_server import CannotListen, RunningHttpServer, start_http_server
from lionrock.chassis.http_settings import HttpServerSettings
from mesh_ca import DevCa

LIMITS: dict[str, Any] = {
    "max_header_bytes": 4096,
    "max_body_bytes": 10_000,
    "body_timeout_s": 0.5,
    "request_timeout_s": 2.0,
    "write_timeout_s": 0.5,
    "keep_alive_s": 0.5,
    "max_connections": 8,
}


class Application:
    """Echoes bodies at /, and misbehaves elsewhere on request."""

    def __init__(self) -> None:
        self.served = 0
        self.cancelled = asyncio.Event()
        self.entered = asyncio.Event()
        self.release = asyncio.Event()
        self.scopes: list[Any] = []

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self.served += 1
        self.scopes.append(scope)
        message = await receive()
        assert message["type"] == "http.request"
        assert not message["more_body"]
        self.entered.set()
        match scope["path"]:
            case "/wait":
                try:
                    await self.release.wait()
                except asyncio.CancelledError:
                    self.cancelled.set()
                    raise
            case "/raise":
                raise ValueError("a secret of a user")
            case "/cut":
                await send({"type": "http.response.start", "status": 200, "headers": []})
                await send({"type": "http.response.body", "body": b"half", "more_body": True})
                raise ValueError("a secret of a user")
            case "/flood":
                await send({"type": "http.response.start", "status": 200, "headers": []})
                try:
                    while True:
                        await send({"type": "http.response.body", "body": bytes(65536), "more_body": True})
                except asyncio.CancelledError:
                    self.cancelled.set()
                    raise
            case "/unknown":
                await send({"type": "http.response.start", "status": 404, "headers": []})
                await send({"type": "http.response.body", "body": b""})
                return
        body = message["body"]
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", str(len(body)).encode())]})
        await send({"type": "http.response.body", "body": body})


@asynccontextmanager
async def serving(**changes: Any) -> AsyncIterator[tuple[RunningHttpServer, Application]]:
    app = Application()
    server = await start_http_server(app, HttpServerSettings(**LIMITS | changes))
    try:
        yield server, app
    finally:
        await server.stop(0)
        assert server.open_connections == 0
        assert server.running_requests == 0


class Client:
    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        with contextlib.suppress(ConnectionError):
            await self.writer.drain()

    async def flood(self) -> None:
        while True:
            self.writer.write(bytes(65536))
            await self.writer.drain()

    async def answer(self) -> tuple[int, bytes]:
        """Status and body of one answer with a Content-Length."""
        head = await asyncio.wait_for(self.reader.readuntil(b"\r\n\r\n"), 10)
        length = re.search(rb"content-length: (\d+)", head)
        return int(head.split(b" ")[1]), await self.reader.readexactly(int(length[1])) if length else b""

    async def rest(self) -> bytes:
        """Everything until the server closes; a reset ends it too."""
        received = b""
        with contextlib.suppress(ConnectionError):
            while data := await asyncio.wait_for(self.reader.read(65536), 10):
                received += data
        return received


@asynccontextmanager
async def connected(server: RunningHttpServer, **options: Any) -> AsyncIterator[Client]:
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port, **options)
    try:
        yield Client(reader, writer)
    finally:
        writer.transport.abort()


async def until(holds: Callable[[], bool], timeout_s: float = 20) -> None:
    async with asyncio.timeout(timeout_s):
        while not holds():  # noqa: ASYNC110 - nothing tells us
            await asyncio.sleep(0.02)


def post(body: bytes, path: str = "/") -> bytes:
    return f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body


def statuses(received: bytes) -> list[int]:
    return [int(status) for status in re.findall(rb"HTTP/1.1 (\d{3})", received)]


async def test_requests_follow_each_other_on_one_connection() -> None:
    async with serving() as (server, _), connected(server) as client:
        for body in (b"", b"one", b"x" * 10_000):
            await client.send(post(body))
            assert await client.answer() == (200, body)
        await client.send(post(b"a") + post(b"b") + post(b"c"))
        assert [await client.answer() for _ in range(3)] == [(200, b"a"), (200, b"b"), (200, b"c")]


async def test_a_chunked_body_arrives_whole() -> None:
    async with serving() as (server, _), connected(server) as client:
        await client.send(b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n")
        for piece in (b"3\r\nabc\r\n", b"2\r\nde\r\n", b"0\r\n\r\n"):
            await client.send(piece)
        assert await client.answer() == (200, b"abcde")


async def test_headers_beyond_the_limit_get_431() -> None:
    async with serving() as (server, app):
        for head in (
            b"GET /" + b"a" * 5000 + b" HTTP/1.1\r\nHost: x\r\n\r\n",
            b"GET / HTTP/1.1\r\nHost: x\r\n" + b"X: " + b"a" * 5000 + b"\r\n\r\n",
            b"GET / HTTP/1.1\r\nHost: x\r\n" + b"X: y\r\n" * 1000 + b"\r\n",
            b"GET / HTTP/1.1\r\nHost: x\r\n" + b"X: y\r\n" * 1000,  # and no end
        ):
            async with connected(server) as client:
                await client.send(head)
                assert statuses(await client.rest()) == [431]
        assert app.served == 0


async def test_a_body_beyond_the_limit_gets_413_before_it_is_sent() -> None:
    async with serving() as (server, app), connected(server) as client:
        await client.send(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 10001\r\n\r\n")
        assert statuses(await client.rest()) == [413]
        assert app.served == 0


async def test_a_chunked_body_beyond_the_limit_gets_413_and_is_not_kept() -> None:
    async with serving() as (server, app), connected(server) as client:
        await client.send(b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n")
        chunk = b"1000\r\n" + b"x" * 4096 + b"\r\n"
        await client.send(chunk * 100)
        assert statuses(await client.rest()) == [413]
        assert app.served == 0


async def test_a_client_that_ignores_a_413_and_sends_on_is_cut_off() -> None:
    async with serving() as (server, _), connected(server) as client:
        await client.send(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999\r\n\r\n")
        with pytest.raises(ConnectionError):
            await asyncio.wait_for(client.flood(), 10)


@pytest.mark.parametrize("dripped", [b"G", b"GET / HTTP/1.1\r\nHost: x\r\nX-Slow: "])
async def test_headers_that_drip_in_are_not_waited_for(dripped: bytes) -> None:
    async with serving() as (server, app), connected(server) as client:
        await client.send(dripped)
        reading = asyncio.create_task(client.rest())
        while not reading.done():
            await client.send(b"a")
            await asyncio.wait({reading}, timeout=0.05)
        assert app.served == 0


async def test_an_idle_connection_is_closed() -> None:
    async with serving() as (server, _), connected(server) as client:
        assert await client.rest() == b""


async def test_a_body_that_drips_in_gets_408() -> None:
    async with serving() as (server, app), connected(server) as client:
        await client.send(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 5000\r\n\r\n")
        reading = asyncio.create_task(client.rest())
        while not reading.done():
            await client.send(b"a")
            await asyncio.wait({reading}, timeout=0.05)
        assert statuses(reading.result()) == [408]
        assert app.served == 0


async def test_an_application_that_takes_too_long_is_cancelled_and_answered_for() -> None:
    async with serving(request_timeout_s=0.3) as (server, app), connected(server) as client:
        await client.send(post(b"", "/wait"))
        assert (await client.answer())[0] == 503
        assert app.cancelled.is_set()


async def test_a_client_that_leaves_takes_its_request_with_it() -> None:
    async with serving(request_timeout_s=30) as (server, app):
        async with connected(server) as client:
            await client.send(post(b"", "/wait"))
            await asyncio.wait_for(app.entered.wait(), 5)
        await asyncio.wait_for(app.cancelled.wait(), 5)


async def test_a_half_closed_connection_is_ended_with_its_request() -> None:
    async with serving(request_timeout_s=30) as (server, app), connected(server) as client:
        await client.send(post(b"", "/wait"))
        await asyncio.wait_for(app.entered.wait(), 5)
        client.writer.write_eof()
        await asyncio.wait_for(app.cancelled.wait(), 5)
        assert await client.rest() == b""


async def test_a_client_that_does_not_read_is_cut_off() -> None:
    async with serving(request_timeout_s=30) as (server, app):
        peer = socket.create_connection(("127.0.0.1", server.port))
        with peer:
            await asyncio.to_thread(peer.sendall, b"GET /flood HTTP/1.1\r\nHost: x\r\n\r\n")
            await asyncio.wait_for(app.cancelled.wait(), 10)
            await until(lambda: not server.open_connections)


SMUGGLED = b"GET /smuggled HTTP/1.1\r\nHost: x\r\n\r\n"


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n" + SMUGGLED,
        b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\nContent-Length: 4\r\n\r\n0\r\n\r\n" + SMUGGLED,
        b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\nContent-Length: 5\r\n\r\n" + SMUGGLED,
        b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: +5\r\n\r\n" + SMUGGLED,
        b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 0x5\r\n\r\n" + SMUGGLED,
        b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length : 5\r\n\r\n" + SMUGGLED,
        b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: xchunked\r\n\r\n0\r\n\r\n" + SMUGGLED,
        b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n" + SMUGGLED,
        b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n" + SMUGGLED,
        b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n-1\r\n\r\n" + SMUGGLED,
        b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n0x2\r\nab\r\n0\r\n\r\n" + SMUGGLED,
        b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n1\r\naXX0\r\n\r\n" + SMUGGLED,
        b"GET / HTTP/1.1\r\n\r\n" + SMUGGLED,
        b"GET / HTTP/1.1\r\nHost: x\r\nHost: y\r\n\r\n" + SMUGGLED,
        b"GET / HTTP/1.1\r\nHost: x\r\nA\x00b: c\r\n\r\n" + SMUGGLED,
        b"GET / HTTP/1.1\r\nHost: x\r\nA: b\x00c\r\n\r\n" + SMUGGLED,
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(64) + b"\r\n\r\n",
    ],
)
async def test_a_request_that_two_readers_could_cut_differently_is_refused(request_bytes: bytes) -> None:
    async with serving() as (server, app), connected(server) as client:
        await client.send(request_bytes)
        received = statuses(await client.rest())
        assert len(received) <= 1
        assert not received or received[0] >= 400
        assert not any(scope["path"] == "/smuggled" for scope in app.scopes)


@pytest.mark.parametrize(
    "upgrade",
    [
        b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQCAAAAAAIAAAAA\r\n",
        b"Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
        b"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n",
    ],
)
async def test_no_connection_changes_its_protocol(upgrade: bytes) -> None:
    async with serving() as (server, _), connected(server) as client:
        await client.send(b"GET / HTTP/1.1\r\nHost: x\r\n" + upgrade + b"\r\n")
        head = await asyncio.wait_for(client.reader.readuntil(b"\r\n\r\n"), 5)
        assert b" 101 " not in head


async def test_a_failing_application_gets_500_and_its_text_is_nowhere(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    async with serving() as (server, _), connected(server) as client:
        await client.send(post(b"", "/raise"))
        received = await client.rest()
    assert statuses(received) == [500]
    assert b"secret" not in received


async def test_an_answer_that_breaks_off_does_not_look_whole() -> None:
    async with serving() as (server, _), connected(server) as client:
        await client.send(post(b"", "/cut"))
        assert not (await client.rest()).endswith(b"0\r\n\r\n")


async def test_requests_beyond_the_limit_are_told_when_to_come_back() -> None:
    async with serving(max_concurrent_requests=1) as (server, app), connected(server) as first, connected(server) as second:
        await first.send(post(b"", "/wait"))
        await asyncio.wait_for(app.entered.wait(), 5)
        await second.send(post(b""))
        received = await second.rest()
        assert statuses(received) == [503]
        assert b"retry-after: 1" in received
        app.release.set()
        assert (await first.answer())[0] == 200


async def test_connections_beyond_the_limit_are_closed_and_the_others_live() -> None:
    async with serving(max_connections=2, keep_alive_s=20) as (server, _), connected(server) as first, connected(server) as second:
        await first.send(post(b"1"))
        await second.send(post(b"2"))
        assert [await first.answer(), await second.answer()] == [(200, b"1"), (200, b"2")]
        async with connected(server) as third:
            await third.send(post(b"3"))
            assert await third.rest() == b""
        await first.send(post(b"4"))
        assert await first.answer() == (200, b"4")


async def test_a_drain_finishes_what_runs_and_closes_what_is_idle() -> None:
    async with (
        serving(keep_alive_s=20, request_timeout_s=30) as (server, app),
        connected(server) as idle,
        connected(server) as running,
    ):
        await idle.send(post(b"1"))
        assert (await idle.answer())[0] == 200
        await running.send(post(b"2", "/wait"))
        await asyncio.wait_for(app.entered.wait(), 5)
        app.entered.clear()
        stopping = asyncio.create_task(server.stop(10))
        assert await idle.rest() == b""
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection("127.0.0.1", server.port)
        app.release.set()
        assert statuses(await running.rest()) == [200]
        await asyncio.wait_for(stopping, 10)


async def test_a_drain_ends_after_its_grace() -> None:
    async with serving(request_timeout_s=30) as (server, app), connected(server) as client:
        await client.send(post(b"", "/wait"))
        await asyncio.wait_for(app.entered.wait(), 5)
        await asyncio.wait_for(server.stop(0.2), 10)
        assert app.cancelled.is_set()


async def test_access_lines_carry_no_stranger_text(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="lionrock.http")
    async with serving() as (server, _), connected(server) as client:
        await client.send(post(b"my prompt", "/?q=my-query"))
        await client.answer()
        await client.send(b"GET /unknown HTTP/1.1\r\nHost: my-host\r\nAuthorization: my-token\r\n\r\n")
        await client.rest()
    lines = [record for record in caplog.records if record.getMessage() == "request"]
    assert [(line.__dict__["status"], line.__dict__.get("path")) for line in lines] == [(200, "/"), (404, None)]
    assert not any("my-" in str(vars(line)) or "prompt" in str(vars(line)) for line in lines)


async def test_a_taken_address_is_said() -> None:
    async with serving() as (server, _):
        with pytest.raises(CannotListen):
            await start_http_server(Application(), HttpServerSettings(listen=f"127.0.0.1:{server.port}"))


def client_context(ca: DevCa, tls: Any = None, *, alpn: str = "http/1.1") -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=str(ca.issue("gateway").ca_file))
    context.check_hostname = False
    context.set_alpn_protocols([alpn])
    if tls is not None:
        context.load_cert_chain(tls.cert_file, tls.key_file)
    return context


async def test_tls_serves_and_shows_the_clients_certificate_to_the_application(tmp_path: Path) -> None:
    ca = DevCa(tmp_path)
    async with serving(tls=ca.issue("audit"), client_certificates="optional") as (server, app):
        async with connected(server, ssl=client_context(ca, ca.issue("gateway"))) as client:
            await client.send(post(b"a"))
            assert await client.answer() == (200, b"a")
        async with connected(server, ssl=client_context(ca)) as client:
            await client.send(post(b"b"))
            assert await client.answer() == (200, b"b")
        chains = [scope["extensions"]["tls"]["client_cert_chain"] for scope in app.scopes]
        assert [len(chain) for chain in chains] == [1, 0]
        assert chains[0][0].startswith("-----BEGIN CERTIFICATE-----")


async def test_required_certificates_are_required_and_must_be_of_our_authority(tmp_path: Path) -> None:
    ca, other = DevCa(tmp_path / "ours"), DevCa(tmp_path / "theirs")
    async with serving(tls=ca.issue("audit"), client_certificates="required") as (server, app):
        for identity in (None, other.issue("gateway")):
            with contextlib.suppress(OSError):
                async with connected(server, ssl=client_context(ca, identity)) as client:
                    await client.send(post(b"a"))
                    assert await client.rest() == b""
        assert app.served == 0


async def test_http_2_is_spoken_where_the_handshake_agrees_on_it(tmp_path: Path) -> None:
    import h2.config
    import h2.connection
    import h2.events

    ca = DevCa(tmp_path)
    async with serving(tls=ca.issue("audit")) as (server, _), connected(server, ssl=client_context(ca, alpn="h2")) as client:
        connection = h2.connection.H2Connection(h2.config.H2Configuration(header_encoding="utf-8"))
        connection.initiate_connection()
        common = [(":scheme", "https"), (":path", "/"), (":authority", "x")]
        connection.send_headers(1, [(":method", "POST"), *common])
        connection.send_data(1, b"hello", end_stream=True)
        connection.send_headers(3, [(":method", "POST"), *common, ("content-length", "10001")])
        await client.send(connection.data_to_send())
        seen: dict[int, dict[str, Any]] = {1: {}, 3: {}}
        while not all("ended" in stream for stream in seen.values()):
            data = await asyncio.wait_for(client.reader.read(65536), 5)
            assert data
            for event in connection.receive_data(data):
                if isinstance(event, h2.events.ResponseReceived):
                    seen[event.stream_id]["status"] = dict(event.headers)[":status"]
                elif isinstance(event, h2.events.DataReceived):
                    seen[event.stream_id]["body"] = seen[event.stream_id].get("body", b"") + event.data
                elif isinstance(event, h2.events.StreamEnded):
                    seen[event.stream_id]["ended"] = True
        assert seen[1] == {"status": "200", "body": b"hello", "ended": True}
        assert seen[3]["status"] == "413"
        connection.send_data(3, b"all the same")
        connection.send_headers(5, [(":method", "POST"), *common], end_stream=True)
        await client.send(connection.data_to_send())
        statuses_of_5: list[str] = []
        while not statuses_of_5:
            data = await asyncio.wait_for(client.reader.read(65536), 5)
            assert data
            statuses_of_5 += [
                dict(event.headers)[":status"]
                for event in connection.receive_data(data)
                if isinstance(event, h2.events.ResponseReceived)
            ]
        assert statuses_of_5 == ["200"]


async def test_streams_that_are_reset_at_once_leave_nothing_running(tmp_path: Path) -> None:
    import h2.config
    import h2.connection

    ca = DevCa(tmp_path)
    headers = [(":method", "POST"), (":scheme", "https"), (":path", "/wait"), (":authority", "x")]
    async with serving(tls=ca.issue("audit"), request_timeout_s=30, max_concurrent_requests=8) as (server, app):
        async with connected(server, ssl=client_context(ca, alpn="h2")) as client:
            connection = h2.connection.H2Connection(h2.config.H2Configuration(header_encoding="utf-8"))
            connection.initiate_connection()
            for number in range(400):
                connection.send_headers(2 * number + 1, headers, end_stream=True)
                connection.reset_stream(2 * number + 1)
                if number % 20 == 0:
                    await client.send(connection.data_to_send())
            await client.send(connection.data_to_send())
            await until(lambda: app.served > 0 and server.running_requests == 0)
        async with connected(server, ssl=client_context(ca)) as client:
            await client.send(post(b"still here"))
            assert await client.answer() == (200, b"still here")


async def test_a_handshake_that_never_comes_holds_no_connection_for_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lionrock.chassis.http_server._HANDSHAKE_TIMEOUT_S", 0.3)
    ca = DevCa(tmp_path)
    async with serving(tls=ca.issue("audit")) as (server, _):
        async with connected(server) as client:
            assert await client.rest() == b""
        async with connected(server) as client:
            await client.send(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
            assert not statuses(await client.rest())


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.binary(max_size=200) | st.sampled_from([b"\r\n", b"GET / HTTP/1.1\r\n", b"Host: x\r\n", b"0\r\n"]), max_size=12))
def test_random_bytes_end_nothing_but_their_connection(pieces: list[bytes]) -> None:
    async def attack() -> None:
        async with serving(keep_alive_s=0.1, body_timeout_s=0.1) as (server, _):
            async with connected(server) as client:
                for piece in pieces:
                    await client.send(piece)
                await client.rest()
            async with connected(server) as client:
                await client.send(post(b"still here"))
                assert await client.answer() == (200, b"still here")

    asyncio.run(attack())


PROGRAM = """
import asyncio, sys
from lionrock.chassis.http_server import serve_http
from lionrock.chassis.http_settings import HttpServiceSettings

async def app(scope, receive, send):
    await send({"type": "http.response.start", "status": 204, "headers": []})
    await send({"type": "http.response.body", "body": b""})

asyncio.run(serve_http(app, HttpServiceSettings(http={"ready_file": sys.argv[1]}), "test"))
"""


async def test_a_process_says_when_it_is_ready_and_leaves_on_sigterm(tmp_path: Path) -> None:
    ready = tmp_path / "ready"
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", PROGRAM, str(ready), stderr=subprocess.PIPE, stdout=subprocess.DEVNULL
    )
    async with asyncio.timeout(30):
        await until(ready.exists)
        reader, writer = await asyncio.open_connection("127.0.0.1", int(ready.read_text()))
        writer.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        assert (await reader.readline()).startswith(b"HTTP/1.1 204")
        process.send_signal(signal.SIGTERM)
        _, errors = await process.communicate()
        writer.close()
    assert process.returncode == 0, errors
    assert b'"message": "stopped"' in errors
