"""Chips of nodes and pools: how many there are, are kept, are taken by others, and are free.

FreeChips finds the best node for a pod among thousands without looking at them; Room tries out placements on top of it. Does not
know models, revisions or why a node counts: `world` keeps it up to date.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Container, Iterable, Iterator, Mapping
from dataclasses import dataclass

from lionrock.operator.resources import NodeName


@dataclass(frozen=True, slots=True)
class NodeChips:
    """Chips of one resource on one node."""

    total: int
    foreign: int
    """Taken by pods of others."""
    kept: int
    """Kept for models or held by their pods, of each revision the greater. May exceed what is there."""

    @property
    def free(self) -> int:
        """What a new slot may take."""
        return max(0, self.total - self.foreign - self.kept)

    @property
    def overcommitted(self) -> int:
        """Chips that are promised and not there."""
        return max(0, self.foreign + self.kept - self.total)

    def without(self, kept: int) -> int:
        """Free chips if so many of the kept ones were given back."""
        return max(0, self.total - self.foreign - self.kept + kept)


NO_CHIPS = NodeChips(0, 0, 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolCapacity:
    """A pool in figures. Chips are those of nodes that take pods."""

    nodes: int = 0
    ready_nodes: int = 0
    total: int = 0
    reserved: int = 0
    foreign: int = 0
    free: int = 0

    def changed(self, before: NodeChips | None, after: NodeChips | None, nodes: int) -> PoolCapacity:
        """Figures after a node's chips went from `before` to `after`; None: it takes no pods. nodes: by how many they grew."""
        plus, minus = after or NO_CHIPS, before or NO_CHIPS
        return PoolCapacity(
            nodes=self.nodes + nodes,
            ready_nodes=self.ready_nodes + (after is not None) - (before is not None),
            total=self.total + plus.total - minus.total,
            reserved=self.reserved + plus.kept - minus.kept,
            foreign=self.foreign + plus.foreign - minus.foreign,
            free=self.free + plus.free - minus.free,
        )


class FreeChips:
    """Free chips of a pool's nodes that take pods, ordered: by count, then by name."""

    def __init__(self) -> None:
        self._free: dict[NodeName, int] = {}
        self._names: dict[int, list[NodeName]] = {}  # sorted, by free chips; no list is empty

    def put(self, node: NodeName, free: int | None) -> None:
        """Note the node's free chips. None: it takes no pods."""
        before = self._free.pop(node, None)
        if before is not None:
            names = self._names[before]
            del names[bisect_left(names, node)]
            if not names:
                del self._names[before]
        if free is not None:
            self._free[node] = free
            insort(self._names.setdefault(free, []), node)

    def of(self, node: NodeName) -> int:
        """Free chips of a node; 0 for one that takes no pods."""
        return self._free.get(node, 0)

    def counts(self) -> Mapping[int, list[NodeName]]:
        """Names of nodes, sorted, by how many chips they have free. Not to be changed."""
        return self._names

    def pods_that_fit(self, chips: int) -> int:
        """How many pods of so many chips have room."""
        return sum(len(names) * (free // chips) for free, names in self._names.items())


class Room:
    """Free chips of a pool with placements tried out on it. The pool itself stays as it is."""

    def __init__(self, free: FreeChips) -> None:
        self._base = free
        self._changed: dict[NodeName, int] = {}

    def copy(self) -> Room:
        """Return another room like this one."""
        other = Room(self._base)
        other._changed = dict(self._changed)
        return other

    def free(self, node: NodeName) -> int:
        """Free chips of a node."""
        return self._changed.get(node, self._base.of(node))

    def put(self, node: NodeName, free: int) -> None:
        """Pretend that the node has so many free."""
        self._changed[node] = free

    def pods_that_fit(self, chips: int) -> int:
        """How many pods of so many chips have room."""
        fit = self._base.pods_that_fit(chips)
        return fit + sum(free // chips - self._base.of(node) // chips for node, free in self._changed.items())

    def take(self, chips: int, avoid: Container[NodeName] = ()) -> NodeName | None:
        """Take chips of the node with the least left over; among equals of one not to avoid; among those of the first by name."""
        for free in sorted({*self._base.counts(), *self._changed.values()}):
            if free < chips:
                continue
            first = None
            for node in self._with(free):
                if node not in avoid:
                    first = node
                    break
                first = first or node
            if first is not None:
                self._changed[first] = free - chips
                return first
        return None

    def take_together(self, chips: int, pods: int, avoid: Container[NodeName] = ()) -> tuple[NodeName, ...] | None:
        """Take chips for all pods of a replica, or nothing. Pods are alike, so taking one after the other finds room if any is."""
        if self.pods_that_fit(chips) < pods:
            return None
        taken = [self.take(chips, avoid) for _ in range(pods)]
        assert None not in taken, "so many pods fit"
        return tuple(node for node in taken if node is not None)

    def largest_first(self, chips: int) -> Iterable[tuple[NodeName, int]]:
        """Nodes that are left, those with most free chips first, then by name."""
        for free in sorted({*self._base.counts(), *self._changed.values()}, reverse=True):
            if free < chips:
                return
            for node in self._with(free):
                yield node, free

    def _with(self, free: int) -> Iterator[NodeName]:
        """Nodes with exactly that many free, by name."""
        tried = sorted(node for node, count in self._changed.items() if count == free)
        base = (node for node in self._base.counts().get(free, ()) if node not in self._changed)
        waiting = next(base, None)
        for node in tried:
            while waiting is not None and waiting < node:
                yield waiting
                waiting = next(base, None)
            yield node
        while waiting is not None:
            yield waiting
            waiting = next(base, None)
