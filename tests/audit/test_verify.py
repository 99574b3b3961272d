from __future__ import annotations

import ast
import base64
import random
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from audit_harness import PLATFORM, intent
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given, settings
from hypothesis import strategies as st

from lionrock.audit import verify
from lionrock.audit.leaf import build_leaf, new_salt
from lionrock.audit.verify import Reason, VerificationFailed, check_opening, verify_receipt
from lionrock.tlog.checkpoint import Checkpoint
from lionrock.tlog.merkle import Frontier, Subtree, inclusion_proof, leaf_hash, where_stored
from lionrock.tlog.note import Ed25519Signer, MalformedNote, UntrustedNote, VerifierKey, open_note, sign_note
from lionrock.tlog.proof import TlogProof

ORIGIN = f"{PLATFORM}/audit/bank"
SIGNER = Ed25519Signer(ORIGIN, Ed25519PrivateKey.from_private_bytes(b"\x07" * 32))
KEY = str(SIGNER.verifier_key)
EVENT = intent(prompt="港元匯率".encode())
SALT = new_salt(EVENT)
LEAF = build_leaf(EVENT, recorded_at_us=1_767_225_600_000_000, salt=SALT)


def receipt(
    leaf: bytes = LEAF,
    *,
    index: int = 5,
    size: int = 11,
    origin: str = ORIGIN,
    signer: Ed25519Signer = SIGNER,
    others: bytes = b"x",
) -> str:
    """A receipt that is right in itself, for any leaf."""
    frontier = Frontier(0, [])
    completed = [frontier.append(leaf_hash(leaf if at == index else others)) for at in range(size)]

    def read(subtrees: Sequence[Subtree]) -> list[bytes]:
        return [completed[where_stored(subtree)][subtree.level] for subtree in subtrees]

    checkpoint = sign_note(Checkpoint(origin, size, frontier.root()).text(), signer)
    return TlogProof(leaf, index, inclusion_proof(index, size, read), checkpoint).text()


GOOD = receipt()


def reason_of(text: str | bytes, keys: Sequence[str] = (KEY,)) -> Reason:
    with pytest.raises(VerificationFailed) as caught:
        verify_receipt(text, keys)
    return caught.value.reason


def test_a_receipt_proves_its_leaf() -> None:
    leaf = verify_receipt(GOOD, [KEY])
    assert leaf.fields["event_id"] == EVENT.event_id
    assert (leaf.data, leaf.leaf_hash, leaf.leaf_index, leaf.tree_size) == (LEAF, leaf_hash(LEAF), 5, 11)
    assert (leaf.origin, list(leaf.signed_by)) == (ORIGIN, [ORIGIN])
    assert verify_receipt(GOOD.encode(), ["example.com/foo+530d903a+AekyeRrm56hApGFkyQR4ZCbV54Id2LKaANYcrnKv3U2k", KEY]) == leaf


@pytest.mark.parametrize("size", [1, 2, 3, 7, 8, 9, 64, 65])
def test_receipts_of_every_position_are_proven(size: int) -> None:
    for index in range(size):
        assert verify_receipt(receipt(index=index, size=size), [KEY]).leaf_index == index


def test_the_opening_of_a_commitment_is_checked() -> None:
    leaf = verify_receipt(GOOD, [KEY])
    check_opening(leaf, "prompt", SALT, EVENT.payloads["prompt"])
    for kind, salt, payload, reason in [
        ("prompt", SALT, b"another", Reason.OPENING_INVALID),
        ("prompt", b"\x00" * 32, EVENT.payloads["prompt"], Reason.OPENING_INVALID),
        ("prompt", b"", b"", Reason.OPENING_INVALID),
        ("answer", SALT, EVENT.payloads["prompt"], Reason.COMMITMENT_ABSENT),
    ]:
        with pytest.raises(VerificationFailed) as caught:
            check_opening(leaf, kind, salt, payload)
        assert caught.value.reason is reason


def test_every_flipped_bit_of_a_receipt_is_found() -> None:
    content = GOOD.encode()
    for at in range(len(content)):
        for bit in range(8):
            flipped = bytearray(content)
            flipped[at] ^= 1 << bit
            with pytest.raises(VerificationFailed):
                verify_receipt(bytes(flipped), [KEY])


