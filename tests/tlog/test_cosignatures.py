from __future__ import annotations

import base64
import contextlib
import struct
from pathlib import Path

import pytest
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.mldsa import MLDSA44PrivateKey, MLDSA44PublicKey
from hypothesis import given
from hypothesis import strategies as st

from lionrock.tlog.checkpoint import Checkpoint
from lionrock.tlog.encoding import MalformedNote
from lionrock.tlog.keys import (
    Cosigner,
    Ed25519Signer,
    SignatureType,
    Signer,
    UntrustedNote,
    VerifierKey,
    decode_signer,
    signer_from_seed,
)
from lionrock.tlog.note import add_signatures, open_note, sign_note, signature_line

# RFC 8032, section 7.1, TEST 1 and TEST 2: published keys, good for vectors only.
LOG_SEED = bytes.fromhex("9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60")
WITNESS_SEED = bytes.fromhex("4ccd089b28ff96da9db6c346ec114e0f5b8a319f35aba624da8cf6ed4fb8a6fb")
TEXT = "audit.example.hk/tenant-a\n8\nXcnaeacGWamtVZy3Ad7ZoqudgjqtL0lgz+Nw7/RgQyg=\n"
LOG_LINE = (
    "— audit.example.hk/tenant-a qwCBeexV+dLoT6UxACAlqVcOs6vJ2bsSHhoPL/xS6ViJNtDQ8md+W+RwxGXu16zGWcO3sRDLKmVe2UxRhfN8Itqq6Q8=\n"
)
LOG_KEY = VerifierKey.parse("audit.example.hk/tenant-a+ab008179+AddamAGCsQq31Uv+08lkBzoO4XLz2qYjJa8CGmj3B1Ea")
WITNESS_KEY = "witness.example.hk/w1+f6358628+BD1AF8PoQ4lakrcKp00bfrycmCzPLsSWjMDNVfEq9GYM"
WITNESS_LINE = (
    "— witness.example.hk/w1 "
    "9jWGKAAAAABndIWAgEycVAbObpZXojiPRqMzb+Tus01LzBAShNUn4Q648wi8PyhaYNQ8K/bTRG8hBTPrjYqYRWAWf7nG1xgroKGiDQ==\n"
)
WITNESS_TIME_S = 1735689600
NOTE = f"{TEXT}\n{LOG_LINE}"
# A checkpoint of a log that is not ours, from the tests of transparency-dev/witness, with its key from that project's list of logs.
FIRMWARE_KEY = "transparency.dev-aw-ftlog-ci-2+f77c6276+AZXqiaARpwF4MoNOxx46kuiIRjrML0PDTm+c7BLaAMt6"
FIRMWARE_NOTE = (
    "transparency.dev/armored-witness/firmware_transparency/ci/2\n56\n7azctENRYLlBCBQ5OX2qxxIKCTOeCda1KfTwjdt0wdA=\n\n"
    "— transparency.dev-aw-ftlog-ci-2 "
    "93xidocoWXVph2jEuzW2oovU+IjU71+FeVGKtKXQknSla2HCvr6RYHRSdJfxpo4kj5geqxkjrDXcbpiSo7lK96X4Dgc=\n"
)


def ed25519_witness() -> Cosigner:
    key = Ed25519PrivateKey.from_private_bytes(WITNESS_SEED)
    return Cosigner("witness.example.hk/w1", key, clock=lambda: WITNESS_TIME_S + 0.9)


def ml_dsa_witness(name: str = "witness.example.hk/w2") -> Cosigner:
    return Cosigner(name, MLDSA44PrivateKey.from_seed_bytes(WITNESS_SEED), clock=lambda: WITNESS_TIME_S)


def test_the_published_cosignature_opens_with_its_time() -> None:
    key = VerifierKey.parse(WITNESS_KEY)
    opened = open_note(NOTE + WITNESS_LINE, [LOG_KEY, key])
    assert opened.text == TEXT
    assert [(signature.key, signature.time_s) for signature in opened.signatures] == [(LOG_KEY, None), (key, WITNESS_TIME_S)]
    assert opened.signatures[1].line == WITNESS_LINE


def test_our_cosignature_has_the_bytes_of_the_vector() -> None:
    witness = ed25519_witness()
    assert str(witness.verifier_key) == WITNESS_KEY
    assert signature_line(TEXT, witness) == WITNESS_LINE


def test_a_checkpoint_of_another_log_opens() -> None:
    opened = open_note(FIRMWARE_NOTE, [VerifierKey.parse(FIRMWARE_KEY)])
    assert Checkpoint.parse(opened.text).size == 56


