"""A gateway's share of a window's quota: taken from the ledger in slices, spent without asking anybody.

Why the sum over all gateways never exceeds a quota: a unit is spent at one gateway, once, out of what that gateway took; a ledger
row's `taken` counts every unit that any gateway took and did not give back; and it grows only in a serialisable transaction that
leaves it at or below the limit. Spending, giving back and settling happen on one event loop without an await between look and
change, and a unit leaves the gateway's count before it is given back. Nothing in this rests on clocks: a clock that errs moves a
request into a neighbouring window, whose own sum holds.

- An idle gateway gives back what it holds (`IDLE_S`), so that it is nobody's loss.
- A crashed gateway's units stay taken, since nobody knows which were spent, and end with their window: at most about a slice and
  what answers under way had reserved.
- A lone gateway takes slice after slice until the last unit, and the next slice comes before the last one is spent. A request waits
  for the ledger only when it finds too little here: the first one after a pause, or one that outran the slice in flight.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Final

from lionrock.gateway.quotas.ledger import QuotaLedger
from lionrock.gateway.quotas.limits import Budget, Window, slice_of, window_at

IDLE_S: Final = 2.0
"""A share that nothing was taken from for so long is given back."""
AHEAD_US: Final = 2_000_000
"""So long before a window ends, a gateway that used it takes a slice of the next one."""
LACK_S: Final = 0.25
"""So long it is believed that the ledger has too little: a flood of refused requests costs it four questions a second."""


class StoreClock:
    """The store's time, as this gateway reckons it from its own steady clock and what the store last said."""

    def __init__(self, steady: Callable[[], float] = time.monotonic) -> None:
        """`steady`: seconds, from anywhere."""
        self.steady = steady
        self._ahead_us: int | None = None

    @property
    def known(self) -> bool:
        """Whether the store has said anything yet."""
        return self._ahead_us is not None

    def now_us(self) -> int:
        """Return the store's time, off by no more than a round trip to it."""
        assert self._ahead_us is not None
        return round(self.steady() * 1e6) + self._ahead_us

    def heard(self, now_us: int) -> None:
        """Note what the store just said."""
        self._ahead_us = now_us - round(self.steady() * 1e6)


class WindowShare:
    """What this gateway holds of one budget. Used from one event loop."""

    def __init__(self, budget: Budget, limit: int, ledger: QuotaLedger, clock: StoreClock) -> None:
        """Hold nothing yet."""
        self.budget = budget
        self.limit = limit
        self._ledger = ledger
        self._clock = clock
        self._left: dict[Window, int] = {}  # of the window that is on, and shortly before its end of the next one
        self._taking: asyncio.Task[None] | None = None
        self._used_at = clock.steady()
        self._lacking: tuple[Window, int] | None = None  # what was left there when it last had too little, believed for LACK_S
        self._believed_until = float("-inf")
        self._not_ahead_until = float("-inf")
        self._reservations = 0

    @property
    def idle(self) -> bool:
        """Whether nothing is held, nothing will be settled, and nobody used it lately."""
        busy = self._reservations or self._taking is not None or any(self._left.values())
        return not busy and not self._recently_used()

    def spend(self, amount: int) -> Window | None:
        """Spend from what is held; None when that is too little. Never waits. What it returns is for `settle`, exactly once."""
        self._used_at = self._clock.steady()
        if not self._clock.known:
            return None
        window = self._window()
        left = self._left.get(window, 0)
        if left < amount:
            return None
        self._left[window] = left - amount
        self._reservations += 1
        if left - amount < self._slice() // 2 and self._taking is None and self._may_look_ahead():
            self._take(wanted=self._slice(), least=1)
        return window

    async def take_and_spend(self, amount: int) -> Window | None:
        """Spend, taking from the ledger what is missing; None when it does not have that. Raises StateUnavailable."""
        while True:
            spent = self.spend(amount)
            if spent is not None:
                return spent
            if self._taking is None or self._taking.done():  # done: its callback comes next, and waiting for it would not let it
                missing = amount - (self._left.get(self._window(), 0) if self._clock.known else 0)
                if self._known_to_lack(missing):
                    return None
                self._take(wanted=max(missing, self._slice()), least=missing)
            assert self._taking is not None
            await asyncio.shield(self._taking)  # what it brings is everybody's: it goes on when this caller goes away

    def has_none_left(self) -> bool:
        """Whether it was lately seen that nothing is left, neither here nor at the ledger."""
        return self._clock.known and self._left.get(self._window(), 0) <= 0 and self._known_to_lack(1)

    def settle(self, window: Window, unspent: int) -> None:
        """Put back what a request reserved and did not use; negative: what it used beyond. An ended window stays as it is."""
        self._reservations -= 1
        if unspent and window.end_us > self._clock.now_us():
            self._left[window] = self._left.get(window, 0) + unspent

    async def upkeep(self) -> None:
        """Give back what is idle, take ahead for the next window, forget what has ended. Raises StateUnavailable."""
        if not self._clock.known:
            return
        now_us, window = self._clock.now_us(), self._window()
        for ended in [held for held in self._left if held.end_us <= now_us]:
            del self._left[ended]
        if not self._recently_used():
            await self.give_back()
        elif window.end_us - now_us <= AHEAD_US and window.next not in self._left and self._taking is None:
            await asyncio.shield(self._take(wanted=self._slice(), least=1, window=window.next))

    async def give_back(self) -> None:
        """Give back all that is held, also what is on its way here. Raises StateUnavailable, having counted it as spent."""
        if self._taking is not None:
            await asyncio.wait({self._taking})
        for window in [window for window, left in self._left.items() if left > 0]:
            held = self._left.pop(window)
            await self._ledger.give_back(self.budget, window, held)

    def resets_in_s(self) -> float:
        """How long the window that is on will last."""
        return max(0.0, (self._window().end_us - self._clock.now_us()) / 1e6)

    def _take(self, *, wanted: int, least: int, window: Window | None = None) -> asyncio.Task[None]:
        """Begin to take from the ledger. One at a time: those who wait look again when it has come."""
        self._taking = asyncio.create_task(self._taken(wanted, least, window))
        self._taking.add_done_callback(self._ended)
        return self._taking

    def _ended(self, task: asyncio.Task[None]) -> None:
        if self._taking is task:
            self._taking = None
        if not task.cancelled() and task.exception() is not None:
            self._not_ahead_until = self._clock.steady() + LACK_S  # who waited for this has its error; who needs more will ask

    async def _taken(self, wanted: int, least: int, window: Window | None) -> None:
        if not self._clock.known:
            self._clock.heard(await self._ledger.now_us())
        window = window or self._window()
        granted = await self._ledger.take(self.budget, self.limit, window, wanted=wanted, least=least)
        self._clock.heard(granted.now_us)
        if granted.amount:
            self._left[window] = self._left.get(window, 0) + granted.amount
        elif window == self._window():
            self._lacking, self._believed_until = (window, granted.left), self._clock.steady() + LACK_S

    def _may_look_ahead(self) -> bool:
        return self._clock.steady() >= self._not_ahead_until and not self._known_to_lack(1)

    def _known_to_lack(self, amount: int) -> bool:
        if self._lacking is None or self._clock.steady() >= self._believed_until:
            return False
        window, left = self._lacking
        return left < amount and window == self._window()

    def _recently_used(self) -> bool:
        return self._clock.steady() < self._used_at + IDLE_S

    def _slice(self) -> int:
        return slice_of(self.budget.quota, self.limit)

    def _window(self) -> Window:
        return window_at(self.budget.quota, self._clock.now_us())
