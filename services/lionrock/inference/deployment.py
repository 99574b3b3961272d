"""The front's side of Ray Serve: applications deployed or found, and how their replicas are called.

The front calls a replica through a DeploymentHandle in throughput mode; every frame is bytes, and every failure of Ray's becomes an
error of ours here, so that no remote traceback reaches a caller.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from typing import Any

import ray
from ray import serve
from ray.serve.exceptions import BackPressureError, RayServeException

from lionrock.inference.errors import RESTART_RETRY_AFTER_S, EngineFull, ModelNotReady, ShardGroupLost
from lionrock.inference.replica import ReplicaStatus
from lionrock.inference.serve_application import DEPLOYMENT, application
from lionrock.inference.served_model import ServedModel
from lionrock.inference.settings import ApplicationSettings

log = logging.getLogger("lionrock.inference")


def start_serve() -> None:
    """Start Serve's controller without any proxy: its own ports stay closed (blocking)."""
    serve.start(proxy_location="Disabled")


def undeploy(name: str) -> None:
    """End a model's application with its replicas and ranks (blocking)."""
    serve.delete(name)


def deploy(model: ServedModel, settings: ApplicationSettings) -> Any:
    """Deploy a model as a Serve application of its name and return its handle (blocking)."""
    return serve.run(application(settings, model), name=model.name, route_prefix=None)


def find(name: str) -> Any:
    """Return the handle of an application that somebody else deployed, or None while there is none (blocking)."""
    try:
        return serve.get_app_handle(name)
    except (RayServeException, ray.exceptions.RayError):
        return None


def running_replicas(name: str) -> int:
    """Count the replicas of an application that take requests (blocking). 0 also where nobody answers."""
    try:
        found = serve.status().applications.get(name)
    except (RayServeException, ray.exceptions.RayError):
        return 0
    deployment = None if found is None else found.deployments.get(DEPLOYMENT)
    return 0 if deployment is None else sum(count for state, count in deployment.replica_states.items() if state == "RUNNING")


class ReplicaClient:
    """The front's way to a model's replicas."""

    def __init__(self, handle: Any) -> None:
        self._generate = handle.options(method_name="generate", stream=True)
        self._status = handle.options(method_name="status")

    async def generate(self, request: bytes, traceparent: str | None, timeout_s: float) -> AsyncIterator[bytes]:
        """Yield a replica's frames. Closing the iterator, or cancelling its consumer, cancels the replica's generator.

        Raises ModelNotReady, EngineFull, ShardGroupLost.
        """
        begun = False
        frames = self._generate.remote(request, traceparent, timeout_s)
        try:
            async for frame in frames:
                begun = True
                yield frame
        except BackPressureError:
            raise EngineFull("all replicas are busy", retry_after_s=RESTART_RETRY_AFTER_S) from None
        except (ray.exceptions.RayError, RayServeException) as error:
            log.warning("a replica was lost: %s", type(error).__name__)
            kind = ShardGroupLost if begun else ModelNotReady
            raise kind("the replica is gone and is being replaced", retry_after_s=RESTART_RETRY_AFTER_S) from None
        finally:
            frames.cancel()

    async def status(self) -> ReplicaStatus:
        """Ask one replica how it is. Raises ModelNotReady when none answers."""
        try:
            status = await self._status.remote()
        except (ray.exceptions.RayError, RayServeException):
            raise ModelNotReady("no replica answers", retry_after_s=RESTART_RETRY_AFTER_S) from None
        assert isinstance(status, ReplicaStatus)
        return status
