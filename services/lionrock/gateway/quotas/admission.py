"""Lets requests in within their quotas, and settles what they really used.

Knows: which budgets a caller's request counts on (the tenant's, and its own where the grant has quotas), in which order, and that a
refused request counts on none. Does not know: how shares come about (leases.py, places.py), what a request is.

A request is counted and its place filled when it comes; its tokens are reserved when the prompt has been counted, as prompt plus
the most that may be answered, and settled when it ends. Used from one event loop.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Final

from lionrock.gateway.quotas.leases import StoreClock, WindowShare
from lionrock.gateway.quotas.ledger import QuotaLedger, Use
from lionrock.gateway.quotas.limits import TOKEN_QUOTAS, Budget, Quota, Window
from lionrock.gateway.quotas.places import PlaceShare
from lionrock.gateway.state.store import StateUnavailable
from lionrock.gateway.tenants import Principal

log = logging.getLogger("lionrock.gateway")

UPKEEP_S: Final = 0.5
_LAST_WORDS_S: Final = 10.0


class QuotaExceededError(Exception):
    """A quota leaves no room. `retry_after_s`: when there is room again; None: this request never fits."""

    def __init__(self, budget: Budget, limit: int, retry_after_s: float | None, what: str) -> None:
        super().__init__(f"{budget}: {what}")
        self.budget = budget
        self.limit = limit
        self.retry_after_s = retry_after_s
        self.what = what


@dataclass(slots=True, eq=False)
class Reservation:
    """What one request has taken. Given to `settle` exactly once."""

    principal: Principal
    began_at: float
    places: list[PlaceShare] = field(default_factory=list)
    requests: list[tuple[WindowShare, Window]] = field(default_factory=list)
    tokens: list[tuple[WindowShare, Window, int]] = field(default_factory=list)


class QuotaAdmission:
    """The quotas of one gateway."""

    def __init__(self, ledger: QuotaLedger | None, clock: StoreClock | None = None) -> None:
        """`ledger`: None where no tenant has quotas; a request of one that has is refused then."""
        self._ledger = ledger
        self._clock = clock or StoreClock()
        self._windows: dict[Budget, WindowShare] = {}
        self._places: dict[Budget, PlaceShare] = {}

    async def admit(self, principal: Principal) -> Reservation:
        """Count a request and fill its places. Raises QuotaExceededError, StateUnavailable, having counted nothing then."""
        reservation = Reservation(principal, self._clock.steady())
        try:
            for budget, limit in _budgets(principal, Quota.CONCURRENT_STREAMS):
                place = self._place(budget, limit)
                if not (place.enter() or await place.hold_and_enter()):
                    raise QuotaExceededError(budget, limit, place.retry_after_s(), f"{limit} open answers at most")
                reservation.places.append(place)
            for budget, limit in _budgets(principal, *TOKEN_QUOTAS):
                share = self._window(budget, limit)
                if share.has_none_left():  # before the guardrails and the tokenizer work for nothing
                    raise QuotaExceededError(budget, limit, share.resets_in_s(), f"{limit} tokens at most, and all are used")
            for budget, limit in _budgets(principal, Quota.REQUESTS_PER_MINUTE):
                share = self._window(budget, limit)
                window = share.spend(1) or await share.take_and_spend(1)
                if window is None:
                    raise QuotaExceededError(budget, limit, share.resets_in_s(), f"{limit} requests a minute at most")
                reservation.requests.append((share, window))
        except BaseException:
            self._undo(reservation)
            raise
        return reservation

    async def reserve_tokens(self, reservation: Reservation, amount: int) -> None:
        """Reserve the most that a request may use. Raises QuotaExceededError, StateUnavailable; its tokens are as before then."""
        reserved: list[tuple[WindowShare, Window, int]] = []
        try:
            for budget, limit in _budgets(reservation.principal, *TOKEN_QUOTAS):
                share = self._window(budget, limit)
                if amount > limit:
                    what = f"{limit} tokens at most, and prompt and answer may have {amount}: ask for fewer max_tokens"
                    raise QuotaExceededError(budget, limit, None, what)
                window = share.spend(amount) or await share.take_and_spend(amount)
                if window is None:
                    what = f"{limit} tokens at most, and fewer are left than the {amount} that prompt and answer may have"
                    raise QuotaExceededError(budget, limit, share.resets_in_s(), what)
                reserved.append((share, window, amount))
        except BaseException:
            for share, window, held in reserved:
                share.settle(window, held)
            raise
        reservation.tokens += reserved

    def settle(self, reservation: Reservation, used_tokens: int) -> None:
        """Free the places of a request that has ended, and put back the tokens that it reserved and did not use."""
        for place in reservation.places:
            place.leave(self._clock.steady() - reservation.began_at)
        for share, window in reservation.requests:
            share.settle(window, 0)
        for share, window, held in reservation.tokens:
            share.settle(window, held - used_tokens)
        reservation.places, reservation.requests, reservation.tokens = [], [], []

    async def use(self, principal: Principal) -> Sequence[Use]:
        """Look at what is taken of the quotas of a caller and its tenant, by all gateways. Raises StateUnavailable."""
        budgets = list(_budgets(principal, *Quota))
        if not budgets:
            return ()
        return await self._known_ledger().use(budgets)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Keep the shares while the block runs; at its end give back all that is held."""
        keeping = asyncio.create_task(self._keep(), name="lionrock-quotas")
        try:
            yield
        finally:
            keeping.cancel()
            await asyncio.wait({keeping})
            try:
                async with asyncio.timeout(_LAST_WORDS_S):
                    await self._each(lambda share: share.give_back())
            except TimeoutError:
                log.warning("stopped with shares of quotas not given back; they end by themselves")

    async def upkeep(self) -> None:
        """Renew, give back and forget, once. What the store does not do now is tried at the next turn."""
        await self._each(lambda share: share.upkeep())
        self._windows = {budget: share for budget, share in self._windows.items() if not share.idle}
        self._places = {budget: share for budget, share in self._places.items() if not share.idle}

    async def _keep(self) -> None:
        while True:
            await asyncio.sleep(UPKEEP_S)
            await self.upkeep()

    async def _each(self, do: Callable[[WindowShare | PlaceShare], Awaitable[None]]) -> None:
        shares: list[WindowShare | PlaceShare] = [*self._windows.values(), *self._places.values()]
        for share in shares:
            try:
                await do(share)
            except StateUnavailable as error:
                log.warning("a share of a quota is not kept", extra={"quota": share.budget.quota.value, "reason": str(error)})

    def _undo(self, reservation: Reservation) -> None:
        for place in reservation.places:
            place.leave(None)
        for share, window in reservation.requests:
            share.settle(window, 1)

    def _window(self, budget: Budget, limit: int) -> WindowShare:
        share = self._windows.get(budget)
        if share is None:
            share = self._windows[budget] = WindowShare(budget, limit, self._known_ledger(), self._clock)
        share.limit = limit  # which may have changed since
        return share

    def _place(self, budget: Budget, limit: int) -> PlaceShare:
        share = self._places.get(budget)
        if share is None:
            share = self._places[budget] = PlaceShare(budget, limit, self._known_ledger(), self._clock)
        share.limit = limit
        return share

    def _known_ledger(self) -> QuotaLedger:
        if self._ledger is None:
            raise StateUnavailable("there are quotas, and no state is configured to count them")
        return self._ledger


def _budgets(principal: Principal, *quotas: Quota) -> Iterator[tuple[Budget, int]]:
    """Yield what a caller's request counts on, with limits: the caller's own first, so that it learns of its own bound."""
    for whose, limits in ((principal.actor, principal.grant.quotas), ("", principal.tenant.quotas)):
        for quota in quotas:
            limit = limits.limit(quota)
            if limit is not None:
                yield Budget(principal.tenant.name, whose, quota), limit
