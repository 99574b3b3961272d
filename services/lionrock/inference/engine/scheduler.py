"""Which sequences run in the next step, and how many of their tokens: continuous batching with chunked prefill.

Policy, in this order:
1. A running sequence comes before a waiting one; within each, larger priority first, then the tenant that was served least for its
   weight (fair_share.py), then first come first served. The order is made once a step.
2. Decoding sequences get their one token each before any prefill gets a chunk; prefills share what is left of the token budget, or
   less where tenants share the engine (step_budget.py), and drafts get what is left then.
3. A sequence is admitted only with blocks for all of its known tokens, so a prefill once begun needs no further block. It shares
   the blocks of its prefix that are in the cache: those that others use cost nothing, those that nobody uses count as free.
4. Nobody overtakes the head of the waiting queue. So a sequence waits at most for those that rank before it.
5. When a decoding sequence needs a block and none is free, the last-ranking running one gives up its blocks and is computed
   anew later ("preemption by recompute", less what is still cached then); the first-ranking one is never preempted, so every step
   makes progress. For a waiting sequence, running ones of smaller priority give way, and those of tenants that have more
   places in the batch than is fair (7). For drafts nobody does.
6. A prefill looks into the cache again whenever it gets a chunk. When at least half of that chunk is blocks which this very step
   computes for a sequence that ranks before it, it sits the step out and shares them in the next.
7. A place passes from one tenant to another only if the giver, by weight, still has at least as many after it as the taker: so it
   never passes back, and a tenant's last sequence gives way to nobody's share.

Nobody starves: the first-ranking sequence of all is admitted, never preempted, never sits out, and has at least one token computed
in every step. Within one tenant, from the last time that a sequence comes which ranks before it (with a larger priority: that is
what it is for), a sequence ends within as many steps as it and those that rank before it may have tokens (`max_total_tokens`)
together; beside others, within the steps that its weight's share of these is.

Knows sequences and block ids; no torch, no clock of its own, no sampling.
"""

from __future__ import annotations

import bisect
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from lionrock.inference.engine.block_manager import BlockHash, BlockManager
from lionrock.inference.engine.fair_share import ANSWER_TOKEN, PROMPT_TOKEN, FairShares
from lionrock.inference.engine.prefix_cache import PrefixCache
from lionrock.inference.engine.sequence import Sequence, SequenceId


@dataclass(frozen=True, slots=True)
class ScheduledChunk:
    """Run `tokens` known tokens of the sequence from its `computed_tokens` on, and `drafts` guesses after them."""

    sequence: Sequence
    tokens: int
    drafts: int = 0


@dataclass(frozen=True, slots=True)
class ScheduledStep:
    """What runs in one step."""

    chunks: tuple[ScheduledChunk, ...]
    """Empty only when there is nothing to run."""
    copies: tuple[tuple[int, int], ...] = ()
    """(block, copy): to be copied before the step writes anything. No block is both."""


