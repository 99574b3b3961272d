"""Logits of small random checkpoints with every option of their architecture on, against transformers."""

import contextlib
from pathlib import Path
from typing import Any

import pytest
import small_models
import torch
from checkpoints import DEEPSEEK_YARN, YARN, save_model
from hypothesis import given, settings
from hypothesis import strategies as st
from small_models import logits_of

from lionrock.inference.model.config_json import from_config_json
from lionrock.inference.model.errors import ModelError, UnsupportedModel
from lionrock.inference.model.layers import rope_frequencies

TOLERANCE = 1e-4


@pytest.fixture(params=["off", "required"], autouse=True)
def kernels(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """PyTorch's and the native kernels, each held to the same reference."""
    if request.param == "required" and small_models.DEVICE != "cpu":
        pytest.skip("native kernels are for CPUs")
    monkeypatch.setattr(small_models, "KERNELS", request.param)


LENGTH = 70

CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "mistral": ("mistral", {"head_dim": 20}),
    "llama with yarn": ("llama", {"rope_parameters": {**YARN, "attention_factor": 1.3}}),
    "qwen2 with yarn": ("qwen2", {"rope_parameters": YARN}),
    "qwen3": ("qwen3", {}),
    "qwen3 with biases, yarn and one KV head": (
        "qwen3",
        {"attention_bias": True, "rope_parameters": {**YARN, "truncate": False}, "num_key_value_heads": 1},
    ),
    "deepseek_v2": ("deepseek_v2", {}),
    "deepseek_v2 lite": (
        "deepseek_v2",
        {"q_lora_rank": None, "topk_method": "greedy", "n_group": 1, "topk_group": 1, "rope_parameters": DEEPSEEK_YARN},
    ),
    "deepseek_v2 with biases and yarn": (
        "deepseek_v2",
        {"attention_bias": True, "mlp_bias": True, "rope_parameters": {**DEEPSEEK_YARN, "mscale_all_dim": 0.707}},
    ),
    "deepseek_v3": ("deepseek_v3", {"rope_parameters": DEEPSEEK_YARN}),
    "deepseek_v3 with biases and no shared rank": ("deepseek_v3", {"attention_bias": True, "q_lora_rank": None}),
    "deepseek_v3 with its switches the other way": (
        "deepseek_v3",
        {"rope_interleave": False, "norm_topk_prob": False, "v_head_dim": 24, "first_k_dense_replace": 0},
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_logits_equal_transformers_at_once_in_chunks_and_token_by_token(tmp_path: Path, name: str) -> None:
    architecture, options = CASES[name]
    model = save_model(architecture, tmp_path, **options)
    token_ids = torch.randint(0, 331, (LENGTH,), generator=torch.Generator().manual_seed(1)).tolist()
    with torch.inference_mode():
        expected = model(torch.tensor([token_ids])).logits[0]
    for chunks in ([LENGTH], [33, 1, 2, 34], [20, *[1] * (LENGTH - 20)]):
        assert (logits_of(tmp_path, token_ids, chunks=chunks) - expected).abs().max() < TOLERANCE


def test_layers_of_multi_token_prediction_are_passed_over(tmp_path: Path) -> None:
    """DeepSeek-V3's checkpoints hold one layer more than num_hidden_layers says."""
    save_model("deepseek_v3", tmp_path / "three")
    token_ids = list(range(3, 40))
    directory = tmp_path / "two"
    save_model("deepseek_v3", directory)
    config = directory / "config.json"
    config.write_text(config.read_text().replace('"num_hidden_layers": 3', '"num_hidden_layers": 2, "num_nextn_predict_layers": 1'))
    found = logits_of(directory, token_ids)
    assert found.isfinite().all()
    assert not torch.equal(found, logits_of(tmp_path / "three", token_ids))


PUBLISHED: dict[str, Any] = {
    "vocab_size": 129280,
    "hidden_size": 7168,
    "intermediate_size": 18432,
    "moe_intermediate_size": 2048,
    "num_hidden_layers": 61,
    "num_attention_heads": 128,
    "num_key_value_heads": 128,
    "n_shared_experts": 1,
    "n_routed_experts": 256,
    "ep_size": 1,
    "routed_scaling_factor": 2.5,
    "kv_lora_rank": 512,
    "q_lora_rank": 1536,
    "qk_rope_head_dim": 64,
    "v_head_dim": 128,
    "qk_nope_head_dim": 128,
    "topk_method": "noaux_tc",
    "n_group": 8,
    "topk_group": 4,
    "num_experts_per_tok": 8,
    "moe_layer_freq": 1,
    "first_k_dense_replace": 3,
    "norm_topk_prob": True,
    "scoring_func": "sigmoid",
    "hidden_act": "silu",
    "max_position_embeddings": 163840,
    "rms_norm_eps": 1e-06,
    "rope_theta": 10000,
    "rope_scaling": {
        "beta_fast": 32,
        "beta_slow": 1,
        "factor": 40,
        "mscale": 1.0,
        "mscale_all_dim": 1.0,
        "original_max_position_embeddings": 4096,
        "type": "yarn",
    },
    "attention_bias": False,
    "tie_word_embeddings": False,
    "model_type": "deepseek_v3",
    "num_nextn_predict_layers": 1,
    "bos_token_id": 0,
    "eos_token_id": 1,
}
"""config.json of DeepSeek-V3 and R1 as published, but for keys of training."""


def test_the_published_configuration_of_deepseek_v3_is_read_as_it_is() -> None:
    config = from_config_json(PUBLISHED)
    assert config.moe is not None
    assert config.rope.yarn is not None
    assert config.rope.interleaved
    assert config.context_window == 163840
    assert config.kv_bytes_per_token(1, 61, 2) == (512 + 64) * 61 * 2
    assert (config.rope.yarn.attention_factor, config.rope.yarn.score_factor) == (1.0, pytest.approx(1.8738542))
    assert [config.is_mixture(layer) for layer in (0, 2, 3, 60)] == [False, False, True, True]


def test_yarn_in_a_dense_models_configuration_widens_its_context() -> None:
    """Qwen's way: max_position_embeddings stays what the model was trained on."""
    dense = {key: PUBLISHED[key] for key in ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads")}
    scaling = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}
    config = from_config_json(
        {
            **dense,
            "model_type": "qwen3",
            "intermediate_size": 512,
            "max_position_embeddings": 40960,
            "rms_norm_eps": 1e-6,
            "rope_scaling": scaling,
        }
    )
    assert (config.context_window, config.head_dim) == (131072, 128)


@pytest.mark.parametrize(
    "change",
    [
        {"topk_method": "greedy"},
        {"scoring_func": "softmax"},
        {"moe_layer_freq": 2},
        {"model_type": "deepseek_v2", "topk_method": "noaux_tc"},
        {"model_type": "deepseek_v2", "topk_method": "greedy", "scoring_func": "softmax", "norm_topk_prob": True},
        {"rope_scaling": {"type": "linear", "factor": 2.0}},
        {"model_type": "deepseek_v32"},
        {"model_type": "mistral", "sliding_window": 4096},
    ],
    ids=str,
)
def test_what_is_not_offered_is_refused_by_name(change: dict[str, Any]) -> None:
    with pytest.raises(UnsupportedModel):
        from_config_json({**PUBLISHED, **change})


_NUMBERS = st.booleans() | st.integers(-(2**70), 2**70) | st.floats()
_SCALING = st.dictionaries(st.sampled_from(sorted(PUBLISHED["rope_scaling"])), _NUMBERS | st.just("yarn"), max_size=4)


@settings(max_examples=200, deadline=None)
@given(
    st.dictionaries(
        st.sampled_from(sorted(PUBLISHED)),
        st.none() | _NUMBERS | st.text(max_size=5) | st.lists(st.integers(), max_size=2) | _SCALING,
        max_size=3,
    ),
    _SCALING,
)
def test_any_configuration_of_deepseek_gives_a_model_or_a_named_error(
    changes: dict[str, object], scaling: dict[str, object]
) -> None:
    for change in (changes, {"rope_scaling": {**PUBLISHED["rope_scaling"], **scaling}}):
        with contextlib.suppress(ModelError):
            config = from_config_json({**PUBLISHED, **change})
            assert rope_frequencies(config.rope, 64).isfinite().all()
