"""A server that answers as the secrets engine "transit" of HashiCorp Vault and OpenBao does, as far as their API documents it.

Written after developer.hashicorp.com/vault/api-docs/secret/transit: encrypt and decrypt with associated data, the envelope
`{"data": …}`, status 400 for a ciphertext that does not open, 403 for a token that may not, 404 for a path that is not there.
It is no Vault; what it shows is that the client speaks the documented protocol and survives its failures.
"""

from __future__ import annotations

import base64
import json
import os
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from lionrock.chassis.settings import TlsSettings


class TransitServer(ThreadingHTTPServer):
    """One engine, mounted at "transit", with one token."""

    daemon_threads = True

    def __init__(self, token: str, tls: TlsSettings) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(tls.cert_file, tls.key_file)
        self.socket = context.wrap_socket(self.socket, server_side=True)
        self.token = token
        self.keys: dict[str, bytes] = {}
        self.answer: tuple[int, bytes] | None = None
        """Given to every call instead of the truth."""
        self.hanging: threading.Event | None = None
        """Calls wait for it."""
        self.calls: list[tuple[str, dict[str, str]]] = []

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing of clients that went away."""


class Handler(BaseHTTPRequestHandler):
    """One connection."""

    protocol_version = "HTTP/1.1"
    server: TransitServer

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.calls.append((self.path, dict(self.headers)))
        if self.server.hanging is not None:
            self.server.hanging.wait(30)
        status, content = self.server.answer or self._answer(body)
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def _answer(self, body: dict[str, str]) -> tuple[int, bytes]:
        if self.headers["X-Vault-Token"] != self.server.token:
            return 403, b'{"errors":["permission denied"]}'
        _, version, mount, verb, name = self.path.split("/")
        if (version, mount) != ("v1", "transit") or name not in self.server.keys:
            return 404, b'{"errors":[]}'
        cipher = AESGCM(self.server.keys[name])
        aad = base64.b64decode(body["associated_data"])
        if verb == "encrypt":
            nonce = os.urandom(12)
            sealed = nonce + cipher.encrypt(nonce, base64.b64decode(body["plaintext"]), aad)
            return 200, json.dumps({"data": {"ciphertext": f"vault:v1:{base64.b64encode(sealed).decode()}"}}).encode()
        sealed = base64.b64decode(body["ciphertext"].removeprefix("vault:v1:"))
        try:
            key = cipher.decrypt(sealed[:12], sealed[12:], aad)
        except (InvalidTag, ValueError):
            return 400, b'{"errors":["cipher: message authentication failed"]}'
        return 200, json.dumps({"data": {"plaintext": base64.b64encode(key).decode()}}).encode()

    def log_message(self, *args: Any) -> None:
        """Keep quiet."""


@contextmanager
def transit_server(token: str, tls: TlsSettings) -> Iterator[TransitServer]:
    """A server that listens on `server_port`."""
    server = TransitServer(token, tls)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        if server.hanging is not None:
            server.hanging.set()
        server.shutdown()
        thread.join()
        server.server_close()
