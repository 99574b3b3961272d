"""Where the ranks of one replica may be: the bundles of its placement group, and which of them a rank takes.

A bundle is reserved on one node as a whole. So the chips of whole pipeline stages make one bundle, and the ranks of a stage, which
meet in every layer, never spread over nodes, however the cluster looks. In Kubernetes a bundle holds all chips of one pod, so that
a replica has whole pods. The first bundle holds the replica's own process too, beside the first stage. Ray is not imported.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from lionrock.inference.settings import ModelSettings
from lionrock.planner.chips import Chip

NODE_SHARE = 0.001
"""Of a node's own resource: a mark of where a bundle may be, not something that runs out."""


@dataclass(frozen=True, slots=True)
class ReplicaPlacement:
    """Bundles of a placement group and its strategy. Amounts are Ray's: a chip, or a CPU, is 1."""

    bundles: tuple[Mapping[str, float], ...]
    strategy: str
    ranks_per_bundle: int
    """Consecutive ranks, from rank 0 in bundle 0."""

    def bundle_of(self, rank: int) -> int:
        """Bundle that holds a rank's chip."""
        return rank // self.ranks_per_bundle

    def device_of(self, rank: int) -> int:
        """Index of a rank's chip among those of its bundle."""
        return rank % self.ranks_per_bundle


def chip_resource(row: Chip) -> dict[str, float]:
    """Ray resources of one rank beside its CPU."""
    return {} if row.ray_resource == "CPU" else {row.ray_resource: 1}


def place(model: ModelSettings) -> ReplicaPlacement:
    """Lay out one replica of a model. Raises UnknownChip."""
    row, tensor, stages = model.chip_row(), model.tensor_parallel, model.pipeline_parallel
    if model.backend == "vllm" and row.ray_resource != "CPU":
        return _chip_by_chip(chip_resource(row), tensor * stages, one_node=stages == model.stages_per_node)
    ranks = tensor * model.stages_per_node
    chips = {name: amount * ranks for name, amount in chip_resource(row).items()}
    marks = [{} if stage.node_resource is None else {stage.node_resource: NODE_SHARE} for stage in model.stages or ()]
    bundles = tuple(
        {"CPU": float(ranks + (1 if number == 0 else 0))} | chips | (marks[number] if marks else {})
        for number in range(stages // model.stages_per_node)
    )
    return ReplicaPlacement(bundles, "PACK", ranks)


def _chip_by_chip(resource: Mapping[str, float], ranks: int, *, one_node: bool) -> ReplicaPlacement:
    """VLLM's executor takes bundles of one chip only. Of several nodes it may be given any chips: Ray packs as it can."""
    bundles = ({"CPU": 1.0}, *({"CPU": 1.0} | dict(resource) for _ in range(ranks)))
    return ReplicaPlacement(bundles, "STRICT_PACK" if one_node else "PACK", 1)
