"""Shapes from `config.json`: parameters as published, bytes as the formulas say, and words for what is not known."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from published import COUNTS, DEEPSEEK_V3, LLAMA_70B, R1_DISTILL_LLAMA_70B, SMOLLM2, V2_LITE, V3

from lionrock.planner.memory import Held, UnsupportedArchitecture
from lionrock.planner.model_config import shape_of_config, weight_dtype_of_config
from lionrock.planner.weight_types import WEIGHT_TYPES, panel_bytes


@pytest.mark.parametrize(("config", "parameters"), COUNTS.values(), ids=COUNTS.keys())
def test_parameters_are_as_many_as_the_publisher_counts(config: dict[str, Any], parameters: int) -> None:
    assert shape_of_config(config).parameters() == parameters


def test_latent_attention_caches_the_compressed_key_and_value_whatever_the_number_of_heads() -> None:
    """DeepSeek-V3: 576 numbers a layer and token, 70,272 bytes in bfloat16; Llama-70B 327,680."""
    assert V3.kv_bytes_per_token(1, 61, "bfloat16") == 576 * 61 * 2 == 70_272
    assert LLAMA_70B.kv_bytes_per_token(8, 80, "bfloat16") == 327_680


def test_fp8_weights_take_a_byte_and_a_scale_a_block_and_leave_tables_norms_and_routers_as_they_are() -> None:
    fp8 = V3.weight_bytes("bfloat16", "fp8")
    tables = 2 * 129280 * 7168
    router = 58 * (256 * 7168 + 256) * 4
    norms = 61 * (2 * 7168 + 1536 + 512) + 7168
    unpacking = 61 * 128 * (128 + 128) * 512  # kv_b_proj: read from both sides
    matrices = V3.parameters() - tables - 58 * (256 * 7168 + 256) - norms - unpacking
    scales = fp8 - (tables + norms + unpacking) * 2 - router - matrices
    assert scales == pytest.approx(matrices / (128 * 128) * 4, rel=1e-3)
    assert V3.weight_bytes("bfloat16") == 2 * V3.parameters() + router // 2  # routers are held in float32


def test_a_matrix_that_ends_within_a_block_has_a_scale_for_that_block() -> None:
    assert WEIGHT_TYPES["fp8"].matrix_bytes(576, 7168) == 576 * 7168 + 5 * 56 * 4
    assert WEIGHT_TYPES["int8-w8a8"].matrix_bytes(10, 65) == 10 * 2 * (64 + 4)
    assert WEIGHT_TYPES["int4-weight-only"].matrix_bytes(10, 256) == 10 * 8 * (16 + 4)


def test_a_cpu_holds_panels_of_48_outputs_to_their_ends() -> None:
    assert [panel_bytes(rows, 64, "bfloat16", None) for rows in (1, 48, 49, 100)] == [2 * 47 * 64, 0, 2 * 47 * 64, 2 * 44 * 64]
    assert panel_bytes(49, 63, "bfloat16", None) == 0  # with half a pair it stays as it is
    assert panel_bytes(49, 63, "bfloat16", "int8-w8a8") == 47 * (64 + 4)
    whole = V2_LITE.whole
    odd = replace(whole, mlp_columns=10943, experts=3, shared_columns=2815)
    per_mixture = 2 * 2048 * (3 * (-1408 % 48) + (-2815 % 48)) + 3 * (-2048 % 48) * 1408  # down_proj of the shared is odd
    attention = V2_LITE.attention(whole).panel_bytes("float32", None)
    assert V2_LITE.layers_panel_bytes(range(26, 27), odd, "float32", None) == attention + 4 * per_mixture
    assert V2_LITE.layers_panel_bytes(range(1), odd, "float32", None) == attention + 4 * 2 * 2048 * (-10943 % 48)


def test_a_quantised_head_is_apart_from_a_tied_table() -> None:
    """SmolLM2: 106 million numbers in layers, 28 million in the table, which stays in bfloat16 beside a head of 8 bits."""
    layers = SMOLLM2.parameters() - 49152 * 576 - 576
    norms = 30 * 2 * 576
    groups = (layers - norms) // 32
    head = 49152 * 576 // 32 * (32 + 4)
    assert SMOLLM2.weight_bytes("bfloat16", "int4-weight-only") == groups * (16 + 4) + head + 2 * (49152 * 576 + 576 + norms)


def test_a_cut_of_all_is_the_whole_model() -> None:
    for shape in (LLAMA_70B, V2_LITE, V3):
        layers = sum((shape.layer(index, shape.whole) for index in range(shape.layers)), Held())
        assert shape.layers_bytes(range(shape.layers), shape.whole, "bfloat16", "fp8") == layers.size("bfloat16", "fp8")


def test_the_type_of_a_checkpoints_weights_is_read_from_its_config() -> None:
    assert weight_dtype_of_config(DEEPSEEK_V3) == "fp8"
    assert weight_dtype_of_config(R1_DISTILL_LLAMA_70B) is None
    for unknown in ({"quant_method": "gptq"}, {"quant_method": "fp8", "weight_block_size": [1, 64]}, 7):
        with pytest.raises(UnsupportedArchitecture):
            weight_dtype_of_config({"quantization_config": unknown})


def test_a_config_of_another_architecture_is_refused_by_name() -> None:
    with pytest.raises(UnsupportedArchitecture, match="GPT2LMHeadModel"):
        shape_of_config({"architectures": ["GPT2LMHeadModel"]})


@pytest.mark.parametrize(
    "key", ["num_attention_heads", "hidden_size", "kv_lora_rank", "moe_intermediate_size", "num_experts_per_tok"]
)
def test_a_config_without_its_counts_is_refused_by_key(key: str) -> None:
    with pytest.raises(UnsupportedArchitecture, match=key):
        shape_of_config({name: value for name, value in DEEPSEEK_V3.items() if name != key})


QWEN_YARN = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}
DEEPSEEK_YARN = {"type": "yarn", "factor": 40, "original_max_position_embeddings": 4096}


@pytest.mark.parametrize(
    ("stated", "scaling", "window"),
    [
        (32768, {"rope_scaling": QWEN_YARN}, 131072),  # Qwen2.5 states the window before it is extended
        (163840, {"rope_scaling": DEEPSEEK_YARN}, 163840),  # DeepSeek-V3 the one after
        (40960, {"rope_parameters": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}}, 131072),
        (8192, {"rope_scaling": {"rope_type": "llama3", "factor": 8.0, "original_max_position_embeddings": 8192}}, 8192),
        (8192, {"rope_scaling": None}, 8192),
    ],
)
def test_yarn_extends_the_context_window(stated: int, scaling: dict[str, Any], window: int) -> None:
    config = R1_DISTILL_LLAMA_70B | {"max_position_embeddings": stated} | scaling
    assert shape_of_config(config).context_window == window


@pytest.mark.parametrize("factor", [0, -1, "4", True, float("inf"), float("nan"), 2**70])
def test_a_factor_that_is_none_is_refused(factor: object) -> None:
    with pytest.raises(UnsupportedArchitecture, match="YaRN"):
        shape_of_config(R1_DISTILL_LLAMA_70B | {"rope_scaling": QWEN_YARN | {"factor": factor}})


_VALUES = (
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=4) | st.lists(st.none(), max_size=2)
)


@given(
    changes=st.dictionaries(st.sampled_from([*DEEPSEEK_V3, "mlp_bias", "head_dim", "rope_scaling"]), _VALUES),
    yarn=st.dictionaries(st.sampled_from([*QWEN_YARN]), _VALUES),
    latent=st.booleans(),
)
def test_any_config_gives_a_shape_or_a_named_error(changes: dict[str, object], yarn: dict[str, object], latent: bool) -> None:
    config = {**(DEEPSEEK_V3 if latent else R1_DISTILL_LLAMA_70B), "rope_scaling": QWEN_YARN | yarn, **changes}
    try:
        shape = shape_of_config(config)
    except UnsupportedArchitecture:
        return
    assert shape.layers_bytes(range(1), shape.whole, "bfloat16", None) > 0
