r"""Bounded regular expressions, and the expression of everything that can still grow into a match.

Knows: a subset of RE2's syntax in which every match has a greatest length: literals, escapes, classes, groups, alternation,
`?`, `{n}` and `{n,m}`. A space matches a line break, too. No `*`, `+`, `{n,}`, anchors, captures or flags. From the syntax tree
of a pattern it derives the pattern of its prefixes: a stream holds back text from `s` on exactly while the text from `s` to its
end is a prefix of a match. Does not know: texts. Source: the prefix language of a regular language is regular (Hopcroft and
Ullman 1979, exercise 3.4).

    pre(xy) = x pre(y) | pre(x)        pre(x|y) = pre(x) | pre(y)        pre(x{m,n}) = x{0,n-1} pre(x)
"""

from dataclasses import dataclass
from typing import Final

# RE2 refuses larger repeat counts; a stream may hold back as many characters, no more.
MAX_LENGTH: Final = 256
MAX_SOURCE: Final = 4096
MAX_DEPTH: Final = 16
_SPECIAL: Final = frozenset("\\[](){}|?*+.^$")
_CLASS_ESCAPES: Final = frozenset("dDsSwW")


class PatternInvalid(ValueError):
    """The pattern is outside the bounded subset. The message says where and why."""


@dataclass(frozen=True, slots=True)
class Atom:
    """One character: a literal, an escape or a class. `word`: it can only be an ASCII letter or digit."""

    source: str
    word: bool


@dataclass(frozen=True, slots=True)
class Sequence:
    """One after the other."""

    items: tuple["Node", ...]


@dataclass(frozen=True, slots=True)
class Choice:
    """One of several."""

    items: tuple["Node", ...]


@dataclass(frozen=True, slots=True)
class Repeat:
    """Between `least` and `most` times."""

    item: "Node"
    least: int
    most: int


Node = Atom | Sequence | Choice | Repeat


def parse(source: str) -> Node:
    """Parse a bounded pattern. Raises PatternInvalid, also for one that matches nothing at all or more than MAX_LENGTH."""
    if len(source) > MAX_SOURCE:
        raise PatternInvalid(f"pattern is longer than {MAX_SOURCE} characters")
    parser = _Parser(source)
    node = parser.choice(0)
    if parser.position != len(source):
        raise PatternInvalid(f"unexpected {source[parser.position]!r} at {parser.position}")
    least, most = lengths(node)
    if least == 0:
        raise PatternInvalid("pattern matches the empty text")
    if most > MAX_LENGTH:
        raise PatternInvalid(f"pattern matches up to {most} characters, more than {MAX_LENGTH}")
    return node


def lengths(node: Node) -> tuple[int, int]:
    """Return the least and the greatest length of a match in characters."""
    match node:
        case Atom():
            return 1, 1
        case Sequence(items):
            pairs = [lengths(item) for item in items]
            return sum(p[0] for p in pairs), sum(p[1] for p in pairs)
        case Choice(items):
            pairs = [lengths(item) for item in items]
            return min(p[0] for p in pairs), max(p[1] for p in pairs)
        case Repeat(item, least, most):
            low, high = lengths(item)
            return low * least, high * most


def starts_with_word(node: Node) -> bool:
    """Whether every match begins with an ASCII letter or digit."""
    match node:
        case Atom(_, word):
            return word
        case Sequence(items):
            for item in items:
                if not starts_with_word(item):
                    return False
                if lengths(item)[0] > 0:
                    return True
            return False
        case Choice(items):
            return all(starts_with_word(item) for item in items)
        case Repeat(item):
            return starts_with_word(item)


def render(node: Node) -> str:
    """Return the pattern in RE2 syntax, without captures."""
    match node:
        case Atom(source):
            return source
        case Sequence(items):
            return "".join(f"(?:{render(item)})" if isinstance(item, Choice) else render(item) for item in items)
        case Choice(items):
            return "|".join(render(item) for item in items)
        case Repeat(item, least, most):
            return f"{_group(item)}{{{least},{most}}}"


def prefixes(node: Node) -> str:
    """Return the RE2 pattern of all prefixes of all matches, the empty one and the matches themselves included."""
    return _prefixes(node, "")


def _group(node: Node) -> str:
    return render(node) if isinstance(node, Atom) else f"(?:{render(node)})"


def _prefixes(node: Node, rest: str) -> str:
    """Return the prefixes of `node` followed by something whose prefixes are `rest`."""
    match node:
        case Atom(source):
            return f"(?:{source}{rest})?"
        case Sequence(items):
            for item in reversed(items):
                rest = _prefixes(item, rest)
            return rest
        case Choice(items):
            own = f"(?:{'|'.join(_prefixes(item, '') for item in items)})"
            return f"(?:{_group(node)}{rest}|{own})" if rest else own
        case Repeat(item, least, most):
            own = f"{_group(item)}{{0,{most - 1}}}{_prefixes(item, '')}"
            return f"(?:{_group(item)}{{{least},{most}}}{rest}|{own})" if rest else own


