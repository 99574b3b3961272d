"""Every port that the mesh opens, and what it says to a stranger. docs/operations.md#ports is written from this test."""

from __future__ import annotations

import datetime as dt
import json
import socket
import ssl
from dataclasses import dataclass
from http.client import HTTPSConnection
from pathlib import Path

import grpc
import psutil
import pytest

from lionrock.chassis.devca import DevelopmentCa
from lionrock.chassis.errors import remote_error
from lionrock.chassis.settings import TlsSettings
from mesh_ca import DevCa
from running_mesh import SERVICES, Mesh

pytestmark = [pytest.mark.mesh, pytest.mark.timeout(300)]

HTTP = b"GET /metrics HTTP/1.1\r\nHost: stranger\r\nConnection: close\r\n\r\n"
HTTP2 = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(3) + b"\x04" + bytes(5)
RPC = {
    "gateway": "/lionrock.gateway.v1.GatewayService/ListModels",
    "tokenization": "/lionrock.tokenization.v1.TokenizationService/GetTokenizer",
    "inference": "/lionrock.inference.v1.InferenceService/ListModels",
    "guardrails": "/lionrock.guardrails.v1.GuardrailsService/ListProfiles",
    "audit": "/lionrock.audit.v1.AuditService/ListKeys",
}
# Ray's exporters of its own metrics, which no switch closes. They show figures of Ray, nothing of a request.
RAY_METRICS = ("monitor.py", "dashboard.py", "DashboardAgent")


@dataclass(frozen=True, slots=True)
class Listener:
    """A TCP port of one of the mesh's processes."""

    address: str
    port: int
    command: str

    @property
    def reachable(self) -> str:
        """An address of this machine on which it answers."""
        return {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(self.address, self.address).removeprefix("::ffff:")

    @property
    def loopback(self) -> bool:
        """Whether only this machine can reach it."""
        return self.reachable.startswith("127.") and self.address != "0.0.0.0"


def listeners(mesh: Mesh) -> list[Listener]:
    found = set()
    for process in mesh.processes():
        try:
            for connection in process.net_connections(kind="tcp"):
                if connection.status == psutil.CONN_LISTEN:
                    found.add(Listener(connection.laddr.ip, connection.laddr.port, " ".join(process.cmdline())))
        except psutil.NoSuchProcess:
            continue
    return sorted(found, key=lambda listener: listener.port)


def answer(listener: Listener, said: bytes, *, tls: bool = False) -> bytes:
    """The first bytes that come back, none when the connection is ended or nothing comes."""
    try:
        with socket.create_connection((listener.reachable, listener.port), 2) as connection:
            connection.settimeout(1)
            if tls:
                context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
                context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
                context.set_alpn_protocols(["h2"])
                with context.wrap_socket(connection) as wrapped:
                    wrapped.sendall(said)
                    return wrapped.recv(4096)
            connection.sendall(said)
            return connection.recv(4096)
    except OSError:
        return b""


def test_no_port_tells_a_stranger_more_than_ray_s_own_figures(mesh: Mesh) -> None:
    found = listeners(mesh)
    assert {int(mesh.info.endpoints[service].target.rpartition(":")[2]) for service in SERVICES} <= {entry.port for entry in found}
    talkative = set()
    for listener in found:
        for said, tls in ((HTTP, False), (HTTP2, False), (HTTP2, True)):
            heard = answer(listener, said, tls=tls)
            if heard and not heard.startswith((b"HTTP/1.1 401", b"HTTP/1.0 400", b"HTTP/1.1 400")):
                talkative.add(listener)
    strangers = [listener for listener in talkative if not any(name in listener.command for name in RAY_METRICS)]
    assert [listener.port for listener in strangers] == [http_port(mesh)], "who calls there may have a token and no certificate"


def http_port(mesh: Mesh) -> int:
    """The port of the HTTP API."""
    assert mesh.info.http is not None
    return int(mesh.info.http.rpartition(":")[2])


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/v1/models", 401),
        ("POST", "/v1/chat/completions", 401),
        ("POST", "/v1/completions", 401),
        ("POST", "/v1/embeddings", 401),
        ("GET", "/v1/lionrock/audit-keys", 401),
        ("GET", "/metrics", 404),
        ("GET", "/", 404),
    ],
)
def test_the_http_api_answers_a_stranger_with_a_refusal(mesh: Mesh, method: str, path: str, status: int) -> None:
    context = ssl.create_default_context(cafile=str(mesh.state.client_certs / "ca.crt"))
    connection = HTTPSConnection("localhost", http_port(mesh), context=context, timeout=10)
    connection.request(method, path, body=b"{}", headers={"content-type": "application/json"})
    response = connection.getresponse()
    assert response.status == status
    assert set(json.loads(response.read())) == {"error"}
    connection.close()


