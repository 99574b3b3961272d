import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lionrock.inference.engine.answer_filter import PLAIN, AnswerFilter

PIECES = st.binary(max_size=4) | st.sampled_from(
    [b'"', b"\\", b"\\u", b"00", b"1f", b"\xed", b"\xa0\x80", b"\x9f\xbf", b"\n", b'"\n', b"\\n"]
)
TOKENS = st.lists(PIECES, min_size=1, max_size=40)


def is_allowed(answers: AnswerFilter, state: int, token_id: int) -> bool:
    return bool(np.unpackbits(answers.allowed(state), bitorder="little")[token_id])


@settings(deadline=None, max_examples=200)
@given(TOKENS, st.lists(st.integers(0, 39), max_size=12), st.booleans())
def test_a_vocabularys_tokens_are_judged_as_their_bytes_one_by_one(tokens: list[bytes], path: list[int], in_json: bool) -> None:
    whole = AnswerFilter(tokens, json=in_json)
    bytewise = AnswerFilter([bytes([byte]) for byte in range(256)], json=in_json)
    state = PLAIN
    for choice in path:
        token_id = choice % len(tokens)
        after, stands = state, True
        for byte in tokens[token_id]:
            if not is_allowed(bytewise, after, byte):
                stands = False
                break
            after = bytewise.after(after, byte)
        assert is_allowed(whole, state, token_id) == stands
        if stands:
            assert whole.after(state, token_id) == after
            state = after


def verdict(raw: bytes, *, in_json: bool) -> bool:
    answers, state = AnswerFilter([bytes([byte]) for byte in range(256)], json=in_json), PLAIN
    for byte in raw:
        if not is_allowed(answers, state, byte):
            return False
        state = answers.after(state, byte)
    return True


@settings(deadline=None, max_examples=100)
@given(st.text(max_size=20))
def test_all_text_passes_where_no_json_is_asked_for(text: str) -> None:
    assert verdict(text.encode(), in_json=False)


@settings(deadline=None, max_examples=100)
@given(
    st.recursive(st.integers() | st.text(max_size=8), lambda inner: st.lists(inner) | st.dictionaries(st.text(max_size=4), inner))
)
def test_all_json_passes_as_it_is_usually_written(value) -> None:
    assert verdict(json.dumps(value, ensure_ascii=False, indent=1).encode(), in_json=True)


@pytest.mark.parametrize("character", [0xD800, 0xDC00, 0xDFFF])
@pytest.mark.parametrize("in_json", [False, True])
def test_surrogates_do_not_pass(character: int, in_json: bool) -> None:
    assert not verdict(f'"{chr(character)}"'.encode("utf-8", "surrogatepass"), in_json=in_json)


@pytest.mark.parametrize("raw", [b'"\n"', b'"a\x00', b'"\\ud83d', b'"\\u0061"', b'"\\x', b'"\\\n'])
def test_what_json_strings_must_not_hold_does_not_pass(raw: bytes) -> None:
    assert not verdict(raw, in_json=True)


@pytest.mark.parametrize("raw", [b'{"a":\n"\\u001f\\n"}\n', '"힣"'.encode()])
def test_what_json_may_hold_passes(raw: bytes) -> None:
    assert verdict(raw, in_json=True)
