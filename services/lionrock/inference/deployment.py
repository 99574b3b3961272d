"""The Ray Serve deployment of one model, and how the front calls it. The only file that imports ray.serve.

One replica owns one placement group: its own bundle and a chip a rank. The front calls it through a DeploymentHandle in throughput
mode; every frame is bytes, and every failure of Ray's becomes an error of ours here, so that no remote traceback reaches a caller.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Callable
from typing import Any

import ray
from ray import serve
from ray.serve.exceptions import BackPressureError

from lionrock.chassis.telemetry import start_telemetry
from lionrock.inference.backends.choice import engine_backend
from lionrock.inference.errors import RESTART_RETRY_AFTER_S, EngineFull, ModelNotReady, ShardGroupLost
from lionrock.inference.links import LinkTls
from lionrock.inference.replica import Replica, ReplicaStatus
from lionrock.inference.served_model import ServedModel
from lionrock.inference.settings import InferenceSettings
from lionrock.inference.shard_actors import actor_group_builder, bundles
from lionrock.inference.shard_process import RankSettings
from lionrock.inference.sharding import ShardGroup

log = logging.getLogger("lionrock.inference")

_DRAIN_S = 20


class InferenceReplica:
    """What Serve runs in each replica's process."""

    def __init__(self, model: ServedModel, ranks: RankSettings, settings: InferenceSettings) -> None:
        """Begin to build the shard group; the replica answers meanwhile and says that it is not ready."""
        self._telemetry = start_telemetry("inference-replica", ranks.telemetry)

        self._builder = builder = actor_group_builder(ranks, settings.health)

        async def start(on_lost: Callable[[str], None]) -> ShardGroup:
            return await builder.build(lambda _, reason: on_lost(reason))

        engine = engine_backend(model, settings, start)
        name = serve.get_replica_context().replica_id.unique_id
        self._replica = Replica(model.name, name, engine, lambda: builder.loaded_percent)

    async def generate(self, request: bytes, traceparent: str | None, timeout_s: float) -> AsyncIterator[bytes]:
        """See Replica.generate."""
        frames = self._replica.generate(request, traceparent, timeout_s)
        try:
            async for frame in frames:
                yield frame
        finally:
            await frames.aclose()  # type: ignore[attr-defined]

    async def status(self) -> ReplicaStatus:
        """See Replica.status."""
        return self._replica.status()

    async def check_health(self) -> None:
        """Serve replaces a replica that cannot build its group."""
        if (problem := self._replica.hopeless) is not None:
            raise RuntimeError(problem)

    async def __del__(self) -> None:
        await self._replica.close()
        await self._builder.close()
        self._telemetry.close()


def rank_settings(model: ServedModel, settings: InferenceSettings) -> RankSettings:
    """Return what the ranks of one group are told."""
    tls, ray_settings = settings.ray.tls, settings.ray
    return RankSettings(
        plan=model.plan,
        source=model.source.files[0] if model.source.format == "gguf" else model.source.directory,
        collective=model.settings.collective,
        collective_interface=ray_settings.collective_interface,
        collective_timeout_s=settings.health.collective_timeout_s,
        threads=model.settings.threads_per_rank,
        kv_cache_bytes=model.settings.kv_cache_bytes,
        heartbeat_interval_s=settings.health.heartbeat_interval_s,
        telemetry=settings.telemetry,
        tls=LinkTls(tls.cert_file, tls.key_file, tls.ca_file),
        native_kernels=model.settings.native_kernels,
        native_directory=settings.native_directory,
    )


def start_serve() -> None:
    """Start Serve's controller without any proxy: its own ports stay closed (blocking)."""
    serve.start(proxy_location="Disabled")


def undeploy(name: str) -> None:
    """End a model's application with its replicas and ranks (blocking)."""
    serve.delete(name)


def deploy(model: ServedModel, settings: InferenceSettings) -> Any:
    """Deploy a model as a Serve application of its name and return its handle (blocking)."""
    limits = model.settings.limits
    deployment: Any = serve.deployment(
        InferenceReplica,
        name="replica",
        num_replicas=model.settings.replicas,
        # The engine refuses with a reason and a delay before Serve would queue.
        max_ongoing_requests=limits.max_running + limits.max_waiting + 32,
        max_queued_requests=32,
        ray_actor_options={"num_cpus": 1},
        placement_group_bundles=bundles(
            model.plan, None if model.settings.stages is None else [stage.node_resource for stage in model.settings.stages]
        ),
        placement_group_strategy="PACK",
        health_check_period_s=2,
        health_check_timeout_s=10,
        graceful_shutdown_timeout_s=_DRAIN_S,
    )
    application = deployment.bind(model, rank_settings(model, settings), settings)
    return serve.run(application, name=model.name, route_prefix=None)


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
        except (ray.exceptions.RayError, serve.exceptions.RayServeException) as error:
            log.warning("a replica was lost: %s", type(error).__name__)
            kind = ShardGroupLost if begun else ModelNotReady
            raise kind("the replica is gone and is being replaced", retry_after_s=RESTART_RETRY_AFTER_S) from None
        finally:
            frames.cancel()

    async def status(self) -> ReplicaStatus:
        """Ask one replica how it is. Raises ModelNotReady when none answers."""
        try:
            status = await self._status.remote()
        except (ray.exceptions.RayError, serve.exceptions.RayServeException):
            raise ModelNotReady("no replica answers", retry_after_s=RESTART_RETRY_AFTER_S) from None
        assert isinstance(status, ReplicaStatus)
        return status
