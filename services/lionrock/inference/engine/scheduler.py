"""Which sequences run in the next step, and how many of their tokens: continuous batching with chunked prefill.

Policy, in this order:
1. A running sequence comes before a waiting one; within each, larger priority first, then first come first served.
2. Decoding sequences get their one token each before any prefill gets a chunk; prefills share what is left of the token budget.
3. A sequence is admitted only with blocks for all of its known tokens, so a prefill once begun needs no further block.
4. Nobody overtakes the head of the waiting queue. So a sequence waits at most for those that rank before it.
5. When a decoding sequence needs a block and none is free, the last-ranking running one gives up its blocks and is computed
   anew later ("preemption by recompute"); the first-ranking one is never preempted, so every step makes progress. For a waiting
   sequence, only running ones of smaller priority give way.

Knows sequences and block ids; no torch, no clock of its own, no sampling.
"""

from __future__ import annotations

import bisect
from dataclasses import dataclass

from lionrock.inference.engine.block_manager import BlockManager
from lionrock.inference.engine.sequence import Sequence


@dataclass(frozen=True, slots=True)
class ScheduledChunk:
    """Run `tokens` tokens of the sequence from its `computed_tokens` on."""

    sequence: Sequence
    tokens: int


class Scheduler:
    """Waiting and running sequences over one block manager. Each sequence is in at most one of the two lists."""

    def __init__(self, blocks: BlockManager, *, max_running: int, max_step_tokens: int) -> None:
        if max_running < 1 or max_step_tokens < max_running:
            raise ValueError("a step must have room for one token of every running sequence")
        self._blocks = blocks
        self._max_running = max_running
        self._max_step_tokens = max_step_tokens
        self._waiting: list[Sequence] = []
        self._running: list[Sequence] = []

    @property
    def waiting(self) -> tuple[Sequence, ...]:
        """Admitted to the engine, not in the batch; in order of service."""
        return tuple(self._waiting)

    @property
    def running(self) -> tuple[Sequence, ...]:
        """In the batch; in order of service."""
        return tuple(self._running)

    def add(self, sequence: Sequence) -> None:
        """Queue a sequence."""
        bisect.insort(self._waiting, sequence, key=_rank)

    def remove(self, sequence: Sequence) -> None:
        """Take a sequence out, wherever it is, and free its blocks."""
        (self._running if sequence in self._running else self._waiting).remove(sequence)
        self._free(sequence)

    def schedule(self, now_s: float) -> list[ScheduledChunk]:
        """Choose the next step's chunks, decoding sequences first. Empty only when there is nothing to run."""
        self._grow_decoding()
        self._admit(now_s)
        budget = self._max_step_tokens
        decoding = [ScheduledChunk(sequence, 1) for sequence in self._running if sequence.pending_tokens == 1]
        budget -= len(decoding)
        prefill: list[ScheduledChunk] = []
        for sequence in self._running:
            if sequence.pending_tokens > 1 and budget > 0:
                chunk = min(sequence.pending_tokens, budget)
                prefill.append(ScheduledChunk(sequence, chunk))
                budget -= chunk
        return decoding + prefill

    def _grow_decoding(self) -> None:
        """Give every running sequence blocks for all of its known tokens, preempting from the end when there are none."""
        for sequence in tuple(self._running):
            missing = self._blocks.blocks_for(len(sequence.tokens)) - len(sequence.block_table)
            while missing > self._blocks.free_blocks and sequence in self._running:
                self._preempt(self._running[-1])
            if missing > 0 and sequence in self._running:
                sequence.block_table.extend(self._blocks.allocate(missing))

    def _admit(self, now_s: float) -> None:
        while self._waiting:
            head = self._waiting[0]
            needed = self._blocks.blocks_for(len(head.tokens))
            if not self._make_room(head, needed):
                return
            self._waiting.pop(0)
            head.block_table = self._blocks.allocate(needed)
            if head.scheduled_s is None:
                head.scheduled_s = now_s
            bisect.insort(self._running, head, key=_rank)

    def _make_room(self, head: Sequence, needed: int) -> bool:
        """Say whether the head of the queue can run now, after preempting sequences of smaller priority if that is enough."""
        lesser = [sequence for sequence in self._running if sequence.request.priority < head.request.priority]
        within_reach = self._blocks.free_blocks + sum(len(sequence.block_table) for sequence in lesser)
        if needed > within_reach or len(self._running) - len(lesser) >= self._max_running:
            return False
        while needed > self._blocks.free_blocks or len(self._running) >= self._max_running:
            self._preempt(self._running[-1])
        return True

    def _preempt(self, sequence: Sequence) -> None:
        self._running.remove(sequence)
        self._free(sequence)
        sequence.computed_tokens = 0
        sequence.preemptions += 1
        self.add(sequence)

    def _free(self, sequence: Sequence) -> None:
        self._blocks.release(sequence.block_table)
        sequence.block_table = []


def _rank(sequence: Sequence) -> tuple[int, int]:
    return sequence.rank
