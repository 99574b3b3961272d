"""Pipeline stages on unlike chips: layers limited by each chip's memory and balanced by its speed.

Decoding is bound by the bytes of weights that a chip reads a step, so a stage's time is those bytes over its memory bandwidth, and
the best split is the one whose slowest stage is fastest. Layers stay in order, each stage has one at least. Chips within a stage
are alike, and all chips of a plan belong to one vendor: they share one PyTorch device and one collective. All sizes are bytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from lionrock.planner.chips import GIB, Chip
from lionrock.planner.cuts import PlanError, RankCut, cut_layers
from lionrock.planner.fitting import RankMemory, Workload, memory_of_part
from lionrock.planner.memory import USABLE_SHARE, ModelShape
from lionrock.planner.plan import ShardPlan, assemble, stage_bytes, unpacking_bytes
from lionrock.planner.weight_types import DTYPE_BYTES


@dataclass(frozen=True, slots=True, kw_only=True)
class StageChips:
    """The chips of one stage, one a tensor rank."""

    chip: Chip
    speed: float
    """Memory bandwidth, or any figure in proportion to it over all stages."""
    memory_bytes: int | None = None
    """Of one chip; None: what the chip table says."""

    @property
    def usable(self) -> int:
        """Bytes of one chip that a plan may fill. Raises PlanError where nobody states its memory."""
        capacity = self.memory_bytes if self.memory_bytes is not None else self.chip.memory_bytes
        if capacity is None:
            raise PlanError(f"the memory of a {self.chip.name} chip is not in the chip table; state it")
        return int(capacity * USABLE_SHARE)


def plan_stages(
    shape: ModelShape,
    stages: Sequence[StageChips],
    *,
    dtype: str,
    workload: Workload,
    weight_dtype: str | None = None,
    tensor_parallel: int = 1,
) -> ShardPlan:
    """Plan one stage on each of the chips given, in that order.

    Raises PlanError when the chips do not go together, or cannot hold model and workload; it says what would fit.
    """
    chip = _common_chip(stages)
    if len(stages) > shape.layers:
        raise PlanError(f"pipeline parallelism is 1 to the model's {shape.layers} layers, not {len(stages)}")
    cuts = cut_layers(shape, dtype, weight_dtype, tensor_parallel)
    parts = _Parts(shape, chip, cuts, dtype, weight_dtype)
    layers = _layers_by_stage(parts, stages, workload)
    if layers is None:
        raise PlanError(_refusal(parts, stages, workload))
    return assemble(shape, chip, cuts, layers, dtype=dtype, weight_dtype=weight_dtype)


@dataclass(frozen=True, slots=True)
class _Parts:
    """What a run of layers costs, the heaviest tensor rank counted."""

    shape: ModelShape
    chip: Chip
    cuts: Sequence[RankCut]
    dtype: str
    weight_dtype: str | None
    _known: dict[range, tuple[int, list[tuple[RankCut, int]]]] = field(default_factory=dict)

    def read_bytes(self, layers: range) -> int:
        """Bytes that a step reads: the embedding table is only looked up in."""
        return self._weights(layers)[0]

    def memory(self, layers: range, workload: Workload) -> int:
        """Bytes that a chip needs."""
        last = layers.stop == self.shape.layers
        needs: list[RankMemory] = [
            memory_of_part(
                self.shape,
                cut.held,
                weights=weights,
                layers=len(layers),
                vocab_rows=cut.vocab_rows if last else 0,
                dtype=self.dtype,
                workload=workload,
                unpacking=unpacking_bytes(self.shape, self.chip, cut, layers, self.weight_dtype),
            )
            for cut, weights in self._weights(layers)[1]
        ]
        return max(need.total for need in needs)

    def _weights(self, layers: range) -> tuple[int, list[tuple[RankCut, int]]]:
        if layers not in self._known:
            held, read = [], 0
            for cut in self.cuts:
                weights, packed = stage_bytes(self.shape, self.chip, cut, layers, self.dtype, self.weight_dtype)
                last, beside = layers.stop == self.shape.layers, layers.start == 0
                shared = last and not self.shape.head_bytes(1, self.dtype, self.weight_dtype, beside_table=beside)
                looked_up = beside and not shared
                table = cut.vocab_rows * self.shape.hidden * DTYPE_BYTES[self.dtype]
                read = max(read, weights - (table if looked_up else 0))
                held.append((cut, weights + packed))
            self._known[layers] = (read, held)
        return self._known[layers]


def _layers_by_stage(parts: _Parts, stages: Sequence[StageChips], workload: Workload) -> list[int] | None:
    """Layers of each stage with the fastest slowest stage, then the least time in all; None when nothing fits.

    By dynamic programming over (stage, layers placed): exact, and 10⁵ steps for the largest models.
    """
    count, usable = parts.shape.layers, [stage.usable for stage in stages]
    best: dict[int, tuple[float, float, tuple[int, ...]]] = {0: (0.0, 0.0, ())}
    for index, stage in enumerate(stages):
        following = len(stages) - index - 1
        reached: dict[int, tuple[float, float, tuple[int, ...]]] = {}
        for first, (slowest, together, placed) in best.items():
            stops = range(first + 1, count - following + 1) if following else range(count, count + 1)
            for stop in stops:
                layers = range(first, stop)
                if parts.memory(layers, workload) > usable[index]:
                    break  # more layers need more
                took = parts.read_bytes(layers) / stage.speed
                candidate = (max(slowest, took), together + took, (*placed, len(layers)))
                if stop not in reached or candidate < reached[stop]:
                    reached[stop] = candidate
        best = reached
    return list(best[count][2]) if count in best else None


def _common_chip(stages: Sequence[StageChips]) -> Chip:
    """Row of the first stage, if the others can work with it. Raises PlanError."""
    if not stages:
        raise PlanError("a plan has one stage at least")
    first = stages[0].chip
    for stage in stages:
        if not 0 < stage.speed < float("inf"):
            raise PlanError("a stage's speed is a positive number")
        row = stage.chip
        if _kind(row) != _kind(first):
            raise PlanError(f"{first.name} and {row.name} share no vendor, PyTorch device and collective; one plan cannot use both")
    return first


def _kind(chip: Chip) -> tuple[str | None, ...]:
    """Return what chips of one group have in common; the vendor is the domain of the Kubernetes resource."""
    vendor = None if chip.extended_resource is None else chip.extended_resource.partition("/")[0]
    return vendor, chip.torch_device, chip.torch_module, chip.collective, chip.ray_resource


def _refusal(parts: _Parts, stages: Sequence[StageChips], workload: Workload) -> str:
    """Why nothing fits, and the longest workload that would."""
    weights = parts.shape.weight_bytes(parts.dtype, parts.weight_dtype) / GIB
    usable = ", ".join(f"{stage.usable / GIB:.1f}" for stage in stages)
    wanted = f"{workload.sequences} sequences of {workload.tokens_per_sequence} tokens"
    if workload.kv_cache_bytes:
        wanted = f"{workload.kv_cache_bytes / GIB:.1f} GiB of KV cache a chip"
    told = f"{parts.weight_dtype or parts.dtype} weights of {weights:.1f} GiB and {wanted} do not fit"
    told += f" {len(parts.cuts)} chips a stage with {usable} GiB usable each"
    tokens = workload.tokens_per_sequence
    while tokens > 1:
        tokens //= 2
        if _layers_by_stage(parts, stages, replace(workload, tokens_per_sequence=tokens)) is not None:
            return f"{told}; {workload.sequences} sequences of {tokens} tokens would fit"
    return f"{told}, however the layers are split"
