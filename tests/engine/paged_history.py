"""A model runner without a model: the next token is a hash of every token before it, read back through the block table.

It keeps a real paged cache of (position, token), so a wrong block table, a block given to two sequences or a chunk that
starts in the wrong place changes the answer. `answer` computes the same answer from the plain list of tokens.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence

from lionrock.inference.engine.batch import BatchRow, StepBatch, StepResult
from lionrock.inference.engine.errors import ShardGroupLost
from lionrock.inference.engine.runner import RunnerSpec

VOCAB_SIZE = 1000
EOS = 0


class PagedHistory:
    """Implements ModelRunner. `on_execute` is called with each batch before it runs."""

    def __init__(
        self,
        *,
        kv_blocks: int = 64,
        kv_block_size: int = 4,
        context_window: int = 128,
        on_execute: Callable[[StepBatch], None] | None = None,
    ) -> None:
        self.spec = RunnerSpec(
            vocab_size=VOCAB_SIZE,
            context_window=context_window,
            eos_token_ids=frozenset({EOS}),
            kv_block_size=kv_block_size,
            kv_blocks=kv_blocks,
            kv_bytes_per_token=8,
            sampling_options=frozenset({"top_k"}),
        )
        self.batches: list[StepBatch] = []
        self.closed = False
        self._slots: list[tuple[int, int] | None] = [None] * (kv_blocks * kv_block_size)
        self._on_execute = on_execute

    def execute(self, batch: StepBatch) -> StepResult:
        if self.closed:
            raise ShardGroupLost("closed")
        if self._on_execute is not None:
            self._on_execute(batch)
        batch = StepBatch.decode(batch.encode())
        self.batches.append(batch)
        for row in batch.rows:
            for offset, token_id in enumerate(row.token_ids):
                self._slots[self._slot(row, row.start + offset)] = (row.start + offset, token_id)
        return StepResult(tuple(self._next(row) for row in batch.rows if row.sampling is not None))

    def close(self) -> None:
        self.closed = True

    def _slot(self, row: BatchRow, position: int) -> int:
        size = self.spec.kv_block_size
        return row.block_table[position // size] * size + position % size

    def _next(self, row: BatchRow) -> int:
        history = []
        for position in range(row.end):
            entry = self._slots[self._slot(row, position)]
            assert entry is not None, "a position was never written"
            assert entry[0] == position, "a block holds another position"
            history.append(entry[1])
        assert row.sampling is not None
        return next_token(history, row.sampling.seed)


def next_token(history: Sequence[int], seed: int) -> int:
    """The token after `history`; never the end-of-sequence token, so that answers have the length asked for."""
    return zlib.crc32(repr((list(history), seed)).encode()) % (VOCAB_SIZE - 1) + 1


def answer(prompt: Sequence[int], tokens: int, seed: int = 0) -> tuple[int, ...]:
    """The whole answer, by the definition."""
    history = list(prompt)
    for _ in range(tokens):
        history.append(next_token(history, seed))
    return tuple(history[len(prompt) :])
