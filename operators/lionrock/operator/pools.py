"""Which nodes belong to a chip pool, and what chip a pool has.

A node belongs to a pool if it advertises the chip's extended resource, is labelled as standing in the pool's territory, carries the
pool's node selector, and if nothing that its labels say of chip and memory speaks against it: vendors share one resource name among
chips that are not alike. Does not know pods, chips in use or models.
Sources of label names: the vendors' device plugins and feature discoveries, gathered 2026-11-22.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Final

from lionrock.operator.conditions import Reason
from lionrock.operator.resources import ChipDescription, ChipPool, Node, PoolName, Taint, Toleration, UnreadablePool
from lionrock.planner.chips import CHIPS, GIB, Chip, ChipName

_MIB: Final = 1 << 20
_GATES_PLACING: Final = frozenset({"NoSchedule", "NoExecute"})
# The node controller sets these while a node does not answer; Node.is_ready and its time say the same.
_READINESS_TAINTS: Final = frozenset({"node.kubernetes.io/not-ready", "node.kubernetes.io/unreachable"})
# Drivers keep a part of the memory that a chip is sold with: an H100 of 80 GiB reports 81,559 MiB.
_REPORTED_SHARE: Final = 0.95

_PRODUCT_LABELS: Final[Mapping[str, tuple[tuple[str, tuple[tuple[str, str], ...]], ...]]] = MappingProxyType(
    {
        "huawei.com/Ascend910": (
            ("accelerator-type", (("a3", "ascend-a3"), ("910b", "ascend-910b"))),
            ("node.kubernetes.io/npu.chip.name", (("910_93|910c", "ascend-a3"), ("910b", "ascend-910b"))),
        ),
        "nvidia.com/gpu": (("nvidia.com/gpu.product", (("h20(?![0-9])", "nvidia-h20"), ("h100(?![0-9])", "nvidia-h100"))),),
    }
)
"""By extended resource: labels that say which chip it is, and the row for a value that a pattern is found in."""

_MEMORY_LABELS: Final[Mapping[str, str]] = MappingProxyType(
    {
        "huawei.com/Ascend910": "mind-cluster/npu-chip-memory",
        "metax-tech.com/gpu": "metax-tech.com/gpu.memory",
        "nvidia.com/gpu": "nvidia.com/gpu.memory",
        "enflame.com/gcu": "enflame.com/gcu.memory",
    }
)
_MEMORY_FORM: Final = re.compile(r"([0-9]{1,9})\s*(G|GB|GiB|M|MB|MiB)?", re.IGNORECASE)
_LEAST_PLAIN_MIB: Final = 1024  # a number without unit is MiB from here on, as NVIDIA's is; below it GiB


@dataclass(frozen=True, slots=True)
class TerritoryRule:
    """How nodes of a territory are labelled: the label's key, and the values that it may have."""

    key: str
    values: frozenset[str]

    def holds(self, labels: Mapping[str, str]) -> bool:
        """Whether a node with those labels stands in the territory."""
        return labels.get(self.key) in self.values


@dataclass(frozen=True, slots=True)
class PoolRules:
    """Settings that pools depend on. engine_images: by name of the chip (of a described chip: of the pool)."""

    territories: Mapping[str, TerritoryRule]
    engine_images: Mapping[str, str] = field(default_factory=dict)

    def territory_of(self, node: Node) -> str | None:
        """Territory in which the node stands, the first by name where rules overlap; None: none that is known."""
        return next((name for name in sorted(self.territories) if self.territories[name].holds(node.labels)), None)


@dataclass(frozen=True, slots=True)
class PoolProblem:
    """Why nothing can be placed on a pool."""

    reason: Reason
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ResolvedPool:
    """A pool with its chip, from the table with what the pool overrides, or as described."""

    pool: ChipPool
    chip: Chip
    resource: str
    territory: TerritoryRule
    image: str | None
    problem: PoolProblem | None
    """What keeps models away though its nodes are known: there is no engine image."""

    @property
    def name(self) -> PoolName:
        """Name of the pool."""
        return self.pool.name

    def same_engine(self, other: ResolvedPool) -> bool:
        """Whether models on the pool run as they would on another state of it."""
        mine, others = (self.chip, self.image, self.problem), (other.chip, other.image, other.problem)
        return mine == others and self.pool.engine_backend == other.pool.engine_backend


def resolve_pool(pool: ChipPool | UnreadablePool, rules: PoolRules) -> ResolvedPool | PoolProblem:
    """Find the pool's chip, territory and image."""
    if isinstance(pool, UnreadablePool):
        return PoolProblem(Reason.SPEC_INVALID, pool.problem)
    territory = rules.territories.get(pool.territory)
    if territory is None:
        known = ", ".join(sorted(rules.territories)) or "none"
        return PoolProblem(Reason.UNKNOWN_TERRITORY, f"the operator's setting territories has no {pool.territory}; it has {known}")
    chip = _chip_of(pool)
    if chip is None or chip.extended_resource is None:
        rows = ", ".join(name for name, row in CHIPS.items() if row.extended_resource is not None)
        return PoolProblem(Reason.UNKNOWN_CHIP, f"the chip table has no extended resource for {pool.chip}; it has {rows}")
    if chip.memory_bytes is None:
        return PoolProblem(Reason.SPEC_INVALID, f"the memory of {chip.name} is not in the chip table; state spec.memory")
    image = pool.engine_image or rules.engine_images.get(chip.name)
    problem = None
    if image is None:
        problem = PoolProblem(
            Reason.NO_ENGINE_IMAGE, f"state spec.engine.image, or {chip.name} in the operator's setting engine_images"
        )
    return ResolvedPool(pool=pool, chip=chip, resource=chip.extended_resource, territory=territory, image=image, problem=problem)


