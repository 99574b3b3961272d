"""Plans of replicas: known answers with the figures of published checkpoints, pods, and refusals that say what would fit."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from time import perf_counter

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from published import DEEPSEEK_V3, LLAMA_70B, SMOLLM2, V2_LITE, V3

from lionrock.planner.chips import GIB, Chip, InvalidChip, chip, described_chip, parse_memory
from lionrock.planner.cuts import PlanError
from lionrock.planner.fitting import Workload, rank_memory
from lionrock.planner.memory import USABLE_SHARE, ModelShape
from lionrock.planner.model_config import weight_dtype_of_config
from lionrock.planner.plan import plan_shards
from lionrock.planner.replica import Chips, Parallelism, ReplicaPlan, held_weights, plan_replica
from lionrock.planner.search import MAX_RANKS, stages_per_pod

USUAL = Workload(sequences=16, tokens_per_sequence=8192)
CRD = Path(__file__).parents[2] / "charts/lionrock-crds/templates/lionrock.io_modeldeployments.yaml"


def cut(plan: ReplicaPlan) -> tuple[int, int]:
    return plan.shards.tensor_parallel, plan.shards.pipeline_parallel


# Known answers


def test_r1_distill_llama_70b_in_bf16_runs_on_four_chips_of_64_gib() -> None:
    """Published as known good on 4 × K100_AI."""
    plan = plan_replica(LLAMA_70B, Chips(chip=chip("hygon-dcu")), workload=USUAL)
    assert (cut(plan), plan.pods, plan.chips_per_pod) == ((4, 1), 1, 4)
    assert plan.summary == "4 × hygon-dcu, TP 4 × PP 1"
    assert max(memory.total for memory in plan.memory) <= plan.usable_bytes == int(64 * GIB * 0.92)


def test_deepseek_v3_in_fp8_fits_sixteen_chips_of_64_gib_where_the_engine_keeps_fp8() -> None:
    """The vllm backend does; Lionrock's own holds the same files in bfloat16, which takes 24 chips."""
    written = weight_dtype_of_config(DEEPSEEK_V3)
    sixteen = Chips(chip=chip("ascend-910b"), available=16)
    kept = plan_replica(V3, sixteen, workload=USUAL, weight_dtype=held_weights(written, None, "vllm"), backend="vllm")
    assert kept.chips <= 16
    asked = plan_replica(V3, sixteen, workload=USUAL, weight_dtype="fp8", backend="vllm", parallelism=Parallelism(8, 2))
    assert (asked.chips, asked.pods, asked.chips_per_pod) == (16, 2, 8)
    dequantised = held_weights(written, None, "torch")
    assert dequantised is None
    with pytest.raises(PlanError, match=r"bfloat16 weights of 1250\.1 GiB .* 24 chips would hold them .* with int8-w8a8 weights"):
        plan_replica(V3, sixteen, workload=USUAL, weight_dtype=dequantised)


def test_deepseek_v3_in_w8a8_fits_sixteen_chips_of_64_gib() -> None:
    rounded = held_weights("fp8", "int8-w8a8", "torch")
    plan = plan_replica(V3, Chips(chip=chip("ascend-910b"), available=16), workload=USUAL, weight_dtype=rounded)
    assert plan.chips <= 16
    asked = plan_replica(V3, Chips(chip=chip("ascend-a3")), workload=USUAL, weight_dtype=rounded, parallelism=Parallelism(16))
    assert (asked.chips, asked.pods, asked.chips_per_pod) == (16, 1, 16)


def test_a_backend_that_rounds_nothing_refuses_to() -> None:
    with pytest.raises(PlanError, match="does not round"):
        held_weights(None, "int8-w8a8", "vllm")
    with pytest.raises(PlanError, match="int8-w8a8, int8-weight-only, int4-weight-only"):
        held_weights(None, "fp8", "torch")


# Refusals


