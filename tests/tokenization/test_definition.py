"""What a tokenizer is: the digest that names it, the same from either kind of file, and the kinds that are refused."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf as ggml
import pytest

from lionrock.modelstore.errors import ModelFileCorrupt, ModelFileMissing, ModelStoreError
from lionrock.modelstore.vocabulary import bytes_of_spelling
from lionrock.tokenization.chat_template import Message
from lionrock.tokenization.codec import Codec, open_codec
from lionrock.tokenization.codec_errors import TokenizerUnsupported
from lionrock.tokenization.definition import read_definition
from lionrock.tokenization.gguf_tokenizer import read_gguf_definition
from models import TOKENIZERS, Unavailable, tokenizer_directory
from real_tokenizers import Served

PRE = {"deepseek-v3": "deepseek-v3", "llama-3.1": "llama-bpe", "qwen3": "qwen2"}
ADDED = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
BYTE_SPELLINGS = [chr(c) for c in range(0x21, 0x144) if c not in (0x7F, 0xAD) and not 0x80 <= c <= 0xA0]
TINY: dict[str, Any] = {
    "version": "1.0",
    "added_tokens": [{"id": 300, "content": "<|end|>", **ADDED}, {"id": 301, "content": "<|user|>", **ADDED}],
    "normalizer": None,
    "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True},
    "post_processor": None,
    "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
    "model": {
        "type": "BPE",
        "vocab": {**{spelling: index for index, spelling in enumerate(BYTE_SPELLINGS)}, "he": 256, "ll": 257},
        "merges": [["h", "e"], ["l", "l"]],
    },
}
CONFIG: dict[str, Any] = {
    "eos_token": "<|end|>",
    "chat_template": "{% for m in messages %}<|user|>{{ m.content }}<|end|>{% endfor %}",
}

Change = Callable[[dict[str, Any], dict[str, Any]], object]


def write(directory: Path, change: Change = lambda document, config: None) -> Path:
    document, config = copy.deepcopy(TINY), copy.deepcopy(CONFIG)
    change(document, config)
    directory.mkdir(exist_ok=True)
    (directory / "tokenizer.json").write_text(json.dumps(document))
    (directory / "tokenizer_config.json").write_text(json.dumps(config))
    return directory


def digest(directory: Path) -> str:
    return read_definition(directory).digest()


def test_alphabet_of_bytes_is_whole() -> None:
    assert sorted(bytes_of_spelling(spelling) for spelling in BYTE_SPELLINGS) == [bytes([byte]) for byte in range(256)]


def test_spelling_of_the_file_does_not_change_the_digest(tmp_path: Path) -> None:
    plain = digest(write(tmp_path / "a"))

    def respell(document: dict[str, Any], config: dict[str, Any]) -> None:
        document["model"]["merges"] = ["h e", "l l"]
        document["model"]["vocab"] = dict(reversed(document["model"]["vocab"].items()))
        document["normalizer"] = {"type": "Sequence", "normalizers": []}
        document["added_tokens"].reverse()
        config["eos_token"] = {"content": "<|end|>", "special": True}
        config["chat_template"] = [{"name": "rag", "template": "x"}, {"name": "default", "template": config["chat_template"]}]

    assert digest(write(tmp_path / "b", respell)) == plain
    # A known value: the digest goes into audit leaves, so its meaning may never drift.
    assert plain == "sha256:12227dae8896ccf48efe0afba8d25fa1c95b7525a74897a113e1ceaa424c564a"


@pytest.mark.parametrize(
    "change",
    [
        lambda d, c: c.update(chat_template=CONFIG["chat_template"] + " "),
        lambda d, c: c.update(eos_token="<|user|>"),
        lambda d, c: d["model"]["vocab"].update(new=258),
        lambda d, c: d["model"]["merges"].reverse(),
        lambda d, c: d["added_tokens"][0].update(special=False),
        lambda d, c: d["added_tokens"][0].update(content="<|END|>") or c.update(eos_token=None),
        lambda d, c: d.update(normalizer={"type": "NFC"}),
        lambda d, c: d["pre_tokenizer"].update(use_regex=False),
        lambda d, c: d["model"].update(ignore_merges=True),
    ],
)
def test_whatever_changes_the_ids_changes_the_digest(tmp_path: Path, change: Change) -> None:
    assert digest(write(tmp_path / "b", change)) != digest(write(tmp_path / "a"))


@pytest.mark.parametrize(
    "change",
    [
        lambda d, c: d["model"].update(type="Unigram"),
        lambda d, c: d["model"].update(byte_fallback=True),
        lambda d, c: d["model"].update(unk_token="<unk>"),
        lambda d, c: d["model"].update(dropout=0.1),
        lambda d, c: d["model"].update(end_of_word_suffix="</w>"),
        lambda d, c: d.update(decoder={"type": "WordPiece"}),
        lambda d, c: d.update(decoder=None),
        lambda d, c: d.update(normalizer={"type": "Lowercase"}),
        lambda d, c: d.update(pre_tokenizer={"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first"}),
        lambda d, c: d.update(pre_tokenizer=None),
        lambda d, c: d["added_tokens"][0].update(rstrip=True),
        lambda d, c: d["added_tokens"][0].update(single_word=True),
        lambda d, c: d["added_tokens"][0].update(id="300"),
        lambda d, c: d["added_tokens"][0].update(id=5),
        lambda d, c: d["added_tokens"][0].update(id=2**40),
        lambda d, c: d["added_tokens"].append(d["added_tokens"][0]),
        lambda d, c: d["added_tokens"][0].update(content="he"),
        lambda d, c: d["model"]["merges"].append(["x", "yy"]),
        lambda d, c: d["model"].pop("vocab"),
        lambda d, c: d["model"].update(vocab=[]),
        lambda d, c: d.update(model=None),
        lambda d, c: c.update(chat_template="{% for %}"),
        lambda d, c: c.update(chat_template="{{ raise_exception('no') }}"),
        lambda d, c: c.update(chat_template="{{ '<|USER|>'.lower() + messages[0].content }}"),
    ],
)
def test_tokenizer_that_would_not_be_exact_or_safe_is_refused_while_loading(tmp_path: Path, change: Change) -> None:
    with pytest.raises(TokenizerUnsupported):
        open_codec("m", write(tmp_path / "a", change))


def test_template_may_build_control_tokens_from_roles(tmp_path: Path) -> None:
    built = "{% for m in messages %}{{ '<|' + m.role + '|>' + m.content }}<|end|>{% endfor %}"
    codec = open_codec("m", write(tmp_path / "a", lambda d, c: c.update(chat_template=built)))
    assert codec.encode_conversation([Message("user", "")]).token_ids == [301, 300]


def test_word_that_is_added_without_a_flag_stays_a_word(tmp_path: Path) -> None:
    word = {"id": 256, "content": "he", **ADDED, "special": False}
    codec = open_codec("m", write(tmp_path / "a", lambda d, c: d["added_tokens"].append(word)))
    assert 256 not in codec.control_tokens
    assert codec.encode_text("hell").token_ids == [256, 257]


def test_ids_that_end_an_answer_come_from_every_file_that_names_them(tmp_path: Path) -> None:
    directory = write(tmp_path / "a")
    (directory / "generation_config.json").write_text(json.dumps({"eos_token_id": [301, 7]}))
    (directory / "config.json").write_text(json.dumps({"eos_token_id": 9}))
    assert read_definition(directory).eos_token_ids == (7, 300, 301)
    (directory / "generation_config.json").unlink()
    assert read_definition(directory).eos_token_ids == (9, 300)


def test_template_beside_the_configuration_comes_first(tmp_path: Path) -> None:
    directory = write(tmp_path / "a")
    (directory / "chat_template.jinja").write_text("{{ messages[0].content }}")
    assert read_definition(directory).chat_template == "{{ messages[0].content }}"


@pytest.mark.parametrize("content", ["", "[", "[]", '"x"', "{" * 100_000])
def test_damaged_file_is_named(tmp_path: Path, content: str) -> None:
    directory = write(tmp_path / "a")
    (directory / "tokenizer.json").write_text(content)
    with pytest.raises(ModelFileCorrupt):
        open_codec("m", directory)


def test_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelFileMissing):
        open_codec("m", tmp_path)


def gguf_of(directory: Path, path: Path, pre: str) -> None:
    """Write a tokenizer as llama.cpp's converter does, with ggml's own writer."""
    definition = read_definition(directory)
    spelling_of = {index: spelling for spelling, index in definition.vocabulary.items()}
    kind_of = {token.id: 3 if token.special else 4 for token in definition.added_tokens}
    spelling_of |= {token.id: token.spelling for token in definition.added_tokens}
    size = max(spelling_of) + 1
    writer = ggml.GGUFWriter(path, "llama")
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list([spelling_of.get(index, f"[PAD{index}]") for index in range(size)])
    writer.add_token_types([kind_of.get(index, 1 if index in spelling_of else 5) for index in range(size)])
    writer.add_token_merges([f"{left} {right}" for left, right in definition.merges])
    writer.add_chat_template(definition.chat_template)
    ids = {spelling: index for index, spelling in spelling_of.items()}
    if "bos_token" in definition.special_tokens:
        writer.add_bos_token_id(ids[definition.special_tokens["bos_token"]])
    writer.add_eos_token_id(ids[definition.special_tokens["eos_token"]])
    if "pad_token" in definition.special_tokens:
        writer.add_pad_token_id(ids[definition.special_tokens["pad_token"]])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.mark.parametrize("name", TOKENIZERS)
def test_gguf_and_tokenizer_json_of_one_model_are_one_definition(name: str, tmp_path: Path) -> None:
    try:
        directory = tokenizer_directory(name)
    except Unavailable as reason:
        pytest.skip(str(reason))
    path = tmp_path / "m.gguf"
    gguf_of(directory, path, PRE[name])
    from_gguf, from_json = read_gguf_definition(path), read_definition(directory)
    assert from_gguf.pipeline == from_json.pipeline
    assert from_gguf.digest() == from_json.digest()


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("tokenizer.ggml.model", "llama"),
        ("tokenizer.ggml.model", None),
        ("tokenizer.ggml.pre", "unheard-of"),
        ("tokenizer.ggml.add_space_prefix", True),
        ("tokenizer.ggml.tokens", ["a", "a"]),
        ("tokenizer.ggml.tokens", 7),
        ("tokenizer.ggml.token_type", [1]),
        ("tokenizer.ggml.token_type", ["x", "y"]),
        ("tokenizer.ggml.merges", ["a"]),
        ("tokenizer.ggml.merges", ["a b c"]),
        ("tokenizer.ggml.merges", ["a z"]),
    ],
)
def test_gguf_tokenizer_that_cannot_be_served_is_refused(tmp_path: Path, key: str, value: object) -> None:
    metadata = {
        "general.architecture": "llama",
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "smollm",
        "tokenizer.ggml.tokens": ["a", "b"],
        "tokenizer.ggml.token_type": [1, 1],
        "tokenizer.ggml.merges": [],
    }
    path = tmp_path / "m.gguf"
    writer = ggml.GGUFWriter(path, "llama")
    for name, content in {**metadata, key: value}.items():
        if isinstance(content, list) and content:
            writer.add_array(name, content)
        elif isinstance(content, bool):
            writer.add_bool(name, content)
        elif isinstance(content, int):
            writer.add_uint32(name, content)
        elif isinstance(content, str) and name != "general.architecture":
            writer.add_string(name, content)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises((TokenizerUnsupported, ModelStoreError)):
        Codec(read_gguf_definition(path))


def test_digest_of_the_served_model_is_stable(smollm2: Served) -> None:
    assert smollm2.codec.digest == "sha256:efd7d3e4d480f4ac6004cd557fe5ac8eb39384626d392876656cca753e514c19"
    assert (smollm2.codec.eos_token_ids, smollm2.codec.vocabulary_size) == ((2,), 49_152)
