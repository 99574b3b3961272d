"""Metrics and spans of the operator, on the chassis' meter and tracer. No names of models in spans' names, no texts of objects.

Attributes have few values: kinds, verbs, outcomes, pools, conditions. What is counted per model is in the models' own status.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Final

from opentelemetry import metrics, trace
from opentelemetry.metrics import CallbackOptions
from opentelemetry.metrics import Observation as Measurement

from lionrock.operator.actions import Key
from lionrock.operator.cluster import Call
from lionrock.operator.resources import ModelDeployment
from lionrock.operator.world import World

_SECONDS: Final = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
_CONFLICT: Final = "409"


class OperatorMetrics:
    """Instruments of one operator."""

    def __init__(self, meter: metrics.Meter) -> None:
        self._meter = meter
        self._reconciles = meter.create_histogram(
            "lionrock.operator.reconcile.duration",
            unit="s",
            description="From taking a key to its last write, by kind and outcome",
            explicit_bucket_boundaries_advisory=_SECONDS,
        )
        self._decisions = meter.create_histogram(
            "lionrock.operator.decision.duration",
            unit="s",
            description="Deciding alone, by kind",
            explicit_bucket_boundaries_advisory=_SECONDS,
        )
        self._calls = meter.create_histogram(
            "lionrock.operator.api.call.duration",
            unit="s",
            description="Calls to the API server, by verb, resource and status",
            explicit_bucket_boundaries_advisory=_SECONDS,
        )
        self._conflicts = meter.create_counter(
            "lionrock.operator.api.conflicts", unit="1", description="Writes that the API server refused with 409"
        )
        self._events = meter.create_counter(
            "lionrock.operator.watch.events", unit="1", description="Changes that informers reported, by resource"
        )

    def call(self, call: Call) -> None:
        """Count a call to the API server."""
        self._calls.record(call.seconds, {"verb": call.verb, "resource": call.resource, "status": call.outcome})
        if call.outcome == _CONFLICT:
            self._conflicts.add(1, {"resource": call.resource})

    def decided(self, key: Key, seconds: float) -> None:
        """Count a decision."""
        self._decisions.record(seconds, {"kind": str(key.kind)})

    def reconciled(self, key: Key, outcome: str, seconds: float) -> None:
        """Count a key that was worked on. outcome: quiet, written, or the name of an error's class."""
        self._reconciles.record(seconds, {"kind": str(key.kind), "outcome": outcome})

    def changed(self, resource: str) -> None:
        """Count a change that an informer reported."""
        self._events.add(1, {"resource": resource})

    def gauge(self, name: str, description: str, measure: Callable[[], Iterable[tuple[int | float, dict[str, str]]]]) -> None:
        """Measure something whenever metrics are read."""

        def callback(options: CallbackOptions) -> Iterable[Measurement]:
            del options
            return [Measurement(value, attributes) for value, attributes in measure()]

        self._meter.create_observable_gauge(f"lionrock.operator.{name}", [callback], unit="1", description=description)


def models_by_condition(world: World) -> list[tuple[int | float, dict[str, str]]]:
    """How many models have a condition, by type, status and reason."""
    found = Counter(
        (condition.type, condition.status, condition.reason)
        for model in world.models.values()
        if isinstance(model, ModelDeployment)
        for condition in model.status.conditions
    )
    return [(count, {"condition": kind, "status": status, "reason": reason}) for (kind, status, reason), count in found.items()]


def tenants_by_condition(world: World) -> list[tuple[int | float, dict[str, str]]]:
    """How many tenants have a condition, by type, status and reason."""
    found = Counter(
        (condition.type, condition.status, condition.reason) for tenant in world.tenants.values() for condition in tenant.conditions
    )
    return [(count, {"condition": kind, "status": status, "reason": reason}) for (kind, status, reason), count in found.items()]


def chips_of_pools(world: World) -> list[tuple[int | float, dict[str, str]]]:
    """Chips of each pool's ready nodes, by what they are used for."""
    measured: list[tuple[int | float, dict[str, str]]] = []
    for pool in world.pools:
        capacity = world.capacity(pool)
        for use, count in (("free", capacity.free), ("reserved", capacity.reserved), ("foreign", capacity.foreign)):
            measured.append((count, {"pool": str(pool), "use": use}))
    return measured


@contextmanager
def continued(span: trace.Span) -> Iterator[None]:
    """Make a span current that another thread began, and end it."""
    with trace.use_span(span, end_on_exit=True, record_exception=False, set_status_on_exception=True):
        yield
