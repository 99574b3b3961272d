"""Memory arithmetic of a model: bytes of weights, KV cache and working space, for any cut of it.

Knows the shapes of decoders with grouped-query attention (Llama, Mistral, Qwen) or latent attention (DeepSeek-V2, -V3), with a
gated MLP or a mixture of experts. Does not know chips, files or how cuts are chosen: `plan` asks it for the bytes of a part. All
sizes are bytes; nothing is rounded up to pages.
Sources: Hugging Face `LlamaConfig`, `Qwen3Config`, `DeepseekV3Config`; DeepSeek-V2 (arXiv 2405.04434) §2; DeepSeek-V3 (2412.19437).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from lionrock.planner.weight_types import DTYPE_BYTES, WEIGHT_TYPES, matrix_bytes, panel_bytes

# Share of a chip's memory that a plan may fill: allocators fragment and drivers keep a part.
USABLE_SHARE: Final = 0.92
# Context of runtime and collectives on an accelerator, once a chip.
RUNTIME_BYTES: Final = 1536 << 20


class UnsupportedArchitecture(Exception):
    """The model's config names an architecture whose memory this planner cannot count, or lacks a figure."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LatentAttention:
    """Sizes of DeepSeek's multi-head latent attention. All heads share one compressed key and value a token."""

    query_rank: int | None
    """`q_lora_rank`; None: queries are projected directly."""
    kv_rank: int
    """`kv_lora_rank`."""
    plain_dim: int
    """`qk_nope_head_dim`: of a head's query and key, the part without rotary embedding."""
    rotary_dim: int
    """`qk_rope_head_dim`; of the keys it is one for all heads."""
    value_dim: int
    """`v_head_dim`."""

    @property
    def cached(self) -> int:
        """Numbers that one token leaves in one layer's cache."""
        return self.kv_rank + self.rotary_dim


