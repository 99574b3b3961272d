"""The bytes that each token id of a model stands for, read from its tokenizer files without building a tokenizer.

Byte-level BPE (Radford et al. 2019, GPT-2) spells bytes as printable characters: those of Latin-1 that print as themselves, the
rest moved to U+0100 and up. A spelling with any other character is an added token's and stands for its own UTF-8. Ids that the
tokenizer marks as special (GGUF: control) stand for nothing, as in Hugging Face's `decode(skip_special_tokens=True)`. Every other
kind of vocabulary is refused: a guess would be right for most tokens.

Knows no text and no merges; encoding is the tokenization service's.
"""

from __future__ import annotations

from array import array
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

from lionrock.modelstore.errors import ModelFileCorrupt, ModelFileMissing, ModelFormatUnsupported
from lionrock.modelstore.facts import read_json
from lionrock.modelstore.gguf_metadata import read_gguf_header
from lionrock.modelstore.source import ModelFiles

TOKENIZER_NAME = "tokenizer.json"
TOKENIZER_MAX_BYTES = 64 * 1024 * 1024
MAX_TOKEN_ID = 4_194_303
MAX_VOCABULARY_BYTES = 64 * 1024 * 1024

GGUF_TOKENS, GGUF_TOKEN_TYPES = "tokenizer.ggml.tokens", "tokenizer.ggml.token_type"
# Kinds of token in tokenizer.ggml.token_type.
GGUF_CONTROL, GGUF_USER_DEFINED, GGUF_UNUSED = 3, 4, 5

_PRINTABLE = (*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100))
_MOVED = [byte for byte in range(256) if byte not in _PRINTABLE]
_BYTE_OF_CHARACTER = {byte: byte for byte in _PRINTABLE} | {0x100 + index: byte for index, byte in enumerate(_MOVED)}


def bytes_of_spelling(spelling: str) -> bytes:
    """Return the bytes that a byte-level spelling stands for."""
    try:
        return bytes(_BYTE_OF_CHARACTER[ord(character)] for character in spelling)
    except KeyError:
        return spelling.encode("utf-8")


class Vocabulary:
    """A table from id to bytes, held as one blob: 128,000 tokens take less than 2 MB."""

    __slots__ = ("_blob", "_offsets", "_unknown", "special_ids")

    def __init__(self, spellings: Mapping[int, str], special_ids: Collection[int] = ()) -> None:
        """Build from each id's spelling.

        Raises ModelFormatUnsupported for an id out of range, and for a table that its files' size does not account for.
        """
        size = max(spellings, default=-1) + 1
        if size > MAX_TOKEN_ID + 1 or min(spellings, default=0) < 0:
            raise ModelFormatUnsupported(f"the tokenizer has ids outside 0 to {MAX_TOKEN_ID}")
        blob = bytearray()
        offsets = array("I", [0])
        unknown = set()
        for token_id in range(size):
            spelling = spellings.get(token_id)
            if spelling is None:
                unknown.add(token_id)
            elif token_id not in special_ids:
                blob += bytes_of_spelling(spelling)
            if len(blob) > MAX_VOCABULARY_BYTES:
                raise ModelFormatUnsupported(f"the tokenizer's tokens stand for more than {MAX_VOCABULARY_BYTES} bytes")
            offsets.append(len(blob))
        self._blob, self._offsets, self._unknown = bytes(blob), offsets, frozenset(unknown)
        self.special_ids = frozenset(special_ids)

    def __len__(self) -> int:
        """Return the number of ids, highest id + 1."""
        return len(self._offsets) - 1

    def bytes_of(self, token_id: int) -> bytes:
        """Return what an id stands for; nothing for a special id and for one that the tokenizer does not have."""
        if not 0 <= token_id < len(self._offsets) - 1:
            return b""
        return self._blob[self._offsets[token_id] : self._offsets[token_id + 1]]

    def join(self, token_ids: Iterable[int]) -> bytes:
        """Return the bytes of a sequence of ids. Raises KeyError with an id that the tokenizer does not have."""
        blob, offsets, unknown = self._blob, self._offsets, self._unknown
        size = len(offsets) - 1
        pieces = []
        for token_id in token_ids:
            if not 0 <= token_id < size or token_id in unknown:
                raise KeyError(token_id)
            pieces.append(blob[offsets[token_id] : offsets[token_id + 1]])
        return b"".join(pieces)


