"""The model's vocabulary (modelstore/vocabulary.py) with this service's errors."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

from lionrock.modelstore.errors import ModelStoreError
from lionrock.modelstore.vocabulary import Vocabulary
from lionrock.tokenization.codec_errors import TokenIdUnknown, TokenizerUnsupported


class TokenBytes:
    """The bytes that each token id stands for."""

    __slots__ = ("_vocabulary",)

    def __init__(self, spellings: Mapping[int, str], special_ids: Collection[int]) -> None:
        """Build from each id's spelling. Raises TokenizerUnsupported for an id out of range."""
        try:
            self._vocabulary = Vocabulary(spellings, special_ids)
        except ModelStoreError as error:
            raise TokenizerUnsupported(str(error)) from None

    def __len__(self) -> int:
        """Return the number of ids, highest id + 1."""
        return len(self._vocabulary)

    def join(self, token_ids: Iterable[int]) -> bytes:
        """Return the bytes of a sequence of ids. Raises TokenIdUnknown."""
        try:
            return self._vocabulary.join(token_ids)
        except KeyError as error:
            raise TokenIdUnknown(error.args[0]) from None
