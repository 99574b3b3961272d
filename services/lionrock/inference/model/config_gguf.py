"""A model's configuration from GGUF metadata. Source: GGUF specification, keys `llama.*`, `qwen2.*` and `qwen3.*`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lionrock.inference.model.config import ModelConfig, RopeConfig
from lionrock.inference.model.config_reading import Reader, token_ids
from lionrock.inference.model.errors import UnsupportedModel

_ARCHITECTURES = ("llama", "qwen2", "qwen3")


def from_gguf(metadata: Mapping[str, Any], tensor_names: frozenset[str], vocab_rows: int) -> ModelConfig:
    """Read GGUF metadata. tensor_names tell of tied embeddings and biases; vocab_rows is the embedding table's height.

    Raises UnsupportedModel, MalformedWeights.
    """
    architecture = metadata.get("general.architecture")
    if architecture not in _ARCHITECTURES:
        raise UnsupportedModel(f"GGUF architecture {architecture!r} is not one of {', '.join(_ARCHITECTURES)}")
    read = Reader(metadata, "GGUF metadata", prefix=f"{architecture}.")
    if read.size("expert_count", 0, least=0):
        raise UnsupportedModel("mixtures of experts in GGUF are not offered")
    query_heads, hidden_size = read.size("attention.head_count"), read.size("embedding_length")
    head_dim = read.size("attention.key_length", hidden_size // query_heads)
    if read.size("rope.dimension_count", head_dim) != head_dim or read.size("attention.value_length", head_dim) != head_dim:
        raise UnsupportedModel("partial rotary embedding, or values of another size than keys, are not offered")
    scaling = metadata.get(f"{architecture}.rope.scaling.type", "none")
    if scaling not in ("none", "linear"):
        raise UnsupportedModel(f"rope scaling {scaling!r} in GGUF is not offered")
    eos = [metadata.get(f"tokenizer.ggml.{key}") for key in ("eos_token_id", "eot_token_id")]
    return ModelConfig(
        architecture=architecture,
        vocab_size=vocab_rows,
        hidden_size=hidden_size,
        layers=read.size("block_count"),
        query_heads=query_heads,
        kv_heads=read.size("attention.head_count_kv", query_heads),
        head_dim=head_dim,
        mlp_columns=read.size("feed_forward_length"),
        context_window=read.size("context_length"),
        norm_epsilon=read.number("attention.layer_norm_rms_epsilon"),
        rope=RopeConfig(
            theta=read.number("rope.freq_base", 10000.0),
            linear_factor=read.number("rope.scaling.factor", 1.0) if scaling == "linear" else 1.0,
        ),
        tied_embeddings="output.weight" not in tensor_names,
        qkv_bias="blk.0.attn_q.bias" in tensor_names,
        attention_output_bias="blk.0.attn_output.bias" in tensor_names,
        mlp_bias="blk.0.ffn_up.bias" in tensor_names,
        head_norm=architecture == "qwen3",
        eos_token_ids=token_ids([token_id for token_id in eos if token_id is not None]),
    )
