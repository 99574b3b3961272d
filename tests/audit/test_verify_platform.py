"""The independent verifier on both steps: a leaf in its tenant's checkpoint, that checkpoint in the platform's, cosigned."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.mldsa import MLDSA44PrivateKey
from hypothesis import given, settings
from hypothesis import strategies as st
from rfc6962_reference import audit_path, tree_hash

from lionrock.audit import verify
from lionrock.audit.verify import Reason, VerificationFailed, VerifiedPlatform, verify_platform_proof, verify_receipt
from lionrock.tlog.checkpoint import Checkpoint
from lionrock.tlog.encoding import MalformedNote
from lionrock.tlog.keys import Cosigner, Ed25519Signer, SignatureType, Signer, UntrustedNote, VerifierKey, signer_from_seed
from lionrock.tlog.note import open_note, sign_note
from lionrock.tlog.proof import TlogProof

PLATFORM = "audit.example.hk/audit"
TENANT = f"{PLATFORM}/bank"
LEAVES = [json.dumps({"schema_version": 1, "tenant": "bank", "n": n}).encode() for n in range(7)]
TIME_S = 1_735_689_600


def log_signer(name: str, type_: SignatureType = SignatureType.ED25519, seed: int = 1) -> Signer:
    return signer_from_seed(name, type_, bytes([seed]) * 32)


def cosigner(name: str, *, ml_dsa: bool = False, seed: int = 7, time_s: int = TIME_S) -> Cosigner:
    key = (
        MLDSA44PrivateKey.from_seed_bytes(bytes([seed]) * 32)
        if ml_dsa
        else Ed25519PrivateKey.from_private_bytes(bytes([seed]) * 32)
    )
    return Cosigner(name, key, clock=lambda: time_s)


TENANT_SIGNER, PLATFORM_SIGNER = log_signer(TENANT), log_signer(PLATFORM, seed=2)
WITNESSES = [cosigner("w1.example"), cosigner("w2.example", ml_dsa=True, seed=8), cosigner("w3.example", seed=9)]
KEYS = [str(TENANT_SIGNER.verifier_key), str(PLATFORM_SIGNER.verifier_key)]
WITNESS_KEYS = [str(witness.verifier_key) for witness in WITNESSES]


def proof_in(origin: str, leaves: Sequence[bytes], index: int, *signers: Signer) -> str:
    note = sign_note(Checkpoint(origin, len(leaves), tree_hash(leaves)).text(), *signers)
    return TlogProof(leaves[index], index, audit_path(index, leaves), note).text()


def pair(*witnesses: Signer, tenant: Signer = TENANT_SIGNER, platform: Signer = PLATFORM_SIGNER, at: int = 3) -> tuple[str, str]:
    receipt = proof_in(TENANT, LEAVES, at, tenant)
    checkpoints = [b"another tenant's", receipt.partition("\n\n")[2].encode(), b"a third's"]
    return receipt, proof_in(PLATFORM, checkpoints, 1, platform, *witnesses)


def check(
    receipt: str, platform_proof: str | bytes, threshold: int, keys: Sequence[str] = KEYS, witnesses: Sequence[str] = WITNESS_KEYS
) -> VerifiedPlatform:
    return verify_platform_proof(platform_proof, verify_receipt(receipt, keys), keys, witnesses, threshold)


def reason_of(*arguments: object, **changes: object) -> Reason:
    with pytest.raises(VerificationFailed) as caught:
        check(*arguments, **changes)  # type: ignore[arg-type]
    return caught.value.reason


def test_a_leaf_is_proven_up_to_the_witnesses() -> None:
    receipt, above = pair(*WITNESSES)
    proven = check(receipt, above, 3)
    assert proven.cosigned == {"w1.example": TIME_S, "w2.example": TIME_S, "w3.example": TIME_S}
    assert (proven.origin, proven.leaf_index, proven.tree_size) == (PLATFORM, 1, 3)


@pytest.mark.parametrize("signed_by", range(4))
@pytest.mark.parametrize("threshold", range(5))
def test_a_policy_of_n_of_m_is_met_by_n(signed_by: int, threshold: int) -> None:
    receipt, above = pair(*WITNESSES[:signed_by])
    if signed_by >= threshold:
        assert len(check(receipt, above, threshold).cosigned) == signed_by
    else:
        assert reason_of(receipt, above, threshold) is Reason.WITNESSES_TOO_FEW


def test_strangers_and_second_keys_of_one_witness_do_not_add_up() -> None:
    one, again = cosigner("w1.example"), cosigner("w1.example", ml_dsa=True, seed=3, time_s=TIME_S + 5)
    receipt, above = pair(one, again, cosigner("stranger.example", seed=5))
    keys = [str(one.verifier_key), str(again.verifier_key)]
    assert check(receipt, above, 1, witnesses=keys).cosigned == {"w1.example": TIME_S + 5}
    assert reason_of(receipt, above, 2, witnesses=keys) is Reason.WITNESSES_TOO_FEW


def test_a_cosignature_without_a_time_says_nothing_about_when() -> None:
    witness = cosigner("w.example", time_s=0)
    receipt, above = pair(witness)
    assert reason_of(receipt, above, 1, witnesses=[str(witness.verifier_key)]) is Reason.WITNESSES_TOO_FEW


def test_logs_that_sign_with_ml_dsa_are_verified_too() -> None:
    tenant = log_signer(TENANT, SignatureType.ML_DSA_44_COSIGNATURE)
    platform = log_signer(PLATFORM, SignatureType.ML_DSA_44_COSIGNATURE, seed=2)
    receipt, above = pair(*WITNESSES, tenant=tenant, platform=platform)
    assert check(receipt, above, 3, keys=[str(tenant.verifier_key), str(platform.verifier_key)])


def test_every_wrong_pair_has_its_reason() -> None:
    receipt, above = pair(*WITNESSES)
    other = proof_in(TENANT, [*LEAVES, LEAVES[0]], 3, TENANT_SIGNER)
    assert reason_of(other, above, 3) is Reason.PLATFORM_MISMATCH
    elsewhere = "audit.example.cn/audit"
    checkpoint = receipt.partition("\n\n")[2].encode()
    signer = log_signer(elsewhere)
    foreign = proof_in(elsewhere, [checkpoint], 0, signer, *WITNESSES)
    assert reason_of(receipt, foreign, 3, keys=[*KEYS, str(signer.verifier_key)]) is Reason.PLATFORM_MISMATCH
    assert reason_of(receipt, above, 3, keys=KEYS[:1], witnesses=[]) is Reason.SIGNER_UNKNOWN
    assert reason_of(receipt, above, 3, keys=KEYS[:1]) is Reason.ORIGIN_MISMATCH  # witnesses alone are no log
    assert reason_of(receipt, above, 1, witnesses=[KEYS[1]]) is Reason.KEY_MALFORMED
    assert reason_of(receipt, above, 3, witnesses=["nonsense"]) is Reason.KEY_MALFORMED
    assert reason_of(receipt, above.replace("index 1", "index 0"), 3) is Reason.INCLUSION_INVALID
    assert reason_of(receipt, receipt, 0) is Reason.PLATFORM_MISMATCH
    assert reason_of(receipt, b"\xff", 3) is Reason.RECEIPT_MALFORMED


def test_a_witness_named_like_the_log_does_not_stand_in_for_it() -> None:
    impostor = cosigner(PLATFORM)
    receipt, above = pair(platform=impostor)
    assert reason_of(receipt, above, 1, keys=KEYS[:1], witnesses=[str(impostor.verifier_key)]) is Reason.ORIGIN_MISMATCH


@settings(max_examples=300)
@given(st.data())
def test_no_edit_of_a_platform_proof_goes_unseen(data: st.DataObject) -> None:
    receipt, above = pair(*WITNESSES[:1])
    edited = bytearray(above.encode())
    at = data.draw(st.integers(0, len(edited) - 1))
    match data.draw(st.sampled_from(["flip", "delete", "double", "cut"])):
        case "flip":
            edited[at] ^= data.draw(st.integers(1, 255))
        case "delete":
            del edited[at]
        case "double":
            edited[at:at] = edited[at : at + 1]
        case _:
            del edited[at:]
    if bytes(edited) == above.encode():
        return
    with pytest.raises(VerificationFailed):
        check(receipt, bytes(edited), 1)


@given(st.data(), st.sampled_from([WITNESSES[0], WITNESSES[1], TENANT_SIGNER]))
def test_the_verifier_and_the_writer_agree_on_every_edited_cosigned_note(data: st.DataObject, signer: Signer) -> None:
    note = sign_note(Checkpoint(TENANT, 7, tree_hash(LEAVES)).text(), signer)
    at = data.draw(st.integers(0, len(note) - 1))
    edited = note[:at] + data.draw(st.characters(codec="utf-8")) + note[at + data.draw(st.integers(0, 2)) :]
    key = str(signer.verifier_key)
    try:
        opened: tuple[str, int | None] | None = None
        found = open_note(edited, [VerifierKey.parse(key)])
        opened = (found.text, found.signatures[0].time_s)
    except (MalformedNote, UntrustedNote):
        pass
    try:
        text, signatures = verify._open_note(edited, [verify._parse_key(key)])
        assert opened == (text, signatures[0].time_s)
    except VerificationFailed:
        assert opened is None


def test_the_file_alone_checks_the_pair(tmp_path: Path) -> None:
    script = tmp_path / "verify.py"
    script.write_text(Path(verify.__file__).read_text(encoding="utf-8"), encoding="utf-8")
    receipt, above = pair(*WITNESSES[:2], cosigner("far.example", seed=6, time_s=2**62))
    (tmp_path / "leaf.tlog-proof").write_text(receipt, encoding="utf-8")
    (tmp_path / "platform.tlog-proof").write_text(above, encoding="utf-8")

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-E", str(script), "leaf.tlog-proof", *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path, timeout=60)

    far = str(cosigner("far.example", seed=6).verifier_key)
    proven = run(*KEYS, "--platform-proof", "platform.tlog-proof", "--witness", *WITNESS_KEYS, far, "--threshold", "3")
    assert (proven.returncode, proven.stderr) == (0, "")
    assert f"PROVEN checkpoint 1 of 3 in {PLATFORM}" in proven.stdout
    assert "COSIGNED by w1.example at 2025-01-01T00:00:00+00:00" in proven.stdout
    refused = run(*KEYS, "--platform-proof", "platform.tlog-proof", "--witness", *WITNESS_KEYS)
    assert refused.returncode == 1
    assert "WITNESSES_TOO_FEW" in refused.stderr
    assert run(*KEYS, "--witness", *WITNESS_KEYS).returncode == 2
    assert run(*KEYS, "--platform-proof", "absent").returncode == 2


def test_the_name_of_a_log_signer_is_kept() -> None:
    assert isinstance(TENANT_SIGNER, Ed25519Signer)
