"""A gRPC server of the mesh: mutual TLS that follows its files, limits, health, drain.

`serve` is the whole life of a service process; `start_server` is the same server without signals and telemetry, for tests and for
processes that have their own. What happens to each RPC is in interceptors.py.
"""

from __future__ import annotations

import asyncio
import logging
import signal
import sys
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

import grpc

from lionrock.chassis.health import SERVICE_NAME as HEALTH
from lionrock.chassis.health import SERVING, Health
from lionrock.chassis.http_door import HttpCalls, HttpDoor
from lionrock.chassis.identity import AnyMember, AnyTenant, Callers
from lionrock.chassis.interceptors import Guard
from lionrock.chassis.probe_server import ProbeServer
from lionrock.chassis.probes import start_probes
from lionrock.chassis.ready_file import write_ready_file
from lionrock.chassis.settings import ServerSettings, ServiceSettings, TlsSettings
from lionrock.chassis.telemetry import Telemetry, start_telemetry
from lionrock.chassis.tls import TlsFilesUnusable, WatchedIdentity

if TYPE_CHECKING:
    from lionrock.chassis.http_server import RunningHttpServer
    from lionrock.chassis.prometheus import PrometheusMetrics

__all__ = ["AnyTenant", "CannotListen", "Registration", "RunningServer", "serve", "start_server"]

log = logging.getLogger("lionrock.chassis")

REFLECTION = ("grpc.reflection.v1alpha.ServerReflection",)
MAX_METADATA_BYTES = 16 * 1024
LEAST_STREAMS = 1024
HANDSHAKE_TIMEOUT_MS = 10_000
MAX_CONNECTION_IDLE_MS = 15 * 60_000
KEEPALIVE_MS = 60_000
KEEPALIVE_TIMEOUT_MS = 20_000
# A client may ping this often; one that pings faster strikes out and its connection is closed.
LEAST_PING_INTERVAL_MS = 10_000
PING_STRIKES = 2
# After the drain, the transport gets this long to hand out last statuses.
STOP_S = 1.0


class CannotListen(Exception):
    """The address is taken or not ours."""


@dataclass(frozen=True, slots=True)
class Registration:
    """One service on the port: the generated `add_…_to_server`, its servicer, its full name, and who may call it."""

    add: Callable[[Any, grpc.aio.Server], None]
    servicer: object
    service_name: str
    callers: frozenset[str] | AnyTenant


def _options(settings: ServerSettings) -> list[tuple[str, int]]:
    return [
        ("grpc.max_receive_message_length", settings.max_message_bytes),
        ("grpc.max_send_message_length", settings.max_message_bytes),
        ("grpc.max_metadata_size", MAX_METADATA_BYTES),
        ("grpc.absolute_max_metadata_size", MAX_METADATA_BYTES),
        # Above the concurrency bound, so that the excess is answered with OVERLOADED and neither queues unseen in the client nor is
        # reset by the transport.
        ("grpc.max_concurrent_streams", max(LEAST_STREAMS, 2 * settings.max_concurrent_rpcs)),
        ("grpc.max_allowed_incoming_connections", settings.max_connections),
        ("grpc.server_handshake_timeout_ms", HANDSHAKE_TIMEOUT_MS),
        ("grpc.max_connection_age_ms", int(settings.max_connection_age_s * 1000)),
        ("grpc.max_connection_age_grace_ms", int(settings.max_deadline_s * 1000)),
        ("grpc.max_connection_idle_ms", MAX_CONNECTION_IDLE_MS),
        ("grpc.keepalive_time_ms", KEEPALIVE_MS),
        ("grpc.keepalive_timeout_ms", KEEPALIVE_TIMEOUT_MS),
        ("grpc.http2.min_ping_interval_without_data_ms", LEAST_PING_INTERVAL_MS),
        ("grpc.http2.min_recv_ping_interval_without_data_ms", LEAST_PING_INTERVAL_MS),
        ("grpc.http2.max_ping_strikes", PING_STRIKES),
        # Two servers on one port would share its connections silently.
        ("grpc.so_reuseport", 0),
    ]


