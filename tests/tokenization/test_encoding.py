"""Encoding: equal to Hugging Face's libraries on ordinary text, and no way from a stranger's text to a control token."""

from __future__ import annotations

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from lionrock.tokenization.chat_template import Message
from lionrock.tokenization.codec import Codec, open_codec
from lionrock.tokenization.codec_errors import TextNotUnicode, TooManyTokens
from models import TOKENIZERS, Unavailable, tokenizer_directory
from real_tokenizers import Served, served

CONVERSATIONS = [
    [Message("user", "今日金管局出咗啲咩新指引？我想知對我哋間銀行有咩影響。")],
    [Message("user", "请把这份合同的要点总结成三条，每条不超过二十个字。\n\n第一条：甲方应于2026年11月30日前付款。")],
    [Message("user", "Summarise the circular dated 23 November 2026 in 3 bullet points; don't omit §4.2(b).")],
    [
        Message("system", "你係一間香港銀行嘅合規助手，答案要簡短。"),
        Message("user", "我個客戶存咗HK$1,234,567.89現金，使唔使申報？"),
        Message("assistant", "視乎情況。\n1. 先了解資金來源。\n2. 如有懷疑，向JFIU申報。"),
        Message("user", "  唔該晒！  Thanks a lot 🙏🏽  "),
    ],
    [
        Message("system", ""),
        Message("user", " \n\t mixed  spaces\r\n\r\n and\u3000全形空格 "),
        Message("assistant", "def f(x):\n    return x ** 2\n"),
        Message("user", "1234567890 ١٢٣ Ⅷ ½ café e\u0301 ﬁ 👨‍👩‍👧‍👦"),
    ],
]
ORDINARY = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="<>|｜"), max_size=60)


def ordinary_turns(real: Served, text: str) -> list[Message]:
    return [Message("user", text), Message("assistant", text[::-1]), Message("user", text)]


@pytest.mark.parametrize("index", range(len(CONVERSATIONS)))
def test_conversation_gets_the_ids_of_the_reference(real: Served, index: int) -> None:
    conversation = CONVERSATIONS[index]
    encoded = real.codec.encode_conversation(conversation)
    assert encoded.token_ids == real.encode(real.render(conversation))
    assert encoded.content_tokens == sum(len(real.encode(message.content)) for message in conversation)


@settings(max_examples=60, deadline=None)
@given(text=ORDINARY)
@example("")
@example(" ")
@example("\x00\x04")
@example("\U0010ffff\U000e0001")
def test_any_ordinary_text_gets_the_ids_of_the_reference(real: Served, text: str) -> None:
    assert real.codec.encode_text(text).token_ids == real.encode(text)
    turns = ordinary_turns(real, text)
    assert real.codec.encode_conversation(turns).token_ids == real.encode(real.render(turns))


@pytest.mark.parametrize("name", TOKENIZERS)
def test_ids_are_those_of_transformers_own_entry(name: str) -> None:
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(tokenizer_directory(name))
        codec = served(name).codec
    except Unavailable as reason:
        pytest.skip(str(reason))
    for conversation in CONVERSATIONS:
        turns = [{"role": message.role, "content": message.content} for message in conversation]
        expected = tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_dict=False)
        assert codec.encode_conversation(conversation).token_ids == expected


def test_encoding_known_to_the_letter(smollm2: Served) -> None:
    encoded = smollm2.codec.encode_conversation([Message("system", "Be 12."), Message("user", "Hi")])
    pieces = [smollm2.reference.id_to_token(token_id) for token_id in encoded.token_ids]
    assert pieces == [
        *("<|im_start|>", "system", "Ċ", "Be", "Ġ", "1", "2", ".", "<|im_end|>", "Ċ"),
        *("<|im_start|>", "user", "Ċ", "Hi", "<|im_end|>", "Ċ", "<|im_start|>", "ass", "istant", "Ċ"),
    ]


def control_ids(codec: Codec, token_ids: list[int]) -> list[int]:
    return [token_id for token_id in token_ids if token_id in codec.control_tokens]


def test_spelling_of_every_control_token_stays_text(real: Served) -> None:
    codec = real.codec
    empty = control_ids(codec, codec.encode_conversation(turns_of("x")).token_ids)
    for spelling in codec.control_tokens.values():
        assert control_ids(codec, codec.encode_text(spelling).token_ids) == []
        assert control_ids(codec, codec.encode_text(f"a{spelling}{spelling} b").token_ids) == []
        assert codec.decode(codec.encode_text(spelling).token_ids) == spelling
    for spelling in list(codec.control_tokens.values())[:40]:
        assert control_ids(codec, codec.encode_conversation(turns_of(spelling)).token_ids) == empty


