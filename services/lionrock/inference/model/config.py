"""What a model is: architecture, sizes, rotary embedding, biases, end-of-sequence ids; read from GGUF metadata or `config.json`.

Knows the names that both formats give to these things, and refuses what it does not know instead of guessing. No weights.
Sources: Hugging Face `LlamaConfig`, `Qwen2Config`; GGUF specification, keys `llama.*` and `qwen2.*`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lionrock.inference.model.errors import MalformedWeights, UnsupportedModel

_MAX_SIZE = 1 << 24  # of any dimension: far beyond real models, small enough that products stay within 64 bits
_MAX_LAYERS = 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Llama3Scaling:
    """Rope scaling of Llama 3.1: low frequencies divided by `factor`, a smooth band in between."""

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_context: int


@dataclass(frozen=True, slots=True, kw_only=True)
class RopeConfig:
    """Rotary position embedding (Su et al. 2021) in the half-split layout, over the whole head."""

    theta: float
    linear_factor: float = 1.0
    """Divides positions."""
    llama3: Llama3Scaling | None = None
    divisors: tuple[float, ...] | None = None
    """One divisor a frequency: how GGUF files state Llama 3.1's scaling."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig:
    """Sizes of a dense decoder with grouped-query attention and a gated MLP."""

    architecture: str
    """"llama" or "qwen2"."""
    vocab_size: int
    hidden_size: int
    layers: int
    query_heads: int
    kv_heads: int
    head_dim: int
    mlp_columns: int
    context_window: int
    norm_epsilon: float
    rope: RopeConfig
    tied_embeddings: bool
    qkv_bias: bool = False
    attention_output_bias: bool = False
    mlp_bias: bool = False
    eos_token_ids: frozenset[int] = frozenset()

    def __post_init__(self) -> None:
        sizes = (self.vocab_size, self.hidden_size, self.query_heads, self.kv_heads, self.head_dim, self.mlp_columns)
        if min(*sizes, self.context_window, self.layers) < 1 or max(*sizes, self.context_window) > _MAX_SIZE:
            raise MalformedWeights("a size in the model's configuration is zero, negative or absurd")
        if self.layers > _MAX_LAYERS:
            raise MalformedWeights(f"{self.layers} layers; {_MAX_LAYERS} are allowed")
        if self.query_heads % self.kv_heads:
            raise MalformedWeights(f"{self.query_heads} query heads do not divide into {self.kv_heads} groups")
        if self.head_dim % 2:
            raise MalformedWeights("rotary embedding needs an even head size")
        if not 0 < self.norm_epsilon < 1 or not self.rope.theta > 1 or not self.rope.linear_factor > 0:
            raise MalformedWeights("norm epsilon or rope parameters are out of range")

    @property
    def group(self) -> int:
        """Query heads that share one KV head."""
        return self.query_heads // self.kv_heads

    def kv_bytes_per_token(self, kv_heads: int, layers: int, item_bytes: int) -> int:
        """Bytes that the keys and values of one token take in that many heads and layers."""
        return 2 * kv_heads * self.head_dim * layers * item_bytes


