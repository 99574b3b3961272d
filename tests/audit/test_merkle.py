from __future__ import annotations

from collections.abc import Sequence

import pytest
import rfc6962_reference as reference
from hypothesis import given
from hypothesis import strategies as st

from lionrock.tlog.merkle import (
    EMPTY_ROOT,
    Frontier,
    InvalidProof,
    Subtree,
    consistency_proof,
    inclusion_proof,
    leaf_hash,
    node_hash,
    root_at,
    subtrees_of,
    verify_consistency,
    verify_inclusion,
    where_stored,
)

LEAVES = [
    bytes.fromhex(text)
    for text in ("", "00", "10", "2021", "3031", "40414243", "5051525354555657", "606162636465666768696a6b6c6d6e6f")
]
ROOTS = [
    "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
    "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
    "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
    "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
    "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
    "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
    "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
    "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
]
LEAF_HASHES = [
    ROOTS[1],
    "96a296d224f285c67bee93c30f8a309157f0daa35dc5b87e410b78630a09cfc7",
    "0298d122906dcfc10892cb53a73992fc5b9f493ea4c9badb27b791b4127a7fe7",
    "07506a85fd9dd2f120eb694f86011e5bb4662e5c415a62917033d4a9624487e7",
    "bc1a0643b12e4d2d7c77918f44e0f4f79a838b6cf9ec5b5c283e1f4d88599e6b",
    "4271a26be0d8a84f0bd54c8c302e7cb3a3b5d1fa6780a40bcce2873477dab658",
    "b08693ec2e721597130641e8211e7eedccb4c26413963eee6c1e2ed16ffb1a5f",
    "46f6ffadd3d06a09ff3c5860d2755c8b9819db7df44251788c7d8e3180de8eb1",
]
NODE_0_1 = ROOTS[2]
NODE_2_3 = "5f083f0a1a33ca076a95279832580db3e0ef4584bdff1f54c8a360f50de3031e"
NODE_4_7 = "6b47aaf29ee3c2af9af889bc1fb9254dabd31177f16232dd6aab035ca39bf6e4"
NODE_6_7 = "ca854ea128ed050b41b35ffc1b87b8eb2bde461e9e3b5596ece6b9d5975a0ae0"
NODE_4_5 = "0ebc5d3437fbe2db158b9f126a1d118e308181031d0a949f8dededebc558ef6a"


class StoredTree:
    """Hashes kept with the leaf that completes them, as a store does."""

    def __init__(self, leaves: Sequence[bytes]) -> None:
        self.frontier = Frontier(0, [])
        self.completed = [self.frontier.append(leaf_hash(leaf)) for leaf in leaves]
        self.reads = 0

    def read(self, subtrees: Sequence[Subtree]) -> list[bytes]:
        self.reads += len(subtrees)
        return [self.completed[where_stored(subtree)][subtree.level] for subtree in subtrees]


@pytest.fixture(scope="module")
def tree() -> StoredTree:
    return StoredTree(LEAVES)


@pytest.mark.parametrize("size", range(9))
def test_published_roots_of_every_size(size: int, tree: StoredTree) -> None:
    assert StoredTree(LEAVES[:size]).frontier.root().hex() == ROOTS[size]
    assert root_at(size, tree.read).hex() == ROOTS[size]


def test_published_leaf_and_node_hashes() -> None:
    assert [leaf_hash(leaf).hex() for leaf in LEAVES] == LEAF_HASHES
    assert leaf_hash(b"L123456").hex() == "395aa064aa4c29f7010acfe3f25db9485bbd4b91897b6ad7ad547639252b4d56"
    assert node_hash(b"N123", b"N456").hex() == "aa217fe888e47007fa15edab33c2b492a722cb106c64667fc2b044444de66bbb"
    assert EMPTY_ROOT.hex() == ROOTS[0]


@pytest.mark.parametrize(
    ("index", "size", "path"),
    [
        (5, 8, [LEAF_HASHES[4], NODE_6_7, ROOTS[4]]),
        (0, 8, [LEAF_HASHES[1], NODE_2_3, NODE_4_7]),
        (2, 3, [NODE_0_1]),
        (1, 5, [LEAF_HASHES[0], NODE_2_3, LEAF_HASHES[4]]),
    ],
)
def test_published_inclusion_proofs(index: int, size: int, path: list[str], tree: StoredTree) -> None:
    assert [step.hex() for step in inclusion_proof(index, size, tree.read)] == path


@pytest.mark.parametrize(
    ("first", "second", "path"),
    [
        (1, 8, [LEAF_HASHES[1], NODE_2_3, NODE_4_7]),
        (6, 8, [NODE_4_5, NODE_6_7, ROOTS[4]]),
        (2, 5, [NODE_2_3, LEAF_HASHES[4]]),
    ],
)
def test_published_consistency_proofs(first: int, second: int, path: list[str], tree: StoredTree) -> None:
    assert [step.hex() for step in consistency_proof(first, second, tree.read)] == path