def turns_of(text: str) -> list[Message]:
    # The assistant's turn is left out of it here: Qwen3's template reads `</think>` there and drops what stands before.
    return [Message("system", text), Message("user", text), Message("assistant", "y"), Message("user", text)]


@settings(max_examples=80, deadline=None)
@given(data=st.data())
def test_no_text_in_any_turn_adds_or_moves_a_control_token(real: Served, data: st.DataObject) -> None:
    codec = real.codec
    spellings = list(codec.control_tokens.values())
    fragments = st.one_of(
        st.sampled_from(spellings),
        st.sampled_from(spellings).flatmap(lambda text: st.integers(0, len(text)).map(lambda at: text[:at])),
        st.sampled_from(spellings).flatmap(lambda text: st.integers(0, len(text)).map(lambda at: text[at:])),
        st.sampled_from(["<", "|", ">", "｜", "<|", "|>", "\n", " ", "user", "assistant", "\u200b", "\u0338", "\x04"]),
        st.text(max_size=3),
    )
    contents = data.draw(st.lists(st.lists(fragments, max_size=6).map("".join), min_size=3, max_size=3))
    contents = [content.encode("utf-8", "ignore").decode() for content in contents]
    roles = data.draw(st.sampled_from([["user", "assistant", "user"], ["system", "user", "user"], ["user", "assistant", "tool"]]))
    hostile = [Message(role, content) for role, content in zip(roles, contents, strict=True)]
    # Not empty, so that a template that asks for emptiness goes the same way; nothing for Qwen3 to find in the assistant's turn.
    hostile = [Message(m.role, m.content.replace("think>", "") if m.role == "assistant" else m.content) for m in hostile]
    hostile = [Message(m.role, m.content + "z") for m in hostile]
    harmless = [Message(m.role, "z") for m in hostile]
    if real.name == "qwen3":  # looks whether a user's turn is a tool's answer in disguise
        hostile = [Message(m.role, "z" + m.content) for m in hostile]
    expected = control_ids(codec, codec.encode_conversation(harmless).token_ids)
    assert control_ids(codec, codec.encode_conversation(hostile).token_ids) == expected


def test_unflagged_control_tokens_of_deepseek_and_qwen_are_control_tokens_too() -> None:
    for name, spelling in (("deepseek-v3", "<｜User｜>"), ("qwen3", "<tool_call>"), ("qwen3", "</think>")):
        try:
            codec, reference = served(name).codec, served(name).reference
        except Unavailable as reason:
            pytest.skip(str(reason))
        token_id = reference.token_to_id(spelling)
        assert not reference.get_added_tokens_decoder()[token_id].special
        assert token_id in codec.control_tokens
        # Yet a model that writes it means text: `<think>` must reach who reads the answer.
        assert codec.decode([token_id]) == spelling


def test_template_transforms_contents_and_its_control_tokens_stay() -> None:
    """Qwen3 drops an earlier turn's reasoning and writes the last one's anew: with its own control tokens, whoever spelled them."""
    try:
        codec = served("qwen3").codec
    except Unavailable as reason:
        pytest.skip(str(reason))
    think, unthink = (next(i for i, text in codec.control_tokens.items() if text == spelled) for spelled in ("<think>", "</think>"))
    earlier = [Message("user", "q"), Message("assistant", "<think>\nsecret\n</think>\n\nanswer"), Message("user", "r")]
    ids = codec.encode_conversation(earlier).token_ids
    assert "secret" not in codec.decode(ids)
    assert think not in ids
    last = [Message("user", "q"), Message("assistant", "<think>\nreason\n</think>\n\nanswer")]
    ids = codec.encode_conversation(last).token_ids
    assert (ids.count(think), ids.count(unthink)) == (1, 1)
    assert "reason" in codec.decode(ids)


@given(st.text(st.characters(), max_size=20), st.characters(categories=["Cs"]))
def test_surrogates_are_refused_by_name(smollm2: Served, text: str, surrogate: str) -> None:
    with pytest.raises(TextNotUnicode):
        smollm2.codec.encode_text(text + surrogate)
    with pytest.raises(TextNotUnicode):
        smollm2.codec.encode_conversation([Message("user", surrogate + text)])
    with pytest.raises(TextNotUnicode):
        smollm2.codec.encode_conversation([Message("tool", text.replace(surrogate, ""), surrogate)])


def test_more_tokens_than_allowed_are_refused_by_number(smollm2: Served) -> None:
    codec = open_codec("smollm2", smollm2.path, max_tokens=100)
    assert len(codec.encode_text(" a" * 100).token_ids) == 100
    for refused in (lambda: codec.encode_text(" a" * 101), lambda: codec.encode_conversation([Message("user", " a" * 95)])):
        with pytest.raises(TooManyTokens) as error:
            refused()
        assert error.value.limit == 100
