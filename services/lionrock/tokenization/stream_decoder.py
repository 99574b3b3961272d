"""Token ids to text, piece by piece, each id looked at once.

Byte-level tokenizers map an id to bytes, and a character may span ids. What is held back is only the beginning of a character
that may still become whole: at most three bytes. So the text of a stream, however it is cut, equals that of decoding all ids at
once, where broken characters become U+FFFD as Unicode (16.0, section 3.9, "substitution of maximal subparts") and Rust's
`from_utf8_lossy` have it.
"""

from __future__ import annotations

import codecs
from collections.abc import Iterable

from lionrock.tokenization.token_bytes import TokenBytes

_UTF8 = codecs.getincrementaldecoder("utf-8")


class StreamDecoder:
    """One answer's decoder."""

    __slots__ = ("_decoder", "_token_bytes")

    def __init__(self, token_bytes: TokenBytes) -> None:
        self._token_bytes = token_bytes
        self._decoder = _UTF8("replace")

    def push(self, token_ids: Iterable[int]) -> str:
        """Return the text that these ids make certain; may be empty. Raises TokenIdUnknown, and then has taken none of them."""
        return self._decoder.decode(self._token_bytes.join(token_ids))

    def end(self) -> str:
        """Return what was held back: U+FFFD for a broken character, else nothing."""
        return self._decoder.decode(b"", final=True)
