"""Cuts an answer before its first stop string, while it is written.

Knows text only. Engines work on token ids, and a stop string may begin or end inside a token, so the cut is made here, where the
text is first seen. The result is a function of the text alone, however it is cut into chunks: the text is read code point by code
point, the first stop string to be complete ends it (of several that complete together, the longest), and everything before that
string's first code point is the answer.
"""

from __future__ import annotations

from collections.abc import Sequence


class StopStringCutter:
    """Passes text through, holding back at most one code point less than the longest stop string."""

    def __init__(self, stops: Sequence[str]) -> None:
        """Take `stops`, non-empty strings; none at all lets everything through."""
        assert all(stops), "an empty stop string ends every answer before it begins"
        self._stops = tuple(dict.fromkeys(stops))
        self._held = ""
        self.stopped = False

    def push(self, text: str) -> str:
        """Return what of the text so far is certain to be in the answer. After a stop string: nothing, and `stopped` is true."""
        if self.stopped or not self._stops:
            return "" if self.stopped else text
        self._held += text
        cut = self._first_stop()
        if cut is not None:
            self.stopped = True
            released, self._held = self._held[:cut], ""
            return released
        keep = max(self._overlap(stop) for stop in self._stops)
        released, self._held = self._held[: len(self._held) - keep], self._held[len(self._held) - keep :]
        return released

    def end(self) -> str:
        """No more text: what was held back did not become a stop string."""
        released, self._held = self._held, ""
        return released

    def _first_stop(self) -> int | None:
        """Index where the first stop string to be complete begins."""
        found = [(start + len(stop), start) for stop in self._stops if (start := self._held.find(stop)) >= 0]
        return min(found)[1] if found else None

    def _overlap(self, stop: str) -> int:
        """Length of the longest end of the held text that is a proper beginning of `stop`."""
        longest = min(len(stop) - 1, len(self._held))
        return next((size for size in range(longest, 0, -1) if self._held.endswith(stop[:size])), 0)
