"""A model's configuration from Hugging Face's `config.json`: dense Llama, Mistral, Qwen; DeepSeek-V2 and V3 (and so R1).

What a file asks for and is not offered is refused by name, not passed over. Where the released checkpoints' own code and
`transformers` differ, the checkpoint counts. Sources: `LlamaConfig`, `MistralConfig`, `Qwen2Config`, `Qwen3Config`,
`DeepseekV2Config`, `DeepseekV3Config` of transformers 5.23; `configuration_deepseek.py` beside the DeepSeek weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lionrock.inference.model.config import Llama3Scaling, MlaConfig, ModelConfig, MoeConfig, RopeConfig, RoutingMethod, YarnScaling
from lionrock.inference.model.config_reading import Reader, token_ids
from lionrock.inference.model.errors import MalformedWeights, UnsupportedModel

_DENSE = ("llama", "mistral", "qwen2", "qwen3")
_LATENT = ("deepseek_v2", "deepseek_v3")
_QWEN3_HEAD_DIM = 128  # where config.json does not say


def from_config_json(config: Mapping[str, Any], generation: Mapping[str, Any] | None = None) -> ModelConfig:
    """Read `config.json`, and `generation_config.json` for the end-of-sequence ids.

    Raises UnsupportedModel, MalformedWeights.
    """
    architecture = config.get("model_type")
    if architecture not in _DENSE + _LATENT:
        raise UnsupportedModel(f"model_type {architecture!r} is not one of {', '.join(_DENSE + _LATENT)}")
    if config.get("hidden_act", "silu") != "silu":
        raise UnsupportedModel("only the SiLU activation is offered")
    _refuse_sliding_window(config)
    read = Reader(config, "config.json")
    rope = _rope(config, read, interleaved=architecture in _LATENT and read.flag("rope_interleave", True))
    eos = (generation or {}).get("eos_token_id", config.get("eos_token_id"))
    context_window = read.size("max_position_embeddings")
    if rope.yarn is not None:  # Qwen's files state the context before scaling, DeepSeek's the one after
        context_window = max(context_window, int(rope.yarn.factor * rope.yarn.original_context))
    attention_bias = read.flag("attention_bias", False)
    shared = {
        "architecture": architecture,
        "vocab_size": read.size("vocab_size"),
        "hidden_size": read.size("hidden_size"),
        "layers": read.size("num_hidden_layers"),
        "query_heads": read.size("num_attention_heads"),
        "mlp_columns": read.size("intermediate_size"),
        "context_window": context_window,
        "norm_epsilon": read.number("rms_norm_eps"),
        "rope": rope,
        "tied_embeddings": read.flag("tie_word_embeddings", False),
        "attention_output_bias": attention_bias and architecture != "qwen2",
        "mlp_bias": architecture in ("llama", "deepseek_v2") and read.flag("mlp_bias", False),
        "eos_token_ids": token_ids(eos),
    }
    if architecture in _LATENT:
        mla = _latent_attention(read)
        if rope.yarn is None and (rope.llama3 is not None or rope.linear_factor != 1.0):
            raise UnsupportedModel("latent attention with a rope scaling other than YaRN is not offered")
        moe = _experts(config, read, architecture)
        return ModelConfig(**shared, kv_heads=1, head_dim=mla.qk_head_dim, qkv_bias=attention_bias, mla=mla, moe=moe)
    query_heads = read.size("num_attention_heads")
    head_dim = _QWEN3_HEAD_DIM if architecture == "qwen3" else read.size("hidden_size") // query_heads
    return ModelConfig(
        **shared,
        kv_heads=read.size("num_key_value_heads", query_heads),
        head_dim=read.size("head_dim", head_dim),
        qkv_bias=architecture == "qwen2" or attention_bias,
        head_norm=architecture == "qwen3",
    )


def _refuse_sliding_window(config: Mapping[str, Any]) -> None:
    layer_types = config.get("layer_types") or []
    if not isinstance(layer_types, list):
        raise MalformedWeights("config.json: layer_types is no list")
    mistral = config.get("model_type") == "mistral" and config.get("sliding_window", 4096) is not None  # 4096: where absent
    if mistral or config.get("use_sliding_window") or any(kind != "full_attention" for kind in layer_types):
        raise UnsupportedModel("sliding-window attention is not offered")


def _latent_attention(read: Reader) -> MlaConfig:
    return MlaConfig(
        q_lora_rank=read.optional_size("q_lora_rank"),
        kv_lora_rank=read.size("kv_lora_rank"),
        qk_nope_head_dim=read.size("qk_nope_head_dim"),
        qk_rope_head_dim=read.size("qk_rope_head_dim"),
        v_head_dim=read.size("v_head_dim"),
    )


def _experts(config: Mapping[str, Any], read: Reader, architecture: str) -> MoeConfig | None:
    """Mixture of experts; None when every layer is dense. Layers past the last (multi-token prediction) are not read."""
    if config.get("n_routed_experts") is None:
        return None
    if read.size("moe_layer_freq", 1) != 1:
        raise UnsupportedModel("mixtures of experts in some layers only (moe_layer_freq) are not offered")
    v3 = architecture == "deepseek_v3"
    usual, scoring = ("noaux_tc", "sigmoid") if v3 else ("greedy", "softmax")
    stated = config.get("topk_method") or usual
    method: RoutingMethod
    if v3 and stated == "noaux_tc":
        method = "noaux_tc"
    elif not v3 and stated == "greedy":
        method = "greedy"
    elif not v3 and stated == "group_limited_greedy":
        method = "group_limited_greedy"
    else:
        raise UnsupportedModel(f"topk_method {stated!r} is not offered for {architecture}")
    if (config.get("scoring_func") or scoring) != scoring:
        raise UnsupportedModel(f"scoring_func {config.get('scoring_func')!r} is not offered for {architecture}")
    normalised = read.flag("norm_topk_prob", v3)
    if normalised and not v3:
        raise UnsupportedModel("norm_topk_prob in deepseek_v2: implementations disagree on its meaning, and no release has it")
    grouped = method != "greedy"
    columns = read.size("moe_intermediate_size")
    return MoeConfig(
        experts=read.size("n_routed_experts"),
        experts_per_token=read.size("num_experts_per_tok"),
        expert_columns=columns,
        shared_columns=columns * read.size("n_shared_experts", 0, least=0),
        first_layer=read.size("first_k_dense_replace", 3 if v3 else 0, least=0),
        method=method,
        groups=read.size("n_group") if grouped else 1,
        groups_per_token=read.size("topk_group") if grouped else 1,
        normalised=normalised,
        scaling=read.number("routed_scaling_factor", 1.0),
    )


def _rope(config: Mapping[str, Any], read: Reader, *, interleaved: bool) -> RopeConfig:
    """Rope parameters under their newer name (`rope_parameters`, which holds theta too) or the older ones."""
    scaling = config.get("rope_parameters") or config.get("rope_scaling") or {}
    if not isinstance(scaling, Mapping):
        raise MalformedWeights("config.json: rope parameters are not an object")
    theta = Reader({"rope_theta": scaling.get("rope_theta", config.get("rope_theta", 10000.0))}, "config.json").number("rope_theta")
    parameters = Reader(scaling, "config.json: rope parameters")
    if parameters.number("partial_rotary_factor", 1.0) != 1.0:
        raise UnsupportedModel("partial rotary embedding is not offered")
    kind = scaling.get("rope_type", scaling.get("type", "default"))
    if kind == "default":
        return RopeConfig(theta=theta, interleaved=interleaved)
    if kind == "linear":
        return RopeConfig(theta=theta, linear_factor=parameters.number("factor"), interleaved=interleaved)
    if kind == "llama3":
        return RopeConfig(
            theta=theta,
            llama3=Llama3Scaling(
                factor=parameters.number("factor"),
                low_freq_factor=parameters.number("low_freq_factor"),
                high_freq_factor=parameters.number("high_freq_factor"),
                original_context=parameters.size("original_max_position_embeddings"),
            ),
            interleaved=interleaved,
        )
    if kind == "yarn":
        return RopeConfig(theta=theta, yarn=_yarn(parameters, read.size("max_position_embeddings")), interleaved=interleaved)
    raise UnsupportedModel(f"rope type {kind!r} is not offered")


def _yarn(parameters: Reader, context: int) -> YarnScaling:
    original = parameters.size("original_max_position_embeddings", context)
    return YarnScaling(
        factor=parameters.number("factor", context / original),
        original_context=original,
        beta_fast=parameters.number("beta_fast", 32.0),
        beta_slow=parameters.number("beta_slow", 1.0),
        mscale=parameters.optional_number("mscale"),
        mscale_all_dim=parameters.optional_number("mscale_all_dim"),
        stated_attention_factor=parameters.optional_number("attention_factor"),
        truncate=parameters.flag("truncate", True),
    )
