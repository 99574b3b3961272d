"""Lionrock's engine with a stopwatch at each of its borders: the parts of full decoding steps, as shares of the wall clock.

What stands for the kernels is, of the native ones, the call of a program of operations; of PyTorch, the model's forward pass and
output head, dispatch included. Sampling counts as outside.
"""

from __future__ import annotations

import functools
import json
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

from benchmarks.peers.lionrock_engine import LionrockEngine, open_for_measurement
from benchmarks.peers.protocol import serve
from lionrock.inference.engine.async_engine import AsyncEngine
from lionrock.inference.engine.batch import StepBatch
from lionrock.inference.model.forward import TorchForward
from lionrock.inference.model.native.library import Library
from lionrock.inference.model.worker import LocalRunner

_PARTS = ("schedule", "execute", "postprocess", "kernels")


class ProfiledEngine(LionrockEngine):
    """See Engine."""

    def __init__(self, engine: AsyncEngine) -> None:
        super().__init__(engine)
        self._spent = dict.fromkeys(_PARTS, 0.0)
        self._steps: list[tuple[float, int, dict[str, float]]] = []  # when it began, its decoding rows, what was spent before it
        inner = engine.engine
        runner = inner.runner
        assert isinstance(runner, LocalRunner)
        self._kernels = runner.worker.kernels
        kernels: list[tuple[type, str]] = [(Library, "run")]
        if self._kernels == "torch":
            kernels = [(TorchForward, "hidden"), (TorchForward, "logits")]
        for owner, name in kernels:
            setattr(owner, name, self._timed("kernels", getattr(owner, name)))
        execute = self._timed("execute", runner.execute)

        def noted(batch: StepBatch) -> Any:
            decoding = len(batch.rows) if all(len(row.token_ids) == 1 for row in batch.rows) else 0
            self._steps.append((time.perf_counter(), decoding, dict(self._spent)))
            return execute(batch)

        runner.execute = noted  # type: ignore[method-assign]
        inner.schedule = self._timed("schedule", inner.schedule)  # type: ignore[method-assign]
        inner.postprocess = self._timed("postprocess", inner.postprocess)  # type: ignore[method-assign]

    async def profile(self, prompts: Sequence[Sequence[int]], max_tokens: int) -> dict[str, Any]:
        """Answer all prompts and look at the steps in which all of them decode.

        Returns whose kernels ran, the wall clock of a step in seconds, and the shares of it by part, which add up to 1.
        """
        self._steps.clear()
        await self.answer(prompts, max_tokens)
        full = [index for index, (_, decoding, _) in enumerate(self._steps) if decoding == len(prompts)]
        # The first and last of them stand beside other steps.
        (begun_s, _, before), (ended_s, _, after) = self._steps[full[1]], self._steps[full[-1]]
        steps, wall_s = full[-1] - full[1], ended_s - begun_s
        spent = {part: after[part] - before[part] for part in _PARTS}
        within = {
            "kernels": spent["kernels"],
            "rows, layout and sampling": spent["execute"] - spent["kernels"],
            "schedule": spent["schedule"],
            "postprocess": spent["postprocess"],
        }
        within["between steps: delivery, locks"] = wall_s - sum(within.values())
        return {
            "kernels": self._kernels,
            "step_s": wall_s / steps,
            "shares": {part: seconds / wall_s for part, seconds in within.items()},
        }

    def _timed(self, part: str, call: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(call)
        def timed(*arguments: Any, **keywords: Any) -> Any:
            begun_s = time.perf_counter()
            try:
                return call(*arguments, **keywords)
            finally:
                self._spent[part] += time.perf_counter() - begun_s

        return timed


async def start(options: dict[str, Any]) -> ProfiledEngine:
    """Load and start; options as `open_for_measurement` takes them."""
    engine = open_for_measurement(options)
    profiled = ProfiledEngine(engine)
    engine.start()
    return profiled


if __name__ == "__main__":
    serve(start(json.loads(sys.argv[1])))