def test_an_ml_dsa_cosignature_is_over_the_structure_of_the_specification() -> None:
    witness = ml_dsa_witness()
    line = signature_line(TEXT, witness)
    blob = base64.b64decode(line.split(" ")[2])
    assert len(blob) == 4 + 8 + 2420
    key = witness.verifier_key
    assert blob[:4] == key.key_id
    name, origin = b"witness.example.hk/w2", b"audit.example.hk/tenant-a"
    root = base64.b64decode("XcnaeacGWamtVZy3Ad7ZoqudgjqtL0lgz+Nw7/RgQyg=")
    message = b"subtree/v1\n\x00" + bytes([len(name)]) + name + struct.pack(">Q", WITNESS_TIME_S)
    message += bytes([len(origin)]) + origin + struct.pack(">QQ", 0, 8) + root
    MLDSA44PublicKey.from_public_bytes(key.public_key).verify(blob[12:], message)
    assert open_note(NOTE + line, [key]).signatures[0].time_s == WITNESS_TIME_S


def test_what_another_implementation_cosigned_with_ml_dsa_opens() -> None:
    """The note was signed by transparency-dev/formats v0.1.1 (Go, filippo.io/mldsa) with the key of a published seed."""
    key = signer_from_seed("go.example", SignatureType.ML_DSA_44_COSIGNATURE, bytes([5]) * 32).verifier_key
    log_key = signer_from_seed("audit.example.hk/audit", SignatureType.ED25519, bytes([1]) * 32).verifier_key
    note = (Path(__file__).parent / "cosigned_by_formats.note").read_text(encoding="utf-8")
    opened = open_note(note, [log_key, key])
    assert Checkpoint.parse(opened.text) == Checkpoint("audit.example.hk/audit", 8, bytes(range(32)))
    assert [(signature.key, signature.time_s) for signature in opened.signatures] == [(log_key, None), (key, 1795447553)]


def test_an_ml_dsa_cosignature_is_bound_to_the_name_of_its_cosigner() -> None:
    stolen = ml_dsa_witness("other.example").verifier_key
    line = signature_line(TEXT, ml_dsa_witness()).split(" ")
    blob = base64.b64decode(line[2])
    renamed = f"— other.example {base64.b64encode(stolen.key_id + blob[4:]).decode()}\n"
    with pytest.raises(UntrustedNote):
        open_note(NOTE + renamed, [stolen])


def test_a_log_may_sign_with_ml_dsa() -> None:
    signer = signer_from_seed("audit.example.hk/tenant-a", SignatureType.ML_DSA_44_COSIGNATURE, LOG_SEED)
    assert open_note(sign_note(TEXT, signer), [signer.verifier_key]).signed_by(signer.verifier_key)


def test_two_keys_sign_one_note_while_keys_change_over() -> None:
    old = Ed25519Signer("audit.example.hk/tenant-a", Ed25519PrivateKey.from_private_bytes(LOG_SEED))
    new = signer_from_seed("audit.example.hk/tenant-a", SignatureType.ML_DSA_44_COSIGNATURE, WITNESS_SEED)
    note = sign_note(TEXT, old, new)
    for keys in ([old.verifier_key], [new.verifier_key], [old.verifier_key, new.verifier_key]):
        assert [signature.key for signature in open_note(note, keys).signatures] == keys


@pytest.mark.parametrize("type_", list(SignatureType))
def test_signer_keys_survive_encoding(type_: SignatureType) -> None:
    signer = signer_from_seed("a.example/b", type_, LOG_SEED)
    again = decode_signer(signer.encode())
    assert again.verifier_key == signer.verifier_key == VerifierKey.parse(str(signer.verifier_key))
    assert again.encode() == signer.encode()


def test_one_key_under_two_types_has_two_ids() -> None:
    ids = {signer_from_seed("a", type_, LOG_SEED).verifier_key.key_id for type_ in SignatureType}
    assert len(ids) == len(SignatureType)


@pytest.mark.parametrize("make", [ed25519_witness, ml_dsa_witness])
def test_the_time_is_part_of_what_is_cosigned(make: object) -> None:
    witness: Cosigner = make()  # type: ignore[operator]
    line = signature_line(TEXT, witness)
    blob = bytearray(base64.b64decode(line.split(" ")[2]))
    blob[11] ^= 1
    later = f"— {witness.verifier_key.name} {base64.b64encode(blob).decode()}\n"
    with pytest.raises(UntrustedNote):
        open_note(NOTE + later, [LOG_KEY, witness.verifier_key])
    assert open_note(NOTE + later, [LOG_KEY]).text == TEXT


