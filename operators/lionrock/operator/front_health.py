"""Asks the fronts of revisions that are starting whether their models answer, since neither KubeRay nor a kubelet can tell.

KubeRay declares a model to a head that is ready, so a head's readiness cannot wait for the model; and Serve calls an application
RUNNING when its processes are there, which is long before weights are read. The front's health port says it in clear text, one bit
(`lionrock.chassis.probes`). A revision is asked until it has answered once: from then on Serve and its pods say how it is.
Runtime, not pure: one thread, calls with deadlines. A round asks so many, those first that were asked longest ago; where a thousand
models start at once each is asked once a minute, and a channel is open for one call only, since loading takes longer than either.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, Final

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from lionrock.operator.engine_settings import PROBE_PORT
from lionrock.operator.ray_service import HEAD
from lionrock.operator.reports import RevisionReport
from lionrock.operator.resources import ModelDeployment, ObjectKey, Revision
from lionrock.operator.world import World

log = logging.getLogger("lionrock.operator")

Front = tuple[ObjectKey, Revision]
_SERVING: Final = health_pb2.HealthCheckResponse.SERVING
AT_A_TIME: Final = 32
"""Fronts that a round asks."""


def fronts_to_ask(world: World) -> dict[Front, str]:
    """Addresses of the head pods of revisions that have not answered yet."""
    found: dict[Front, str] = {}
    for model in world.models.values():
        starting = {revision.name for revision in model.status.revisions if revision.ready_at is None}
        if not starting or not isinstance(model, ModelDeployment):
            continue
        for pod in world.pods_of(model.key):
            if pod.role == HEAD and pod.revision in starting and pod.pod_ip is not None and pod.deleted_at is None and pod.is_ready:
                found[model.key, pod.revision] = pod.pod_ip
    return found


@dataclass(frozen=True, slots=True)
class _Asked:
    address: str
    answers: bool | None = None
    """None: it was not asked yet."""


class FrontHealth:
    """What the fronts said last."""

    def __init__(self, *, port: int = PROBE_PORT, every_s: float = 2.0, answer_s: float = 1.0) -> None:
        self._port = port
        self._every_s = every_s
        self._answer_s = answer_s
        self._asked: dict[Front, _Asked] = {}  # who was asked longest ago comes first
        self._reports: Mapping[Front, RevisionReport] = {}
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def reports(self) -> Mapping[Front, RevisionReport]:
        """Return reports of the revisions that are asked."""
        return self._reports

    def start(self, fronts: Callable[[], Mapping[Front, str]], look_at: Callable[[Iterable[ObjectKey]], None]) -> None:
        """Begin to ask. fronts: whom, by address; look_at is told of models whose answer has changed."""
        self._thread = threading.Thread(target=self._run, args=(fronts, look_at), name="front-health", daemon=True)
        self._thread.start()

    def stop(self, timeout_s: float = 5.0) -> None:
        """Ask no more."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join(timeout_s)

    def ask(self, fronts: Mapping[Front, str]) -> set[ObjectKey]:
        """Ask some of them once. Returns the models of which a revision answers otherwise than before."""
        known = {front: asked for front, asked in self._asked.items() if fronts.get(front) == asked.address}
        new = {front: _Asked(address) for front, address in sorted(fronts.items()) if front not in known}
        self._asked = {**new, **known}
        changed: set[ObjectKey] = set()
        with ExitStack() as channels:
            calls = [(front, self._call(channels, self._asked[front])) for front in list(self._asked)[:AT_A_TIME]]
            for front, call in calls:
                asked = self._asked.pop(front)
                answers = _answer(call)
                if answers is not bool(asked.answers):
                    changed.add(front[0])
                self._asked[front] = _Asked(asked.address, answers)
        told = {front: asked.answers for front, asked in self._asked.items()}
        self._reports = {front: RevisionReport(answers=answers) for front, answers in told.items() if answers is not None}
        return changed

    def _call(self, channels: ExitStack, asked: _Asked) -> Any:
        host = f"[{asked.address}]" if ":" in asked.address else asked.address
        channel = channels.enter_context(grpc.insecure_channel(f"{host}:{self._port}"))
        stub: Any = health_pb2_grpc.HealthStub(channel)
        return stub.Check.future(health_pb2.HealthCheckRequest(service=""), timeout=self._answer_s)

    def _run(self, fronts: Callable[[], Mapping[Front, str]], look_at: Callable[[Iterable[ObjectKey]], None]) -> None:
        while not self._stop.wait(self._every_s):
            try:
                look_at(sorted(self.ask(fronts())))
            except Exception:
                log.exception("fronts could not be asked")


def _answer(call: Any) -> bool:
    try:
        return bool(call.result().status == _SERVING)
    except grpc.RpcError:
        return False
