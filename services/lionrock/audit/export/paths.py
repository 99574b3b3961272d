"""Inclusion proofs of many leaves against one checkpoint, with about two hashes read and two computed a leaf.

Source: RFC 6962, 2.1.1. Knows: neighbours share almost all of their paths, so what was read and proven for one leaf serves the
next. Does not know: where hashes are kept. What one run of leaves needed is known until the next: memory for some four hashes a
leaf of a run.

A node is named by its level and its index in it; the last one of a level may stand for fewer leaves than the others (`_parts`).
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

from lionrock.audit.failures import StoreFailed
from lionrock.audit.store import StoredLeaf
from lionrock.tlog.merkle import Subtree, leaf_hash, node_hash, subtrees_of


@dataclass(slots=True)
class Paths:
    """Paths to one root, of the tree with `size` leaves: `missing`, then `learn`, then `paths` for each run of leaves."""

    size: int
    root: bytes
    _siblings: dict[Subtree, bytes] = field(default_factory=dict)
    _wanted: dict[Subtree, Sequence[Subtree]] = field(default_factory=dict)
    _proven: dict[Subtree, bytes] = field(default_factory=dict)

    def missing(self, leaves: Sequence[StoredLeaf]) -> list[Subtree]:
        """Say which hashes a run needs that the last one did not."""
        self._wanted = {}
        passed = set()
        for leaf in leaves:
            level, node, last = 0, leaf.index, self.size - 1
            while last > 0 and (level, node) not in passed:
                passed.add((level, node))
                if node ^ 1 <= last:
                    sibling = Subtree(level, node ^ 1)
                    self._wanted[sibling] = self._parts(sibling)
                level, node, last = level + 1, node >> 1, last >> 1
        return [part for sibling, parts in self._wanted.items() if sibling not in self._siblings for part in parts]

    def learn(self, subtrees: Sequence[Subtree], hashes: Sequence[bytes]) -> None:
        """Take what was missing, and forget what the run does not need."""
        read = dict(zip(subtrees, hashes, strict=True))
        known = self._siblings
        self._siblings = {
            sibling: known[sibling] if sibling in known else _fold([read[part] for part in parts])
            for sibling, parts in self._wanted.items()
        }
        self._proven = {
            node: hash_ for node, hash_ in self._proven.items() if Subtree(node.level, node.index ^ 1) in self._siblings
        }

    def paths(self, leaves: Sequence[StoredLeaf]) -> list[list[bytes]]:
        """Path of each leaf, its sibling first. Raises StoreFailed for a leaf that is not in the tree that was signed."""
        return [self._path(leaf) for leaf in leaves]

    def _path(self, leaf: StoredLeaf) -> list[bytes]:
        path = []
        level, node, last = 0, leaf.index, self.size - 1
        climbed: bytes | None = leaf_hash(leaf.data)
        proven, new = self._proven, {}
        while last > 0:
            if climbed is not None:
                known = proven.get(Subtree(level, node))
                if known is not None:
                    self._agree(leaf, climbed, known)
                    climbed = None
                else:
                    new[Subtree(level, node)] = climbed
            if node ^ 1 <= last:
                sibling = self._siblings[Subtree(level, node ^ 1)]
                path.append(sibling)
                if climbed is not None:
                    climbed = node_hash(sibling, climbed) if node & 1 else node_hash(climbed, sibling)
            level, node, last = level + 1, node >> 1, last >> 1
        if climbed is not None:
            self._agree(leaf, climbed, self.root)
        proven.update(new)
        return path

    def _agree(self, leaf: StoredLeaf, climbed: bytes, expected: bytes) -> None:
        if climbed != expected:
            raise StoreFailed(f"leaf {leaf.index} as stored is not in the tree that was signed: restore the store")

    def _parts(self, node: Subtree) -> Sequence[Subtree]:
        """Complete subtrees that a node consists of: itself, but at the tree's right edge."""
        begin, end = node.index << node.level, (node.index + 1) << node.level
        return (node,) if end <= self.size else subtrees_of(begin, self.size)


def _fold(hashes: Sequence[bytes]) -> bytes:
    folded = hashes[-1]
    for left in reversed(hashes[:-1]):
        folded = node_hash(left, folded)
    return folded
