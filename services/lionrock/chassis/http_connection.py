"""One connection: Hypercorn's HTTP/1.1 and HTTP/2 over a socket that cannot be held open by doing nothing.

Knows: reading, writing, idling, ending. Does not know: what a request may hold (http_exchange.py), who may connect
(http_server.py). Hypercorn 0.18 speaks the protocols; its own loop over a socket has no bound on writing and follows upgrades from
HTTP/1.1 to clear-text HTTP/2, by which requests are smuggled past proxies, so this is ours.
A client that closes its sending side is gone, also if it would still read.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import ssl
from typing import Any

import h11
from hypercorn.asyncio.task_group import TaskGroup
from hypercorn.asyncio.worker_context import WorkerContext
from hypercorn.config import Config
from hypercorn.events import Closed, Event, RawData, Updated
from hypercorn.protocol.h2 import H2Protocol
from hypercorn.protocol.h11 import H11Protocol
from hypercorn.typing import ConnectionState

from lionrock.chassis.http_exchange import Application, Exchange, Load
from lionrock.chassis.http_settings import HttpServerSettings

log = logging.getLogger("lionrock.http")

_READ_BYTES = 16 * 1024
_LINGER_S = 1.0
"""After the last answer a client gets this long to read it; what it still sends is thrown away."""
_LINGER_BYTES = 2**20


class _Http11(H11Protocol):
    """HTTP/1.1 that stays HTTP/1.1."""

    async def _check_protocol(self, event: h11.Request) -> None:
        del event


class _NoStream:
    """Takes what is sent to a stream that has been answered already, and throws it away."""

    async def handle(self, event: object) -> None:
        del event


class _Streams(dict[int, Any]):
    def __missing__(self, stream_id: int) -> _NoStream:
        del stream_id
        return _NoStream()


class _Http2(H2Protocol):
    """HTTP/2 whose connection survives a client that sends on after its answer."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.streams = _Streams()


class Connection:
    """Serves one accepted connection to its end."""

    def __init__(
        self,
        app: Application,
        settings: HttpServerSettings,
        load: Load,
        config: Config,
        context: WorkerContext,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
    ) -> None:
        self._settings = settings
        self._config = config
        self._context = context
        self._reader = reader
        self._writer = writer
        self._ended = asyncio.Event()
        self._write_lock = asyncio.Lock()
        self._idle_timer: asyncio.TimerHandle | None = None
        self._tls: ssl.SSLObject | None = writer.get_extra_info("ssl_object")
        self._exchange = Exchange(app, settings, load, self.abort, self._extensions())

    def abort(self) -> None:
        """End now; what is buffered is lost."""
        self._writer.transport.abort()
        self._ended.set()

    def drain(self) -> None:
        """End when nothing is running. `context.terminated` has been set, so a running request is the last one."""
        if self._idle_timer is not None:
            self._ended.set()

    async def run(self) -> None:
        """Serve. Never raises for what a client does."""
        loop = asyncio.get_running_loop()
        try:
            async with TaskGroup(loop) as group:
                protocol = self._protocol(group)
                self._set_idle(idle=True)
                await protocol.initiate()
                await self._read_until_end(protocol)
        except* OSError:
            pass
        except* Exception as errors:
            # Hypercorn raises for some of what a stranger can send.
            log.warning("a connection failed", exc_info=errors.exceptions[0])
        finally:
            self._set_idle(idle=False)
            await self._close()

    def _protocol(self, group: TaskGroup) -> H2Protocol | H11Protocol:
        http2 = self._tls is not None and self._tls.selected_alpn_protocol() == "h2"
        arguments: tuple[Any, ...] = (
            self._exchange,
            self._config,
            self._context,
            group,
            ConnectionState({}),
            self._tls is not None,
            _address(self._writer.get_extra_info("peername")),
            _address(self._writer.get_extra_info("sockname")),
            self._send,
        )
        return _Http2(*arguments) if http2 else _Http11(*arguments)

    async def _read_until_end(self, protocol: H2Protocol | H11Protocol) -> None:
        reading = asyncio.create_task(self._read(protocol), name="lionrock-http-read")
        ended = asyncio.create_task(self._ended.wait())
        try:
            await asyncio.wait({reading, ended}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (reading, ended):
                task.cancel()
            done, _ = await asyncio.wait({reading, ended})
            await protocol.handle(Closed())
        failure = reading.exception() if reading in done and not reading.cancelled() else None
        if failure is not None:
            raise failure

    async def _read(self, protocol: H2Protocol | H11Protocol) -> None:
        while data := await self._reader.read(_READ_BYTES):
            await protocol.handle(RawData(data))

    async def _send(self, event: Event) -> None:
        match event:
            case RawData(data=data):
                await self._write(data)
            case Closed():
                self._ended.set()
            case Updated(idle=idle):
                self._set_idle(idle=idle)

    async def _write(self, data: bytes) -> None:
        async with self._write_lock:
            if self._writer.transport.is_closing():
                self._ended.set()
                await asyncio.sleep(0)  # else an application that only writes would keep the loop from cancelling it
                return
            self._writer.write(data)
            try:
                async with asyncio.timeout(self._settings.write_timeout_s):
                    await self._writer.drain()
            except TimeoutError:
                self.abort()
            except ConnectionError:
                self._ended.set()

    def _set_idle(self, *, idle: bool) -> None:
        if self._idle_timer is not None:
            self._idle_timer.cancel()
            self._idle_timer = None
        if idle:
            if self._context.terminated.is_set():
                self._ended.set()
            self._idle_timer = asyncio.get_running_loop().call_later(self._settings.keep_alive_s, self._ended.set)

    async def _close(self) -> None:
        """Let the last answer arrive: a socket closed with unread bytes in it is reset, and the answer with it."""
        with contextlib.suppress(OSError, TimeoutError, RuntimeError):
            async with asyncio.timeout(_LINGER_S):
                if self._writer.can_write_eof():
                    self._writer.write_eof()
                    left = _LINGER_BYTES
                    while left > 0 and (data := await self._reader.read(_READ_BYTES)):
                        left -= len(data)
                self._writer.close()
                await self._writer.wait_closed()
        self._writer.transport.abort()

    def _extensions(self) -> dict[str, Any]:
        """Certificate that the client proved, as the TLS extension of ASGI has it."""
        if self._tls is None:
            return {}
        certificate = self._tls.getpeercert(binary_form=True)
        chain = [] if certificate is None else [ssl.DER_cert_to_PEM_cert(certificate)]
        return {"tls": {"client_cert_chain": chain, "client_cert_error": None}}


def _address(address: object) -> tuple[str, int] | None:
    return (str(address[0]), int(address[1])) if isinstance(address, tuple) and len(address) >= 2 else None
