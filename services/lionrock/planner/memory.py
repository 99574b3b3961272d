"""Memory arithmetic of a model: bytes of weights, KV cache and working space, for any cut of it.

Knows the shapes of a dense decoder with grouped-query attention and a gated MLP (Llama, Mistral, Qwen). Does not know chips or
cuts: `plan` asks it for the bytes of a part. All sizes are bytes; nothing is rounded up to pages.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

DTYPE_BYTES: Final[Mapping[str, int]] = {"float32": 4, "bfloat16": 2, "float16": 2}

# Share of a chip's memory that a plan may fill: allocators fragment and drivers keep a part.
USABLE_SHARE: Final = 0.92
# Context of runtime and collectives on an accelerator, once a chip.
RUNTIME_BYTES: Final = 1536 << 20
# Architectures whose `config.json` describes exactly what ModelShape counts.
DENSE_ARCHITECTURES: Final = frozenset({"LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM"})


class UnsupportedArchitecture(Exception):
    """The model's config names an architecture whose memory this planner cannot count, or lacks a figure."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelShape:
    """Sizes that decide a model's memory and its possible cuts. Counts, not bytes."""

    layers: int
    hidden: int
    query_heads: int
    kv_heads: int
    head_dim: int
    mlp_columns: int  # intermediate size
    vocabulary: int
    context_window: int
    tied_embeddings: bool
    attention_bias: bool = False  # q, k and v carry a bias (Qwen2)
    head_norm: bool = False  # q and k are normalised a head (Qwen3)

    def __post_init__(self) -> None:
        counts = (self.layers, self.hidden, self.query_heads, self.kv_heads, self.head_dim, self.mlp_columns, self.vocabulary)
        if min(*counts, self.context_window) < 1:
            raise UnsupportedArchitecture("every count of a model's shape is at least 1")
        if self.query_heads % self.kv_heads:
            raise UnsupportedArchitecture(f"{self.query_heads} query heads do not divide into {self.kv_heads} groups")

    @property
    def group(self) -> int:
        """Query heads that share one KV head."""
        return self.query_heads // self.kv_heads

    def attention_parameters(self, query_heads: int, kv_heads: int) -> int:
        """Parameters of one layer's attention restricted to that many heads."""
        rows = (query_heads + 2 * kv_heads) * self.head_dim
        bias = rows if self.attention_bias else 0
        norms = 2 * self.head_dim if self.head_norm else 0
        return rows * self.hidden + query_heads * self.head_dim * self.hidden + bias + norms

    def mlp_parameters(self, columns: int) -> int:
        """Parameters of one layer's gate, up and down projections restricted to that many intermediate columns."""
        return 3 * self.hidden * columns

    def parameters(self) -> int:
        """Parameters of the whole model; tied embeddings count once."""
        layer = self.attention_parameters(self.query_heads, self.kv_heads) + self.mlp_parameters(self.mlp_columns) + 2 * self.hidden
        tables = 1 if self.tied_embeddings else 2
        return self.layers * layer + self.hidden + tables * self.vocabulary * self.hidden

    def kv_bytes_per_token(self, kv_heads: int, layers: int, dtype: str) -> int:
        """Bytes of keys and values that one token leaves in that many heads and layers."""
        return 2 * kv_heads * self.head_dim * layers * DTYPE_BYTES[dtype]

    def activation_bytes(self, batch_tokens: int, mlp_columns: int, vocabulary: int, dtype: str) -> int:
        """Working space of one step: residual stream, the widest MLP pair, and logits in float32 of one row in eight."""
        item = DTYPE_BYTES[dtype]
        return batch_tokens * (4 * self.hidden + 2 * mlp_columns) * item + max(1, batch_tokens // 8) * vocabulary * 4


def shape_of_config(config: Mapping[str, Any]) -> ModelShape:
    """Shape from a Hugging Face `config.json`. Raises UnsupportedArchitecture, naming what is missing or unknown."""
    architectures = config.get("architectures") or ()
    if not isinstance(architectures, (list, tuple)) or not any(name in DENSE_ARCHITECTURES for name in architectures):
        known = ", ".join(sorted(DENSE_ARCHITECTURES))
        raise UnsupportedArchitecture(f"architecture {list(architectures)!r} is not one of {known}")

    def count(key: str, default: int | None = None) -> int:
        value = config.get(key, default)
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise UnsupportedArchitecture(f"config.json has no usable {key}")
        return value

    query_heads, hidden = count("num_attention_heads"), count("hidden_size")
    return ModelShape(
        layers=count("num_hidden_layers"),
        hidden=hidden,
        query_heads=query_heads,
        kv_heads=count("num_key_value_heads", query_heads),
        head_dim=config["head_dim"] if isinstance(config.get("head_dim"), int) else hidden // query_heads,
        mlp_columns=count("intermediate_size"),
        vocabulary=count("vocab_size"),
        context_window=count("max_position_embeddings"),
        tied_embeddings=bool(config.get("tie_word_embeddings", False)),
        attention_bias=bool(config.get("attention_bias", "Qwen2ForCausalLM" in architectures)),
        head_norm="Qwen3ForCausalLM" in architectures,
    )
