"""Whether a plan fits its chips, and the plan with the fewest chips that holds a workload.

Knows the memory of chips and what a rank needs besides weights. All sizes are bytes.
"""

from __future__ import annotations

from dataclasses import dataclass

from lionrock.planner.chips import GIB, Chip
from lionrock.planner.cuts import PlanError
from lionrock.planner.memory import RUNTIME_BYTES, USABLE_SHARE, Cut, ModelShape
from lionrock.planner.plan import Shard, ShardPlan, plan_shards


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
    )


def memory_of_part(
    shape: ModelShape, held: Cut, *, weights: int, layers: int, vocab_rows: int, dtype: str, workload: Workload
) -> RankMemory:
    """Bytes that a rank needs which holds so much of that many layers. vocab_rows: of its output head; 0: it has none."""
    return RankMemory(
        weights=weights,
        rotary=shape.rotary_bytes(dtype),
        kv_cache=workload.kv_cache_bytes
        + shape.kv_bytes_per_token(held.kv_heads, layers, dtype) * workload.sequences * workload.tokens_per_sequence,
        activations=shape.activation_bytes(workload.batch_tokens, held, vocab_rows, dtype),
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


def choose_plan(
    shape: ModelShape,
    chip: Chip,
    *,
    chips: int,
    dtype: str,
    workload: Workload,
    weight_dtype: str | None = None,
    memory_bytes: int | None = None,
) -> ShardPlan:
    """Plan with the fewest chips, at most `chips`, that holds the workload.

    Among equals the one with the fewest pipeline stages, then with even KV groups.
    memory_bytes: of one chip, where the table does not know it or a pool differs. Raises PlanError, which says what would fit.
    """
    capacity = memory_bytes if memory_bytes is not None else chip.memory_bytes
    if capacity is None:
        raise PlanError(f"the memory of a {chip.name} chip is not in the chip table; state it")
    pool = _Pool(shape, chip, dtype, weight_dtype, int(capacity * USABLE_SHARE))
    for count in range(1, chips + 1):
        if (plan := pool.plan_on(count, workload)) is not None:
            return plan
    raise PlanError(pool.refusal(chips, workload))


@dataclass(frozen=True, slots=True)
class _Pool:
    """A model and like chips that are to hold it. usable: bytes of one chip."""

    shape: ModelShape
    chip: Chip
    dtype: str
    weight_dtype: str | None
    usable: int

    def plan_on(self, chips: int, workload: Workload) -> ShardPlan | None:
        """Best plan on exactly that many chips, or None."""
        shape, chip = self.shape, self.chip
        if chip.even_counts_only and chips > 1 and chips % 2:
            return None
        if shape.weight_bytes(self.dtype, self.weight_dtype) > chips * self.usable:
            return None
        widest = chip.chips_per_node or chips
        cuts = [(tp, chips // tp) for tp in range(min(widest, chips), 0, -1) if chips % tp == 0]
        cuts.sort(key=lambda cut: (cut[1], shape.kv_heads % cut[0] != 0))
        for tensor_parallel, pipeline_parallel in cuts:
            if tensor_parallel > shape.query_heads or pipeline_parallel > shape.layers:
                continue
            if shape.experts is not None and tensor_parallel > shape.experts.routed:
                continue
            plan = plan_shards(
                shape,
                chip,
                dtype=self.dtype,
                weight_dtype=self.weight_dtype,
                tensor_parallel=tensor_parallel,
                pipeline_parallel=pipeline_parallel,
            )
            if all(rank_memory(shape, plan, rank, workload).total <= self.usable for rank in range(plan.ranks)):
                return plan
        return None

    def refusal(self, chips: int, workload: Workload) -> str:
        """Why nothing fits and what would: more chips, else the longest workload on the chips given."""
        wanted = f"{workload.sequences} sequences of {workload.tokens_per_sequence} tokens"
        weights = self.shape.weight_bytes(self.dtype, self.weight_dtype) / GIB
        told = f"{self.weight_dtype or self.dtype} weights of {weights:.1f} GiB and {wanted} do not fit {chips} × {self.chip.name}"
        told += f" with {self.usable / GIB:.1f} GiB usable each"
        for count in range(chips + 1, 4 * max(chips, self.chip.chips_per_node or 1) + 1):
            if self.plan_on(count, workload) is not None:
                return f"{told}; {count} chips would hold them"
        tokens = workload.tokens_per_sequence
        while tokens > 1:
            tokens //= 2
            smaller = Workload(sequences=workload.sequences, tokens_per_sequence=tokens, batch_tokens=workload.batch_tokens)
            if any(self.plan_on(count, smaller) is not None for count in range(1, chips + 1)):
                return f"{told}; {workload.sequences} sequences of {tokens} tokens would fit"
        return f"{told}; no number of these chips up to four times as many would hold them"
