"""The planner's view of a model: the sizes that decide its memory and its cuts, out of the engine's fuller configuration."""

from __future__ import annotations

from lionrock.inference.model.config import MlaConfig, ModelConfig, MoeConfig
from lionrock.planner.memory import Experts, LatentAttention, ModelShape


def shape_of(config: ModelConfig) -> ModelShape:
    """Return the sizes that the planner counts with."""
    return ModelShape(
        layers=config.layers,
        hidden=config.hidden_size,
        query_heads=config.query_heads,
        kv_heads=config.kv_heads,
        head_dim=config.head_dim,
        mlp_columns=config.mlp_columns,
        vocabulary=config.vocab_size,
        context_window=config.context_window,
        tied_embeddings=config.tied_embeddings,
        attention_bias=config.qkv_bias,
        attention_output_bias=config.attention_output_bias,
        mlp_bias=config.mlp_bias,
        head_norm=config.head_norm,
        latent=None if config.mla is None else _latent(config.mla),
        experts=None if config.moe is None else _experts(config.moe, config.layers),
    )


def _latent(mla: MlaConfig) -> LatentAttention:
    return LatentAttention(
        query_rank=mla.q_lora_rank,
        kv_rank=mla.kv_lora_rank,
        plain_dim=mla.qk_nope_head_dim,
        rotary_dim=mla.qk_rope_head_dim,
        value_dim=mla.v_head_dim,
    )


def _experts(moe: MoeConfig, layers: int) -> Experts:
    return Experts(
        routed=moe.experts,
        per_token=moe.experts_per_token,
        columns=moe.expert_columns,
        shared_columns=moe.shared_columns,
        dense_layers=min(moe.first_layer, layers),
        correction_bias=moe.method == "noaux_tc",
    )
