"""Can answers of two kinds be told apart by how long they take? The area under the ROC curve, with a bound on it.

AUC is the chance that an answer of the one kind takes longer than one of the other, ties counting half: 0.5 when time tells
nothing, 1 or 0 when it tells all. `measured` takes the kinds in pairs, in a random order in each, so that what drifts (caches,
load, clock) meets both alike. `Distinguisher.least` is what an attacker can be sure of: the lower bound of a confidence interval
of AUC, by the variance of Hanley and McNeil (Radiology 143, 1982).

A bound is only as good as the number of trials: `resolution` says which AUC a run of so many trials would find.
"""

from __future__ import annotations

import math
import random
import time
from bisect import bisect_left, bisect_right
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Final

CONFIDENT: Final = 3.29
"""Standard deviations of a two-sided confidence of 99.9 %: of a thousand runs without a difference one says that there is one."""

Ask = Callable[[], Awaitable[object]]


@dataclass(frozen=True, slots=True)
class Distinguisher:
    """How well time tells two kinds apart. `auc`: 0.5 or more, whichever is the slower kind; `error`: its standard error."""

    auc: float
    error: float
    trials: int

    @property
    def least(self) -> float:
        """The AUC that there is at least, to the confidence above; 0.5 when nothing is shown."""
        return max(0.5, self.auc - CONFIDENT * self.error)

    @property
    def most(self) -> float:
        """The AUC that there is at most, to the same confidence."""
        return min(1.0, self.auc + CONFIDENT * self.error)


def distinguisher(one: Sequence[float], other: Sequence[float]) -> Distinguisher:
    """Compare two samples of at least two numbers each."""
    ordered = sorted(other)
    wins = sum(bisect_left(ordered, value) + bisect_right(ordered, value) for value in one) / 2
    auc = wins / (len(one) * len(other))
    auc = max(auc, 1 - auc)
    return Distinguisher(auc, _error(auc, len(one), len(other)), min(len(one), len(other)))


def resolution(trials: int) -> float:
    """The smallest AUC that so many trials of each kind tell from 0.5."""
    return 0.5 + CONFIDENT * _error(0.5, trials, trials)


def _error(auc: float, one: int, other: int) -> float:
    """Standard error of an AUC (Hanley and McNeil, equation 1)."""
    both_above, both_below = auc / (2 - auc), 2 * auc * auc / (1 + auc)
    square = auc * (1 - auc) + (one - 1) * (both_above - auc * auc) + (other - 1) * (both_below - auc * auc)
    return math.sqrt(max(square, 0.25 / max(one, other)) / (one * other))


async def measured(one: Ask, other: Ask, trials: int, *, seed: int = 0, warm_up: int = 20) -> Distinguisher:
    """Ask in both ways so many times, one after the other, in pairs of random order."""
    rng = random.Random(seed)
    times: tuple[list[float], list[float]] = ([], [])
    for trial in range(warm_up + trials):
        for kind in rng.sample((0, 1), 2):
            began = time.perf_counter()
            await (one, other)[kind]()
            if trial >= warm_up:
                times[kind].append(time.perf_counter() - began)
    return distinguisher(*times)
