"""Rules compiled for matching: an RE2 set (what could match), an RE2 (what could still grow), an automaton of phrases.

Knows: how to find every match of a set of rules in a window of the view, in linear time, and where the undecided end of the
window begins. Does not know: the original text, releases, policies' files. RE2 has no look-around: a shape's neighbours are
matched around a captured group, and what follows from the text before a match is checked in Python.
"""

from collections.abc import Iterator, Sequence
from copy import copy
from dataclasses import dataclass
from enum import IntEnum
from typing import Final, NamedTuple

import re2

from lionrock.guardrails.detectors import CONTEXT_LENGTH, Detector, Hit, Shape
from lionrock.guardrails.detectors.phrases import PhraseSet, phrase_view
from lionrock.guardrails.patterns import Node, PatternInvalid, lengths, prefixes, render, starts_with_word

_SET_MEMORY: Final = 32 << 20


class Action(IntEnum):
    """What a policy does about a finding, in rising order of severity."""

    ALLOW = 1
    MASK = 2
    REVIEW = 3
    BLOCK = 4


class DetectionFailed(RuntimeError):
    """The matcher could not decide. The text must not be released."""


@dataclass(frozen=True, slots=True)
class ActiveRule:
    """A rule of a policy for one direction and source. `phrases` are as `normalise_phrase` returns them.

    `confidence` is that of its phrases and patterns; a detector states its own. Hits below `min_confidence` are none.
    """

    id: str
    type: str
    action: Action
    placeholder: str
    confidence: float
    min_confidence: float
    detector: Detector | None
    phrases: tuple[str, ...]
    shapes: tuple[Shape, ...]

    @property
    def finding(self) -> tuple[object, ...]:
        """Everything that decides what the rule finds."""
        return self.id, self.confidence, self.min_confidence, self.detector, self.phrases, self.shapes


class Match(NamedTuple):
    """A match of rule number `rule` from `start` to `end` (characters of the window)."""

    start: int
    end: int
    rule: int
    confidence: float


class _Extractor(NamedTuple):
    rule: int
    expression: "re2._Regexp"
    before: bool


class Window:
    """A piece of the view with its UTF-8, which RE2 searches, and the way between both kinds of offset."""

    __slots__ = ("_single", "data", "view")

    def __init__(self, view: str) -> None:
        self.view = view
        self.data = view.encode()
        self._single = len(self.data) == len(view)

    def byte(self, character: int) -> int:
        """Return the byte offset of a character offset."""
        return character if self._single else len(self.view[:character].encode())

    def character(self, byte: int) -> int:
        """Return the character offset of a byte offset."""
        return byte if self._single else len(self.data[:byte].decode())


