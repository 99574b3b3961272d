"""When a failed call may be made again. Pure.

Only where the server says that it is safe: UNAVAILABLE or RESOURCE_EXHAUSTED with RetryInfo, and nothing of the answer received.
A call that reached no gateway carries no RetryInfo and is not repeated here: gRPC itself repeats what provably never left this
machine.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from lionrock.client.errors import CallError, ResourceExhausted, Unavailable


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """`max_attempts` counts the first one; 1 never repeats. `max_wait_s`: a server that asks for more is not waited for."""

    max_attempts: int = 3
    max_wait_s: float = 10.0
    jitter: float = 0.5

    def wait_s(self, error: CallError, attempt: int, *, received: bool, left_s: float, random: Callable[[], float]) -> float | None:
        """Seconds to wait before attempt `attempt` + 1; None: do not repeat.

        `received`: whether any message of the answer came. `left_s`: time until the caller's deadline. `random`: uniform in [0, 1).
        The wait is the server's, lengthened by up to `jitter` of itself so that many callers do not come back together.
        """
        if received or attempt >= self.max_attempts or not isinstance(error, Unavailable | ResourceExhausted):
            return None
        if error.retry_after_s is None:
            return None
        wait_s = error.retry_after_s * (1 + self.jitter * random())
        return wait_s if wait_s <= self.max_wait_s and wait_s < left_s else None