def test_the_http_api_speaks_no_clear_text(mesh: Mesh) -> None:
    [listener] = [each for each in listeners(mesh) if each.port == http_port(mesh)]
    assert answer(listener, HTTP) == b""


def test_everything_but_a_serve_replica_listens_on_loopback_only(mesh: Mesh) -> None:
    # Serve binds its replicas' port (mutual TLS and token, like all of Ray's gRPC) to every interface, and has no setting for it.
    abroad = [listener for listener in listeners(mesh) if not listener.loopback]
    assert [listener for listener in abroad if "ServeReplica" not in listener.command] == []


def call(mesh: Mesh, service: str, tls: TlsSettings | None, authority: str | None = None) -> grpc.RpcError:
    """Call an inexpensive RPC of a service and return how it fails."""
    target = mesh.info.endpoints[service].target
    options = [("grpc.ssl_target_name_override", authority or f"{service}.lionrock.internal"), ("grpc.enable_retries", 0)]
    if tls is None:
        channel = grpc.insecure_channel(target, options)
    else:
        ca = (mesh.state.client_certs / "ca.crt").read_bytes()
        credentials = grpc.ssl_channel_credentials(ca, tls.key_file.read_bytes(), tls.cert_file.read_bytes())
        channel = grpc.secure_channel(target, credentials, options)
    with channel, pytest.raises(grpc.RpcError) as refused:
        channel.unary_unary(RPC[service])(b"", timeout=10)
    return refused.value


@pytest.fixture(scope="session")
def authority(mesh: Mesh) -> DevelopmentCa:
    """The mesh's own CA."""
    return DevelopmentCa.load_or_create(mesh.state.ca, "lionrock.local")


@pytest.fixture(params=SERVICES)
def service(request: pytest.FixtureRequest) -> str:
    """Each service in turn."""
    return str(request.param)


def test_plain_text_is_refused(mesh: Mesh, service: str) -> None:
    assert call(mesh, service, None).code() is grpc.StatusCode.UNAVAILABLE


def test_certificate_of_another_authority_is_refused(mesh: Mesh, service: str, tmp_path: Path) -> None:
    foreign = DevCa(tmp_path).issue("gateway")
    assert call(mesh, service, foreign).code() is grpc.StatusCode.UNAVAILABLE


def test_expired_certificate_is_refused(mesh: Mesh, service: str, authority: DevelopmentCa, tmp_path: Path) -> None:
    yesterday = dt.datetime.now(dt.UTC) - dt.timedelta(days=1)
    issued = authority.issue(
        "spiffe://lionrock.local/service/gateway", dns_names=["localhost"], lifetime=dt.timedelta(hours=1), not_before=yesterday
    )
    assert call(mesh, service, issued.write(tmp_path)).code() is grpc.StatusCode.UNAVAILABLE


@pytest.mark.parametrize(
    "identity",
    [
        "spiffe://lionrock.local/service/stranger",
        "spiffe://lionrock.local/tenant/demo/user/developer",
        "spiffe://elsewhere.example/service/gateway",
        "spiffe://lionrock.local/service/gateway/more",
    ],
)
def test_wrong_identity_is_refused(mesh: Mesh, service: str, authority: DevelopmentCa, tmp_path: Path, identity: str) -> None:
    if service == "gateway" and identity.endswith("/demo/user/developer"):
        identity = "spiffe://lionrock.local/tenant/nobody/user/developer"
    tls = authority.issue(identity, dns_names=["localhost"]).write(tmp_path)
    error = call(mesh, service, tls)
    assert error.code() in (grpc.StatusCode.PERMISSION_DENIED, grpc.StatusCode.UNAUTHENTICATED)
    assert remote_error(error).reason in ("CALLER_NOT_PERMITTED", "UNKNOWN_PRINCIPAL")
