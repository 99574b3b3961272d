"""Small random checkpoints as `save_pretrained` writes them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import (
    DeepseekV2Config,
    DeepseekV2ForCausalLM,
    DeepseekV3Config,
    DeepseekV3ForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

SMALL: dict[str, Any] = {
    "vocab_size": 331,
    "hidden_size": 48,
    "intermediate_size": 112,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 3,
    "max_position_embeddings": 256,
    "tie_word_embeddings": False,
    "eos_token_id": 2,
    "bos_token_id": 1,
    "initializer_range": 0.15,  # wide, so that logits differ clearly
}

LATENT: dict[str, Any] = {
    **SMALL,
    "num_attention_heads": 6,
    "num_key_value_heads": 6,
    "q_lora_rank": 20,
    "kv_lora_rank": 24,
    "qk_nope_head_dim": 10,
    "qk_rope_head_dim": 8,
    "v_head_dim": 14,
    "first_k_dense_replace": 1,
    "n_routed_experts": 12,
    "num_experts_per_tok": 4,
    "n_shared_experts": 2,
    "moe_intermediate_size": 18,
    "routed_scaling_factor": 1.7,
    "n_group": 4,
    "topk_group": 2,
}

YARN = {
    "rope_type": "yarn",
    "factor": 4.0,
    "original_max_position_embeddings": 64,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "rope_theta": 10000.0,
}
DEEPSEEK_YARN = {**YARN, "mscale": 0.707, "mscale_all_dim": 1.0}

_KINDS: dict[str, tuple[type[PreTrainedModel], type[Any], dict[str, Any]]] = {
    "llama": (LlamaForCausalLM, LlamaConfig, SMALL),
    "mistral": (MistralForCausalLM, MistralConfig, {**SMALL, "sliding_window": None}),
    "qwen2": (Qwen2ForCausalLM, Qwen2Config, SMALL),
    "qwen3": (Qwen3ForCausalLM, Qwen3Config, {**SMALL, "head_dim": 20}),
    "deepseek_v2": (DeepseekV2ForCausalLM, DeepseekV2Config, {**LATENT, "topk_method": "group_limited_greedy"}),
    "deepseek_v3": (DeepseekV3ForCausalLM, DeepseekV3Config, LATENT),
}


def save_model(architecture: str, directory: Path, seed: int = 0, *, shard_size: str = "5GB", **options: Any) -> PreTrainedModel:
    """Write a random checkpoint of that model_type and return the model, in float32."""
    kind, config, defaults = _KINDS[architecture]
    torch.manual_seed(seed)
    model = kind(config(**{**defaults, **options})).float().eval()
    with torch.no_grad():
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
            if name.endswith("bias") or "norm" in name:  # e_score_correction_bias too
                tensor.add_(torch.randn_like(tensor) * 0.2)
    model.save_pretrained(directory, max_shard_size=shard_size)
    model.set_experts_implementation("eager")  # the grouped product refuses widths as small as these
    return model


def save_llama(directory: Path, seed: int = 0, *, shard_size: str = "5GB", **options: Any) -> PreTrainedModel:
    """Write a random Llama checkpoint and return the model."""
    return save_model("llama", directory, seed, shard_size=shard_size, **options)
