"""One request on its way through vLLM: what is left of it to do, and what vLLM's outputs mean for it. Knows no vLLM call.

Stop strings are found here, in the bytes of the tokens as the torch engine does, not by vLLM: its own search knows nothing of the
tokens before a resume.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from lionrock.inference.engine.errors import EngineError
from lionrock.inference.engine.runner import RunnerSpec
from lionrock.inference.engine.sequence import FinishReason, Request, SequenceId, StepOutput, Timings, TokenLogprob
from lionrock.inference.engine.stop_strings import StopStrings
from lionrock.modelstore.vocabulary import Vocabulary

if TYPE_CHECKING:
    from vllm.outputs import CompletionOutput, RequestOutput


class VllmSequence:
    """The state of an admitted request."""

    def __init__(
        self,
        request: Request,
        sequence_id: SequenceId,
        spec: RunnerSpec,
        max_answer_tokens: int,
        vocabulary: Vocabulary | None,
        grammar_end: frozenset[int],
    ) -> None:
        """Take an admitted request. vocabulary: wanted for stop strings. grammar_end: ids that end a constrained answer."""
        sampling = request.sampling
        self.request = request
        self.sequence_id = sequence_id
        self.prompt_tokens = len(request.token_ids) - request.resumed_tokens
        answer_tokens = min(sampling.max_tokens or max_answer_tokens, max_answer_tokens)
        self.max_new_tokens = min(answer_tokens - request.resumed_tokens, spec.context_window - len(request.token_ids))
        """Tokens that may still come; 0 or less: it was resumed after its last one."""
        stop = frozenset(i for i in sampling.stop_token_ids if i < spec.vocab_size)  # others never come
        if request.constraint is not None:
            stop |= grammar_end | spec.eos_token_ids
        self.stop_token_ids = stop if sampling.ignore_eos else stop | spec.eos_token_ids
        self._vocabulary = vocabulary
        self._stops: StopStrings | None = None
        if sampling.stop:
            assert vocabulary is not None, "stop strings are not offered without one"
            self._stops = StopStrings(sampling.stop)
            for token_id in request.token_ids[self.prompt_tokens :]:
                self._stops.push(vocabulary.bytes_of(token_id))
        self._answer_tokens = request.resumed_tokens
        self.ended = False
        """Whether the last output has come."""
        self._admitted_s = time.monotonic()
        self._first_token_s: float | None = None

    @property
    def new_tokens(self) -> int:
        """Tokens that vLLM has made for the answer."""
        return self._answer_tokens - self.request.resumed_tokens

    def ended_before(self) -> StepOutput | None:
        """Return the last output of an answer that was resumed at its end: there is nothing to generate."""
        if self._stops is not None and self._stops.found is not None:
            return self._step((), (), FinishReason.STOP, None)
        if self.max_new_tokens <= 0:
            return self._step((), (), FinishReason.LENGTH, None)
        return None

    def take(self, output: RequestOutput) -> StepOutput:
        """Return our form of an output; what vLLM generated beyond a stop string is not in it. Raises EngineError."""
        (completion,) = output.outputs
        if completion.token_ids and self._first_token_s is None:
            self._first_token_s = time.monotonic()
        finish: FinishReason | None = None
        if output.finished:
            if completion.finish_reason not in ("stop", "length"):
                raise EngineError(f"vLLM ended the sequence with {completion.finish_reason}")
            finish = FinishReason(completion.finish_reason)
        token_ids = tuple(completion.token_ids)
        if finish is FinishReason.STOP and token_ids and token_ids[-1] in self.stop_token_ids:
            token_ids = token_ids[:-1]
        for index, token_id in enumerate(token_ids if self._stops is not None else ()):
            assert self._stops is not None
            assert self._vocabulary is not None
            if self._stops.push(self._vocabulary.bytes_of(token_id)) is not None:
                token_ids, finish = token_ids[: index + 1], FinishReason.STOP
                break
        self._answer_tokens += len(token_ids)
        self.ended = finish is not None
        return self._step(token_ids, self._logprobs(token_ids, completion), finish, output)

    def _logprobs(self, token_ids: tuple[int, ...], completion: CompletionOutput) -> tuple[TokenLogprob, ...]:
        count = self.request.sampling.logprobs
        if count is None or completion.logprobs is None:
            return ()
        entries = zip(token_ids, list(completion.logprobs)[: len(token_ids)], strict=True)
        return tuple(_logprob(token_id, entry, count) for token_id, entry in entries)

    def _step(
        self,
        token_ids: tuple[int, ...],
        logprobs: tuple[TokenLogprob, ...],
        finish: FinishReason | None,
        output: RequestOutput | None,
    ) -> StepOutput:
        timings = None if finish is None else self._timings(output)
        stop = None if self._stops is None else self._stops.found
        return StepOutput(self.request.request_id, self.sequence_id, token_ids, logprobs, finish, timings, stop)

    def _timings(self, output: RequestOutput | None) -> Timings:
        metrics = None if output is None else output.metrics
        total_s = time.monotonic() - self._admitted_s
        return Timings(
            # Both times are of the engine's process.
            queue_s=total_s if metrics is None else max(0.0, metrics.scheduled_ts - metrics.queued_ts),
            first_token_s=None if self._first_token_s is None else self._first_token_s - self._admitted_s,
            total_s=total_s,
            prompt_tokens=self.prompt_tokens,
            cached_prompt_tokens=0 if output is None else min(output.num_cached_tokens or 0, self.prompt_tokens),
            completion_tokens=self._answer_tokens,
            preemptions=0 if metrics is None else metrics.num_preemptions,
        )


def _logprob(token_id: int, entry: Any, count: int) -> TokenLogprob:
    """VLLM gives the chosen token and the best ones in one mapping from id to value."""
    ranked = sorted(((i, value.logprob) for i, value in entry.items()), key=lambda pair: -pair[1])
    return TokenLogprob(entry[token_id].logprob, tuple(ranked[:count]))
