"""The shape of a model from its Hugging Face `config.json`, for planning without the files of weights.

Knows the keys of the architectures that are served, and refuses what it does not know instead of guessing. The engine reads its
own, fuller configuration; `ModelShape` is what both agree on. Sources: Hugging Face `LlamaConfig`, `MistralConfig`, `Qwen2Config`,
`Qwen3Config`, `DeepseekV2Config`, `DeepseekV3Config`, and the `config.json` of the published checkpoints.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from lionrock.planner.memory import Experts, LatentAttention, ModelShape, UnsupportedArchitecture

DENSE_ARCHITECTURES: Final = frozenset({"LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM"})
LATENT_ARCHITECTURES: Final = frozenset({"DeepseekV2ForCausalLM", "DeepseekV3ForCausalLM"})

_MAX_COUNT: Final = 1 << 24  # far beyond real models
_QWEN3_HEAD_DIM: Final = 128  # where config.json does not state it, whatever the hidden size


def shape_of_config(config: Mapping[str, Any]) -> ModelShape:
    """Read the shape. Raises UnsupportedArchitecture, naming what is missing or unknown."""
    architectures = config.get("architectures")
    names = architectures if isinstance(architectures, (list, tuple)) else ()
    known = DENSE_ARCHITECTURES | LATENT_ARCHITECTURES
    architecture = next((name for name in names if isinstance(name, str) and name in known), None)
    if architecture is None:
        raise UnsupportedArchitecture(f"architecture {list(names)!r} is not one of {', '.join(sorted(known))}")
    read = _Counts(config)
    return _dense(architecture, read) if architecture in DENSE_ARCHITECTURES else _latent(architecture, read)


def weight_dtype_of_config(config: Mapping[str, Any]) -> str | None:
    """Weight type in which the checkpoint is written, a key of `memory.WEIGHT_TYPES`; None: not quantised.

    Raises UnsupportedArchitecture for a quantisation that is not known.
    """
    quantisation = config.get("quantization_config")
    if quantisation is None:
        return None
    if isinstance(quantisation, Mapping) and quantisation.get("quant_method") == "fp8":
        if quantisation.get("weight_block_size") == [128, 128]:
            return "fp8"
        raise UnsupportedArchitecture("fp8 weights are known in blocks of 128 × 128")
    raise UnsupportedArchitecture("the quantisation of config.json is not known")


def _dense(architecture: str, read: _Counts) -> ModelShape:
    query_heads, hidden = read.count("num_attention_heads"), read.count("hidden_size")
    qwen2 = architecture == "Qwen2ForCausalLM"
    bias = qwen2 or read.flag("attention_bias")
    return ModelShape(
        layers=read.count("num_hidden_layers"),
        hidden=hidden,
        query_heads=query_heads,
        kv_heads=read.count("num_key_value_heads", query_heads),
        head_dim=read.count("head_dim", _QWEN3_HEAD_DIM if architecture == "Qwen3ForCausalLM" else hidden // query_heads),
        mlp_columns=read.count("intermediate_size"),
        vocabulary=read.count("vocab_size"),
        context_window=_context_window(read),
        tied_embeddings=read.flag("tie_word_embeddings"),
        attention_bias=bias,
        attention_output_bias=bias and not qwen2,
        mlp_bias=architecture == "LlamaForCausalLM" and read.flag("mlp_bias"),
        head_norm=architecture == "Qwen3ForCausalLM",
    )


def _latent(architecture: str, read: _Counts) -> ModelShape:
    latent = LatentAttention(
        query_rank=None if read.values.get("q_lora_rank") is None else read.count("q_lora_rank"),
        kv_rank=read.count("kv_lora_rank"),
        plain_dim=read.count("qk_nope_head_dim"),
        rotary_dim=read.count("qk_rope_head_dim"),
        value_dim=read.count("v_head_dim"),
    )
    bias = read.flag("attention_bias")
    return ModelShape(
        layers=read.count("num_hidden_layers"),
        hidden=read.count("hidden_size"),
        query_heads=read.count("num_attention_heads"),
        kv_heads=1,
        head_dim=latent.plain_dim + latent.rotary_dim,
        mlp_columns=read.count("intermediate_size"),
        vocabulary=read.count("vocab_size"),
        context_window=_context_window(read),
        tied_embeddings=read.flag("tie_word_embeddings"),
        attention_bias=bias,
        attention_output_bias=bias,
        latent=latent,
        experts=None if read.values.get("n_routed_experts") is None else _experts(architecture, read),
    )


def _context_window(read: _Counts) -> int:
    """Tokens. With YaRN Qwen's files state the window before it is extended, DeepSeek's the one after."""
    stated = read.count("max_position_embeddings")
    scaling = read.values.get("rope_parameters") or read.values.get("rope_scaling") or {}
    if not isinstance(scaling, Mapping):
        raise UnsupportedArchitecture("config.json has no usable rope_scaling")
    if scaling.get("rope_type", scaling.get("type")) != "yarn":
        return stated
    original = _Counts(scaling).count("original_max_position_embeddings", stated)
    factor = scaling.get("factor", stated / original)
    if not isinstance(factor, int | float) or isinstance(factor, bool) or not 0 < factor * original <= _MAX_COUNT:
        raise UnsupportedArchitecture("config.json has no usable factor of YaRN")
    return max(stated, int(factor * original))


def _experts(architecture: str, read: _Counts) -> Experts:
    if read.count("moe_layer_freq", 1) != 1:
        raise UnsupportedArchitecture("mixtures in some of the layers only are not known")
    v3, columns = architecture == "DeepseekV3ForCausalLM", read.count("moe_intermediate_size")
    return Experts(
        routed=read.count("n_routed_experts"),
        per_token=read.count("num_experts_per_tok"),
        columns=columns,
        shared_columns=read.count("n_shared_experts", 0, least=0) * columns,
        dense_layers=min(read.count("first_k_dense_replace", 3 if v3 else 0, least=0), read.count("num_hidden_layers")),
        correction_bias=v3,
    )


@dataclass(frozen=True, slots=True)
class _Counts:
    """Typed look-ups that name the missing or mistyped key."""

    values: Mapping[str, Any]

    def count(self, key: str, default: int | None = None, *, least: int = 1) -> int:
        value = self.values.get(key)
        value = default if value is None else value
        if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= _MAX_COUNT:
            raise UnsupportedArchitecture(f"config.json has no usable {key}")
        return value

    def flag(self, key: str) -> bool:
        return bool(self.values.get(key, False))