class Scheduler:
    """Waiting and running sequences over one block manager. Each sequence is in at most one of the two lists."""

    def __init__(
        self, blocks: BlockManager, *, max_running: int, max_step_tokens: int, prefix_cache: PrefixCache | None = None
    ) -> None:
        """prefix_cache: over the same blocks; None: nothing is shared."""
        if max_running < 1 or max_step_tokens < max_running:
            raise ValueError("a step must have room for one token of every running sequence")
        self._blocks = blocks
        self._cache = prefix_cache or PrefixCache(blocks, enabled=False)
        self._max_running = max_running
        self._max_step_tokens = max_step_tokens
        self._waiting: list[Sequence] = []
        self._running: list[Sequence] = []
        self._shares = FairShares()
        self._copied: list[int] = []  # blocks that the step copies: referred to until it has ended

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
        self._shares.enter(sequence.request.tenant, sequence.request.weight)
        bisect.insort(self._waiting, sequence, key=self._rank)

    def remove(self, sequence: Sequence) -> None:
        """Take a sequence out, wherever it is, and free its blocks."""
        (self._running if sequence in self._running else self._waiting).remove(sequence)
        self._shares.leave(sequence.request.tenant)
        self._free(sequence)

    def share_of_queue(self, tenant: str, weight: int, places: int) -> float:
        """Return how many of so many places in a queue are a tenant's, beside those who have sequences now."""
        return self._shares.share(tenant, places, weight)

    # ---- a step ----------------------------------------------------------------------------------------------------------

    def schedule(
        self,
        now_s: float,
        drafts: Callable[[tuple[Sequence, ...]], Mapping[SequenceId, int]] | None = None,
        shared_tokens: int | None = None,
    ) -> ScheduledStep:
        """Choose the next step's chunks, decoding sequences first.

        shared_tokens: of prompts at most, where several tenants have sequences; one at least.
        drafts: asked once, with the sequences that decode in this step, how many drafts each has to offer; what they are granted
        fits the budget and the blocks that nobody else wanted.
        """
        self.step_ended()
        if self._shares.tenants > 1:
            self._running.sort(key=self._rank)
            self._waiting.sort(key=self._rank)
        self._grow_decoding()
        self._admit(now_s)
        decoding = [ScheduledChunk(sequence, 1) for sequence in self._running if sequence.pending_tokens == 1]
        budget = self._max_step_tokens - len(decoding)
        if shared_tokens is not None and self._shares.tenants > 1:
            budget = min(budget, shared_tokens)
        prefill, copies = self._prefill(budget)
        if drafts is not None and decoding:
            budget = self._max_step_tokens - len(decoding) - sum(chunk.tokens for chunk in prefill)
            decoding = self._with_drafts(decoding, drafts(tuple(chunk.sequence for chunk in decoding)), budget)
        return ScheduledStep((*decoding, *prefill), tuple(copies))

    def advance(self, sequence: Sequence, computed_tokens: int) -> None:
        """Note that a step has computed a running sequence's known tokens up to there; full blocks become shareable."""
        assert computed_tokens <= len(sequence.tokens), "what is not a token of the sequence is never shared"
        self._charge(sequence, computed_tokens)
        sequence.computed_tokens = computed_tokens
        self._cache.publish(sequence)

    def step_ended(self) -> None:
        """Note that the step is over, or will not be run."""
        if self._copied:
            self._blocks.release(self._copied)
            self._copied = []

    def _prefill(self, budget: int) -> tuple[list[ScheduledChunk], list[tuple[int, int]]]:
        """Hand the budget to prefilling sequences in order of service; returns their chunks and the copies these need."""
        chunks: list[ScheduledChunk] = []
        copies: list[tuple[int, int]] = []
        coming: set[BlockHash] = set()  # blocks that this step computes
        for sequence in self._running:
            if sequence.pending_tokens == 1:
                continue
            if budget == 0:
                break
            copy = self._cache.catch_up(sequence)
            tokens = min(sequence.pending_tokens, budget)
            if copy is not None:
                self._blocks.share(copy[:1])
                self._copied.append(copy[0])
                copies.append(copy)
                self._cache.skip_by_copy(sequence)
                tokens = 1
            elif coming and 2 * self._blocks.block_size * self._cache.blocks_among(sequence, coming) >= tokens:
                continue
            coming.update(self._cache.blocks_completed(sequence, tokens))
            chunks.append(ScheduledChunk(sequence, tokens))
            budget -= tokens
        return chunks, copies

    def _with_drafts(self, decoding: list[ScheduledChunk], wanted: Mapping[SequenceId, int], budget: int) -> list[ScheduledChunk]:
        granted: list[ScheduledChunk] = []
        for chunk in decoding:
            sequence, known = chunk.sequence, len(chunk.sequence.tokens)
            drafts = min(wanted.get(sequence.sequence_id, 0), budget, sequence.max_total_tokens - known)
            if drafts > 0:
                room = (len(sequence.block_table) + self._blocks.free_blocks) * self._blocks.block_size
                drafts = min(drafts, room - known)
                missing = self._blocks.blocks_for(known + drafts) - len(sequence.block_table)
                if missing > 0:
                    sequence.block_table.extend(self._blocks.allocate(missing))
                budget -= drafts
                chunk = replace(chunk, drafts=drafts)
            granted.append(chunk)
        return granted

    # ---- who has blocks --------------------------------------------------------------------------------------------------

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
            hits = self._cache.hits(head)
            if not self._make_room(head, hits):
                return
            self._waiting.remove(head)  # who gave way may stand before it now
            self._cache.admit(head, hits)
            head.charged_tokens = max(head.charged_tokens, head.computed_tokens)
            if head.scheduled_s is None:
                head.scheduled_s = now_s
            bisect.insort(self._running, head, key=self._rank)

    def _make_room(self, head: Sequence, hits: list[int]) -> bool:
        """Say whether the head of the queue can run now, after preempting sequences that give way if that is enough."""
        needed = self._blocks.blocks_for(len(head.tokens))
        if len(self._running) < self._max_running and needed <= self._within_reach(hits, Counter()):
            return True
        if (givers := self._over_their_shares(head, hits)) is not None:
            for giver in givers:
                self._preempt(giver)
            return True
        lesser = [sequence for sequence in self._running if sequence.request.priority < head.request.priority]
        given_up = Counter(block for sequence in lesser for block in sequence.block_table)
        if len(self._running) - len(lesser) >= self._max_running or needed > self._within_reach(hits, given_up):
            return False
        while len(self._running) >= self._max_running or needed > self._within_reach(hits, Counter()):
            self._preempt(self._running[-1])
        return True

    def _within_reach(self, hits: list[int], given_up: Counter[int]) -> int:
        """Blocks that a sequence with these hits could have, if so many references to blocks were given up.

        They are those that nobody refers to, cached hits among them, and the hits that others refer to.
        """
        freed = sum(1 for block, count in given_up.items() if count == self._blocks.references(block))
        shared = sum(1 for block in hits if self._blocks.references(block) > given_up[block])
        return self._blocks.free_blocks + freed + shared

    def _over_their_shares(self, head: Sequence, hits: list[int]) -> list[Sequence] | None:
        """Return running sequences that let the head run when they give way, each so that tenants' places are fairer.

        None: there are none, or not enough.
        """
        needed, taker = self._blocks.blocks_for(len(head.tokens)), head.request.tenant
        places = Counter(sequence.request.tenant for sequence in self._running)
        after = (places[taker] + 1) / head.request.weight
        rest, givers, given_up = list(self._running), list[Sequence](), Counter[int]()
        while len(rest) >= self._max_running or needed > self._within_reach(hits, given_up):
            fuller = [
                sequence
                for sequence in rest
                if (tenant := sequence.request.tenant) != taker
                and sequence.request.priority <= head.request.priority
                and (places[tenant] - 1) / self._shares.weight(tenant) >= after
            ]
            if not fuller:
                return None
            giver = max(fuller, key=lambda sequence: places[sequence.request.tenant] / self._shares.weight(sequence.request.tenant))
            giver = next(sequence for sequence in reversed(fuller) if sequence.request.tenant == giver.request.tenant)
            rest.remove(giver)
            givers.append(giver)
            given_up.update(giver.block_table)
            places[giver.request.tenant] -= 1
        return givers

    def _charge(self, sequence: Sequence, computed_tokens: int) -> None:
        """Charge the tenant for tokens that were computed for the first time."""
        begin = max(sequence.charged_tokens, sequence.computed_tokens)
        if computed_tokens > begin:
            prompt = max(0, min(computed_tokens, sequence.prompt_tokens) - begin)
            work = prompt * PROMPT_TOKEN + (computed_tokens - begin - prompt) * ANSWER_TOKEN
            self._shares.charge(sequence.request.tenant, work)
            sequence.charged_tokens = computed_tokens

    def _preempt(self, sequence: Sequence) -> None:
        self._running.remove(sequence)
        self._free(sequence)
        sequence.computed_tokens = 0
        sequence.preemptions += 1
        bisect.insort(self._waiting, sequence, key=self._rank)

    def _free(self, sequence: Sequence) -> None:
        self._blocks.release(sequence.block_table)
        sequence.block_table = []

    def _rank(self, sequence: Sequence) -> tuple[int, float, int]:
        """Order of service; the smallest goes first."""
        return (-sequence.request.priority, self._shares.served(sequence.request.tenant), sequence.sequence_id)
