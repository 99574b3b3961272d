"""A decoder: Llama, Mistral, Qwen, DeepSeek. Whole or a pipeline stage of it; it does not know of tensor parallelism.

Tensor parallelism (`tensor_parallel.py`) narrows the slices of its linear layers and puts a collective behind some of them; what is
written here stays true of the heads and columns that are left.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from lionrock.inference.model.attention import KVCache, StepLayout, attend, write
from lionrock.inference.model.config import ModelConfig
from lionrock.inference.model.layers import Embedding, Linear, Mlp, Norm, Projection, RotaryEmbedding, Rotation, Slice, Weight
from lionrock.inference.model.mla import LatentAttention
from lionrock.inference.model.moe import MixtureOfExperts
from lionrock.inference.model.native.library import Library
from lionrock.inference.model.quantisation import LayerSchemes
from lionrock.inference.model.weights import WeightSource

LayerCache = tuple[Tensor, ...]
"""One layer's tensors in the KV cache."""


class Attention:
    """Self-attention of one layer over the heads of this rank."""

    def __init__(self, config: ModelConfig, name: str) -> None:
        hidden, head_dim = config.hidden_size, config.head_dim
        query_rows, kv_rows = config.query_heads * head_dim, config.kv_heads * head_dim
        self.query_heads, self.kv_heads, self.head_dim = config.query_heads, config.kv_heads, head_dim
        self.qkv = Linear(
            Slice.matrix(f"{name}.q_proj", query_rows, hidden),
            Slice.matrix(f"{name}.k_proj", kv_rows, hidden),
            Slice.matrix(f"{name}.v_proj", kv_rows, hidden),
            bias=config.qkv_bias,
        )
        self.query_norm: Norm | None = None
        self.key_norm: Norm | None = None
        if config.head_norm:
            self.query_norm = Norm(f"{name}.q_norm", head_dim, config.norm_epsilon)
            self.key_norm = Norm(f"{name}.k_norm", head_dim, config.norm_epsilon)
        self.output: Projection = Linear(Slice.matrix(f"{name}.o_proj", hidden, query_rows), bias=config.attention_output_bias)

    def __call__(self, x: Tensor, rotation: Rotation, cache: LayerCache, layout: StepLayout) -> Tensor:
        """Attend. x: [T, hidden]; cache: this layer's keys and values, to which those of x are written first."""
        keys, values = cache
        heads = self.qkv(x).view(x.shape[0], -1, self.head_dim)
        turning = heads[:, : self.query_heads + self.kv_heads]
        if self.query_norm is not None and self.key_norm is not None:
            queries, new_keys = turning[:, : self.query_heads], turning[:, self.query_heads :]
            turning = torch.cat((self.query_norm(queries), self.key_norm(new_keys)), dim=1)
        rotated = rotation(turning)
        write(keys, rotated[:, self.query_heads :], layout)
        write(values, heads[:, self.query_heads + self.kv_heads :], layout)
        return self.output(attend(rotated[:, : self.query_heads], keys, values, layout))

    def weights(self) -> Iterator[Weight]:
        """List what to load."""
        yield from self.qkv.weights()
        if self.query_norm is not None and self.key_norm is not None:
            yield from self.query_norm.weights()
            yield from self.key_norm.weights()
        yield from self.output.weights()


class Layer:
    """Attention and MLP or mixture of experts, each behind a norm and added to the residual stream."""

    def __init__(self, config: ModelConfig, index: int) -> None:
        name = f"model.layers.{index}"
        self.attention_norm = Norm(f"{name}.input_layernorm", config.hidden_size, config.norm_epsilon)
        self.attention = (Attention if config.mla is None else LatentAttention)(config, f"{name}.self_attn")
        self.mlp_norm = Norm(f"{name}.post_attention_layernorm", config.hidden_size, config.norm_epsilon)
        self.mlp: Projection
        if config.is_mixture(index):
            self.mlp = MixtureOfExperts(config, f"{name}.mlp")
        else:
            self.mlp = Mlp(f"{name}.mlp", config.hidden_size, config.mlp_columns, bias=config.mlp_bias)

    def __call__(self, x: Tensor, rotation: Rotation, cache: LayerCache, layout: StepLayout) -> Tensor:
        """Transform the residual stream. x: [T, hidden]."""
        x = x + self.attention(self.attention_norm(x), rotation, cache, layout)
        return x + self.mlp(self.mlp_norm(x))

    def weights(self) -> Iterator[Weight]:
        """List what to load."""
        for part in (self.attention_norm, self.attention, self.mlp_norm, self.mlp):
            yield from part.weights()


