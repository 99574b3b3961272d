"""What revisions say of themselves: whether they answer, how fast, how well. Asked by the runtime, given to decisions.

A report may be missing: nobody was asked yet, or nobody answered. Missing figures never promote, scale or roll back anything.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
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


Reports = Mapping[tuple[ObjectKey, Revision], RevisionReport]
NO_REPORTS: Final[Reports] = MappingProxyType({})
NO_REPORT: Final = RevisionReport()