def test_random_edits_of_a_receipt_are_found() -> None:
    content, other = GOOD.encode(), receipt(index=6, size=12).encode()
    lines, other_lines = content.split(b"\n"), other.split(b"\n")
    seed = 20_260_101
    chance = random.Random(seed)

    def replayed() -> bytes:
        at = chance.randrange(len(lines))
        return b"\n".join([*lines[:at], chance.choice(other_lines), *lines[at + 1 :]])

    def swapped() -> bytes:
        one, two = sorted(chance.sample(range(len(lines)), 2))
        return b"\n".join([*lines[:one], lines[two], *lines[one + 1 : two], lines[one], *lines[two + 1 :]])

    def truncated() -> bytes:
        return content[: chance.randrange(len(content))]

    def deleted() -> bytes:
        at = chance.randrange(len(lines))
        return b"\n".join([*lines[:at], *lines[at + 1 :]])

    def inserted() -> bytes:
        at = chance.randrange(len(content) + 1)
        return content[:at] + bytes([chance.randrange(256)]) + content[at:]

    edits: list[Callable[[], bytes]] = [replayed, swapped, truncated, deleted, inserted]
    for number in range(4000):
        edited = edits[number % len(edits)]()
        if edited in (content, other):
            continue
        try:
            verify_receipt(edited, [KEY])
        except VerificationFailed:
            continue
        pytest.fail(f"edit {number} of seed {seed} was not found")


@given(st.binary(max_size=400) | st.text(max_size=400))
def test_any_bytes_get_a_reason_and_never_a_traceback(content: bytes | str) -> None:
    with pytest.raises(VerificationFailed):
        verify_receipt(content, [KEY])
    with pytest.raises(VerificationFailed):
        verify_receipt("c2sp.org/tlog-proof@v1\n" + (content if isinstance(content, str) else content.decode("latin-1")), [KEY])
    with pytest.raises(VerificationFailed):
        verify_receipt(GOOD, [content if isinstance(content, str) else content.decode("latin-1")])


@given(st.binary(max_size=300))
@settings(max_examples=200)
def test_any_leaf_that_a_log_signed_is_read_or_refused_with_a_reason(leaf: bytes) -> None:
    try:
        verify_receipt(receipt(leaf), [KEY])
        reason = None
    except VerificationFailed as failure:
        reason = failure.reason
    assert reason in {None, Reason.LEAF_MALFORMED, Reason.SCHEMA_UNKNOWN, Reason.TENANT_MISMATCH}


@pytest.mark.parametrize(
    ("leaf", "reason"),
    [
        (b"", Reason.LEAF_MALFORMED),
        (b"[1]", Reason.LEAF_MALFORMED),
        (b"{}", Reason.LEAF_MALFORMED),
        (b'{"schema_version":true}', Reason.LEAF_MALFORMED),
        (b'{"schema_version":1,"a":1,"a":2}', Reason.LEAF_MALFORMED),
        (b'{"schema_version":1,"a":0.5}', Reason.LEAF_MALFORMED),
        (b'{"schema_version":1,"a":NaN}', Reason.LEAF_MALFORMED),
        (b'{"schema_version":1,"a":' + b"9" * 5000 + b"}", Reason.LEAF_MALFORMED),
        (b'{"a":' * 20_000, Reason.LEAF_MALFORMED),
        (b'\xff{"schema_version":1}', Reason.LEAF_MALFORMED),
        (b'{"schema_version":2,"tenant":"bank"}', Reason.SCHEMA_UNKNOWN),
        (b'{"schema_version":1,"tenant":"broker"}', Reason.TENANT_MISMATCH),
        (b'{"schema_version":1}', Reason.TENANT_MISMATCH),
    ],
)
def test_leaves_that_are_not_audit_leaves_of_this_log(leaf: bytes, reason: Reason) -> None:
    assert reason_of(receipt(leaf)) is reason


