"""Tensor parallelism in one place, applied to a model that does not know of it.

Query, key, value, gate and up rows are cut by heads and columns of the plan's shard; output and down columns likewise, with one
all-reduce behind attention and one behind the MLP ("Megatron" cuts, Shoeybi et al. 2019). Cuts may be uneven: whole KV groups a
rank, any MLP columns, any vocabulary rows. Embedding and head are cut by vocabulary rows. A rank whose query heads share a
replicated KV head holds a copy; of latent attention every rank holds the whole compressed cache. Routed experts stay whole, a range
a rank (expert parallelism over the tensor ranks), and shared experts are cut by columns, with one all-reduce for both.
"""

from __future__ import annotations

from collections.abc import Iterator
from collections.abc import Sequence as Seq

import torch
from torch import Tensor

from lionrock.inference.engine.batch import LogitAdjustment, SamplingRow, StepResult
from lionrock.inference.engine.sampler import needs_whole_logits, sample
from lionrock.inference.model.collectives import TensorGroup
from lionrock.inference.model.layers import Embedding, Linear, Mlp, Projection, Weight
from lionrock.inference.model.mla import LatentAttention
from lionrock.inference.model.moe import MixtureOfExperts
from lionrock.inference.model.transformer import Attention, Transformer
from lionrock.planner.plan import Shard


class AllReduced:
    """A linear layer, MLP or mixture of which this rank computes a part of the sum, summed over the ranks."""

    def __init__(self, part: Projection, group: TensorGroup) -> None:
        self.part = part
        self.group = group

    def __call__(self, x: Tensor, /) -> Tensor:
        """Apply this rank's part and sum."""
        return self.group.all_reduce(self.part(x))

    def weights(self) -> Iterator[Weight]:
        """List what to load."""
        yield from self.part.weights()


class VocabularyPart:
    """An embedding of which this rank holds the rows from `first_row` on; the others contribute the rest."""

    def __init__(self, part: Embedding, first_row: int, rows: int, group: TensorGroup) -> None:
        self._part = part
        self._first_row = first_row
        self._rows = rows
        self._group = group

    def __call__(self, ids: Tensor, /) -> Tensor:
        """Look up what is here and sum."""
        local = ids - self._first_row
        elsewhere = (local < 0) | (local >= self._rows)
        found = self._part(local.masked_fill(elsewhere, 0))
        return self._group.all_reduce(found.masked_fill_(elsewhere[:, None], 0))

    def weights(self) -> Iterator[Weight]:
        """List what to load."""
        yield from self._part.weights()


def apply_tensor_parallel(model: Transformer, shard: Shard, group: TensorGroup) -> None:
    """Narrow a model whose weights are not loaded yet to one rank's shard, and put the collectives in."""
    for layer in model.layers:
        if isinstance(layer.attention, LatentAttention):
            _cut_latent_attention(layer.attention, shard, group)
        else:
            _cut_attention(layer.attention, shard, group)
        if isinstance(layer.mlp, MixtureOfExperts):
            _cut_experts(layer.mlp, shard, group)
        else:
            assert isinstance(layer.mlp, Mlp), "the model was cut before"
            _cut_mlp(layer.mlp, shard.first_mlp_column, shard.mlp_columns, group)
        layer.mlp = AllReduced(layer.mlp, group)
    rows = (shard.first_vocab_row, shard.vocab_rows)
    if isinstance(model.embedding, Embedding):
        model.embedding.weight.slices = tuple(part.with_rows(*rows) for part in model.embedding.weight.slices)
        model.embedding = VocabularyPart(model.embedding, *rows, group)
    if model.head is not None:
        _cut_rows(model.head, [rows])