@dataclass(frozen=True, slots=True, kw_only=True)
class Experts:
    """Sizes of a mixture of experts."""

    routed: int
    per_token: int
    """Routed experts that one token uses."""
    columns: int
    """Intermediate size of one routed expert."""
    shared_columns: int
    """Of the experts that every token uses, together; 0: there are none."""
    dense_layers: int
    """Layers before the first mixture, with a plain MLP."""
    correction_bias: bool = False
    """The router adds a bias an expert to its scores (DeepSeek-V3)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cut:
    """What one tensor rank holds of each layer. Counts."""

    query_heads: int
    kv_heads: int
    mlp_columns: int
    experts: int = 0
    shared_columns: int = 0
    adds_biases: bool = True
    """Whether this rank adds the biases of the layers whose outputs are summed over the ranks; one does."""


@dataclass(frozen=True, slots=True)
class Held:
    """Weights of a part of a model: matrices that are only multiplied with, and so may be packed, and the rest."""

    matrices: tuple[tuple[int, int, int], ...] = ()
    """(how many, rows, columns)."""
    plain: int = 0
    float32: int = 0
    """Numbers held in float32 whatever the type of activations."""

    def __add__(self, other: Held) -> Held:
        return Held(self.matrices + other.matrices, self.plain + other.plain, self.float32 + other.float32)

    @property
    def parameters(self) -> int:
        """Numbers, scales not counted."""
        return self.plain + self.float32 + sum(count * rows * columns for count, rows, columns in self.matrices)

    def size(self, dtype: str, weight_dtype: str | None) -> int:
        """Bytes. weight_dtype: a key of WEIGHT_TYPES; None: matrices are held as dtype."""
        matrices = sum(count * matrix_bytes(rows, columns, dtype, weight_dtype) for count, rows, columns in self.matrices)
        return self.plain * DTYPE_BYTES[dtype] + self.float32 * 4 + matrices

    def panel_bytes(self, dtype: str, weight_dtype: str | None) -> int:
        """Bytes that a CPU holds beyond these."""
        return sum(count * panel_bytes(rows, columns, dtype, weight_dtype) for count, rows, columns in self.matrices)


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelShape:
    """Sizes that decide a model's memory and its possible cuts. Counts, not bytes."""

    layers: int
    hidden: int
    query_heads: int
    kv_heads: int
    """With latent attention 1: every rank holds the compressed cache."""
    head_dim: int
    mlp_columns: int
    """Intermediate size; of a mixture that of its dense layers."""
    vocabulary: int
    context_window: int
    tied_embeddings: bool
    attention_bias: bool = False
    """q, k and v carry a bias (Qwen2); with latent attention the two compressions."""
    attention_output_bias: bool = False
    mlp_bias: bool = False
    head_norm: bool = False
    """q and k are normalised a head (Qwen3)."""
    latent: LatentAttention | None = None
    experts: Experts | None = None

    def __post_init__(self) -> None:
        counts = (self.layers, self.hidden, self.query_heads, self.kv_heads, self.head_dim, self.mlp_columns, self.vocabulary)
        if min(*counts, self.context_window) < 1:
            raise UnsupportedArchitecture("every count of a model's shape is at least 1")
        if self.query_heads % self.kv_heads:
            raise UnsupportedArchitecture(f"{self.query_heads} query heads do not divide into {self.kv_heads} groups")
        if self.latent is not None and self.kv_heads != 1:
            raise UnsupportedArchitecture("latent attention has one compressed key and value a token")
        if self.experts is not None and not 0 <= self.experts.dense_layers <= self.layers:
            raise UnsupportedArchitecture(f"{self.experts.dense_layers} dense layers of {self.layers}")

    @property
    def group(self) -> int:
        """Query heads that share one KV head."""
        return self.query_heads // self.kv_heads

    @property
    def whole(self) -> Cut:
        """All of it."""
        mixture = self.experts
        return Cut(
            query_heads=self.query_heads,
            kv_heads=self.kv_heads,
            mlp_columns=self.mlp_columns,
            experts=mixture.routed if mixture else 0,
            shared_columns=mixture.shared_columns if mixture else 0,
        )

    def is_mixture(self, layer: int) -> bool:
        """Whether that layer has experts in place of an MLP."""
        return self.experts is not None and layer >= self.experts.dense_layers

    # ---- weights ---------------------------------------------------------------------------------------------------------

    def attention(self, cut: Cut) -> Held:
        """Weights of one layer's attention."""
        if self.latent is not None:
            return self._latent_attention(self.latent, cut)
        queries, keys = cut.query_heads * self.head_dim, cut.kv_heads * self.head_dim
        biases = queries + 2 * keys if self.attention_bias else 0
        norms = 2 * self.head_dim if self.head_norm else 0
        matrices = ((1, queries, self.hidden), (2, keys, self.hidden), (1, self.hidden, queries))
        return Held(matrices, biases + norms + self._output_bias(self.attention_output_bias, cut))

    def _latent_attention(self, latent: LatentAttention, cut: Cut) -> Held:
        """Compressions, whole on every rank, and the heads' own projections out of them."""
        heads, query_rows = cut.query_heads, cut.query_heads * (latent.plain_dim + latent.rotary_dim)
        compressed, rank = latent.cached, latent.query_rank
        matrices = [
            (1, compressed, self.hidden),
            (1, self.hidden, heads * latent.value_dim),
            (1, query_rows, self.hidden if rank is None else rank),
        ]
        unpacking = heads * (latent.plain_dim + latent.value_dim) * latent.kv_rank  # used from both sides: never packed
        norms = latent.kv_rank
        biases = compressed if self.attention_bias else 0
        if rank is not None:
            matrices.append((1, rank, self.hidden))
            norms += rank
            biases += rank if self.attention_bias else 0
        return Held(tuple(matrices), unpacking + norms + biases + self._output_bias(self.attention_output_bias, cut))

    def mlp(self, columns: int, cut: Cut) -> Held:
        """Weights of a gated MLP of that many columns."""
        bias = (2 * columns if self.mlp_bias else 0) + self._output_bias(self.mlp_bias, cut)
        return Held(((2, columns, self.hidden), (1, self.hidden, columns)), bias)

    def mixture(self, cut: Cut) -> Held:
        """Weights of one layer's router, whole on every rank, and of the rank's experts."""
        assert self.experts is not None, "a dense model has no mixture"
        mixture = self.experts
        routed = ((2 * cut.experts, mixture.columns, self.hidden), (cut.experts, self.hidden, mixture.columns))
        # float32 whatever the model's type: what decides between experts is not rounded.
        held = Held(routed, float32=mixture.routed * (self.hidden + (1 if mixture.correction_bias else 0)))
        return held + self.mlp(cut.shared_columns, cut) if mixture.shared_columns else held

    def layer(self, index: int, cut: Cut) -> Held:
        """Weights of one layer."""
        rest = self.mixture(cut) if self.is_mixture(index) else self.mlp(cut.mlp_columns, cut)
        return self.attention(cut) + rest + Held(plain=2 * self.hidden)

    def layers_bytes(self, layers: range, cut: Cut, dtype: str, weight_dtype: str | None) -> int:
        """Bytes of the weights of those layers."""
        return sum(count * held.size(dtype, weight_dtype) for count, held in self._kinds(layers, cut))

    def layers_panel_bytes(self, layers: range, cut: Cut, dtype: str, weight_dtype: str | None) -> int:
        """Bytes that a CPU holds beyond those layers' weights."""
        return sum(count * held.panel_bytes(dtype, weight_dtype) for count, held in self._kinds(layers, cut))

    def head_bytes(self, rows: int, dtype: str, weight_dtype: str | None, *, beside_table: bool) -> int:
        """Bytes of so many rows of the output head, which may be the embedding table beside it."""
        head_type = self.head_type(weight_dtype)
        if beside_table and self.tied_embeddings and head_type is None:
            return 0
        return matrix_bytes(rows, self.hidden, dtype, head_type)

    @staticmethod
    def head_type(weight_dtype: str | None) -> str | None:
        """Weight type of the output head."""
        return None if weight_dtype is None else WEIGHT_TYPES[weight_dtype].head

    def _kinds(self, layers: range, cut: Cut) -> list[tuple[int, Held]]:
        """How many of those layers hold what: all that are mixtures are alike, and all that are not."""
        mixtures = 0 if self.experts is None else max(0, layers.stop - max(layers.start, self.experts.dense_layers))
        counts = ((0, len(layers) - mixtures), (self.layers - 1, mixtures))
        return [(count, self.layer(index, cut)) for index, count in counts if count]

    def parameters(self) -> int:
        """Parameters of the whole model; tied embeddings count once, multi-token prediction not at all."""
        tables = 1 if self.tied_embeddings else 2
        layers = sum(self.layer(index, self.whole).parameters for index in range(self.layers))
        return layers + self.hidden + tables * self.vocabulary * self.hidden

    def weight_bytes(self, dtype: str, weight_dtype: str | None = None) -> int:
        """Bytes of the whole model's weights."""
        layers = self.layers_bytes(range(self.layers), self.whole, dtype, weight_dtype)
        head = self.head_bytes(self.vocabulary, dtype, weight_dtype, beside_table=True)
        return layers + head + (self.vocabulary + 1) * self.hidden * DTYPE_BYTES[dtype]

    def _output_bias(self, present: bool, cut: Cut) -> int:
        return self.hidden if present and cut.adds_biases else 0

    # ---- what a step needs besides ---------------------------------------------------------------------------------------

    def kv_bytes_per_token(self, kv_heads: int, layers: int, dtype: str) -> int:
        """Bytes of keys and values that one token leaves in that many heads and layers."""
        numbers = self.latent.cached if self.latent is not None else 2 * kv_heads * self.head_dim
        return numbers * layers * DTYPE_BYTES[dtype]

    def rotary_bytes(self, dtype: str) -> int:
        """Bytes of the tables of sines and cosines, which each rank holds for the whole context window."""
        rotated = self.latent.rotary_dim if self.latent is not None else self.head_dim
        return 2 * self.context_window * rotated * DTYPE_BYTES[dtype]

    def largest_product(self, layers: range, cut: Cut, vocabulary: int) -> int:
        """Numbers of the largest matrix that one product reads: q, k and v are one, and a gate with its half."""
        queries, keys = cut.query_heads * self.head_dim, cut.kv_heads * self.head_dim
        sizes = [(queries + 2 * keys) * self.hidden, vocabulary * self.hidden]
        if self.latent is not None:
            inputs = self.latent.query_rank or self.hidden
            sizes = [queries * inputs, cut.query_heads * self.latent.value_dim * self.hidden, vocabulary * self.hidden]
        if not self.is_mixture(layers.start):
            sizes.append(2 * cut.mlp_columns * self.hidden)
        if self.experts is not None and self.is_mixture(layers.stop - 1):
            sizes.append(2 * max(self.experts.columns, cut.shared_columns) * self.hidden)
        return max(sizes)

    def activation_bytes(self, batch_tokens: int, cut: Cut, vocabulary: int, dtype: str) -> int:
        """Working space of one step: residual stream, queries, the widest MLP, and logits in float32 of one row in eight."""
        item = DTYPE_BYTES[dtype]
        widest = 2 * cut.mlp_columns
        if (mixture := self.experts) is not None:
            # Tokens spread over the experts of all ranks; each visit has its input, two halves and output.
            visits = mixture.per_token * cut.experts / mixture.routed
            widest = max(widest, int(visits * 2 * (mixture.columns + self.hidden)) + 2 * cut.shared_columns)
        attended = 0
        if self.latent is not None:  # keys and values of a prompt are unpacked from the cache
            attended = cut.query_heads * (self.latent.plain_dim + self.latent.rotary_dim + self.latent.value_dim)
        return batch_tokens * (4 * self.hidden + max(widest, attended)) * item + max(1, batch_tokens // 8) * vocabulary * 4
