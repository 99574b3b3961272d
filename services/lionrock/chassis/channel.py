"""Calls to another service of the mesh: mutual TLS, trace context, spans, deadlines.

A `MeshChannel` is a `grpc.aio.Channel` for the generated stubs. It prepares metadata and deadline of each call synchronously and
returns gRPC's own call object. It is not built on grpc.aio's client interceptors, because these put a task and, for streams, a
queue between the caller and the call, so that cancellation arrives late or, with the published OpenTelemetry interceptor, never.

gRPC clients cannot reload certificates (grpc/grpc#41779): when the files change, the next call goes through a new channel, and the
old one is closed once its calls have ended.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Self

import grpc
from opentelemetry import trace
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from lionrock.chassis import calls
from lionrock.chassis.settings import PeerSettings, TlsSettings
from lionrock.chassis.telemetry import tracer
from lionrock.chassis.tls import PemIdentity, WatchedAuthorities, WatchedIdentity

log = logging.getLogger("lionrock.chassis")

MAX_MESSAGE_BYTES = 64 * 2**20
# A server that died is looked for again within this time; gRPC's default is two minutes.
MAX_RECONNECT_BACKOFF_MS = 2000
KEEPALIVE_MS = 30_000
KEEPALIVE_TIMEOUT_MS = 10_000
# The calls of a replaced channel have deadlines; this is only the end of patience.
RETIRED_CHANNEL_S = 3600.0
# Several addresses share the calls. When one leaves, names are asked again soon: gRPC's default of 30 s outlasts a roll-out.
_SPREAD: tuple[tuple[str, int | str], ...] = (
    ("grpc.service_config", '{"loadBalancingConfig": [{"round_robin": {}}]}'),
    ("grpc.dns_min_time_between_resolutions_ms", 1000),
)
_SPREAD_OVER = ("dns:", "ipv4:", "ipv6:")
_PROPAGATOR = TraceContextTextMapPropagator()


def _options(peer: PeerSettings) -> list[tuple[str, int | str]]:
    service = peer.service
    return [
        *(_SPREAD if peer.target.startswith(_SPREAD_OVER) else ()),
        ("grpc.ssl_target_name_override", f"{service}.lionrock.internal"),
        ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
        ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
        ("grpc.initial_reconnect_backoff_ms", 100),
        ("grpc.min_reconnect_backoff_ms", 1000),
        ("grpc.max_reconnect_backoff_ms", MAX_RECONNECT_BACKOFF_MS),
        ("grpc.keepalive_time_ms", KEEPALIVE_MS),
        ("grpc.keepalive_timeout_ms", KEEPALIVE_TIMEOUT_MS),
        ("grpc.enable_http_proxy", 0),
    ]


def _final_code(call: grpc.aio.Call) -> grpc.StatusCode:
    """Return the status of a call that is done. `code()` is a coroutine that then finishes without waiting."""
    coroutine = call.code()
    try:
        coroutine.send(None)
    except StopIteration as stop:
        code: grpc.StatusCode = stop.value
        return code
    finally:
        coroutine.close()
    return grpc.StatusCode.UNKNOWN


class _MultiCallable:
    """One method of a stub. Calling it starts an RPC on the channel's current connection."""

    def __init__(self, channel: MeshChannel, kind: str, method: str, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> None:
        self._channel = channel
        self._kind = kind
        self._method = method
        self._arguments = arguments
        self._keywords = keywords
        self._generation = 0
        self._inner: Callable[..., Any] | None = None
        service, _, name = method.removeprefix("/").partition("/")
        self._name = f"{service}/{name}"
        self._attributes = {"rpc.system": "grpc", "rpc.service": service, "rpc.method": name, "server.address": channel.peer.target}

    def _current(self) -> Callable[..., Any]:
        generation, channel = self._channel.connection()
        if self._inner is None or generation != self._generation:
            self._inner = getattr(channel, self._kind)(self._method, *self._arguments, **self._keywords)
            self._generation = generation
        return self._inner

    def __call__(self, *requests: Any, timeout: float | None = None, metadata: Any = None, **options: Any) -> Any:
        """Start the RPC. Its deadline is the given or the peer's default, and never later than that of the call being served."""
        if "request_iterator" in options:
            requests = (options.pop("request_iterator"),)
        elif "request" in options:
            requests = (options.pop("request"),)
        timeout_s = self._channel.peer.timeout_s if timeout is None else timeout
        serving = calls.current_call()
        if serving is not None:
            timeout_s = max(0.0, min(timeout_s, serving.deadline - asyncio.get_running_loop().time()))
        span = self._channel.tracer.start_span(self._name, kind=trace.SpanKind.CLIENT, attributes=self._attributes)
        carrier: dict[str, str] = {}
        _PROPAGATOR.inject(carrier, trace.set_span_in_context(span))
        try:
            call = self._current()(*requests, timeout=timeout_s, metadata=(*(metadata or ()), *carrier.items()), **options)
        except BaseException:
            span.end()
            raise
        if span.is_recording():
            call.add_done_callback(lambda done: _end_span(span, done))
        return call


def _end_span(span: trace.Span, call: grpc.aio.Call) -> None:
    code = _final_code(call)
    span.set_attribute("rpc.grpc.status_code", code.value[0])
    # Cancelling is this side's own decision: it has what it wanted, or nobody wants it any more.
    if code not in (grpc.StatusCode.OK, grpc.StatusCode.CANCELLED):
        span.set_status(trace.StatusCode.ERROR)
    span.end()


def watched_identity(
    tls: TlsSettings | Path, *, clock: Callable[[], float] = time.monotonic
) -> WatchedIdentity | WatchedAuthorities:
    """Follow the files of an identity, or the one of the authorities that a caller without one trusts. Raises TlsFilesUnusable."""
    return WatchedAuthorities(tls, clock=clock) if isinstance(tls, Path) else WatchedIdentity(tls, clock=clock)


def channel_credentials(identity: PemIdentity | bytes, calls: grpc.CallCredentials | None) -> grpc.ChannelCredentials:
    """Return gRPC's credentials of an identity, or of a caller who only trusts authorities, with what every call carries beside."""
    if isinstance(identity, bytes):
        channel = grpc.ssl_channel_credentials(identity)
    else:
        channel = grpc.ssl_channel_credentials(identity.authorities, identity.private_key, identity.certificate_chain)
    return channel if calls is None else grpc.composite_channel_credentials(channel, calls)


class MeshChannel(grpc.aio.Channel):
    """A channel to one service, for generated stubs."""

    def __init__(
        self,
        peer: PeerSettings,
        tls: TlsSettings | Path,
        *,
        clock: Callable[[], float] = time.monotonic,
        calls: grpc.CallCredentials | None = None,
    ) -> None:
        """Read the certificate files. Raises TlsFilesUnusable. Connects at the first call.

        `tls`: the identity that is shown or, for callers without one, the file of the authorities that are trusted. `calls`: what
        every call carries beside.
        """
        self.peer = peer
        self.tracer = tracer()
        self._calls = calls
        self._identity = watched_identity(tls, clock=clock)
        self._generation = self._identity.version
        self._channel = self._connect()
        self._retiring: set[asyncio.Task[None]] = set()

    def _connect(self) -> grpc.aio.Channel:
        credentials = channel_credentials(self._identity.latest(), self._calls)
        return grpc.aio.secure_channel(self.peer.target, credentials, _options(self.peer))

    def connection(self) -> tuple[int, grpc.aio.Channel]:
        """Return the channel for a new call and its generation, replaced if the certificate files have changed."""
        self._identity.latest()
        if self._identity.version != self._generation:
            self._generation = self._identity.version
            retired, self._channel = self._channel, self._connect()
            task = asyncio.get_running_loop().create_task(retired.close(RETIRED_CHANNEL_S))
            self._retiring.add(task)
            task.add_done_callback(self._retiring.discard)
            log.info("certificate changed", extra={"peer": self.peer.service})
        return self._generation, self._channel

    def unary_unary(self, method: str, *arguments: Any, **keywords: Any) -> Any:
        """Return the multi-callable of a method."""
        return _MultiCallable(self, "unary_unary", method, arguments, keywords)

    def unary_stream(self, method: str, *arguments: Any, **keywords: Any) -> Any:
        """Return the multi-callable of a method."""
        return _MultiCallable(self, "unary_stream", method, arguments, keywords)

    def stream_unary(self, method: str, *arguments: Any, **keywords: Any) -> Any:
        """Return the multi-callable of a method."""
        return _MultiCallable(self, "stream_unary", method, arguments, keywords)

    def stream_stream(self, method: str, *arguments: Any, **keywords: Any) -> Any:
        """Return the multi-callable of a method."""
        return _MultiCallable(self, "stream_stream", method, arguments, keywords)

    def get_state(self, try_to_connect: bool = False) -> grpc.ChannelConnectivity:
        """Return the state of the current connection."""
        return self.connection()[1].get_state(try_to_connect)

    async def wait_for_state_change(self, last_observed_state: grpc.ChannelConnectivity) -> None:
        """Wait until the current connection's state is another."""
        await self.connection()[1].wait_for_state_change(last_observed_state)

    async def channel_ready(self) -> None:
        """Wait until the current connection is established."""
        await self.connection()[1].channel_ready()

    async def close(self, grace: float | None = None) -> None:
        """Close the connections; calls that run get `grace` seconds."""
        for task in tuple(self._retiring):
            task.cancel()
        await asyncio.gather(*self._retiring, return_exceptions=True)
        await self._channel.close(grace)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exception: object) -> None:
        await self.close()


@asynccontextmanager
async def open_channel(peer: PeerSettings, tls: TlsSettings, *, name: str) -> AsyncIterator[grpc.aio.Channel]:
    """Open a channel to a peer for the service `name`. Raises TlsFilesUnusable.

    The server must show a certificate for `<peer.service>.lionrock.internal`, signed by the authorities in `tls.ca_file`.
    """
    del name
    channel = MeshChannel(peer, tls)
    try:
        yield channel
    finally:
        await channel.close()
