"""The asyncio front of an engine: a thread that steps, and streams on an event loop.

Cancelling a stream's consumer, or closing its generator, takes the sequence out of the engine before the next step is scheduled.

When the runner is gone, streams pause: the engine keeps their sequences, new requests queue within its bounds, deadlines pass and
aborts work, and the owner gives the engine another runner, on which every sequence is computed anew from the tokens that it has.
Where no runner comes in time, or the owner gives up, every stream ends with ShardGroupLost.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from types import TracebackType

from lionrock.inference.engine.batch import StepBatch
from lionrock.inference.engine.engine import MAX_FAILED_STEPS, Engine
from lionrock.inference.engine.errors import EngineDraining, InvalidRequest, ShardGroupLost
from lionrock.inference.engine.runner import ModelRunner, RunnerSpec
from lionrock.inference.engine.sequence import Request, RequestId, SequenceId, StepOutput
from lionrock.inference.engine.sequence import Sequence as EngineSequence
from lionrock.inference.engine.stream import Coalescing, Stream

log = logging.getLogger("lionrock.inference")

_PAUSED_LOOK_S = 0.05
"""Time between two looks at deadlines while there is no runner."""


class AsyncEngine:
    """Runs an engine's steps in its own thread for consumers on one event loop. Use `async with`, or `start()` and `close()`."""

    def __init__(
        self,
        engine: Engine,
        *,
        coalescing: Coalescing | None = None,
        resume_timeout_s: float = 0.0,
        on_lost: Callable[[ShardGroupLost], None] | None = None,
    ) -> None:
        """Take over the engine.

        resume_timeout_s: how long streams wait for another runner, by the engine's clock; 0 where nobody will give one.
        on_lost: called on the event loop when the runner is gone and a new one is wanted.
        """
        self._engine = engine
        self._resume_timeout_s = resume_timeout_s
        self._coalescing = coalescing or Coalescing()
        self._on_lost = on_lost
        self._streams: dict[RequestId, Stream] = {}
        self._changed = threading.Condition()  # guards the engine and the fields below
        self._executing = False
        self._closing = False
        self._draining = False
        self._lost: ShardGroupLost | None = None
        self._resume_until_s = 0.0  # by the engine's clock, while lost
        self._thread: threading.Thread | None = None
        self._idle = asyncio.Event()
        self._idle.set()

    async def __aenter__(self) -> AsyncEngine:
        self.start()
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        await self.close()

    def start(self) -> None:
        """Start the step thread; outputs go to the running event loop."""
        assert self._thread is None, "an engine is started once"
        self._loop = asyncio.get_running_loop()
        self._engine.on_prepared(self._wake)
        self._thread = threading.Thread(target=self._run, name="lionrock-engine", daemon=True)
        self._thread.start()

    # ---- for consumers ---------------------------------------------------------------------------------------------------

    @property
    def spec(self) -> RunnerSpec:
        """What the model is."""
        return self._engine.spec

    @property
    def engine(self) -> Engine:
        """The engine underneath, for its figures; only this object may call its methods."""
        return self._engine

    @property
    def active_streams(self) -> int:
        """Streams that have not ended."""
        return len(self._streams)

    @property
    def lost(self) -> ShardGroupLost | None:
        """Why there is no runner now, as far as a step has found out, or None."""
        return self._lost

    def submit(self, request: Request) -> Stream:
        """Admit a request and return its stream, which the caller must close.

        Raises what `Engine.add` raises, EngineDraining, or ShardGroupLost when there is no runner and none is waited for.
        """
        if request.request_id in self._streams:
            raise InvalidRequest("request_id", "is in use by a stream that has not ended")
        with self._changed:
            if self._draining or self._closing:
                raise EngineDraining
            if self._lost is not None and self._hopeless:
                raise ShardGroupLost(*self._lost.args)
            sequence_id = self._engine.add(request)
            self._changed.notify()
        stream = Stream(request.request_id, sequence_id, self._abort)
        self._streams[request.request_id] = stream
        self._idle.clear()
        return stream

    async def generate(self, request: Request) -> AsyncIterator[StepOutput]:
        """Yield the outputs of a request; the last one carries `finish`. Raises as `submit` and `Stream` do."""
        stream = self.submit(request)
        try:
            async for output in stream:
                yield output
        finally:
            stream.close()

    # ---- for the owner ---------------------------------------------------------------------------------------------------

    def replace_runner(self, runner: ModelRunner) -> None:
        """Go on with another runner of the same model, on the event loop. The old one is the caller's to close.

        Raises RuntimeError while a step runs on the old one; on a lost one, a step soon ends.
        """
        with self._changed:
            if self._executing:
                raise RuntimeError("a runner in use cannot be replaced")
            given_up = self._engine.replace_runner(runner)
            self._lost = None
            self._changed.notify()
            self._post((), _failures(given_up, ShardGroupLost("the sequence does not fit the KV cache of the new shard group")))

    def give_up(self, reason: str) -> None:
        """End every stream with ShardGroupLost and refuse new requests until there is another runner (on the event loop)."""
        with self._changed:
            self._lost = ShardGroupLost(reason)
            self._resume_until_s = self._engine.now_s()
            self._post((), _failures(self._engine.drop_all(), self._lost))

    async def drain(self) -> None:
        """Refuse new requests and return when the last stream has ended. Bound it with `asyncio.timeout`."""
        with self._changed:
            self._draining = True
        await self._idle.wait()

    async def close(self) -> None:
        """End every stream with EngineDraining, stop the thread after the step in flight, close the runner."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        for stream in tuple(self._streams.values()):
            stream.fail(EngineDraining())
        self._streams.clear()
        self._idle.set()
        if self._thread is not None:
            await asyncio.to_thread(self._thread.join)
        self._engine.runner.close()
        self._engine.close()

    # ---- between the threads ---------------------------------------------------------------------------------------------

    def _wake(self) -> None:
        """Have the step thread look again (any thread)."""
        with self._changed:
            self._changed.notify()

    def _abort(self, stream: Stream) -> None:
        if self._streams.get(stream.request_id) is not stream:
            return
        with self._changed:
            self._engine.abort(stream.request_id)
        self._forget(stream)

    def _forget(self, stream: Stream) -> None:
        del self._streams[stream.request_id]
        if not self._streams:
            self._idle.set()

    @property
    def _hopeless(self) -> bool:
        """Whether nobody waits for a runner any more (the holder of the lock, while there is none)."""
        return self._engine.now_s() >= self._resume_until_s

    def _run(self) -> None:
        """Step until closed (the step thread)."""
        while True:
            with self._changed:
                if self._closing:
                    return
                if not self._engine.has_work:
                    self._changed.wait()
                    continue
                if self._lost is not None:
                    self._pause(self._lost)
                    continue
                if self._engine.idle_s != 0:
                    self._changed.wait(self._engine.idle_s)
                    continue
                batch, outputs = self._schedule()
            if batch is not None:
                self._execute(batch, outputs)

    def _schedule(self) -> tuple[StepBatch | None, list[StepOutput]]:
        """Choose a step (the holder of the lock)."""
        try:
            batch, outputs = self._engine.schedule()
        except Exception as error:
            log.exception("the engine failed")
            self._break(error)
            return None, []
        self._executing = batch is not None
        if batch is None:
            self._post(outputs)
        return batch, outputs

    def _break(self, error: Exception) -> None:
        """End every stream after a mistake of the engine's own, whose state is then unknown (the holder of the lock)."""
        self._lost = ShardGroupLost(f"the engine failed with {type(error).__name__}")
        self._resume_until_s = self._engine.now_s() + self._resume_timeout_s
        self._engine.drop_all()
        self._call_soon(self._fail_all, self._lost)

    def _pause(self, lost: ShardGroupLost) -> None:
        """Let pass a moment without a runner, in which sequences may end (the holder of the lock)."""
        outputs = self._engine.expire()
        dropped = self._engine.drop_all() if self._hopeless else []
        if outputs or dropped:
            self._post(outputs, _failures(dropped, lost))
        else:
            self._changed.wait(_PAUSED_LOOK_S)

    def _execute(self, batch: StepBatch, outputs: list[StepOutput]) -> None:
        """Run the batch and post what it gave. When the runner is gone, the step gave nothing and streams pause."""
        lost: ShardGroupLost | None = None
        try:
            result = self._engine.runner.execute(batch)
        except ShardGroupLost as error:
            lost = error
        except Exception as error:
            log.exception("the model runner failed")
            lost = ShardGroupLost(f"the model runner failed with {type(error).__name__}")
        with self._changed:
            self._executing = False
            if lost is None:
                try:
                    self._post(outputs + self._engine.postprocess(batch, result))
                except Exception as error:
                    log.exception("the engine failed")
                    self._break(error)
                return
            if self._lost is None:  # otherwise the owner gave up meanwhile
                self._lost = lost
                self._resume_until_s = self._engine.now_s() + self._resume_timeout_s
            suspected = ShardGroupLost(f"{lost}, {MAX_FAILED_STEPS} times in a row in the same step of this sequence")
            self._post(outputs, _failures(self._engine.lose_cache(batch), suspected), lost)

    def _post(self, outputs: Sequence[StepOutput], failures: Sequence[Failure] = (), lost: ShardGroupLost | None = None) -> None:
        """Have the event loop deliver (the holder of the lock, so that a stream's tokens come before its error)."""
        if not outputs and not failures and lost is None:
            return
        self._call_soon(self._deliver, outputs, failures, lost)

    def _call_soon(self, call: Callable[..., None], *arguments: object) -> None:
        try:
            self._loop.call_soon_threadsafe(call, *arguments)
        except RuntimeError:  # the loop was closed before the engine: nobody is left to deliver to
            self._closing = True

    def _deliver(self, outputs: Sequence[StepOutput], failures: Sequence[Failure], lost: ShardGroupLost | None) -> None:
        """Hand outputs and errors to their streams (on the event loop)."""
        interval_s = self._coalescing.interval_s(len(self._streams))
        for output in outputs:
            stream = self._streams.get(output.request_id)
            if stream is None or stream.sequence_id != output.sequence_id:
                continue
            stream.push(output, interval_s)
            if output.finish is not None:
                self._forget(stream)
        for request_id, sequence_id, error in failures:
            stream = self._streams.get(request_id)
            if stream is not None and stream.sequence_id == sequence_id:
                stream.fail(error)
                self._forget(stream)
        if lost is not None and self._on_lost is not None:
            self._on_lost(lost)

    def _fail_all(self, error: ShardGroupLost) -> None:
        """End every stream (on the event loop)."""
        for stream in tuple(self._streams.values()):
            stream.fail(ShardGroupLost(*error.args))
            self._abort(stream)
        if self._on_lost is not None:
            self._on_lost(error)


Failure = tuple[RequestId, SequenceId, ShardGroupLost]
"""A sequence that left the engine without an answer."""


def _failures(sequences: Iterable[EngineSequence], error: ShardGroupLost) -> list[Failure]:
    """One error each: a stream raises its own."""
    return [(sequence.request.request_id, sequence.sequence_id, ShardGroupLost(*error.args)) for sequence in sequences]
