"""Text that remembers which of its characters the chat template wrote.

A chat template writes control tokens as text among the text of the messages, and only their origin tells them apart. `TracedText`
is a str that carries the spans that came from the template's own literals through what templates do with strings: concatenation,
slicing, stripping, splitting, replacing, joining. Every other operation of str yields an ordinary str, whose characters count as
a stranger's: what this module does not follow loses its privilege and never gains one.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, SupportsIndex

Span = tuple[int, int]


class TracedText(str):
    """A str with the spans (start, end), sorted, disjoint and not adjacent, that the template wrote."""

    __slots__ = ("spans",)
    spans: tuple[Span, ...]

    def __new__(cls, text: str, spans: tuple[Span, ...] = ()) -> TracedText:
        """Label `text`; `spans` are the template's."""
        self = super().__new__(cls, text)
        self.spans = spans
        return self

    @classmethod
    def literal(cls, text: str) -> TracedText:
        """Text that the template wrote itself."""
        return cls(text, ((0, len(text)),) if text else ())

    def __str__(self) -> str:
        """Keep the labels: Jinja passes what it prints through str()."""
        return self

    def __add__(self, other: str) -> TracedText:
        return concatenate((self, other))

    def __radd__(self, other: str) -> TracedText:
        return concatenate((other, self))

    def __getitem__(self, key: SupportsIndex | slice) -> TracedText:
        text = super().__getitem__(key)
        if isinstance(key, slice):
            start, stop, step = key.indices(len(self))
            return self._cut(start, stop) if step == 1 else TracedText(text)
        index = key.__index__()
        index += len(self) if index < 0 else 0
        return self._cut(index, index + 1)

    def _cut(self, start: int, stop: int) -> TracedText:
        spans = tuple((max(a, start) - start, min(b, stop) - start) for a, b in self.spans if a < stop and b > start)
        return TracedText(super().__getitem__(slice(start, stop)), spans)

    def strip(self, chars: str | None = None, /) -> TracedText:
        """As str.strip."""
        return self.lstrip(chars).rstrip(chars)

    def lstrip(self, chars: str | None = None, /) -> TracedText:
        """As str.lstrip."""
        return self._cut(len(self) - len(super().lstrip(chars)), len(self))

    def rstrip(self, chars: str | None = None, /) -> TracedText:
        """As str.rstrip."""
        return self._cut(0, len(super().rstrip(chars)))

    def removeprefix(self, prefix: str, /) -> TracedText:
        """As str.removeprefix."""
        return self._cut(len(prefix) if self.startswith(prefix) else 0, len(self))

    def removesuffix(self, suffix: str, /) -> TracedText:
        """As str.removesuffix."""
        return self._cut(0, len(self) - (len(suffix) if suffix and self.endswith(suffix) else 0))

    def split(self, sep: str | None = None, maxsplit: SupportsIndex = -1) -> list[TracedText]:  # type: ignore[override]
        """As str.split."""
        return list(self._parts(super().split(sep, maxsplit), sep))

    def rsplit(self, sep: str | None = None, maxsplit: SupportsIndex = -1) -> list[TracedText]:  # type: ignore[override]
        """As str.rsplit."""
        return list(self._parts(super().rsplit(sep, maxsplit), sep))

    def splitlines(self, keepends: bool = False) -> list[TracedText]:  # type: ignore[override]
        """As str.splitlines."""
        parts, at = [], 0
        for with_end, part in zip(super().splitlines(True), super().splitlines(keepends), strict=True):
            parts.append(self._cut(at, at + len(part)))
            at += len(with_end)
        return parts

    def partition(self, sep: str, /) -> tuple[TracedText, TracedText, TracedText]:
        """As str.partition."""
        return self._three(self.find(sep), sep, found_nothing=(len(self), len(self)))

    def rpartition(self, sep: str, /) -> tuple[TracedText, TracedText, TracedText]:
        """As str.rpartition."""
        return self._three(self.rfind(sep), sep, found_nothing=(0, 0))

    def replace(self, old: str, new: str, count: SupportsIndex = -1, /) -> str:
        """As str.replace. An empty `old`, which interleaves, loses the labels."""
        if not old:
            return super().replace(old, new, count)
        return TracedText.literal("").join_with(new, self.split(old, count))

    def join(self, parts: Iterable[str], /) -> TracedText:
        """As str.join."""
        return self.join_with(self, parts)

    @staticmethod
    def join_with(separator: str, parts: Iterable[str]) -> TracedText:
        """Join with a separator that may be an ordinary str."""
        return concatenate(_interleaved(separator, parts))

    def _parts(self, parts: Iterable[str], sep: str | None) -> Iterator[TracedText]:
        """Find the parts of a split again, from left to right, to give them their labels."""
        at = 0
        for part in parts:
            if sep is None:
                at = self.index(part, at)
            yield self._cut(at, at + len(part))
            at += len(part) + (0 if sep is None else len(sep))

    def _three(self, at: int, sep: str, found_nothing: Span) -> tuple[TracedText, TracedText, TracedText]:
        start, end = (at, at + len(sep)) if at >= 0 else found_nothing
        if not sep:
            raise ValueError("empty separator")
        return self._cut(0, start), self._cut(start, end), self._cut(end, len(self))


def _interleaved(separator: str, parts: Iterable[str]) -> Iterator[str]:
    for index, part in enumerate(parts):
        if index:
            yield separator
        yield part


def concatenate(parts: Iterable[Any]) -> TracedText:
    """Join parts, str or TracedText, and their labels: what `"".join` is for str. Raises TypeError for anything else."""
    texts = list(parts)
    spans: list[Span] = []
    at = 0
    for text in texts:
        if isinstance(text, TracedText):
            for start, end in text.spans:
                if spans and spans[-1][1] == at + start:
                    spans[-1] = (spans[-1][0], at + end)
                else:
                    spans.append((at + start, at + end))
        at += len(text)
    return TracedText("".join(texts), tuple(spans))
