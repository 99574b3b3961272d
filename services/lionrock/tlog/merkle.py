"""The Merkle tree of RFC 6962: hashes, proofs, and an append that touches O(log n) of them.

Knows: hashing (section 2.1), inclusion and consistency proofs (2.1.1, 2.1.2), their verification (RFC 9162, 2.1.3.2 and 2.1.4.2).
Does not know: what a leaf says, who signs a root, where hashes are kept.

Everything is expressed in perfect subtrees. `Subtree(level, index)` covers the leaves [index << level, (index + 1) << level);
once its last leaf is appended its hash never changes. A tree of any size is a short list of them, and so is every sibling in
every proof: a proof reads at most 2·log2(n) stored hashes. Leaf i completes the subtrees of the levels 0 … tz(i + 1), one
hash a leaf on average besides its own, so a store keeps them with leaf i and needs no second structure (`where_stored`).
"""

from collections.abc import Callable, Sequence
from hashlib import sha256
from typing import NamedTuple

HASH_BYTES = 32
EMPTY_ROOT = sha256(b"").digest()
"""Root of the tree without leaves."""


class InvalidProof(ValueError):
    """A proof does not prove what it was given for; the message says which check failed."""


class Subtree(NamedTuple):
    """A perfect subtree: 2**level leaves from index << level on."""

    level: int
    index: int  # type: ignore[assignment]  # shadows tuple.index, which nothing here calls


ReadSubtrees = Callable[[Sequence[Subtree]], Sequence[bytes]]
"""Returns the hash of each subtree asked for, in that order. All of them are complete."""


def leaf_hash(data: bytes) -> bytes:
    """SHA-256(0x00 || data)."""
    return sha256(b"\x00" + data).digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    """SHA-256(0x01 || left || right)."""
    return sha256(b"\x01" + left + right).digest()


def where_stored(subtree: Subtree) -> int:
    """Index of the leaf whose append completes the subtree.

    Its hash is the `subtree.level`-th of those that `Frontier.append` returned then.
    """
    return ((subtree.index + 1) << subtree.level) - 1


class Frontier:
    """The right edge of a tree: its size, and the hashes of the largest perfect subtrees that it consists of, left to right."""

    __slots__ = ("_hashes", "size")

    def __init__(self, size: int, hashes: Sequence[bytes]) -> None:
        """Stand where a tree of `size` leaves ends; `hashes` are those of `subtrees_of(0, size)`."""
        if len(hashes) != size.bit_count():
            raise ValueError(f"a tree of {size} leaves has {size.bit_count()} subtrees on its edge, not {len(hashes)}")
        self.size = size
        self._hashes = list(hashes)

    def copy(self) -> "Frontier":
        """Return an independent frontier at the same place."""
        return Frontier(self.size, self._hashes)

    def append(self, hash_of_leaf: bytes) -> list[bytes]:
        """Add a leaf. Returns the hashes of the subtrees that it completes, level 0 (the leaf) first."""
        completed = [hash_of_leaf]
        above = self.size
        while above & 1:
            completed.append(node_hash(self._hashes.pop(), completed[-1]))
            above >>= 1
        self._hashes.append(completed[-1])
        self.size += 1
        return completed

    def subtrees(self) -> dict[Subtree, bytes]:
        """Return the edge by subtree."""
        return dict(zip(subtrees_of(0, self.size), self._hashes, strict=True))

    def root(self) -> bytes:
        """Root of the tree that ends here."""
        return _fold(self._hashes) if self._hashes else EMPTY_ROOT


def subtrees_of(begin: int, end: int) -> list[Subtree]:
    """Split the leaves [begin, end) into the fewest perfect subtrees, left to right."""
    parts = []
    while begin < end:
        level = (end - begin).bit_length() - 1
        if begin:
            level = min(level, (begin & -begin).bit_length() - 1)
        parts.append(Subtree(level, begin >> level))
        begin += 1 << level
    return parts


def root_at(size: int, read: ReadSubtrees) -> bytes:
    """Root of the first `size` leaves."""
    return _fold(read(subtrees_of(0, size))) if size else EMPTY_ROOT


