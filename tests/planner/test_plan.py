"""Shard plans: exact covers of the model, uneven where they must be, refused with words that help."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lionrock.planner.chips import CHIPS, GIB, UnknownChip, chip
from lionrock.planner.memory import ModelShape, UnsupportedArchitecture, shape_of_config
from lionrock.planner.plan import PlanError, ShardPlan, Workload, apportion, choose_plan, plan_shards, rank_memory

SMOLLM2 = ModelShape(
    layers=30,
    hidden=576,
    query_heads=9,
    kv_heads=3,
    head_dim=64,
    mlp_columns=1536,
    vocabulary=49152,
    context_window=8192,
    tied_embeddings=True,
)
LLAMA_70B = ModelShape(
    layers=80,
    hidden=8192,
    query_heads=64,
    kv_heads=8,
    head_dim=128,
    mlp_columns=28672,
    vocabulary=128256,
    context_window=131072,
    tied_embeddings=False,
)
CPU = chip("cpu")


def assert_covers(plan: ShardPlan, shape: ModelShape) -> None:
    for stage in range(plan.pipeline_parallel):
        shards = [shard for shard in plan.shards if shard.stage == stage]
        for first, count, total in (
            ("first_query_head", "query_heads", shape.query_heads),
            ("first_mlp_column", "mlp_columns", shape.mlp_columns),
            ("first_vocab_row", "vocab_rows", shape.vocabulary),
        ):
            end = 0
            for shard in shards:
                assert getattr(shard, first) == end
                assert getattr(shard, count) >= 1
                end += getattr(shard, count)
            assert end == total
        for shard in shards:
            for head in range(shard.first_query_head, shard.first_query_head + shard.query_heads):
                assert shard.first_kv_head <= head // shape.group < shard.first_kv_head + shard.kv_heads
    layers = [shard for shard in plan.shards if shard.tensor_rank == 0]
    assert [shard.first_layer for shard in layers] == [sum(s.layers for s in layers[:i]) for i in range(len(layers))]
    assert sum(shard.layers for shard in layers) == shape.layers


@given(
    kv_heads=st.integers(1, 12),
    group=st.integers(1, 8),
    layers=st.integers(1, 40),
    mlp_columns=st.integers(64, 5000),
    tensor_parallel=st.integers(1, 16),
    pipeline_parallel=st.integers(1, 6),
)
def test_every_plan_covers_heads_columns_rows_and_layers_exactly_once(
    kv_heads: int, group: int, layers: int, mlp_columns: int, tensor_parallel: int, pipeline_parallel: int
) -> None:
    shape = ModelShape(
        layers=layers,
        hidden=64,
        query_heads=kv_heads * group,
        kv_heads=kv_heads,
        head_dim=16,
        mlp_columns=mlp_columns,
        vocabulary=1000,
        context_window=128,
        tied_embeddings=False,
    )
    if tensor_parallel > shape.query_heads or pipeline_parallel > layers:
        with pytest.raises(PlanError):
            plan_shards(shape, CPU, dtype="float32", tensor_parallel=tensor_parallel, pipeline_parallel=pipeline_parallel)
        return
    plan = plan_shards(shape, CPU, dtype="float32", tensor_parallel=tensor_parallel, pipeline_parallel=pipeline_parallel)
    assert_covers(plan, shape)
    assert plan.ranks == tensor_parallel * pipeline_parallel


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


def test_unlike_chips_take_layers_in_proportion() -> None:
    plan = plan_shards(SMOLLM2, CPU, dtype="float32", pipeline_parallel=2, stage_weights=[2.0, 1.0])
    assert [shard.layers for shard in plan.shards] == [20, 10]


def test_weights_of_all_ranks_add_up_to_the_model_and_norms_that_each_rank_repeats() -> None:
    whole = plan_shards(LLAMA_70B, CPU, dtype="bfloat16")
    assert whole.shards[0].weight_bytes == 2 * LLAMA_70B.parameters() == 2 * 70_553_706_496
    cut = plan_shards(LLAMA_70B, CPU, dtype="bfloat16", tensor_parallel=4)
    norms = 2 * (2 * 80 + 1) * 8192
    assert sum(shard.weight_bytes for shard in cut.shards) == whole.shards[0].weight_bytes + 3 * norms


def test_r1_distill_llama_70b_in_bf16_fits_four_chips_of_64_gib() -> None:
    workload = Workload(sequences=16, tokens_per_sequence=8192)
    plan = choose_plan(LLAMA_70B, chip("hygon-dcu"), chips=4, dtype="bfloat16", workload=workload)
    assert (plan.tensor_parallel, plan.pipeline_parallel) == (4, 1)
    assert all(rank_memory(LLAMA_70B, plan, rank, workload).total < 64 * GIB for rank in range(4))


@pytest.mark.parametrize("chips", [1, 2])
def test_a_refusal_says_how_many_chips_would_hold_the_model(chips: int) -> None:
    workload = Workload(sequences=16, tokens_per_sequence=8192)
    with pytest.raises(PlanError, match="4 chips would hold them"):
        choose_plan(LLAMA_70B, chip("ascend-910b"), chips=chips, dtype="bfloat16", workload=workload)


def test_a_refusal_says_what_shorter_workload_would_fit() -> None:
    workload = Workload(sequences=512, tokens_per_sequence=131072)
    with pytest.raises(PlanError, match=r"512 sequences of [0-9]+ tokens would fit"):
        choose_plan(LLAMA_70B, chip("ascend-910b"), chips=8, dtype="bfloat16", workload=workload)


def test_chips_that_come_in_pairs_are_planned_in_pairs() -> None:
    workload = Workload(sequences=1, tokens_per_sequence=1024)
    plan = choose_plan(LLAMA_70B, chip("ascend-a3"), chips=16, dtype="bfloat16", workload=workload)
    assert plan.ranks % 2 == 0


def test_a_cpu_pool_must_state_its_memory() -> None:
    with pytest.raises(PlanError, match="not in the chip table"):
        choose_plan(SMOLLM2, CPU, chips=1, dtype="bfloat16", workload=Workload(sequences=1, tokens_per_sequence=1))


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


def test_a_config_of_another_architecture_is_refused_by_name() -> None:
    with pytest.raises(UnsupportedArchitecture, match="DeepseekV3ForCausalLM"):
        shape_of_config({"architectures": ["DeepseekV3ForCausalLM"]})


def test_a_config_without_its_counts_is_refused_by_key() -> None:
    with pytest.raises(UnsupportedArchitecture, match="num_attention_heads"):
        shape_of_config({"architectures": ["LlamaForCausalLM"], "hidden_size": 8})
