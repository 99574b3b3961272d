"""What a model is: architecture, sizes, attention, mixture of experts, rotary embedding. No files, no weights.

The readers of GGUF metadata and `config.json` (`config_gguf`, `config_json`) make these records; what cannot be stated in them
they refuse. Names follow the papers and Hugging Face's configurations.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from lionrock.inference.model.errors import MalformedWeights, UnsupportedModel

MAX_SIZE = 1 << 24
"""Of any dimension: far beyond real models, small enough that products stay within 64 bits."""

RoutingMethod = Literal["greedy", "group_limited_greedy", "noaux_tc"]

_MAX_LAYERS = 1024
_MAX_EXPERTS = 1 << 14
_MAX_EXPERTS_IN_ALL = 1 << 16  # of all layers; DeepSeek-V3 has 15,000
_MAX_ROTATED = 1 << 27  # numbers of a table of positions: a million positions of 128 numbers, 256 MB in bfloat16


@dataclass(frozen=True, slots=True, kw_only=True)
class Llama3Scaling:
    """Rope scaling of Llama 3.1: low frequencies divided by `factor`, a smooth band in between."""

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_context: int

    def __post_init__(self) -> None:
        if self.low_freq_factor == self.high_freq_factor:
            raise MalformedWeights("rope scaling: the smooth band between the frequency factors is empty")


@dataclass(frozen=True, slots=True, kw_only=True)
class YarnScaling:
    """YaRN (Peng et al. 2023): low frequencies divided by `factor`, high ones kept, a linear ramp in between."""

    factor: float
    original_context: int
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    mscale: float | None = None
    mscale_all_dim: float | None = None
    stated_attention_factor: float | None = None
    truncate: bool = True
    """The ramp begins and ends at whole pairs."""

    def __post_init__(self) -> None:
        if not 1e-6 <= self.factor <= 1e6 or not 1e-6 <= self.beta_slow <= self.beta_fast <= 1e6:
            raise MalformedWeights("rope scaling: YaRN's parameters are out of range")

    @property
    def attention_factor(self) -> float:
        """Multiplies cos and sin, so that scores of rotated parts grow by its square."""
        if self.stated_attention_factor is not None:
            return self.stated_attention_factor
        if self.mscale and self.mscale_all_dim:
            return self._growth(self.mscale) / self._growth(self.mscale_all_dim)
        return self._growth(1.0)

    @property
    def score_factor(self) -> float:
        """Multiplies every score of multi-head latent attention (DeepSeek-V2's addition)."""
        return self._growth(self.mscale_all_dim) ** 2 if self.mscale_all_dim else 1.0

    def _growth(self, mscale: float) -> float:
        return 0.1 * mscale * math.log(self.factor) + 1.0 if self.factor > 1 else 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class RopeConfig:
    """Rotary position embedding (Su et al. 2021) over the whole head, or over the rotary part of a latent-attention head."""

    theta: float
    linear_factor: float = 1.0
    """Divides positions."""
    llama3: Llama3Scaling | None = None
    yarn: YarnScaling | None = None
    divisors: tuple[float, ...] | None = None
    """One divisor a frequency: how GGUF files state Llama 3.1's scaling."""
    interleaved: bool = False
    """Pairs are neighbours (2i, 2i + 1), as DeepSeek's checkpoints have them, and not halves apart (i, i + d / 2)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MlaConfig:
    """Multi-head latent attention (DeepSeek-V2, §2.1): keys and values of all heads come from one latent vector a token."""

    q_lora_rank: int | None
    """None: queries are projected at once (DeepSeek-V2-Lite)."""
    kv_lora_rank: int
    qk_nope_head_dim: int
    qk_rope_head_dim: int
    v_head_dim: int

    def __post_init__(self) -> None:
        sizes = (self.kv_lora_rank, self.qk_nope_head_dim, self.qk_rope_head_dim, self.v_head_dim)
        if min(*sizes, self.q_lora_rank or 1) < 1 or max(*sizes, self.q_lora_rank or 1) > MAX_SIZE:
            raise MalformedWeights("a size of latent attention is zero, negative or absurd")
        if self.qk_rope_head_dim % 2:
            raise MalformedWeights("rotary embedding needs an even head size")

    @property
    def qk_head_dim(self) -> int:
        """Size of a query head: the part without and the part with positions."""
        return self.qk_nope_head_dim + self.qk_rope_head_dim

    @property
    def cached_dim(self) -> int:
        """Numbers that one token leaves in one layer's cache."""
        return self.kv_lora_rank + self.qk_rope_head_dim


@dataclass(frozen=True, slots=True, kw_only=True)
class MoeConfig:
    """A mixture of experts (DeepSeekMoE): in all layers from `first_layer` on, routed experts and shared ones beside them."""

    experts: int
    experts_per_token: int
    expert_columns: int
    """Intermediate size of one routed expert."""
    shared_columns: int
    """Intermediate size of the shared experts together; 0 without them."""
    first_layer: int
    method: RoutingMethod
    """How experts are chosen: softmax scores, those within the groups of the best single scores, or (DeepSeek-V3) sigmoid scores
    with a bias that only the choice sees, within the groups whose two best sum highest."""
    groups: int = 1
    groups_per_token: int = 1
    normalised: bool = False
    """Weights of the chosen experts are divided by their sum."""
    scaling: float = 1.0
    """Multiplies the weights of the chosen experts."""

    def __post_init__(self) -> None:
        if not 1 <= self.experts <= _MAX_EXPERTS or not 1 <= self.experts_per_token <= self.experts:
            raise MalformedWeights(f"{self.experts_per_token} of {self.experts} experts a token")
        if not 1 <= self.expert_columns <= MAX_SIZE or not 0 <= self.shared_columns <= MAX_SIZE or self.first_layer < 0:
            raise MalformedWeights("a size of the mixture of experts is negative or absurd")
        if self.groups < 1 or self.experts % self.groups or not 1 <= self.groups_per_token <= self.groups:
            raise MalformedWeights(f"{self.experts} experts, {self.groups_per_token} of {self.groups} groups a token")
        group = self.experts // self.groups
        if self.method != "greedy" and self.experts_per_token > self.groups_per_token * group:
            raise MalformedWeights(f"{self.experts_per_token} experts a token from {self.groups_per_token} groups of {group}")
        if self.method == "noaux_tc" and group < 2:
            raise MalformedWeights("groups are chosen by their two best experts, and have one each")


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig:
    """Sizes of a decoder with grouped-query or latent attention, and gated MLPs or mixtures of them."""

    architecture: str
    """"llama", "mistral", "qwen2", "qwen3", "deepseek_v2" or "deepseek_v3"."""
    vocab_size: int
    hidden_size: int
    layers: int
    query_heads: int
    kv_heads: int
    """1 with latent attention: what is cached belongs to all heads."""
    head_dim: int
    """Of a query."""
    mlp_columns: int
    """Of a dense layer."""
    context_window: int
    norm_epsilon: float
    rope: RopeConfig
    tied_embeddings: bool
    qkv_bias: bool = False
    attention_output_bias: bool = False
    mlp_bias: bool = False
    head_norm: bool = False
    """Queries and keys are normalised head by head (Qwen3)."""
    mla: MlaConfig | None = None
    moe: MoeConfig | None = None
    eos_token_ids: frozenset[int] = frozenset()

    def __post_init__(self) -> None:
        sizes = (self.vocab_size, self.hidden_size, self.query_heads, self.kv_heads, self.head_dim, self.mlp_columns)
        if min(*sizes, self.context_window, self.layers) < 1 or max(*sizes, self.context_window) > MAX_SIZE:
            raise MalformedWeights("a size in the model's configuration is zero, negative or absurd")
        if self.layers > _MAX_LAYERS:
            raise MalformedWeights(f"{self.layers} layers; {_MAX_LAYERS} are allowed")
        if self.query_heads % self.kv_heads:
            raise MalformedWeights(f"{self.query_heads} query heads do not divide into {self.kv_heads} groups")
        if self.rotary_dim % 2:
            raise MalformedWeights("rotary embedding needs an even head size")
        if not 0 < self.norm_epsilon < 1 or not self.rope.theta > 1 or not self.rope.linear_factor > 0:
            raise MalformedWeights("norm epsilon or rope parameters are out of range")
        if self.context_window * self.rotary_dim > _MAX_ROTATED:
            raise UnsupportedModel(f"a context of {self.context_window} tokens with {self.rotary_dim} rotated numbers a head")
        if self.moe is not None and self.layers * self.moe.experts > _MAX_EXPERTS_IN_ALL:
            raise UnsupportedModel(f"{self.layers} layers of {self.moe.experts} experts")
        assert self.mla is None or (self.kv_heads, self.head_dim) == (1, self.mla.qk_head_dim), "latent attention caches one head"

    @property
    def group(self) -> int:
        """Query heads that share one KV head."""
        return self.query_heads // self.kv_heads

    def is_mixture(self, layer: int) -> bool:
        """Whether that layer has experts in place of an MLP."""
        return self.moe is not None and layer >= self.moe.first_layer

    @property
    def rotary_dim(self) -> int:
        """Numbers of a head that are rotated by position."""
        return self.head_dim if self.mla is None else self.mla.qk_rope_head_dim

    def cache_shapes(self, kv_heads: int) -> tuple[tuple[int, int], ...]:
        """(heads, numbers a head) of each tensor that a layer caches, for a rank with that many KV heads."""
        if self.mla is not None:
            return ((1, self.mla.cached_dim),)
        return ((kv_heads, self.head_dim), (kv_heads, self.head_dim))

    def kv_bytes_per_token(self, kv_heads: int, layers: int, item_bytes: int) -> int:
        """Bytes that one token takes in the cache of that many heads and layers."""
        return sum(heads * width for heads, width in self.cache_shapes(kv_heads)) * layers * item_bytes
