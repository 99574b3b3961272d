"""The project's HTTP server: an ASGI application on one port, TLS that follows its files, limits, drain.

`serve_http` is the whole life of a program that serves HTTP; `start_http_server` is the same server without signals and telemetry,
for tests and for programs that have their own. What happens on a connection is in http_connection.py, to a request in
http_exchange.py.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import socket
import ssl
import sys
from collections.abc import Awaitable, Callable

from hypercorn.asyncio.worker_context import WorkerContext
from hypercorn.config import Config

from lionrock.chassis.http_connection import Connection
from lionrock.chassis.http_exchange import Application, Load
from lionrock.chassis.http_settings import HttpServerSettings, HttpServiceSettings
from lionrock.chassis.ready_file import write_ready_file
from lionrock.chassis.telemetry import start_telemetry
from lionrock.chassis.tls import TlsFilesUnusable, WatchedIdentity

__all__ = ["Application", "CannotListen", "RunningHttpServer", "serve_http", "start_http_server"]

log = logging.getLogger("lionrock.http")

_BACKLOG = 128
_HANDSHAKE_TIMEOUT_S = 10.0
_NO_DESCRIPTORS_PAUSE_S = 0.1
_CERTIFICATES = {"ignored": ssl.CERT_NONE, "optional": ssl.CERT_OPTIONAL, "required": ssl.CERT_REQUIRED}


class CannotListen(Exception):
    """The address is taken or not ours."""


class _ServerTls:
    """Context for the next handshake. While files are unusable, as in the middle of a rotation, the last good one stays."""

    def __init__(self, settings: HttpServerSettings) -> None:
        """Read the files once. Raises TlsFilesUnusable."""
        assert settings.tls is not None
        self._settings = settings
        self._watched = WatchedIdentity(settings.tls)
        self._version = self._watched.version
        self._context = self._build()

    def context(self) -> ssl.SSLContext:
        self._watched.latest()
        if self._watched.version != self._version:
            try:
                self._context = self._build()
                self._version = self._watched.version
            except TlsFilesUnusable:
                log.warning("certificate files are unusable; the last good ones stay")
        return self._context

    def _build(self) -> ssl.SSLContext:
        tls = self._settings.tls
        assert tls is not None
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.options |= ssl.OP_NO_COMPRESSION | ssl.OP_NO_RENEGOTIATION
        context.set_alpn_protocols(["h2", "http/1.1"])
        context.verify_mode = _CERTIFICATES[self._settings.client_certificates]
        if context.verify_mode != ssl.CERT_NONE:
            # A resumed connection is not verified again: a certificate would outlive its authority.
            context.options |= ssl.OP_NO_TICKET
            context.num_tickets = 0
        try:
            context.load_cert_chain(tls.cert_file, tls.key_file)
            context.load_verify_locations(tls.ca_file)
        except (OSError, ssl.SSLError) as error:
            raise TlsFilesUnusable(f"{tls.cert_file.parent}: {error.__class__.__name__}") from None
        return context


class RunningHttpServer:
    """A server that listens on `port`."""

    def __init__(self, app: Application, settings: HttpServerSettings, listener: socket.socket) -> None:
        self.port: int = listener.getsockname()[1]
        self._app = app
        self._settings = settings
        self._listener = listener
        self._load = Load()
        self._context = WorkerContext(None)
        self._config = _hypercorn_config(settings)
        self._tls = None if settings.tls is None else _ServerTls(settings)
        self._connections: dict[asyncio.Task[None], Connection | None] = {}
        self._accepting = asyncio.create_task(self._accept(), name="lionrock-http-accept")

    @property
    def running_requests(self) -> int:
        """Requests that are served now."""
        return self._load.running

    @property
    def open_connections(self) -> int:
        """Connections that are open now."""
        return len(self._connections)

    async def begin_drain(self) -> None:
        """Accept no more connections; those that idle are closed, the others after their request."""
        self._accepting.cancel()
        self._listener.close()
        await self._context.terminated.set()
        for connection in self._connections.values():
            if connection is not None:
                connection.drain()

    async def stop(self, grace_s: float = 0) -> None:
        """Drain for at most `grace_s` seconds, then end what still runs."""
        await self.begin_drain()
        try:
            async with asyncio.timeout(grace_s):
                await self._load.idle.wait()
        except TimeoutError:
            log.warning("drain grace is over", extra={"running_requests": self._load.running})
            for connection in self._connections.values():
                if connection is not None:
                    connection.abort()
        if self._connections:
            await asyncio.wait(self._connections, timeout=2.0)
        for task in self._connections:
            task.cancel()
        await asyncio.gather(*self._connections, self._accepting, return_exceptions=True)

    async def _accept(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                accepted, _ = await loop.sock_accept(self._listener)
            except OSError as error:
                log.error("accepting failed", extra={"why": error.strerror})
                await asyncio.sleep(_NO_DESCRIPTORS_PAUSE_S)
                continue
            if len(self._connections) >= self._settings.max_connections:
                accepted.close()
                continue
            task = asyncio.create_task(self._serve(accepted), name="lionrock-http-connection")
            self._connections[task] = None
            task.add_done_callback(self._forget)

    def _forget(self, task: asyncio.Task[None]) -> None:
        self._connections.pop(task, None)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("a connection failed", exc_info=error)

    async def _serve(self, accepted: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        reader = asyncio.StreamReader(limit=self._settings.max_header_bytes, loop=loop)
        protocol = asyncio.StreamReaderProtocol(reader, loop=loop)
        context = None if self._tls is None else self._tls.context()
        timeout_s = None if context is None else _HANDSHAKE_TIMEOUT_S
        try:
            accepted.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            transport, _ = await loop.connect_accepted_socket(
                lambda: protocol, accepted, ssl=context, ssl_handshake_timeout=timeout_s, ssl_shutdown_timeout=timeout_s
            )
        except OSError:  # of which SSLError and a handshake's TimeoutError are kinds; whoever does that is a stranger
            accepted.close()
            return
        except BaseException:
            accepted.close()
            raise
        writer = asyncio.StreamWriter(transport, protocol, reader, loop)
        connection = Connection(self._app, self._settings, self._load, self._config, self._context, reader, writer)
        task = asyncio.current_task()
        assert task is not None
        self._connections[task] = connection
        if self._context.terminated.is_set():
            connection.drain()
        await connection.run()


def _hypercorn_config(settings: HttpServerSettings) -> Config:
    config = Config()
    config.errorlog = None
    config.accesslog = None
    config.include_server_header = False
    config.h11_max_incomplete_size = settings.max_header_bytes
    config.h2_max_header_list_size = settings.max_header_bytes
    config.h2_max_concurrent_streams = settings.max_concurrent_requests
    return config


async def start_http_server(app: Application, settings: HttpServerSettings) -> RunningHttpServer:
    """Start a server. Raises CannotListen, TlsFilesUnusable."""
    host, _, port = settings.listen.rpartition(":")
    host = host.strip("[]")
    listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.setblocking(False)
        listener.bind((host, int(port)))
        listener.listen(_BACKLOG)
        return RunningHttpServer(app, settings, listener)
    except (OSError, OverflowError):
        listener.close()
        raise CannotListen(f"cannot listen on {settings.listen}") from None
    except TlsFilesUnusable:
        listener.close()
        raise


async def serve_http(
    app: Application, settings: HttpServiceSettings, name: str, *, on_ready: Callable[[int], Awaitable[None]] | None = None
) -> None:
    """Serve until SIGTERM or SIGINT, then drain; a second signal ends at once.

    `on_ready` gets the port; then the ready file is written. Raises SystemExit(1) after saying why if the server cannot start.
    """
    loop = asyncio.get_running_loop()
    telemetry = start_telemetry(name, settings.telemetry)
    try:
        running = await start_http_server(app, settings.http)
    except (CannotListen, TlsFilesUnusable) as error:
        print(f"lionrock {name}: {error}", file=sys.stderr)
        telemetry.close()
        raise SystemExit(1) from None
    drain, at_once = asyncio.Event(), asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, lambda: (at_once if drain.is_set() else drain).set())
    try:
        if on_ready is not None:
            await on_ready(running.port)
        if settings.http.ready_file is not None:
            write_ready_file(settings.http.ready_file, running.port)
        log.info("serving", extra={"port": running.port})
        await drain.wait()
        log.info("draining", extra={"running_requests": running.running_requests})
        stopping = asyncio.create_task(running.stop(settings.http.drain_grace_s))
        impatient = asyncio.create_task(at_once.wait())
        await asyncio.wait({stopping, impatient}, return_when=asyncio.FIRST_COMPLETED)
        for task in (stopping, impatient):
            task.cancel()
        await asyncio.gather(stopping, impatient, return_exceptions=True)
    finally:
        with contextlib.suppress(Exception):
            await running.stop(0)
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(number)
        log.info("stopped")
        await asyncio.to_thread(telemetry.close)
