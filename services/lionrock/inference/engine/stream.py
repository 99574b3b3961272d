"""One request's outputs on their way to its consumer, and the policy by which tokens coalesce.

The first token of a stream is delivered at once. Later ones wait a little while other streams are active, because a message
costs its receivers more CPU than a token does; a lone stream gets every token as it comes. A slow consumer gets everything that
has gathered in one output, so a stream holds at most its own answer. Knows no engine and no thread.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

from lionrock.inference.engine.errors import EngineError, RequestExpired
from lionrock.inference.engine.sequence import FinishReason, RequestId, SequenceId, StepOutput


@dataclass(frozen=True, slots=True)
class Coalescing:
    """How long tokens of one stream may gather, by the number of active streams."""

    per_stream_s: float = 0.025
    ceiling_s: float = 0.4

    def interval_s(self, active_streams: int) -> float:
        """Least time between two outputs of a stream; 0 for a lone stream."""
        return min(self.ceiling_s, self.per_stream_s * (active_streams - 1))


class Stream:
    """One request's outputs: an async iterator for one consumer, on the loop that submitted it.

    The last output carries `finish`. Iteration raises RequestExpired, ShardGroupLost or EngineDraining where the sequence ended
    without an answer, after the tokens that came before.
    """

    def __init__(self, request_id: RequestId, sequence_id: SequenceId, on_close: Callable[[Stream], None]) -> None:
        """on_close: called once if the consumer leaves before the end."""
        self.request_id = request_id
        self.sequence_id = sequence_id
        self._on_close = on_close
        self._loop = asyncio.get_running_loop()
        self._gathered: list[StepOutput] = []
        self._error: EngineError | None = None
        self._ended = False
        self._consumed = False
        self._due = asyncio.Event()
        self._timer: asyncio.TimerHandle | None = None
        self._delivered_s: float | None = None

    def __aiter__(self) -> Stream:
        return self

    async def __anext__(self) -> StepOutput:
        if self._consumed:
            raise StopAsyncIteration
        await self._due.wait()
        self._cancel_timer()
        if self._gathered:
            output = _merge(self._gathered)
            self._gathered = []
            self._delivered_s = self._loop.time()
            if output.finish is not None:
                self._consumed = True
            elif not self._ended:
                self._due.clear()
            return output
        self._consumed = True
        if self._error is not None:
            raise self._error
        raise StopAsyncIteration

    def close(self) -> None:
        """Abort the sequence unless it has ended. May be called at any time, more than once."""
        self._cancel_timer()
        if not self._ended:
            self._on_close(self)
        self._consumed = self._ended = True
        self._due.set()

    def push(self, output: StepOutput, interval_s: float) -> None:
        """Add an output (for the owner). interval_s: least time since the one delivered before, unless this is the last."""
        if output.finish is FinishReason.EXPIRED:
            self.fail(RequestExpired())
            return
        if output.error is not None:
            self.fail(output.error)
            return
        self._gathered.append(output)
        if output.finish is not None:
            self._ended = True
            self._due.set()
        elif self._delivered_s is None or (wait_s := self._delivered_s + interval_s - self._loop.time()) <= 0:
            self._due.set()
        elif self._timer is None and not self._due.is_set():
            self._timer = self._loop.call_later(wait_s, self._due.set)

    def fail(self, error: EngineError) -> None:
        """End with an error, after what has gathered (for the owner)."""
        self._error, self._ended = error, True
        self._due.set()

    def _cancel_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


def _merge(outputs: list[StepOutput]) -> StepOutput:
    """One output that says what all of them said, in order."""
    last = outputs[-1]
    if len(outputs) == 1:
        return last
    return StepOutput(
        last.request_id,
        last.sequence_id,
        tuple(token_id for output in outputs for token_id in output.token_ids),
        tuple(logprob for output in outputs for logprob in output.logprobs),
        last.finish,
        last.timings,
        last.stop,
    )
