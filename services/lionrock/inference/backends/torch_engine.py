"""Lionrock's own engine as a backend: AsyncEngine over a ModelRunner that is built anew whenever it is lost.

Streams pause meanwhile, new ones queue, and all go on with the next runner; see AsyncEngine.
Knows no Ray: whoever makes it says how a runner is started.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Protocol

from lionrock.inference.engine.async_engine import AsyncEngine
from lionrock.inference.engine.engine import Engine, EngineLimits
from lionrock.inference.engine.errors import ShardGroupLost
from lionrock.inference.engine.runner import ModelRunner, RunnerSpec
from lionrock.inference.engine.sequence import Request, SequenceId
from lionrock.inference.engine.stream import Stream
from lionrock.modelstore.vocabulary import Vocabulary


class TracedRunner(ModelRunner, Protocol):
    """A ModelRunner that reports what its ranks did for a sequence, as `sharding.ShardGroup`."""

    def sequence_ended(self, sequence_id: SequenceId, traceparent: str) -> None:
        """Have every rank report a traced sequence."""
        ...


StartRunner = Callable[[Callable[[str], None]], Awaitable[TracedRunner]]
"""Builds a runner. Its argument is told the reason, from any thread, when the runner is of no more use. Raises ShardGroupLost."""

_STEP_IN_FLIGHT_S = 0.01


class TorchEngine:
    """See EngineBackend."""

    def __init__(
        self,
        limits: EngineLimits,
        start_runner: StartRunner,
        *,
        resume_timeout_s: float = 60.0,
        vocabulary: Vocabulary | None = None,
    ) -> None:
        """resume_timeout_s: how long streams wait for another runner before they end with ShardGroupLost.

        vocabulary: of the model's tokenizer; None: stop strings and constraints are refused.
        """
        self._vocabulary = vocabulary
        self._limits = limits
        self._resume_timeout_s = resume_timeout_s
        self._start_runner = start_runner
        self._engine: AsyncEngine | None = None
        self._runner: TracedRunner | None = None
        self._on_lost: Callable[[str], None] | None = None

    async def start(self, on_lost: Callable[[str], None]) -> None:
        """See EngineBackend."""
        runner = await self._start_runner(on_lost)
        if self._engine is None:
            engine = Engine(runner, self._limits, vocabulary=self._vocabulary)
            self._engine = AsyncEngine(engine, resume_timeout_s=self._resume_timeout_s, on_lost=self._stopped)
            self._engine.start()
        else:
            try:
                await self._replace(self._engine, runner)
            except asyncio.CancelledError:
                runner.close()
                raise
        self._runner, self._on_lost = runner, on_lost

    async def _replace(self, engine: AsyncEngine, runner: TracedRunner) -> None:
        while True:  # the step in flight may need a moment to see that its runner is lost
            try:
                engine.replace_runner(runner)
            except RuntimeError:
                await asyncio.sleep(_STEP_IN_FLIGHT_S)
            else:
                return

    def _stopped(self, error: ShardGroupLost) -> None:
        """Give up a runner that a step failed on; it may not have noticed a loss of its own."""
        if self._engine is None or self._engine.lost is None or self._runner is None or self._on_lost is None:
            return  # there is another one already
        self._runner.close()
        self._on_lost(str(error))

    @property
    def spec(self) -> RunnerSpec | None:
        """See EngineBackend."""
        return None if self._engine is None else self._engine.spec

    @property
    def running(self) -> int:
        """See EngineBackend."""
        return 0 if self._engine is None else self._engine.engine.running

    @property
    def waiting(self) -> int:
        """See EngineBackend."""
        return 0 if self._engine is None else self._engine.engine.waiting

    def submit(self, request: Request) -> Stream:
        """See EngineBackend."""
        if self._engine is None:
            raise ShardGroupLost("the engine has not started")
        return self._engine.submit(request)

    def give_up(self, reason: str) -> None:
        """See EngineBackend."""
        if self._engine is not None:
            self._engine.give_up(reason)

    def sequence_ended(self, sequence_id: SequenceId, traceparent: str) -> None:
        """See EngineBackend."""
        if self._runner is not None:
            self._runner.sequence_ended(sequence_id, traceparent)

    async def drain(self) -> None:
        """See EngineBackend."""
        if self._engine is not None:
            await self._engine.drain()

    async def close(self) -> None:
        """See EngineBackend."""
        if self._engine is not None:
            await self._engine.close()
        elif self._runner is not None:
            self._runner.close()