@pytest.mark.parametrize("available", [1, 2])
def test_a_refusal_says_how_many_chips_would_hold_the_model(available: int) -> None:
    with pytest.raises(PlanError, match=r"4 chips would hold them \(TP 4 × PP 1\)"):
        plan_replica(LLAMA_70B, Chips(chip=chip("ascend-910b"), available=available), workload=USUAL)


def test_a_refusal_says_what_shorter_workload_would_fit() -> None:
    workload = Workload(sequences=512, tokens_per_sequence=131072)
    chips = Chips(chip=chip("ascend-910b"), available=8)
    with pytest.raises(PlanError, match=r"512 sequences of ([0-9]+) tokens would fit") as refused:
        plan_replica(LLAMA_70B, chips, workload=workload)
    tokens = int(str(refused.value).rpartition(" tokens would fit")[0].rpartition(" ")[2])
    assert plan_replica(LLAMA_70B, chips, workload=replace(workload, tokens_per_sequence=tokens)).chips <= 8


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        (Parallelism(16, 1), "does not leave its node"),
        (Parallelism(8, 17), "128 ranks at most"),
        (Parallelism(1, 81), "80 layers"),
        (Parallelism(8, 3), "takes 24 chips, and 16 are available"),
        (Parallelism(0, 1), "no cut"),
        (Parallelism(2, 1), r"do not fit TP 2 × PP 1 .* 4 chips would hold them"),
    ],
)
def test_a_cut_that_cannot_be_is_refused_by_name(asked: Parallelism, words: str) -> None:
    with pytest.raises(PlanError, match=words):
        plan_replica(LLAMA_70B, Chips(chip=chip("ascend-910b"), available=16), workload=USUAL, parallelism=asked)


def test_vllm_gets_even_cuts_only() -> None:
    """SmolLM2 has nine query heads over three KV heads: halves are uneven, thirds are not."""
    small = Chips(chip=chip("nvidia-h20"), memory_bytes=4 * GIB)
    workload = Workload(sequences=8, tokens_per_sequence=2048, batch_tokens=64)
    assert cut(plan_replica(SMOLLM2, small, workload=workload, parallelism=Parallelism(2))) == (2, 1)
    with pytest.raises(PlanError, match="evenly"):
        plan_replica(SMOLLM2, small, workload=workload, parallelism=Parallelism(2), backend="vllm")
    assert cut(plan_replica(SMOLLM2, small, workload=workload, parallelism=Parallelism(3), backend="vllm")) == (3, 1)


def test_a_chip_without_a_vllm_is_not_planned_for_it() -> None:
    with pytest.raises(PlanError, match="no vLLM is known for iluvatar-bi-v150"):
        plan_replica(LLAMA_70B, Chips(chip=chip("iluvatar-bi-v150")), workload=USUAL, backend="vllm")


def test_a_longer_context_than_the_models_is_refused() -> None:
    with pytest.raises(PlanError, match="8192 tokens, and 8193"):
        plan_replica(SMOLLM2, Chips(chip=chip("nvidia-h20")), workload=Workload(sequences=1, tokens_per_sequence=8193))


def test_a_pool_of_cpus_must_state_its_memory() -> None:
    workload = Workload(sequences=1, tokens_per_sequence=16)
    with pytest.raises(PlanError, match="not in the chip table"):
        plan_replica(SMOLLM2, Chips(chip=chip("cpu")), workload=workload)
    assert plan_replica(SMOLLM2, Chips(chip=chip("cpu"), memory_bytes=8 * GIB), workload=workload).chips == 1


# Pods


@pytest.mark.parametrize(
    ("tensor", "pipeline", "node", "together"),
    [(4, 1, 8, 1), (4, 2, 8, 2), (4, 3, 8, 1), (2, 6, 8, 3), (1, 13, 8, 1), (8, 4, 8, 1), (2, 8, 16, 8)],
)
def test_a_pod_has_as_many_whole_stages_as_a_node_and_every_pod_the_same(
    tensor: int, pipeline: int, node: int, together: int
) -> None:
    assert stages_per_pod(tensor, pipeline, node) == together