def inclusion_proof(index: int, size: int, read: ReadSubtrees) -> list[bytes]:
    """Prove that leaf `index` is in the tree of `size` leaves (RFC 6962, 2.1.1).

    The proof is one hash a level, the leaf's sibling first. Raises ValueError outside of 0 ≤ index < size.
    """
    if not 0 <= index < size:
        raise ValueError(f"leaf {index} is not in a tree of {size} leaves")
    wanted: list[Subtree] = []
    edge: slice | None = None
    node, last, level = index, size - 1, 0
    while last:
        if node & 1:
            wanted.append(Subtree(level, node - 1))
        elif node < last:
            if (node + 2) << level <= size:
                wanted.append(Subtree(level, node + 1))
            else:  # the sibling is what the tree ends with, and no perfect subtree; no other sibling can be
                parts = subtrees_of((node + 1) << level, size)
                edge = slice(len(wanted), len(wanted) + len(parts))
                wanted.extend(parts)
        node, last, level = node >> 1, last >> 1, level + 1
    hashes = list(read(wanted))
    if edge is not None:
        hashes[edge] = [_fold(hashes[edge])]
    return hashes


def consistency_proof(first: int, second: int, read: ReadSubtrees) -> list[bytes]:
    """Prove that the tree of `first` leaves is a prefix of that of `second` (RFC 6962, 2.1.2).

    Raises ValueError outside of 1 ≤ first ≤ second.
    """
    if not 1 <= first <= second:
        raise ValueError(f"no proof leads from {first} leaves to {second}")
    ranges: list[tuple[int, int]] = []
    begin, end = 0, second
    while first != end:
        split = begin + _largest_power_below(end - begin)
        if first <= split:
            ranges.append((split, end))
            end = split
        else:
            ranges.append((begin, split))
            begin = split
    if begin:
        ranges.append((begin, end))  # otherwise it is the earlier root, which the verifier has
    return _hash_ranges(ranges[::-1], read)


def verify_inclusion(index: int, size: int, hash_of_leaf: bytes, proof: Sequence[bytes], root: bytes) -> None:
    """Check that `proof` leads from the leaf to `root` (RFC 9162, 2.1.3.2). Raises InvalidProof."""
    if not 0 <= index < size:
        raise InvalidProof(f"leaf {index} is not in a tree of {size} leaves")
    if len(hash_of_leaf) != HASH_BYTES:
        raise InvalidProof(f"the hash of the leaf has {len(hash_of_leaf)} bytes, not {HASH_BYTES}")
    node, last, climbed = index, size - 1, hash_of_leaf
    for sibling in proof:
        if last == 0:
            raise InvalidProof("the proof is longer than the path to the root")
        if node & 1 or node == last:
            climbed = node_hash(sibling, climbed)
            while not node & 1 and node:
                node, last = node >> 1, last >> 1
        else:
            climbed = node_hash(climbed, sibling)
        node, last = node >> 1, last >> 1
    if last != 0:
        raise InvalidProof("the proof ends below the root")
    if climbed != root:
        raise InvalidProof("the proof leads to another root")


def verify_consistency(first: int, second: int, first_root: bytes, second_root: bytes, proof: Sequence[bytes]) -> None:
    """Check that the tree with `first_root` is a prefix of the one with `second_root` (RFC 9162, 2.1.4.2).

    Raises InvalidProof, also for first = 0.
    """
    if not 1 <= first <= second:
        raise InvalidProof(f"no proof leads from {first} leaves to {second}")
    if first == second:
        if proof or first_root != second_root:
            raise InvalidProof("trees of one size have one root and need no proof")
        return
    path = [first_root, *proof] if first & (first - 1) == 0 else list(proof)
    if not path:
        raise InvalidProof("the proof is empty")
    node, last = first - 1, second - 1
    while node & 1:
        node, last = node >> 1, last >> 1
    earlier = later = path[0]
    for sibling in path[1:]:
        if last == 0:
            raise InvalidProof("the proof is longer than the path to the root")
        if node & 1 or node == last:
            earlier, later = node_hash(sibling, earlier), node_hash(sibling, later)
            while not node & 1 and node:
                node, last = node >> 1, last >> 1
        else:
            later = node_hash(later, sibling)
        node, last = node >> 1, last >> 1
    if last != 0:
        raise InvalidProof("the proof ends below the root")
    if earlier != first_root:
        raise InvalidProof("the proof does not contain the earlier tree")
    if later != second_root:
        raise InvalidProof("the proof leads to another later root")


def _largest_power_below(count: int) -> int:
    return 1 << (count - 1).bit_length() - 1


def _fold(hashes: Sequence[bytes]) -> bytes:
    """Hash of adjacent perfect subtrees of falling size, as one RFC 6962 tree."""
    folded = hashes[-1]
    for left in reversed(hashes[:-1]):
        folded = node_hash(left, folded)
    return folded


def _hash_ranges(ranges: Sequence[tuple[int, int]], read: ReadSubtrees) -> list[bytes]:
    """Hash of each range of leaves, with one read for all."""
    parts = [subtrees_of(begin, end) for begin, end in ranges]
    hashes = iter(read([subtree for part in parts for subtree in part]))
    return [_fold([next(hashes) for _ in part]) for part in parts]
