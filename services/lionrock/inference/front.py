"""The models as the front sees them: which are served, whether they are ready, and their streams. Starts Ray and the deployments.

The front listens before any model is ready; a watch asks the replicas how they are and so follows loads, losses and restarts.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import logging
import os
import signal
import threading
import time
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

from lionrock.chassis.errors import MeshError
from lionrock.inference.engine.runner import RunnerSpec
from lionrock.inference.errors import RESTART_RETRY_AFTER_S, ModelNotReady, ShardGroupLost, decode_error
from lionrock.inference.ray_cluster import RayCluster, RayUnavailable, prepare_environment
from lionrock.inference.served_model import ServedModel
from lionrock.inference.settings import InferenceSettings
from lionrock.inference.v1 import inference_pb2 as pb

if TYPE_CHECKING:
    from lionrock.inference.deployment import ReplicaClient

log = logging.getLogger("lionrock.inference")

_WATCH_STARTING_S = 0.1
_WATCH_S = 0.5
_ANSWER_S = 2.0
_UNDEPLOY_S = 15.0
_RESPONSE = 0


@dataclass(slots=True)
class ModelFront:
    """One served model."""

    model: ServedModel
    client: ReplicaClient | None = None
    spec: RunnerSpec | None = None
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
            if self.model.settings.replicas == 1:  # the watch would find out a little later
                self.ready, self.replicas = False, 0
                self.changed.set()
            raise
        finally:
            await frames.aclose()  # type: ignore[attr-defined]

    async def watch(self) -> None:
        """Follow the replicas' state until cancelled."""
        assert self.client is not None, "the model is deployed first"
        problem: str | None = None
        while True:
            try:
                async with asyncio.timeout(_ANSWER_S):
                    status = await self.client.status()
                ready, found = status.ready, status.problem
                self.spec = status.spec or self.spec
            except (MeshError, TimeoutError) as error:
                ready, found = False, f"no replica answers: {type(error).__name__}"
            if found != problem and found is not None:
                log.warning("model %s: %s", self.model.name, found)
            if ready and not self.ready:
                log.info("model %s is ready", self.model.name)
            problem = found
            self.replicas = self.model.settings.replicas if ready else 0
            self.ready = ready
            self.changed.set()
            await asyncio.sleep(_WATCH_S if self.ready else _WATCH_STARTING_S)


class Front:
    """All served models and the cluster under them."""

    def __init__(self, settings: InferenceSettings, models: Mapping[str, ServedModel]) -> None:
        self._settings = settings
        self.models = {name: ModelFront(model) for name, model in models.items()}
        self._cluster: RayCluster | None = None
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        """Start Ray and deploy every model; returns when replicas exist, before they are ready. Raises RayUnavailable."""
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
        from lionrock.inference.deployment import ReplicaClient, deploy, start_serve

        await cluster.call(start_serve)
        log.info("Serve is up after %.1f s", time.monotonic() - begin_s)
        for front in self.models.values():
            model = front.model
            handle = await cluster.call(lambda model=model: deploy(model, self._settings))  # type: ignore[misc]
            front.client = ReplicaClient(handle)
            self._tasks.append(asyncio.create_task(front.watch(), name=f"lionrock-watch-{model.name}"))
            log.info("model %s is deployed after %.1f s", model.name, time.monotonic() - begin_s)

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
        """CPU resources of a local head: one a bundle, at least the machine's."""
        wanted = sum(front.model.settings.replicas * (1 + front.model.plan.ranks) for front in self.models.values())
        return max(wanted, os.cpu_count() or 1)


def _take_back_signals() -> None:
    """Put Python's own handlers back in place of those that Ray's core installs, which print a stack trace for SIGTERM."""
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.getsignal(number))
            signal.siginterrupt(number, False)


__all__ = ["Front", "ModelFront", "RayUnavailable"]
