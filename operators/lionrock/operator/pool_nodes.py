"""The nodes of one pool, and how many chips each has free. Kept up to date by `world`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from lionrock.operator.capacity import NO_CHIPS, FreeChips, NodeChips, PoolCapacity
from lionrock.operator.pools import ResolvedPool, belongs, takes_pods
from lionrock.operator.resources import Node, NodeName


class PoolNodes:
    """Membership of nodes in a pool."""

    def __init__(self, pool: ResolvedPool, nodes: Iterable[Node], chips: Mapping[NodeName, Mapping[str, NodeChips]]) -> None:
        self.pool = pool
        self.free = FreeChips()
        self.capacity = PoolCapacity()
        self._takes: dict[NodeName, bool] = {}  # of nodes that belong to the pool
        self._counted: dict[NodeName, NodeChips] = {}  # of nodes that take pods
        for node in nodes:
            if self.join(node.name, node):
                self.count(node.name, chips.get(node.name, {}).get(pool.resource, NO_CHIPS))

    def has(self, node: NodeName) -> bool:
        """Whether the node belongs to the pool."""
        return node in self._takes

    def takes(self, node: NodeName) -> bool:
        """Whether the node belongs to the pool and takes new pods."""
        return self._takes.get(node, False)

    def names(self) -> list[NodeName]:
        """Nodes of the pool, by name."""
        return sorted(self._takes)

    def counted(self) -> Mapping[NodeName, NodeChips]:
        """Chips of the nodes that take pods. Not to be changed."""
        return self._counted

    def join(self, name: NodeName, node: Node | None) -> bool:
        """Take a node in, or out, as its labels and state are now; None: it is gone. Returns whether that changed anything.

        Its chips count from the next call of `count` on.
        """
        before = self._takes.get(name)
        after = takes_pods(node, self.pool) if node is not None and belongs(node, self.pool) else None
        if before == after:
            return False
        if after is None:
            del self._takes[name]
        else:
            self._takes[name] = after
        if not after:
            self.free.put(name, None)
        grown = (after is not None) - (before is not None)
        counted = self._counted.pop(name, None) if not after else self._counted.get(name)
        self.capacity = self.capacity.changed(counted, None if not after else counted, grown)
        return True

    def count(self, name: NodeName, chips: NodeChips) -> bool:
        """Note the chips of a node of the pool. Returns whether they are others than before."""
        before = self._counted.get(name)
        if not self._takes[name] or before == chips:
            return False
        self._counted[name] = chips
        self.free.put(name, chips.free)
        self.capacity = self.capacity.changed(before, chips, 0)
        return True

    def same_nodes(self, pool: ResolvedPool) -> bool:
        """Whether the pool, as it is now, has the same nodes."""
        was, now = self.pool.pool, pool.pool
        return (
            (was.description is None) == (now.description is None)
            and self.pool.chip.name == pool.chip.name
            and self.pool.chip.memory_bytes == pool.chip.memory_bytes
            and (self.pool.resource, self.pool.territory) == (pool.resource, pool.territory)
            and (was.node_selector, was.tolerations) == (now.node_selector, now.tolerations)
        )
