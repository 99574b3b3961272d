"""Ids to text by pages of a vocabulary: the same text however ids come, and each page asked for once."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lionrock.gateway import vocabulary
from lionrock.gateway.errors import InferenceUnavailable
from lionrock.gateway.vocabulary import PAGE, AnswerDecoder, Vocabularies, Vocabulary

SIZE = 3 * PAGE
HOLE = 7


def token(token_id: int) -> bytes | None:
    """A vocabulary of single bytes and of characters, with a hole."""
    if token_id == HOLE or token_id >= SIZE:
        return None
    return bytes([token_id]) if token_id < 256 else chr(0x4E00 + token_id).encode()


class Service:
    """Spells tokens, and notes for which it was asked."""

    def __init__(self) -> None:
        self.asked: list[int] = []

    async def spell(self, token_ids: Sequence[int]) -> list[bytes | None]:
        self.asked += token_ids
        return [token(token_id) for token_id in token_ids]


ids = st.lists(st.integers(0, SIZE - 1).filter(lambda token_id: token_id != HOLE), max_size=40)


@given(ids, st.lists(st.integers(0, 40), max_size=6))
async def test_every_cutting_gives_the_text_of_all_ids_at_once(token_ids: list[int], cuts: list[int]) -> None:
    service = Service()
    decoder = AnswerDecoder(Vocabulary(), service.spell)
    bounds = sorted({0, len(token_ids), *(cut for cut in cuts if cut < len(token_ids))})
    pieces = [await decoder.push(token_ids[start:end]) for start, end in pairwise(bounds)]
    assert "".join(pieces) + decoder.end() == b"".join(token(token_id) or b"" for token_id in token_ids).decode("utf-8", "replace")


async def test_a_page_is_asked_for_once_whoever_needs_it() -> None:
    service, known = Service(), Vocabularies()
    for _ in range(3):
        await AnswerDecoder(known.of("sha256:1"), service.spell).push([72, PAGE + 1])
    assert service.asked == list(range(2 * PAGE))
    await AnswerDecoder(known.of("sha256:2"), service.spell).push([72])
    assert len(service.asked) == 3 * PAGE


@pytest.mark.parametrize("unknown", [HOLE, SIZE, 2**32 - 1])
async def test_an_id_that_the_model_does_not_have_is_the_engines_fault(unknown: int) -> None:
    decoder = AnswerDecoder(Vocabulary(), Service().spell)
    with pytest.raises(InferenceUnavailable):
        await decoder.push([72, unknown])


async def test_vocabularies_and_their_pages_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vocabulary, "MAX_PAGES", 2)
    service, known = Service(), Vocabulary()
    for token_id in (0, PAGE, 2 * PAGE, 0):
        assert await known.spell([token_id], service.spell) == [token(token_id)]
    assert len(service.asked) == 4 * PAGE  # the first page had to go

    vocabularies = Vocabularies()
    first = vocabularies.of("sha256:0")
    for number in range(1, vocabulary.MAX_VOCABULARIES + 1):
        vocabularies.of(f"sha256:{number}")
    assert vocabularies.of("sha256:0") is not first
