"""What answers must obey beyond sampling: penalties and bias, stop strings, constraints; and when these end an answer.

Keeps what each answer has come to, from the tokens that it has; so a preemption or a lost runner changes nothing, and a resumed
answer starts where the tokens it brings have led. A constrained sequence first waits, outside the scheduler, until its constraint
is compiled.

Knows sequences and tokens' bytes; no scheduling, no torch.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass

from lionrock.inference.engine.admission import adjusts_logits
from lionrock.inference.engine.batch import LogitAdjustment
from lionrock.inference.engine.constraints import Constraints
from lionrock.inference.engine.errors import EngineError
from lionrock.inference.engine.grammar import AnswerMatcher
from lionrock.inference.engine.sequence import Sequence, SequenceId
from lionrock.inference.engine.stop_strings import StopStrings
from lionrock.modelstore.vocabulary import Vocabulary


@dataclass(slots=True)
class _Answer:
    """What one answer has come to."""

    stops: StopStrings | None = None
    matcher: AnswerMatcher | None = None


@dataclass(frozen=True, slots=True)
class AnswerEnd:
    """Why an answer is complete. stop: the stop string, if it was one."""

    stop: str | None = None


class AnswerRules:
    """The rules of one engine's answers. Not safe for threads, except that `on_prepared` is called from any."""

    def __init__(self, vocabulary: Vocabulary | None, constraints: Constraints | None) -> None:
        """vocabulary: None: no stop strings; constraints: None: no constraints."""
        self._vocabulary = vocabulary
        self._constraints = constraints
        self._answers: dict[SequenceId, _Answer] = {}
        self._waiting: dict[SequenceId, tuple[Sequence, Future[AnswerMatcher]]] = {}
        self.on_prepared: Callable[[], None] = lambda: None

    @property
    def offered(self) -> frozenset[str]:
        """Fields of requests that can be honoured thanks to the vocabulary."""
        stop = frozenset({"stop"}) if self._vocabulary is not None else frozenset[str]()
        return stop | {"constraint"} if self._constraints is not None else stop

    # ---- before a sequence runs ------------------------------------------------------------------------------------------

    def begin(self, sequence: Sequence) -> None:
        """Take up a sequence with the tokens that it has. Raises InvalidConstraint; then nothing has changed."""
        request, answer = sequence.request, sequence.tokens[sequence.prompt_tokens :]
        if request.constraint is not None:
            assert self._constraints is not None, "admission refuses what is not offered"
            future = self._constraints.begin(request.constraint, answer)
            self._waiting[sequence.sequence_id] = (sequence, future)
            future.add_done_callback(lambda _: self.on_prepared())
        if request.sampling.stop:
            assert self._vocabulary is not None, "admission refuses what is not offered"
            stops = StopStrings(request.sampling.stop)
            self._answers[sequence.sequence_id] = _Answer(stops)
            for token_id in answer:
                stops.push(self._vocabulary.bytes_of(token_id))

    @property
    def waiting(self) -> int:
        """Sequences whose constraint is not compiled yet, or not taken."""
        return len(self._waiting)

    @property
    def any_prepared(self) -> bool:
        """Whether `take_prepared` has something."""
        return any(future.done() for _, future in self._waiting.values())

    def waits(self, sequence: Sequence) -> bool:
        """Whether the sequence waits for its constraint."""
        return sequence.sequence_id in self._waiting

    def wait(self, timeout_s: float | None) -> None:
        """Return once `take_prepared` has something, or after the time."""
        wait([future for _, future in self._waiting.values()], timeout_s, FIRST_COMPLETED)

    def take_prepared(self) -> list[tuple[Sequence, EngineError | None]]:
        """Return the sequences that need wait no longer, in order of arrival, each with why it cannot run, if so."""
        prepared: list[tuple[Sequence, EngineError | None]] = []
        for sequence, future in tuple(self._waiting.values()):
            if not future.done():
                continue
            del self._waiting[sequence.sequence_id]
            error = future.exception()
            if error is None:
                self._answers.setdefault(sequence.sequence_id, _Answer()).matcher = future.result()
                prepared.append((sequence, None))
            else:
                known = error if isinstance(error, EngineError) else EngineError(f"a constraint failed: {type(error).__name__}")
                prepared.append((sequence, known))
        return prepared

    # ---- while it runs ---------------------------------------------------------------------------------------------------

    def adjustment(self, sequence: Sequence) -> LogitAdjustment | None:
        """Return what changes the logits from which the sequence's next token is chosen."""
        request = sequence.request
        if not adjusts_logits(request):
            return None
        sampling = request.sampling
        answer = self._answers.get(sequence.sequence_id)
        tokens: list[int] = []
        prompt_tokens = 0
        if sampling.repetition_penalty != 1.0:
            tokens, prompt_tokens = sequence.tokens[:], sequence.prompt_tokens
        elif sampling.presence_penalty or sampling.frequency_penalty:
            tokens = sequence.tokens[sequence.prompt_tokens :]
        return LogitAdjustment(
            tokens=tokens,
            prompt_tokens=prompt_tokens,
            repetition_penalty=sampling.repetition_penalty,
            presence_penalty=sampling.presence_penalty,
            frequency_penalty=sampling.frequency_penalty,
            logit_bias=tuple(sampling.logit_bias.items()),
            allowed=answer.matcher.allowed if answer is not None and answer.matcher is not None else b"",
        )

    def accept(self, sequence: Sequence, token_id: int) -> AnswerEnd | None:
        """Go on with a token of the answer that does not stop it by itself; returns why the answer is complete, if it is.

        Raises InvalidConstraint where the constraint turns out to lead nowhere.
        """
        answer = self._answers.get(sequence.sequence_id)
        if answer is None:
            return None
        if answer.matcher is not None:
            answer.matcher.accept(token_id)
        if answer.stops is not None:
            assert self._vocabulary is not None, "stop strings need it"
            answer.stops.push(self._vocabulary.bytes_of(token_id))
        return self.end(sequence)

    def end(self, sequence: Sequence) -> AnswerEnd | None:
        """Return why the answer is complete with the tokens that it has, if it is."""
        answer = self._answers.get(sequence.sequence_id)
        if answer is None:
            return None
        if answer.stops is not None and answer.stops.found is not None:
            return AnswerEnd(answer.stops.found)
        return AnswerEnd() if answer.matcher is not None and answer.matcher.ended else None

    def forget(self, sequence: Sequence) -> None:
        """Drop what is known of a sequence that has left."""
        self._answers.pop(sequence.sequence_id, None)
        waiting = self._waiting.pop(sequence.sequence_id, None)
        if waiting is not None:
            waiting[1].cancel()

    def close(self) -> None:
        """End what compiles constraints."""
        if self._constraints is not None:
            self._constraints.close()
