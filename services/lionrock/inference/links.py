"""Control links between an engine and its ranks: framed bytes over one socket a rank.

A step travels as one small frame to every rank and one frame back, so that no Ray call and no pickle stands on the hot path. Ranks
on the engine's node connect over a Unix socket in a directory of our own (mode 0700), others over mutual TLS; both prove themselves
with the group's secret, which travelled through Ray's authenticated channel. The end of a stream is how a dead rank shows at once.
Knows sockets, not steps.
"""

from __future__ import annotations

import hmac
import os
import secrets
import select
import shutil
import socket
import ssl
import struct
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path

_HEADER = struct.Struct("<IB")
_HELLO = struct.Struct("<I32s")
SECRET_BYTES = 32
MAX_FRAME_BYTES = 64 << 20  # a step of a million tokens with its block tables
_READ_BYTES = 1 << 18
_HANDSHAKE_S = 5.0
_ACCEPT_LOOK_S = 0.2  # closing a listener does not wake a select on it


class LinkClosed(Exception):
    """The other end went away, or spoke something else than frames."""


class Kind(IntEnum):
    """What a frame carries."""

    HELLO = 1
    STEP = 2  # to a rank: StepBatch
    RESULT = 3  # from the sampling rank: StepResult
    FAILED = 4  # from a rank: the name of an error; the rank is useless
    BEAT = 5  # from a rank: it lives; while it loads, one byte: how many percent of its weights it has read
    ENDED = 6  # to a rank: a traced sequence is over; id and traceparent
    CLOSE = 7  # to a rank: leave
    PEER_LOST = 8  # from a rank: a collective failed because of another rank; this one stands by


_KINDS = frozenset(kind.value for kind in Kind)


@dataclass(frozen=True, slots=True)
class LinkTls:
    """PEM files of a node: its certificate, its key, and the authority that both ends trust."""

    cert_file: Path
    key_file: Path
    ca_file: Path

    def context(self, purpose: ssl.Purpose) -> ssl.SSLContext:
        """TLS 1.3 with the peer's certificate required. The names in it differ by node, so the group's secret tells who it is."""
        context = ssl.create_default_context(purpose, cafile=str(self.ca_file))
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.check_hostname = False
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_cert_chain(self.cert_file, self.key_file)
        return context


@dataclass(frozen=True, slots=True)
class LinkAddress:
    """Where the ranks of one group connect. tcp is None when all of them are on the engine's node."""

    secret: bytes
    unix: str
    tcp: tuple[str, int] | None


