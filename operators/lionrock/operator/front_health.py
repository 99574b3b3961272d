"""Asks the fronts of revisions that are starting whether their models answer, since neither KubeRay nor a kubelet can tell.

KubeRay declares a model to a head that is ready, so a head's readiness cannot wait for the model; and Serve calls an application
RUNNING when its processes are there, which is long before weights are read. The front's health port says it in clear text, one bit
(`lionrock.chassis.probes`). A revision is asked until it has answered once: from then on Serve and its pods say how it is.
Runtime, not pure: one thread, calls with deadlines, so many at a time.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable, Mapping
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
_AT_A_TIME: Final = 64


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


@dataclass(slots=True)
class _Asked:
    address: str
    channel: grpc.Channel
    answers: bool = False


class FrontHealth:
    """What the fronts said last."""

    def __init__(self, *, port: int = PROBE_PORT, every_s: float = 2.0, answer_s: float = 1.0) -> None:
        self._port = port
        self._every_s = every_s
        self._answer_s = answer_s
        self._asked: dict[Front, _Asked] = {}
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
        for asked in self._asked.values():
            asked.channel.close()

    def ask(self, fronts: Mapping[Front, str]) -> set[ObjectKey]:
        """Ask all of them once. Returns the models of which a revision answers otherwise than before."""
        self._keep(fronts)
        changed: set[ObjectKey] = set()
        waiting = sorted(self._asked)
        for begin in range(0, len(waiting), _AT_A_TIME):
            calls = [(front, self._call(self._asked[front])) for front in waiting[begin : begin + _AT_A_TIME]]
            for front, call in calls:
                answers = _answer(call)
                if answers is not self._asked[front].answers:
                    changed.add(front[0])
                self._asked[front].answers = answers
        self._reports = {front: RevisionReport(answers=asked.answers) for front, asked in self._asked.items()}
        return changed

    def _keep(self, fronts: Mapping[Front, str]) -> None:
        """Have a channel to each of them, and to no other."""
        for front in [front for front, asked in self._asked.items() if fronts.get(front) != asked.address]:
            self._asked.pop(front).channel.close()
        for front, address in fronts.items():
            if front not in self._asked:
                host = f"[{address}]" if ":" in address else address
                self._asked[front] = _Asked(address, grpc.insecure_channel(f"{host}:{self._port}"))

    def _call(self, asked: _Asked) -> Any:
        stub: Any = health_pb2_grpc.HealthStub(asked.channel)
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
