"""Unlike chips: layers by memory and speed, found as exhaustive search finds them."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations, pairwise

import pytest
from covers import assert_covers
from hypothesis import given, settings
from hypothesis import strategies as st
from published import LLAMA_70B, SMOLLM2, V2_LITE, V3

from lionrock.planner.chips import GIB, chip
from lionrock.planner.cuts import PlanError
from lionrock.planner.fitting import Workload, rank_memory
from lionrock.planner.memory import RUNTIME_BYTES, USABLE_SHARE, ModelShape
from lionrock.planner.plan import ShardPlan, plan_shards
from lionrock.planner.stages import StageChips, plan_stages

CPU, H20, H100 = chip("cpu"), chip("nvidia-h20"), chip("nvidia-h100")
SMALL = Workload(sequences=1, tokens_per_sequence=256, batch_tokens=16)


def layers(plan: ShardPlan) -> list[int]:
    return [shard.layers for shard in plan.shards if shard.tensor_rank == 0]


def fits(plan: ShardPlan, shape: ModelShape, stages: list[StageChips], workload: Workload) -> bool:
    return all(rank_memory(shape, plan, shard.rank, workload).total <= stages[shard.stage].usable for shard in plan.shards)


def test_weights_given_by_hand_split_layers_in_proportion() -> None:
    plan = plan_shards(SMOLLM2, CPU, dtype="float32", pipeline_parallel=2, stage_weights=[2.0, 1.0])
    assert layers(plan) == [20, 10]


def test_a_chip_of_twice_the_speed_takes_about_twice_the_layers() -> None:
    stages = [StageChips(chip=CPU, speed=speed, memory_bytes=8 * GIB) for speed in (2.0, 1.0)]
    deep = replace(SMOLLM2, layers=60, vocabulary=8, tied_embeddings=False)
    assert layers(plan_stages(deep, stages, dtype="bfloat16", workload=SMALL)) == [40, 20]


def test_the_output_head_is_weighed_against_layers() -> None:
    """SmolLM2's table is as large as eight of its layers, and the last stage reads it."""
    stages = [StageChips(chip=CPU, speed=1.0, memory_bytes=8 * GIB)] * 2
    first, last = layers(plan_stages(SMOLLM2, stages, dtype="bfloat16", workload=SMALL))
    assert first - last == 8


def test_a_fast_chip_of_little_memory_takes_no_more_layers_than_it_holds() -> None:
    workload = Workload(sequences=8, tokens_per_sequence=4096)
    stages = [StageChips(chip=H20, speed=4.0), StageChips(chip=H100, speed=3.35)]
    plan = plan_stages(LLAMA_70B, stages, dtype="bfloat16", workload=workload)
    assert fits(plan, LLAMA_70B, stages, workload)
    small = [replace(stages[0], memory_bytes=70 * GIB), replace(stages[1], memory_bytes=120 * GIB)]
    tight = plan_stages(LLAMA_70B, small, dtype="bfloat16", workload=workload)
    assert layers(tight)[0] < layers(plan)[0]
    one_more = [layers(tight)[0] + 1, layers(tight)[1] - 1]
    assert not fits(
        plan_shards(LLAMA_70B, H20, dtype="bfloat16", pipeline_parallel=2, stage_weights=one_more), LLAMA_70B, small, workload
    )


@pytest.mark.parametrize("shape", [LLAMA_70B, V3, V2_LITE], ids=["llama-70b", "v3", "v2-lite"])
def test_mixed_generations_of_one_vendor_hold_the_models_in_every_number_of_stages(shape: ModelShape) -> None:
    workload = Workload(sequences=4, tokens_per_sequence=4096)
    for count in range(2, 9):
        stages = [StageChips(chip=(H20, H100)[n % 2], speed=(4.0, 3.35)[n % 2], memory_bytes=512 * GIB) for n in range(count)]
        plan = plan_stages(shape, stages, dtype="bfloat16", workload=workload, tensor_parallel=3)
        assert_covers(plan, shape)
        assert fits(plan, shape, stages, workload)


