"""Inclusion proofs of many leaves against one checkpoint, reading each stored hash about once.

Knows: neighbours share almost all of their paths. Does not know: where hashes are kept. What one run of leaves needed is known
until the next: memory for some two hashes a leaf of a run.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

from lionrock.audit.failures import StoreFailed
from lionrock.audit.store import StoredLeaf
from lionrock.tlog.merkle import HASH_BYTES, InvalidProof, Subtree, inclusion_proof, leaf_hash, verify_inclusion


@dataclass(slots=True)
class Paths:
    """Paths to one root, of the tree with `size` leaves: `missing`, then `learn`, then `paths` for each run of leaves."""

    size: int
    root: bytes
    _wanted: dict[Subtree, None] = field(default_factory=dict)
    _known: dict[Subtree, bytes] = field(default_factory=dict)

    def missing(self, leaves: Sequence[StoredLeaf]) -> list[Subtree]:
        """Say which hashes a run needs that the last one did not."""
        wanted: dict[Subtree, None] = {}

        def note(subtrees: Sequence[Subtree]) -> list[bytes]:
            wanted.update(dict.fromkeys(subtrees))
            return [bytes(HASH_BYTES)] * len(subtrees)

        for leaf in leaves:
            inclusion_proof(leaf.index, self.size, note)
        self._wanted = wanted
        return [subtree for subtree in wanted if subtree not in self._known]

    def learn(self, subtrees: Sequence[Subtree], hashes: Sequence[bytes]) -> None:
        """Take what was missing, and forget what the run does not need."""
        self._known = {subtree: self._known[subtree] for subtree in self._wanted if subtree in self._known}
        self._known.update(zip(subtrees, hashes, strict=True))

    def paths(self, leaves: Sequence[StoredLeaf]) -> list[list[bytes]]:
        """Path of each leaf, its sibling first. Raises StoreFailed for a leaf that is not in the tree that was signed."""
        return [self._path(leaf) for leaf in leaves]

    def _path(self, leaf: StoredLeaf) -> list[bytes]:
        path = inclusion_proof(leaf.index, self.size, lambda subtrees: [self._known[subtree] for subtree in subtrees])
        try:
            verify_inclusion(leaf.index, self.size, leaf_hash(leaf.data), path, self.root)
        except InvalidProof as error:
            why = f"leaf {leaf.index} as stored is not in the tree that was signed ({error}): restore the store"
            raise StoreFailed(why) from error
        return path
