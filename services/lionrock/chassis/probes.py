"""A port for a kubelet's probes: `grpc.health.v1.Health/Check` in clear text, and nothing else.

A kubelet's gRPC probe has no certificate and speaks no TLS (Kubernetes documentation, "Configure Liveness, Readiness and Startup
Probes"), so it cannot ask the mesh's own port. This one is another server: no service of the mesh can be reached through it. Who
asks learns one bit. Under the name LIVENESS the answer is SERVING as long as the process answers: a service that drains, or whose
store is read-only, must leave its Endpoints but is not mended by killing it.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from lionrock.chassis.health import Health

LIVENESS = "liveness"
_MAX_MESSAGE_BYTES = 1024
_OPTIONS = [
    ("grpc.max_receive_message_length", _MAX_MESSAGE_BYTES),
    ("grpc.max_metadata_size", 4096),
    ("grpc.absolute_max_metadata_size", 4096),
    ("grpc.max_concurrent_streams", 4),
    ("grpc.max_allowed_incoming_connections", 16),
    ("grpc.max_connection_idle_ms", 30_000),
    ("grpc.max_connection_age_ms", 60_000),
    ("grpc.max_connection_age_grace_ms", 1000),
    ("grpc.server_handshake_timeout_ms", 5000),
    ("grpc.so_reuseport", 0),
]


class _Probes(health_pb2_grpc.HealthServicer):  # type: ignore[misc]
    """`Check` alone; `Watch` stays unimplemented, because it would hold streams open for anyone."""

    def __init__(self, health: Health) -> None:
        self._health = health

    async def Check(self, request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> Any:  # noqa: N802
        """Answer with the status now; NOT_FOUND for a name that is no service of this server."""
        if request.service == LIVENESS:
            return health_pb2.HealthCheckResponse(status=health_pb2.HealthCheckResponse.SERVING)
        status = self._health.status(request.service)
        if status is None:
            await context.abort(grpc.StatusCode.NOT_FOUND, "the server has no such service")
        return health_pb2.HealthCheckResponse(status=status)


async def start_probes(listen: str, health: Health) -> tuple[grpc.aio.Server, int]:
    """Start the port. Returns its server, which the caller stops, and its number. Raises RuntimeError when the address is taken."""
    server = grpc.aio.server(options=_OPTIONS)
    health_pb2_grpc.add_HealthServicer_to_server(_Probes(health), server)
    port = server.add_insecure_port(listen)
    await server.start()
    return server, port


@asynccontextmanager
async def waiting_probes(listen: str | None, services: Iterable[str]) -> AsyncIterator[None]:
    """Answer probes for a process that is alive and waits for its turn to serve; nothing where `listen` is None.

    Raises RuntimeError when the address is taken.
    """
    if listen is None:
        yield
        return
    server, _ = await start_probes(listen, Health(services))
    try:
        yield
    finally:
        await server.stop(None)
