"""How one layer, and the vocabulary, are cut over tensor ranks.

Splits may be uneven: query heads go in whole KV groups (or, with more ranks than KV heads, share a replicated KV head), routed
experts go whole, and MLP columns then make up for the heads, so that each rank reads its share of the bytes of a step. With latent
attention each rank holds the whole compressed cache. Does not know chips, stages or memory limits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from lionrock.planner.memory import Cut, ModelShape
from lionrock.planner.weight_types import DTYPE_BYTES, WEIGHT_TYPES

# MLP columns are cut at multiples of this where the model has enough of them: what matrix kernels like.
_COLUMN_STEP: Final = 64
# Between two ranks' or stages' weights: beyond it the arithmetic means nothing.
_MAX_WEIGHT_RATIO: Final = 1e6


class PlanError(Exception):
    """No such plan exists; the message says what would."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RankCut:
    """What one tensor rank holds of every layer, and where that begins in the whole model."""

    held: Cut
    first_query_head: int
    first_kv_head: int
    first_mlp_column: int
    first_expert: int
    first_shared_column: int
    first_vocab_row: int
    vocab_rows: int


def cut_layers(
    shape: ModelShape, dtype: str, weight_dtype: str | None, tensor_parallel: int, rank_weights: Sequence[float] | None = None
) -> list[RankCut]:
    """Cut each layer and the tables over the tensor ranks. Raises PlanError."""
    if dtype not in DTYPE_BYTES:
        raise PlanError(f"unknown dtype {dtype!r}; known are {', '.join(DTYPE_BYTES)}")
    if weight_dtype is not None and weight_dtype not in WEIGHT_TYPES:
        raise PlanError(f"unknown weight type {weight_dtype!r}; known are {', '.join(WEIGHT_TYPES)}")
    if not 1 <= tensor_parallel <= shape.query_heads:
        raise PlanError(f"tensor parallelism is 1 to the model's {shape.query_heads} query heads, not {tensor_parallel}")
    weights = checked_weights(rank_weights, tensor_parallel, "rank_weights", "tensor rank")
    heads = _head_ranges(shape, weights)
    cuts = [
        Cut(query_heads=query, kv_heads=kv, mlp_columns=0, adds_biases=rank == 0) for rank, (_, query, _, kv) in enumerate(heads)
    ]
    attention = [shape.attention(cut).parameters for cut in cuts]
    step = _COLUMN_STEP if weight_dtype is None else max(_COLUMN_STEP, WEIGHT_TYPES[weight_dtype].block[1])
    columns = _column_counts(shape.mlp_columns, 3 * shape.hidden, attention, weights, step)
    experts, shared = [0] * tensor_parallel, [0] * tensor_parallel
    if (mixture := shape.experts) is not None:
        if mixture.routed < tensor_parallel:
            raise PlanError(f"{mixture.routed} routed experts cannot be split over {tensor_parallel} ranks")
        experts = apportion(mixture.routed, weights)
        if mixture.shared_columns:
            routed = [held + 3 * shape.hidden * mixture.columns * count for held, count in zip(attention, experts, strict=True)]
            shared = _column_counts(mixture.shared_columns, 3 * shape.hidden, routed, weights, step)
    rows = apportion(shape.vocabulary, weights)
    return [
        RankCut(
            held=Cut(
                query_heads=query,
                kv_heads=kv,
                mlp_columns=columns[rank],
                experts=experts[rank],
                shared_columns=shared[rank],
                adds_biases=rank == 0,
            ),
            first_query_head=first_query,
            first_kv_head=first_kv,
            first_mlp_column=sum(columns[:rank]),
            first_expert=sum(experts[:rank]),
            first_shared_column=sum(shared[:rank]),
            first_vocab_row=sum(rows[:rank]),
            vocab_rows=rows[rank],
        )
        for rank, (first_query, query, first_kv, kv) in enumerate(heads)
    ]


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


def checked_weights(weights: Sequence[float] | None, count: int, name: str, part: str) -> Sequence[float]:
    """Weights that can be used, or even ones. Raises PlanError."""
    if weights is None:
        return [1.0] * count
    if len(weights) != count or not all(0 < weight < float("inf") for weight in weights):
        raise PlanError(f"{name} gives one positive weight a {part}")
    if max(weights) > _MAX_WEIGHT_RATIO * min(weights):
        raise PlanError(f"{name} differ by more than a factor of {_MAX_WEIGHT_RATIO:.0f}")
    return weights


def _head_ranges(shape: ModelShape, weights: Sequence[float]) -> list[tuple[int, int, int, int]]:
    """(first query head, query heads, first KV head, KV heads) a tensor rank."""
    if len(weights) <= shape.kv_heads:
        ranges, first = [], 0
        for kv in apportion(shape.kv_heads, weights):
            ranges.append((first * shape.group, kv * shape.group, first, kv))
            first += kv
        return ranges
    ranges, rank = [], 0
    for kv_head, sharers in enumerate(apportion(len(weights), [1.0] * shape.kv_heads)):
        first = kv_head * shape.group
        for query in apportion(shape.group, weights[rank : rank + sharers]):
            ranges.append((first, query, kv_head, 1))
            first += query
        rank += sharers
    return ranges


def _column_counts(columns: int, column: int, held: Sequence[int], weights: Sequence[float], step: int) -> list[int]:
    """Columns a tensor rank: those that hold less of the rest take more, so that each reads its share of the weights a step.

    column: parameters of one. held: parameters of the rest a rank. Raises PlanError.
    """
    ranks = len(held)
    if columns < ranks:
        raise PlanError(f"{columns} MLP columns cannot be split over {ranks} ranks")
    everything = sum(held) + columns * column
    wanted = [max(everything * weight / sum(weights) - rest, column) for weight, rest in zip(weights, held, strict=True)]
    # Blocks that share a scale stay whole as long as there is one a rank.
    fewest = 4 * ranks if step == _COLUMN_STEP else ranks
    unit = step if columns % step == 0 and columns // step >= fewest else 1
    return [part * unit for part in apportion(columns // unit, wanted)]
