"""The ledger: chips kept for models, by model, node and pool.

What is kept stands in `status.placement` of each model, so the ledger of a restarted operator is the same. `assume` holds what was
decided and is not yet in a status that was seen: until then both count, for a write may fail after it took effect.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Set
from typing import Final, NamedTuple

from lionrock.operator.resources import NodeName, ObjectKey, PoolName, Slot

_NOTHING: Final[Mapping[ObjectKey, tuple[Slot, ...]]] = {}


class Changed(NamedTuple):
    """Nodes on which other chips are kept than before, and pools that a model has come to or left."""

    nodes: frozenset[NodeName]
    pools: frozenset[PoolName]

    def __or__(self, other: object) -> Changed:
        """Return both together."""
        if not isinstance(other, Changed):
            return NotImplemented
        return Changed(self.nodes | other.nodes, self.pools | other.pools)


class Reservations:
    """Slots of all models. Every update returns what changed."""

    def __init__(self) -> None:
        self._observed: dict[ObjectKey, frozenset[Slot]] = {}
        self._assumed: dict[ObjectKey, frozenset[Slot]] = {}
        self._by_node: dict[NodeName, dict[ObjectKey, tuple[Slot, ...]]] = {}
        self._by_pool: dict[PoolName, set[ObjectKey]] = {}

    def of(self, model: ObjectKey) -> frozenset[Slot]:
        """Slots kept for a model, observed and assumed."""
        observed, assumed = self._observed.get(model, frozenset()), self._assumed.get(model)
        return observed if assumed is None else observed | assumed

    def on(self, node: NodeName) -> Mapping[ObjectKey, tuple[Slot, ...]]:
        """Slots on a node, by model."""
        return self._by_node.get(node, _NOTHING)

    def models_in(self, pool: PoolName) -> Set[ObjectKey]:
        """Models that have slots in the pool."""
        return frozenset(self._by_pool.get(pool, ()))

    def nodes(self) -> Iterable[NodeName]:
        """Nodes with slots."""
        return self._by_node.keys()

    def observe(self, model: ObjectKey, slots: Iterable[Slot]) -> Changed:
        """Take what a model's status says. An assumption that it bears out is dropped."""
        before, seen = self.of(model), frozenset(slots)
        if seen:
            self._observed[model] = seen
        else:
            self._observed.pop(model, None)
        if self._assumed.get(model) == seen:
            del self._assumed[model]
        return self._index(model, before)

    def assume(self, model: ObjectKey, slots: Iterable[Slot]) -> Changed:
        """Keep these slots too, until they are observed or withdrawn."""
        before = self.of(model)
        self._assumed[model] = frozenset(slots)
        return self._index(model, before)

    def withdraw(self, model: ObjectKey) -> Changed:
        """Forget what was assumed: its write was refused, or what came back is known."""
        before = self.of(model)
        self._assumed.pop(model, None)
        return self._index(model, before)

    def _index(self, model: ObjectKey, before: frozenset[Slot]) -> Changed:
        after = self.of(model)
        nodes = frozenset(slot.node for slot in before ^ after)
        for node in nodes:
            slots = tuple(sorted(slot for slot in after if slot.node == node))
            if slots:
                self._by_node.setdefault(node, {})[model] = slots
            else:
                self._by_node[node].pop(model, None)
                if not self._by_node[node]:
                    del self._by_node[node]
        left, come = ({slot.pool for slot in slots} for slots in (before, after))
        for pool in come - left:
            self._by_pool.setdefault(pool, set()).add(model)
        for pool in left - come:
            self._by_pool[pool].discard(model)
            if not self._by_pool[pool]:
                del self._by_pool[pool]
        return Changed(nodes, frozenset(left ^ come))
