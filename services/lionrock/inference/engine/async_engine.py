"""The asyncio front of an engine: a thread that steps, and streams on an event loop.

Cancelling a stream's consumer, or closing its generator, takes the sequence out of the engine before the next step is scheduled.
When the runner is gone, every stream ends with ShardGroupLost and the owner gives the engine another runner.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import AsyncIterator, Callable
from types import TracebackType

from lionrock.inference.engine.batch import StepBatch
from lionrock.inference.engine.engine import Engine
from lionrock.inference.engine.errors import EngineDraining, InvalidRequest, ShardGroupLost
from lionrock.inference.engine.runner import ModelRunner, RunnerSpec
from lionrock.inference.engine.sequence import Request, RequestId, StepOutput
from lionrock.inference.engine.stream import Coalescing, Stream

log = logging.getLogger("lionrock.inference")


class AsyncEngine:
    """Runs an engine's steps in its own thread for consumers on one event loop. Use `async with`, or `start()` and `close()`."""

    def __init__(
        self, engine: Engine, *, coalescing: Coalescing | None = None, on_lost: Callable[[ShardGroupLost], None] | None = None
    ) -> None:
        """Take over the engine. `on_lost` is called on the event loop when the runner is gone and a new one is wanted."""
        self._engine = engine
        self._coalescing = coalescing or Coalescing()
        self._on_lost = on_lost
        self._streams: dict[RequestId, Stream] = {}
        self._changed = threading.Condition()  # guards the engine and the fields below
        self._executing = False
        self._closing = False
        self._draining = False
        self._lost: ShardGroupLost | None = None
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
        """Why there is no runner now, or None."""
        return self._lost

    def submit(self, request: Request) -> Stream:
        """Admit a request and return its stream, which the caller must close.

        Raises what `Engine.add` raises, EngineDraining, or ShardGroupLost while there is no runner.
        """
        if request.request_id in self._streams:
            raise InvalidRequest("request_id", "is in use by a stream that has not ended")
        with self._changed:
            if self._draining or self._closing:
                raise EngineDraining
            if self._lost is not None:
                raise self._lost
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
        """Give the engine another runner after a loss, or while nothing runs. The old one is the caller's to close."""
        with self._changed:
            if self._executing or self._engine.has_work:
                raise RuntimeError("a runner in use cannot be replaced")
            self._engine.replace_runner(runner)
            self._lost = None
            self._changed.notify()

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

    # ---- between the threads ---------------------------------------------------------------------------------------------

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

    def _run(self) -> None:
        """Step until closed (the step thread)."""
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._closing or (self._lost is None and self._engine.has_work))
                if self._closing:
                    return
                batch, outputs = self._engine.schedule()
                self._executing = batch is not None
            lost: ShardGroupLost | None = None
            if batch is not None:
                lost = self._execute(batch, outputs)
            if outputs or lost is not None:
                self._post(outputs, lost)

    def _execute(self, batch: StepBatch, outputs: list[StepOutput]) -> ShardGroupLost | None:
        """Run the batch and add its outputs; returns why the runner is gone, if it is."""
        try:
            result = self._engine.runner.execute(batch)
            with self._changed:
                self._executing = False
                outputs += self._engine.postprocess(batch, result)
            return None
        except ShardGroupLost as error:
            lost = error
        except Exception as error:
            log.exception("the model runner failed")
            lost = ShardGroupLost(f"the model runner failed with {type(error).__name__}")
        with self._changed:
            self._executing = False
            self._lost = lost
            self._engine.drop_all()
        return lost

    def _post(self, outputs: list[StepOutput], lost: ShardGroupLost | None) -> None:
        try:
            self._loop.call_soon_threadsafe(self._deliver, outputs, lost)
        except RuntimeError:  # the loop was closed before the engine: nobody is left to deliver to
            with self._changed:
                self._closing = True

    def _deliver(self, outputs: list[StepOutput], lost: ShardGroupLost | None) -> None:
        """Hand outputs to their streams (on the event loop)."""
        interval_s = self._coalescing.interval_s(len(self._streams))
        for output in outputs:
            stream = self._streams.get(output.request_id)
            if stream is None or stream.sequence_id != output.sequence_id:
                continue
            stream.push(output, interval_s)
            if output.finish is not None:
                self._forget(stream)
        if lost is not None:
            for stream in tuple(self._streams.values()):
                stream.fail(ShardGroupLost(*lost.args))
            self._streams.clear()
            self._idle.set()
            if self._on_lost is not None:
                self._on_lost(lost)