def test_each_way_of_failing_has_its_reason() -> None:
    stranger = Ed25519Signer(ORIGIN, Ed25519PrivateKey.from_private_bytes(b"\x08" * 32))
    another_log = Ed25519Signer(f"{PLATFORM}/audit/broker", Ed25519PrivateKey.from_private_bytes(b"\x09" * 32))
    head, blank, checkpoint = GOOD.partition("\n\n")
    lines = head.split("\n")
    root_line = checkpoint.split("\n")[2]
    assert reason_of(GOOD, [str(stranger.verifier_key)]) is Reason.SIGNER_UNKNOWN
    assert reason_of(GOOD, []) is Reason.SIGNER_UNKNOWN
    assert reason_of(receipt(signer=another_log), [str(another_log.verifier_key)]) is Reason.ORIGIN_MISMATCH
    assert reason_of(GOOD.replace("\n11\n", "\n12\n")) is Reason.SIGNATURE_INVALID
    assert reason_of(GOOD.replace(root_line, base64.b64encode(b"r" * 32).decode())) is Reason.SIGNATURE_INVALID
    assert reason_of(GOOD.replace("index 5", "index 4")) is Reason.INCLUSION_INVALID
    assert reason_of(GOOD.replace("index 5", "index 11")) is Reason.INDEX_OUT_OF_RANGE
    assert reason_of("\n".join(lines[:-1]) + blank + checkpoint) is Reason.INCLUSION_INVALID
    assert reason_of("\n".join([lines[0], *lines[2:]]) + blank + checkpoint) is Reason.LEAF_MISSING
    assert reason_of(head + blank + "nothing\n") is Reason.CHECKPOINT_MALFORMED
    assert reason_of("") is Reason.RECEIPT_MALFORMED
    assert reason_of(b"\xff") is Reason.RECEIPT_MALFORMED
    assert reason_of("x" * 2_000_000) is Reason.RECEIPT_MALFORMED
    assert reason_of(GOOD, ["nonsense"]) is Reason.KEY_MALFORMED
    short = sign_note(f"{ORIGIN}\n11\n", SIGNER)
    assert reason_of(head + blank + short) is Reason.CHECKPOINT_MALFORMED
    far = TlogProof(LEAF, 5, [b"\x00" * 32] * 63, checkpoint).text()
    assert reason_of(far) is Reason.INCLUSION_INVALID


def test_a_failure_never_quotes_the_leaf() -> None:
    secret = b'{"schema_version":1,"tenant":"canary-tenant"}'
    with pytest.raises(VerificationFailed) as caught:
        verify_receipt(receipt(secret), [KEY])
    assert "canary" not in str(caught.value)


@given(st.data())
def test_the_verifier_and_the_writer_agree_on_every_edited_note(data: st.DataObject) -> None:
    note = GOOD.partition("\n\n")[2]
    at = data.draw(st.integers(0, len(note) - 1))
    edited = note[:at] + data.draw(st.characters(codec="utf-8")) + note[at + data.draw(st.integers(0, 2)) :]
    try:
        Checkpoint.parse(open_note(edited, [VerifierKey.parse(KEY)]).text)
        opened = True
    except (MalformedNote, UntrustedNote):
        opened = False
    try:
        verify_receipt(GOOD.partition("\n\n")[0] + "\n\n" + edited, [KEY])
        verified = True
    except VerificationFailed:
        verified = False
    assert opened == verified


def test_the_verifier_stands_alone() -> None:
    tree = ast.parse(Path(verify.__file__).read_text(encoding="utf-8"))
    roots = {alias.name.split(".")[0] for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    roots |= {(node.module or "").split(".")[0] for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert roots - set(sys.stdlib_module_names) == {"cryptography"}


def test_the_verifier_runs_as_one_file_outside_of_the_product(tmp_path: Path) -> None:
    script = tmp_path / "verify.py"
    script.write_text(Path(verify.__file__).read_text(encoding="utf-8"), encoding="utf-8")
    good, bad = tmp_path / "good.tlog-proof", tmp_path / "bad.tlog-proof"
    good.write_text(GOOD, encoding="utf-8")
    bad.write_text(GOOD.replace("index 5", "index 6"), encoding="utf-8")

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-E", str(script), *arguments], capture_output=True, text=True, check=False, cwd=tmp_path, timeout=60
        )

    proven = run(str(good), KEY)
    assert (proven.returncode, proven.stderr) == (0, "")
    assert f"PROVEN leaf 5 of 11 in {ORIGIN}" in proven.stdout
    assert run(str(bad), KEY).returncode == 1
    assert "INCLUSION_INVALID" in run(str(bad), KEY).stderr
    assert run(str(tmp_path / "absent"), KEY).returncode == 2
    assert run().returncode == 2
