"""A model runner without a model: the next token is a hash of every token before it, read back through the block table.

It keeps a real paged cache. A slot holds a position, a token and, as keys and values do, something that depends on every token
before: a digest that is carried on from slot to slot. So a wrong block table, a block given to two sequences, a chunk that starts
in the wrong place, a copy that was not made and a block shared under another prefix all change the answer. `answer` computes the
same answer from the plain list of tokens.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable, Sequence

from lionrock.inference.engine.batch import BatchRow, StepBatch, StepResult
from lionrock.inference.engine.errors import ShardGroupLost
from lionrock.inference.engine.runner import RunnerSpec

VOCAB_SIZE = 1000
EOS = 0

Slot = tuple[int, int, int]
"""Position, token, digest of the tokens up to there."""


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
        self._slots: list[Slot | None] = [None] * (kv_blocks * kv_block_size)
        self._on_execute = on_execute

    def execute(self, batch: StepBatch) -> StepResult:
        if self.closed:
            raise ShardGroupLost("closed")
        if self._on_execute is not None:
            self._on_execute(batch)
        batch = StepBatch.decode(batch.encode())
        self.batches.append(batch)
        self._copy(batch.copies)
        for row in batch.rows:
            self._write(row)
        return self._sample(batch)

    def _sample(self, batch: StepBatch) -> StepResult:
        sampled = (self._next(row, row.end - row.drafts + n) for row in batch.rows for n in range(row.samples))
        return StepResult(tuple(sampled))

    def close(self) -> None:
        self.closed = True

    def _copy(self, pairs: Sequence[tuple[int, int]]) -> None:
        size = self.spec.kv_block_size
        assert not {source for source, _ in pairs} & {copy for _, copy in pairs}, "a block is both copied and a copy"
        for source, copy in pairs:
            self._slots[copy * size : (copy + 1) * size] = self._slots[source * size : (source + 1) * size]

    def _write(self, row: BatchRow) -> None:
        digest = 0
        if row.start > 0:
            before = self._slots[self._slot(row, row.start - 1)]
            assert before is not None, "the position before the row was never written"
            digest = before[2]
        for position, token_id in enumerate(row.token_ids, row.start):
            digest = _carry_on(digest, token_id)
            self._slots[self._slot(row, position)] = (position, token_id, digest)

    def _slot(self, row: BatchRow, position: int) -> int:
        size = self.spec.kv_block_size
        return row.block_table[position // size] * size + position % size

    def _next(self, row: BatchRow, end: int) -> int:
        assert row.sampling is not None
        return _choose(self._history(row, end), row.sampling.seed)

    def _history(self, row: BatchRow, end: int) -> list[Slot]:
        """What the row's blocks hold before a position."""
        history: list[Slot] = []
        for position in range(end):
            entry = self._slots[self._slot(row, position)]
            assert entry is not None, "a position was never written"
            assert entry[0] == position, "a block holds another position"
            history.append(entry)
        return history


def next_token(history: Sequence[int], seed: int) -> int:
    """The token after `history`; never the end-of-sequence token, so that answers have the length asked for."""
    slots: list[Slot] = []
    digest = 0
    for position, token_id in enumerate(history):
        digest = _carry_on(digest, token_id)
        slots.append((position, token_id, digest))
    return _choose(slots, seed)


def answer(prompt: Sequence[int], tokens: int, seed: int = 0) -> tuple[int, ...]:
    """The whole answer, by the definition."""
    history = list(prompt)
    for _ in range(tokens):
        history.append(next_token(history, seed))
    return tuple(history[len(prompt) :])


def _carry_on(digest: int, token_id: int) -> int:
    return zlib.crc32(struct.pack("<I", token_id), digest)


def _choose(slots: Sequence[Slot], seed: int) -> int:
    """Depends on every slot, as attention does."""
    state = zlib.crc32(struct.pack("<Q", seed))
    for slot in slots:
        state = zlib.crc32(struct.pack("<III", *slot), state)
    return state % (VOCAB_SIZE - 1) + 1
