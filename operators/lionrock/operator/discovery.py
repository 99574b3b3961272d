"""Pools proposed for chips that nodes have and no pool covers.

A proposal is an ordinary ChipPool with the label `lionrock.io/proposed`, which its owner may change or delete. Each is made once:
the caller keeps the names of those made before, so that a deleted one does not come back.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from lionrock.operator.pools import chip_of_node, rows_of
from lionrock.operator.resources import (
    API_VERSION,
    MANAGED_BY,
    MANAGED_BY_LABEL,
    PART_OF,
    PART_OF_LABEL,
    PROPOSED_LABEL,
    NodeName,
    PoolName,
)
from lionrock.operator.world import World
from lionrock.planner.chips import ChipName


@dataclass(frozen=True, slots=True, kw_only=True)
class Proposal:
    """A pool that is missing."""

    name: PoolName
    chip: ChipName
    territory: str
    nodes: tuple[NodeName, ...]
    doubtful: bool
    """Whether labels of a node do not say which of several chips it has; the row with least memory is then taken."""

    @property
    def message(self) -> str:
        """Return why it is proposed, for an event."""
        told = f"{len(self.nodes)} nodes of {self.territory}, {self.nodes[0]} among them, have {self.chip} and no pool"
        return (
            f"{told}; their labels do not say the chip: it is the one with least memory of those it can be"
            if self.doubtful
            else told
        )

    def manifest(self) -> dict[str, Any]:
        """ChipPool to create."""
        return {
            "apiVersion": API_VERSION,
            "kind": "ChipPool",
            "metadata": {
                "name": str(self.name),
                "labels": {PROPOSED_LABEL: "true", PART_OF_LABEL: PART_OF, MANAGED_BY_LABEL: MANAGED_BY},
            },
            "spec": {"chip": str(self.chip), "territory": self.territory},
        }


def proposals(world: World, made_before: Collection[str]) -> list[Proposal]:
    """Pools to propose, by name. made_before: names of those that were proposed once."""
    found: dict[tuple[ChipName, str], list[NodeName]] = {}
    doubtful: set[tuple[ChipName, str]] = set()
    for name in sorted(world.nodes):
        node = world.nodes[name]
        territory = world.rules.territory_of(node) if node.chips else None
        for resource in node.chips if territory is not None else ():
            chip, labelled = chip_of_node(node, resource)
            if chip is None or territory is None or world.is_covered(name, resource):
                continue
            found.setdefault((chip, territory), []).append(name)
            if not labelled and len(rows_of(resource)) > 1:
                doubtful.add((chip, territory))
    several = len(world.rules.territories) > 1
    made = []
    for (chip, territory), nodes in sorted(found.items()):
        pool = PoolName(f"{chip}-{territory.lower()}" if several else str(chip))
        if pool not in world.pools and pool not in made_before:
            made.append(
                Proposal(name=pool, chip=chip, territory=territory, nodes=tuple(nodes), doubtful=(chip, territory) in doubtful)
            )
    return made
