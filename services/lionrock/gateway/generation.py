"""One answer's token ids, over as many Generate calls as it takes.

Knows the engine's stream and how to resume it: when a shard group is lost, the tokens received stay valid, and prompt + tokens go
to another engine of the model, or to whichever group comes up (sampling is keyed by seed and position, so the answer is the one
that would have come). Does not know text, nor which engines there are: whoever starts its calls does.

Bounded: at most `max_pending` ids wait for the consumer, then the engine's stream is not read; losses are counted, and the time
to find another group is limited.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Self

import grpc
from grpc import StatusCode

from lionrock.chassis.errors import MeshError, Overloaded, RemoteError, remote_error
from lionrock.common.v1 import sampling_pb2 as sampling
from lionrock.gateway import errors
from lionrock.gateway.peer_errors import from_inference, protocol_violation
from lionrock.inference.v1 import inference_pb2 as inf

GenerateCall = grpc.aio.UnaryStreamCall[inf.GenerateRequest, inf.GenerateResponse]
StartGenerate = Callable[[inf.GenerateRequest], GenerateCall]

# What an engine says that is gone or full: another one may be neither.
_ELSEWHERE = (StatusCode.UNAVAILABLE, StatusCode.RESOURCE_EXHAUSTED)


@dataclass(frozen=True, slots=True)
class ResumePolicy:
    """How hard to try after a loss: `max_losses` an answer, `window_s` seconds to find another group each time."""

    max_losses: int
    window_s: float
    first_wait_s: float = 0.1
    max_wait_s: float = 2.0


class _AnotherModelError(Exception):
    """The engine that was asked to go on serves other weights, and there are engines left."""


def _no() -> bool:
    return False


class Generation:
    """Use as an async context manager: generation starts on entry, and leaving cancels whatever still runs."""

    def __init__(
        self,
        start: StartGenerate,
        request: inf.GenerateRequest,
        policy: ResumePolicy,
        max_pending: int,
        *,
        elsewhere: Callable[[], bool] = _no,
        reject: Callable[[], bool] = _no,
    ) -> None:
        """`start` makes one Generate call. `request` is that of the undisturbed answer.

        `elsewhere` says whether `start` has an engine left that was not tried; `reject` keeps it off the last one, and says
        whether there are others.
        """
        self._start = start
        self._elsewhere = elsewhere
        self._reject = reject
        self._request = request
        self._prompt_tokens = len(request.token_ids)
        self._policy = policy
        self._max_pending = max_pending
        self._received: list[int] = []
        self._logprobs: deque[inf.TokenLogprobs] = deque()
        self._wants_logprobs = request.sampling.HasField("logprobs")
        self._taken = 0
        self._started: inf.GenerateResponse.Started | None = None
        self._finished: inf.GenerateResponse.Finished | None = None
        self._error: MeshError | None = None
        self._cached_prompt_tokens = 0
        self._progress = asyncio.Event()  # something for the consumer
        self._room = asyncio.Event()  # something for the reader
        self._reader: asyncio.Task[None] | None = None
        self.resumptions = 0

    @property
    def usage(self) -> sampling.TokenUsage:
        """Counts so far. A resumed answer has the prompt and the tokens of the undisturbed one."""
        return sampling.TokenUsage(
            prompt_tokens=self._prompt_tokens,
            completion_tokens=len(self._received),
            cached_prompt_tokens=min(self._cached_prompt_tokens, self._prompt_tokens),
        )

    @property
    def identity(self) -> inf.GenerateResponse.Started | None:
        """What answers; None before the engine admitted the sequence."""
        return self._started

    @property
    def failed(self) -> bool:
        """Whether the engines could not do what they should; a request that they refused for its own faults is not failed."""
        return isinstance(self._error, errors.InferenceUnavailable | Overloaded)

    async def __aenter__(self) -> Self:
        self._reader = asyncio.create_task(self._read())
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        assert self._reader is not None
        self._reader.cancel()
        await asyncio.wait([self._reader])

    async def started(self) -> inf.GenerateResponse.Started:
        """Wait until the engine has admitted the sequence. Raises InferenceUnavailable and what it passes on (peer_errors.py)."""
        while self._started is None:
            await self._wait_for_progress()
        return self._started

    async def take(self, most: int, not_before: float = 0.0) -> Sequence[int]:
        """Return the ids that have arrived since the last call, at most `most`; empty once generation has ended.

        Waits for one id at least, and, so that tokens gather under load, until the loop's time `not_before` unless the end comes
        first. Raises like started, after all ids that arrived before the failure were taken.
        """
        while self._taken == len(self._received) and self._finished is None:
            await self._wait_for_progress()
        loop = asyncio.get_running_loop()
        while (
            self._finished is None and self._error is None and len(self._received) - self._taken < most and loop.time() < not_before
        ):
            self._progress.clear()
            try:
                async with asyncio.timeout_at(not_before):
                    await self._progress.wait()
            except TimeoutError:
                break
        ids = self._received[self._taken : self._taken + most]
        self._taken += len(ids)
        self._room.set()
        return ids

    def take_logprobs(self, count: int) -> list[inf.TokenLogprobs]:
        """Return the log-probabilities of the `count` ids that were taken last, where they were asked for; once."""
        return [self._logprobs.popleft() for _ in range(count)]

    @property
    def finish_reason(self) -> sampling.FinishReason.ValueType:
        """Why the engine ended. Only after `take` returned nothing."""
        assert self._finished is not None
        return self._finished.reason

    async def _wait_for_progress(self) -> None:
        if self._error is not None:
            raise self._error
        assert self._reader is not None
        if self._reader.done():
            self._reader.result()  # a mistake of ours: raise it here, where somebody waits
        self._progress.clear()
        await self._progress.wait()

    async def _read(self) -> None:
        try:
            await self._read_all_calls()
        except MeshError as error:
            self._error = error
        finally:
            self._progress.set()

    async def _read_all_calls(self) -> None:
        losses = 0
        give_up_at: float | None = None
        wait_s = self._policy.first_wait_s
        loop = asyncio.get_running_loop()
        while self._finished is None:
            before = len(self._received)
            try:
                await self._read_one_call(resuming=losses > 0)
            except _AnotherModelError:
                continue
            except grpc.aio.AioRpcError as failure:
                error = remote_error(failure)
                if give_up_at is None or len(self._received) > before:
                    losses += 1
                    give_up_at = loop.time() + self._policy.window_s
                    wait_s = self._policy.first_wait_s
                at_once = error.status in _ELSEWHERE and self._elsewhere()
                resumable = at_once or self._resumable(error, resuming=losses > 1 or self._started is not None)
                if not resumable or losses > self._policy.max_losses:
                    raise from_inference(error) from failure
                if at_once:
                    continue
                wait_s = max(wait_s, error.retry_after_s or 0.0)
                if loop.time() + wait_s > give_up_at:
                    raise from_inference(error) from failure
                await asyncio.sleep(wait_s)
                wait_s = min(2 * wait_s, self._policy.max_wait_s)

    def _resumable(self, error: RemoteError, *, resuming: bool) -> bool:
        """Whether another call can go on.

        An engine that never took the sequence is only waited for when it says that it comes back.
        """
        if error.reason == "SHARD_GROUP_LOST":
            return True
        return resuming and error.status in _ELSEWHERE

    async def _read_one_call(self, *, resuming: bool) -> None:
        if self._request.sampling.HasField("max_tokens") and len(self._received) >= self._request.sampling.max_tokens:
            # Lost between the last token and the final message: nothing is left to generate.
            self._finished = inf.GenerateResponse.Finished(reason=sampling.FINISH_REASON_LENGTH)
            return
        call = self._start(self._resumed_request())
        admitted = False
        try:
            async for response in call:
                match response.WhichOneof("message"):
                    case "started" if not admitted:
                        admitted = True
                        self._accept_started(response.started, resuming=resuming)
                    case "tokens" if admitted:
                        if self._wants_logprobs:
                            if len(response.tokens.logprobs) != len(response.tokens.token_ids):
                                raise from_inference(protocol_violation("LOGPROBS_MISSING"))
                            self._logprobs.extend(response.tokens.logprobs)
                        self._received.extend(response.tokens.token_ids)
                    case "finished" if admitted:
                        self._finished = response.finished
                        if not self.resumptions:
                            self._cached_prompt_tokens = response.finished.usage.cached_prompt_tokens
                        return
                    case _:
                        raise from_inference(protocol_violation("MESSAGE_OUT_OF_ORDER"))
                self._progress.set()
                while len(self._received) - self._taken >= self._max_pending:
                    self._room.clear()
                    await self._room.wait()
        finally:
            call.cancel()
        raise from_inference(protocol_violation("STREAM_ENDED_EARLY"))

    def _accept_started(self, started: inf.GenerateResponse.Started, *, resuming: bool) -> None:
        if self._started is None:
            self._started = started
            return
        if started.model.weights_digest != self._started.model.weights_digest:
            if self._reject():
                raise _AnotherModelError
            # Half an answer each of two models would be nobody's answer.
            raise errors.InferenceUnavailable(
                "the model changed before the answer was resumed", metadata={"peer_reason": "MODEL_CHANGED"}
            )
        if resuming:
            self.resumptions += 1

    def _resumed_request(self) -> inf.GenerateRequest:
        if not self._received:
            return self._request
        request = inf.GenerateRequest()
        request.CopyFrom(self._request)
        request.token_ids.extend(self._received)
        request.resumed_tokens = len(self._received)
        del request.sampling.stop[:]  # not every engine knows what resumed tokens spell; whoever cuts the text closes the call
        return request
