"""A proxy in front of the API server that fails on purpose.

Plain HTTP/1.1 towards its client, TLS with the client certificate of a kubeconfig towards the server. A `Plan` is asked about every
request, by its number, and may let it pass, answer it with an error, delay it, cut the connection before or after the server has
carried it out, or cut a watch after some events. Requests of a plan are counted under a lock, so that "the n-th call" is one call.
"""

from __future__ import annotations

import http.client
import json
import socket
import ssl
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

_HOP_BY_HOP = frozenset({"connection", "keep-alive", "transfer-encoding", "content-length"})
_BODY_TIMEOUT_S = 120


@dataclass(frozen=True, slots=True)
class Request:
    """One request. number: the first is 1."""

    number: int
    method: str
    path: str

    @property
    def is_watch(self) -> bool:
        """Whether it opens a watch."""
        return "watch=true" in self.path

    @property
    def is_write(self) -> bool:
        """Whether it may change something."""
        return self.method != "GET"


@dataclass(frozen=True, slots=True)
class Fault:
    """What happens to a request."""

    status: int | None = None
    """Answer with this instead of asking the server."""
    retry_after_s: int | None = None
    delay_s: float = 0.0
    cut_before: bool = False
    """Close the connection; the server never hears of it."""
    cut_after: bool = False
    """Let the server carry it out, then close the connection without its answer."""
    cut_watch_after: int | None = None
    """Close a watch after so many events."""


Plan = Callable[[Request], Fault | None]


def no_faults(request: Request) -> Fault | None:
    """Let everything pass."""
    del request
    return None


@dataclass
class FaultProxy:
    """Serves from construction to close(). `plan` may be exchanged at any time."""

    api_url: str
    context: ssl.SSLContext
    plan: Plan = no_faults
    requests: list[Request] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._lock = threading.Lock()
        self._open: set[socket.socket] = set()
        proxy = self

        class Handler(_Handler):
            owner = proxy

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    def close(self) -> None:
        """Serve no more, and cut what is open."""
        self._server.shutdown()
        self._server.server_close()
        self.cut_everything()

    def cut_everything(self) -> None:
        """Cut all connections at once, as when a network goes."""
        with self._lock:
            sockets, self._open = self._open, set()
        for each in sockets:
            _cut(each)

    def restart_numbers(self) -> None:
        """Begin to count anew."""
        with self._lock:
            self.requests = []

    def noted(self, method: str, path: str) -> tuple[Request, Fault]:
        """Count a request and ask the plan about it."""
        with self._lock:
            request = Request(len(self.requests) + 1, method, path)
            self.requests.append(request)
            return request, self.plan(request) or Fault()

    def opened(self, connection: socket.socket) -> None:
        """Remember a client's connection."""
        with self._lock:
            self._open.add(connection)

    def closed(self, connection: socket.socket) -> None:
        """Forget a client's connection."""
        with self._lock:
            self._open.discard(connection)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    owner: FaultProxy

    def setup(self) -> None:
        super().setup()
        self.connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.owner.opened(self.connection)

    def finish(self) -> None:
        self.owner.closed(self.connection)
        try:
            super().finish()
        except OSError:
            return  # it was cut

    def handle(self) -> None:
        try:
            super().handle()
        except OSError:
            self.close_connection = True

    def _serve(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        request, fault = self.owner.noted(self.command, self.path)
        if fault.delay_s:
            time.sleep(fault.delay_s)
        if fault.cut_before:
            self._cut()
            return
        if fault.status is not None:
            self._refuse(fault.status, fault.retry_after_s)
            return
        self._pass_on(request, fault, body)

    def _refuse(self, status: int, retry_after_s: int | None) -> None:
        reasons = {409: "Conflict", 410: "Expired", 429: "TooManyRequests", 500: "InternalError", 503: "ServiceUnavailable"}
        told = {
            "kind": "Status",
            "apiVersion": "v1",
            "status": "Failure",
            "reason": reasons.get(status, "Unknown"),
            "message": "injected",
            "code": status,
        }
        content = json.dumps(told).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        if retry_after_s is not None:
            self.send_header("Retry-After", str(retry_after_s))
        self.end_headers()
        self.wfile.write(content)

    def _pass_on(self, request: Request, fault: Fault, body: bytes) -> None:
        target = urlsplit(self.owner.api_url)
        upstream = http.client.HTTPSConnection(
            str(target.hostname), target.port, context=self.owner.context, timeout=_BODY_TIMEOUT_S
        )
        try:
            headers = {name: value for name, value in self.headers.items() if name.lower() not in _HOP_BY_HOP | {"host"}}
            try:
                upstream.request(self.command, self.path, body or None, headers)
                answer = upstream.getresponse()
                content = b"" if request.is_watch else answer.read()
            except (OSError, http.client.HTTPException):
                self._cut()  # the server is away
                return
            if fault.cut_after:
                self._cut()
                return
            self.send_response(answer.status)
            for name, value in answer.getheaders():
                if name.lower() not in _HOP_BY_HOP | {"date", "server"}:
                    self.send_header(name, value)
            if request.is_watch and answer.status == 200:
                self._stream(answer, fault.cut_watch_after)
                return
            content = content or answer.read()
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)
        finally:
            upstream.close()

    def _stream(self, answer: http.client.HTTPResponse, events: int | None) -> None:
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        seen = 0
        try:
            while line := answer.readline():
                if events is not None and seen >= events:
                    self._cut()
                    return
                self.wfile.write(b"%x\r\n%s\r\n" % (len(line), line))
                self.wfile.flush()
                seen += 1
            self.wfile.write(b"0\r\n\r\n")
        except (OSError, http.client.HTTPException, ValueError):
            self._cut()

    def _cut(self) -> None:
        self.close_connection = True
        _cut(self.connection)

    do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = _serve  # noqa: N815

    def log_message(self, format: str, *args: Any) -> None:
        return


def _cut(connection: socket.socket) -> None:
    try:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\x00\x00\x00\x00\x00\x00\x00")
        connection.shutdown(socket.SHUT_RDWR)
    except OSError:
        return  # it is closed already


def proxy_to(api_url: str, kubeconfig: Path) -> FaultProxy:
    """Start a proxy that is the kubeconfig's user towards its server."""
    import yaml

    config = yaml.safe_load(kubeconfig.read_text())
    cluster, user = config["clusters"][0]["cluster"], config["users"][0]["user"]
    context = ssl.create_default_context(cafile=cluster["certificate-authority"])
    context.load_cert_chain(user["client-certificate"], user["client-key"])
    return FaultProxy(api_url, context)
