r"""The regular expressions that constraints may use, checked and put into a spelling that the grammar compiler takes literally.

ECMAScript syntax and meaning, matched against the whole answer: literals, escapes, classes, groups, alternation and repetition.
Look-around, back-references, flags, word boundaries, Unicode properties, and anchors anywhere but at the two ends are refused,
because the compiler would refuse them, or ignore them and let a wrong answer through. Every class is resolved to ranges of code
points here, so that `.` leaves out line ends, and, inside a JSON string, no class lets through what JSON must escape.

Knows no grammar and no tokens. Source: ECMA-262, §22.2.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

Ranges = tuple[tuple[int, int], ...]
"""Code points as inclusive ranges in ascending order, disjoint."""

_LAST = 0x10FFFF
_SURROGATES: Ranges = ((0xD800, 0xDFFF),)
_DIGITS: Ranges = ((0x30, 0x39),)
_WORD: Ranges = ((0x30, 0x39), (0x41, 0x5A), (0x5F, 0x5F), (0x61, 0x7A))
_SPACE: Ranges = (
    (0x09, 0x0D), (0x20, 0x20), (0xA0, 0xA0), (0x1680, 0x1680), (0x2000, 0x200A), (0x2028, 0x2029), (0x202F, 0x202F),
    (0x205F, 0x205F), (0x3000, 0x3000), (0xFEFF, 0xFEFF),
)  # fmt: skip
_LINE_ENDS: Ranges = ((0x0A, 0x0A), (0x0D, 0x0D), (0x2028, 0x2029))
_ESCAPED_IN_JSON: Ranges = ((0x00, 0x1F), (0x22, 0x22), (0x5C, 0x5C))

_CLASSES = {"d": _DIGITS, "w": _WORD, "s": _SPACE}
_CONTROLS = {"n": 0x0A, "t": 0x09, "r": 0x0D, "f": 0x0C, "v": 0x0B, "0": 0x00}
_SYNTAX = frozenset("^$\\.*+?()[]{}|/-")
_MAX_REPETITION = 100_000


class UnsupportedRegex(ValueError):
    """The expression is malformed or outside the subset. `position`: code points before the offending one."""

    def __init__(self, position: int, why: str) -> None:
        super().__init__(position, why)
        self.position = position
        self.why = why

    def __str__(self) -> str:
        return f"{self.why} (at character {self.position + 1})"


def canonical_regex(source: str, *, in_json_string: bool = False) -> str:
    """Return an expression of the same meaning without anchors and with explicit classes.

    in_json_string: it will match the inside of a JSON string, where no character may need an escape. Raises UnsupportedRegex.
    """
    return _Scanner(source, _ESCAPED_IN_JSON if in_json_string else ()).expression()


@dataclass(slots=True)
class _Scanner:
    """One pass over an expression."""

    source: str
    excluded: Ranges
    at: int = 0
    depth: int = 0

    def expression(self) -> str:
        source, out = self.source, []
        end = len(source)
        if source.startswith("^"):
            self.at = 1
        if source.endswith("$") and not _is_escaped(source, end - 1):
            end -= 1
        if (self.at or end < len(source)) and _has_top_level_alternative(source):
            raise UnsupportedRegex(0, "an anchor binds tighter than |; put the alternatives into a group")
        repeatable = False
        while self.at < end:
            begin, character = self.at, source[self.at]
            self.at += 1
            if character in "*+?{":
                if not repeatable:
                    raise UnsupportedRegex(begin, "nothing to repeat")
                out.append(self._repetition(begin))
                repeatable = False
                continue
            repeatable = True
            if character == "(":
                out.append(self._open(begin))
                repeatable = False
            elif character == ")":
                self.depth -= 1
                if self.depth < 0:
                    raise UnsupportedRegex(begin, "unbalanced )")
                out.append(")")
            elif character == "|":
                out.append("|")
                repeatable = False
            elif character in "^$":
                raise UnsupportedRegex(begin, "an anchor stands elsewhere than at the ends")
            elif character in "]}":
                raise UnsupportedRegex(begin, f"unbalanced {character}")
            else:
                out.append(self._set(begin, self._atom(begin, character)))
        if self.depth:
            raise UnsupportedRegex(len(source), "unbalanced (")
        return "".join(out)

    def _open(self, begin: int) -> str:
        self.depth += 1
        if self.source.startswith("?", self.at):
            if not self.source.startswith("?:", self.at):
                raise UnsupportedRegex(begin, "look-around, names and flags of groups are not supported")
            self.at += 2
        return "(?:" if self.source[begin:].startswith("(?:") else "("

    def _repetition(self, begin: int) -> str:
        source = self.source
        if source[begin] == "{":
            close = source.find("}", self.at)
            bounds = source[self.at : close].split(",") if close > 0 else []
            counts = [bound for bound in bounds if bound]
            if not 1 <= len(bounds) <= 2 or not bounds[0] or not all(c.isascii() and c.isdecimal() for c in counts):
                raise UnsupportedRegex(begin, "a repetition is {n}, {n,} or {n,m}")
            numbers = [int(count[:9]) for count in counts]
            if max(numbers) > _MAX_REPETITION or numbers != sorted(numbers):
                raise UnsupportedRegex(begin, f"a repetition has ascending bounds of at most {_MAX_REPETITION}")
            self.at = close + 1
        repetition = source[begin : self.at]
        if source.startswith("?", self.at):  # lazy: the same language
            self.at += 1
        return repetition

    def _atom(self, begin: int, character: str) -> Ranges:
        if character == ".":
            return _complement(_LINE_ENDS)
        if character == "[":
            return self._class(begin)
        if character == "\\":
            return self._escape(begin)
        return _one(ord(character))

    def _class(self, begin: int) -> Ranges:
        source = self.source
        negated = source.startswith("^", self.at)
        self.at += negated
        found: list[tuple[int, int]] = []
        while not source.startswith("]", self.at):
            first = self._member(begin)
            if source.startswith("-", self.at) and not source.startswith("-]", self.at):
                at, self.at = self.at, self.at + 1
                last = self._member(begin)
                if _single(first) is None or _single(last) is None or first[0][0] > last[0][0]:
                    raise UnsupportedRegex(at, "a range in a class has ascending ends that are single characters")
                found.append((first[0][0], last[0][0]))
            else:
                found += first
        self.at += 1
        return _complement(_union(found)) if negated else _union(found)

    def _member(self, begin: int) -> Ranges:
        if self.at >= len(self.source):
            raise UnsupportedRegex(begin, "unbalanced [")
        character = self.source[self.at]
        self.at += 1
        if character != "\\":
            return _one(ord(character))
        if self.source.startswith("b", self.at):
            self.at += 1
            return _one(0x08)
        return self._escape(self.at - 1)

    def _escape(self, begin: int) -> Ranges:
        if self.at >= len(self.source):
            raise UnsupportedRegex(begin, "the expression ends inside an escape")
        character = self.source[self.at]
        self.at += 1
        if character in _CLASSES:
            return _CLASSES[character]
        if character.lower() in _CLASSES:
            return _complement(_CLASSES[character.lower()])
        if character in "xu":
            return self._hexadecimal(begin, 2 if character == "x" else 4)
        if character in _CONTROLS and not (character == "0" and self.source[self.at : self.at + 1].isdecimal()):
            return _one(_CONTROLS[character])
        if character in _SYNTAX or (character.isascii() and not character.isalnum() and character.isprintable()):
            return _one(ord(character))
        raise UnsupportedRegex(begin, "this escape is not supported")

    def _hexadecimal(self, begin: int, digits: int) -> Ranges:
        text = self.source[self.at : self.at + digits]
        if len(text) != digits or not all(digit in "0123456789abcdefABCDEF" for digit in text):
            raise UnsupportedRegex(begin, "this escape needs hexadecimal digits")
        self.at += digits
        return _one(int(text, 16))

    def _set(self, begin: int, ranges: Ranges) -> str:
        allowed = _minus(ranges, _union([*self.excluded, *_SURROGATES]))
        if not allowed:
            why = "no character that stands for itself in a JSON string matches here" if self.excluded else "nothing matches here"
            raise UnsupportedRegex(begin, why)
        single = _single(allowed)
        if single is not None and chr(single).isascii() and chr(single).isalnum():
            return chr(single)
        return "[" + "".join(_spelt(a) if a == b else f"{_spelt(a)}-{_spelt(b)}" for a, b in allowed) + "]"


def _spelt(code_point: int) -> str:
    if code_point > 0xFFFF:
        return chr(code_point)
    character = chr(code_point)
    return character if character.isascii() and character.isalnum() else f"\\u{code_point:04x}"


def _is_escaped(source: str, at: int) -> bool:
    backslashes = at - len(source[:at].rstrip("\\"))
    return backslashes % 2 == 1


def _has_top_level_alternative(source: str) -> bool:
    depth, at, in_class = 0, 0, False
    while at < len(source):
        character = source[at]
        if character == "\\":
            at += 1
        elif in_class:
            in_class = character != "]"
        elif character == "[":
            in_class = True
        elif character in "()":
            depth += 1 if character == "(" else -1
        elif character == "|" and depth == 0:
            return True
        at += 1
    return False


def _one(code_point: int) -> Ranges:
    return ((code_point, code_point),)


def _single(ranges: Sequence[tuple[int, int]]) -> int | None:
    return ranges[0][0] if len(ranges) == 1 and ranges[0][0] == ranges[0][1] else None


def _union(ranges: Iterable[tuple[int, int]]) -> Ranges:
    merged: list[tuple[int, int]] = []
    for first, last in sorted(ranges):
        if merged and first <= merged[-1][1] + 1:
            merged[-1] = (merged[-1][0], max(merged[-1][1], last))
        else:
            merged.append((first, last))
    return tuple(merged)


def _complement(ranges: Ranges) -> Ranges:
    out, begin = [], 0
    for first, last in ranges:
        if begin < first:
            out.append((begin, first - 1))
        begin = last + 1
    if begin <= _LAST:
        out.append((begin, _LAST))
    return tuple(out)


def _minus(ranges: Ranges, excluded: Ranges) -> Ranges:
    allowed, out = _complement(excluded), []
    for first, last in ranges:
        out += [(max(first, a), min(last, b)) for a, b in allowed if max(first, a) <= min(last, b)]
    return tuple(out)