def _credentials(tls: TlsSettings, *, mutual: bool = True) -> grpc.ServerCredentials:
    """Credentials that follow their files at every handshake. `mutual`: clients show theirs too. Raises TlsFilesUnusable."""
    watched = WatchedIdentity(tls, interval_s=0)
    lock = threading.Lock()  # handshakes ask from threads of gRPC
    handed_out = watched.version

    def configuration() -> grpc.ServerCertificateConfiguration:
        identity = watched.latest()
        return grpc.ssl_server_certificate_configuration(
            [(identity.private_key, identity.certificate_chain)], root_certificates=identity.authorities
        )

    def changed() -> grpc.ServerCertificateConfiguration | None:
        nonlocal handed_out
        with lock:
            watched.latest()
            if watched.version == handed_out:
                return None
            handed_out = watched.version
            return configuration()

    return grpc.dynamic_ssl_server_credentials(configuration(), changed, require_client_authentication=mutual)  # type: ignore[arg-type]


class RunningServer:
    """A server that listens on `port`."""

    def __init__(
        self,
        server: grpc.aio.Server,
        port: int,
        guard: Guard,
        health: Health,
        probes: tuple[grpc.aio.Server, int] | None,
        *,
        leave_on_drain: bool,
        token_port: int | None = None,
        http: RunningHttpServer | None = None,
    ) -> None:
        self.port = port
        self.token_port = token_port
        self.http_port = None if http is None else http.port
        self._http = http
        self._leave_on_drain = leave_on_drain
        self.probe_port = None if probes is None else probes[1]
        self._probes = None if probes is None else probes[0]
        self._server = server
        self._guard = guard
        self._health = health

    @property
    def running_rpcs(self) -> int:
        """RPCs that are served now, without health checks."""
        return self._guard.work.running

    @property
    def ready(self) -> bool:
        """Whether health checks say that the services can answer."""
        return bool(self._health.status("") == SERVING)

    def announce(self, *, able: bool) -> None:
        """Say in health checks whether the services can answer now; until told otherwise they can."""
        if able:
            self._health.serving()
        else:
            self._health.not_serving()

    def announce_part(self, name: str, *, able: bool) -> None:
        """Say in health checks whether a part of the server can do its work; until told so it cannot."""
        self._health.part(name, able=able)

    def begin_drain(self) -> None:
        """Say NOT_SERVING and refuse new RPCs with SHUTTING_DOWN; those that run go on."""
        self._guard.draining = True
        self._health.drain()

    async def stop(self, grace_s: float = 0) -> None:
        """Drain for at most `grace_s` seconds, then end what still runs and close the port."""
        self.begin_drain()
        leaving: asyncio.Task[None] | None = None
        if self._leave_on_drain:
            # Connections get GOAWAY at once; gRPC waits longer than we do, so that it is the guard who ends what still runs.
            leaving = asyncio.create_task(self._server.stop(grace_s + STOP_S), name="lionrock-leaving")
        if self._http is not None:
            await self._http.begin_drain()
        try:
            async with asyncio.timeout(grace_s):
                await self._guard.work.idle()
        except TimeoutError:
            log.warning("drain grace is over", extra={"running_rpcs": self._guard.work.running})
        finally:
            self._guard.end_running()
            if self._http is not None:
                await self._http.stop(STOP_S)
            await self._server.stop(STOP_S)
            if leaving is not None:
                await leaving
            if self._probes is not None:
                await self._probes.stop(None)


