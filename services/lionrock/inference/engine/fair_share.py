"""Whose turn it is: the tenant that has been served least for its weight.

Every tenant with live sequences has a counter of the work done for it, divided by its weight; the smallest goes first. A tenant
that comes, or comes back, starts no lower than the smallest counter of those that are there, so nobody saves up turns by staying
away; and one that leaves keeps its counter while it is above that, so nobody sheds it by leaving. With one tenant, all of this
decides nothing.

Between two tenants that both always have something waiting, the counters differ at most by what one sequence may add before the
other's turn. Source: Sheng et al., "Fairness in Serving Large Language Models", OSDI 2024 (virtual token counter, its weights of
prompt and answer tokens).

Knows tenants and amounts; neither sequences nor blocks.
"""

from __future__ import annotations

from collections import Counter
from typing import Final

PROMPT_TOKEN: Final = 1.0
ANSWER_TOKEN: Final = 2.0
"""Work of a token. One of an answer takes a step's pass over the weights; one of a prompt shares it with its chunk."""


class FairShares:
    """Counters of tenants. Holds those that are live, and those that left with a counter above the smallest live one."""

    def __init__(self) -> None:
        self._served: dict[str, float] = {}
        self._live: Counter[str] = Counter()
        self._weights: dict[str, int] = {}

    @property
    def tenants(self) -> int:
        """How many tenants have live sequences."""
        return len(self._live)

    def served(self, tenant: str) -> float:
        """Work done for a live tenant, by its weight."""
        return self._served[tenant]

    def weight(self, tenant: str) -> int:
        """Weight of a live tenant: that of its latest sequence."""
        return self._weights[tenant]

    def enter(self, tenant: str, weight: int) -> None:
        """Count one more live sequence of a tenant. Raises ValueError for a weight below 1."""
        if weight < 1:
            raise ValueError("a weight is 1 at least")
        if not self._live[tenant]:
            least = min((self._served[other] for other in self._live if other != tenant), default=None)
            if least is None:
                self._served.clear()  # whoever is alone owes nobody
            else:
                self._served = {name: served for name, served in self._served.items() if served > least or name in self._live}
            self._served[tenant] = max(self._served.get(tenant, 0.0), least or 0.0)
        self._live[tenant] += 1
        self._weights[tenant] = weight

    def leave(self, tenant: str) -> None:
        """Count one live sequence of a tenant less."""
        self._live[tenant] -= 1
        if not self._live[tenant]:
            del self._live[tenant], self._weights[tenant]

    def charge(self, tenant: str, work: float) -> None:
        """Note work done for a live tenant, in tokens of a prompt."""
        self._served[tenant] += work / self._weights[tenant]

    def share(self, tenant: str, of: int, weight: int) -> float:
        """Return what part of `of` places a tenant of this weight may have beside the live ones, itself counted once."""
        others = sum(self._weights[other] for other in self._live if other != tenant)
        return of * weight / (others + weight)
