"""Inclusion proofs of many leaves against one checkpoint, reading each stored hash about once.

Knows: neighbours share almost all of their paths. Does not know: where hashes are kept. What is read for one run of leaves is
kept until the next: memory for twice the hashes that a run needs.
"""

from collections.abc import Sequence

from lionrock.audit.failures import StoreFailed
from lionrock.audit.store import StoredLeaf
from lionrock.tlog.merkle import HASH_BYTES, InvalidProof, ReadSubtrees, Subtree, inclusion_proof, leaf_hash, verify_inclusion


class PathReader:
    """Paths of leaves to one root."""

    def __init__(self, size: int, root: bytes, read: ReadSubtrees) -> None:
        """Prove against the tree of `size` leaves with this root."""
        self._size = size
        self._root = root
        self._read = read
        self._known: dict[Subtree, bytes] = {}

    def paths(self, leaves: Sequence[StoredLeaf]) -> list[list[bytes]]:
        """Path of each leaf, its sibling first. Raises StoreFailed for a leaf that is not in the tree that was signed."""
        wanted: dict[Subtree, None] = {}

        def note(subtrees: Sequence[Subtree]) -> list[bytes]:
            wanted.update(dict.fromkeys(subtrees))
            return [bytes(HASH_BYTES)] * len(subtrees)

        for leaf in leaves:
            inclusion_proof(leaf.index, self._size, note)
        missing = [subtree for subtree in wanted if subtree not in self._known]
        known = {subtree: self._known[subtree] for subtree in wanted if subtree in self._known}
        if missing:
            known.update(zip(missing, self._read(missing), strict=True))
        self._known = known
        return [self._path(leaf) for leaf in leaves]

    def _path(self, leaf: StoredLeaf) -> list[bytes]:
        path = inclusion_proof(leaf.index, self._size, lambda subtrees: [self._known[subtree] for subtree in subtrees])
        try:
            verify_inclusion(leaf.index, self._size, leaf_hash(leaf.data), path, self._root)
        except InvalidProof as error:
            why = f"leaf {leaf.index} as stored is not in the tree that was signed ({error}): restore the store"
            raise StoreFailed(why) from error
        return path
