"""A gateway's share of the places for open answers: held in the ledger for a term, filled and freed without asking anybody.

Why the sum over all gateways stays within the quota: a gateway opens an answer only while it holds a free place by its own steady
clock, whose term began before the ledger's did; a place that one gateway holds is given to no other before its term is over; and
a gateway shrinks what it may fill before it tells the ledger so. A crashed gateway's places are free again after `TERM_S`; its
answers ended with it. What may pass the quota: a gateway that lives but cannot reach the store for longer than the term opens
nothing more, yet the answers that it has open are not cut off, while others may take their places.
"""

from __future__ import annotations

import asyncio
from typing import Final

from lionrock.gateway.quotas.leases import IDLE_S, LACK_S, StoreClock
from lionrock.gateway.quotas.ledger import QuotaLedger
from lionrock.gateway.quotas.limits import Budget, slice_of

TERM_S: Final = 15.0
RENEWED_AFTER_S: Final = 5.0
_SMOOTHING: Final = 0.2
_MIN_RETRY_S, _MAX_RETRY_S = 0.1, 5.0


class PlaceShare:
    """The places that this gateway holds of one budget. Used from one event loop."""

    def __init__(self, budget: Budget, limit: int, ledger: QuotaLedger, clock: StoreClock) -> None:
        """Hold nothing yet."""
        self.budget = budget
        self.limit = limit
        self._ledger = ledger
        self._clock = clock
        self._open = 0
        self._places = 0
        self._held_at = float("-inf")
        self._holding: asyncio.Task[None] | None = None
        self._used_at = clock.steady()
        self._none_until = float("-inf")
        self._mean_duration_s = 1.0

    @property
    def idle(self) -> bool:
        """Whether nothing is open or held and nobody used it lately."""
        return not (self._open or self._places or self._holding is not None or self._recently_used())

    def enter(self) -> bool:
        """Fill a place that is held; False when there is none. Never waits."""
        self._used_at = self._clock.steady()
        if self._open >= self._places or self._used_at >= self._held_at + TERM_S:
            return False
        self._open += 1
        return True

    async def hold_and_enter(self) -> bool:
        """Fill a place, holding more of them where others leave some. Raises StateUnavailable."""
        while not self.enter():
            if self._holding is None or self._holding.done():  # done: its callback comes next, and waiting would not let it
                if self._clock.steady() < self._none_until:
                    return False
                self._hold(self._open + slice_of(self.budget.quota, self.limit))
            assert self._holding is not None
            await asyncio.shield(self._holding)  # what it brings is everybody's: it goes on when this caller goes away
        return True

    def leave(self, lasted_s: float | None) -> None:
        """Free a place. `lasted_s`: None where no answer came of it."""
        self._open -= 1
        if lasted_s is not None:
            self._mean_duration_s += _SMOOTHING * (lasted_s - self._mean_duration_s)

    async def upkeep(self) -> None:
        """Keep what is in use, let go of what is idle. Raises StateUnavailable."""
        wanted = self._open + (slice_of(self.budget.quota, self.limit) if self._recently_used() else 0)
        due = self._clock.steady() >= self._held_at + RENEWED_AFTER_S
        if self._holding is None and (wanted < self._places or (self._places and due)):
            await asyncio.shield(self._hold(min(wanted, self._places)))

    async def give_back(self) -> None:
        """Let go of every place that is not in use. Raises StateUnavailable."""
        if self._holding is not None:
            await asyncio.wait({self._holding})
        if self._places:
            await asyncio.shield(self._hold(self._open))

    def retry_after_s(self) -> float:
        """When a place is likely to be free. Little's law: one is freed every mean duration / places."""
        return min(_MAX_RETRY_S, max(_MIN_RETRY_S, self._mean_duration_s / self.limit))

    def _hold(self, wanted: int) -> asyncio.Task[None]:
        """Begin to hold so many places. One at a time: those who wait look again when it is done."""
        self._holding = asyncio.create_task(self._held(wanted))
        self._holding.add_done_callback(self._ended)
        return self._holding

    def _ended(self, task: asyncio.Task[None]) -> None:
        if self._holding is task:
            self._holding = None
        if not task.cancelled():
            task.exception()  # seen: who waited for this has its error

    async def _held(self, wanted: int) -> None:
        began_at = self._clock.steady()
        wanted = max(wanted, self._open)
        self._places = min(self._places, wanted)  # first here: what is let go of must not be filled meanwhile
        kept = self._places if began_at < self._held_at + TERM_S else 0
        held = await self._ledger.hold_places(
            self.budget, self.limit, in_use=self._open, kept=kept, wanted=wanted, term_us=round(TERM_S * 1e6)
        )
        self._clock.heard(held.now_us)
        self._places, self._held_at = held.amount, began_at
        if not held.left and self._open >= held.amount:
            self._none_until = self._clock.steady() + LACK_S

    def _recently_used(self) -> bool:
        return self._clock.steady() < self._used_at + IDLE_S