@pytest.mark.parametrize("type_", [SignatureType.ED25519_COSIGNATURE, SignatureType.ML_DSA_44_COSIGNATURE])
def test_a_cosigner_signs_nothing_but_checkpoints(type_: SignatureType) -> None:
    cosigner = signer_from_seed("w.example", type_, WITNESS_SEED)
    for text in ("If you think cryptography is the answer\n", "cosignature/v1\ntime 1\n", "a\n01\nAAAA\n"):
        with pytest.raises(MalformedNote):
            sign_note(text, cosigner)


def test_an_ml_dsa_cosigner_refuses_an_origin_that_does_not_fit() -> None:
    text = Checkpoint("o" * 256, 0, bytes(32)).text()
    with pytest.raises(MalformedNote):
        ml_dsa_witness().sign(text)
    assert ed25519_witness().sign(text)


@pytest.mark.parametrize("time_s", [-1, 2**63])
def test_a_time_out_of_range_is_not_signed(time_s: int) -> None:
    witness = Cosigner("w.example", Ed25519PrivateKey.from_private_bytes(WITNESS_SEED), clock=lambda: time_s)
    with pytest.raises(MalformedNote):
        witness.sign(TEXT)


def test_a_time_out_of_range_is_not_accepted_even_when_signed() -> None:
    private_key = Ed25519PrivateKey.from_private_bytes(WITNESS_SEED)
    key = ed25519_witness().verifier_key
    signature = private_key.sign(f"cosignature/v1\ntime {2**63}\n{TEXT}".encode())
    line = f"— {key.name} {base64.b64encode(key.key_id + struct.pack('>Q', 2**63) + signature).decode()}\n"
    with pytest.raises(UntrustedNote):
        open_note(NOTE + line, [key])


def test_a_plain_signature_is_no_cosignature() -> None:
    private_key = Ed25519PrivateKey.from_private_bytes(WITNESS_SEED)
    key = ed25519_witness().verifier_key
    line = f"— {key.name} {base64.b64encode(key.key_id + private_key.sign(TEXT.encode())).decode()}\n"
    with pytest.raises(UntrustedNote):
        open_note(NOTE + line, [key])


def test_a_signature_that_stands_twice_counts_once() -> None:
    key = VerifierKey.parse(WITNESS_KEY)
    assert len(open_note(add_signatures(NOTE, [WITNESS_LINE, WITNESS_LINE]), [key]).signatures) == 1


@given(st.binary(max_size=2500), st.sampled_from(list(SignatureType)))
def test_no_random_signature_of_a_known_key_is_accepted(blob: bytes, type_: SignatureType) -> None:
    signer: Signer = signer_from_seed("w.example", type_, WITNESS_SEED)
    line = f"— w.example {base64.b64encode(signer.verifier_key.key_id + blob).decode()}\n"
    with pytest.raises((MalformedNote, UntrustedNote)):
        open_note(NOTE + line, [LOG_KEY, signer.verifier_key])


@given(st.data())
def test_no_edit_of_a_cosigned_note_keeps_both_signatures(data: st.DataObject) -> None:
    key = VerifierKey.parse(WITNESS_KEY)
    note = (NOTE + WITNESS_LINE).encode()
    at = data.draw(st.integers(0, len(note) - 1))
    edited = bytearray(note)
    edited[at] ^= data.draw(st.integers(1, 255))
    try:
        opened = open_note(edited.decode(), [LOG_KEY, key])
    except (UnicodeDecodeError, MalformedNote, UntrustedNote):
        return
    assert len(opened.signatures) < 2 or opened.text == TEXT


@given(st.text(max_size=300))
def test_hostile_notes_and_keys_raise_nothing_else(text: str) -> None:
    for read in (
        VerifierKey.parse,
        decode_signer,
        Checkpoint.parse,
        lambda note: open_note(note, [LOG_KEY]),
        lambda keys: open_note(f"{TEXT}\n{keys}", [LOG_KEY, ml_dsa_witness().verifier_key]),
    ):
        with contextlib.suppress(MalformedNote, UntrustedNote):
            read(text)


def test_the_verifier_of_ed25519_is_that_of_rfc_8032() -> None:
    with pytest.raises(InvalidSignature):
        Ed25519PublicKey.from_public_bytes(LOG_KEY.public_key).verify(bytes(64), TEXT.encode())
