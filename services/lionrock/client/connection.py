"""A blocking channel to the gateway: mutual TLS that follows its files, and the caller's trace context.

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

from lionrock.chassis.settings import TlsSettings
from lionrock.chassis.tls import WatchedIdentity
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

    def __init__(self, target: str, tls: Tls, server: str) -> None:
        """`server`: service name that the other side's certificate must carry. Raises chassis.tls.TlsFilesUnusable."""
        self._target = target
        self._server = server
        self._identity = WatchedIdentity(tls.settings())
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
        identity = self._identity.latest()
        credentials = grpc.ssl_channel_credentials(identity.authorities, identity.private_key, identity.certificate_chain)
        options = [
            ("grpc.ssl_target_name_override", f"{self._server}.lionrock.internal"),
            ("grpc.max_receive_message_length", _MAX_MESSAGE_BYTES),
            ("grpc.max_send_message_length", _MAX_MESSAGE_BYTES),
            ("grpc.keepalive_time_ms", 30_000),
            ("grpc.keepalive_timeout_ms", 10_000),
            ("grpc.enable_http_proxy", 0),
        ]
        return _CountedChannel(grpc.secure_channel(self._target, credentials, options))
