"""Turns of tenants at an engine that takes one number for each request, once, and serves the smallest first: vLLM's `priority`.

A request's number is the virtual time at which it may start: that of the engine, or, if later, when the tenant's request before it
will have been served by its weight. So a tenant's flood queues behind itself, and whoever comes next stands beside its front.
Source: Goyal, Vin and Cheng, "Start-time fair queueing", IEEE/ACM Transactions on Networking 5 (1997). What an answer will take is
not known when it comes: its tokens are guessed from those before, and corrected when it ends.

Between two tenants that both always have something waiting, the work done by weight differs at most by one request of each, for
every place in the batch and but for the guess. Work is counted as in fair_share.py. Knows tenants and amounts; no vLLM.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Final

from lionrock.inference.engine.fair_share import ANSWER_TOKEN, PROMPT_TOKEN

CLASS_SPAN: Final = 1 << 48
"""Numbers of one class of priority: more than virtual time comes to before an engine is idle once, and 64 bits hold 200 of them."""

_FIRST_GUESS: Final = 128.0  # tokens of an answer, before any has ended
_SMOOTHING: Final = 0.1


@dataclass(slots=True, eq=False)
class Turn:
    """One request's place. `number`: the smallest is served first."""

    tenant: str
    weight: int
    start: float
    number: int
    work: float
    """What it is counted for so far."""
    prompt_tokens: int


class Turns:
    """The turns of the requests that an engine has. Holds as many as there are, and a tenant's place while it has any."""

    def __init__(self) -> None:
        self._now = 0.0
        self._next: dict[str, float] = {}
        self._live: Counter[str] = Counter()
        self._weights: dict[str, int] = {}
        self._answer_tokens = _FIRST_GUESS

    def take(self, tenant: str, weight: int, priority: int, prompt_tokens: int, max_tokens: int) -> Turn:
        """Give a request its place. Raises ValueError for a weight below 1."""
        if weight < 1:
            raise ValueError("a weight is 1 at least")
        if not self._live:  # nobody is owed anything
            self._now, self._next = 0.0, {}
        start = max(self._now, self._next.get(tenant, 0.0))
        work = prompt_tokens * PROMPT_TOKEN + min(self._answer_tokens, max_tokens) * ANSWER_TOKEN
        self._next[tenant] = start + work / weight
        self._live[tenant] += 1
        self._weights[tenant] = weight
        number = -priority * CLASS_SPAN + min(int(start), CLASS_SPAN - 1)
        return Turn(tenant, weight, start, number, work, prompt_tokens)

    def begun(self, turn: Turn) -> None:
        """Say that a request has its first token: time has come to its place."""
        self._now = max(self._now, turn.start)

    def end(self, turn: Turn, answer_tokens: int, *, whole: bool) -> None:
        """Take a request off. whole: its answer ended by itself, and tells how long answers are."""
        work = turn.prompt_tokens * PROMPT_TOKEN + answer_tokens * ANSWER_TOKEN
        self._next[turn.tenant] += (work - turn.work) / turn.weight
        if whole:
            self._answer_tokens += _SMOOTHING * (answer_tokens - self._answer_tokens)
        self._live[turn.tenant] -= 1
        if not self._live[turn.tenant]:
            del self._live[turn.tenant], self._weights[turn.tenant]
        # Whoever left keeps a place that is yet to come; others would start at the present anyway.
        self._next = {name: at for name, at in self._next.items() if name in self._live or at > self._now}

    def of_tenant(self, tenant: str) -> int:
        """Return how many requests of a tenant there are."""
        return self._live[tenant]

    def share(self, tenant: str, of: int, weight: int) -> float:
        """Return what part of `of` places a tenant of this weight may have beside those that have requests now."""
        others = sum(self._weights[other] for other in self._live if other != tenant)
        return of * weight / (others + weight)
