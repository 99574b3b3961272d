"""Shard plans: exact covers of the model, uneven where they must be, refused with words that help."""

from __future__ import annotations

from dataclasses import replace

import pytest
from covers import assert_covers
from hypothesis import given
from hypothesis import strategies as st
from published import LLAMA_70B, SMOLLM2, V2_LITE, V3

from lionrock.planner.chips import CHIPS, UnknownChip, chip
from lionrock.planner.cuts import PlanError, apportion
from lionrock.planner.fitting import held_by
from lionrock.planner.memory import Experts, LatentAttention, ModelShape
from lionrock.planner.plan import ShardPlan, plan_shards
from lionrock.planner.weight_types import WEIGHT_TYPES

CPU = chip("cpu")


@st.composite
def shapes(draw: st.DrawFn) -> ModelShape:
    """Dense models, and mixtures with latent attention."""
    group, layers = draw(st.integers(1, 8)), draw(st.integers(1, 40))
    latent, mixture = draw(st.booleans()), draw(st.booleans())
    kv_heads = 1 if latent else draw(st.integers(1, 12))
    return ModelShape(
        layers=layers,
        hidden=64,
        query_heads=kv_heads * group,
        kv_heads=kv_heads,
        head_dim=16,
        mlp_columns=draw(st.integers(64, 5000)),
        vocabulary=1000,
        context_window=128,
        tied_embeddings=draw(st.booleans()),
        latent=LatentAttention(query_rank=24, kv_rank=32, plain_dim=12, rotary_dim=4, value_dim=16) if latent else None,
        experts=Experts(
            routed=draw(st.integers(4, 40)),
            per_token=2,
            columns=32,
            shared_columns=draw(st.sampled_from([0, 32, 96])),
            dense_layers=draw(st.integers(0, layers)),
        )
        if mixture
        else None,
    )


@given(
    shape=shapes(),
    tensor_parallel=st.integers(1, 16),
    pipeline_parallel=st.integers(1, 6),
    weights=st.lists(st.floats(0.1, 10), min_size=16, max_size=16),
    even=st.booleans(),
    weight_dtype=st.sampled_from([None, *WEIGHT_TYPES]),
)
def test_every_plan_covers_heads_columns_experts_rows_and_layers_exactly_once(
    shape: ModelShape, tensor_parallel: int, pipeline_parallel: int, weights: list[float], even: bool, weight_dtype: str | None
) -> None:
    def plan() -> ShardPlan:
        return plan_shards(
            shape,
            CPU,
            dtype="float32",
            weight_dtype=weight_dtype,
            tensor_parallel=tensor_parallel,
            pipeline_parallel=pipeline_parallel,
            rank_weights=None if even else weights[:tensor_parallel],
            stage_weights=None if even else weights[:pipeline_parallel],
        )

    experts = shape.experts
    if (
        tensor_parallel > shape.query_heads
        or pipeline_parallel > shape.layers
        or (experts is not None and tensor_parallel > experts.routed)
    ):
        with pytest.raises(PlanError):
            plan()
        return
    made = plan()
    assert_covers(made, shape)
    assert made.ranks == tensor_parallel * pipeline_parallel
    if weight_dtype is None:
        assert_bytes_add_up(made, shape)


def assert_bytes_add_up(plan: ShardPlan, shape: ModelShape) -> None:
    """Weights that several ranks hold: norms, routers, compressions, and KV heads that they share."""
    repeated = 0
    for shard in plan.shards:
        held = held_by(shard)
        if shard.tensor_rank > 0:
            for layer in range(shard.first_layer, shard.first_layer + shard.layers):
                repeated += 4 * 2 * shape.hidden
                if shape.latent is not None:
                    latent = shape.latent
                    assert latent.query_rank is not None
                    compressions = (latent.cached + latent.query_rank) * shape.hidden
                    repeated += 4 * (compressions + latent.kv_rank + latent.query_rank)
                if shape.is_mixture(layer):
                    assert shape.experts is not None
                    repeated += 4 * shape.experts.routed * shape.hidden
            if plan.is_last_stage(shard.rank):
                repeated += 4 * shape.hidden
        if shape.latent is None and held.kv_heads == 1 and shard.first_query_head % shape.group:
            repeated += 4 * 2 * shape.head_dim * shape.hidden * shard.layers
    tables = shape.vocabulary * shape.hidden * 4 if shape.tied_embeddings and plan.pipeline_parallel > 1 else 0
    assert sum(shard.weight_bytes for shard in plan.shards) == 4 * shape.parameters() + tables + repeated


def test_a_rank_of_twice_the_weight_holds_about_twice_as_much() -> None:
    heavy, light = plan_shards(LLAMA_70B, CPU, dtype="bfloat16", tensor_parallel=2, rank_weights=[2.0, 1.0]).shards
    assert (heavy.kv_heads, light.kv_heads) == (5, 3)
    assert heavy.weight_bytes / light.weight_bytes == pytest.approx(2.0, rel=0.01)


