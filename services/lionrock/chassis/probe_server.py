"""/healthz, /readyz, /metrics and /version over plain HTTP, for the kubelet, Prometheus and whoever asks what runs.

Knows no more than three functions and the version. Threads of its own, so that a busy event loop shows in what it says and not in
whether it answers. A handful of connections at a time, each with a time-out: who holds one open holds up nobody.
"""

from __future__ import annotations

import json
import logging
import socket
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Final

from lionrock.chassis.telemetry import product_version

log = logging.getLogger("lionrock.chassis")

CONNECTIONS: Final = 16
TIMEOUT_S: Final = 5.0

Problems = Callable[[], list[str]]
"""What is wrong, in words; empty when all is well."""


class ProbeServer(ThreadingHTTPServer):
    """Serves in threads until `close`."""

    daemon_threads = True
    request_queue_size = CONNECTIONS

    def __init__(self, listen: str, healthy: Problems, ready: Problems, metrics: Callable[[], bytes]) -> None:
        """Bind. Raises OSError."""
        self.routes: dict[str, Callable[[], tuple[int, str, bytes]]] = {
            "/healthz": lambda: _told(healthy()),
            "/readyz": lambda: _told(ready()),
            "/metrics": lambda: (200, "text/plain; version=0.0.4; charset=utf-8", metrics()),
            "/version": lambda: (200, "application/json", json.dumps({"version": product_version()}).encode() + b"\n"),
        }
        self._slots = threading.BoundedSemaphore(CONNECTIONS)
        host, _, port = listen.rpartition(":")
        self.address_family = socket.AF_INET6 if host.startswith("[") else socket.AF_INET
        super().__init__((host.strip("[]"), int(port)), _Handler)
        self._thread = threading.Thread(target=self.serve_forever, args=(0.2,), name="probes", daemon=True)

    @property
    def port(self) -> int:
        """The port that was bound."""
        return int(self.server_address[1])

    def start(self) -> None:
        """Begin to answer."""
        self._thread.start()

    def close(self) -> None:
        """Answer no more."""
        self.shutdown()
        self._thread.join()
        self.server_close()

    def process_request(self, request: Any, client_address: Any) -> None:
        """Answer in a thread, or close the connection when too many are open."""
        if not self._slots.acquire(blocking=False):
            self.shutdown_request(request)
            return
        super().process_request(request, client_address)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Answer and make room."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._slots.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say that a connection broke, without a traceback on standard error."""
        del request
        log.debug("a probe's connection from %s broke", client_address[0])


class _Handler(BaseHTTPRequestHandler):
    timeout = TIMEOUT_S
    server: ProbeServer

    def do_GET(self) -> None:
        route = self.server.routes.get(self.path.partition("?")[0])
        status, kind, content = (404, "text/plain", b"not found\n") if route is None else route()
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: Any) -> None:
        del format, args


def _told(problems: list[str]) -> tuple[int, str, bytes]:
    if problems:
        return 503, "text/plain; charset=utf-8", ("\n".join(problems) + "\n").encode()
    return 200, "text/plain; charset=utf-8", b"ok\n"
