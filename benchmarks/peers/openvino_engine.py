"""OpenVINO GenAI's continuous batching, stepped in a thread; each answer is read from its handle after every step."""

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


class OpenvinoEngine:
    """See Engine."""

    def __init__(self, pipeline: Any) -> None:
        self._pipeline = pipeline

    async def answer(self, prompts: Sequence[Sequence[int]], max_tokens: int) -> list[Answer]:
        """See Engine."""
        return await asyncio.to_thread(self._answer, prompts, max_tokens)

    async def close(self) -> None:
        """See Engine."""

    def _answer(self, prompts: Sequence[Sequence[int]], max_tokens: int) -> list[Answer]:
        import numpy as np
        import openvino  # type: ignore[import-not-found]
        import openvino_genai  # type: ignore[import-not-found]

        config = openvino_genai.GenerationConfig()
        config.max_new_tokens, config.ignore_eos, config.do_sample = max_tokens, True, False
        begun_s = time.perf_counter()
        running = []
        for prompt in prompts:
            ids = openvino.Tensor(np.array([prompt], dtype=np.int64))
            running.append((self._pipeline.add_request(next(_numbers), ids, config), Stopwatch(begun_s)))
        while self._pipeline.has_non_finished_requests():
            self._pipeline.step()
            for handle, watch in running:
                while handle.can_read():
                    for output in handle.read().values():
                        watch.add(list(output.generated_ids))
        return [watch.answer for _, watch in running]


async def start(options: dict[str, Any]) -> OpenvinoEngine:
    """Load and compile. options: model (a GGUF file), threads, kv_cache_bytes."""
    import openvino_genai

    scheduler = openvino_genai.SchedulerConfig()
    scheduler.cache_size = max(1, options["kv_cache_bytes"] >> 30)  # GiB
    scheduler.enable_prefix_caching = False
    properties = {
        "INFERENCE_PRECISION_HINT": "bf16",
        "INFERENCE_NUM_THREADS": options["threads"],
        "ENABLE_HYPER_THREADING": True,
    }
    return OpenvinoEngine(openvino_genai.ContinuousBatchingPipeline(options["model"], scheduler, "CPU", properties))


if __name__ == "__main__":
    serve(start(json.loads(sys.argv[1])))