async def start_server(
    settings: ServiceSettings,
    name: str,
    registrations: Sequence[Registration],
    parts: Collection[str] = (),
    *,
    http: HttpDoor | None = None,
) -> RunningServer:
    """Start a server, with a door for HTTP if one is given; `parts` are what health checks know beside its services.

    Raises CannotListen, TlsFilesUnusable.
    """
    del name
    callers: dict[str, Callers] = {registration.service_name: registration.callers for registration in registrations}
    health = Health(callers, parts)
    callers[HEALTH] = AnyMember()
    if settings.server.reflection:
        callers.update(dict.fromkeys(REFLECTION, AnyMember()))
    guard = Guard(settings.server, callers)
    server = grpc.aio.server(interceptors=[guard], options=_options(settings.server))
    for registration in registrations:
        registration.add(registration.servicer, server)
    _add_health(health, server)
    if settings.server.reflection:
        _add_reflection([*callers], server)
    port = _listen(server, settings.server.listen, _credentials(settings.server.tls))
    token_port = None
    if settings.server.token_listen is not None:
        credentials = _credentials(settings.server.token_tls or settings.server.tls, mutual=False)
        token_port = _listen(server, settings.server.token_listen, credentials)
    probes = None
    if settings.server.probe_listen is not None:
        try:
            probes = await start_probes(settings.server.probe_listen, health)
        except RuntimeError:
            raise CannotListen(f"cannot listen on {settings.server.probe_listen}") from None
    beside = None if http is None else await _open(http, guard, settings.server.trust_domain)
    await server.start()
    health.serving()
    leave = settings.server.leave_on_drain
    return RunningServer(server, port, guard, health, probes, leave_on_drain=leave, token_port=token_port, http=beside)


def _listen(server: grpc.aio.Server, address: str, credentials: grpc.ServerCredentials) -> int:
    """Return the port. Raises CannotListen."""
    try:
        return server.add_secure_port(address, credentials)
    except RuntimeError:
        raise CannotListen(f"cannot listen on {address}") from None


async def _open(door: HttpDoor, guard: Guard, trust_domain: str) -> RunningHttpServer:
    """Start the HTTP server beside. Raises CannotListen, TlsFilesUnusable."""
    from lionrock.chassis import http_server  # services without HTTP are installed without what it needs

    try:
        return await http_server.start_http_server(door.app(HttpCalls(guard, trust_domain)), door.settings)
    except http_server.CannotListen as error:
        raise CannotListen(*error.args) from None


def _add_health(health: Health, server: grpc.aio.Server) -> None:
    from grpc_health.v1 import health_pb2_grpc

    health_pb2_grpc.add_HealthServicer_to_server(health, server)


def _add_reflection(names: Sequence[str], server: grpc.aio.Server) -> None:
    from grpc_reflection.v1alpha import reflection

    reflection.enable_server_reflection(names, server)


