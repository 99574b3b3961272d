"""What is served under a name: its files and digest, its configuration and its shard plan. Read without torch, weights unread.

Both the front, which tells callers, and the replica, which builds the shard group, make it from the same settings.
"""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass

from lionrock.inference.model.config import ModelConfig
from lionrock.inference.model.config_gguf import from_gguf
from lionrock.inference.model.config_json import from_config_json
from lionrock.inference.model.errors import MalformedWeights
from lionrock.inference.model.shape import shape_of
from lionrock.inference.settings import ModelSettings
from lionrock.modelstore.errors import ModelStoreError
from lionrock.modelstore.gguf_metadata import read_gguf_header
from lionrock.modelstore.source import ModelFiles, ModelSource, open_source
from lionrock.modelstore.vocabulary import Vocabulary, read_vocabulary
from lionrock.planner.chips import chip
from lionrock.planner.fitting import Workload
from lionrock.planner.memory import ModelShape
from lionrock.planner.plan import ShardPlan, plan_shards
from lionrock.planner.stages import StageChips, plan_stages

__all__ = ["ServedModel", "describe_model", "read_config", "shape_of", "vocabulary_of"]

log = logging.getLogger("lionrock.inference")

_CONFIG_MAX_BYTES = 4 << 20


@dataclass(frozen=True, slots=True)
class ServedModel:
    """One model as it is to be served."""

    name: str
    settings: ModelSettings
    source: ModelSource
    config: ModelConfig
    plan: ShardPlan


def describe_model(name: str, settings: ModelSettings) -> ServedModel:
    """Find, digest and plan a model.

    Raises ModelStoreError, UnsupportedModel, MalformedWeights, UnknownChip, PlanError.
    """
    source = open_source(name, settings.path)
    config = read_config(ModelFiles(name, source.format, source.files, source.directory))
    return ServedModel(name, settings, source, config, _plan(shape_of(config), settings))


def _plan(shape: ModelShape, settings: ModelSettings) -> ShardPlan:
    weight_dtype = None if settings.weight_quantisation == "none" else settings.weight_quantisation
    if settings.stages is None:
        return plan_shards(
            shape,
            settings.chip_row(),
            dtype=settings.dtype,
            weight_dtype=weight_dtype,
            tensor_parallel=settings.tensor_parallel,
            pipeline_parallel=settings.pipeline_parallel,
        )
    stages = [StageChips(chip=chip(s.chip), speed=s.speed, memory_bytes=s.memory_bytes) for s in settings.stages]
    # The KV cache takes what the settings give it on every rank, whatever the number of layers.
    workload = Workload(
        sequences=0, tokens_per_sequence=0, batch_tokens=settings.limits.max_step_tokens, kv_cache_bytes=settings.kv_cache_bytes
    )
    return plan_stages(
        shape,
        stages,
        dtype=settings.dtype,
        workload=workload,
        weight_dtype=weight_dtype,
        tensor_parallel=settings.tensor_parallel,
    )


def read_config(files: ModelFiles) -> ModelConfig:
    """Read the configuration of a model on disk. Raises what `describe_model` raises for a bad one."""
    if files.format == "gguf":
        header = read_gguf_header(files.files[0])
        rows = next((tensor.shape[-1] for tensor in header.tensors if tensor.name == "token_embd.weight"), None)
        if rows is None:
            raise MalformedWeights("the GGUF file has no token_embd.weight")
        return from_gguf(header.metadata, frozenset(tensor.name for tensor in header.tensors), rows)
    documents: list[dict[str, object] | None] = []
    for name in ("config.json", "generation_config.json"):
        path = files.directory / name
        if not path.is_file() or path.stat().st_size > _CONFIG_MAX_BYTES:
            documents.append(None)
            continue
        try:
            documents.append(json.loads(path.read_bytes()))
        except (ValueError, RecursionError):
            raise MalformedWeights(f"{name} is not JSON") from None
    config, generation = documents
    if not isinstance(config, dict):
        raise MalformedWeights("the model has no config.json")
    return from_config_json(config, generation)


def vocabulary_of(files: ModelFiles) -> Vocabulary | None:
    """Read what a model's tokens spell.

    None, with a warning, where its files do not say: stop strings and constraints are then refused by name.
    """
    try:
        return read_vocabulary(files)
    except ModelStoreError as error:
        log.warning("model %s is served without stop strings and constraints: %s", files.name, error)
        return None
