"""One replica of a model on the chips of a pool: the plan that the operator follows and that `lionrock plan` shows.

Knows chips, pods and words for a refusal; `search` knows which cuts there are. Pure, and fast enough for every reconciliation.
The JSON form has the keys of ModelDeployment's status.plan. All sizes are bytes.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Final

from lionrock.planner.chips import GIB, Chip
from lionrock.planner.cuts import PlanError
from lionrock.planner.fitting import RankMemory, Workload, rank_memory
from lionrock.planner.memory import USABLE_SHARE, ModelShape
from lionrock.planner.plan import ShardPlan, plan_shards
from lionrock.planner.search import (
    MAX_RANKS,
    Backend,
    Ground,
    kv_room,
    roomiest_cut,
    smallest_cut,
    stages_per_pod,
    why_not,
)
from lionrock.planner.weight_types import DTYPE_BYTES, WEIGHT_TYPES

__all__ = ["Backend", "Chips", "Parallelism", "PlanError", "ReplicaPlan", "held_weights", "plan_replica"]

KV_BLOCK_TOKENS: Final = 16
"""The engine's caches are handed out in blocks of so many tokens."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Chips:
    """Chips of one pool that a replica may take."""

    chip: Chip
    available: int = MAX_RANKS
    memory_bytes: int | None = None
    """Of one chip; None: what the chip table says."""
    per_node: int | None = None
    """None: what the chip table says; where it says nothing, one node holds them all."""

    @property
    def chip_bytes(self) -> int:
        """Memory of one chip. Raises PlanError where nobody states it."""
        stated = self.memory_bytes if self.memory_bytes is not None else self.chip.memory_bytes
        if stated is None:
            raise PlanError(f"the memory of a {self.chip.name} chip is not in the chip table; state it")
        return stated

    @property
    def node_chips(self) -> int:
        """Chips of one node."""
        return self.per_node or self.chip.chips_per_node or max(1, self.available)


@dataclass(frozen=True, slots=True)
class Parallelism:
    """A cut that is asked for."""

    tensor: int
    pipeline: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicaPlan:
    """How one replica is cut and put into pods, and why that fits."""

    shards: ShardPlan
    chip_bytes: int
    """Memory of one chip."""
    usable_bytes: int
    """What a plan may fill of it."""
    chips_per_pod: int
    pods: int
    memory: tuple[RankMemory, ...]
    """Of each rank, with the KV cache of the workload."""
    kv_tokens: int
    """Tokens of KV cache for which there is room, the workload's among them; whole blocks."""

    @property
    def chips(self) -> int:
        """Chips of the replica, one a rank."""
        return self.shards.ranks

    @property
    def kv_cache_bytes(self) -> int:
        """What the engine must be given on each rank to hold `kv_tokens`."""
        return self.kv_tokens * max(shard.kv_bytes_per_token for shard in self.shards.shards)

    @property
    def summary(self) -> str:
        """One line."""
        plan = self.shards
        return f"{self.chips} × {plan.chip}, TP {plan.tensor_parallel} × PP {plan.pipeline_parallel}"

    def status(self) -> dict[str, Any]:
        """Return the plan as ModelDeployment's status.plan states it, but for the pool, which the plan does not know."""
        return {
            "summary": self.summary,
            "chip": str(self.shards.chip),
            "tensorParallel": self.shards.tensor_parallel,
            "pipelineParallel": self.shards.pipeline_parallel,
            "chipsPerReplica": self.chips,
            "podsPerReplica": self.pods,
            "chipsPerPod": self.chips_per_pod,
            "usableMemory": f"{self.usable_bytes >> 20}Mi",
            "kvTokens": self.kv_tokens,
            "ranks": [
                {
                    "rank": shard.rank,
                    "stage": shard.stage,
                    "layers": shard.layers,
                    "weights": memory.weights,
                    "kvCache": memory.kv_cache,
                    "activations": memory.activations,
                    "runtime": memory.runtime + memory.rotary,
                    "total": memory.total,
                }
                for shard, memory in zip(self.shards.shards, self.memory, strict=True)
            ],
        }


def held_weights(checkpoint: str | None, asked: str | None, backend: Backend) -> str | None:
    """Type in which an engine holds the weights of layers, a key of WEIGHT_TYPES; None: in the type of activations.

    checkpoint: what the files are written in. asked: what they are to be rounded to when they are loaded. Lionrock's own engine
    turns fp8 into plain numbers when it loads them, and can round those; vLLM keeps what it finds, and rounds nothing here.
    Raises PlanError for what the backend does not do.
    """
    if asked is not None and (asked not in WEIGHT_TYPES or not WEIGHT_TYPES[asked].made_when_loaded):
        raise PlanError(f"weights cannot be rounded to {asked!r}; known are {', '.join(_ROUNDINGS)}")
    if backend == "torch":
        return asked
    if asked is not None:
        raise PlanError("the vllm backend does not round what it loads; leave weightQuantisation at none")
    return checkpoint


_ROUNDINGS: Final = tuple(name for name, kind in WEIGHT_TYPES.items() if kind.made_when_loaded)


