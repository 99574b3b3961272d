"""Literal phrases, many at a time.

Knows: Aho-Corasick over the lower-case view with spaces alike (Aho and Corasick 1975; `ahocorasick_rs`), and the longest end of
a text that is the beginning of a phrase. Every occurrence counts, overlapping ones too. A phrase that begins or ends with an
ASCII letter or digit does not match inside a longer word. Does not know: what a phrase means.
"""

from bisect import bisect_left
from collections.abc import Iterator, Sequence

from ahocorasick_rs import AhoCorasick

from lionrock.guardrails.normalise import Normaliser


def phrase_view(view: str) -> str:
    """Return the view in which phrases are looked for; as long as `view`."""
    lowered = view.lower()
    assert len(lowered) == len(view), "a character that folds to another length reached the view"
    return lowered.replace("\n", " ")


def normalise_phrase(phrase: str) -> str:
    """Return a phrase as it looks in the phrase view, without spaces around it."""
    return phrase_view(Normaliser().push(phrase)[0]).strip(" ")


class PhraseSet:
    """Phrases with the number of the rule that each belongs to. Immutable."""

    __slots__ = ("_automaton", "_firsts", "_owners", "_phrases", "longest")

    def __init__(self, phrases: Sequence[tuple[str, int]]) -> None:
        """Build from (normalised phrase, owner) pairs; none may be empty."""
        ordered = sorted(phrases)
        self._phrases = [phrase for phrase, _ in ordered]
        self._owners = [owner for _, owner in ordered]
        self._automaton = AhoCorasick(self._phrases, store_patterns=False)
        self._firsts = frozenset(phrase[0] for phrase in self._phrases)
        self.longest = max((len(phrase) for phrase in self._phrases), default=0)

    def find(self, text: str, start: int) -> Iterator[tuple[int, int, int]]:
        """Yield (start, end, owner) of each occurrence in `text` that begins at `start` or later. `text` is a phrase view."""
        for index, low, high in self._automaton.find_matches_as_indexes(text[start:], overlapping=True):
            if not (_joined(text, low + start) or _joined(text, high + start)):
                yield low + start, high + start, self._owners[index]

    def live_from(self, text: str, start: int) -> int:
        """Return the first position ≥ `start` from which `text` to its end begins a phrase; the length of `text` if none."""
        size, phrases = len(text), self._phrases
        for position in range(max(start, size - self.longest), size):
            if text[position] not in self._firsts or _joined(text, position):
                continue
            tail = text[position:]
            index = bisect_left(phrases, tail)
            if index < len(phrases) and phrases[index].startswith(tail):
                return position
        return size


def _joined(text: str, position: int) -> bool:
    """Whether `position` lies between two ASCII letters or digits."""
    if not 0 < position < len(text):
        return False
    before, after = text[position - 1], text[position]
    return before.isascii() and before.isalnum() and after.isascii() and after.isalnum()