def _log_loop_error(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """Log what asyncio could not deliver; its own handler prints reprs of exceptions, which may quote payload."""
    del loop
    error = context.get("exception")
    log.error(context["message"], exc_info=error if isinstance(error, BaseException) else None)


async def serve(
    settings: ServiceSettings,
    name: str,
    registrations: Sequence[Registration],
    *,
    on_ready: Callable[[int], Awaitable[None]] | None = None,
    on_drain: Callable[[], Awaitable[None]] | None = None,
    readiness: AsyncIterator[bool] | None = None,
    parts: Mapping[str, AsyncIterator[bool]] | None = None,
    telemetry: Telemetry | None = None,
    metrics: PrometheusMetrics | None = None,
    http: HttpDoor | None = None,
) -> None:
    """Serve until SIGTERM or SIGINT, then drain; a second signal ends at once.

    `readiness` says whenever the service becomes able or unable to answer, which health checks then report; without it the service
    is able from the start, with it not before it says so. `parts` say the same of what health checks know beside the services, by
    name; they change nothing about these. `telemetry`: what the caller started, because it has something to say before it serves,
    and closes; without it this starts and closes its own. `metrics`: comes with `telemetry` where `server.metrics_listen` is set.
    `on_ready` gets the port; then the ready file is written. `on_drain` runs after the server refuses new RPCs and before it waits
    for those that run. Raises SystemExit(1) after saying why if the server cannot start.
    """
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(_log_loop_error)
    own_telemetry = None
    if telemetry is None:
        metrics = prometheus_metrics(settings.server)
        own_telemetry = start_telemetry(name, settings.telemetry, () if metrics is None else (metrics.reader,))
    try:
        running = await start_server(settings, name, registrations, tuple(parts or ()), http=http)
        try:
            told = _metrics_port(settings.server, running, metrics)
        except CannotListen:
            await running.stop(0)
            raise
    except (CannotListen, TlsFilesUnusable) as error:
        print(f"lionrock {name}: {error}", file=sys.stderr)
        if own_telemetry is not None:
            own_telemetry.close()
        raise SystemExit(1) from None
    drain, at_once = asyncio.Event(), asyncio.Event()

    def on_signal() -> None:
        (at_once if drain.is_set() else drain).set()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, on_signal)
    following: list[asyncio.Task[None]] = []
    try:
        if readiness is not None:
            running.announce(able=False)
            following.append(asyncio.create_task(_follow(readiness, running.announce), name="lionrock-readiness"))
        for part, able in (parts or {}).items():
            announce = partial(running.announce_part, part)
            following.append(asyncio.create_task(_follow(able, announce), name=f"lionrock-readiness-{part}"))
        if on_ready is not None:
            await on_ready(running.port)
        if http is not None and http.settings.ready_file is not None:
            assert running.http_port is not None
            write_ready_file(http.settings.ready_file, running.http_port)
        ready_file = settings.server.ready_file
        if ready_file is not None:
            write_ready_file(ready_file, running.port)
        log.info("serving", extra={"port": running.port} | ({} if told is None else {"metrics_port": told.port}))
        await drain.wait()
        log.info("draining", extra={"running_rpcs": running.running_rpcs})
        running.begin_drain()
        stopping = asyncio.ensure_future(_stop(running, settings.server.drain_grace_s, on_drain))
        impatient = asyncio.ensure_future(at_once.wait())
        await asyncio.wait({stopping, impatient}, return_when=asyncio.FIRST_COMPLETED)
        impatient.cancel()
        if not stopping.done():
            stopping.cancel()
            log.warning("stopping at once", extra={"running_rpcs": running.running_rpcs})
        await asyncio.gather(stopping, return_exceptions=True)
    finally:
        for task in following:
            task.cancel()
        await running.stop(0)
        if told is not None:
            await asyncio.to_thread(told.close)
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(number)
        log.info("stopped")
        if own_telemetry is not None:
            await asyncio.to_thread(own_telemetry.close)


def prometheus_metrics(settings: ServerSettings) -> PrometheusMetrics | None:
    """Return what collects metrics for the port that the settings name; None where they name none."""
    if settings.metrics_listen is None:
        return None
    from lionrock.chassis.prometheus import PrometheusMetrics

    return PrometheusMetrics()


def _metrics_port(settings: ServerSettings, running: RunningServer, metrics: PrometheusMetrics | None) -> ProbeServer | None:
    """Start the port for metrics. Raises CannotListen."""
    if settings.metrics_listen is None:
        return None
    assert metrics is not None, "who brings telemetry brings its metrics"
    try:
        # It answers, so the process is alive; whether it can serve is another question.
        port = ProbeServer(settings.metrics_listen, list, lambda: [] if running.ready else ["not serving"], metrics.text)
    except OSError:
        raise CannotListen(f"cannot listen on {settings.metrics_listen}") from None
    port.start()
    return port


class _Announce(Protocol):
    def __call__(self, *, able: bool) -> None: ...


async def _follow(readiness: AsyncIterator[bool], announce: _Announce) -> None:
    async for able in readiness:
        announce(able=able)


async def _stop(running: RunningServer, grace_s: float, on_drain: Callable[[], Awaitable[None]] | None) -> None:
    if on_drain is not None:
        await on_drain()
    await running.stop(grace_s)
