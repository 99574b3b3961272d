"""The rows behind quotas: how much of each window has been taken, and how many open answers each gateway may have.

Knows: statements (state/schema.py has the tables), each a transaction of its own. Does not know: what gateways do with what they
took (leases.py, places.py).

- `taken` of a window only grows, except by what the taker gives back, and never beyond the limit that the taker states.
- A row of places ends by itself at `expires_at_us`.
- A call that raises StateUnavailable may have been done. What was taken by it is lost for the window, what was given back by it may
  have stayed taken: the sum is never exceeded.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from lionrock.gateway.quotas.limits import DAY_US, MINUTE_US, Budget, Quota, Window, window_at
from lionrock.gateway.state.store import StateStore, StateTransaction

_CLOSED_AFTER_US: Final = 10 * MINUTE_US
"""A gateway whose clock stands still takes nothing from a window that ended so long ago: its row may be deleted."""
_KEPT_US: Final = 2 * DAY_US
_FORGOTTEN_AT_ONCE: Final = 256
_TAKEN: Final = "SELECT taken FROM quota_windows WHERE tenant = ? AND principal = ? AND quota = ? AND window_start_us = ?"
_TAKE: Final = """
    INSERT INTO quota_windows (tenant, principal, quota, window_start_us, taken) VALUES (?, ?, ?, ?, ?)
    ON CONFLICT (tenant, principal, quota, window_start_us) DO UPDATE SET taken = quota_windows.taken + excluded.taken"""
_GIVE_BACK: Final = """
    UPDATE quota_windows SET taken = taken - ?
    WHERE tenant = ? AND principal = ? AND quota = ? AND window_start_us = ? AND taken >= ?"""
_FORGET: Final = """
    DELETE FROM quota_windows WHERE (tenant, principal, quota, window_start_us) IN
    (SELECT tenant, principal, quota, window_start_us FROM quota_windows WHERE window_start_us < ? LIMIT ?)"""
_HOLD: Final = """
    INSERT INTO quota_places (tenant, principal, gateway, places, expires_at_us) VALUES (?, ?, ?, ?, ?)
    ON CONFLICT (tenant, principal, gateway) DO UPDATE SET places = excluded.places, expires_at_us = excluded.expires_at_us"""
_LET_GO: Final = "DELETE FROM quota_places WHERE tenant = ? AND principal = ? AND gateway = ?"
_EXPIRED: Final = "DELETE FROM quota_places WHERE tenant = ? AND principal = ? AND expires_at_us <= ?"
_PLACES: Final = "SELECT coalesce(sum(places), 0) FROM quota_places WHERE tenant = ? AND principal = ? AND expires_at_us > ?"


@dataclass(frozen=True, slots=True)
class Granted:
    """What a gateway was given, the store's time at that, and how much is left for all."""

    amount: int
    now_us: int
    left: int


@dataclass(frozen=True, slots=True)
class Use:
    """How much of a budget is taken: used, reserved by answers under way, or held by gateways for the next seconds.

    `resets_at_us`: the end of the window; None for open answers.
    """

    budget: Budget
    limit: int
    taken: int
    resets_at_us: int | None


class QuotaLedger:
    """The rows, through the shared store. Every method raises StateUnavailable."""

    def __init__(self, store: StateStore, gateway: str) -> None:
        """`gateway`: a name that no other gateway, and no earlier process of this one, has."""
        self._store = store
        self._gateway = gateway

    async def now_us(self) -> int:
        """Return the store's time."""
        return await self._store.read(lambda transaction: transaction.now_us)

    async def take(self, budget: Budget, limit: int, window: Window, *, wanted: int, least: int) -> Granted:
        """Take what is wanted from a window, or what is left of it if that is `least` or more, else nothing."""
        key = (*_key(budget), budget.quota, window.start_us)

        def work(transaction: StateTransaction) -> Granted:
            now_us = transaction.now_us
            rows = transaction.ask(_TAKEN, key)
            left = max(0, limit - (rows[0][0] if rows else 0))
            amount = min(wanted, left)
            if amount < max(1, least) or now_us >= window.end_us + _CLOSED_AFTER_US:
                return Granted(0, now_us, left)
            transaction.write(_TAKE, (*key, amount))
            if not rows:
                transaction.write(_FORGET, (now_us - _KEPT_US, _FORGOTTEN_AT_ONCE))
            return Granted(amount, now_us, left - amount)

        return await self._store.write(work)

    async def give_back(self, budget: Budget, window: Window, amount: int) -> None:
        """Give back what was taken and not used."""
        parameters = (amount, *_key(budget), budget.quota, window.start_us, amount)
        await self._store.write(lambda transaction: transaction.write(_GIVE_BACK, parameters))

    async def hold_places(self, budget: Budget, limit: int, *, in_use: int, kept: int, wanted: int, term_us: int) -> Granted:
        """Hold `wanted` places for so long from now on, or as many as others leave, instead of those held before.

        Never fewer than are `in_use`, nor than those `kept` of a hold that has not ended. 0 lets go of all.
        """
        key = _key(budget)

        def work(transaction: StateTransaction) -> Granted:
            now_us = transaction.now_us
            transaction.write(_EXPIRED, (*key, now_us))
            ((others,),) = transaction.ask(_PLACES + " AND gateway <> ?", (*key, now_us, self._gateway))
            ((own,),) = transaction.ask(_PLACES + " AND gateway = ?", (*key, now_us, self._gateway))
            left = max(0, limit - int(others))
            places = max(in_use, min(kept, int(own)), min(wanted, left))
            if places:
                transaction.write(_HOLD, (*key, self._gateway, places, now_us + term_us))
            else:
                transaction.write(_LET_GO, (*key, self._gateway))
            return Granted(places, now_us, max(0, left - places))

        return await self._store.write(work)

    async def use(self, budgets: Sequence[tuple[Budget, int]]) -> Sequence[Use]:
        """Look at budgets, each with its limit."""

        def work(transaction: StateTransaction) -> Sequence[Use]:
            return [_use(transaction, budget, limit) for budget, limit in budgets]

        return await self._store.read(work)


def _use(transaction: StateTransaction, budget: Budget, limit: int) -> Use:
    now_us = transaction.now_us
    if budget.quota is Quota.CONCURRENT_STREAMS:
        ((places,),) = transaction.ask(_PLACES, (*_key(budget), now_us))
        return Use(budget, limit, int(places), None)
    window = window_at(budget.quota, now_us)
    rows = transaction.ask(_TAKEN, (*_key(budget), budget.quota, window.start_us))
    return Use(budget, limit, rows[0][0] if rows else 0, window.end_us)


def _key(budget: Budget) -> tuple[str, str]:
    return budget.tenant, budget.principal