class Transformer:
    """Layers `first_layer` … `first_layer + layers − 1` of a decoder; with the embedding if first, with norm and head if last."""

    def __init__(self, config: ModelConfig, *, first_layer: int = 0, layers: int | None = None) -> None:
        layers = config.layers if layers is None else layers
        assert first_layer + layers <= config.layers, "the stage reaches past the last layer"
        self.config = config
        self.layers = [Layer(config, first_layer + index) for index in range(layers)]
        self.embedding: Projection | None = None
        self.norm: Norm | None = None
        self.head: Linear | None = None
        if first_layer == 0:
            self.embedding = Embedding(Slice.matrix("model.embed_tokens", config.vocab_size, config.hidden_size))
        if first_layer + layers == config.layers:
            self.norm = Norm("model.norm", config.hidden_size, config.norm_epsilon)
            table = "model.embed_tokens" if config.tied_embeddings else "lm_head"
            self.head = Linear(Slice.matrix(table, config.vocab_size, config.hidden_size), bias=False)

    def forward(self, x: Tensor, rope: RotaryEmbedding, cache: KVCache, layout: StepLayout) -> Tensor:
        """Run this stage's layers. x: token ids [T] in the first stage, else the hidden state [T, hidden] of the stage before.

        Returns the hidden state [T, hidden].
        """
        if self.embedding is not None:
            x = self.embedding(x)
        rotation = rope.at(layout.positions)
        for layer, layer_cache in zip(self.layers, cache.layers, strict=True):
            x = layer(x, rotation, layer_cache, layout)
        return x

    def logits(self, hidden: Tensor) -> Tensor:
        """Score the vocabulary rows of this rank (last stage only). hidden: [R, hidden]; returns [R, rows] float32."""
        assert self.norm is not None
        assert self.head is not None
        return self.head(self.norm(hidden)).float()

    def quantise(self, schemes: LayerSchemes) -> None:
        """Have the linear layers quantised when they are loaded."""
        for weight in self.weights():
            if weight.multiplied:
                weight.scheme = schemes.layers
        if self.head is not None:
            self.head.weight.scheme = schemes.head

    def weights(self) -> Iterator[Weight]:
        """List what to load, each weight once."""
        if self.embedding is not None:
            yield from self.embedding.weights()
        for layer in self.layers:
            yield from layer.weights()
        if self.norm is not None and self.head is not None:
            yield from self.norm.weights()
            yield from self.head.weights()


def load_weights(
    model: Transformer,
    source: WeightSource,
    dtype: torch.dtype,
    device: torch.device,
    progress: Callable[[int, int], None],
    native: Library | None = None,
) -> int:
    """Read what the model holds, one tensor at a time. progress: (elements read, elements in all). Returns bytes of weights.

    native: the kernels whose layout the matrices get, where they can.
    Raises MissingTensor, MalformedWeights, UnsupportedModel.
    """
    weights = list(model.weights())
    total, done = sum(weight.numel for weight in weights), 0
    tied: Weight | None = None
    weight_bytes = 0
    if model.embedding is not None and model.head is not None and model.config.tied_embeddings:
        (table,) = model.embedding.weights()
        (tied,) = model.head.weights()
    for weight in weights:
        if weight is tied and weight.scheme is None:
            assert table.slices == tied.slices, "embedding and head were cut differently"
            weight.data = table.data
        else:
            weight.load(source, dtype, device)
        plain = weight.data
        weight.finish(native)
        if weight is not tied or weight.packed is not plain:  # tied: packed for the product, beside the table for the look-up
            weight_bytes += weight.packed.nbytes
        done += weight.numel
        progress(done, total)
    return weight_bytes
