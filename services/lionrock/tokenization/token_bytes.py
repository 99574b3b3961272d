"""The bytes that each token id stands for in a byte-level vocabulary.

Byte-level BPE (Radford et al. 2019, GPT-2) spells bytes as printable characters: those of Latin-1 that print as themselves, the
rest moved to U+0100 and up. A spelling with any other character is an added token's and stands for its own UTF-8. Ids that the
tokenizer marks as special stand for nothing, as in Hugging Face's `decode(skip_special_tokens=True)`.
"""

from __future__ import annotations

from array import array
from collections.abc import Collection, Iterable, Mapping

from lionrock.tokenization.codec_errors import TokenIdUnknown, TokenizerUnsupported

MAX_TOKEN_ID = 4_194_303

_PRINTABLE = (*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100))
_MOVED = [byte for byte in range(256) if byte not in _PRINTABLE]
_BYTE_OF_CHARACTER = {ord(chr(byte)): byte for byte in _PRINTABLE} | {0x100 + index: byte for index, byte in enumerate(_MOVED)}


def bytes_of_spelling(spelling: str) -> bytes:
    """Return the bytes that a byte-level spelling stands for."""
    try:
        return bytes(_BYTE_OF_CHARACTER[ord(character)] for character in spelling)
    except KeyError:
        return spelling.encode("utf-8")


class TokenBytes:
    """A table from id to bytes, held as one blob: 128,000 tokens take less than 2 MB."""

    __slots__ = ("_blob", "_offsets", "_unknown")

    def __init__(self, spellings: Mapping[int, str], special_ids: Collection[int]) -> None:
        """Build from each id's spelling. Raises TokenizerUnsupported for an id out of range."""
        size = max(spellings, default=-1) + 1
        if size > MAX_TOKEN_ID + 1 or min(spellings, default=0) < 0:
            raise TokenizerUnsupported(f"the tokenizer has ids outside 0 to {MAX_TOKEN_ID}")
        blob = bytearray()
        offsets = array("I", [0])
        unknown = set()
        for token_id in range(size):
            spelling = spellings.get(token_id)
            if spelling is None:
                unknown.add(token_id)
            elif token_id not in special_ids:
                blob += bytes_of_spelling(spelling)
            offsets.append(len(blob))
        self._blob, self._offsets, self._unknown = bytes(blob), offsets, frozenset(unknown)

    def __len__(self) -> int:
        """Return the number of ids, highest id + 1."""
        return len(self._offsets) - 1

    def join(self, token_ids: Iterable[int]) -> bytes:
        """Return the bytes of a sequence of ids. Raises TokenIdUnknown."""
        blob, offsets, unknown = self._blob, self._offsets, self._unknown
        size = len(offsets) - 1
        pieces = []
        for token_id in token_ids:
            if not 0 <= token_id < size or token_id in unknown:
                raise TokenIdUnknown(token_id)
            pieces.append(blob[offsets[token_id] : offsets[token_id + 1]])
        return b"".join(pieces)
