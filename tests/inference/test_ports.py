"""Every port that the service, Ray, Serve and gloo open: where it listens, and what it says to a caller without credentials."""

from __future__ import annotations

import asyncio
import http.client
from dataclasses import dataclass

import grpc
import psutil
import pytest
from inference_service import InferenceService, process_title

from lionrock.chassis.settings import TlsSettings

pytestmark = pytest.mark.timeout(180)

# Answer in clear text, on the loopback address alone: Ray has no switch for them. docs/operations.md names them.
PLAIN_TEXT_BY_DESIGN = {
    "monitor.py": "Prometheus figures of Ray's autoscaler",
    "dashboard.py": "Prometheus figures of Ray's API server",
    "ray::DashboardAgent": "liveness of the raylet; all else asks for the token",
}
RAY_METHODS = (
    "/ray.rpc.NodeInfoGcsService/GetAllNodeInfo",
    "/ray.rpc.CoreWorkerService/PushTask",
    "/ray.rpc.NodeManagerService/GetNodeStats",
)


@dataclass(frozen=True)
class Port:
    title: str
    address: str
    port: int

    @property
    def is_loopback(self) -> bool:
        return self.address.removeprefix("::ffff:").startswith("127.") or self.address == "::1"

    @property
    def host(self) -> str:
        return self.address.removeprefix("::ffff:") if self.is_loopback else "127.0.0.1"


def listening(service: InferenceService) -> list[Port]:
    found = []
    for process in (psutil.Process(service.process.pid), *service.descendants()):
        try:
            connections = process.net_connections(kind="inet")
        except psutil.Error:
            continue
        found += [Port(process_title(process), c.laddr.ip, c.laddr.port) for c in connections if c.status == psutil.CONN_LISTEN]
    return found


def plain_http_answer(port: Port) -> int | None:
    """Best status that a request without credentials gets, None when nothing answers."""
    best = None
    for path in ("/", "/metrics", "/api/version", "/api/local_raylet_healthz"):
        connection = http.client.HTTPConnection(port.host, port.port, timeout=0.5)
        try:
            connection.request("GET", path)
            status = connection.getresponse().status
        except (OSError, http.client.HTTPException):
            continue
        finally:
            connection.close()
        best = status if best is None else min(best, status)
    return best


def grpc_answers(port: Port, credentials: grpc.ChannelCredentials | None) -> set[grpc.StatusCode]:
    """Statuses of Ray's methods; OK would mean that the caller was let in."""
    target = f"{port.host}:{port.port}"
    options = [("grpc.ssl_target_name_override", "localhost")]
    channel = grpc.secure_channel(target, credentials, options) if credentials is not None else grpc.insecure_channel(target)
    statuses = set()
    with channel:
        for method in RAY_METHODS:
            try:
                channel.unary_unary(method)(b"", timeout=1)
            except grpc.RpcError as error:
                statuses.add(error.code())  # type: ignore[attr-defined]
            else:
                statuses.add(grpc.StatusCode.OK)
    return statuses


async def test_every_port_but_the_replicas_listens_on_the_loopback_address_alone(service: InferenceService) -> None:
    open_to_others = [port for port in listening(service) if not port.is_loopback]
    assert all("ServeReplica" in port.title for port in open_to_others), open_to_others
    assert len(open_to_others) <= 1


async def test_no_port_answers_plain_text_but_those_that_the_docs_name(service: InferenceService) -> None:
    async def check(port: Port) -> None:
        status = await asyncio.to_thread(plain_http_answer, port)
        if status is not None and status < 400:
            assert any(name in port.title for name in PLAIN_TEXT_BY_DESIGN), f"{port} answers {status} without credentials"
            assert port.is_loopback
        assert grpc.StatusCode.OK not in await asyncio.to_thread(grpc_answers, port, None), port

    await asyncio.gather(*(check(port) for port in listening(service)))


async def test_a_certificate_of_the_mesh_without_the_token_is_no_entrance_to_ray(service: InferenceService) -> None:
    tenant: TlsSettings = service.ca.issue_tenant("acme")
    certified = grpc.ssl_channel_credentials(
        tenant.ca_file.read_bytes(), tenant.key_file.read_bytes(), tenant.cert_file.read_bytes()
    )
    anonymous = grpc.ssl_channel_credentials(tenant.ca_file.read_bytes())

    async def check(port: Port) -> bool:
        assert grpc.StatusCode.OK not in await asyncio.to_thread(grpc_answers, port, anonymous), port
        statuses = await asyncio.to_thread(grpc_answers, port, certified)
        assert grpc.StatusCode.OK not in statuses, port
        return grpc.StatusCode.UNAUTHENTICATED in statuses

    asked_for_token = await asyncio.gather(*(check(port) for port in listening(service)))
    assert sum(asked_for_token) >= 4, "GCS, raylet and workers ask for the token"