def test_every_proof_up_to_seventy_leaves_equals_the_literal_reference() -> None:
    leaves = [index.to_bytes(2, "big") for index in range(70)]
    tree = StoredTree(leaves)
    for size in range(1, len(leaves) + 1):
        root = root_at(size, tree.read)
        assert root == reference.tree_hash(leaves[:size])
        for index in range(size):
            path = inclusion_proof(index, size, tree.read)
            assert path == reference.audit_path(index, leaves[:size])
            verify_inclusion(index, size, leaf_hash(leaves[index]), path, root)
    for second in range(1, len(leaves) + 1, 3):
        for first in range(1, second + 1):
            path = consistency_proof(first, second, tree.read)
            assert path == reference.consistency(first, leaves[:second])
            verify_consistency(first, second, root_at(first, tree.read), root_at(second, tree.read), path)


@given(st.integers(1, 400), st.data())
def test_a_frontier_resumed_from_stored_hashes_goes_on_as_if_it_had_never_stopped(size: int, data: st.DataObject) -> None:
    leaves = [index.to_bytes(2, "big") for index in range(size)]
    stop = data.draw(st.integers(0, size))
    whole, part = StoredTree(leaves), StoredTree(leaves[:stop])
    resumed = Frontier(stop, part.read(subtrees_of(0, stop)))
    assert resumed.subtrees() == dict(zip(subtrees_of(0, stop), part.read(subtrees_of(0, stop)), strict=True))
    for leaf in leaves[stop:]:
        resumed.append(leaf_hash(leaf))
    assert (resumed.size, resumed.root()) == (size, whole.frontier.root())


@given(st.integers(1, 600), st.data())
def test_an_altered_proof_is_never_accepted(size: int, data: st.DataObject) -> None:
    leaves = [index.to_bytes(2, "big") for index in range(size)]
    tree = StoredTree(leaves)
    index = data.draw(st.integers(0, size - 1))
    path, root, leaf = inclusion_proof(index, size, tree.read), tree.frontier.root(), leaf_hash(leaves[index])
    altered_path, altered_index, altered_leaf = list(path), index, leaf
    kind = data.draw(st.sampled_from(["flip", "drop", "add", "index", "leaf"]))
    if kind == "flip" and path:
        at = data.draw(st.integers(0, len(path) - 1))
        altered_path[at] = bytes([path[at][0] ^ 1]) + path[at][1:]
    elif kind == "drop" and path:
        del altered_path[data.draw(st.integers(0, len(path) - 1))]
    elif kind == "add":
        altered_path.append(b"\x00" * 32)
    elif kind == "index" and size > 1:
        altered_index = data.draw(st.integers(0, size - 1).filter(lambda other: other != index))
    else:
        altered_leaf = leaf_hash(b"another")
    with pytest.raises(InvalidProof):
        verify_inclusion(altered_index, size, altered_leaf, altered_path, root)


@given(st.integers(2, 300), st.data())
def test_another_history_has_no_consistency_proof(size: int, data: st.DataObject) -> None:
    leaves = [index.to_bytes(2, "big") for index in range(size)]
    tree = StoredTree(leaves)
    first = data.draw(st.integers(1, size - 1))
    path = consistency_proof(first, size, tree.read)
    forked = reference.tree_hash([*leaves[: first - 1], b"rewritten"])
    with pytest.raises(InvalidProof):
        verify_consistency(first, size, forked, tree.frontier.root(), path)
    with pytest.raises(InvalidProof):
        verify_consistency(first, size, root_at(first, tree.read), b"\x01" * 32, path)


@pytest.mark.parametrize(("first", "second"), [(0, 0), (0, 5), (6, 5), (-1, 2)])
def test_sizes_without_a_proof_are_errors(first: int, second: int, tree: StoredTree) -> None:
    with pytest.raises(InvalidProof):
        verify_consistency(first, second, EMPTY_ROOT, EMPTY_ROOT, [])
    with pytest.raises(ValueError, match="no proof leads"):
        consistency_proof(first, second, tree.read)


@pytest.mark.parametrize(("index", "size"), [(0, 0), (5, 5), (-1, 5)])
def test_leaves_outside_of_the_tree_have_no_proof(index: int, size: int, tree: StoredTree) -> None:
    with pytest.raises(InvalidProof):
        verify_inclusion(index, size, EMPTY_ROOT, [], EMPTY_ROOT)
    with pytest.raises(ValueError, match="is not in a tree"):
        inclusion_proof(index, size, tree.read)


def test_trees_of_one_size_are_consistent_only_under_one_root() -> None:
    verify_consistency(3, 3, b"r" * 32, b"r" * 32, [])
    for second_root, path in [(b"s" * 32, []), (b"r" * 32, [b"p" * 32])]:
        with pytest.raises(InvalidProof):
            verify_consistency(3, 3, b"r" * 32, second_root, path)


@given(st.integers(1, 2**40), st.data())
def test_a_proof_in_a_huge_tree_reads_a_logarithm_of_hashes(size: int, data: st.DataObject) -> None:
    index = data.draw(st.integers(0, size - 1))
    asked: list[Subtree] = []

    def read(subtrees: Sequence[Subtree]) -> list[bytes]:
        asked.extend(subtrees)
        return [b"\x00" * 32] * len(subtrees)

    assert len(inclusion_proof(index, size, read)) <= size.bit_length()
    assert len(asked) <= 2 * size.bit_length()
    assert all(where_stored(subtree) < size for subtree in asked)


def test_a_frontier_needs_the_hashes_of_its_size() -> None:
    with pytest.raises(ValueError, match="subtrees on its edge"):
        Frontier(3, [b"\x00" * 32])
