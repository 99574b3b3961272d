"""A model runner whose tokens are bytes and letters, and whose logits are a hash of what came before: any constraint can be tried.

Like PagedHistory it reads every token back through the block table; unlike it, it gives logits to the engine's own sampler, so that
penalties, biases and masks count. Its vocabulary is padded, as models' are.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import replace

import torch
from paged_history import PagedHistory

from lionrock.inference.engine.batch import StepBatch, StepResult
from lionrock.inference.engine.sampler import SAMPLING_OPTIONS, sample
from lionrock.modelstore.vocabulary import Vocabulary, bytes_of_spelling

EOS = 0
_BYTE_SPELLINGS = {bytes_of_spelling(chr(code)): chr(code) for code in range(0x21, 0x144) if code != 0xAD}
_WORDS = [
    "true",
    "false",
    "null",
    '":',
    '",',
    '"}',
    '{"',
    "12",
    "ab",
    "abc",
    " the",
    "中文",
    "é",
    "\n",
    "[[",
    "]]",
    ', "',
    "yes",
    "no",
]


def spelling_of(raw: bytes) -> str:
    """How a byte-level vocabulary writes bytes."""
    return "".join(_BYTE_SPELLINGS[bytes([byte])] for byte in raw)


TOKENS: list[bytes] = [b"", *(bytes([byte]) for byte in range(256)), *(word.encode() for word in _WORDS)]
VOCABULARY = Vocabulary({0: "<|end|>", **{token_id: spelling_of(raw) for token_id, raw in enumerate(TOKENS) if token_id}}, {EOS})
VOCAB_SIZE = len(TOKENS) + 11  # ids that no token has


def ids_of(raw: bytes) -> tuple[int, ...]:
    """The bytes, one token each."""
    return tuple(byte + 1 for byte in raw)


def logits_after(history: Sequence[int]) -> torch.Tensor:
    """[V] float32. The end and the ids that no token has are as likely as any other."""
    generator = torch.Generator().manual_seed(zlib.crc32(repr(list(history)).encode()))
    return torch.randn(VOCAB_SIZE, generator=generator) * 2


class SpellingModel(PagedHistory):
    """Implements ModelRunner."""

    def __init__(self, **options) -> None:
        super().__init__(**options)
        self.spec = replace(self.spec, vocab_size=VOCAB_SIZE, eos_token_ids=frozenset({EOS}), sampling_options=SAMPLING_OPTIONS)

    def _sample(self, batch: StepBatch) -> StepResult:
        positions = [(row, row.end - row.drafts + n) for row in batch.rows for n in range(row.samples)]
        if not positions:
            return StepResult(())
        histories = [[token_id for _, token_id, _ in self._history(row, position)] for row, position in positions]
        logits = torch.stack([logits_after(history) for history in histories])
        rows = [row.sampling for row, _ in positions if row.sampling is not None]
        return sample(logits, [position for _, position in positions], rows, [row.adjustment for row, _ in positions])