class Program:
    """Compiled rules. Immutable; threads may share it."""

    def __init__(self, rules: Sequence[ActiveRule]) -> None:
        """Compile. Raises PatternInvalid for what RE2 refuses."""
        self.rules = tuple(rules)
        self._extractors: list[_Extractor] = []
        self._prefilter = re2.Set.SearchSet(_options(_SET_MEMORY))
        live: list[str] = []
        phrases: list[tuple[str, int]] = []
        self.hold_limit = 0
        for number, rule in enumerate(self.rules):
            phrases += [(phrase, number) for phrase in rule.phrases]
            for shape in (*(rule.detector.shapes if rule.detector else ()), *rule.shapes):
                expression, growing = _expressions(shape)
                self._extractors.append(_Extractor(number, _compile(expression), shape.before))
                self._prefilter.Add(expression)
                live.append(growing)
                self.hold_limit = max(self.hold_limit, lengths(shape.pattern)[1])
        # Always matches: an answer without it means that RE2 gave up for want of memory, which it reports as "no match".
        self._sentinel = self._prefilter.Add("\\z")
        self._prefilter.Compile()
        self._live = _compile(f"(?:{'|'.join(dict.fromkeys(live))})\\z") if live else None
        self._phrases = PhraseSet(phrases) if phrases else None
        self.hold_limit = max(self.hold_limit, self._phrases.longest if self._phrases else 0)

    def acting(self, rules: Sequence[ActiveRule]) -> "Program":
        """Return this program with rules that find the same and act otherwise. Compiled rules are megabytes, actions are not."""
        assert [r.finding for r in rules] == [r.finding for r in self.rules], "rules that find something else"
        program = copy(self)
        program.rules = tuple(rules)
        return program

    @property
    def extractors(self) -> int:
        """Number of expressions, each with its own place to resume from."""
        return len(self._extractors)

    def live_from(self, window: Window, start: int) -> int:
        """Return the first position ≥ `start` from which the window to its end can grow into a match; its length if none."""
        size = len(window.view)
        if self._live is not None:
            found = self._live.search(window.data, window.byte(start))
            if found is not None:
                size = window.character(found.start())
        if self._phrases is not None:
            size = min(size, self._phrases.live_from(phrase_view(window.view), start))
        return max(size, start)

    def find(self, window: Window, start: int, end: int, resume: list[int]) -> list[Match]:
        """Return all matches that begin in [start, end), unordered, and set `resume[i]` to where expression i goes on.

        `start` is at least 1: every match has a neighbour before it. Matches of one expression do not overlap; `resume` holds
        where its last one ended. Raises DetectionFailed.
        """
        matches: list[Match] = []
        low = window.byte(start - 1)
        candidates = self._prefilter.Match(window.data[low:])
        if candidates is None or self._sentinel not in candidates:
            raise DetectionFailed("the prefilter ran out of memory")
        for index in candidates:
            if index != self._sentinel:
                matches.extend(self._extract(window, index, max(start, resume[index]), end, resume))
        if self._phrases is not None:
            for first, last, rule in self._phrases.find(phrase_view(window.view), start):
                confidence = self.rules[rule].confidence
                if first < end and confidence >= self.rules[rule].min_confidence:
                    matches.append(Match(first, last, rule, confidence))
        return matches

    def _extract(self, window: Window, index: int, start: int, end: int, resume: list[int]) -> Iterator[Match]:
        number, expression, before = self._extractors[index]
        rule, data = self.rules[number], window.data
        position, limit = window.byte(start), window.byte(end)
        while position < limit:
            found = expression.search(data, _previous(data, position) if before else position)
            if found is None:
                return
            low, high = found.span(1)
            if low >= limit:
                return
            first = window.character(low)
            text = data[low:high].decode()
            if rule.detector is not None:
                hit = rule.detector.check(text, window.view[max(first - CONTEXT_LENGTH, 0) : first])
            else:
                hit = Hit(len(text), rule.confidence)
            if hit is None or hit.confidence < rule.min_confidence:
                position = _next(data, low)
                continue
            yield Match(first, first + hit.end, number, hit.confidence)
            resume[index] = first + hit.end
            position = window.byte(first + hit.end)


def check_pattern(pattern: Node) -> None:
    """Raise PatternInvalid for what RE2 refuses, such as a range from b to a."""
    _compile(render(pattern))


def _expressions(shape: Shape) -> tuple[str, str]:
    """Return the RE2 source that extracts a shape (group 1) and the one that matches what can grow into it."""
    pattern = render(shape.pattern)
    growing = prefixes(shape.pattern)
    if shape.ignore_case:
        pattern, growing = f"(?i:{pattern})", f"(?i:{growing})"
    left = "[^0-9A-Za-z]" if shape.before else ""
    right = r"(?:\z|[^0-9A-Za-z])" if shape.after else ""
    if shape.before and starts_with_word(shape.pattern):
        # RE2's word boundary takes "_" for a letter and we do not; holding back one "_" too many is harmless.
        growing = rf"(?:\b|_){growing}"
    return f"{left}({pattern}){right}", growing


def _options(memory: int) -> re2.Options:
    options = re2.Options()
    options.max_mem = memory
    options.log_errors = False
    return options


def _compile(expression: str) -> "re2._Regexp":
    try:
        return re2.compile(expression, _options(_SET_MEMORY))
    except re2.error as error:
        raise PatternInvalid("RE2 refuses the pattern") from error


def _previous(data: bytes, position: int) -> int:
    """Return the offset of the character before `position`."""
    position = max(position - 1, 0)
    while position > 0 and data[position] & 0xC0 == 0x80:
        position -= 1
    return position


def _next(data: bytes, position: int) -> int:
    """Return the offset of the character after the one at `position`."""
    position += 1
    while position < len(data) and data[position] & 0xC0 == 0x80:
        position += 1
    return position
