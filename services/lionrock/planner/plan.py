"""Shard plans: which rank holds which heads, MLP columns, vocabulary rows and layers, and whether that fits the chips.

A plan is TP × PP ranks, rank = stage × TP + tensor rank; `cuts` says how a layer is cut over tensor ranks. The vocabulary is split
over the tensor ranks too, for the embedding (first stage) and for the output head (last stage). Does not know torch, Ray or files.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lionrock.planner.chips import Chip, ChipName
from lionrock.planner.cuts import PlanError, RankCut, apportion, checked_weights, cut_layers
from lionrock.planner.memory import ModelShape
from lionrock.planner.weight_types import DTYPE_BYTES, UNPACKED_BYTES, WEIGHT_TYPES, panel_bytes

__all__ = ["PlanError", "Shard", "ShardPlan", "assemble", "plan_shards", "stage_bytes", "unpacking_bytes"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Shard:
    """What one rank holds. Ranges are [first, first + count) in the order of the whole model."""

    rank: int
    stage: int
    tensor_rank: int
    first_query_head: int
    query_heads: int
    first_kv_head: int
    kv_heads: int
    first_mlp_column: int
    mlp_columns: int
    first_vocab_row: int  # of the embedding table (first stage) and of the output head (last stage)
    vocab_rows: int
    first_layer: int
    layers: int
    weight_bytes: int  # of the checkpoint's tensors, in the types that the plan names
    kv_bytes_per_token: int
    first_expert: int = 0  # routed experts of a mixture, held whole (expert parallelism over the tensor ranks)
    experts: int = 0
    first_shared_column: int = 0  # of the experts that every token uses, taken together as one MLP
    shared_columns: int = 0
    packed_bytes: int = 0  # what a CPU holds beyond that at most: panels' ends, a tied table's second copy for the output head
    unpacking_bytes: int = 0  # working space elsewhere, where quantised weights are unpacked a matrix at a time


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardPlan:
    """How one model is spread over the chips of one pool."""

    chip: ChipName
    dtype: str  # of activations and KV cache, and of weights where weight_dtype is None
    tensor_parallel: int
    pipeline_parallel: int
    shards: tuple[Shard, ...]
    weight_dtype: str | None = None  # a key of memory.WEIGHT_TYPES

    @property
    def ranks(self) -> int:
        """Number of ranks, one chip each."""
        return len(self.shards)

    @property
    def kv_bytes_per_token(self) -> int:
        """Bytes of KV cache that one token takes over all ranks, replicated heads counted as often as they are held."""
        return sum(shard.kv_bytes_per_token for shard in self.shards)

    def kv_tokens(self, kv_cache_bytes: int) -> int:
        """Tokens of KV cache when every rank gives kv_cache_bytes to it: the tightest rank decides."""
        return min(kv_cache_bytes // shard.kv_bytes_per_token for shard in self.shards)

    def is_last_stage(self, rank: int) -> bool:
        """Whether the rank holds a part of the output head."""
        return self.shards[rank].stage == self.pipeline_parallel - 1


def plan_shards(
    shape: ModelShape,
    chip: Chip,
    *,
    dtype: str,
    weight_dtype: str | None = None,
    tensor_parallel: int = 1,
    pipeline_parallel: int = 1,
    rank_weights: Sequence[float] | None = None,
    stage_weights: Sequence[float] | None = None,
) -> ShardPlan:
    """Cut the model into TP × PP ranks.

    rank_weights, stage_weights: relative share of each layer a tensor rank, and of the layers a stage, for unlike chips
    (`stages` derives the latter). Raises PlanError when the model has too few heads, columns, experts or layers.
    """
    cuts = cut_layers(shape, dtype, weight_dtype, tensor_parallel, rank_weights)
    if not 1 <= pipeline_parallel <= shape.layers:
        raise PlanError(f"pipeline parallelism is 1 to the model's {shape.layers} layers, not {pipeline_parallel}")
    layers = apportion(shape.layers, checked_weights(stage_weights, pipeline_parallel, "stage_weights", "pipeline stage"))
    return assemble(shape, chip, cuts, layers, dtype=dtype, weight_dtype=weight_dtype)


def assemble(
    shape: ModelShape, chip: Chip, cuts: Sequence[RankCut], layers: Sequence[int], *, dtype: str, weight_dtype: str | None
) -> ShardPlan:
    """Put a plan together. layers: of each stage, all of the model's together."""
    assert sum(layers) == shape.layers, "stages hold every layer once"
    shards: list[Shard] = []
    for stage, stage_layers in enumerate(layers):
        first_layer = sum(layers[:stage])
        for tensor_rank, cut in enumerate(cuts):
            weight_bytes, packed_bytes = stage_bytes(
                shape, chip, cut, range(first_layer, first_layer + stage_layers), dtype, weight_dtype
            )
            shards.append(
                Shard(
                    rank=len(shards),
                    stage=stage,
                    tensor_rank=tensor_rank,
                    first_query_head=cut.first_query_head,
                    query_heads=cut.held.query_heads,
                    first_kv_head=cut.first_kv_head,
                    kv_heads=cut.held.kv_heads,
                    first_mlp_column=cut.first_mlp_column,
                    mlp_columns=cut.held.mlp_columns,
                    first_vocab_row=cut.first_vocab_row,
                    vocab_rows=cut.vocab_rows,
                    first_layer=first_layer,
                    layers=stage_layers,
                    weight_bytes=weight_bytes,
                    kv_bytes_per_token=shape.kv_bytes_per_token(cut.held.kv_heads, stage_layers, dtype),
                    first_expert=cut.first_expert,
                    experts=cut.held.experts,
                    first_shared_column=cut.first_shared_column,
                    shared_columns=cut.held.shared_columns,
                    packed_bytes=packed_bytes,
                    unpacking_bytes=unpacking_bytes(shape, chip, cut, range(first_layer, first_layer + stage_layers), weight_dtype),
                )
            )
    return ShardPlan(
        chip=chip.name,
        dtype=dtype,
        weight_dtype=weight_dtype,
        tensor_parallel=len(cuts),
        pipeline_parallel=len(layers),
        shards=tuple(shards),
    )