def test_chips_that_come_in_pairs_are_planned_in_pairs_in_every_pod() -> None:
    one = Workload(sequences=1, tokens_per_sequence=1024)
    assert plan_replica(SMOLLM2, Chips(chip=chip("ascend-a3")), workload=one).chips_per_pod == 2
    with pytest.raises(PlanError, match="even numbers"):
        plan_replica(LLAMA_70B, Chips(chip=chip("ascend-a3")), workload=one, parallelism=Parallelism(7))


# The search against a naive one


def naive_plan(shape: ModelShape, chips: Chips, workload: Workload, weight_dtype: str | None) -> tuple[int, int] | None:
    """Build every plan and count every rank."""
    types = {"dtype": "bfloat16", "weight_dtype": weight_dtype}
    for count in range(1, chips.available + 1):
        for pipeline in range(1, count + 1):
            tensor = count // pipeline
            if count % pipeline or tensor > chips.node_chips:
                continue
            try:
                plan = plan_shards(shape, chips.chip, tensor_parallel=tensor, pipeline_parallel=pipeline, **types)
            except PlanError:
                continue
            if all(rank_memory(shape, plan, rank, workload).total <= int(chips.chip_bytes * USABLE_SHARE) for rank in range(count)):
                return tensor, pipeline
    return None


@settings(deadline=None, max_examples=60)
@given(
    shape=st.sampled_from([LLAMA_70B, V2_LITE, V3, SMOLLM2]),
    name=st.sampled_from(["ascend-910b", "enflame-s60", "metax-c500"]),
    available=st.integers(1, 20),
    sequences=st.integers(1, 64),
    blocks=st.integers(1, 512),
    weight_dtype=st.sampled_from([None, "int8-w8a8", "int4-weight-only", "fp8"]),
)
def test_the_fewest_chips_are_those_that_counting_every_rank_of_every_plan_finds(
    shape: ModelShape, name: str, available: int, sequences: int, blocks: int, weight_dtype: str | None
) -> None:
    chips = Chips(chip=chip(name), available=available)
    workload = Workload(sequences=sequences, tokens_per_sequence=16 * blocks)
    found = naive_plan(shape, chips, workload, weight_dtype)
    if found is None:
        with pytest.raises(PlanError):
            plan_replica(shape, chips, workload=workload, weight_dtype=weight_dtype)
        return
    plan = plan_replica(shape, chips, workload=workload, weight_dtype=weight_dtype)
    assert cut(plan) == found
    full = replace(workload, sequences=1, tokens_per_sequence=plan.kv_tokens)
    one_more = replace(full, tokens_per_sequence=plan.kv_tokens + 16)
    ranks = range(plan.chips)
    assert all(rank_memory(shape, plan.shards, rank, full).total <= plan.usable_bytes for rank in ranks)
    assert any(rank_memory(shape, plan.shards, rank, one_more).total > plan.usable_bytes for rank in ranks)
    assert plan.kv_tokens >= sequences * 16 * blocks


def test_a_thousand_models_are_planned_in_a_second_or_two() -> None:
    chips = [Chips(chip=chip("ascend-910b"), available=count) for count in (16, 24, 32, 64)]
    began = perf_counter()
    for number in range(1000):
        workload = Workload(sequences=1 + number % 50, tokens_per_sequence=4096)
        plan_replica(V3, chips[number % 4], workload=workload, weight_dtype="int8-w8a8")
    assert perf_counter() - began < 20  # of a machine that does other things too


# What is shown


