"""Lionrock's own engine as a backend: AsyncEngine over a ModelRunner that is built anew whenever it is lost.

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

    def __init__(self, limits: EngineLimits, start_runner: StartRunner) -> None:
        self._limits = limits
        self._start_runner = start_runner
        self._engine: AsyncEngine | None = None
        self._runner: TracedRunner | None = None

    async def start(self, on_lost: Callable[[str], None]) -> None:
        """See EngineBackend."""
        runner = await self._start_runner(on_lost)
        self._runner = runner
        if self._engine is None:
            self._engine = AsyncEngine(Engine(runner, self._limits))
            self._engine.start()
            return
        while True:  # the step in flight may need a moment to see that its runner is lost
            try:
                self._engine.replace_runner(runner)
            except RuntimeError:
                await asyncio.sleep(_STEP_IN_FLIGHT_S)
            else:
                return

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
