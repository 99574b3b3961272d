"""Events of events.k8s.io/v1: what a person sees in `kubectl describe`.

Knows how events are counted: the same thing said again about the same object within ten minutes is one event with a number, written
again at most every so often, so that a fault that repeats does not fill the store. Losing one is no failure: they inform.
"""

from __future__ import annotations

import datetime as dt
import logging
import secrets
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from lionrock.operator.actions import Event
from lionrock.operator.api_errors import ApiError, NotFound
from lionrock.operator.api_resources import EVENT
from lionrock.operator.cluster import FIELD_MANAGER, Cluster

log = logging.getLogger("lionrock.operator")

SERIES_S: Final = 600.0
REPEAT_S: Final = 60.0
REMEMBERED: Final = 4096
MAX_NOTE_CHARACTERS: Final = 1000
_NAME_CHARACTERS: Final = 230


@dataclass(slots=True)
class _Series:
    namespace: str
    name: str
    begun: float
    written: float
    count: int = 1


def _wall_clock() -> dt.datetime:
    return dt.datetime.now(dt.UTC)


class EventRecorder:
    """Writes events of one operator. Thread-safe."""

    def __init__(
        self,
        cluster: Cluster,
        instance: str,
        *,
        clock: Callable[[], float] = time.monotonic,
        wall_clock: Callable[[], dt.datetime] = _wall_clock,
    ) -> None:
        self._cluster = cluster
        self._instance = instance[:128]
        self._clock = clock
        self._wall_clock = wall_clock
        self._lock = threading.Lock()
        self._known: OrderedDict[Event, _Series] = OrderedDict()

    def record(self, event: Event) -> None:
        """Write an event, or count it. Raises nothing for a server that does not take it."""
        now = self._clock()
        with self._lock:
            series = self._known.get(event)
            if series is not None and now - series.begun < SERIES_S:
                series.count += 1
                if now - series.written < REPEAT_S:
                    return
                series.written = now
                count = series.count
            else:
                namespace = event.about.namespace or "default"
                name = f"{event.about.name[:_NAME_CHARACTERS]}.{secrets.token_hex(8)}"
                series = _Series(namespace, name, now, now)
                count = 1
                self._known[event] = series
                self._known.move_to_end(event)
                if len(self._known) > REMEMBERED:
                    self._known.popitem(last=False)
        try:
            self._write(event, series, count)
        except ApiError as error:
            log.warning("an event was not written: %s", error)
            if isinstance(error, NotFound):  # the event ran out, or its namespace is gone
                with self._lock:
                    self._known.pop(event, None)

    def _write(self, event: Event, series: _Series, count: int) -> None:
        at = self._wall_clock().strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        if count > 1:
            patch = {"series": {"count": count, "lastObservedTime": at}}
            self._cluster.patch(EVENT, series.namespace, series.name, "merge", patch)
            return
        self._cluster.create(self._manifest(event, series, at))

    def _manifest(self, event: Event, series: _Series, at: str) -> dict[str, Any]:
        about = event.about
        regarding = {"apiVersion": about.api_version, "kind": about.kind, "name": about.name}
        regarding |= {key: value for key, value in (("namespace", about.namespace), ("uid", about.uid)) if value}
        return {
            "apiVersion": EVENT.api_version,
            "kind": EVENT.kind,
            "metadata": {"namespace": series.namespace, "name": series.name},
            "eventTime": at,
            "type": str(event.severity),
            "reason": event.reason,
            "action": "Reconcile",
            "note": event.message[:MAX_NOTE_CHARACTERS],
            "regarding": regarding,
            "reportingController": f"lionrock.io/{FIELD_MANAGER}",
            "reportingInstance": self._instance,
        }
