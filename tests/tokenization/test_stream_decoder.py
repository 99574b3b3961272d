"""The streaming decoder: whole-text decoding, however the ids are cut, and never a part of a character."""

from __future__ import annotations

from functools import cache
from time import perf_counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lionrock.modelstore.vocabulary import MAX_TOKEN_ID, bytes_of_spelling
from lionrock.tokenization.codec_errors import TokenIdUnknown, TokenizerUnsupported
from lionrock.tokenization.stream_decoder import StreamDecoder
from lionrock.tokenization.token_bytes import TokenBytes
from real_tokenizers import Served, served


@cache
def known_ids(name: str) -> list[int]:
    return sorted(set(served(name).reference.get_vocab(with_added_tokens=True).values()))


def draw_ids(data: st.DataObject, real: Served) -> list[int]:
    """Ids at random, those of texts that end in the middle of characters, and control tokens among them."""
    anything = st.sampled_from(known_ids(real.name))
    control = st.sampled_from(sorted(real.codec.control_tokens))
    broken = st.text("你好🀄👨‍👩‍👧é\ufffd", min_size=1, max_size=4).flatmap(lambda text: st.sampled_from(real.encode(text)))
    return data.draw(st.lists(st.one_of(anything, control, broken, broken), max_size=24))


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_every_chunking_gives_the_text_of_the_reference(real: Served, data: st.DataObject) -> None:
    ids = draw_ids(data, real)
    expected = real.reference.decode(ids, skip_special_tokens=True)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(ids)), max_size=8)))
    decoder = real.codec.stream_decoder()
    pieces = [decoder.push(ids[a:b]) for a, b in zip([0, *cuts], [*cuts, len(ids)], strict=True)]
    assert "".join(pieces) + decoder.end() == expected
    assert real.codec.decode(ids) == expected


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_text_that_was_released_is_never_taken_back(real: Served, data: st.DataObject) -> None:
    ids = draw_ids(data, real)
    decoder, released = real.codec.stream_decoder(), ""
    for index, token_id in enumerate(ids):
        released += decoder.push([token_id])
        whole = real.codec.decode(ids[: index + 1])
        # At most three bytes are held back: one character that may become whole, or three that turn out to be broken.
        assert whole.startswith(released)
        assert len(whole) - len(released) <= 3


@given(text=st.text(st.characters(exclude_categories=["Cs"]), max_size=40))
def test_whole_characters_come_out_as_soon_as_they_are_whole(real: Served, text: str) -> None:
    ids = real.encode(text)
    decoder = real.codec.stream_decoder()
    streamed = "".join(decoder.push([token_id]) for token_id in ids)
    assert streamed == real.reference.decode(ids)
    assert decoder.end() == ""


def test_spaces_at_the_beginning_stay(real: Served) -> None:
    for text in (" hello", "  hello", "\n hello", "\u3000你好"):
        decoder = real.codec.stream_decoder()
        assert "".join(decoder.push([token_id]) for token_id in real.encode(text)) + decoder.end() == text


def test_broken_character_is_held_back_and_released_at_the_end(real: Served) -> None:
    first, *rest = "🀄".encode()
    byte_ids = {
        bytes_of_spelling(token): i for token, i in real.reference.get_vocab(with_added_tokens=False).items() if len(token) == 1
    }
    decoder = real.codec.stream_decoder()
    assert decoder.push([byte_ids[bytes([first])]]) == ""
    assert [decoder.push([byte_ids[bytes([byte])]]) for byte in rest] == ["", "", "🀄"]
    decoder.push([byte_ids[bytes([first])], byte_ids[bytes([rest[0]])]])
    assert decoder.end() == "\ufffd"
    assert decoder.end() == ""


def test_unknown_id_is_refused_and_takes_nothing_with_it(smollm2: Served) -> None:
    decoder = smollm2.codec.stream_decoder()
    ids = smollm2.encode("hello")
    for wrong in (49_152, 2**32 - 1, -1):
        with pytest.raises(TokenIdUnknown) as refused:
            decoder.push([*ids, wrong])
        assert refused.value.token_id == wrong
    assert decoder.push(ids) + decoder.end() == "hello"


def test_ids_between_the_known_ones_are_unknown() -> None:
    table = TokenBytes({0: "a", 2: "b"}, set())
    assert len(table) == 3
    assert table.join([0, 2]) == b"ab"
    with pytest.raises(TokenIdUnknown):
        table.join([1])


@pytest.mark.parametrize("token_id", [-1, MAX_TOKEN_ID + 1])
def test_ids_out_of_range_are_refused_while_loading(token_id: int) -> None:
    with pytest.raises(TokenizerUnsupported):
        TokenBytes({token_id: "a"}, set())


@given(st.binary(max_size=64))
def test_any_bytes_decode_as_all_at_once(raw: bytes) -> None:
    table = TokenBytes(dict(enumerate(map(spelling_of_byte, range(256)))), set())
    decoder = StreamDecoder(table)
    assert "".join(decoder.push([byte]) for byte in raw) + decoder.end() == raw.decode("utf-8", "replace")


def spelling_of_byte(byte: int) -> str:
    """GPT-2's spelling, found by searching: the inverse of what the module does."""
    return next(chr(code) for code in range(0x21, 0x144) if code != 0xAD and bytes_of_spelling(chr(code)) == bytes([byte]))


def test_a_token_costs_the_same_late_in_an_answer_as_early(smollm2: Served) -> None:
    ids = smollm2.encode("The quick brown fox 香港 jumps 🀄 over. ") * 500
    decoder = smollm2.codec.stream_decoder()

    def seconds(part: list[int]) -> float:
        began = perf_counter()
        for token_id in part:
            decoder.push([token_id])
        return perf_counter() - began

    tenth = len(ids) // 10
    early = min(seconds(ids[:tenth]) for _ in range(3))
    seconds(ids)
    late = min(seconds(ids[:tenth]) for _ in range(3))
    assert late < 5 * early
