"""What a detector is: shapes that RE2 finds, and a check in Python of what it found.

Knows: the border between both. A shape is a bounded pattern over the normalised view; the check sees the matched text and the
text before it, and nothing after it, so that a verdict is certain as soon as the match cannot grow. What a check needs to know
of the following text, its shape must match. Does not know: any identifier.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from lionrock.guardrails.patterns import Node, parse

# Characters of the view before a match that its check may look at.
CONTEXT_LENGTH: Final = 48


@dataclass(frozen=True, slots=True)
class Shape:
    """A bounded pattern. `before`/`after`: an ASCII letter or digit there forbids the match."""

    pattern: Node
    before: bool
    after: bool
    ignore_case: bool = True


@dataclass(frozen=True, slots=True)
class Hit:
    """What a check found at the start of a match. `end` counts characters of the match, at least 1; confidence is 0 to 1."""

    end: int
    confidence: float


Check = Callable[[str, str], Hit | None]


@dataclass(frozen=True, slots=True)
class Detector:
    """A named detector. `check(match, context)` gets at most CONTEXT_LENGTH characters of context, all of them before the match."""

    name: str
    shapes: tuple[Shape, ...]
    check: Check


def shape(pattern: str, *, before: bool = True, after: bool = True) -> Shape:
    """Parse a shape. Raises PatternInvalid."""
    return Shape(parse(pattern), before, after)


def digits_of(text: str) -> str:
    """Return the ASCII digits of `text` in order."""
    return "".join(c for c in text if "0" <= c <= "9")


def group_ends(text: str) -> list[int]:
    """Return where groups of digits end in `text`, longest prefix first: "12 34-5" → [7, 5, 2]."""
    return [i for i in range(len(text), 0, -1) if text[i - 1].isdigit() and (i == len(text) or not text[i].isalnum())]