def belongs(node: Node, pool: ResolvedPool) -> bool:
    """Whether the node is one of the pool's, ready or not."""
    return (
        pool.resource in node.chips
        and pool.territory.holds(node.labels)
        and all(node.labels.get(key) == value for key, value in pool.pool.node_selector.items())
        and _is_its_chip(node, pool)
        and _has_its_memory(node, pool)
    )


def takes_pods(node: Node, pool: ResolvedPool) -> bool:
    """Whether new pods of the pool may go to that node of it: ready, not cordoned, not going, and its taints tolerated."""
    return (
        node.is_ready
        and not node.is_cordoned
        and not node.is_deleting
        and all(tolerated(taint, pool) for taint in node.taints if taint.effect in _GATES_PLACING)
    )


def evicts_pods(node: Node, pool: ResolvedPool) -> bool:
    """Whether pods of the pool that run there are evicted by a taint, other than by those that say that it does not answer."""
    return any(
        taint.effect == "NoExecute" and taint.key not in _READINESS_TAINTS and not tolerated(taint, pool) for taint in node.taints
    )


def tolerated(taint: Taint, pool: ResolvedPool) -> bool:
    """Whether the pool's pods tolerate the taint. The one named like the chip's resource always is."""
    return taint.key == pool.resource or any(_tolerates(toleration, taint) for toleration in pool.pool.tolerations)


def chip_of_node(node: Node, resource: str) -> tuple[ChipName | None, bool]:
    """Row of the chip table that the node's chips of that resource are, and whether its labels say so.

    (None, True): its labels name a chip that has no row. (None, False): no row has that resource. Where several rows share the
    resource and no label decides, it is the row with least memory: a plan for it fits the others too.
    """
    for label, patterns in _PRODUCT_LABELS.get(resource, ()):
        value = node.labels.get(label)
        if value is not None:
            found = next((name for pattern, name in patterns if re.search(pattern, value, re.IGNORECASE)), None)
            return (None if found is None else ChipName(found)), True
    rows = rows_of(resource)
    return (rows[0].name if rows else None), False


def rows_of(resource: str) -> Sequence[Chip]:
    """Rows of the chip table with that extended resource, the one with least memory and fewest chips a node first."""
    rows = [row for row in CHIPS.values() if row.extended_resource == resource]
    return sorted(rows, key=lambda row: (row.memory_bytes or 0, row.chips_per_node or 0, row.name))


def _chip_of(pool: ChipPool) -> Chip | None:
    if pool.description is not None:
        chip = _described(pool.name, pool.description)
    else:
        row = CHIPS.get(ChipName(pool.chip or ""))
        if row is None:
            return None
        chip = row
    return replace(
        chip,
        memory_bytes=pool.memory_bytes if pool.memory_bytes is not None else chip.memory_bytes,
        chips_per_node=pool.chips_per_node if pool.chips_per_node is not None else chip.chips_per_node,
    )


def _described(name: PoolName, described: ChipDescription) -> Chip:
    return Chip(
        name=ChipName(name),
        product=described.product or name,
        torch_device=described.torch_device,
        torch_module=described.torch_module,
        collective=described.collective,
        ray_resource=described.ray_resource,
        ray_sets_visible_devices=False,
        visible_devices=described.visible_devices,
        extended_resource=described.extended_resource,
        memory_bytes=described.memory_bytes,
        chips_per_node=described.chips_per_node,
        even_counts_only=described.even_counts_only,
        engine_plugin=None,
        proven=False,
    )


def _is_its_chip(node: Node, pool: ResolvedPool) -> bool:
    """Whether the node's labels agree with the pool's row. A selector decides where they are silent."""
    if pool.pool.description is not None:
        return True  # the owner of the pool says which nodes have the chip
    name, labelled = chip_of_node(node, pool.resource)
    return name == pool.chip.name or (not labelled and bool(pool.pool.node_selector))


def _has_its_memory(node: Node, pool: ResolvedPool) -> bool:
    """Whether the node reports no less memory a chip than plans for the pool count on."""
    reported = _reported_memory(node, pool.resource)
    return reported is None or pool.chip.memory_bytes is None or reported >= _REPORTED_SHARE * pool.chip.memory_bytes


def _reported_memory(node: Node, resource: str) -> int | None:
    label = _MEMORY_LABELS.get(resource)
    matched = _MEMORY_FORM.fullmatch(node.labels.get(label, "")) if label is not None else None
    if matched is None:
        return None
    number, unit = int(matched[1]), (matched[2] or "").upper()[:1]
    if unit == "G" or (not unit and number < _LEAST_PLAIN_MIB):
        return number * GIB
    return number * _MIB


def _tolerates(toleration: Toleration, taint: Taint) -> bool:
    if toleration.effect not in (None, "", taint.effect):
        return False
    if toleration.operator == "Exists":
        return toleration.key in (None, "", taint.key)
    return toleration.key == taint.key and (toleration.value or "") == taint.value
