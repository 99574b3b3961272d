"""One replica: an engine whose shard group is built anew in place whenever it is lost.

It is not ready meanwhile, but takes requests where its engine does: streams pause and go on with the new group.
Knows the wire's messages (it writes the frames that the front passes on) and what backends have in common; not which one it runs,
nor Ray, which carries its calls.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from functools import partial

from lionrock.chassis.errors import Internal, MeshError
from lionrock.chassis.ids import uuid7
from lionrock.inference.backends.backend import EngineBackend
from lionrock.inference.engine.errors import EngineError, ShardGroupLost
from lionrock.inference.engine.sequence import FinishReason, StepOutput
from lionrock.inference.errors import RESTART_RETRY_AFTER_S, ModelNotReady, encode_error, mesh_error
from lionrock.inference.spans import start_sequence_span
from lionrock.inference.v1 import inference_pb2 as pb
from lionrock.inference.wire import engine_request, finished_message, tokens_message

log = logging.getLogger("lionrock.inference")

RESPONSE, ERROR = b"\x00", b"\x01"
"""First byte of a frame to the front: a GenerateResponse, or the envelope of the error that ends the stream."""

MAX_START_FAILURES = 5
_BACKOFF_S = (0.0, 0.5, 1.0, 2.0, 4.0)


@dataclass(frozen=True, slots=True)
class ReplicaStatus:
    """What a replica says of itself to the front."""

    ready: bool
    served: bytes
    """A serialised ServedModel; whether it is ready, and how often it runs, is the front's to say."""
    problem: str | None
    """Why it is not ready, for the log."""
    running: int
    waiting: int


class Replica:
    """Keeps a shard group alive and serves sequences on it. Made on the event loop that it lives on."""

    def __init__(
        self,
        served: pb.ServedModel,
        replica_id: str,
        engine: EngineBackend,
        loaded_percent: Callable[[], int | None] = lambda: None,
    ) -> None:
        """Take over the engine, not started.

        served: the model without its state. loaded_percent: of its weights, while it loads them.
        """
        self._loaded_percent = loaded_percent
        self._served = served
        self._id = replica_id
        self._engine = engine
        self._ready = False
        self._problem: str | None = "starting"
        self._failures = 0
        self._starts = 0
        self._loop = asyncio.get_running_loop()
        self._lost = asyncio.Event()
        self._keeper = asyncio.create_task(self._keep_group(), name="lionrock-shard-group")

    def status(self) -> ReplicaStatus:
        """Return how it is now."""
        engine = self._engine
        problem = self._problem
        if not self._ready and (percent := self._loaded_percent()) is not None:
            problem = f"loading, {percent // 10 * 10} % of the weights read"
        served = pb.ServedModel()
        served.CopyFrom(self._served)
        if (spec := engine.spec) is not None:
            served.kv_cache_tokens = spec.kv_blocks * spec.kv_block_size
            served.sampling_options.extend(sorted(spec.sampling_options))
        return ReplicaStatus(self._ready, served.SerializeToString(), problem, engine.running, engine.waiting)

    @property
    def hopeless(self) -> str | None:
        """Why building a group failed again and again, or None while there is hope."""
        return self._problem if self._failures >= MAX_START_FAILURES else None

    async def generate(self, request: bytes, traceparent: str | None, timeout_s: float) -> AsyncIterator[bytes]:
        """Yield the frames of one answer; an error is the last frame, never an exception.

        request: a serialised GenerateRequest. timeout_s: what is left until the deadline. Closing the iterator aborts the sequence.
        """
        deadline_s = time.monotonic() + timeout_s
        try:
            async for message in self._answer(pb.GenerateRequest.FromString(request), traceparent, deadline_s):
                yield RESPONSE + message.SerializeToString()
        except EngineError as error:
            yield ERROR + encode_error(mesh_error(error))
        except MeshError as error:
            yield ERROR + encode_error(error)
        except Exception:
            error_id = uuid7()
            log.exception("a sequence failed", extra={"error_id": error_id})
            yield ERROR + encode_error(Internal("the engine failed", metadata={"error_id": error_id}))

    async def close(self) -> None:
        """End streams, ranks and engine."""
        self._keeper.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._keeper
        await self._engine.close()

    async def _answer(
        self, request: pb.GenerateRequest, traceparent: str | None, deadline_s: float
    ) -> AsyncIterator[pb.GenerateResponse]:
        if self._engine.spec is None:
            raise ModelNotReady("the model is being loaded", retry_after_s=RESTART_RETRY_AFTER_S)
        stream = self._engine.submit(engine_request(request, deadline_s))
        span = start_sequence_span(traceparent, self._served.identity.model, self._id)
        ranks_traceparent = span.traceparent  # none once the span has ended
        outcome = "cancelled"
        try:
            started = pb.GenerateResponse.Started(replica=self._id, model=self._served.identity, plan=self._served.plan)
            yield pb.GenerateResponse(started=started)
            async for output in stream:
                if output.token_ids:
                    yield tokens_message(output)
                if output.finish is not None:
                    assert output.timings is not None, "the last output has timings"
                    span.finish(output.timings, output.finish.value)
                    self._report(output, ranks_traceparent)
                    outcome = ""
                    yield finished_message(output)
        except EngineError as error:
            outcome = type(error).__name__
            raise
        finally:
            stream.close()
            if outcome:
                span.fail(outcome)

    def _report(self, output: StepOutput, traceparent: str | None) -> None:
        if traceparent is not None and output.finish in (FinishReason.STOP, FinishReason.LENGTH):
            self._engine.sequence_ended(output.sequence_id, traceparent)

    async def _keep_group(self) -> None:
        """Build a group; whenever it is lost, build another."""
        while True:
            self._lost.clear()
            self._starts += 1
            begin_s = time.monotonic()
            try:
                await self._engine.start(partial(self._group_lost, self._starts))
            except ShardGroupLost as error:
                self._failures += 1
                self._problem = str(error)
                log.error("attempt %d to build the shard group failed: %s", self._failures, error)
                if self.hopeless is not None:
                    self._engine.give_up(f"the shard group cannot be built: {error}")
                await asyncio.sleep(_BACKOFF_S[min(self._failures, len(_BACKOFF_S) - 1)])
                continue
            self._failures = 0
            if not self._lost.is_set():
                self._problem, self._ready = None, True
                log.info("the shard group is ready after %.2f s", time.monotonic() - begin_s)
            await self._lost.wait()
            self._ready = False
            log.warning("the shard group is built anew")

    def _group_lost(self, start: int, reason: str) -> None:
        """Note the loss of what the start of that number built (any thread)."""
        self._loop.call_soon_threadsafe(self._note_loss, start, reason)

    def _note_loss(self, start: int, reason: str) -> None:
        if start == self._starts:
            self._ready, self._problem = False, reason
            self._lost.set()
