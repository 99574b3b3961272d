"""Every rank of every plan of a checkpoint with a large model's shapes, on the meta device: each tensor is held exactly where the
plan says, and weighs what it says. No data, so a 70B model takes no memory."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import pytest
from checkpoints import save_model
from shape_checkpoints import DEEPSEEK_V3, R1_DISTILL_LLAMA_70B, deepseek_tensors, llama_tensors, plans_of, write_shapes
from small_models import plan_for

from lionrock.inference.model.collectives import RankGroups, StageLink, TensorGroup
from lionrock.inference.model.errors import MalformedWeights, MissingTensor
from lionrock.inference.model.weights import open_weights
from lionrock.inference.model.worker import ShardWorker
from lionrock.planner.plan import ShardPlan
from lionrock.planner.weight_types import WEIGHT_TYPES


@dataclass(frozen=True, slots=True)
class Place:
    """A rank's place in a group that never communicates: nothing is computed here."""

    rank: int
    size: int


def groups_of(plan: ShardPlan, rank: int) -> RankGroups:
    groups, shard = RankGroups(), plan.shards[rank]
    if plan.tensor_parallel > 1:
        groups.tensor = cast("TensorGroup", Place(shard.tensor_rank, plan.tensor_parallel))
    if plan.pipeline_parallel > 1:
        groups.pipeline = cast("StageLink", Place(shard.stage, plan.pipeline_parallel))
    return groups


Rectangle = tuple[range, range]


def load_ranks(path: Path, plan: ShardPlan) -> dict[str, list[Rectangle]]:
    """Load every rank, compare its bytes with the plan's, and return what the ranks together hold of each tensor."""
    held: dict[str, list[Rectangle]] = defaultdict(list)
    for shard in plan.shards:
        worker = ShardWorker(path, plan, shard.rank, "meta", groups_of(plan, shard.rank))
        assert worker.load() == shard.weight_bytes, f"rank {shard.rank} of {plan.tensor_parallel} × {plan.pipeline_parallel}"
        assert worker.kv_bytes_per_token == shard.kv_bytes_per_token
        for weight in worker._model.weights():
            for part in weight.slices:
                held[f"{part.name}.{weight.kind}"].append((part.rows, range(1) if part.columns is None else part.columns))
    return held


def assert_held(held: Mapping[str, list[Rectangle]], shapes: Mapping[str, tuple[int, ...]], copied: tuple[str, ...]) -> None:
    """Each tensor exactly once; those whose names end in one of `copied` at least once, in whole equal parts."""
    assert held.keys() == shapes.keys()
    for name, rectangles in held.items():
        parts = sorted(set(rectangles), key=lambda part: (part[0].start, part[1].start))
        if not name.endswith(copied):
            assert len(parts) == len(rectangles), f"{name} is held twice"
        height, width = shapes[name] if len(shapes[name]) == 2 else (*shapes[name], 1)
        by_rows = all(columns == range(width) for _, columns in parts)
        runs = [rows if by_rows else columns for rows, columns in parts]
        if not by_rows:
            assert all(rows == range(height) for rows, _ in parts), name
        ends = [0, *(run.stop for run in runs)]
        assert [run.start for run in runs] == ends[:-1], name
        assert ends[-1] == (height if by_rows else width), name


NORMS = ("layernorm.weight", "norm.weight")


@pytest.fixture(scope="module")
def llama_70b(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, tuple[int, ...]]]:
    directory = tmp_path_factory.mktemp("llama-70b")
    return directory, write_shapes(directory, R1_DISTILL_LLAMA_70B, llama_tensors(R1_DISTILL_LLAMA_70B))


@pytest.mark.parametrize(("tensor_parallel", "pipeline_parallel"), [*plans_of(16)])
def test_every_plan_of_a_70b_model_holds_each_tensor_once(
    llama_70b: tuple[Path, dict[str, tuple[int, ...]]], tensor_parallel: int, pipeline_parallel: int
) -> None:
    path, shapes = llama_70b
    plan = plan_for(
        open_weights(path).config, tensor_parallel=tensor_parallel, pipeline_parallel=pipeline_parallel, dtype="bfloat16"
    )
    shared = ("k_proj.weight", "v_proj.weight") if tensor_parallel > 8 else ()
    assert_held(load_ranks(path, plan), shapes, NORMS + shared)


@pytest.mark.parametrize(
    "weights",
    [
        {"tensor_parallel": 3, "rank_weights": [3.0, 2.0, 1.0]},
        {"pipeline_parallel": 3, "stage_weights": [5.0, 1.0, 2.0]},
        {"tensor_parallel": 2, "pipeline_parallel": 2, "rank_weights": [1.0, 6.0], "stage_weights": [1.0, 3.0]},
    ],
    ids=str,
)
def test_uneven_plans_of_a_70b_model_hold_each_tensor_once(
    llama_70b: tuple[Path, dict[str, tuple[int, ...]]], weights: dict[str, Any]
) -> None:
    path, shapes = llama_70b
    assert_held(load_ranks(path, plan_for(open_weights(path).config, dtype="bfloat16", **weights)), shapes, NORMS)


WHOLE_ON_EVERY_RANK = (*NORMS, "q_a_proj.weight", "kv_a_proj_with_mqa.weight", "gate.weight", "gate.e_score_correction_bias")


