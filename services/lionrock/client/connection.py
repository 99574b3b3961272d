"""A blocking channel to the gateway: TLS that follows its files, the caller's token, and its trace context.

The async client uses the chassis' channel; gRPC's blocking API has its own channel type, so this is the same for it. gRPC clients
cannot reload certificates: when the files change, the next call gets a new channel, and the old one is closed when its last call
has ended.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import grpc
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from lionrock.chassis.channel import channel_credentials, watched_identity
from lionrock.chassis.settings import TlsSettings
from lionrock.client.tokens import TokenSource, call_credentials
from lionrock.gateway.v1.gateway_pb2_grpc import GatewayServiceStub

_MAX_MESSAGE_BYTES = 16 * 2**20
_PROPAGATOR = TraceContextTextMapPropagator()


@dataclass(frozen=True, slots=True)
class Tls:
    """Files of the caller's identity: certificate chain, private key, and the authorities that sign gateways' certificates. PEM."""

    cert: str | Path
    key: str | Path
    ca: str | Path

    def settings(self) -> TlsSettings:
        """Return the same as the chassis names it."""
        return TlsSettings(cert_file=Path(self.cert), key_file=Path(self.key), ca_file=Path(self.ca))


@dataclass(frozen=True, slots=True)
class ServerTls:
    """File of the authorities that sign gateways' certificates, for a caller who has a token and no certificate. PEM."""

    ca: str | Path

    def settings(self) -> Path:
        """Return the same as the chassis names it."""
        return Path(self.ca)


def credentials_of_calls(tls: Tls | ServerTls, token: TokenSource | None) -> grpc.CallCredentials | None:
    """Return what calls carry. Raises ValueError where a caller shows nothing at all, TokenUnusable."""
    if token is None and isinstance(tls, ServerTls):
        raise ValueError("without a certificate a token is needed")
    return None if token is None else call_credentials(token)


def trace_metadata() -> tuple[tuple[str, str], ...]:
    """Return the caller's own W3C trace context, if there is one, so that the mesh's spans join its trace."""
    carrier: dict[str, str] = {}
    _PROPAGATOR.inject(carrier)
    return tuple(carrier.items())


class _CountedChannel:
    """A channel and how many users it has."""

    def __init__(self, channel: grpc.Channel) -> None:
        self.channel = channel
        self.stub = GatewayServiceStub(channel)
        self.users = 0
        self.retired = False


class BlockingConnection:
    """Hands out stubs over the current channel. Safe for threads."""

    def __init__(self, target: str, tls: Tls | ServerTls, server: str, token: TokenSource | None = None) -> None:
        """`server`: service name that the other side's certificate must carry.

        Raises chassis.tls.TlsFilesUnusable, TokenUnusable, and ValueError where there is neither certificate nor token.
        """
        self._target = target
        self._server = server
        self._calls = credentials_of_calls(tls, token)
        self._identity = watched_identity(tls.settings())
        self._version = self._identity.version
        self._lock = threading.Lock()
        self._current = self._open()

    @contextmanager
    def stub(self) -> Iterator[GatewayServiceStub]:
        """Return a stub whose channel stays open for as long as the block."""
        with self._use() as used:
            yield used.stub

    @contextmanager
    def channel(self) -> Iterator[grpc.Channel]:
        """Return the channel, for other services that the gateway offers; it stays open for as long as the block."""
        with self._use() as used:
            yield used.channel

    @contextmanager
    def _use(self) -> Iterator[_CountedChannel]:
        with self._lock:
            self._identity.latest()
            if self._identity.version != self._version:
                self._version = self._identity.version
                self._retire(self._current)
                self._current = self._open()
            used = self._current
            used.users += 1
        try:
            yield used
        finally:
            with self._lock:
                used.users -= 1
                if used.retired and not used.users:
                    used.channel.close()

    def close(self) -> None:
        """Close the channel. Calls that run on it are cancelled."""
        with self._lock:
            self._current.channel.close()

    def _retire(self, channel: _CountedChannel) -> None:
        channel.retired = True
        if not channel.users:
            channel.channel.close()

    def _open(self) -> _CountedChannel:
        credentials = channel_credentials(self._identity.latest(), self._calls)
        options = [
            ("grpc.ssl_target_name_override", f"{self._server}.lionrock.internal"),
            ("grpc.max_receive_message_length", _MAX_MESSAGE_BYTES),
            ("grpc.max_send_message_length", _MAX_MESSAGE_BYTES),
            ("grpc.keepalive_time_ms", 30_000),
            ("grpc.keepalive_timeout_ms", 10_000),
            ("grpc.enable_http_proxy", 0),
        ]
        return _CountedChannel(grpc.secure_channel(self._target, credentials, options))
