"""A model over stages of unlike chips: planned by memory and speed, placed on nodes that have them, refused where it cannot be."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from pydantic import ValidationError

from lionrock.inference.placement import place
from lionrock.inference.served_model import describe_model
from lionrock.inference.settings import ModelSettings, StageSettings
from lionrock.planner.chips import GIB
from lionrock.planner.cuts import PlanError

CONFIG = {
    "model_type": "llama",
    "vocab_size": 64,
    "hidden_size": 4096,
    "num_hidden_layers": 30,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "intermediate_size": 14336,
    "max_position_embeddings": 4096,
    "rms_norm_eps": 1e-5,
}
FAST = StageSettings(chip="nvidia-h20", speed=4.0, node_resource="h20")
SLOW = StageSettings(chip="nvidia-h100", speed=2.0, memory_bytes=16 * GIB, node_resource="h100")


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """Enough of a checkpoint to be described: weights are not read for that."""
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    (tmp_path / "tokenizer.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(bytes(16))
    return tmp_path


def test_layers_follow_the_speed_of_each_stage_and_ranks_its_nodes(model: Path) -> None:
    settings = ModelSettings(path=model, chip="nvidia-h20", tensor_parallel=2, pipeline_parallel=2, stages=(FAST, SLOW))
    served = describe_model("unlike", settings)
    assert [shard.layers for shard in served.plan.shards] == [20, 20, 10, 10]
    assert place(settings).bundles == ({"CPU": 3, "GPU": 2, "h20": 0.001}, {"CPU": 2, "GPU": 2, "h100": 0.001})


def test_a_kv_cache_that_leaves_no_room_for_layers_moves_them(model: Path) -> None:
    settings = ModelSettings(path=model, tensor_parallel=2, pipeline_parallel=2, stages=(FAST, SLOW), kv_cache_bytes=12 * GIB)
    assert [shard.layers for shard in describe_model("unlike", settings).plan.shards] == [25, 25, 5, 5]  # five layers of 0.2 GiB
    with pytest.raises(PlanError, match=r"15\.0 GiB of KV cache a chip do not fit"):
        describe_model("unlike", settings.model_copy(update={"kv_cache_bytes": 15 * GIB}))


def test_stages_that_are_not_all_there_are_refused(model: Path) -> None:
    with pytest.raises(ValidationError, match="stages has 1 entries"):
        ModelSettings(path=model, pipeline_parallel=2, stages=(FAST,))