def stage_bytes(
    shape: ModelShape, chip: Chip, cut: RankCut, layers: range, dtype: str, weight_dtype: str | None
) -> tuple[int, int]:
    """Bytes of the weights of those layers, with the tables that belong to them, and of what packing adds at most."""
    item, rows = DTYPE_BYTES[dtype], cut.vocab_rows
    first, last = layers.start == 0, layers.stop == shape.layers
    weights = shape.layers_bytes(layers, cut.held, dtype, weight_dtype)
    packed = shape.layers_panel_bytes(layers, cut.held, dtype, weight_dtype)
    if first:
        weights += rows * shape.hidden * item
    if last:
        head = shape.head_bytes(rows, dtype, weight_dtype, beside_table=first)
        weights += shape.hidden * item + head
        packed += panel_bytes(rows, shape.hidden, dtype, shape.head_type(weight_dtype))
        packed += 0 if head else rows * shape.hidden * item  # looked up in a plain table, multiplied with panels
    return weights, packed if chip.torch_device == "cpu" else 0


def unpacking_bytes(shape: ModelShape, chip: Chip, cut: RankCut, layers: range, weight_dtype: str | None) -> int:
    """Bytes that PyTorch needs to unpack the largest quantised matrix for a product. A CPU's own kernels unpack nothing."""
    if weight_dtype is None or chip.torch_device == "cpu" or not WEIGHT_TYPES[weight_dtype].made_when_loaded:
        return 0
    rows = cut.vocab_rows if layers.stop == shape.layers else 0
    return UNPACKED_BYTES * shape.largest_product(layers, cut.held, rows)