def tensors_of_v3(directory: Path, layers: int) -> dict[str, tuple[int, ...]]:
    """Write DeepSeek-V3's shapes with so many layers. Returns those that are no scales."""
    config = DEEPSEEK_V3 | {"num_hidden_layers": layers}
    shapes = write_shapes(directory, config, deepseek_tensors(config))
    return {name: shape for name, shape in shapes.items() if not name.endswith("_scale_inv")}


@pytest.fixture(scope="module")
def five_layers_of_v3(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, tuple[int, ...]]]:
    directory = tmp_path_factory.mktemp("deepseek-v3")
    return directory, tensors_of_v3(directory, 5)


@pytest.mark.parametrize(("tensor_parallel", "pipeline_parallel"), [(1, 1), (1, 5), (2, 2), (3, 1), (5, 3), (7, 2), (16, 1)])
@pytest.mark.parametrize("even", [True, False])
def test_plans_of_a_mixture_with_latent_attention_hold_each_tensor_once(
    five_layers_of_v3: tuple[Path, dict[str, tuple[int, ...]]], tensor_parallel: int, pipeline_parallel: int, even: bool
) -> None:
    """DeepSeek-V3 with its first five layers: three dense ones and two mixtures of 256 experts."""
    path, shapes = five_layers_of_v3
    plan = plan_for(
        open_weights(path).config,
        tensor_parallel=tensor_parallel,
        pipeline_parallel=pipeline_parallel,
        dtype="bfloat16",
        rank_weights=None if even else [2.0 + rank % 3 for rank in range(tensor_parallel)],
    )
    assert_held(load_ranks(path, plan), shapes, WHOLE_ON_EVERY_RANK)


def test_all_of_v3_over_sixteen_ranks_holds_each_tensor_once(tmp_path: Path) -> None:
    shapes = tensors_of_v3(tmp_path, 61)
    plan = plan_for(open_weights(tmp_path).config, tensor_parallel=2, pipeline_parallel=8, dtype="bfloat16")
    assert_held(load_ranks(tmp_path, plan), shapes, WHOLE_ON_EVERY_RANK)


def test_a_70b_checkpoint_that_lacks_a_tensor_or_has_another_shape_is_refused_on_the_meta_device_too(tmp_path: Path) -> None:
    config = R1_DISTILL_LLAMA_70B | {"num_hidden_layers": 1}
    for change, error in (
        (lambda tensors: tensors.pop("model.layers.0.mlp.up_proj.weight"), MissingTensor),
        (lambda tensors: tensors.update({"model.layers.0.mlp.up_proj.weight": ("BF16", (28672, 8191))}), MalformedWeights),
    ):
        files = llama_tensors(config)
        change(files["layer-000"])
        write_shapes(tmp_path / error.__name__, config, files)
        worker = ShardWorker(tmp_path / error.__name__, plan_for(open_weights(tmp_path / error.__name__).config), 0, "meta")
        with pytest.raises(error):
            worker.load()


EVERY_OPTION: dict[str, dict[str, Any]] = {
    "llama": {"attention_bias": True, "mlp_bias": True, "num_hidden_layers": 4},
    "mistral": {},
    "qwen2": {"tie_word_embeddings": True},
    "qwen3": {"attention_bias": True},
    "deepseek_v2": {"attention_bias": True},
    "deepseek_v3": {"q_lora_rank": None, "tie_word_embeddings": True},
}
PLANS: list[dict[str, Any]] = [
    {},
    {"tensor_parallel": 3},
    {"tensor_parallel": 2, "rank_weights": [2.0, 1.0]},
    {"tensor_parallel": 2, "pipeline_parallel": 3},
    {"tensor_parallel": 5, "pipeline_parallel": 2, "stage_weights": [2.0, 1.0]},
]


@pytest.mark.parametrize(
    ("dtype", "weight_dtype"),
    [("float32", None), ("bfloat16", None), *(("bfloat16", name) for name in WEIGHT_TYPES if name.startswith("int"))],
)
@pytest.mark.parametrize("architecture", EVERY_OPTION)
def test_every_rank_holds_the_bytes_that_the_plan_says(
    tmp_path: Path, architecture: str, dtype: str, weight_dtype: str | None
) -> None:
    """Loaded for real: biases of every layer, ends of panels and a tied table's second copy included."""
    save_model(architecture, tmp_path, **EVERY_OPTION[architecture])
    config = open_weights(tmp_path).config
    for options in PLANS:
        plan = plan_for(config, dtype=dtype, weight_dtype=weight_dtype, **options)
        for shard in plan.shards:
            worker = ShardWorker(tmp_path, plan, shard.rank, groups=groups_of(plan, shard.rank))
            held = worker.load() - shard.weight_bytes
            if worker.kernels == "native":
                assert held == shard.packed_bytes, f"rank {shard.rank} of {options}"
            elif weight_dtype is None:  # PyTorch's reference keeps integers of 4 bits in bytes
                assert 0 <= held <= shard.packed_bytes, f"rank {shard.rank} of {options}"
            assert worker.kv_bytes_per_token == shard.kv_bytes_per_token


def test_the_real_model_holds_the_bytes_that_the_plan_says(smollm2: Path) -> None:
    plan = plan_for(open_weights(smollm2).config, dtype="bfloat16")
    (shard,) = plan.shards
    assert ShardWorker(smollm2, plan, 0, "meta").load() == shard.weight_bytes == 269_030_016
