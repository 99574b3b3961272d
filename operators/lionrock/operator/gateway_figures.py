"""Adds up what the gateways tell of each revision: answers and failures since it was routed, what waits, times to the first text.

Pure: knows neither gRPC nor clocks. Counters are of one gateway's life, so differences to what the same gateway told before are
added; one that has begun anew, that is new, or that had forgotten a revision counts from zero. Who comes to lead later so begins
with all that the living gateways have counted for a revision, and they count from when it was routed. Times to the first text are
compared over the time that revisions were asked about side by side, for how fast a model answers depends on the hour.

Partial: where a gateway did not tell, or left revisions out, sums are at least what is said, and percentiles are the others'.
Partial figures may send a canary back and add replicas, for what is known of failures and of waiting requests is there; they never
promote a canary and never take a replica away.

Gateways know models by served names and read the routes of one namespace, so only that namespace's models have figures; of two with
one served name those of the one that is routed, which is the older.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final

from lionrock.operator.model_deployment import ModelDeployment
from lionrock.operator.namespace_decision import routed_models
from lionrock.operator.reports import RevisionReport
from lionrock.operator.resources import ObjectKey, Revision
from lionrock.operator.rollout import MIN_CANARY_ANSWERS, RevisionFigures

Served = tuple[str, Revision]
"""Served name of a model, and revision, as gateways name them."""

MAX_REMEMBERED: Final = 1024
"""Gateways of which the last reading is kept, those that have left among them."""
_SHARE: Final = 0.95


class Unreadable(Exception):
    """A gateway told what contradicts itself."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RevisionReading:
    """One revision as one gateway tells. Counts by time to the first text: one more than the gateway's bounds, or none."""

    waiting: int
    answers: int
    failed: int
    ttft_counts: tuple[int, ...] = ()
    """Since it counts."""
    window_ttft_counts: tuple[int, ...] = ()
    """Of the last minute."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GatewayReading:
    """What one gateway tells."""

    counting_since_ns: int
    """Unix time at which it began to count, by which one that restarted is known."""
    ttft_bounds_s: tuple[float, ...]
    revisions: Mapping[Served, RevisionReading]
    complete: bool = True
    """Whether it can tell of every revision."""

    def __post_init__(self) -> None:
        bounds = self.ttft_bounds_s
        if any(not math.isfinite(bound) for bound in bounds) or sorted(set(bounds)) != list(bounds):
            raise Unreadable("the bounds of its buckets do not ascend")
        told = [counts for each in self.revisions.values() for counts in (each.ttft_counts, each.window_ttft_counts)]
        if any(counts and (not bounds or len(counts) != len(bounds) + 1) for counts in told):
            raise Unreadable("its buckets do not fit their bounds")


@dataclass(slots=True)
class _Total:
    answers: int = 0
    failed: int = 0
    ttft: dict[float, int] = field(default_factory=dict)
    """Answers by upper bound of their time to the first text, seconds."""


@dataclass(slots=True)
class GatewayFigures:
    """Sums over gateways. One thread uses it."""

    _last: dict[str, GatewayReading] = field(default_factory=dict)
    _totals: dict[Served, _Total] = field(default_factory=dict)
    _compared: dict[ObjectKey, frozenset[Served]] = field(default_factory=dict)

    def forget(self) -> None:
        """Begin anew."""
        self._last.clear()
        self._totals.clear()
        self._compared.clear()

    def add(
        self, told: Mapping[str, GatewayReading | None], wanted: Mapping[Served, ObjectKey]
    ) -> dict[tuple[ObjectKey, Revision], RevisionReport]:
        """Take one round of readings, by the gateways' addresses, None of one that did not tell; report on what is wanted."""
        readings = [reading for reading in told.values() if reading is not None]
        named = {served for reading in readings for served in reading.revisions}
        for served in [served for served in self._totals if served not in named and served not in wanted]:
            del self._totals[served]
        self._compare(wanted)
        for address, reading in told.items():
            if reading is not None:
                self._count(address, reading)
        partial = any(reading is None or not reading.complete for reading in told.values())
        return {
            (model, served[1]): self._report(served, readings, partial=partial)
            for served, model in wanted.items()
            if served in named or (partial and served in self._totals)
        }

    def _compare(self, wanted: Mapping[Served, ObjectKey]) -> None:
        """Begin to compare anew where a model's revisions are others than before."""
        models: dict[ObjectKey, frozenset[Served]] = {}
        for served, model in wanted.items():
            models[model] = models.get(model, frozenset()) | {served}
        for model, revisions in models.items():
            if self._compared.get(model) != revisions:
                for served in revisions & self._totals.keys():
                    self._totals[served].ttft.clear()
        self._compared = models

    def _count(self, address: str, reading: GatewayReading) -> None:
        """Add what a gateway has counted since it was last asked."""
        last = self._last.pop(address, None)
        before = last.revisions if last is not None and last.counting_since_ns == reading.counting_since_ns else {}
        for served, now in reading.revisions.items():
            old = before.get(served)
            if old is None or now.answers < old.answers or now.failed < old.failed:  # it had forgotten the revision meanwhile
                old = RevisionReading(waiting=0, answers=0, failed=0)
                times = now.window_ttft_counts  # those before belong to a time of which the others' are not known
            else:
                times = _since(old.ttft_counts, now.ttft_counts)
            total = self._totals.setdefault(served, _Total())
            total.answers += now.answers - old.answers
            total.failed += now.failed - old.failed
            _add(total.ttft, reading.ttft_bounds_s, times)
        self._last[address] = reading
        while len(self._last) > MAX_REMEMBERED:
            del self._last[next(iter(self._last))]  # the one that was silent longest

    def _report(self, served: Served, readings: Iterable[GatewayReading], *, partial: bool) -> RevisionReport:
        waiting, lately = 0, dict[float, int]()
        for reading in readings:
            if (one := reading.revisions.get(served)) is not None:
                waiting += one.waiting
                _add(lately, reading.ttft_bounds_s, one.window_ttft_counts)
        total = self._totals[served]
        compared = percentile(total.ttft, _SHARE) if sum(total.ttft.values()) >= MIN_CANARY_ANSWERS else None
        return RevisionReport(
            waiting=waiting,
            ttft_p95_ms=_milliseconds(percentile(lately, _SHARE)),
            figures=RevisionFigures(answers=total.answers, failed=total.failed, ttft_p95_ms=_milliseconds(compared)),
            partial=partial,
        )


