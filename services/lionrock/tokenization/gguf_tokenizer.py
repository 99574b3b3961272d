"""The tokenizer that a GGUF file carries, as the definition that Hugging Face's file of the same model would give.

GGUF names the way in which text is cut before BPE (`tokenizer.ggml.pre`) without describing it; the table below has the
definition of each name that is served, as the models' own tokenizer.json files have it. A name that is not in the table is
refused: a close guess would encode almost everything right.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lionrock.modelstore.errors import ModelStoreError
from lionrock.modelstore.gguf_metadata import read_gguf_header
from lionrock.modelstore.vocabulary import (
    GGUF_CONTROL,
    GGUF_TOKEN_TYPES,
    GGUF_TOKENS,
    GGUF_UNUSED,
    GGUF_USER_DEFINED,
    gguf_tokens,
)
from lionrock.tokenization.codec_errors import TokenizerUnsupported
from lionrock.tokenization.definition import AddedToken, TokenizerDefinition

_MERGES = "tokenizer.ggml.merges"

_ENDING_KEYS = ("eos_token_id", "eot_token_id", "eom_token_id")
_SPECIAL_KEYS = {
    "bos_token": "bos_token_id",
    "eos_token": "eos_token_id",
    "unk_token": "unknown_token_id",
    "pad_token": "padding_token_id",
}

Json = dict[str, Any]


def _split(pattern: str) -> Json:
    return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}


def _byte_level(*, use_regex: bool, trim_offsets: bool = True) -> Json:
    return {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": trim_offsets, "use_regex": use_regex}


def _in_turn(*steps: Json) -> Json:
    return {"type": "Sequence", "pretokenizers": list(steps)}


_DECODER = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True}
_WORDS = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_DEEPSEEK_WORDS = (
    "[!\"#$%&'()*+,\\-./:;<=>?@\\[\\\\\\]^_`{|}~][A-Za-z]+|[^\r\n\\p{L}\\p{P}\\p{S}]?[\\p{L}\\p{M}]+| ?[\\p{P}\\p{S}]+[\r\n]*"
    "|\\s*[\r\n]+|\\s+(?!\\S)|\\s+"
)

# tokenizer.ggml.pre: normalizer, pre_tokenizer, decoder, ignore_merges.
_PRE: Mapping[str, tuple[Json | None, Json, Json, bool | None]] = {
    "gpt-2": (None, _byte_level(use_regex=True), _DECODER, None),
    "smollm": (None, _in_turn({"type": "Digits", "individual_digits": True}, _byte_level(use_regex=True)), _DECODER, None),
    "llama-bpe": (
        None,
        _in_turn(_split(rf"{_CONTRACTIONS}|{_WORDS}|\p{{N}}{{1,3}}|{_REST}"), _byte_level(use_regex=False)),
        _DECODER,
        True,
    ),
    "qwen2": (
        {"type": "NFC"},
        _in_turn(_split(rf"{_CONTRACTIONS}|{_WORDS}|\p{{N}}|{_REST}"), _byte_level(use_regex=False, trim_offsets=False)),
        {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False},
        None,
    ),
    "deepseek-v3": (
        None,
        _in_turn(
            _split(r"\p{N}{1,3}"),
            _split("[一-龥\u3040-ゟ゠-ヿ]+"),
            _split(_DEEPSEEK_WORDS),
            _byte_level(use_regex=False),
        ),
        _DECODER,
        None,
    ),
}


def read_gguf_definition(path: Path) -> TokenizerDefinition:
    """Read a GGUF file's tokenizer. Raises ModelFileMissing, ModelFileCorrupt, ModelFormatUnsupported, TokenizerUnsupported."""
    metadata = read_gguf_header(path, arrays=(GGUF_TOKENS, GGUF_TOKEN_TYPES, _MERGES)).metadata
    try:
        tokens, types = gguf_tokens(metadata, path)
    except ModelStoreError as error:
        raise TokenizerUnsupported(str(error)) from None
    pre = metadata.get("tokenizer.ggml.pre")
    if not isinstance(pre, str) or pre not in _PRE:
        raise TokenizerUnsupported(f"{path}: tokenizer.ggml.pre is not one of {', '.join(_PRE)}")
    if metadata.get("tokenizer.ggml.add_space_prefix"):
        raise TokenizerUnsupported(f"{path}: a byte-level tokenizer with a space before every text is not known")
    merges = metadata.get(_MERGES)
    if not isinstance(merges, tuple) or any(type(merge) is not str for merge in merges):
        raise TokenizerUnsupported(f"{path}: {_MERGES} is missing or has items of another type")
    normalizer, pre_tokenizer, decoder, ignore_merges = _PRE[pre]
    added = tuple(
        AddedToken(token_id, tokens[token_id], kind == GGUF_CONTROL)
        for token_id, kind in enumerate(types)
        if kind in (GGUF_CONTROL, GGUF_USER_DEFINED)
    )
    options: Json = dict.fromkeys(
        ("dropout", "unk_token", "continuing_subword_prefix", "end_of_word_suffix", "fuse_unk", "byte_fallback")
    )
    pipeline = {
        "normalizer": normalizer,
        "pre_tokenizer": pre_tokenizer,
        "decoder": decoder,
        "options": {**options, "ignore_merges": ignore_merges},
    }
    template = metadata.get("tokenizer.chat_template")
    special_ids = {name: _id(metadata, key, len(tokens)) for name, key in _SPECIAL_KEYS.items()}
    ending_ids = {_id(metadata, key, len(tokens)) for key in _ENDING_KEYS}
    return TokenizerDefinition(
        pipeline=pipeline,
        vocabulary={token: token_id for token_id, token in enumerate(tokens) if types[token_id] != GGUF_UNUSED},
        merges=[_pair(merge, path) for merge in merges],
        added_tokens=added,
        chat_template=template if isinstance(template, str) else None,
        special_tokens={name: tokens[token_id] for name, token_id in special_ids.items() if token_id is not None},
        eos_token_ids=tuple(sorted(token_id for token_id in ending_ids if token_id is not None)),
    )


def _pair(merge: str, path: Path) -> tuple[str, str]:
    left, space, right = merge.partition(" ")
    if not space or not left or not right or " " in right:
        raise TokenizerUnsupported(f"{path}: a merge is not two tokens")
    return left, right


def _id(metadata: Mapping[str, Any], key: str, size: int) -> int | None:
    value = metadata.get(f"tokenizer.ggml.{key}")
    return value if type(value) is int and 0 <= value < size else None
