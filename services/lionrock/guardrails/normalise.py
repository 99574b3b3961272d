"""The view of a text that detectors see, and the way back to the original.

Knows: which characters people use to disguise text without changing what a reader sees (full-width and compatibility forms,
invisible characters, odd spaces and dashes, foreign digits) and how each folds, one code point at a time (Unicode 17, UAX #15
NFKC; UTS #39 for the invisible ones). Does not know: what is looked for.

The view is a left-to-right function of the text: `Normaliser` carries three small facts from one chunk to the next, so every
way of cutting a text gives the same view and the same offsets.
"""

import re
import unicodedata
from functools import lru_cache
from typing import Final

# A longer run of characters that vanish is not a disguise that we see through but a break, so that what a stream holds back is
# bounded in original code points too. No emoji or script needs as many.
MAX_DROPPED: Final = 32
# Stands for MAX_DROPPED invisible characters in a row. A noncharacter: folded away where a text brings its own.
INVISIBLE_RUN: Final = "\uffff"

# Runs that are their own view: printable ASCII with single spaces, kana, Han, CJK punctuation.
_PLAIN: Final = re.compile("(?: ?[!-~\u3001-\u3020\u3041-\u3096\u30a1-\u30fe\u3400-\u4dbf\u4e00-\u9fff\U00020000-\U0002a6df])+")
_LINE_BREAKS: Final = frozenset("\n\r\v\f\x1c\x1d\x1e\x85\u2028\u2029")
# Default-ignorable code points that are not in category Cf.
_INVISIBLE: Final = frozenset(
    [
        *(0x034F, 0x115F, 0x1160, 0x17B4, 0x17B5, 0x2800, 0x3164, 0xFFA0),
        *(*range(0x180B, 0x1810), *range(0xFE00, 0xFE10), *range(0xE0100, 0xE01F0), *range(0xE0000, 0xE0080)),
    ]
)
_FOLDS: Final = {
    **dict.fromkeys("\u2010\u2011\u2012\u2013\u2014\u2015\u2212\ufe58\ufe63\uff0d", "-"),
    **dict.fromkeys("\u2018\u2019\u201b\u02bc\uff07", "'"),
    # Characters whose lower case has another length or depends on its neighbours: the lower-case view must stay aligned.
    "\u0130": "I",
    "\u03a3": "\u03c3",
    "\u03c2": "\u03c3",
}


@lru_cache(maxsize=8192)
def fold(character: str) -> str:
    """Return what one code point contributes to the view: nothing, a space, a line break, or its folded form."""
    if character in _FOLDS:
        return _FOLDS[character]
    if character in _LINE_BREAKS:
        return "\n"
    if character.isspace():
        return " "
    code = ord(character)
    category = unicodedata.category(character)
    if category in ("Cf", "Cc") or code in _INVISIBLE:
        return ""
    if category == "Cs" or code & 0xFFFE == 0xFFFE:
        return "\ufffd"
    if category == "Nd":
        return str(unicodedata.digit(character))
    folded = unicodedata.normalize("NFKC", character)
    return "".join(_FOLDS.get(c, " " if c.isspace() else c) for c in folded)


class Normaliser:
    """Folds a text that arrives in pieces. Total: any `str` is accepted, lone surrogates too."""

    __slots__ = ("_after_space", "_dropped", "_raw")

    def __init__(self) -> None:
        self._raw = 0
        self._dropped = 0
        self._after_space = False

    def push(self, text: str) -> tuple[str, list[int]]:
        """Return the view of `text` and, for each of its characters, the offset in the original text (from its very start).

        Spaces in a row become the first of them. A character that folds to several gives each the same offset.
        """
        view: list[str] = []
        raw_at: list[int] = []
        position, base = 0, self._raw
        while position < len(text):
            run = _PLAIN.match(text, position)
            if run is not None and not (self._after_space and text[position] == " "):
                end = run.end()
                view.append(text[position:end])
                raw_at.extend(range(base + position, base + end))
                self._dropped, self._after_space = 0, False
                position = end
                continue
            folded = fold(text[position])
            space = folded in (" ", "\n")
            if folded and not (space and self._after_space):
                self._dropped, self._after_space = 0, space
            else:
                self._dropped += 1
                folded = ""
                if self._dropped == MAX_DROPPED:
                    folded, self._dropped, self._after_space = ("\n", 0, True) if space else (INVISIBLE_RUN, 0, False)
            view.append(folded)
            raw_at.extend([base + position] * len(folded))
            position += 1
        self._raw = base + len(text)
        return "".join(view), raw_at
