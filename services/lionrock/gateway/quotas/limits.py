"""Quotas, what they are of, and the windows of time in which they are counted. Pure.

Knows: names, limits, when a window begins and ends. Does not know: what is used (leases.py) or where that is kept (ledger.py).

A quota of requests or tokens holds for a window of the calendar: a minute of the clock, or a day in Hong Kong. So the time at which
there is room again is known exactly, and what a tenant is told can be checked by it. Two windows may be used up one right after the
other: over any sixty seconds up to twice a minute's quota may pass.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Final

MINUTE_US: Final = 60_000_000
DAY_US: Final = 86_400_000_000
HONG_KONG_US: Final = 8 * 3_600_000_000
"""Hong Kong's time is UTC+8 all year, since 1979."""


class Quota(StrEnum):
    """What is limited. The values are the names in settings, errors and tables."""

    REQUESTS_PER_MINUTE = "requests_per_minute"
    TOKENS_PER_MINUTE = "tokens_per_minute"
    DAILY_TOKENS = "daily_tokens"
    CONCURRENT_STREAMS = "concurrent_streams"


TOKEN_QUOTAS: Final = (Quota.TOKENS_PER_MINUTE, Quota.DAILY_TOKENS)
_PARTS: Final = {Quota.DAILY_TOKENS: 64}
_PARTS_OF_A_MINUTE: Final = 8


@dataclass(frozen=True, slots=True)
class Quotas:
    """Limits of a tenant, or of each caller under one grant. None: no limit."""

    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    daily_tokens: int | None = None
    concurrent_streams: int | None = None

    def limit(self, quota: Quota) -> int | None:
        """Return the limit of a quota."""
        limit = getattr(self, quota.value)
        assert limit is None or isinstance(limit, int)
        return limit

    @property
    def count_anything(self) -> bool:
        """Whether there is any limit."""
        return any(self.limit(quota) is not None for quota in Quota)

    @property
    def count_tokens(self) -> bool:
        """Whether any limit is one of tokens."""
        return any(self.limit(quota) is not None for quota in TOKEN_QUOTAS)


NO_QUOTAS: Final = Quotas()


@dataclass(frozen=True, slots=True)
class Budget:
    """What one counter is of. `principal`: the actor; empty where the counter is the whole tenant's."""

    tenant: str
    principal: str
    quota: Quota

    def __str__(self) -> str:
        """Name it as an error does."""
        whose = f"caller {self.principal}" if self.principal else f"tenant {self.tenant}"
        return f"{whose}: {self.quota}"


@dataclass(frozen=True, slots=True)
class Window:
    """A span of the store's time, [start_us, end_us), in microseconds since 1970."""

    start_us: int
    end_us: int

    @property
    def next(self) -> Window:
        """Return the window after it."""
        return Window(self.end_us, 2 * self.end_us - self.start_us)


def window_at(quota: Quota, now_us: int) -> Window:
    """Return the window of a quota at a time."""
    length_us, shift_us = (DAY_US, HONG_KONG_US) if quota is Quota.DAILY_TOKENS else (MINUTE_US, 0)
    start_us = now_us - (now_us + shift_us) % length_us
    return Window(start_us, start_us + length_us)


def slice_of(quota: Quota, limit: int) -> int:
    """How much a gateway takes at a time. It is also what is lost for the window when a gateway crashes, so a day's is finer."""
    return max(1, limit // _PARTS.get(quota, _PARTS_OF_A_MINUTE))
