"""Which cuts of a model a pool of like chips could run, and how much KV cache each leaves room for.

A cut's room does not depend on the workload, so it is counted once and kept: an operator asks the same for every model again and
again. Ranks that hold alike are counted once. Does not know why a plan is wanted, nor words for a refusal. All sizes are bytes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Final, Literal

from lionrock.planner.chips import Chip
from lionrock.planner.cuts import PlanError, RankCut, apportion, cut_layers
from lionrock.planner.fitting import Workload, memory_of_part
from lionrock.planner.memory import RUNTIME_BYTES, ModelShape
from lionrock.planner.plan import stage_bytes, unpacking_bytes

Backend = Literal["torch", "vllm"]

MAX_RANKS: Final = 128
"""Of one replica."""
_KEPT: Final = 16_384


@dataclass(frozen=True, slots=True)
class Ground:
    """A model, and the chips and types that it is to be cut for."""

    shape: ModelShape
    chip: Chip
    usable_bytes: int
    """Of one chip."""
    chips_per_node: int
    dtype: str
    weight_dtype: str | None
    """As the engine holds them, a key of WEIGHT_TYPES; None: as dtype."""
    batch_tokens: int
    backend: Backend


def stages_per_pod(tensor: int, pipeline: int, chips_per_node: int) -> int:
    """Stages that share a pod: as many as fit a node, the same in every pod. A tensor group never leaves a node."""
    return max(
        stages for stages in range(1, pipeline + 1) if pipeline % stages == 0 and (stages == 1 or tensor * stages <= chips_per_node)
    )


def cuts_of(ground: Ground, chips: int) -> list[tuple[int, int]]:
    """(TP, PP) of every cut into that many ranks that may run, the best first: few stages, then whole KV groups."""
    cuts = [(tensor, chips // tensor) for tensor in range(1, min(chips, ground.chips_per_node) + 1) if chips % tensor == 0]
    cuts.sort(key=lambda cut: (cut[1], ground.shape.kv_heads % cut[0] != 0))
    return [cut for cut in cuts if why_not(ground, *cut) is None]


@lru_cache(maxsize=_KEPT)
def why_not(ground: Ground, tensor: int, pipeline: int) -> str | None:
    """Return why that cut may not run, whatever the memory; None: it may."""
    shape, chip = ground.shape, ground.chip
    if tensor * pipeline > MAX_RANKS:
        return f"a replica has {MAX_RANKS} ranks at most"
    if tensor > ground.chips_per_node:
        return f"a tensor group does not leave its node, and a node has {ground.chips_per_node} chips"
    if pipeline > shape.layers:
        return f"pipeline parallelism is 1 to the model's {shape.layers} layers"
    if chip.even_counts_only and tensor * stages_per_pod(tensor, pipeline, ground.chips_per_node) % 2:
        return f"{chip.name} chips are handed out in even numbers only"
    try:
        cuts = _cuts(shape, ground.dtype, ground.weight_dtype, tensor)
    except PlanError as error:
        return str(error)
    if (
        ground.backend == "vllm"
        and len({(cut.held.query_heads, cut.held.kv_heads, cut.held.mlp_columns, cut.held.experts) for cut in cuts}) > 1
    ):
        return "vLLM splits a model evenly only"
    return None


@lru_cache(maxsize=_KEPT)
def kv_room(ground: Ground, tensor: int, pipeline: int) -> int:
    """Tokens of KV cache for which the fullest rank has room; below 0 where not even the weights fit. `why_not` must be None."""
    shape = ground.shape
    none = Workload(sequences=0, tokens_per_sequence=0, batch_tokens=ground.batch_tokens)
    parts = {(cut.held, cut.vocab_rows): cut for cut in _cuts(shape, ground.dtype, ground.weight_dtype, tensor)}.values()
    room: int | None = None
    for layers in _unlike_stages(shape, pipeline):
        for cut in parts:
            weights, packed = stage_bytes(shape, ground.chip, cut, layers, ground.dtype, ground.weight_dtype)
            needed = memory_of_part(
                shape,
                cut.held,
                weights=weights + packed,
                layers=len(layers),
                vocab_rows=cut.vocab_rows if layers.stop == shape.layers else 0,
                dtype=ground.dtype,
                workload=none,
                unpacking=unpacking_bytes(shape, ground.chip, cut, layers, ground.weight_dtype),
            )
            tokens = (ground.usable_bytes - needed.total) // shape.kv_bytes_per_token(cut.held.kv_heads, len(layers), ground.dtype)
            room = tokens if room is None else min(room, tokens)
    assert room is not None, "a plan has one stage and one rank at least"
    return room


def smallest_cut(ground: Ground, tokens: int, *, first: int = 1, last: int = MAX_RANKS) -> tuple[int, int] | None:
    """(TP, PP) of the cut into the fewest ranks, from `first` to `last`, with room for so many tokens; None: there is none."""
    for chips in range(first, min(last, MAX_RANKS) + 1):
        if kv_room_at_most(ground, chips) < tokens:
            continue
        for cut in cuts_of(ground, chips):
            if kv_room(ground, *cut) >= tokens:
                return cut
    return None


def roomiest_cut(ground: Ground, last: int) -> tuple[int, int] | None:
    """(TP, PP) of the cut into at most `last` ranks with most room for KV cache; None: no cut holds the weights."""
    best: tuple[int, int] | None = None
    most = 0
    for chips in range(min(last, MAX_RANKS), 0, -1):
        if kv_room_at_most(ground, chips) <= most:
            break  # fewer chips have less
        for cut in cuts_of(ground, chips):
            if (room := kv_room(ground, *cut)) > most:
                best, most = cut, room
    return best


def kv_room_at_most(ground: Ground, chips: int) -> int:
    """Tokens for which that many chips could have room if everything were cut to fit: never less than `kv_room` of their cuts."""
    weights, fixed, per_token = _least(ground.shape, ground.dtype, ground.weight_dtype)
    return (chips * (ground.usable_bytes - fixed) - weights) // per_token


@lru_cache(maxsize=1024)
def _least(shape: ModelShape, dtype: str, weight_dtype: str | None) -> tuple[int, int, int]:
    """Bytes of all weights held once, of what every rank needs, and of a token held once."""
    fixed = RUNTIME_BYTES + shape.rotary_bytes(dtype)
    return shape.weight_bytes(dtype, weight_dtype), fixed, shape.kv_bytes_per_token(shape.kv_heads, shape.layers, dtype)


@lru_cache(maxsize=2048)
def _cuts(shape: ModelShape, dtype: str, weight_dtype: str | None, tensor: int) -> tuple[RankCut, ...]:
    return tuple(cut_layers(shape, dtype, weight_dtype, tensor))


def _unlike_stages(shape: ModelShape, pipeline: int) -> Iterator[range]:
    """Layers of one stage of every kind: first, last, and by how many layers and mixtures it has."""
    seen: set[tuple[int, int, bool, bool]] = set()
    first = 0
    for count in apportion(shape.layers, [1.0] * pipeline):
        layers = range(first, first + count)
        first += count
        mixtures = sum(shape.is_mixture(layer) for layer in layers)
        kind = (count, mixtures, layers.start == 0, layers.stop == shape.layers)
        if kind not in seen:
            seen.add(kind)
            yield layers
