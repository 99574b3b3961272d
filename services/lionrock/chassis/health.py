"""`grpc.health.v1` for a server and its services.

Own, because the published servicer holds a lock while it writes to a watcher: one that does not read would stop the server from
announcing its drain. Watchers see the latest status, and their streams end when the server drains.

A server may have parts beside its services, named as `<package>.<part>`: work of its own that nobody calls, such as publishing a
copy of what it keeps. Health tells whether a part can do its work, and that changes nothing about the services, so that a copy
which stopped takes no pod out of its Endpoints.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from lionrock.chassis.errors import ServiceNotFound

SERVICE_NAME = "grpc.health.v1.Health"
SERVING = health_pb2.HealthCheckResponse.SERVING
_NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
_UNKNOWN = health_pb2.HealthCheckResponse.SERVICE_UNKNOWN


class Health(health_pb2_grpc.HealthServicer):  # type: ignore[misc]
    """Says NOT_SERVING until `serving`, and again from `drain` on."""

    def __init__(self, services: Iterable[str], parts: Iterable[str] = ()) -> None:
        self._services = frozenset(services) | {""}
        self._parts: dict[str, Any] = dict.fromkeys(parts, _NOT_SERVING)
        self._status = _NOT_SERVING
        self._draining = False
        self._changed = asyncio.Event()

    def serving(self) -> None:
        """Announce that all services answer, unless the server drains."""
        if not self._draining:
            self._announce(SERVING)

    def not_serving(self) -> None:
        """Announce that the services cannot answer for now."""
        if not self._draining:
            self._announce(_NOT_SERVING)

    def part(self, name: str, *, able: bool) -> None:
        """Announce whether a part can do its work."""
        self._parts[name] = SERVING if able else _NOT_SERVING
        self._tell()

    def drain(self) -> None:
        """Announce that no service takes new calls, for good."""
        self._draining = True
        self._announce(_NOT_SERVING)

    def _announce(self, status: Any) -> None:
        self._status = status
        self._tell()

    def _tell(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    def status(self, service: str) -> Any | None:
        """Return the status of a service or a part now, None for one that the server does not have."""
        return self._status if service in self._services else self._parts.get(service)

    async def Check(self, request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> Any:  # noqa: N802
        """Answer with the status now. Raises ServiceNotFound."""
        del context
        status = self.status(request.service)
        if status is None:
            raise ServiceNotFound("the server has no such service")
        return health_pb2.HealthCheckResponse(status=status)

    async def Watch(self, request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> AsyncIterator[Any]:  # noqa: N802
        """Answer with the status now and at every change."""
        del context
        while True:
            changed, draining = self._changed, self._draining
            status = self.status(request.service)
            yield health_pb2.HealthCheckResponse(status=_UNKNOWN if status is None else status)
            if draining:
                return
            await changed.wait()
