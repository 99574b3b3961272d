"""Shard plans: which rank holds which heads, MLP columns, vocabulary rows and layers, and whether that fits the chips.

A plan is TP × PP ranks, rank = stage × TP + tensor rank. Splits may be uneven: query heads go in whole KV groups (or, with more
ranks than KV heads, share a replicated KV head), and MLP columns then make up for the heads, so that ranks read about the same
number of bytes a step. The vocabulary is split over the tensor ranks, for the embedding and for the output head.
Does not know torch, Ray or files.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from lionrock.planner.chips import GIB, Chip, ChipName
from lionrock.planner.memory import DTYPE_BYTES, RUNTIME_BYTES, USABLE_SHARE, ModelShape

# MLP columns are cut at multiples of this where the model has enough of them: what matrix kernels like.
_COLUMN_STEP: Final = 64


class PlanError(Exception):
    """No such plan exists; the message says what would."""


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
    weight_bytes: int
    kv_bytes_per_token: int
    first_expert: int = 0  # routed experts of a mixture, held whole (expert parallelism over the tensor ranks)
    experts: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardPlan:
    """How one model is spread over the chips of one pool."""

    chip: ChipName
    dtype: str
    tensor_parallel: int
    pipeline_parallel: int
    shards: tuple[Shard, ...]

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


@dataclass(frozen=True, slots=True, kw_only=True)
class RankMemory:
    """Bytes that one rank needs, by use."""

    weights: int
    kv_cache: int
    activations: int
    runtime: int

    @property
    def total(self) -> int:
        """Everything together."""
        return self.weights + self.kv_cache + self.activations + self.runtime


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """What the plan must hold at once."""

    sequences: int
    tokens_per_sequence: int  # prompt and answer
    batch_tokens: int = 2048  # of one step


def apportion(total: int, weights: Sequence[float], *, at_least: int = 1) -> list[int]:
    """Split total into whole parts near the weights' proportion, each at_least (largest remainder). Raises PlanError."""
    if total < at_least * len(weights):
        raise PlanError(f"{total} cannot be split into {len(weights)} parts of at least {at_least}")
    spare = total - at_least * len(weights)
    wanted = [max(0.0, total * weight / sum(weights) - at_least) for weight in weights]
    scale = spare / sum(wanted) if sum(wanted) else 0.0
    exact = [want * scale for want in wanted]
    parts = [int(value) for value in exact]
    by_remainder = sorted(range(len(weights)), key=lambda index: (parts[index] - exact[index], index))
    for index in (by_remainder * 2)[: spare - sum(parts)]:
        parts[index] += 1
    return [part + at_least for part in parts]


def plan_shards(
    shape: ModelShape,
    chip: Chip,
    *,
    dtype: str,
    tensor_parallel: int = 1,
    pipeline_parallel: int = 1,
    stage_weights: Sequence[float] | None = None,
) -> ShardPlan:
    """Cut the model into TP × PP ranks.

    stage_weights: relative share of layers a stage, for stages on unlike chips. Raises PlanError when the model has too few
    heads or layers.
    """
    if dtype not in DTYPE_BYTES:
        raise PlanError(f"unknown dtype {dtype!r}; known are {', '.join(DTYPE_BYTES)}")
    if not 1 <= tensor_parallel <= shape.query_heads:
        raise PlanError(f"tensor parallelism is 1 to the model's {shape.query_heads} query heads, not {tensor_parallel}")
    if not 1 <= pipeline_parallel <= shape.layers:
        raise PlanError(f"pipeline parallelism is 1 to the model's {shape.layers} layers, not {pipeline_parallel}")
    if stage_weights is not None and (len(stage_weights) != pipeline_parallel or min(stage_weights) <= 0):
        raise PlanError("stage_weights gives one positive weight a pipeline stage")
    heads = _head_ranges(shape, tensor_parallel)
    columns = _column_counts(shape, [(query, kv) for _, query, _, kv in heads])
    rows = apportion(shape.vocabulary, [1.0] * tensor_parallel)
    layers = apportion(shape.layers, stage_weights or [1.0] * pipeline_parallel)
    shards: list[Shard] = []
    for stage, stage_layers in enumerate(layers):
        for tensor_rank, (first_query, query, first_kv, kv) in enumerate(heads):
            layer = shape.attention_parameters(query, kv) + shape.mlp_parameters(columns[tensor_rank]) + 2 * shape.hidden
            parameters = stage_layers * layer
            last = stage == pipeline_parallel - 1
            if stage == 0:
                parameters += rows[tensor_rank] * shape.hidden
            if last:
                head_is_embedding = shape.tied_embeddings and stage == 0
                parameters += shape.hidden + (0 if head_is_embedding else rows[tensor_rank] * shape.hidden)
            shards.append(
                Shard(
                    rank=len(shards),
                    stage=stage,
                    tensor_rank=tensor_rank,
                    first_query_head=first_query,
                    query_heads=query,
                    first_kv_head=first_kv,
                    kv_heads=kv,
                    first_mlp_column=sum(columns[:tensor_rank]),
                    mlp_columns=columns[tensor_rank],
                    first_vocab_row=sum(rows[:tensor_rank]),
                    vocab_rows=rows[tensor_rank],
                    first_layer=sum(layers[:stage]),
                    layers=stage_layers,
                    weight_bytes=parameters * DTYPE_BYTES[dtype],
                    kv_bytes_per_token=shape.kv_bytes_per_token(kv, stage_layers, dtype),
                )
            )
    return ShardPlan(
        chip=chip.name, dtype=dtype, tensor_parallel=tensor_parallel, pipeline_parallel=pipeline_parallel, shards=tuple(shards)
    )


