"""A model as a Serve application, from its settings alone: what the service deploys itself, and what others declare.

KubeRay's RayService, or anybody who writes Serve's configuration, names `lionrock.inference.serve_application:build` as import path
and the settings as `args`. Nothing of the model is read for that, so whatever process builds the application needs no files of it:
each replica reads them where it runs. One replica owns one placement group (see placement).
Source: the schema of Serve's configuration, ray.serve.schema of Ray 2.60.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Any

from pydantic import ValidationError
from ray import serve
from ray.serve.exceptions import RayServeException

from lionrock.chassis.telemetry import start_telemetry
from lionrock.inference.backends.choice import engine_backend, engine_name
from lionrock.inference.links import LinkTls
from lionrock.inference.placement import place
from lionrock.inference.replica import Replica, ReplicaStatus
from lionrock.inference.served_model import ServedModel, describe_model
from lionrock.inference.settings import ApplicationSettings
from lionrock.inference.shard_actors import actor_group_builder
from lionrock.inference.shard_process import RankSettings
from lionrock.inference.sharding import ShardGroup
from lionrock.inference.wire import served_message
from lionrock.planner.chips import UnknownChip

DEPLOYMENT = "replica"
"""Name of the one deployment. A configuration that lists it under `deployments` changes num_replicas without restarting any."""

_DRAIN_S = 20
_QUEUED_IN_SERVE = 32


class BadApplication(RayServeException):
    """The arguments of an application cannot be used; the message names each of them and what is wrong.

    One of Serve's own exceptions: it then does not try again, and shows the message, not a traceback, as the application's status.
    """


class InferenceReplica:
    """What Serve runs in each replica's process."""

    def __init__(self, settings: ApplicationSettings, described: ServedModel | None) -> None:
        """Read the model's files unless it is described already, and begin to build the shard group.

        The replica answers while the group is built, and says that it is not ready.
        Raises ModelStoreError, UnsupportedModel, MalformedWeights, UnknownChip, PlanError, BackendUnavailable.
        """
        self._replica: Replica | None = None
        self._telemetry = start_telemetry("inference-replica", settings.telemetry)
        model = described or describe_model(settings.name, settings.model)
        ranks = rank_settings(model, settings)
        self._builder = builder = actor_group_builder(ranks, settings.health, place(settings.model))

        async def start(on_lost: Callable[[str], None]) -> ShardGroup:
            return await builder.build(lambda _, reason: on_lost(reason))

        engine = engine_backend(model, settings, start)
        served = served_message(model, engine_name(model), settings.image_digest)
        name = serve.get_replica_context().replica_id.unique_id
        self._replica = Replica(served, name, engine, lambda: builder.loaded_percent)

    async def generate(self, request: bytes, traceparent: str | None, timeout_s: float) -> AsyncIterator[bytes]:
        """See Replica.generate."""
        frames = self._running.generate(request, traceparent, timeout_s)
        try:
            async for frame in frames:
                yield frame
        finally:
            await frames.aclose()  # type: ignore[attr-defined]

    async def status(self) -> ReplicaStatus:
        """See Replica.status."""
        return self._running.status()

    async def check_health(self) -> None:
        """Serve replaces a replica that cannot build its group."""
        if (problem := self._running.hopeless) is not None:
            raise RuntimeError(problem)

    @property
    def _running(self) -> Replica:
        assert self._replica is not None, "Serve calls what was initialised"
        return self._replica

    async def __del__(self) -> None:
        if self._replica is not None:
            await self._replica.close()
            await self._builder.close()
        self._telemetry.close()


def rank_settings(model: ServedModel, settings: ApplicationSettings) -> RankSettings:
    """Return what the ranks of one group are told."""
    tls = settings.ray.tls
    return RankSettings(
        chip=model.settings.chip_row(),
        plan=model.plan,
        source=model.source.files[0] if model.source.format == "gguf" else model.source.directory,
        collective=model.settings.collective,
        collective_interface=settings.ray.collective_interface,
        collective_timeout_s=settings.health.collective_timeout_s,
        threads=model.settings.threads_per_rank,
        kv_cache_bytes=model.settings.kv_cache_bytes,
        heartbeat_interval_s=settings.health.heartbeat_interval_s,
        telemetry=settings.telemetry,
        tls=LinkTls(tls.cert_file, tls.key_file, tls.ca_file),
        native_kernels=model.settings.native_kernels,
        native_directory=settings.native_directory,
    )


def build(args: dict[str, Any]) -> serve.Application:
    """Make the application that `args`, the fields of ApplicationSettings, describe. Raises BadApplication."""
    try:
        return application(ApplicationSettings.model_validate(args))
    except ValidationError as error:
        found = [(".".join(map(str, each["loc"])) or "args", each["msg"]) for each in error.errors(include_input=False)]
        raise BadApplication("; ".join(f"{where}: {message}" for where, message in found)) from None
    except UnknownChip as error:
        raise BadApplication(f"model.chip: {error}") from None


def application(settings: ApplicationSettings, described: ServedModel | None = None) -> serve.Application:
    """Make an application. described: the model, where its files were read already. Raises UnknownChip."""
    limits, placement = settings.model.limits, place(settings.model)
    deployment: Any = serve.deployment(
        InferenceReplica,
        name=DEPLOYMENT,
        num_replicas=settings.model.replicas,
        # The engine refuses with a reason and a delay before Serve would queue.
        max_ongoing_requests=limits.max_running + limits.max_waiting + _QUEUED_IN_SERVE,
        max_queued_requests=_QUEUED_IN_SERVE,
        ray_actor_options={"num_cpus": 1},
        placement_group_bundles=[dict(bundle) for bundle in placement.bundles],
        placement_group_strategy=placement.strategy,
        health_check_period_s=2,
        health_check_timeout_s=10,
        graceful_shutdown_timeout_s=_DRAIN_S,
    )
    bound: serve.Application = deployment.bind(settings, described)
    return bound
