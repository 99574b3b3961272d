"""A gateway with everything that access needs, before real services and an engine that only says what it is told.

Token issuer (HTTPS, one RSA key), audit service with its vault, guardrails, tokenization of SmolLM2 and gateway are the programs
that are shipped, each in a process of its own; the engine is gateway_engine.py.
"""

from __future__ import annotations

import http.server
import json
import secrets
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jwt
import psutil
import yaml
from cryptography.hazmat.primitives.asymmetric import rsa
from jwt.algorithms import RSAAlgorithm

from lionrock.chassis.devca import LOCAL_NAMES, DevelopmentCa, service_names
from lionrock.chassis.settings import TlsSettings

TRUST_DOMAIN = "lionrock.local"
TENANT = "bank"
MODEL = "smollm2-135m-instruct"
AUDIENCE = "lionrock"
PLENTY = 1_000_000_000
READY_S = 60.0


class Issuer:
    """Signs tokens, and tells its key at the URL that the Tenant states."""

    def __init__(self, tls: TlsSettings) -> None:
        self._key = rsa.generate_private_key(65537, 2048)
        public: dict[str, Any] = RSAAlgorithm.to_jwk(self._key.public_key(), as_dict=True)
        entry = {name: value for name, value in public.items() if name != "key_ops"} | {"kid": "1", "alg": "RS256", "use": "sig"}
        keys = json.dumps({"keys": [entry]}).encode()

        class Keys(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.send_response(200)
                self.send_header("content-type", "application/json")
                self.send_header("content-length", str(len(keys)))
                self.end_headers()
                self.wfile.write(keys)

            def log_message(self, *arguments: object) -> None:
                """Say nothing."""

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Keys)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(tls.cert_file, tls.key_file)
        self._server.socket = context.wrap_socket(self._server.socket, server_side=True)
        self.url = f"https://localhost:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def token(self, subject: str) -> str:
        """Sign a token of a teller."""
        now = int(time.time())
        claims = {"iss": self.url, "sub": subject, "aud": AUDIENCE, "iat": now, "exp": now + 3600, "groups": ["tellers"]}
        return jwt.encode(claims, self._key, "RS256", {"kid": "1"})

    def close(self) -> None:
        """Tell nothing any more."""
        self._server.shutdown()
        self._server.server_close()


@dataclass(frozen=True, slots=True)
class GatewayMesh:
    """A running mesh. `spans`: where its services write theirs, None where they do not."""

    issuer: Issuer
    ca_file: Path
    token_target: str
    http_port: int
    gateway: psutil.Process
    spans: Path | None


@contextmanager
def gateway_mesh(directory: Path, tokenizer: Path, token_ids: list[int], *, token_s: float, spans: bool) -> Iterator[GatewayMesh]:
    """Start everything in an empty directory; end it with the block."""
    authority = DevelopmentCa.load_or_create(directory / "ca", TRUST_DOMAIN)

    def tls(service: str) -> TlsSettings:
        names = (*service_names(service), *LOCAL_NAMES)
        issued = authority.issue(f"spiffe://{TRUST_DOMAIN}/service/{service}", dns_names=names)
        return issued.write(directory / "certs" / service)

    def server(service: str, **more: Any) -> dict[str, Any]:
        ready = directory / f"{service}.port"
        settings: dict[str, Any] = {
            "server": {
                "tls": tls(service).model_dump(mode="json"),
                "trust_domain": TRUST_DOMAIN,
                "ready_file": str(ready),
                "max_concurrent_rpcs": 1024,
            }
            | more
        }
        if spans:
            settings["telemetry"] = {"span_dir": str(directory / "spans"), "span_file_max_bytes": 1 << 30}
        return settings

    with ExitStack() as stack:
        issuer = Issuer(tls("issuer"))
        stack.callback(issuer.close)
        ca_file = directory / "certs" / "issuer" / "ca.crt"
        started = {
            "audit": start(stack, directory, "audit", server("audit") | _audit(directory)),
            "guardrails": start(stack, directory, "guardrails", server("guardrails")),
            "tokenization": start(stack, directory, "tokenization", server("tokenization") | {"models": {MODEL: str(tokenizer)}}),
            "inference": start(
                stack,
                directory,
                "inference",
                server("inference") | {"model": MODEL, "token_ids": token_ids, "token_s": token_s},
                module="benchmarks.gateway_engine",
            ),
        }
        targets = {name: f"127.0.0.1:{port(directory, name, process)}" for name, process in started.items()}
        peers = {name: {"target": target, "service": name} for name, target in targets.items()}
        token_port = _free_port()
        settings = server("gateway", token_listen=f"127.0.0.1:{token_port}") | peers | _gateway(directory, issuer, ca_file)
        process = start(stack, directory, "gateway", settings)
        http_port = port(directory, "http", process)
        where = directory / "spans" if spans else None
        yield GatewayMesh(issuer, ca_file, f"127.0.0.1:{token_port}", http_port, psutil.Process(process.pid), where)


