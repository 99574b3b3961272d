"""The proof vectors of transparency-dev/merkle, positive and negative, against merkle.py and the verifier that regulators get.

merkle_vectors.json says where they come from and how they are encoded. Those of subtrees apply where they are proofs of RFC 6962:
a leaf in a subtree is a leaf in a tree of its own, and a subtree that begins at leaf 0 is an earlier tree. Consistency with the
empty tree proves nothing and is refused, so that the vectors for which an empty subtree is a success do not apply.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from lionrock.audit import verify
from lionrock.tlog.merkle import InvalidProof, verify_consistency, verify_inclusion

VECTORS: dict[str, Any] = json.loads(Path(__file__).with_name("merkle_vectors.json").read_text(encoding="utf-8"))
HASHES = [bytes.fromhex(text) for text in VECTORS["hashes"]]

INCLUSION = [
    *(("inclusion", *case) for case in VECTORS["inclusion"]),
    *(
        ("subtree_inclusion", name, verifies, index - start, end - start, *rest)
        for name, verifies, index, start, end, *rest in VECTORS["subtree_inclusion"]
    ),
]
CONSISTENCY = [
    *(("consistency", *case) for case in VECTORS["consistency"]),
    *(
        ("subtree_consistency", name, verifies, end, size, *rest)
        for name, verifies, start, end, size, *rest in VECTORS["subtree_consistency"]
        if start == 0 and end > 0
    ),
]


def test_all_vectors_are_here() -> None:
    counts = {kind: len(VECTORS[kind]) for kind in VECTORS["columns"]}
    assert counts == {"inclusion": 98, "consistency": 98, "subtree_inclusion": 204, "subtree_consistency": 118}
    assert (len(INCLUSION), len(CONSISTENCY)) == (302, 189)
    assert sum(case[2] for case in INCLUSION) == 18
    assert sum(case[2] for case in CONSISTENCY) == 12


@pytest.mark.parametrize("case", INCLUSION, ids=lambda case: f"{case[0]}/{case[1]}")
def test_inclusion_proofs_verify_as_the_vectors_say(case: Any) -> None:
    _, _, verifies, index, size, leaf, root, proof = case
    path = [HASHES[position] for position in proof]

    def ours() -> bool:
        try:
            verify_inclusion(index, size, HASHES[leaf], path, HASHES[root])
        except InvalidProof:
            return False
        return True

    def regulators() -> bool:
        # What verify_receipt does between reading the proof and reading the leaf; there the leaf's hash is computed, not given.
        try:
            climbs = 0 <= index < size and verify._climb(index, size, HASHES[leaf], path) == HASHES[root]
        except verify.VerificationFailed:
            return False
        return climbs and len(HASHES[leaf]) == 32

    assert (ours(), regulators()) == (verifies, verifies)


@pytest.mark.parametrize("case", CONSISTENCY, ids=lambda case: f"{case[0]}/{case[1]}")
def test_consistency_proofs_verify_as_the_vectors_say(case: Any) -> None:
    _, _, verifies, first, second, first_root, second_root, proof = case
    path = [HASHES[position] for position in proof]
    if verifies:
        verify_consistency(first, second, HASHES[first_root], HASHES[second_root], path)
    else:
        with pytest.raises(InvalidProof):
            verify_consistency(first, second, HASHES[first_root], HASHES[second_root], path)
