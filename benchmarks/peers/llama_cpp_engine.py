"""llama.cpp through its C interface: prompts one after another, then all streams in one batch a step; no server."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import Sequence
from typing import Any

from benchmarks.peers.protocol import Answer, Stopwatch, serve

_MICRO_BATCH = 512  # tokens; llama.cpp's default


class LlamaCppEngine:
    """See Engine."""

    def __init__(self, model: Any, context: Any, streams: int) -> None:
        """streams: most sequences that the context was made for."""
        import llama_cpp  # type: ignore[import-not-found]

        self._model, self._context, self._streams = model, context, streams
        self._batch = llama_cpp.llama_batch_init(_MICRO_BATCH, 0, 1)
        self._greedy = llama_cpp.llama_sampler_init_greedy()

    async def answer(self, prompts: Sequence[Sequence[int]], max_tokens: int) -> list[Answer]:
        """See Engine."""
        return await asyncio.to_thread(self._answer, prompts, max_tokens)

    async def close(self) -> None:
        """See Engine."""
        import llama_cpp

        llama_cpp.llama_batch_free(self._batch)
        llama_cpp.llama_sampler_free(self._greedy)
        llama_cpp.llama_free(self._context)
        llama_cpp.llama_model_free(self._model)

    def _answer(self, prompts: Sequence[Sequence[int]], max_tokens: int) -> list[Answer]:
        import llama_cpp

        if len(prompts) > self._streams:
            raise ValueError(f"the context was made for {self._streams} sequences")
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(self._context), True)
        watches = [Stopwatch(time.perf_counter()) for _ in prompts]
        newest = []
        for stream, prompt in enumerate(prompts):
            for start in range(0, len(prompt), _MICRO_BATCH):
                chunk = prompt[start : start + _MICRO_BATCH]
                last = start + len(chunk) == len(prompt)
                rows = [(token, start + n, stream, last and n == len(chunk) - 1) for n, token in enumerate(chunk)]
                self._decode(rows)
            newest.append(self._sample(len(rows) - 1))
            watches[stream].add([newest[stream]])
        for step in range(max_tokens - 1):
            self._decode([(token, len(prompts[stream]) + step, stream, True) for stream, token in enumerate(newest)])
            newest = [self._sample(stream) for stream in range(len(prompts))]
            for token, watch in zip(newest, watches, strict=True):
                watch.add([token])
        return [watch.answer for watch in watches]

    def _decode(self, rows: Sequence[tuple[int, int, int, bool]]) -> None:
        """Run rows of (token, position, sequence, whether its logits are wanted)."""
        import llama_cpp

        batch = self._batch
        batch.n_tokens = len(rows)
        for index, (token, position, sequence, wanted) in enumerate(rows):
            batch.token[index], batch.pos[index], batch.logits[index] = token, position, wanted
            batch.n_seq_id[index] = 1
            batch.seq_id[index][0] = sequence
        if failure := llama_cpp.llama_decode(self._context, batch):
            raise RuntimeError(f"llama_decode returned {failure}")

    def _sample(self, index: int) -> int:
        import llama_cpp

        return int(llama_cpp.llama_sampler_sample(self._greedy, self._context, index))


async def start(options: dict[str, Any]) -> LlamaCppEngine:
    """Load. options: model (a GGUF file), threads, context (tokens), streams."""
    import llama_cpp

    llama_cpp.llama_backend_init()
    print(llama_cpp.llama_print_system_info().decode())
    model = llama_cpp.llama_model_load_from_file(options["model"].encode(), llama_cpp.llama_model_default_params())
    params = llama_cpp.llama_context_default_params()
    params.n_ctx, params.n_batch, params.n_ubatch = options["context"] * options["streams"], _MICRO_BATCH, _MICRO_BATCH
    params.n_seq_max = options["streams"]
    params.n_threads = params.n_threads_batch = options["threads"]
    context = None if model is None else llama_cpp.llama_init_from_model(model, params)
    if context is None:
        raise RuntimeError("llama.cpp did not load the model")
    return LlamaCppEngine(model, context, options["streams"])


if __name__ == "__main__":
    serve(start(json.loads(sys.argv[1])))
