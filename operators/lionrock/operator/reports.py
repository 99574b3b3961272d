"""What is told of revisions: whether they answer, how fast, how well. Asked by the runtime, given to decisions.

A report may be missing: nobody was asked yet, or nobody answered. Missing figures never promote, scale or roll back anything;
partial ones may roll back and scale up, and do not promote and scale down.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Final

from lionrock.operator.resources import ObjectKey, Revision
from lionrock.operator.rollout import RevisionFigures


@dataclass(frozen=True, slots=True, kw_only=True)
class RevisionReport:
    """One revision as of lately."""

    answers: bool | None = None
    """Whether its front says that the model can be asked; None: not known."""
    waiting: int | None = None
    """Requests that wait, all replicas together."""
    ttft_p95_ms: float | None = None
    """Of the last minutes."""
    figures: RevisionFigures | None = None
    """Since it became ready."""
    partial: bool = False
    """Whether a gateway has not told: counts are at least these."""


Reports = Mapping[tuple[ObjectKey, Revision], RevisionReport]
NO_REPORTS: Final[Reports] = MappingProxyType({})
NO_REPORT: Final = RevisionReport()


def no_reports() -> Reports:
    """Return none: nobody is asked."""
    return NO_REPORTS


class JoinedReports:
    """What the fronts say and what the gateways tell, as one; joined anew where either has changed."""

    def __init__(self, fronts: Callable[[], Reports], gateways: Callable[[], Reports]) -> None:
        self._fronts = fronts
        self._gateways = gateways
        self._joined: tuple[Reports, Reports, Reports] = (NO_REPORTS, NO_REPORTS, NO_REPORTS)

    def __call__(self) -> Reports:
        """Return the reports of now."""
        fronts, gateways = self._fronts(), self._gateways()
        of_fronts, of_gateways, joined = self._joined
        if of_fronts is not fronts or of_gateways is not gateways:
            joined = dict(fronts) | {key: replace(told, answers=fronts.get(key, told).answers) for key, told in gateways.items()}
            self._joined = (fronts, gateways, joined)
        return joined
