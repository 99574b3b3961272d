"""Finds the first stop string to be complete in an answer's bytes, token by token.

A stop string may begin and end inside tokens and inside a character's bytes, so it is sought in the bytes that the tokens stand
for: Knuth–Morris–Pratt for each string, at most a few steps a byte and string whatever the text is. UTF-8 synchronises itself, so
what is found in bytes is what is found in text. Of several strings that are complete at the same byte, the longest counts, as in
the gateway that cuts the text.

Knows bytes; no tokens' ids, no text.
"""

from __future__ import annotations

from collections.abc import Sequence as Seq


class StopStrings:
    """The search in one answer."""

    __slots__ = ("_failures", "_matched", "_patterns", "_stops", "found")

    def __init__(self, stops: Seq[str]) -> None:
        """Take non-empty strings without unpaired surrogates."""
        assert all(stops), "an empty stop string ends every answer before it begins"
        self._stops = sorted(dict.fromkeys(stops), key=lambda stop: len(stop.encode()), reverse=True)
        self._patterns = [stop.encode() for stop in self._stops]
        self._failures = [_failures(pattern) for pattern in self._patterns]
        self._matched = [0] * len(self._patterns)
        self.found: str | None = None
        """The first stop string to be complete; then the search is over."""

    def push(self, token: bytes) -> str | None:
        """Go on with a token's bytes; returns `found`."""
        if self.found is not None:
            return self.found
        first_end = len(token) + 1
        for index, pattern in enumerate(self._patterns):
            matched, failures = self._matched[index], self._failures[index]
            for end, byte in enumerate(token, start=1):
                while matched and pattern[matched] != byte:
                    matched = failures[matched - 1]
                if pattern[matched] == byte:
                    matched += 1
                if matched == len(pattern):
                    if end < first_end:  # longest first: an equal end is a shorter string's
                        first_end, self.found = end, self._stops[index]
                    matched = failures[matched - 1]
            self._matched[index] = matched
        return self.found


def _failures(pattern: bytes) -> list[int]:
    """Length of the longest proper prefix that is a suffix, for each prefix of the pattern."""
    failures = [0] * len(pattern)
    matched = 0
    for index in range(1, len(pattern)):
        while matched and pattern[matched] != pattern[index]:
            matched = failures[matched - 1]
        if pattern[matched] == pattern[index]:
            matched += 1
        failures[index] = matched
    return failures