def sample_over_ranks(
    logits: Tensor,
    first_row: int,
    vocab_rows: Seq[int],
    positions: Seq[int],
    rows: Seq[SamplingRow],
    adjustments: Seq[LogitAdjustment | None],
    group: TensorGroup,
) -> StepResult | None:
    """Choose tokens from logits that are spread over the ranks. logits: [R, rows of this rank]; vocab_rows: of every rank.

    Returns the tokens on rank 0 of the group, None elsewhere. Greedy rows alone need two numbers a rank; others, and adjusted
    rows, the logits.
    """
    if not any(map(needs_whole_logits, rows, adjustments)):
        values, ids = logits.max(dim=-1)
        # float32 holds ids exactly: sizes above 2^24 are refused with the configuration.
        candidates = group.gather(torch.stack((values, (ids + first_row).float())))
        if candidates is None:
            return None
        owners = torch.stack([c[0] for c in candidates]).argmax(dim=0)  # the first of equals: the lowest id
        chosen = torch.stack([c[1] for c in candidates]).gather(0, owners[None])[0]
        return StepResult(tuple(int(token_id) for token_id in chosen.tolist()))
    widest = max(vocab_rows)
    parts = group.gather(torch.nn.functional.pad(logits, (0, widest - logits.shape[-1])))
    if parts is None:
        return None
    whole = torch.cat([part[:, :count] for part, count in zip(parts, vocab_rows, strict=True)], dim=-1)
    return sample(whole, positions, rows, adjustments)


def _cut_attention(attention: Attention, shard: Shard, group: TensorGroup) -> None:
    head_dim = attention.head_dim
    assert shard.query_heads % shard.kv_heads == 0, "a rank with several KV heads holds whole groups"
    queries = (shard.first_query_head * head_dim, shard.query_heads * head_dim)
    keys = (shard.first_kv_head * head_dim, shard.kv_heads * head_dim)
    attention.query_heads, attention.kv_heads = shard.query_heads, shard.kv_heads
    _cut_rows(attention.qkv, [queries, keys, keys])
    attention.output = AllReduced(_cut_columns(attention.output, *queries, group), group)


def _cut_latent_attention(attention: LatentAttention, shard: Shard, group: TensorGroup) -> None:
    """Keep this rank's query heads; what makes and holds cache entries is the same on every rank."""
    mla, first, heads = attention.mla, shard.first_query_head, shard.query_heads
    assert (shard.first_kv_head, shard.kv_heads) == (0, 1), "latent attention caches one head, on every rank"
    attention.query_heads = heads
    _cut_rows(attention.queries, [(first * mla.qk_head_dim, heads * mla.qk_head_dim)])
    unpacked = mla.qk_nope_head_dim + mla.v_head_dim
    attention.unpack.slices = tuple(part.with_rows(first * unpacked, heads * unpacked) for part in attention.unpack.slices)
    values = (first * mla.v_head_dim, heads * mla.v_head_dim)
    attention.output = AllReduced(_cut_columns(attention.output, *values, group), group)


def _cut_mlp(mlp: Mlp, first: int, columns: int, group: TensorGroup) -> None:
    """Keep intermediate columns; the output is then this rank's part of the sum."""
    _cut_rows(mlp.gate_up, [(first, columns)] * 2)
    mlp.down = _cut_columns(mlp.down, first, columns, group)


def _cut_experts(mixture: MixtureOfExperts, shard: Shard, group: TensorGroup) -> None:
    """Keep whole routed experts, and columns of the shared ones."""
    mixture.keep_experts(shard.first_expert, shard.experts)
    if mixture.shared is not None:
        _cut_mlp(mixture.shared, shard.first_shared_column, shard.shared_columns, group)


def _cut_rows(linear: Linear, ranges: Seq[tuple[int, int]]) -> None:
    """Keep (first, count) output rows of each of the layer's slices."""
    for weight in linear.weights():
        weight.slices = tuple(part.with_rows(*rows) for part, rows in zip(weight.slices, ranges, strict=True))


def _cut_columns(projection: Projection, first: int, count: int, group: TensorGroup) -> Linear:
    """Keep input columns, for a part of the sum; the bias stays on one rank, so that the sum has it once."""
    assert isinstance(projection, Linear), "the model was cut before"
    projection.weight.slices = tuple(part.with_columns(first, count) for part in projection.weight.slices)
    if group.rank != 0:
        projection.bias = None
    return projection
