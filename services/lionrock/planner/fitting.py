"""What a rank needs besides weights, to serve a workload. Knows no chips. All sizes are bytes."""

from __future__ import annotations

from dataclasses import dataclass

from lionrock.planner.memory import RUNTIME_BYTES, Cut, ModelShape
from lionrock.planner.plan import Shard, ShardPlan


@dataclass(frozen=True, slots=True, kw_only=True)
class RankMemory:
    """Bytes that one rank needs, by use."""

    weights: int  # in the layout of the kernels
    rotary: int
    kv_cache: int
    activations: int
    runtime: int

    @property
    def total(self) -> int:
        """Everything together."""
        return self.weights + self.rotary + self.kv_cache + self.activations + self.runtime


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """What the plan must hold at once."""

    sequences: int
    tokens_per_sequence: int  # prompt and answer
    batch_tokens: int = 2048  # of one step
    kv_cache_bytes: int = 0  # of each rank, beside that of the sequences


def rank_memory(shape: ModelShape, plan: ShardPlan, rank: int, workload: Workload) -> RankMemory:
    """Bytes that the rank needs to serve the workload."""
    shard = plan.shards[rank]
    return memory_of_part(
        shape,
        held_by(shard),
        weights=shard.weight_bytes + shard.packed_bytes,
        layers=shard.layers,
        vocab_rows=shard.vocab_rows if plan.is_last_stage(rank) else 0,
        dtype=plan.dtype,
        workload=workload,
        unpacking=shard.unpacking_bytes,
    )


def memory_of_part(
    shape: ModelShape,
    held: Cut,
    *,
    weights: int,
    layers: int,
    vocab_rows: int,
    dtype: str,
    workload: Workload,
    unpacking: int = 0,
) -> RankMemory:
    """Bytes that a rank needs which holds so much of that many layers. vocab_rows: of its output head; 0: it has none.

    unpacking: working space for quantised weights.
    """
    return RankMemory(
        weights=weights,
        rotary=shape.rotary_bytes(dtype),
        kv_cache=workload.kv_cache_bytes
        + shape.kv_bytes_per_token(held.kv_heads, layers, dtype) * workload.sequences * workload.tokens_per_sequence,
        activations=shape.activation_bytes(workload.batch_tokens, held, vocab_rows, dtype) + unpacking,
        runtime=RUNTIME_BYTES,
    )


def held_by(shard: Shard) -> Cut:
    """Return what a shard holds of each layer."""
    return Cut(
        query_heads=shard.query_heads,
        kv_heads=shard.kv_heads,
        mlp_columns=shard.mlp_columns,
        experts=shard.experts,
        shared_columns=shard.shared_columns,
        adds_biases=shard.tensor_rank == 0,
    )