@pytest.mark.parametrize("tensor_parallel", [3, 5, 7, 12])
def test_odd_chip_counts_share_a_mixture_evenly(tensor_parallel: int) -> None:
    """DeepSeek-V3: experts go whole, the columns of dense layers and of the shared expert make up for the heads."""
    plan = plan_shards(V3, CPU, dtype="bfloat16", weight_dtype="fp8", tensor_parallel=tensor_parallel)
    assert_covers(plan, V3)
    sizes = [shard.weight_bytes for shard in plan.shards]
    assert max(sizes) < 1.05 * min(sizes)  # one expert of twenty is the finest step
    assert all(shard.mlp_columns % 128 == 0 and shard.shared_columns % 128 == 0 for shard in plan.shards)
    assert {(shard.first_kv_head, shard.kv_heads) for shard in plan.shards} == {(0, 1)}
    assert {shard.kv_bytes_per_token for shard in plan.shards} == {70_272}


@pytest.mark.parametrize("weights", [[1.0], [1.0, 0.0], [1.0, -1.0], [1.0, float("nan")], [1.0, float("inf")], [1.0, 1e9]])
def test_weights_that_are_no_weights_are_refused(weights: list[float]) -> None:
    for name in ("rank_weights", "stage_weights"):
        options = {name: weights}
        with pytest.raises(PlanError, match=name):
            plan_shards(SMOLLM2, CPU, dtype="bfloat16", tensor_parallel=2, pipeline_parallel=2, **options)  # type: ignore[arg-type]


def test_more_ranks_than_experts_are_refused() -> None:
    with pytest.raises(PlanError, match="64 routed experts"):
        plan_shards(replace(V2_LITE, query_heads=128), CPU, dtype="bfloat16", tensor_parallel=65)


def test_a_tied_table_is_held_twice_where_the_processor_multiplies_another_layout() -> None:
    """SmolLM2 in bfloat16 on one CPU: 269 MB of tensors, 57 MB of packed output head; its matrices end where panels do."""
    (shard,) = plan_shards(SMOLLM2, CPU, dtype="bfloat16").shards
    assert (shard.weight_bytes, shard.packed_bytes) == (269_030_016, 56_623_104)
    apart = plan_shards(SMOLLM2, CPU, dtype="bfloat16", pipeline_parallel=2).shards
    assert [s.packed_bytes for s in apart] == [0, 0]
    assert plan_shards(SMOLLM2, chip("nvidia-h20"), dtype="bfloat16").shards[0].packed_bytes == 0


def test_smollm2_over_two_ranks_holds_six_and_three_query_heads_over_two_and_one_kv_heads() -> None:
    plan = plan_shards(SMOLLM2, CPU, dtype="bfloat16", tensor_parallel=2)
    assert [(shard.query_heads, shard.kv_heads) for shard in plan.shards] == [(6, 2), (3, 1)]
    assert plan.kv_bytes_per_token == SMOLLM2.kv_bytes_per_token(3, 30, "bfloat16") == 23040


def test_the_rank_with_fewer_heads_takes_more_mlp_columns() -> None:
    first, second = plan_shards(SMOLLM2, CPU, dtype="bfloat16", tensor_parallel=2).shards
    assert first.mlp_columns < second.mlp_columns
    assert abs(first.weight_bytes - second.weight_bytes) < 0.05 * first.weight_bytes


def test_pipeline_stages_split_layers_and_only_the_ends_hold_the_tables() -> None:
    first, middle, last = plan_shards(SMOLLM2, CPU, dtype="float32", pipeline_parallel=3).shards
    assert [first.layers, middle.layers, last.layers] == [10, 10, 10]
    table = SMOLLM2.vocabulary * SMOLLM2.hidden * 4
    assert first.weight_bytes - middle.weight_bytes == table
    assert last.weight_bytes - middle.weight_bytes == table + SMOLLM2.hidden * 4  # the final norm


def test_weights_of_all_ranks_add_up_to_the_model_and_norms_that_each_rank_repeats() -> None:
    whole = plan_shards(LLAMA_70B, CPU, dtype="bfloat16")
    assert whole.shards[0].weight_bytes == 2 * LLAMA_70B.parameters() == 2 * 70_553_706_496
    cut = plan_shards(LLAMA_70B, CPU, dtype="bfloat16", tensor_parallel=4)
    norms = 2 * (2 * 80 + 1) * 8192
    assert sum(shard.weight_bytes for shard in cut.shards) == whole.shards[0].weight_bytes + 3 * norms


@given(st.integers(1, 500), st.lists(st.floats(0.01, 100), min_size=1, max_size=20))
def test_apportioning_loses_nothing_and_leaves_nobody_empty(total: int, weights: list[float]) -> None:
    if total < len(weights):
        with pytest.raises(PlanError):
            apportion(total, weights)
        return
    parts = apportion(total, weights)
    assert sum(parts) == total
    assert min(parts) >= 1


def test_only_the_cpu_is_marked_as_ever_run() -> None:
    assert [row.name for row in CHIPS.values() if row.proven] == ["cpu"]


def test_an_unknown_chip_is_refused_with_the_known_names() -> None:
    with pytest.raises(UnknownChip, match="ascend-910b"):
        chip("abacus")
