"""What a tokenizer is, whatever file it came from, and the digest that names it.

Read from Hugging Face's files (tokenizer.json, tokenizer_config.json, chat_template.jinja, generation_config.json) or from GGUF
metadata (gguf_tokenizer.py). Only byte-level BPE is served: Llama 3, Qwen, DeepSeek, SmolLM and their kin. Anything that would be
encoded or decoded otherwise than by Hugging Face's library is refused while loading.

Digest, version 1: SHA-256 over a sequence of fields, each as its length (8 bytes, big-endian) and its bytes:
  1. "lionrock-tokenizer-v1"
  2. the pipeline as JSON (keys sorted, no spaces, UTF-8): normalizer, pre_tokenizer, decoder, and the model's options
  3. the vocabulary without added tokens: for each entry in the order of ids, the id in decimal, then the spelling
  4. an empty field
  5. the merges in their order: the left part, then the right part
  6. an empty field
  7. the added tokens in the order of ids: id in decimal, spelling, "special" or "text"
  8. an empty field
  9. the chat template, the special tokens as JSON, and the ids that end an answer as JSON
A file's spelling of the same definition (spaces, order of keys, merges as one string or two) does not change it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lionrock.modelstore.facts import read_json
from lionrock.modelstore.vocabulary import TOKENIZER_MAX_BYTES, TOKENIZER_NAME
from lionrock.tokenization.codec_errors import TokenizerUnsupported

CONFIG_MAX_BYTES = 4 * 1024 * 1024
TEMPLATE_MAX_BYTES = 1024 * 1024

_MODEL_OPTIONS = (
    "dropout",
    "unk_token",
    "continuing_subword_prefix",
    "end_of_word_suffix",
    "fuse_unk",
    "byte_fallback",
    "ignore_merges",
)
_SPECIAL_NAMES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")


@dataclass(frozen=True, slots=True)
class AddedToken:
    """A token beside the model. special: it stands for no text."""

    id: int
    spelling: str
    special: bool


@dataclass(frozen=True, slots=True)
class TokenizerDefinition:
    """A byte-level BPE tokenizer with its chat template. pipeline: normalizer, pre_tokenizer, decoder, options (of the model)."""

    pipeline: Mapping[str, Any]
    vocabulary: Mapping[str, int]
    merges: Sequence[tuple[str, str]]
    added_tokens: tuple[AddedToken, ...]
    chat_template: str | None
    special_tokens: Mapping[str, str]
    eos_token_ids: tuple[int, ...]

    def digest(self) -> str:
        """Return "sha256:" and 64 hexadecimal digits; see the module's docstring."""
        digest = hashlib.sha256()

        def field(text: str) -> None:
            raw = text.encode("utf-8")
            digest.update(len(raw).to_bytes(8, "big") + raw)

        field("lionrock-tokenizer-v1")
        field(_canonical(self.pipeline))
        added = {(token.spelling, token.id) for token in self.added_tokens}
        for spelling, token_id in sorted(self.vocabulary.items(), key=lambda item: item[1]):
            if (spelling, token_id) in added:
                continue
            field(str(token_id))
            field(spelling)
        field("")
        for left, right in self.merges:
            field(left)
            field(right)
        field("")
        for token in sorted(self.added_tokens, key=lambda token: token.id):
            field(str(token.id))
            field(token.spelling)
            field("special" if token.special else "text")
        field("")
        field(self.chat_template or "")
        field(_canonical(self.special_tokens))
        field(_canonical(self.eos_token_ids))
        return f"sha256:{digest.hexdigest()}"


def _canonical(value: Any) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def read_definition(directory: Path) -> TokenizerDefinition:
    """Read Hugging Face's tokenizer files. Raises ModelFileMissing, ModelFileCorrupt, TokenizerUnsupported."""
    document = read_json(directory / TOKENIZER_NAME, TOKENIZER_MAX_BYTES)
    config = _optional_json(directory / "tokenizer_config.json")
    try:
        model = document["model"]
        if model.get("type", "BPE") != "BPE":
            raise TokenizerUnsupported(f"{directory}: the tokenizer's model is not BPE")
        added = tuple(_added_token(token) for token in document.get("added_tokens") or ())
        special_tokens = {name: text for name in _SPECIAL_NAMES if (text := _spelling(config.get(name))) is not None}
        return TokenizerDefinition(
            pipeline={
                "normalizer": _without_emptiness(document.get("normalizer")),
                "pre_tokenizer": document.get("pre_tokenizer"),
                "decoder": document.get("decoder"),
                "options": {name: model.get(name) or None for name in _MODEL_OPTIONS},
            },
            vocabulary=_vocabulary(model["vocab"]),
            merges=[_merge(merge) for merge in model["merges"]],
            added_tokens=added,
            chat_template=_chat_template(directory, config),
            special_tokens=special_tokens,
            eos_token_ids=_eos_token_ids(directory, special_tokens, model["vocab"], added),
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise TokenizerUnsupported(f"{directory}: tokenizer.json is not laid out as expected ({type(error).__name__})") from None


def _optional_json(path: Path) -> dict[str, Any]:
    return read_json(path, CONFIG_MAX_BYTES) if path.is_file() else {}


def _vocabulary(entries: Mapping[str, Any]) -> Mapping[str, int]:
    if any(type(token_id) is not int or token_id < 0 for token_id in entries.values()):
        raise ValueError("vocabulary")
    return entries


def _added_token(token: Mapping[str, Any]) -> AddedToken:
    if token.get("lstrip") or token.get("rstrip") or token.get("single_word"):
        raise TokenizerUnsupported("an added token takes the space around it, or stands only as a whole word")
    if type(token["id"]) is not int or not isinstance(token["content"], str) or not token["content"]:
        raise ValueError("added token")
    return AddedToken(token["id"], token["content"], bool(token["special"]))


def _merge(merge: str | Sequence[str]) -> tuple[str, str]:
    left, right = merge.split(" ") if isinstance(merge, str) else merge
    return left, right


def _without_emptiness(normalizer: Any) -> Any:
    """Take a sequence of no normalizers as none."""
    return None if normalizer == {"type": "Sequence", "normalizers": []} else normalizer


def _spelling(token: Any) -> str | None:
    """Return a token that tokenizer_config.json writes as a string or as an AddedToken."""
    text = token.get("content") if isinstance(token, dict) else token
    return text if isinstance(text, str) else None


def _chat_template(directory: Path, config: Mapping[str, Any]) -> str | None:
    beside = directory / "chat_template.jinja"
    if beside.is_file():
        with beside.open("rb") as file:
            return file.read(TEMPLATE_MAX_BYTES).decode("utf-8")
    template = config.get("chat_template")
    if isinstance(template, list):  # several, by name
        template = next((entry["template"] for entry in template if entry["name"] == "default"), None)
    return template if isinstance(template, str) else None


def _eos_token_ids(
    directory: Path, special_tokens: Mapping[str, str], vocabulary: Mapping[str, int], added: Sequence[AddedToken]
) -> tuple[int, ...]:
    """Ids that end an answer: generation_config.json's, or config.json's, and always the tokenizer's own."""
    ids: set[int] = set()
    for name in ("generation_config.json", "config.json"):
        listed = _optional_json(directory / name).get("eos_token_id")
        ids |= {token_id for token_id in (listed if isinstance(listed, list) else [listed]) if type(token_id) is int}
        if ids:
            break
    own = special_tokens.get("eos_token")
    if own is not None:
        ids |= {token.id for token in added if token.spelling == own} or {vocabulary[own]}
    return tuple(sorted(ids))