class Link:
    """One end. send may be called from any thread; received and wait from one at a time."""

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock
        self._socket.setblocking(False)
        self._buffer = bytearray()
        self._sending = threading.Lock()  # a frame at a time
        self._calling = threading.Lock()  # OpenSSL takes one call at a time

    def fileno(self) -> int:
        """File descriptor, for select."""
        return self._socket.fileno()

    def send(self, kind: Kind, payload: bytes = b"", *, timeout_s: float = 1.0) -> None:
        """Send a frame. Raises LinkClosed when the peer is gone or does not take it in time."""
        deadline = time.monotonic() + timeout_s
        rest = memoryview(_HEADER.pack(len(payload), kind) + payload)
        with self._sending:
            while rest:
                try:
                    with self._calling:
                        rest = rest[self._socket.send(rest) :]
                except (BlockingIOError, ssl.SSLWantWriteError, ssl.SSLWantReadError):
                    if (left := deadline - time.monotonic()) <= 0:
                        raise LinkClosed("the peer takes no frames") from None
                    select.select([], [self._socket], [], left)
                except (OSError, ValueError) as error:
                    raise LinkClosed("the peer is gone") from error

    def received(self) -> Iterator[tuple[Kind, bytes]]:
        """Frames that are there now. Raises LinkClosed, after the frames before the end, when the peer is gone."""
        ended = False
        while not ended:
            try:
                with self._calling:
                    chunk = self._socket.recv(_READ_BYTES)
            except (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
                break
            except (OSError, ValueError):
                chunk = b""
            ended = not chunk
            self._buffer += chunk
            yield from self._frames()
        if ended:
            raise LinkClosed("the peer is gone")

    def _frames(self) -> Iterator[tuple[Kind, bytes]]:
        while len(self._buffer) >= _HEADER.size:
            size, kind = _HEADER.unpack_from(self._buffer)
            if size > MAX_FRAME_BYTES or kind not in _KINDS:
                raise LinkClosed("the peer speaks another protocol")
            end = _HEADER.size + size
            if len(self._buffer) < end:
                return
            payload = bytes(self._buffer[_HEADER.size : end])
            del self._buffer[:end]
            yield Kind(kind), payload

    def wait(self, timeout_s: float) -> bool:
        """Wait until there is something to receive; False when the time is over."""
        if isinstance(self._socket, ssl.SSLSocket) and self._socket.pending():
            return True
        try:
            return bool(select.select([self._socket], [], [], timeout_s)[0])
        except (OSError, ValueError):  # closed meanwhile: received() says so
            return True

    def close(self) -> None:
        """Close; the peer sees the end. May be called twice."""
        self._socket.close()


class LinkListener:
    """Where the engine waits for the ranks of one group. Close it when they have come."""

    def __init__(self, *, node_address: str | None = None, tls: LinkTls | None = None) -> None:
        """Listen; node_address: address of this node for ranks on other nodes, which needs tls. Raises OSError."""
        if node_address is not None and tls is None:
            raise ValueError("ranks on other nodes need TLS")
        self._directory = tempfile.mkdtemp(prefix="lionrock-")  # mode 0700
        self._context = tls.context(ssl.Purpose.CLIENT_AUTH) if tls is not None else None
        path = str(Path(self._directory) / "ranks")
        self._sockets = [socket.socket(socket.AF_UNIX)]
        self._sockets[0].bind(path)
        tcp = None
        if node_address is not None:
            self._sockets.append(socket.create_server((node_address, 0)))
            tcp = (node_address, int(self._sockets[1].getsockname()[1]))
        for listening in self._sockets:
            listening.listen(64)
        self.address = LinkAddress(secrets.token_bytes(SECRET_BYTES), path, tcp)

    def accept(self, ranks: int, deadline_s: float) -> list[Link]:
        """Links of all ranks, by rank. deadline_s: monotonic. Raises LinkClosed when one does not come in time."""
        links: dict[int, Link] = {}
        while len(links) < ranks:
            left_s = deadline_s - time.monotonic()
            try:
                ready, _, _ = select.select(self._sockets, [], [], min(max(0.0, left_s), _ACCEPT_LOOK_S))
            except (OSError, ValueError):  # closed meanwhile
                left_s, ready = 0.0, []
            if not ready and left_s <= 0:
                for link in links.values():
                    link.close()
                raise LinkClosed(f"{len(links)} of {ranks} ranks came in time")
            if not ready:
                continue
            connection, _ = ready[0].accept()
            try:
                rank, link = self._admit(connection)
            except (OSError, LinkClosed):
                continue  # a stranger: go on waiting for ours
            if rank < ranks and rank not in links:
                links[rank] = link
            else:
                link.close()
        return [links[rank] for rank in range(ranks)]

    def _admit(self, connection: socket.socket) -> tuple[int, Link]:
        """Rank and link of a connection. Raises LinkClosed or OSError for a stranger, having closed it."""
        connection.settimeout(_HANDSHAKE_S)
        if connection.family != socket.AF_UNIX:
            assert self._context is not None
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            try:
                connection = self._context.wrap_socket(connection, server_side=True)
            except OSError:
                connection.close()
                raise
        link = Link(connection)
        if link.wait(_HANDSHAKE_S):
            for kind, payload in link.received():
                if kind is Kind.HELLO and len(payload) == _HELLO.size:
                    rank, secret = _HELLO.unpack(payload)
                    if hmac.compare_digest(secret, self.address.secret):
                        return rank, link
                break
        link.close()
        raise LinkClosed("the peer is none of our ranks")

    def close(self) -> None:
        """Stop listening and remove the socket. Links that were accepted live on."""
        for listening in self._sockets:
            listening.close()
        shutil.rmtree(self._directory, ignore_errors=True)


def connect(address: LinkAddress, rank: int, *, same_node: bool, tls: LinkTls | None = None) -> Link:
    """Connect a rank to its engine. Raises LinkClosed, OSError."""
    sock = _dial_unix(address.unix) if same_node else _dial_tls(address.tcp, tls)
    link = Link(sock)
    try:
        link.send(Kind.HELLO, _HELLO.pack(rank, address.secret))
    except LinkClosed:
        link.close()
        raise
    return link


def _dial_unix(path: str) -> socket.socket:
    if os.stat(path).st_uid != os.getuid():
        raise LinkClosed("the socket belongs to another user")
    sock = socket.socket(socket.AF_UNIX)
    try:
        sock.settimeout(_HANDSHAKE_S)
        sock.connect(path)
    except OSError:
        sock.close()
        raise
    return sock


def _dial_tls(address: tuple[str, int] | None, tls: LinkTls | None) -> socket.socket:
    if address is None or tls is None:
        raise LinkClosed("the engine does not listen for other nodes")
    sock = socket.create_connection(address, timeout=_HANDSHAKE_S)
    try:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return tls.context(ssl.Purpose.SERVER_AUTH).wrap_socket(sock)
    except OSError:
        sock.close()
        raise