def percentile(buckets: Mapping[float, int], share: float) -> float | None:
    """Value within which that share of what was counted lies, by its bucket's upper bound; None: nothing was counted."""
    rank = share * sum(buckets.values())
    counted = 0
    for bound in sorted(buckets):
        counted += buckets[bound]
        if counted and counted >= rank:
            return bound
    return None


def _add(buckets: dict[float, int], bounds: tuple[float, ...], counts: tuple[int, ...]) -> None:
    """Add a gateway's counts. The last is of what is above all bounds, and stands for the highest."""
    if counts:
        for bound, count in zip((*bounds, bounds[-1]), counts, strict=True):
            buckets[bound] = buckets.get(bound, 0) + count


def _since(before: tuple[int, ...], now: tuple[int, ...]) -> tuple[int, ...]:
    if len(before) != len(now):  # there was nothing before, or there is nothing now
        return now
    return tuple(max(0, count - old) for old, count in zip(before, now, strict=True))


def _milliseconds(seconds: float | None) -> float | None:
    return None if seconds is None else 1000 * seconds


def wanted_of(models: Iterable[ModelDeployment], namespace: str) -> dict[Served, ObjectKey]:
    """Revisions on whose figures something depends: those of models that are scaled by their load or that try a canary."""
    routed = routed_models([model for model in models if model.key.namespace == namespace])
    return {
        (name, revision.name): model.key
        for name, model in routed.items()
        if model.spec.autoscaling is not None or _tries_canary(model)
        for revision in model.status.revisions
    }


def what_matters(
    models: Iterable[ModelDeployment], reports: Mapping[tuple[ObjectKey, Revision], RevisionReport]
) -> dict[ObjectKey, Collection[object]]:
    """Pick of the reports, by model, what could change a decision: where it is as before there is nothing to decide anew."""
    found: dict[ObjectKey, Collection[object]] = {}
    for model in models:
        of_it: list[object] = []
        for revision in model.status.revisions:
            report = reports.get((model.key, revision.name))
            if report is None:
                continue
            of_it += [revision.name, report.partial, report.ttft_p95_ms]
            if model.spec.autoscaling is not None:
                of_it.append(report.waiting)
            if report.figures is not None and _tries_canary(model):
                of_it += [report.figures.answers >= MIN_CANARY_ANSWERS, report.figures.failed, report.figures.ttft_p95_ms]
        if of_it:
            found[model.key] = of_it
    return found


def _tries_canary(model: ModelDeployment) -> bool:
    return model.spec.rollout.canary is not None and len(model.status.revisions) > 1
