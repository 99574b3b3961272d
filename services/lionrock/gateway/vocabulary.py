"""What tokens spell: a model's vocabulary as its tokenization service states it, in pages, fetched when they are first needed.

An answer's ids become text here, and not by asking for each few of them: a page never changes for one tokenizer digest, so after
the first answers nothing is asked any more. Knows pages and bytes; no models' names, no wire.
"""

from __future__ import annotations

import codecs
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Collection, Sequence
from typing import Final

from lionrock.gateway.peer_errors import from_inference, protocol_violation

PAGE: Final = 1024
MAX_PAGES: Final = 2048
"""Of one tokenizer: two million ids, more than any vocabulary has. Ids beyond are asked for again, and the oldest pages go."""
MAX_VOCABULARIES: Final = 8

Spell = Callable[[Sequence[int]], Awaitable[Sequence[bytes | None]]]
"""Returns the bytes of token ids, None for those that the model does not have."""


class Vocabulary:
    """The tokens of one tokenizer."""

    def __init__(self) -> None:
        self._pages: OrderedDict[int, Sequence[bytes | None]] = OrderedDict()

    async def spell(self, token_ids: Sequence[int], fetch: Spell) -> list[bytes]:
        """Return the bytes of each id; `fetch` asks for pages that are not here yet.

        Raises InferenceUnavailable for an id that the model does not have, and what `fetch` raises.
        """
        for number in sorted({token_id // PAGE for token_id in token_ids} - self._pages.keys()):
            page = await fetch(range(number * PAGE, (number + 1) * PAGE))
            while len(self._pages) >= MAX_PAGES:
                self._pages.popitem(last=False)
            self._pages[number] = page
        return [self._known(token_id) for token_id in token_ids]

    def _known(self, token_id: int) -> bytes:
        page = self._pages.get(token_id // PAGE)
        spelled = None if page is None else page[token_id % PAGE]
        if spelled is None:
            raise from_inference(protocol_violation("UNKNOWN_TOKEN_ID"))
        return spelled


class Vocabularies:
    """The vocabularies of one tokenization service, by digest of the tokenizer; the least recently used one goes."""

    def __init__(self) -> None:
        self._known: OrderedDict[str, Vocabulary] = OrderedDict()

    def of(self, digest: str) -> Vocabulary:
        """Return the vocabulary of a tokenizer, as far as it is known."""
        found = self._known.setdefault(digest, Vocabulary())
        self._known.move_to_end(digest)
        while len(self._known) > MAX_VOCABULARIES:
            self._known.popitem(last=False)
        return found


class AnswerDecoder:
    """Turns one answer's ids into text, piece by piece, and never gives a part of a character.

    What is held back is the beginning of a character that may still become whole: at most three bytes. So the text, however its ids
    come, is that of all ids at once, where broken characters become U+FFFD (Unicode 16.0, section 3.9).
    """

    def __init__(self, vocabulary: Vocabulary, fetch: Spell) -> None:
        self._vocabulary = vocabulary
        self._fetch = fetch
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    async def spell(self, token_ids: Collection[int]) -> list[bytes]:
        """Return the bytes of ids, which need not be of the answer. Raises as Vocabulary.spell."""
        return await self._vocabulary.spell(tuple(token_ids), self._fetch)

    async def push(self, token_ids: Sequence[int]) -> str:
        """Return the text that these ids make certain. Raises like spell."""
        return self._decoder.decode(b"".join(await self.spell(token_ids)))

    def end(self) -> str:
        """Return what was held back: U+FFFD for a broken character, else nothing."""
        return self._decoder.decode(b"", final=True)
