"""vLLM's AsyncLLM. Runs in an environment that has vLLM and needs nothing of Lionrock's."""

from __future__ import annotations

import asyncio
import itertools
import json
import sys
import time
from collections.abc import Sequence
from typing import Any

from benchmarks.peers.protocol import Answer, Stopwatch, serve

_numbers = itertools.count()


class VllmEngine:
    """See Engine."""

    def __init__(self, llm: Any) -> None:
        self._llm = llm

    async def answer(self, prompts: Sequence[Sequence[int]], max_tokens: int) -> list[Answer]:
        """See Engine."""
        begun_s = time.perf_counter()
        return list(await asyncio.gather(*(self._one(list(prompt), max_tokens, begun_s) for prompt in prompts)))

    async def close(self) -> None:
        """See Engine."""
        self._llm.shutdown()

    async def _one(self, prompt: list[int], max_tokens: int, begun_s: float) -> Answer:
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        params = SamplingParams(
            temperature=0, max_tokens=max_tokens, ignore_eos=True, detokenize=False, output_kind=RequestOutputKind.DELTA
        )
        watch = Stopwatch(begun_s)
        async for output in self._llm.generate({"prompt_token_ids": prompt}, params, f"request-{next(_numbers)}"):
            watch.add(list(output.outputs[0].token_ids))
        return watch.answer


async def start(options: dict[str, Any]) -> VllmEngine:
    """Load, compile and start. options: model, kv_cache_bytes, context."""
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.v1.engine.async_llm import AsyncLLM

    arguments = AsyncEngineArgs(
        model=options["model"],
        skip_tokenizer_init=True,
        dtype="bfloat16",
        max_model_len=options["context"],
        kv_cache_memory_bytes=options["kv_cache_bytes"],
        enable_prefix_caching=False,
        generation_config="vllm",
        disable_log_stats=True,
    )
    return VllmEngine(await asyncio.to_thread(AsyncLLM.from_engine_args, arguments))


if __name__ == "__main__":
    serve(start(json.loads(sys.argv[1])))
