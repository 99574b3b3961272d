"""Which ids no text of a stranger may produce, and where a rendered template spells them.

Every token that a tokenizer adds beside its model (Hugging Face's `added_tokens`) is a control token, whether or not it is
flagged "special": DeepSeek-V3 does not flag `<｜User｜>`, nor Qwen3 `<tool_call>`. The exception is an unflagged one that ordinary
encoding yields anyway. Matching is Hugging Face's: leftmost, longest; but within the spans alone that the template wrote.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from functools import lru_cache

from lionrock.tokenization.traced_text import TracedText

_CACHED_LITERALS = 1024


class ControlTokens:
    """The control tokens of one tokenizer."""

    def __init__(self, id_of_spelling: Mapping[str, int]) -> None:
        """Take every control token's spelling and id."""
        self._ids = dict(id_of_spelling)
        longest_first = sorted((spelling for spelling in self._ids if spelling), key=len, reverse=True)
        self._pattern = re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")
        self._find = lru_cache(_CACHED_LITERALS)(self._find_in_literal)

    @property
    def spellings(self) -> Mapping[int, str]:
        """Every control token's spelling by its id."""
        return {token_id: spelling for spelling, token_id in self._ids.items()}

    def split(self, text: TracedText) -> Iterator[int | str]:
        """Yield the control tokens that the template wrote as ids, and the text between them, not empty, as str; in order."""
        at = 0
        for start, end, token_id in self._matches(text):
            if start > at:
                yield str.__getitem__(text, slice(at, start))
            yield token_id
            at = end
        if at < len(text):
            yield str.__getitem__(text, slice(at, len(text)))

    def written_by_template(self, text: TracedText) -> list[int]:
        """Return the control tokens within the template's spans, in order."""
        return [token_id for _, _, token_id in self._matches(text)]

    def spelled_anywhere(self, text: str) -> list[int]:
        """Return the control tokens that the text spells, whoever wrote it, in order."""
        return [self._ids[match.group()] for match in self._pattern.finditer(text)]

    def _matches(self, text: TracedText) -> Iterator[tuple[int, int, int]]:
        for start, end in text.spans:
            for first, last, token_id in self._find(str.__getitem__(text, slice(start, end))):
                yield start + first, start + last, token_id

    def _find_in_literal(self, literal: str) -> tuple[tuple[int, int, int], ...]:
        return tuple((match.start(), match.end(), self._ids[match.group()]) for match in self._pattern.finditer(literal))
