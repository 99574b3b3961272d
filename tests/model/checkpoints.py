"""Small random checkpoints as `save_pretrained` writes them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel, Qwen2Config, Qwen2ForCausalLM

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


def save_llama(directory: Path, seed: int = 0, *, shard_size: str = "5GB", **options: Any) -> PreTrainedModel:
    """Write a random Llama checkpoint and return the model."""
    return _save(directory, LlamaForCausalLM, LlamaConfig(**{**SMALL, **options}), seed, shard_size)


def save_qwen2(directory: Path, seed: int = 0, **options: Any) -> PreTrainedModel:
    """Write a random Qwen2 checkpoint and return the model."""
    return _save(directory, Qwen2ForCausalLM, Qwen2Config(**{**SMALL, **options}), seed, "5GB")


def _save(directory: Path, kind: type[PreTrainedModel], config: Any, seed: int, shard_size: str) -> PreTrainedModel:
    torch.manual_seed(seed)
    model = kind(config).float().eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias") or "norm" in name:
                parameter.add_(torch.randn_like(parameter) * 0.2)
    model.save_pretrained(directory, max_shard_size=shard_size)
    return model