def start(
    stack: ExitStack,
    directory: Path,
    service: str,
    settings: Mapping[str, Any],
    *,
    module: str | None = None,
) -> subprocess.Popen[bytes]:
    """Start a service; it ends with the stack."""
    config = directory / f"{service}.yaml"
    config.write_text(yaml.safe_dump(dict(settings)))
    with (directory / f"{service}.log").open("wb") as log:
        command = [sys.executable, "-m", module or f"lionrock.{service}", "--config", str(config)]
        process = subprocess.Popen(command, stderr=log)
    stack.callback(_end, process)
    return process


def port(directory: Path, service: str, process: subprocess.Popen[bytes]) -> int:
    """Wait until a service serves, and return its port."""
    ready, patience = directory / f"{service}.port", time.monotonic() + READY_S
    while not ready.exists():
        if process.poll() is not None or time.monotonic() > patience:
            raise SystemExit(f"{service} did not start:\n{(directory / f'{service}.log').read_text()[-4000:]}")
        time.sleep(0.05)
    return int(ready.read_text())


def _end(process: subprocess.Popen[bytes]) -> None:
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(30)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _audit(directory: Path) -> dict[str, Any]:
    return {
        "platform": "benchmark",
        "tenants": [TENANT],
        "store_file": str(directory / "audit.sqlite"),
        "key_dir": str(directory / "keys"),
        "vault": {
            "tenants": [TENANT],
            "key_store_file": str(directory / "vault" / "keys.sqlite"),
            "local_key_dir": str(directory / "tenant-keys"),
        },
    }


def _gateway(directory: Path, issuer: Issuer, ca_file: Path) -> dict[str, Any]:
    secret = directory / "api-keys"
    secret.write_text(secrets.token_hex(32))
    secret.chmod(0o600)
    quotas = {"requestsPerMinute": PLENTY, "tokensPerMinute": PLENTY, "dailyTokens": PLENTY, "concurrentStreams": 1024}
    binding = {"value": "tellers", "roles": ["user"], "purposes": ["customer_service"], "models": [MODEL], "maxStreams": 1024}
    tenant = {
        "name": TENANT,
        "territory": "HK",
        "maxStreams": 1024,
        "quotas": quotas,
        "issuers": [
            {
                "issuer": issuer.url,
                "audiences": [AUDIENCE],
                "jwksUri": f"{issuer.url}/keys",
                "caFile": str(ca_file),
                "rolesClaim": "groups",
                "bindings": [binding],
            }
        ],
    }
    return {
        "http": {"ready_file": str(directory / "http.port")},
        "tenants": [tenant],
        "served_in": "HK",
        "state": {"sqlite_file": str(directory / "gateway.sqlite")},
        "api_keys": {"secret_file": str(secret)},
        "limits": {"max_streams": 1024},
    }


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        found: int = probe.getsockname()[1]
        return found
