"""The models as the front sees them: which are served, whether they are ready, and their streams. Starts Ray and the deployments.

The front listens before any model is ready; a watch asks the replicas how they are and so follows loads, losses and restarts. With
`ray.deploy` off it deploys nothing and watches what somebody else declares, through redeployments and absences.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import logging
import math
import os
import signal
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

from lionrock.chassis.errors import MeshError
from lionrock.common.v1 import model_pb2
from lionrock.inference.backends.choice import engine_name
from lionrock.inference.errors import RESTART_RETRY_AFTER_S, ModelNotReady, ShardGroupLost, decode_error
from lionrock.inference.ray_cluster import RayCluster, RayUnavailable, prepare_environment
from lionrock.inference.served_model import ServedModel
from lionrock.inference.settings import InferenceSettings
from lionrock.inference.v1 import inference_pb2 as pb
from lionrock.inference.wire import served_message

if TYPE_CHECKING:
    from lionrock.inference.deployment import ReplicaClient

log = logging.getLogger("lionrock.inference")

_WATCH_STARTING_S = 0.1
_WATCH_S = 0.5
_FIND_S = 1.0
_COUNT_S = 10.0
_ANSWER_S = 2.0
_UNDEPLOY_S = 15.0
_RESPONSE = 0


@dataclass(slots=True)
class ModelFront:
    """One served model. Between a loss and a new replica it stays what the last one said."""

    name: str
    served: pb.ServedModel
    find: Callable[[], Awaitable[ReplicaClient | None]] | None = None
    """Looks for the replicas of what somebody else deploys; None: they are our own, and stay the same."""
    count: Callable[[], Awaitable[int]] | None = None
    """Asks how many replicas run."""
    client: ReplicaClient | None = None
    ready: bool = False
    replicas: int = 0
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    async def generate(self, request: bytes, traceparent: str | None, timeout_s: float) -> AsyncIterator[pb.GenerateResponse]:
        """Yield the messages of one answer. Raises MeshErrors as the replica states them."""
        if self.client is None:
            raise ModelNotReady("the model is being loaded", retry_after_s=RESTART_RETRY_AFTER_S)
        frames = self.client.generate(request, traceparent, timeout_s)
        try:
            async for frame in frames:
                if frame[0] != _RESPONSE:
                    raise decode_error(frame[1:])
                yield pb.GenerateResponse.FromString(frame[1:])
        except (ShardGroupLost, ModelNotReady):
            if self.replicas <= 1:  # the watch would find out a little later
                self.ready, self.replicas = False, 0
                self.changed.set()
            raise
        finally:
            await frames.aclose()  # type: ignore[attr-defined]

    async def watch(self) -> None:
        """Follow the replicas' state until cancelled."""
        problem: str | None = None
        counted_s = looked_s = -math.inf
        while True:
            ready, found = False, "no application of that name is deployed"
            now_s = time.monotonic()
            if self.find is not None and not self.ready and now_s - looked_s >= _FIND_S:
                self.client, looked_s = await self.find(), now_s
            if self.client is not None:
                try:
                    async with asyncio.timeout(_ANSWER_S):
                        status = await self.client.status()
                    ready, found = status.ready, status.problem or ""
                    self.served = pb.ServedModel.FromString(status.served)
                except (MeshError, TimeoutError) as error:
                    found = f"no replica answers: {type(error).__name__}"
            if ready and self.count is not None and (not self.ready or now_s - counted_s >= _COUNT_S):
                self.replicas, counted_s = max(1, await self.count()), now_s
            if found != problem and found:
                log.warning("model %s: %s", self.name, found)
            if ready and not self.ready:
                log.info("model %s is ready", self.name)
            problem = found
            if not ready:
                self.replicas = 0
            self.ready = ready
            self.changed.set()
            await asyncio.sleep(_WATCH_S if self.ready else _WATCH_STARTING_S)