def rank_memory(shape: ModelShape, plan: ShardPlan, rank: int, workload: Workload) -> RankMemory:
    """Bytes that the rank needs to serve the workload."""
    shard = plan.shards[rank]
    vocabulary = shard.vocab_rows if plan.is_last_stage(rank) else 0
    return RankMemory(
        weights=shard.weight_bytes,
        kv_cache=shard.kv_bytes_per_token * workload.sequences * workload.tokens_per_sequence,
        activations=shape.activation_bytes(workload.batch_tokens, shard.mlp_columns, vocabulary, plan.dtype),
        runtime=RUNTIME_BYTES,
    )


def choose_plan(
    shape: ModelShape, chip: Chip, *, chips: int, dtype: str, workload: Workload, memory_bytes: int | None = None
) -> ShardPlan:
    """Plan with the fewest chips, at most `chips`, that holds the workload.

    Among equals the one with the fewest pipeline stages, then with even KV groups.
    memory_bytes: of one chip, where the table does not know it or a pool differs. Raises PlanError, which says what would fit.
    """
    capacity = memory_bytes if memory_bytes is not None else chip.memory_bytes
    if capacity is None:
        raise PlanError(f"the memory of a {chip.name} chip is not in the chip table; state it")
    usable = int(capacity * USABLE_SHARE)
    for count in range(1, chips + 1):
        if (plan := _plan_on(shape, chip, count, dtype, workload, usable)) is not None:
            return plan
    raise PlanError(_refusal(shape, chip, chips, dtype, workload, usable))


def _plan_on(shape: ModelShape, chip: Chip, chips: int, dtype: str, workload: Workload, usable: int) -> ShardPlan | None:
    """Best plan on exactly that many chips, or None."""
    if chip.even_counts_only and chips > 1 and chips % 2:
        return None
    widest = chip.chips_per_node or chips
    cuts = [(tp, chips // tp) for tp in range(min(widest, chips), 0, -1) if chips % tp == 0]
    cuts.sort(key=lambda cut: (cut[1], shape.kv_heads % cut[0] != 0))
    for tensor_parallel, pipeline_parallel in cuts:
        if tensor_parallel > shape.query_heads or pipeline_parallel > shape.layers:
            continue
        plan = plan_shards(shape, chip, dtype=dtype, tensor_parallel=tensor_parallel, pipeline_parallel=pipeline_parallel)
        if all(rank_memory(shape, plan, rank, workload).total <= usable for rank in range(plan.ranks)):
            return plan
    return None


def _refusal(shape: ModelShape, chip: Chip, chips: int, dtype: str, workload: Workload, usable: int) -> str:
    """Why nothing fits and what would: more chips, else the longest workload on the chips given."""
    wanted = f"{workload.sequences} sequences of {workload.tokens_per_sequence} tokens"
    told = (
        f"{dtype} weights of {shape.parameters() * DTYPE_BYTES[dtype] / GIB:.1f} GiB and {wanted} do not fit {chips} × {chip.name}"
    )
    told += f" with {usable / GIB:.1f} GiB usable each"
    for count in range(chips + 1, 4 * max(chips, chip.chips_per_node or 1) + 1):
        if _plan_on(shape, chip, count, dtype, workload, usable) is not None:
            return f"{told}; {count} chips would hold them"
    tokens = workload.tokens_per_sequence
    while tokens > 1:
        tokens //= 2
        smaller = Workload(sequences=workload.sequences, tokens_per_sequence=tokens, batch_tokens=workload.batch_tokens)
        if any(_plan_on(shape, chip, count, dtype, smaller, usable) is not None for count in range(1, chips + 1)):
            return f"{told}; {workload.sequences} sequences of {tokens} tokens would fit"
    return f"{told}; no number of these chips up to four times as many would hold them"


def _head_ranges(shape: ModelShape, ranks: int) -> list[tuple[int, int, int, int]]:
    """(first query head, query heads, first KV head, KV heads) a tensor rank."""
    if ranks <= shape.kv_heads:
        ranges, first = [], 0
        for kv in apportion(shape.kv_heads, [1.0] * ranks):
            ranges.append((first * shape.group, kv * shape.group, first, kv))
            first += kv
        return ranges
    ranges = []
    for kv_head, sharers in enumerate(apportion(ranks, [1.0] * shape.kv_heads)):
        first = kv_head * shape.group
        for query in apportion(shape.group, [1.0] * sharers):
            ranges.append((first, query, kv_head, 1))
            first += query
    return ranges


def _column_counts(shape: ModelShape, heads: Sequence[tuple[int, int]]) -> list[int]:
    """MLP columns a tensor rank: those with fewer heads take more, so that each rank reads about as many weights a step."""
    ranks = len(heads)
    if shape.mlp_columns < ranks:
        raise PlanError(f"{shape.mlp_columns} MLP columns cannot be split over {ranks} ranks")
    column = shape.mlp_parameters(1)
    attention = [shape.attention_parameters(query, kv) for query, kv in heads]
    fair = (sum(attention) + shape.mlp_columns * column) / ranks
    weights = [max(fair - held, column) for held in attention]
    step = _COLUMN_STEP if shape.mlp_columns % _COLUMN_STEP == 0 and shape.mlp_columns // _COLUMN_STEP >= 4 * ranks else 1
    return [part * step for part in apportion(shape.mlp_columns // step, weights)]
