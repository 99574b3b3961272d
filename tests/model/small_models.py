"""The engine's pieces over a checkpoint, and requests to put to it. Imported by rank processes, so nothing heavy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from lionrock.inference.engine.batch import GREEDY, BatchRow
from lionrock.inference.engine.engine import Engine, EngineLimits
from lionrock.inference.engine.sequence import Request, RequestId, Sampling, SequenceId
from lionrock.inference.model.attention import KVCache
from lionrock.inference.model.config import ModelConfig
from lionrock.inference.model.forward import make_forward, native_library
from lionrock.inference.model.layers import RotaryEmbedding
from lionrock.inference.model.native.build import NativeKernels
from lionrock.inference.model.shape import shape_of
from lionrock.inference.model.transformer import Transformer, load_weights
from lionrock.inference.model.weights import open_weights
from lionrock.inference.model.worker import LocalRunner, ShardWorker
from lionrock.planner.chips import chip
from lionrock.planner.plan import ShardPlan, plan_shards

DEVICE = "cpu"  # of everything below; `pytest --device` sets it
KERNELS: NativeKernels = "auto"  # of everything below; tests that want one or the other set it


def plan_for(
    config: ModelConfig, *, tensor_parallel: int = 1, pipeline_parallel: int = 1, dtype: str = "float32", **options: Any
) -> ShardPlan:
    """The planner's own plan for a model on CPUs. options: weights of ranks and stages."""
    return plan_shards(
        shape_of(config),
        chip("cpu"),
        dtype=dtype,
        tensor_parallel=tensor_parallel,
        pipeline_parallel=pipeline_parallel,
        **options,
    )


def local_runner(path: Path, *, kv_blocks: int = 64, dtype: str = "float32") -> LocalRunner:
    """One rank in this process, loaded."""
    worker = ShardWorker(path, plan_for(open_weights(path).config, dtype=dtype), 0, DEVICE, native_kernels=KERNELS)
    worker.load()
    worker.allocate_kv_cache(kv_blocks)
    return LocalRunner(worker)


def logits_of(path: Path, token_ids: Sequence[int], *, chunks: Sequence[int] | None = None) -> torch.Tensor:
    """Logits of every position in float32, prefilled in chunks of the given lengths: [T, V]."""
    source = open_weights(path)
    config, device = source.config, torch.device(DEVICE)
    model = Transformer(config)
    native = native_library(KERNELS, torch.float32, device, 16)
    load_weights(model, source, torch.float32, device, lambda *_: None, native)
    rope = RotaryEmbedding(config.rope, config.rotary_dim, config.context_window, torch.float32, device)
    blocks = len(token_ids) // 16 + 2
    cache = KVCache(
        layers=config.layers,
        blocks=blocks,
        block_size=16,
        shapes=config.cache_shapes(config.kv_heads),
        dtype=torch.float32,
        device=device,
    )
    forward = make_forward(model, rope, cache, torch.float32, device, native)
    table, start, parts = list(reversed(range(blocks))), 0, []
    with torch.inference_mode():
        for count in chunks or [len(token_ids)]:
            end = start + count
            row = BatchRow(SequenceId(0), start, token_ids[start:end], table[: -(-end // 16)], GREEDY, drafts=count - 1)
            forward.begin([row])
            forward.hidden(None)
            parts.append(forward.logits().clone())
            start = end
    return torch.cat(parts).cpu()


def run_requests(engine: Engine, requests: Sequence[Request]) -> dict[str, tuple[int, ...]]:
    """Add all, step until done."""
    for request in requests:
        engine.add(request)
    tokens: dict[str, list[int]] = {request.request_id: [] for request in requests}
    while engine.has_work:
        for output in engine.step():
            tokens[output.request_id].extend(output.token_ids)
    return {request_id: tuple(ids) for request_id, ids in tokens.items()}


def mixed_requests(vocab_size: int, *, count: int = 6, prompt: int = 20, max_tokens: int = 12) -> list[Request]:
    """Greedy and seeded requests of unlike lengths, the same on every call."""
    generator = torch.Generator().manual_seed(5)
    requests = []
    for n in range(count):
        ids = torch.randint(3, vocab_size, (prompt + 7 * n,), generator=generator).tolist()
        greedy = n % 2 == 0
        sampling = Sampling(
            temperature=0.0 if greedy else 0.8,
            top_p=1.0 if greedy else 0.9,
            top_k=None if n % 4 < 2 else 40,
            seed=None if greedy else 1000 + n,
            max_tokens=max_tokens,
            ignore_eos=True,
        )
        requests.append(Request(RequestId(f"request-{n}"), tuple(ids), sampling))
    return requests


def adjusted_requests(vocab_size: int, *, max_tokens: int = 8) -> list[Request]:
    """Greedy and seeded requests with penalties, bias and log-probabilities."""
    requests = []
    for n, request in enumerate(mixed_requests(vocab_size, count=4, max_tokens=max_tokens)):
        sampling = replace(
            request.sampling,
            repetition_penalty=1.5 if n % 2 else 1.0,
            presence_penalty=0.0 if n == 1 else 0.8,
            frequency_penalty=0.5,
            logit_bias={5: 4.0, vocab_size - 1: 3.0},
            logprobs=2 if n == 3 else None,
        )
        requests.append(replace(request, sampling=sampling))
    return requests


def engine_over(runner: Any, **limits: int) -> Engine:
    """An engine with small limits."""
    return Engine(runner, EngineLimits(**limits))
