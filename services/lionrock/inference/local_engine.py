"""An engine over one model in this process: no Ray, no gRPC, no other process. For scripts, benchmarks and `lionrock engine`.

    async with open_engine(Path("model.gguf")) as engine:
        async for output in engine.generate(Request(RequestId("1"), tuple(token_ids), Sampling(max_tokens=64))):
            ...

Knows the planner, the model and the engine; token ids in, token ids out. Text is the tokenizer's (`lionrock.tokenization.codec`).
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from lionrock.inference.engine.async_engine import AsyncEngine
from lionrock.inference.engine.engine import Engine, EngineLimits
from lionrock.modelstore.source import locate
from lionrock.planner.chips import chip
from lionrock.planner.plan import plan_shards


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalOptions:
    """How a model is held. Defaults are those of a served model."""

    chip: str = "cpu"
    """Row of the chip table; one chip of it is used."""
    dtype: str = "bfloat16"
    weight_quantisation: str | None = None
    """A name in `model.quantisation.QUANTISATIONS`; None: weights stay in `dtype`."""
    kv_cache_bytes: int = 256 << 20
    threads: int | None = None
    """Compute threads of a CPU; None: PyTorch's choice, which is process-wide and left alone."""
    limits: EngineLimits = field(default_factory=EngineLimits)


def open_engine(path: Path, options: LocalOptions | None = None, progress: Callable[[int, int], None] | None = None) -> AsyncEngine:
    """Load a model and return its engine, to be entered with `async with` (blocking: seconds for gigabytes).

    path: a store entry, a GGUF file, or a directory with safetensors files. progress: (elements read, elements in all).
    Raises ModelStoreError, UnsupportedModel, MalformedWeights, UnknownChip, PlanError.
    """
    import torch

    from lionrock.inference.model.weights import open_weights
    from lionrock.inference.model.worker import LocalRunner, ShardWorker
    from lionrock.inference.served_model import shape_of, vocabulary_of

    options = options or LocalOptions()
    row = chip(options.chip)
    if row.torch_module is not None:
        importlib.import_module(row.torch_module)
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    files = locate("model", path)
    source = files.files[0] if files.format == "gguf" else files.directory
    plan = plan_shards(shape_of(open_weights(source).config), row, dtype=options.dtype, weight_dtype=options.weight_quantisation)
    worker = ShardWorker(source, plan, 0, row.torch_device)
    worker.load(progress)
    worker.allocate_kv_cache(max(1, worker.kv_blocks_within(options.kv_cache_bytes)))
    return AsyncEngine(Engine(LocalRunner(worker), options.limits, vocabulary=vocabulary_of(files)))