def test_the_json_form_has_the_keys_and_types_of_the_status_of_a_model_deployment() -> None:
    (version,) = yaml.safe_load(CRD.read_text())["spec"]["versions"]
    stated = version["schema"]["openAPIV3Schema"]["properties"]["status"]["properties"]["plan"]["properties"]
    status = plan_replica(LLAMA_70B, Chips(chip=chip("hygon-dcu")), workload=USUAL).status()
    kinds = {"string": str, "integer": int, "array": list}
    assert status.keys() == stated.keys() - {"pool"}
    assert all(type(status[key]) is kinds[stated[key]["type"]] for key in status)
    of_rank = stated["ranks"]["items"]["properties"]
    assert stated["ranks"]["maxItems"] == MAX_RANKS
    for rank in status["ranks"]:
        assert rank.keys() == of_rank.keys()
        assert rank["total"] == sum(rank[use] for use in ("weights", "kvCache", "activations", "runtime"))


def test_what_the_engine_must_be_given_holds_the_tokens_on_every_rank_and_fits_it() -> None:
    plan = plan_replica(V3, Chips(chip=chip("ascend-910b"), available=16), workload=USUAL, weight_dtype="int8-w8a8")
    blocks = min(plan.kv_cache_bytes // (16 * shard.kv_bytes_per_token) for shard in plan.shards.shards)
    assert 16 * blocks == plan.kv_tokens
    for shard, memory in zip(plan.shards.shards, plan.memory, strict=True):
        assert memory.total - memory.kv_cache + 16 * blocks * shard.kv_bytes_per_token <= plan.usable_bytes


# Chips described by hand

DESCRIPTION = {
    "product": "A chip of next year",
    "extendedResource": "example.com/chip",
    "torchDevice": "chip",
    "torchModule": "torch_chip",
    "collective": "chipccl",
    "rayResource": "CHIP",
    "visibleDevices": "CHIP_VISIBLE_DEVICES",
    "memory": "48Gi",
    "chipsPerNode": 4,
    "evenCountsOnly": True,
}


def test_a_chip_described_by_hand_is_planned_like_one_of_the_table() -> None:
    row = described_chip("next-year", DESCRIPTION)
    assert row == Chip(
        name=row.name,
        product="A chip of next year",
        torch_device="chip",
        torch_module="torch_chip",
        collective="chipccl",
        ray_resource="CHIP",
        ray_sets_visible_devices=False,
        visible_devices="CHIP_VISIBLE_DEVICES",
        extended_resource="example.com/chip",
        memory_bytes=48 * GIB,
        chips_per_node=4,
        even_counts_only=True,
        engine_plugin=None,
        proven=False,
    )
    plan = plan_replica(LLAMA_70B, Chips(chip=row), workload=USUAL)
    assert (plan.summary, plan.pods, plan.chips_per_pod) == ("6 × next-year, TP 2 × PP 3", 3, 2)


@pytest.mark.parametrize("missing", ["extendedResource", "torchDevice", "collective", "rayResource", "memory", "chipsPerNode"])
def test_a_description_that_lacks_something_says_what(missing: str) -> None:
    for wrong in ({key: value for key, value in DESCRIPTION.items() if key != missing}, DESCRIPTION | {missing: ""}):
        with pytest.raises(InvalidChip, match=missing):
            described_chip("next-year", wrong)


@pytest.mark.parametrize(
    ("text", "size"), [("64Gi", 64 * GIB), ("65536Mi", 64 * GIB), (1 << 20, 1 << 20), ("512", 512), ("1Ti", 1 << 40)]
)
def test_memory_is_read_as_pools_state_it(text: int | str, size: int) -> None:
    assert parse_memory(text) == size


@pytest.mark.parametrize("text", ["", "64G", "64 Gi", "-1", "0", "1.5Gi", "٣Gi", "9" * 20, "9999999Ti", True, -5, 0])
def test_what_is_no_memory_is_refused(text: int | str) -> None:
    with pytest.raises(InvalidChip, match="memory"):
        parse_memory(text)