def read_vocabulary(files: ModelFiles) -> Vocabulary:
    """Read a model's vocabulary. Raises ModelFileMissing, ModelFileCorrupt, or ModelFormatUnsupported if it is not byte-level."""
    if files.format == "gguf":
        path = files.files[0]
        return _gguf_vocabulary(read_gguf_header(path, arrays=(GGUF_TOKENS, GGUF_TOKEN_TYPES)).metadata, path)
    path = files.directory / TOKENIZER_NAME
    if not path.is_file():
        raise ModelFileMissing(f"{files.directory} holds no {TOKENIZER_NAME}")
    return _hugging_face_vocabulary(read_json(path, TOKENIZER_MAX_BYTES), path)


def gguf_tokens(metadata: Mapping[str, Any], path: Path) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """Return the spellings and kinds of a GGUF file's tokens, by id. Raises ModelFormatUnsupported, ModelFileCorrupt."""
    if metadata.get("tokenizer.ggml.model") != "gpt2":
        raise ModelFormatUnsupported(f"{path}: the tokenizer is not byte-level BPE (tokenizer.ggml.model is not gpt2)")
    tokens, kinds = metadata.get(GGUF_TOKENS), metadata.get(GGUF_TOKEN_TYPES)
    for value, item_type, key in ((tokens, str, GGUF_TOKENS), (kinds, int, GGUF_TOKEN_TYPES)):
        if not isinstance(value, tuple) or any(type(item) is not item_type for item in value):
            raise ModelFileCorrupt(f"{path}: {key} is missing or has items of another type")
    assert tokens is not None, "checked above"
    assert kinds is not None, "checked above"
    if len(kinds) != len(tokens) or len(set(tokens)) != len(tokens):
        raise ModelFileCorrupt(f"{path}: tokens and their types do not match, or a token stands twice")
    return tokens, kinds


def _gguf_vocabulary(metadata: Mapping[str, Any], path: Path) -> Vocabulary:
    tokens, kinds = gguf_tokens(metadata, path)
    spellings = {token_id: token for token_id, token in enumerate(tokens) if kinds[token_id] != GGUF_UNUSED}
    return Vocabulary(spellings, frozenset(token_id for token_id, kind in enumerate(kinds) if kind == GGUF_CONTROL))


def _hugging_face_vocabulary(document: Mapping[str, Any], path: Path) -> Vocabulary:
    try:
        model, decoder = document["model"], document["decoder"]
        if model.get("type", "BPE") != "BPE" or model.get("byte_fallback") or not _is_byte_level(decoder):
            raise ModelFormatUnsupported(f"{path}: the tokenizer is not byte-level BPE")
        entries = [(token_id, spelling) for spelling, token_id in model["vocab"].items()]
        added = document.get("added_tokens") or []
        entries += [(token["id"], token["content"]) for token in added]
        special = frozenset(token["id"] for token in added if token["special"])
    except (KeyError, TypeError, AttributeError) as error:
        raise ModelFileCorrupt(f"{path} is not laid out as expected ({type(error).__name__})") from None
    if any(type(token_id) is not int or not isinstance(spelling, str) for token_id, spelling in entries):
        raise ModelFileCorrupt(f"{path} has a token that is not a string with a number")
    try:
        return Vocabulary(dict(entries), special)
    except UnicodeEncodeError:
        raise ModelFileCorrupt(f"{path} spells a token with half a surrogate pair") from None


def _is_byte_level(decoder: Mapping[str, Any]) -> bool:
    """Whether a decoder of tokenizer.json turns byte-level spellings into bytes and does nothing else."""
    steps = decoder["decoders"] if decoder["type"] == "Sequence" else [decoder]
    return [step["type"] for step in steps] == ["ByteLevel"]
