"""How each revision of each model answers, as lately seen by this gateway: what the operator's canaries and autoscaling go by.

Counts; knows neither wires nor metrics' names. Bounded: so many revisions, a window in slices, times in buckets a quarter octave
wide, so that a percentile is right to within a tenth and several gateways' can be added up. Holds no ids and no text.
"""

from __future__ import annotations

import time
from bisect import bisect_left
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final

WINDOW_S: Final = 60.0
SLICES: Final = 12
MAX_REVISIONS: Final = 4096

TTFT_BOUNDS_S: Final = tuple(0.005 * 2 ** (step / 4) for step in range(57))
"""Upper bounds of buckets, 5 ms to 82 s; one more bucket is above them all."""

Key = tuple[str, str]
"""Model, revision."""


@dataclass(frozen=True, slots=True)
class RevisionFigures:
    """Of one revision. Counters since the gateway started, and the same for the window."""

    model: str
    revision: str
    waiting: int
    """Requests that its engines have and have given no token for."""
    open: int
    """Requests that its engines have."""
    answers: int
    failed_answers: int
    """Of `answers`, those that its engines failed."""
    ttft_counts: tuple[int, ...]
    """Answers by time to the first text: one more than TTFT_BOUNDS_S."""
    window_answers: int
    window_failed_answers: int
    window_ttft_counts: tuple[int, ...]
    """The same for the window."""
    window_ttft_p95_s: float | None
    """None: no answer of the window had text."""


def _buckets() -> list[int]:
    return [0] * (len(TTFT_BOUNDS_S) + 1)


@dataclass(slots=True)
class _Slice:
    number: int = -1
    answers: int = 0
    failed: int = 0
    ttft: list[int] = field(default_factory=_buckets)


@dataclass(slots=True)
class Revision:
    """Counters of one revision. Only this module changes them, but for who leaves."""

    waiting: int = 0
    open: int = 0
    answers: int = 0
    failed: int = 0
    ttft: list[int] = field(default_factory=_buckets)
    slices: list[_Slice] = field(default_factory=lambda: [_Slice() for _ in range(SLICES)])


class ModelStats:
    """Of one gateway. One event loop uses it."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        """`clock`: seconds."""
        self._clock = clock
        self._revisions: dict[Key, Revision] = {}
        self._routed: frozenset[Key] | None = None

    def answer(self, model: str) -> AnswerStats:
        """Begin to count one answer."""
        return AnswerStats(self, model)

    def keep(self, routed: Iterable[Key]) -> None:
        """Have figures of what is routed, be it never asked, and forget what is not any more, once no request is open there."""
        self._routed = frozenset(routed)
        for key in tuple(self._revisions):
            self.left(key)
        for key in sorted(self._routed):
            self._of(key)

    def figures(self) -> list[RevisionFigures]:
        """Return what is known of each revision, by model and revision."""
        return [self._figures(key, self._revisions[key]) for key in sorted(self._revisions)]

    def entered(self, key: Key) -> Revision | None:
        """Count a request that a revision's engine now has. Returns the counters to leave; None beyond the bound."""
        if (revision := self._of(key)) is not None:
            revision.open += 1
            revision.waiting += 1
        return revision

    def left(self, key: Key) -> None:
        """Forget a revision that is not routed any more, once nothing is open."""
        revision = self._revisions.get(key)
        if revision is not None and not revision.open and self._routed is not None and key not in self._routed:
            del self._revisions[key]

    def ended(self, key: Key, *, failed: bool, ttft_s: float | None) -> None:
        """Count an answer of a revision that ended. ttft_s: to its first text, if it had any."""
        if (revision := self._of(key)) is None:
            return
        revision.answers += 1
        revision.failed += failed
        number = self._slice_number()
        part = revision.slices[number % SLICES]
        if part.number != number:
            part = revision.slices[number % SLICES] = _Slice(number)
        part.answers += 1
        part.failed += failed
        if ttft_s is not None:
            bucket = bisect_left(TTFT_BOUNDS_S, ttft_s)
            part.ttft[bucket] += 1
            revision.ttft[bucket] += 1
        self.left(key)

    def _of(self, key: Key) -> Revision | None:
        if key not in self._revisions and len(self._revisions) < MAX_REVISIONS:
            self._revisions[key] = Revision()
        return self._revisions.get(key)

    def _slice_number(self) -> int:
        return int(self._clock() / (WINDOW_S / SLICES))

    def _figures(self, key: Key, revision: Revision) -> RevisionFigures:
        oldest = self._slice_number() - SLICES + 1
        lately = [part for part in revision.slices if part.number >= oldest]
        counts = [sum(column) for column in zip(*(part.ttft for part in lately), strict=True)] or _buckets()
        return RevisionFigures(
            model=key[0],
            revision=key[1],
            waiting=revision.waiting,
            open=revision.open,
            answers=revision.answers,
            failed_answers=revision.failed,
            ttft_counts=tuple(revision.ttft),
            window_answers=sum(part.answers for part in lately),
            window_failed_answers=sum(part.failed for part in lately),
            window_ttft_counts=tuple(counts),
            window_ttft_p95_s=percentile(counts, 0.95),
        )


class AnswerStats:
    """One answer, wherever it is written. Call `ended` exactly once."""

    def __init__(self, stats: ModelStats, model: str) -> None:
        self._stats = stats
        self._model = model
        self._revision: str | None = None
        self._counted: Revision | None = None
        self._waits = False
        self._lost: set[str] = set()

    @property
    def revision(self) -> str | None:
        """What answers, or was to answer last; None: no engine was asked."""
        return self._revision

    @property
    def lost_by(self) -> frozenset[str]:
        """Revisions that had the answer and did not finish it."""
        return frozenset(self._lost)

    def asked(self, revision: str) -> None:
        """Take note that a revision's engine is asked, for the first time or in place of the last."""
        last = self._leave()
        if last is not None:
            self._lost.add(last)
        self._lost.discard(revision)
        self._revision, self._waits = revision, True
        self._counted = self._stats.entered((self._model, revision))

    def progressed(self) -> None:
        """Take note that the engine gave a token."""
        if self._waits and self._counted is not None:
            self._counted.waiting -= 1
        self._waits = False

    def withdrawn(self) -> None:
        """Take note that the last engine was asked in vain, through no fault of its own."""
        self._leave()
        self._revision = None

    def ended(self, *, failed: bool | None, ttft_s: float | None) -> None:
        """Count it. failed: by the last engine; None: it ended for a reason that says nothing of that."""
        last = self._leave()
        if last is not None and failed:
            self._lost.add(last)
        for revision in self._lost:
            self._stats.ended((self._model, revision), failed=True, ttft_s=None)
        if last is not None and failed is False:
            self._stats.ended((self._model, last), failed=False, ttft_s=ttft_s)

    def _leave(self) -> str | None:
        self.progressed()
        if self._counted is not None:
            self._counted.open -= 1
            self._counted = None
        if self._revision is not None:
            self._stats.left((self._model, self._revision))
        return self._revision


def percentile(counts: Sequence[int], share: float) -> float | None:
    """Time in seconds within which that share of what was counted lies, by its bucket's upper bound; None: nothing was counted."""
    total = sum(counts)
    if not total:
        return None
    rank = share * total
    for bound, count in zip((*TTFT_BOUNDS_S, TTFT_BOUNDS_S[-1]), counts, strict=True):
        rank -= count
        if rank <= 0:
            return bound
    return TTFT_BOUNDS_S[-1]
