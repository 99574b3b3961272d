"""Waits for a condition by asking again until a deadline; what tests use where others sleep."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


class NeverHappened(AssertionError):
    """A condition did not come true before its deadline. The message says which, and what was seen last."""


def wait_for(
    look: Callable[[], T | None],
    what: str,
    *,
    timeout_s: float = 30,
    interval_s: float = 0.05,
    seen: Callable[[], object] | None = None,
) -> T:
    """Return the first true thing that `look` returns. seen: what the failure shows. Raises NeverHappened.

    An AssertionError of `look` counts as "not yet", and the last one is shown.
    """
    deadline = time.monotonic() + timeout_s
    last: AssertionError | None = None
    while True:
        try:
            if result := look():
                return result
            last = None
        except AssertionError as error:
            last = error
        if time.monotonic() > deadline:
            shown = seen() if seen is not None else last
            raise NeverHappened(
                f"{what}: not within {timeout_s:g} s{f'; last seen: {shown}' if shown is not None else ''}"
            ) from last
        time.sleep(interval_s)
