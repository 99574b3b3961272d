"""The time that leaves state, and that retention counts from.

Knows: where it comes from. Everything that writes or judges such times asks the logs (`AuditLogs.now_us`), which were opened
with one clock: a replay of a day moves one clock, and no time is ever compared with one of another clock. What only measures how
long something takes uses the monotonic clock, and is no business of this module.
"""

import time
from collections.abc import Callable

ClockUs = Callable[[], int]
"""Microseconds since 1970."""


def wall_clock_us() -> int:
    """Time of the machine."""
    return time.time_ns() // 1000