def plan_replica(
    shape: ModelShape,
    chips: Chips,
    *,
    workload: Workload,
    dtype: str = "bfloat16",
    weight_dtype: str | None = None,
    parallelism: Parallelism | None = None,
    backend: Backend = "torch",
) -> ReplicaPlan:
    """Plan one replica: as asked for, or, with parallelism None, on the fewest chips that hold the workload.

    weight_dtype: as the engine holds the weights (`held_weights`). Raises PlanError, which says what would fit.
    """
    _check(shape, workload, dtype, weight_dtype)
    if backend == "vllm" and chips.chip.engine_plugin is None:
        raise PlanError(f"no vLLM is known for {chips.chip.name}; use the torch backend")
    ground = Ground(
        shape=shape,
        chip=chips.chip,
        usable_bytes=int(chips.chip_bytes * USABLE_SHARE),
        chips_per_node=chips.node_chips,
        dtype=dtype,
        weight_dtype=weight_dtype,
        batch_tokens=workload.batch_tokens,
        backend=backend,
    )
    blocks = -(-workload.tokens_per_sequence // KV_BLOCK_TOKENS)
    in_blocks = replace(workload, tokens_per_sequence=blocks * KV_BLOCK_TOKENS)
    tokens = in_blocks.sequences * in_blocks.tokens_per_sequence
    if parallelism is not None:
        cut = _given_cut(ground, chips, parallelism)
        if kv_room(ground, *cut) < tokens:
            raise PlanError(_refusal(ground, chips, workload, tokens, cut))
    else:
        found = smallest_cut(ground, tokens, last=chips.available)
        if found is None:
            raise PlanError(_refusal(ground, chips, workload, tokens, None))
        cut = found
    return _plan(ground, chips, in_blocks, cut)


def _check(shape: ModelShape, workload: Workload, dtype: str, weight_dtype: str | None) -> None:
    """Raise PlanError for what no chips could do."""
    if dtype not in DTYPE_BYTES:
        raise PlanError(f"unknown dtype {dtype!r}; known are {', '.join(DTYPE_BYTES)}")
    if weight_dtype is not None and weight_dtype not in WEIGHT_TYPES:
        raise PlanError(f"unknown weight type {weight_dtype!r}; known are {', '.join(WEIGHT_TYPES)}")
    if workload.tokens_per_sequence > shape.context_window:
        raise PlanError(
            f"the model's context window has {shape.context_window} tokens, and {workload.tokens_per_sequence} are asked for"
        )


def _plan(ground: Ground, chips: Chips, workload: Workload, cut: tuple[int, int]) -> ReplicaPlan:
    tensor, pipeline = cut
    shards = plan_shards(
        ground.shape,
        ground.chip,
        dtype=ground.dtype,
        weight_dtype=ground.weight_dtype,
        tensor_parallel=tensor,
        pipeline_parallel=pipeline,
    )
    together = stages_per_pod(tensor, pipeline, ground.chips_per_node)
    return ReplicaPlan(
        shards=shards,
        chip_bytes=chips.chip_bytes,
        usable_bytes=ground.usable_bytes,
        chips_per_pod=tensor * together,
        pods=pipeline // together,
        memory=tuple(rank_memory(ground.shape, shards, rank, workload) for rank in range(shards.ranks)),
        kv_tokens=kv_room(ground, tensor, pipeline) // KV_BLOCK_TOKENS * KV_BLOCK_TOKENS,
    )


def _given_cut(ground: Ground, chips: Chips, asked: Parallelism) -> tuple[int, int]:
    """Return the cut that is asked for, if it may run there. Raises PlanError."""
    name = f"TP {asked.tensor} × PP {asked.pipeline}"
    if asked.tensor < 1 or asked.pipeline < 1:
        raise PlanError(f"{name} is no cut: both are 1 at least")
    if (reason := why_not(ground, asked.tensor, asked.pipeline)) is not None:
        raise PlanError(f"{name} is not possible: {reason}")
    if asked.tensor * asked.pipeline > chips.available:
        raise PlanError(f"{name} takes {asked.tensor * asked.pipeline} chips, and {chips.available} are available")
    return asked.tensor, asked.pipeline


def _refusal(ground: Ground, chips: Chips, workload: Workload, tokens: int, cut: tuple[int, int] | None) -> str:
    """Why the model and its workload do not fit, and everything that would: chips, a cut, a workload, a type of weights."""
    where = f"{chips.available} × {ground.chip.name}" if cut is None else f"TP {cut[0]} × PP {cut[1]} of {ground.chip.name}"
    weights = ground.shape.weight_bytes(ground.dtype, ground.weight_dtype) / GIB
    told = (
        f"{ground.weight_dtype or ground.dtype} weights of {weights:.1f} GiB and {workload.sequences} sequences of "
        f"{workload.tokens_per_sequence} tokens do not fit {where} with {ground.usable_bytes / GIB:.1f} GiB usable each"
    )
    ways: list[str] = []
    if (found := smallest_cut(ground, tokens)) is not None:
        ways.append(f"{found[0] * found[1]} chips would hold them (TP {found[0]} × PP {found[1]})")
    if (roomy := cut or roomiest_cut(ground, chips.available)) is not None and workload.sequences:
        room = kv_room(ground, *roomy) // workload.sequences // KV_BLOCK_TOKENS * KV_BLOCK_TOKENS
        if room > 0:
            ways.append(f"{workload.sequences} sequences of {room} tokens would fit")
    short = found is None or found[0] * found[1] > chips.available
    ways += [way for name in _ROUNDINGS if short and (way := _rounded(ground, chips, tokens, name)) is not None][:1]
    return f"{told}; {'; or '.join(ways)}" if ways else f"{told}; no plan of up to {MAX_RANKS} of these chips would hold them"


def _rounded(ground: Ground, chips: Chips, tokens: int, name: str) -> str | None:
    """Say that weights of fewer bits would fit, if the engine makes them and they would."""
    if ground.backend != "torch" or ground.weight_dtype is not None:
        return None
    found = smallest_cut(replace(ground, weight_dtype=name), tokens, last=chips.available)
    return None if found is None else f"with {name} weights {found[0] * found[1]} chips would (TP {found[0]} × PP {found[1]})"