@settings(max_examples=60, deadline=None)
@given(
    chips=st.lists(st.tuples(st.integers(1, 9), st.integers(30, 120)), min_size=1, max_size=4),
    dense_layers=st.integers(0, 9),
    mixture=st.booleans(),
    tied=st.booleans(),
    tensor_parallel=st.integers(1, 3),
)
def test_no_split_has_a_faster_slowest_stage(
    chips: list[tuple[int, int]], dense_layers: int, mixture: bool, tied: bool, tensor_parallel: int
) -> None:
    base = replace(V2_LITE, vocabulary=3000, context_window=64, layers=9, tied_embeddings=tied)
    assert base.experts is not None
    shape = replace(base, experts=replace(base.experts, dense_layers=dense_layers, routed=6) if mixture else None)
    stages = [
        StageChips(chip=CPU, speed=float(speed), memory_bytes=int((RUNTIME_BYTES + megabytes * (12 << 20)) / USABLE_SHARE))
        for speed, megabytes in chips
    ]

    def slowest(plan: ShardPlan) -> float:
        """Of a plan, by the reference's own arithmetic."""
        times = []
        for shard in plan.shards:
            first, last = shard.stage == 0, shard.stage == len(stages) - 1
            table = shard.vocab_rows * shape.hidden * 2
            looked_up = table if first and not (tied and last) else 0
            times.append((shard.weight_bytes - looked_up) / stages[shard.stage].speed)
        return max(times)

    possible = []
    for cuts in combinations(range(1, shape.layers), len(stages) - 1):
        edges = (0, *cuts, shape.layers)
        counts = [stop - start for start, stop in pairwise(edges)]
        plan = plan_shards(
            shape,
            CPU,
            dtype="bfloat16",
            tensor_parallel=tensor_parallel,
            pipeline_parallel=len(stages),
            stage_weights=[float(count) for count in counts],
        )
        assert layers(plan) == counts
        if fits(plan, shape, stages, SMALL):
            possible.append(slowest(plan))
    if not possible:
        with pytest.raises(PlanError):
            plan_stages(shape, stages, dtype="bfloat16", workload=SMALL, tensor_parallel=tensor_parallel)
        return
    found = plan_stages(shape, stages, dtype="bfloat16", workload=SMALL, tensor_parallel=tensor_parallel)
    assert fits(found, shape, stages, SMALL)
    assert slowest(found) == pytest.approx(min(possible))


def test_chips_of_unlike_vendors_are_refused() -> None:
    for other in ("ascend-910b", "hygon-dcu", "cpu"):
        stages = [StageChips(chip=chip(other), speed=1.0), StageChips(chip=H20, speed=1.0)]
        with pytest.raises(PlanError, match="share no vendor"):
            plan_stages(LLAMA_70B, stages, dtype="bfloat16", workload=SMALL)


@pytest.mark.parametrize("speed", [0.0, -1.0, float("nan"), float("inf")])
def test_a_speed_that_is_no_speed_is_refused(speed: float) -> None:
    with pytest.raises(PlanError, match="speed"):
        plan_stages(SMOLLM2, [StageChips(chip=CPU, speed=speed, memory_bytes=GIB)], dtype="bfloat16", workload=SMALL)


def test_a_refusal_names_a_workload_that_would_fit() -> None:
    stages = [StageChips(chip=H20, speed=1.0), StageChips(chip=H100, speed=1.0)]
    with pytest.raises(PlanError, match=r"64 sequences of [0-9]+ tokens would fit"):
        plan_stages(LLAMA_70B, stages, dtype="bfloat16", workload=Workload(sequences=64, tokens_per_sequence=131072))
    with pytest.raises(PlanError, match="however the layers are split"):
        plan_stages(V3, stages, dtype="bfloat16", workload=SMALL)


def test_stages_on_cpus_must_state_their_memory() -> None:
    with pytest.raises(PlanError, match="not in the chip table"):
        plan_stages(SMOLLM2, [StageChips(chip=CPU, speed=1.0)], dtype="bfloat16", workload=SMALL)