def from_config_json(config: Mapping[str, Any], generation: Mapping[str, Any] | None = None) -> ModelConfig:
    """Read Hugging Face's `config.json`, and `generation_config.json` for the end-of-sequence ids.

    Raises UnsupportedModel, MalformedWeights.
    """
    architecture = config.get("model_type")
    if architecture not in ("llama", "qwen2"):
        raise UnsupportedModel(f"model_type {architecture!r} is not llama or qwen2")
    if config.get("hidden_act", "silu") != "silu":
        raise UnsupportedModel("only the SiLU activation is offered")
    layer_types = config.get("layer_types") or []
    if not isinstance(layer_types, list):
        raise MalformedWeights("config.json: layer_types is no list")
    if config.get("use_sliding_window") or any(kind != "full_attention" for kind in layer_types):
        raise UnsupportedModel("sliding-window attention is not offered")
    if config.get("quantization_config") is not None:
        raise UnsupportedModel("quantised safetensors are not offered")
    read = _Reader(config, "config.json")
    query_heads, hidden_size = read.size("num_attention_heads"), read.size("hidden_size")
    qwen2 = architecture == "qwen2"
    attention_bias = bool(config.get("attention_bias", False))
    eos = (generation or {}).get("eos_token_id", config.get("eos_token_id"))
    return ModelConfig(
        architecture=architecture,
        vocab_size=read.size("vocab_size"),
        hidden_size=hidden_size,
        layers=read.size("num_hidden_layers"),
        query_heads=query_heads,
        kv_heads=read.size("num_key_value_heads", query_heads),
        head_dim=read.size("head_dim", hidden_size // query_heads),
        mlp_columns=read.size("intermediate_size"),
        context_window=read.size("max_position_embeddings"),
        norm_epsilon=read.number("rms_norm_eps"),
        rope=_rope_from_json(config),
        tied_embeddings=bool(config.get("tie_word_embeddings", False)),
        qkv_bias=qwen2 or attention_bias,
        attention_output_bias=attention_bias and not qwen2,
        mlp_bias=bool(config.get("mlp_bias", False)),
        eos_token_ids=_token_ids(eos),
    )


def from_gguf(metadata: Mapping[str, Any], tensor_names: frozenset[str], vocab_rows: int) -> ModelConfig:
    """Read GGUF metadata. tensor_names tell of tied embeddings and biases; vocab_rows is the embedding table's height.

    Raises UnsupportedModel, MalformedWeights.
    """
    architecture = metadata.get("general.architecture")
    if architecture not in ("llama", "qwen2"):
        raise UnsupportedModel(f"GGUF architecture {architecture!r} is not llama or qwen2")
    read = _Reader(metadata, "GGUF metadata", prefix=f"{architecture}.")
    if read.size("expert_count", 0, least=0):
        raise UnsupportedModel("mixtures of experts are not offered")
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
        eos_token_ids=_token_ids([token_id for token_id in eos if token_id is not None]),
    )


def _rope_from_json(config: Mapping[str, Any]) -> RopeConfig:
    """Rope parameters under their newer name (`rope_parameters`, which holds theta too) or the older ones."""
    scaling = config.get("rope_parameters") or config.get("rope_scaling") or {}
    if not isinstance(scaling, Mapping):
        raise MalformedWeights("config.json: rope parameters are not an object")
    theta = _Reader({"rope_theta": scaling.get("rope_theta", config.get("rope_theta", 10000.0))}, "config.json").number(
        "rope_theta"
    )
    kind = scaling.get("rope_type", scaling.get("type", "default"))
    read = _Reader(scaling, "config.json: rope parameters")
    if kind == "default":
        return RopeConfig(theta=theta)
    if kind == "linear":
        return RopeConfig(theta=theta, linear_factor=read.number("factor"))
    if kind == "llama3":
        return RopeConfig(
            theta=theta,
            llama3=Llama3Scaling(
                factor=read.number("factor"),
                low_freq_factor=read.number("low_freq_factor"),
                high_freq_factor=read.number("high_freq_factor"),
                original_context=read.size("original_max_position_embeddings"),
            ),
        )
    raise UnsupportedModel(f"rope type {kind!r} is not offered")


@dataclass(frozen=True, slots=True)
class _Reader:
    """Typed look-ups that name the missing or mistyped key."""

    values: Mapping[str, Any]
    where: str
    prefix: str = ""

    def size(self, key: str, default: int | None = None, *, least: int = 1) -> int:
        value = self.values.get(self.prefix + key)
        value = default if value is None else value
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            raise MalformedWeights(f"{self.where}: {self.prefix}{key} is missing or no positive integer")
        return value

    def number(self, key: str, default: float | None = None) -> float:
        value = self.values.get(self.prefix + key)
        value = default if value is None else value
        if not isinstance(value, (int, float)) or isinstance(value, bool) or not 0 < value < 1e12:
            raise MalformedWeights(f"{self.where}: {self.prefix}{key} is missing or no positive number")
        return float(value)


def _token_ids(value: object) -> frozenset[int]:
    ids = [] if value is None else value if isinstance(value, list) else [value]
    if not all(isinstance(token_id, int) and 0 <= token_id < _MAX_SIZE for token_id in ids):
        raise MalformedWeights("end-of-sequence token ids are not token ids")
    return frozenset(ids)
