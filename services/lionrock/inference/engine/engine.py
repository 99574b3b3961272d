"""The engine: requests in, tokens out, one step at a time. `step()` is schedule → run → postprocess.

Owns sequences, their order and their KV blocks; leaves the arithmetic to a ModelRunner. Not safe for threads: `AsyncEngine`
holds a lock around every call but `runner.execute`, during which requests may be added and aborted.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from lionrock.inference.engine.admission import adjusts_logits, check_request
from lionrock.inference.engine.answer_rules import AnswerRules
from lionrock.inference.engine.batch import BatchRow, SamplingRow, StepBatch, StepResult
from lionrock.inference.engine.block_manager import BlockManager
from lionrock.inference.engine.constraints import Constraints
from lionrock.inference.engine.errors import EngineError, EngineFull, InvalidConstraint, InvalidRequest
from lionrock.inference.engine.prefix_cache import PrefixCache
from lionrock.inference.engine.runner import ModelRunner, RunnerSpec
from lionrock.inference.engine.scheduler import ScheduledChunk, Scheduler
from lionrock.inference.engine.sequence import (
    FinishReason,
    Request,
    RequestId,
    Sampling,
    Sequence,
    SequenceId,
    StepOutput,
    TokenLogprob,
)
from lionrock.inference.engine.speculation import PromptLookup
from lionrock.inference.engine.step_budget import StepBudget
from lionrock.modelstore.vocabulary import Vocabulary

_RETRY_FLOOR_S, _RETRY_CEILING_S = 0.1, 30.0

MAX_FAILED_STEPS = 5
"""Losses in a row in the same step of a sequence, after which it is given up: it may be what breaks the runner."""


@dataclass(frozen=True, slots=True)
class EngineLimits:
    """Bounds of one engine."""

    max_running: int = 64
    """Sequences in one step."""
    max_waiting: int = 256
    """Sequences in the waiting queue, beyond which add() raises EngineFull but to tenants that have less than their share of it."""
    max_step_tokens: int = 512
    """Token budget of one step: a longer prefill is cut into chunks, so that decoding streams never stall for longer."""
    shared_step_s: float = 0.1
    """Seconds that a step should take at most while several tenants share the engine (step_budget.py); 0: no aim."""
    max_answer_tokens: int = 131072
    """Answer tokens of a request that names no max_tokens, and the most that one may name."""
    prefix_cache: bool = True
    """Whether requests of one cache salt share the KV blocks of equal prefixes."""
    max_drafts: int = 8
    """Guesses that one sequence may have checked in one step (speculation.py); 0: none."""


class Engine:
    """Continuous batching over one model runner."""

    def __init__(
        self,
        runner: ModelRunner,
        limits: EngineLimits | None = None,
        clock: Callable[[], float] = time.monotonic,
        *,
        vocabulary: Vocabulary | None = None,
        constraints: Constraints | None = None,
    ) -> None:
        """Take over the runner; `clock` gives the monotonic seconds that deadlines are measured in.

        vocabulary: of the model's tokenizer; None: stop strings and constraints are refused. constraints: made from the vocabulary
        unless given; closed with the engine.
        """
        self.limits = limits or EngineLimits()
        self._clock = clock
        self._next_id = 0
        self._seconds_per_answer = 1.0
        self._lookup = PromptLookup(self.limits.max_drafts)
        self._begun_s = 0.0
        self._budget = StepBudget(self.limits.shared_step_s, runner.spec.kv_block_size)
        self._sequences: dict[RequestId, Sequence] = {}
        self._outbox: list[StepOutput] = []
        if constraints is None and vocabulary is not None:
            constraints = Constraints(vocabulary, runner.spec.vocab_size, runner.spec.eos_token_ids)
        self._rules = AnswerRules(vocabulary, constraints)
        self._install(runner)

    def _install(self, runner: ModelRunner) -> None:
        """Begin with an empty KV cache: every sequence waits, in order of service, with the tokens that it has."""
        self._runner = runner
        self._released: list[SequenceId] = []
        spec = runner.spec
        self._spec = replace(spec, sampling_options=spec.sampling_options | self._rules.offered)
        self._blocks = BlockManager(spec.kv_blocks, spec.kv_block_size)
        limits = self.limits
        self._scheduler = Scheduler(
            self._blocks,
            max_running=limits.max_running,
            max_step_tokens=limits.max_step_tokens,
            prefix_cache=PrefixCache(self._blocks, enabled=limits.prefix_cache),
        )
        for sequence in self._sequences.values():
            sequence.block_table, sequence.computed_tokens, sequence.block_hashes = [], 0, []
            if not self._rules.waits(sequence):
                self._scheduler.add(sequence)

    # ---- state -----------------------------------------------------------------------------------------------------------

    @property
    def runner(self) -> ModelRunner:
        """What executes the steps."""
        return self._runner

    @property
    def spec(self) -> RunnerSpec:
        """The runner's spec, with the options that this engine adds."""
        return self._spec

    @property
    def context_window(self) -> int:
        """Prompt and answer together, in tokens: the model's window, or less where the KV cache is smaller."""
        return min(self.spec.context_window, self.spec.kv_blocks * self.spec.kv_block_size)

    @property
    def has_work(self) -> bool:
        """Whether some request has not ended."""
        return bool(self._sequences) or bool(self._outbox)

    @property
    def idle_s(self) -> float | None:
        """How long a step would do nothing, because all requests wait for their constraints: until a deadline or `on_prepared`.

        0: it would do something now; None: there is no deadline.
        """
        waits = self._rules.waiting
        if waits < len(self._sequences) or self._outbox or self._rules.any_prepared or not waits:
            return 0.0
        deadlines = [s.request.deadline_s for s in self._sequences.values() if s.request.deadline_s is not None]
        return max(0.0, min(deadlines) - self._clock()) if deadlines else None

    def on_prepared(self, call: Callable[[], None]) -> None:
        """Have any thread call this whenever a constraint is compiled, or is not going to be."""
        self._rules.on_prepared = call

    @property
    def running(self) -> int:
        """Sequences in the batch."""
        return len(self._scheduler.running)

    @property
    def waiting(self) -> int:
        """Sequences in the queue, or before it because their constraint is not compiled yet."""
        return len(self._scheduler.waiting) + self._rules.waiting

    @property
    def free_kv_blocks(self) -> int:
        """Blocks that no sequence holds, whether or not they are cached."""
        return self._blocks.free_blocks

    @property
    def cached_kv_blocks(self) -> int:
        """Blocks that a request of the right salt would find, in use or not."""
        return self._blocks.published_blocks

    def now_s(self) -> float:
        """Monotonic seconds by the engine's clock, in which deadlines are stated."""
        return self._clock()

    # ---- requests --------------------------------------------------------------------------------------------------------

    def add(self, request: Request) -> SequenceId:
        """Queue a request.

        Raises a RequestRefused, or EngineFull; then nothing has changed. A constraint may be refused later: see StepOutput.error.
        """
        self._check(request)
        if self._is_full_for(request):
            raise EngineFull(self._retry_after_s())
        sequence_id = SequenceId(self._next_id)
        self._next_id += 1
        sampling, prompt_tokens = request.sampling, len(request.token_ids) - request.resumed_tokens
        answer_tokens = min(sampling.max_tokens or self.limits.max_answer_tokens, self.limits.max_answer_tokens)
        stop = frozenset(sampling.stop_token_ids)
        sequence = Sequence(
            sequence_id=sequence_id,
            request=request,
            tokens=list(request.token_ids),
            prompt_tokens=prompt_tokens,
            max_total_tokens=min(prompt_tokens + answer_tokens, self.context_window),
            # A constrained answer ends where its constraint does, and says so by the model's own token.
            stop_token_ids=stop if sampling.ignore_eos and request.constraint is None else stop | self.spec.eos_token_ids,
            arrived_s=self._clock(),
        )
        self._rules.begin(sequence)
        self._sequences[request.request_id] = sequence
        if not self._rules.waits(sequence):
            self._enqueue(sequence, self._outbox)
        return sequence_id

    def _enqueue(self, sequence: Sequence, outputs: list[StepOutput]) -> None:
        """Hand a sequence to the scheduler, unless it was resumed after its last token."""
        self._scheduler.add(sequence)
        end = self._rules.end(sequence)
        if end is not None:
            outputs.append(self._finish(sequence, FinishReason.STOP, stop=end.stop))
        elif len(sequence.tokens) >= sequence.max_total_tokens:
            outputs.append(self._finish(sequence, FinishReason.LENGTH))

    def abort(self, request_id: RequestId) -> StepOutput | None:
        """Take a request out at once and free its blocks; returns its last output, or None when it had already left."""
        sequence = self._sequences.get(request_id)
        return None if sequence is None else self._finish(sequence, FinishReason.ABORTED)

    def close(self) -> None:
        """End what it started beside the runner, which is the owner's to close."""
        self._rules.close()

    # ---- losing the runner -----------------------------------------------------------------------------------------------

    def drop_all(self) -> list[Sequence]:
        """Forget every sequence and its blocks, without outputs, and return them: nobody will run them."""
        dropped = list(self._sequences.values())
        for sequence in dropped:
            self._forget(sequence)
        self._install(self._runner)
        return dropped

    def lose_cache(self, batch: StepBatch) -> list[Sequence]:
        """Have every sequence wait to be computed anew, because the runner is gone and its KV cache with it.

        batch: the step that failed; it counts for nothing. Returns the sequences that were given up: see MAX_FAILED_STEPS.
        """
        failed = {row.sequence_id: row.end - row.drafts for row in batch.rows}
        given_up = []
        for sequence in self._scheduler.running:
            sequence.resumptions += 1
            end = failed.get(sequence.sequence_id)
            if end is not None and sequence.note_failed_step(end) >= MAX_FAILED_STEPS:
                given_up.append(sequence)
        for sequence in given_up:
            self._forget(sequence)
        self._install(self._runner)
        return given_up

    def replace_runner(self, runner: ModelRunner) -> list[Sequence]:
        """Go on with another runner of the same model, whose KV cache is empty.

        Returns the sequences that were given up, because the new cache has no room for one more token of theirs. An answer that
        named no smaller bound now ends at the new window.
        """
        self._install(runner)
        given_up = []
        for sequence in tuple(self._sequences.values()):
            sequence.max_total_tokens = min(sequence.max_total_tokens, self.context_window)
            if len(sequence.tokens) >= sequence.max_total_tokens:
                self._leave(sequence)
                given_up.append(sequence)
        return given_up

    # ---- a step ----------------------------------------------------------------------------------------------------------

    def step(self) -> list[StepOutput]:
        """Run one step. Raises ShardGroupLost when the runner is gone; then `lose_cache` and `replace_runner` go on."""
        if self.has_work and self.idle_s != 0:
            self._rules.wait(self.idle_s)
        batch, outputs = self.schedule()
        if batch is not None:
            outputs += self.postprocess(batch, self._runner.execute(batch))
        return outputs

    def schedule(self) -> tuple[StepBatch | None, list[StepOutput]]:
        """Drop what expired and choose the next batch; None when there is nothing to run."""
        outputs = self.expire()
        for sequence, error in self._rules.take_prepared():
            if error is None:
                self._enqueue(sequence, outputs)
            else:
                outputs.append(self._finish(sequence, FinishReason.REFUSED, error=error))
        now_s = self._begun_s = self._clock()
        drafts: dict[SequenceId, tuple[int, ...]] = {}
        step = self._scheduler.schedule(now_s, lambda decoding: self._propose(decoding, drafts), self._budget.tokens)
        if not step.chunks:
            return None, outputs
        rows = tuple(self._row(chunk, drafts) for chunk in step.chunks)
        released, self._released = tuple(self._released), []
        return StepBatch(rows, released, step.copies), outputs

    def expire(self) -> list[StepOutput]:
        """Drop what expired; returns the last outputs of sequences that ended outside a step."""
        now_s = self._clock()
        outputs, self._outbox = self._outbox, []
        for sequence in tuple(self._sequences.values()):
            deadline_s = sequence.request.deadline_s
            if deadline_s is not None and deadline_s <= now_s:
                outputs.append(self._finish(sequence, FinishReason.EXPIRED))
        return outputs

    def postprocess(self, batch: StepBatch, result: StepResult) -> list[StepOutput]:
        """Append what was sampled and finish what ended. Sequences that were aborted meanwhile are passed over."""
        now_s = self._clock()
        self._scheduler.step_ended()
        by_id = {sequence.sequence_id: sequence for sequence in self._scheduler.running}
        outputs: list[StepOutput] = []
        sampled = 0
        for row in batch.rows:
            first, sampled = sampled, sampled + row.samples
            sequence = by_id.get(row.sequence_id)
            if sequence is None:
                continue
            self._scheduler.advance(sequence, row.end - row.drafts)
            if row.sampling is not None:
                outputs.append(self._take(sequence, row, result, first, now_s))
        self._budget.note(sum(len(row.token_ids) - row.samples for row in batch.rows), now_s - self._begun_s)
        if all(row.sampling is not None and len(row.token_ids) == row.samples for row in batch.rows):
            appended = sum(len(output.token_ids) for output in outputs)
            drafted = any(row.drafts for row in batch.rows)
            self._lookup.note_step(len(batch.rows), appended, now_s - self._begun_s, drafted=drafted)
        return outputs

    def _propose(self, decoding: tuple[Sequence, ...], drafts: dict[SequenceId, tuple[int, ...]]) -> Mapping[SequenceId, int]:
        """Find drafts for the sequences that decode, and say how many each has."""
        plain = [sequence for sequence in decoding if not adjusts_logits(sequence.request)]
        drafts.update(self._lookup.propose(plain, len(decoding)))
        return {sequence_id: len(offer) for sequence_id, offer in drafts.items()}

    def _row(self, chunk: ScheduledChunk, drafts: Mapping[SequenceId, tuple[int, ...]]) -> BatchRow:
        sequence, start = chunk.sequence, chunk.sequence.computed_tokens
        end = start + chunk.tokens
        samples = end == len(sequence.tokens)
        guesses = drafts[sequence.sequence_id][: chunk.drafts] if chunk.drafts else ()
        return BatchRow(
            sequence_id=sequence.sequence_id,
            start=start,
            token_ids=[*sequence.tokens[start:end], *guesses],
            block_table=sequence.block_table[: self._blocks.blocks_for(end + chunk.drafts)],
            sampling=_sampling_row(sequence.request.sampling) if samples else None,
            drafts=chunk.drafts,
            adjustment=self._rules.adjustment(sequence) if samples else None,
        )

    def _take(self, sequence: Sequence, row: BatchRow, result: StepResult, first: int, now_s: float) -> StepOutput:
        """Append what a row sampled: its token, and as long as the next draft is that very token, the one after it."""
        token_ids: list[int] = []
        logprobs: list[TokenLogprob] = []
        held = 0
        while True:
            index = first + held
            output = self._append(sequence, result.token_ids[index], result.logprobs.get(index), now_s)
            token_ids += output.token_ids
            logprobs += output.logprobs
            if held == row.drafts or output.finish is not None or row.token_ids[held - row.drafts] != result.token_ids[index]:
                break
            held += 1
            self._scheduler.advance(sequence, row.end - row.drafts + held)
        if row.drafts and output.finish is None:
            self._lookup.note_draft(sequence, row.drafts, held)
        return replace(output, token_ids=tuple(token_ids), logprobs=tuple(logprobs))

    def _append(self, sequence: Sequence, token_id: int, logprob: TokenLogprob | None, now_s: float) -> StepOutput:
        if sequence.first_token_s is None:
            sequence.first_token_s = now_s
        if token_id in sequence.stop_token_ids:
            return self._finish(sequence, FinishReason.STOP)
        sequence.tokens.append(token_id)
        logprobs = () if logprob is None else (logprob,)
        try:
            end = self._rules.accept(sequence, token_id)
        except InvalidConstraint as error:
            return self._finish(sequence, FinishReason.REFUSED, error=error)
        if end is not None:
            return self._finish(sequence, FinishReason.STOP, (token_id,), logprobs, stop=end.stop)
        if len(sequence.tokens) >= sequence.max_total_tokens:
            return self._finish(sequence, FinishReason.LENGTH, (token_id,), logprobs)
        return StepOutput(sequence.request.request_id, sequence.sequence_id, (token_id,), logprobs)

    def _finish(
        self,
        sequence: Sequence,
        reason: FinishReason,
        token_ids: tuple[int, ...] = (),
        logprobs: tuple[TokenLogprob, ...] = (),
        *,
        stop: str | None = None,
        error: EngineError | None = None,
    ) -> StepOutput:
        self._leave(sequence)
        if sequence.scheduled_s is not None:
            self._released.append(sequence.sequence_id)
        timings = sequence.timings(self._clock())
        if reason is not FinishReason.ABORTED and sequence.scheduled_s is not None:
            self._seconds_per_answer += 0.1 * (timings.total_s - timings.queue_s - self._seconds_per_answer)
        return StepOutput(sequence.request.request_id, sequence.sequence_id, token_ids, logprobs, reason, timings, stop, error)

    def _leave(self, sequence: Sequence) -> None:
        if sequence in self._scheduler.running or sequence in self._scheduler.waiting:  # not where its constraint is compiled
            self._scheduler.remove(sequence)
        self._forget(sequence)

    def _forget(self, sequence: Sequence) -> None:
        del self._sequences[sequence.request.request_id]
        self._lookup.forget(sequence.sequence_id)
        self._rules.forget(sequence)

    # ---- admission -------------------------------------------------------------------------------------------------------

    def _is_full_for(self, request: Request) -> bool:
        """Say whether the queue has no place for a request.

        A full queue still takes a tenant that has less than its share of it, so that a flood by another does not shut it out; at
        twice its length it takes nobody.
        """
        if self.waiting < self.limits.max_waiting:
            return False
        own = sum(sequence.request.tenant == request.tenant for sequence in self._sequences.values())
        share = self._scheduler.share_of_queue(request.tenant, request.weight, self.limits.max_waiting)
        return own + 1 > share or self.waiting >= 2 * self.limits.max_waiting

    def _retry_after_s(self) -> float:
        """Guess when a place in the queue comes free: with R sequences in the batch, one ends every (seconds per answer) / R."""
        return min(max(self._seconds_per_answer / max(1, self.running), _RETRY_FLOOR_S), _RETRY_CEILING_S)

    def _check(self, request: Request) -> None:
        if request.request_id in self._sequences:
            raise InvalidRequest("request_id", "is in use by a request that has not ended")
        check_request(request, self.spec, self.context_window)


def _sampling_row(sampling: Sampling) -> SamplingRow:
    greedy = sampling.temperature == 0
    return SamplingRow(
        temperature=sampling.temperature,
        top_p=1.0 if greedy else sampling.top_p,
        top_k=None if greedy else sampling.top_k,
        min_p=0.0 if greedy else sampling.min_p,
        seed=0 if greedy or sampling.seed is None else sampling.seed,
        logprobs=sampling.logprobs,
    )