class _Parser:
    """Recursive descent over one pattern."""

    def __init__(self, source: str) -> None:
        self.source = source
        self.position = 0

    def _peek(self) -> str:
        return self.source[self.position : self.position + 1]

    def choice(self, depth: int) -> Node:
        if depth > MAX_DEPTH:
            raise PatternInvalid(f"groups are nested deeper than {MAX_DEPTH}")
        items = [self._sequence(depth)]
        while self._peek() == "|":
            self.position += 1
            items.append(self._sequence(depth))
        return items[0] if len(items) == 1 else Choice(tuple(items))

    def _sequence(self, depth: int) -> Node:
        items: list[Node] = []
        while self._peek() not in ("", "|", ")"):
            items.append(self._repeat(self._item(depth)))
        return items[0] if len(items) == 1 else Sequence(tuple(items))

    def _item(self, depth: int) -> Node:
        start, character = self.position, self._peek()
        if character == "(":
            self.position += 3 if self.source.startswith("(?:", start) else 1
            if self._peek() == "?":
                raise PatternInvalid(f"only plain groups are supported, at {start}")
            node = self.choice(depth + 1)
            if self._peek() != ")":
                raise PatternInvalid(f"group opened at {start} is not closed")
            self.position += 1
            return node
        if character == "[":
            return self._class()
        if character == "\\":
            return self._escape()
        self.position += 1
        if character == ".":
            return Atom("[^\\n]", word=False)
        if character in _SPECIAL:
            reason = "is unbounded: use {n,m}" if character in "*+" else "is not supported here"
            raise PatternInvalid(f"{character!r} at {start} {reason}")
        return Atom("[ \\n]" if character == " " else character, word=_word(character))

    def _escape(self) -> Atom:
        start = self.position
        escaped = self.source[start + 1 : start + 2]
        if escaped == "x" and self.source.startswith("{", start + 2):
            end = self.source.find("}", start)
            digits = self.source[start + 3 : end]
            if end < 0 or not 1 <= len(digits) <= 6 or any(c not in "0123456789abcdefABCDEF" for c in digits):
                raise PatternInvalid(f"bad code point at {start}")
            self.position = end + 1
            return Atom(self.source[start : end + 1], word=False)
        self.position += 2
        if escaped in _CLASS_ESCAPES or escaped == "n":
            return Atom("\\" + escaped, word=escaped == "d")
        if not escaped or escaped.isalnum():
            raise PatternInvalid(f"escape at {start} is not supported")
        return Atom("\\" + escaped, word=False)

    def _class(self) -> Atom:
        start = self.position
        position = start + 1
        negated = self.source.startswith("^", position)
        position += negated
        word = not negated
        first = position
        while position < len(self.source) and (self.source[position] != "]" or position == first):
            character = self.source[position]
            if character == "[" and self.source.startswith("[:", position):
                raise PatternInvalid(f"named classes are not supported, at {position}")
            if character == "\\":
                word = word and self.source.startswith("\\d", position)
                position += 1
            elif character == "-" and first < position and self.source[position + 1 : position + 2] != "]":
                word = word and _word_range(self.source[position - 1], self.source[position + 1 : position + 2])
            else:
                word = word and _word(character)
            position += 1
        if position >= len(self.source):
            raise PatternInvalid(f"class opened at {start} is not closed")
        self.position = position + 1
        return Atom(self.source[start : self.position], word=word)

    def _repeat(self, item: Node) -> Node:
        if self._peek() == "?":
            self.position += 1
            return Repeat(item, 0, 1)
        if self._peek() != "{":
            return item
        start = self.position
        end = self.source.find("}", start)
        least, comma, most = self.source[start + 1 : end].partition(",") if end > 0 else ("", "", "")
        most = most if comma else least
        if not (least.isascii() and least.isdigit() and most.isascii() and most.isdigit() and len(least) < 4 and len(most) < 4):
            raise PatternInvalid(f"repetition at {start} must be {{n}} or {{n,m}}")
        if int(least) > int(most) or int(most) == 0:
            raise PatternInvalid(f"repetition at {start} is empty")
        self.position = end + 1
        return Repeat(item, int(least), int(most))


def _word(character: str) -> bool:
    return character.isascii() and character.isalnum()


def _word_range(low: str, high: str) -> bool:
    return any(a <= low <= high <= b for a, b in (("0", "9"), ("A", "Z"), ("a", "z")))
