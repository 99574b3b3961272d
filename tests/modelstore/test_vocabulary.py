"""The bytes of token ids: as the tokenizer's own files say, from GGUF and tokenizer.json alike, and unmoved by hostile files."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lionrock.modelstore.errors import ModelFileMissing, ModelFormatUnsupported, ModelStoreError
from lionrock.modelstore.source import ModelFiles, locate
from lionrock.modelstore.vocabulary import MAX_TOKEN_ID, Vocabulary, read_vocabulary
from models import smollm2_path

TOKENS = ["<|end|>", "a", "Ġb", "ä½łå", "¥½", "<think>", "[unused]"]
KINDS = [3, 1, 1, 1, 1, 4, 5]
BYTES = [b"", b"a", b" b", "你好".encode()[:4], "你好".encode()[4:], b"<think>", b""]
DOCUMENT: dict[str, Any] = {
    "model": {"type": "BPE", "vocab": {token: index for index, token in enumerate(TOKENS[:5])}, "merges": []},
    "decoder": {"type": "ByteLevel", "use_regex": True},
    "added_tokens": [
        {"id": 0, "content": "<|end|>", "special": True},
        {"id": 5, "content": "<think>", "special": False},
    ],
}


def gguf_files(path: Path, gguf: Callable[..., bytes], **changes: Any) -> ModelFiles:
    names = {"model": "gpt2", "tokens": TOKENS, "token_type": KINDS, **changes}
    path.write_bytes(gguf({f"tokenizer.ggml.{name}": value for name, value in names.items()}))
    return ModelFiles("small", "gguf", (path,), path.parent)


def hugging_face_files(directory: Path, document: Any) -> ModelFiles:
    (directory / "tokenizer.json").write_text(json.dumps(document))
    return ModelFiles("small", "safetensors", (), directory)


def test_gguf_and_tokenizer_json_say_the_same(tmp_path: Path, gguf: Callable[..., bytes]) -> None:
    for vocabulary in (
        read_vocabulary(gguf_files(tmp_path / "m.gguf", gguf)),
        read_vocabulary(hugging_face_files(tmp_path, DOCUMENT)),
    ):
        assert [vocabulary.bytes_of(token_id) for token_id in range(7)] == BYTES
        assert vocabulary.special_ids == {0}
        assert vocabulary.join([3, 0, 4]).decode() == "你好"


def test_ids_that_no_token_has_stand_for_nothing_and_cannot_be_joined(tmp_path: Path, gguf: Callable[..., bytes]) -> None:
    vocabulary = read_vocabulary(gguf_files(tmp_path / "m.gguf", gguf))
    for token_id in (-1, 6, 7, MAX_TOKEN_ID):
        assert vocabulary.bytes_of(token_id) == b""
        with pytest.raises(KeyError):
            vocabulary.join([1, token_id])


def test_a_real_models_tokens_stand_for_their_text() -> None:
    vocabulary = read_vocabulary(locate("smollm2", smollm2_path()))
    assert len(vocabulary) == 49152
    assert vocabulary.join([1, 4093, 198, 504, 3575, 282, 4649, 314]).decode() == "user\nThe capital of France is"
    assert {vocabulary.bytes_of(token_id) for token_id in range(len(vocabulary))} >= {bytes([byte]) for byte in range(0x20, 0x7F)}


@pytest.mark.parametrize(
    "change",
    [
        {"model": {**DOCUMENT["model"], "type": "Unigram"}},
        {"model": {**DOCUMENT["model"], "byte_fallback": True}},
        {"decoder": {"type": "Metaspace"}},
        {"decoder": {"type": "Sequence", "decoders": [{"type": "ByteLevel"}, {"type": "Strip"}]}},
        {"added_tokens": [{"id": MAX_TOKEN_ID + 1, "content": "x", "special": False}]},
        {"added_tokens": [{"id": -1, "content": "x", "special": False}]},
    ],
)
def test_what_is_not_byte_level_is_refused(tmp_path: Path, change: dict[str, Any]) -> None:
    with pytest.raises(ModelFormatUnsupported):
        read_vocabulary(hugging_face_files(tmp_path, DOCUMENT | change))


def test_a_sentencepiece_gguf_is_refused(tmp_path: Path, gguf: Callable[..., bytes]) -> None:
    with pytest.raises(ModelFormatUnsupported):
        read_vocabulary(gguf_files(tmp_path / "m.gguf", gguf, model="llama"))


def test_a_directory_without_a_tokenizer_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelFileMissing):
        read_vocabulary(ModelFiles("small", "safetensors", (), tmp_path))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 1 << 40) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


@settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(path=st.sampled_from(["model", "decoder", "added_tokens", "model.vocab", "model.type", "decoder.type"]), value=JSON)
def test_any_other_layout_of_tokenizer_json_is_a_named_error(tmp_path: Path, path: str, value: Any) -> None:
    document = json.loads(json.dumps(DOCUMENT))
    *parents, last = path.split(".")
    holder = document
    for parent in parents:
        holder = holder[parent]
    holder[last] = value
    try:
        vocabulary = read_vocabulary(hugging_face_files(tmp_path, document))
    except ModelStoreError:
        return
    assert all(isinstance(vocabulary.bytes_of(token_id), bytes) for token_id in range(min(len(vocabulary), 50)))


@settings(deadline=None, max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    name=st.sampled_from(["model", "tokens", "token_type"]),
    value=st.just([]) | st.lists(st.integers(-9, 9), min_size=1) | st.text(),
)
def test_any_other_gguf_metadata_is_a_named_error(tmp_path: Path, gguf: Callable[..., bytes], name: str, value: Any) -> None:
    files = gguf_files(tmp_path / "m.gguf", gguf, **{name: value})
    if value == "gpt2" or (name == "token_type" and isinstance(value, list) and len(value) == len(TOKENS)):
        read_vocabulary(files)
        return
    with pytest.raises(ModelStoreError):
        read_vocabulary(files)


def test_the_bytes_of_all_tokens_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lionrock.modelstore.vocabulary.MAX_VOCABULARY_BYTES", 10)
    with pytest.raises(ModelFormatUnsupported):
        Vocabulary({0: "abcdef", 1: "ghijkl"})