class Front:
    """All served models and the cluster under them."""

    def __init__(self, settings: InferenceSettings, models: Mapping[str, ServedModel]) -> None:
        """models: what the service deploys, described. Where it deploys nothing, replicas say what they serve."""
        self._settings = settings
        self._described = models
        self.models = {name: ModelFront(name, self._unserved(name)) for name in settings.models}
        self._cluster: RayCluster | None = None
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        """Start or join Ray, and deploy every model or look for it; returns before they are ready. Raises RayUnavailable."""
        begin_s = time.monotonic()
        prepare_environment(self._settings.ray)
        self._cluster = cluster = RayCluster(self._settings.ray, local_cpus=self._local_cpus())
        # Ray and Serve take a second to import: in Ray's thread, while a local head starts.
        importing = asyncio.create_task(cluster.call(lambda: importlib.import_module("lionrock.inference.deployment")))
        try:
            await cluster.start()
        finally:
            await importing
        _take_back_signals()
        log.info("Ray is up after %.1f s", time.monotonic() - begin_s)
        from lionrock.inference.deployment import ReplicaClient, deploy, find, running_replicas, start_serve

        if self._settings.ray.deploy:
            await cluster.call(start_serve)
            log.info("Serve is up after %.1f s", time.monotonic() - begin_s)
        for name, front in self.models.items():
            front.count = partial(cluster.call, partial(running_replicas, name))
            if self._settings.ray.deploy:
                application = self._settings.application(name)
                handle = await cluster.call(partial(deploy, self._described[name], application))
                front.client = ReplicaClient(handle)
                log.info("model %s is deployed after %.1f s", name, time.monotonic() - begin_s)
            else:
                front.find = partial(_find, cluster, partial(find, name))
            self._tasks.append(asyncio.create_task(front.watch(), name=f"lionrock-watch-{name}"))

    def _unserved(self, name: str) -> pb.ServedModel:
        """Return what is known of a model before any replica says it."""
        model = self._described.get(name)
        if model is None:
            return pb.ServedModel(identity=model_pb2.ModelIdentity(model=name))
        return served_message(model, engine_name(model), self._settings.image_digest)

    async def readiness(self) -> AsyncIterator[bool]:
        """Whether every model is ready, whenever that changes."""
        before: bool | None = None
        while True:
            for front in self.models.values():
                front.changed.clear()
            ready = all(front.ready for front in self.models.values())
            if ready is not before:
                before = ready
                yield ready
            changes = [asyncio.ensure_future(front.changed.wait()) for front in self.models.values()]
            try:
                await asyncio.wait(changes, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for change in changes:
                    change.cancel()

    async def close(self) -> None:
        """Stop the watches and leave Ray."""
        for task in self._tasks:
            task.cancel()
        for task in self._tasks:
            with contextlib.suppress(asyncio.CancelledError):
                await task
        if self._cluster is not None:
            await self._undeploy(self._cluster)
            await self._cluster.close()

    async def _undeploy(self, cluster: RayCluster) -> None:
        """End the models of a cluster that outlives this service, where the settings say so."""
        if self._settings.ray.address is None or not self._settings.ray.undeploy:
            return
        from lionrock.inference.deployment import undeploy

        for name in self.models:
            try:
                async with asyncio.timeout(_UNDEPLOY_S):
                    await cluster.call(partial(undeploy, name))
            except Exception as error:  # noqa: BLE001  # whatever Ray says, the service ends
                log.warning("model %s may still run in the cluster: %s", name, type(error).__name__)

    def _local_cpus(self) -> int:
        """CPU resources of a local head: one a rank and a replica, at least the machine's."""
        models = self._settings.models.values()
        wanted = sum(model.replicas * (1 + model.tensor_parallel * model.pipeline_parallel) for model in models)
        return max(wanted, os.cpu_count() or 1)


async def _find(cluster: RayCluster, find: Callable[[], Any]) -> ReplicaClient | None:
    from lionrock.inference.deployment import ReplicaClient

    handle = await cluster.call(find)
    return None if handle is None else ReplicaClient(handle)


def _take_back_signals() -> None:
    """Put Python's own handlers back in place of those that Ray's core installs, which print a stack trace for SIGTERM."""
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.getsignal(number))
            signal.siginterrupt(number, False)


__all__ = ["Front", "ModelFront", "RayUnavailable"]
