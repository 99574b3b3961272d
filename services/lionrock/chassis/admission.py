"""How many RPCs a server serves at once, in all and for each caller.

Knows counts, not gRPC. One caller's idle streams use up that caller's share and no more; what is refused costs nothing that lasts.
"""

from __future__ import annotations

import asyncio
from collections.abc import Hashable

from lionrock.chassis.errors import Overloaded, ShuttingDown

RETRY_AFTER_S = 1.0


class Admission:
    """Counts running RPCs. Used from one event loop."""

    def __init__(self, *, limit: int, limit_per_caller: int) -> None:
        self._limit = limit
        self._limit_per_caller = limit_per_caller
        self._running: dict[Hashable, int] = {}
        self._total = 0
        self._idle = asyncio.Event()
        self._idle.set()

    @property
    def running(self) -> int:
        """RPCs that run now."""
        return self._total

    def enter(self, caller: Hashable, limit_per_caller: int | None = None) -> None:
        """Count one more RPC of a caller. Raises Overloaded, having counted nothing."""
        mine = self._running.get(caller, 0)
        if mine >= (limit_per_caller or self._limit_per_caller):
            raise Overloaded(
                "the caller has as many calls running as it may",
                retry_after_s=RETRY_AFTER_S,
                quota_violations=[("caller", "concurrent calls of one caller")],
            )
        if self._total >= self._limit:
            raise Overloaded(
                "the server is busy", retry_after_s=RETRY_AFTER_S, quota_violations=[("server", "concurrent calls of all callers")]
            )
        self._running[caller] = mine + 1
        self._total += 1
        self._idle.clear()

    def leave(self, caller: Hashable) -> None:
        """Count one RPC of a caller less."""
        left = self._running[caller] - 1
        if left:
            self._running[caller] = left
        else:
            del self._running[caller]
        self._total -= 1
        if not self._total:
            self._idle.set()

    async def idle(self) -> None:
        """Wait until no RPC runs."""
        await self._idle.wait()


def shutting_down() -> ShuttingDown:
    """Return what a draining server answers to new RPCs."""
    return ShuttingDown("the server is shutting down", retry_after_s=RETRY_AFTER_S)
