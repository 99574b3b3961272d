"""How far a rank's load is: lines for the log, and a percentage for whoever waits for it."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

log = logging.getLogger("lionrock.inference")

_LINE_SHARE = 0.1
_LINE_EVERY_S = 5.0


class LoadProgress:
    """Told (elements read, elements in all) after every tensor; logs a line at every tenth, and every five seconds in between."""

    def __init__(self, rank: int, weight_bytes: int, now_s: Callable[[], float] = time.monotonic) -> None:
        """weight_bytes: of the rank's weights by the plan."""
        self._rank = rank
        self._weight_bytes = weight_bytes
        self._now_s = now_s
        self._begin_s = self._line_s = now_s()
        self._next_share = _LINE_SHARE
        self.percent = 0
        """Of the weights read, rounded down."""

    def __call__(self, done: int, total: int) -> None:
        """Note a tensor."""
        share, now_s = done / total, self._now_s()
        self.percent = 100 * done // total
        if share < self._next_share and now_s - self._line_s < _LINE_EVERY_S:
            return
        took_s = max(now_s - self._begin_s, 1e-9)
        read_mb = share * self._weight_bytes / 1e6
        log.info(
            "rank %d has read %.0f of %.0f MB of weights (%d %%), %.0f MB/s",
            self._rank, read_mb, self._weight_bytes / 1e6, self.percent, read_mb / took_s,
        )  # fmt: skip
        self._line_s = now_s
        self._next_share = (int(share / _LINE_SHARE + 1e-9) + 1) * _LINE_SHARE
