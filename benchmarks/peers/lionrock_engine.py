"""Lionrock's own engine in this process, through its public asynchronous interface; every token is delivered as it comes."""

from __future__ import annotations

import asyncio
import itertools
import json
import random
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.peers.protocol import Answer, Stopwatch, serve
from lionrock.inference.engine.async_engine import AsyncEngine
from lionrock.inference.engine.engine import EngineLimits
from lionrock.inference.engine.sequence import Request, RequestId, Sampling, SequenceId
from lionrock.inference.engine.stream import Coalescing
from lionrock.inference.local_engine import LocalOptions, open_engine

_numbers = itertools.count()
_WAVE = 50  # requests that a churn has in flight


class LionrockEngine:
    """See Engine."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine

    async def answer(
        self,
        prompts: Sequence[Sequence[int]],
        max_tokens: int,
        salts: Sequence[str] | None = None,
        temperature: float = 0.0,
    ) -> list[Answer]:
        """See Engine.

        salts: prefix-cache salts of the prompts; without them nothing is shared. temperature: the seed is the prompt's index.
        """
        begun_s = time.perf_counter()
        sampling = Sampling(temperature, max_tokens=max_tokens, ignore_eos=True)
        tasks = (
            self._one(tuple(prompt), begun_s, salt.encode(), replace(sampling, seed=seed))
            for seed, (prompt, salt) in enumerate(zip(prompts, salts or [""] * len(prompts), strict=True))
        )
        return list(await asyncio.gather(*tasks))

    async def close(self) -> None:
        """See Engine."""
        await self._engine.close()

    async def kv_bytes_per_token(self) -> int:
        """Say what the runner states."""
        return self._engine.spec.kv_bytes_per_token

    async def churn(self, requests: int, seed: int) -> float:
        """Run many short requests of several tenants, some of which share prefixes, repeat themselves or are left early.

        Returns the seconds that they took.
        """
        chosen = random.Random(seed)
        begun_s = time.perf_counter()
        for _ in range(0, requests, _WAVE):
            await asyncio.gather(*(self._short(chosen) for _ in range(_WAVE)))
        return time.perf_counter() - begun_s

    async def _short(self, chosen: random.Random) -> None:
        prompt = (chosen.randrange(20, 30),) * chosen.randrange(0, 40) + tuple(
            chosen.choices(range(20, 500), k=chosen.randrange(1, 8))
        )
        sampling = Sampling(max_tokens=chosen.randrange(1, 4), ignore_eos=True)
        salt = chosen.choice((b"", b"a", b"b"))
        left_early = chosen.random() < 0.1
        async for _ in self._engine.generate(Request(RequestId(f"request-{next(_numbers)}"), prompt, sampling, cache_salt=salt)):
            if left_early:
                return

    def ended(self, sequence_id: SequenceId) -> None:
        """Take note of a sequence that has ended."""

    async def _one(self, prompt: tuple[int, ...], begun_s: float, salt: bytes, sampling: Sampling) -> Answer:
        watch = Stopwatch(begun_s)
        request = Request(RequestId(f"request-{next(_numbers)}"), prompt, sampling, cache_salt=salt)
        async for output in self._engine.generate(request):
            watch.add(output.token_ids)
            if output.finish is not None:
                self.ended(output.sequence_id)
        return watch.answer


def open_for_measurement(options: dict[str, Any]) -> AsyncEngine:
    """Load the model. options: model, quantisation, threads, kv_cache_bytes, max_drafts, prefix_cache, max_step_tokens."""
    bounds = {name: options[name] for name in ("max_step_tokens",) if name in options}
    limits = EngineLimits(max_drafts=options.get("max_drafts", 0), prefix_cache=options.get("prefix_cache", False), **bounds)
    local = LocalOptions(
        weight_quantisation=options.get("quantisation"),
        kv_cache_bytes=options["kv_cache_bytes"],
        threads=options["threads"],
        limits=limits,
    )
    # The same engine behind a front that holds no token back, as the peers' do not.
    return AsyncEngine(open_engine(Path(options["model"]), local).engine, coalescing=Coalescing(per_stream_s=0, ceiling_s=0))


async def start(options: dict[str, Any]) -> LionrockEngine:
    """Load and start."""
    engine = open_for_measurement(options)
    engine.start()
    return LionrockEngine(engine)


if __name__ == "__main__":
    serve(start(json.loads(sys.argv[1])))
