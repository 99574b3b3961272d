from __future__ import annotations

import base64

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from lionrock.tlog.checkpoint import Checkpoint
from lionrock.tlog.encoding import decode_base64
from lionrock.tlog.note import Ed25519Signer, MalformedNote, UntrustedNote, VerifierKey, open_note, sign_note
from lionrock.tlog.proof import TlogProof

SPEC_KEY = "example.com/foo+530d903a+AekyeRrm56hApGFkyQR4ZCbV54Id2LKaANYcrnKv3U2k"
SPEC_NOTE = (
    "This is an example message.\n\n— example.com/foo "
    "Uw2QOkn8srV1yJGh2VYRlL1Tnagv1YEq6TfXppzi2ONncAlTgK7Ztg1ERYNZXsYjOBH3mFXmRKuwHjG1Yu72IneyaQM=\n"
)
GO_KEY = "PeterNeumann+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW"
GO_TEXT = "If you think cryptography is the answer to your problem,\nthen you don't know what your problem is.\n"
GO_NOTE = (
    GO_TEXT + "\n— PeterNeumann x08go/ZJkuBS9UG/SffcvIAQxVBtiFupLLr8pAcElZInNIuGUgYN1FFYC2pZSNXgKvqfqdngotpRZb6KE6RyyBwJnAM=\n"
)
SUM_KEY = "sum.golang.org+033de0ae+Ac4zctda0e5eza+HJyk9SxEdh+s3Ux18htTTAD8OuAn8"
# RFC 8032, section 7.1, TEST 1: a published key, good for vectors only.
TEST_SEED = bytes.fromhex("9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60")
LOG_NAME = "audit.example.hk/tenant-a"
LOG_KEY = "audit.example.hk/tenant-a+ab008179+AddamAGCsQq31Uv+08lkBzoO4XLz2qYjJa8CGmj3B1Ea"
LOG_TEXT = "audit.example.hk/tenant-a\n8\nXcnaeacGWamtVZy3Ad7ZoqudgjqtL0lgz+Nw7/RgQyg=\n"
LOG_LINE = (
    "— audit.example.hk/tenant-a qwCBeexV+dLoT6UxACAlqVcOs6vJ2bsSHhoPL/xS6ViJNtDQ8md+W+RwxGXu16zGWcO3sRDLKmVe2UxRhfN8Itqq6Q8=\n"
)
WITNESS_LINE = (
    "— witness.example.hk/w1 "
    "9jWGKAAAAABndIWAgEycVAbObpZXojiPRqMzb+Tus01LzBAShNUn4Q648wi8PyhaYNQ8K/bTRG8hBTPrjYqYRWAWf7nG1xgroKGiDQ==\n"
)


@pytest.fixture(scope="module")
def signer() -> Ed25519Signer:
    return Ed25519Signer(LOG_NAME, Ed25519PrivateKey.from_private_bytes(TEST_SEED))


@pytest.mark.parametrize(("key", "note"), [(SPEC_KEY, SPEC_NOTE), (GO_KEY, GO_NOTE)])
def test_published_notes_open(key: str, note: str) -> None:
    assert open_note(note, [VerifierKey.parse(key)]).text == note.rpartition("\n\n")[0] + "\n"


def test_the_published_signer_key_makes_the_published_signature() -> None:
    signer = Ed25519Signer.decode("PRIVATE+KEY+PeterNeumann+c74f20a3+AYEKFALVFGyNhPJEMzD1QIDr+Y7hfZx09iUvxdXHKDFz")
    assert str(signer.verifier_key) == GO_KEY
    assert sign_note(GO_TEXT, signer) == GO_NOTE
    assert Ed25519Signer.decode(signer.encode()).verifier_key == signer.verifier_key


@pytest.mark.parametrize(
    "text", ["", GO_KEY, "PRIVATE+KEY+PeterNeumann+c74f20a4+AYEKFALVFGyNhPJEMzD1QIDr+Y7hfZx09iUvxdXHKDFz", "PRIVATE+KEY+a+b+AA=="]
)
def test_what_is_not_a_signer_key_is_refused(text: str) -> None:
    with pytest.raises(MalformedNote):
        Ed25519Signer.decode(text)


@pytest.mark.parametrize("text", [SPEC_KEY, GO_KEY, SUM_KEY, LOG_KEY])
def test_verifier_keys_survive_parsing(text: str) -> None:
    assert str(VerifierKey.parse(text)) == text


def test_our_checkpoint_has_the_bytes_of_the_vector(signer: Ed25519Signer) -> None:
    root = bytes.fromhex("5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328")
    checkpoint = Checkpoint(LOG_NAME, 8, root)
    assert str(signer.verifier_key) == LOG_KEY
    assert checkpoint.text() == LOG_TEXT
    assert sign_note(checkpoint.text(), signer) == f"{LOG_TEXT}\n{LOG_LINE}"
    assert Checkpoint.parse(LOG_TEXT) == checkpoint


def test_a_witness_beside_the_log_changes_nothing(signer: Ed25519Signer) -> None:
    assert open_note(f"{LOG_TEXT}\n{LOG_LINE}{WITNESS_LINE}", [signer.verifier_key]).text == LOG_TEXT


def test_a_note_is_split_at_its_last_blank_line(signer: Ed25519Signer) -> None:
    text = "Ognuno sta solo sul cuor della terra\n\ned è subito sera.\n"
    assert open_note(sign_note(text, signer), [signer.verifier_key]).text == text


def test_a_known_key_with_a_wrong_signature_rejects_the_note(signer: Ed25519Signer) -> None:
    other = Ed25519Signer("other.example", Ed25519PrivateKey.from_private_bytes(b"\x01" * 32))
    line = sign_note(LOG_TEXT, other).rpartition("\n\n")[2]
    forged = line.replace(line[-12:-8], "AAAA")
    note = f"{LOG_TEXT}\n{LOG_LINE}{forged}"
    assert open_note(note, [signer.verifier_key]).text == LOG_TEXT
    with pytest.raises(UntrustedNote):
        open_note(note, [signer.verifier_key, other.verifier_key])


def test_unknown_signers_alone_are_not_enough(signer: Ed25519Signer) -> None:
    with pytest.raises(UntrustedNote):
        open_note(SPEC_NOTE, [signer.verifier_key])
    with pytest.raises(UntrustedNote):
        open_note(SPEC_NOTE, [])


def test_sixteen_signatures_are_accepted_and_a_flood_is_not(signer: Ed25519Signer) -> None:
    assert open_note(f"{LOG_TEXT}\n{LOG_LINE}{WITNESS_LINE * 15}", [signer.verifier_key]).text == LOG_TEXT
    with pytest.raises(MalformedNote):
        open_note(f"{LOG_TEXT}\n{LOG_LINE}{WITNESS_LINE * 100}", [signer.verifier_key])


@pytest.mark.parametrize(
    "note",
    [
        "",
        "\n",
        "text\n",
        f"{LOG_TEXT}{LOG_LINE}",
        f"{LOG_TEXT}\n{LOG_LINE[:-1]}",
        f"{LOG_TEXT}\n- {LOG_LINE[2:]}",
        f"{LOG_TEXT}\n{LOG_LINE.replace('audit', 'au+dit', 1)}",
        f"{LOG_TEXT}\n{LOG_LINE.replace('=', '')}",
        f"{LOG_TEXT}\n— audit.example.hk/tenant-a qwCBeQ==\n",
        f"{LOG_TEXT}\t\n{LOG_LINE}",
        f"{LOG_TEXT}\ud800\n{LOG_LINE}",
        "x" * 1_000_001,
    ],
)
def test_what_is_not_a_note_is_refused(note: str, signer: Ed25519Signer) -> None:
    with pytest.raises(MalformedNote):
        open_note(note, [signer.verifier_key])


@pytest.mark.parametrize(
    "key",
    [
        "",
        "a+b",
        "+530d903a+AekyeRrm56hApGFkyQR4ZCbV54Id2LKaANYcrnKv3U2k",
        SPEC_KEY.replace("530d", "530e"),
        SPEC_KEY[:-4],
        "a b+530d903a+AekyeRrm56hApGFkyQR4ZCbV54Id2LKaANYcrnKv3U2k",
        "a+530d903a+",
        SPEC_KEY.replace("+Ae", "+Be"),
    ],
)
def test_what_is_not_a_verifier_key_is_refused(key: str) -> None:
    with pytest.raises(MalformedNote):
        VerifierKey.parse(key)


@pytest.mark.parametrize("text", ["no newline", "tab\t\n", "\ud800\n"])
def test_text_that_no_note_can_carry_is_not_signed(text: str, signer: Ed25519Signer) -> None:
    with pytest.raises(MalformedNote):
        sign_note(text, signer)


@pytest.mark.parametrize("name", ["", "with space", "with+plus", "ideographic\u3000space"])
def test_names_that_no_note_can_carry_are_refused(name: str) -> None:
    with pytest.raises(MalformedNote):
        Ed25519Signer(name, Ed25519PrivateKey.generate())


@given(st.binary(max_size=70))
def test_base64_has_one_spelling(value: bytes) -> None:
    text = base64.b64encode(value).decode()
    assert decode_base64(text) == value
    for other in (text + "=", text + "\n", " " + text, text.rstrip("=") if text.endswith("=") else text + "A"):
        with pytest.raises(MalformedNote):
            decode_base64(other)


def test_stray_bits_under_the_padding_are_refused() -> None:
    assert base64.b64decode("AB==") == base64.b64decode("AA==")
    with pytest.raises(MalformedNote):
        decode_base64("AB==")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "a\n",
        "a\n1\n",
        "\n1\n" + LOG_TEXT.split("\n")[2] + "\n",
        LOG_TEXT.replace("\n8\n", "\n08\n"),
        LOG_TEXT.replace("\n8\n", "\n-1\n"),
        LOG_TEXT.replace("\n8\n", "\n٨\n"),
        LOG_TEXT.replace("Xcna", ""),
        LOG_TEXT + "\nx\n",
        LOG_TEXT[:-1],
        LOG_TEXT.replace("8", "9" * 20),
    ],
)
def test_what_is_not_a_checkpoint_is_refused(text: str) -> None:
    with pytest.raises(MalformedNote):
        Checkpoint.parse(text)


def test_extension_lines_of_a_checkpoint_are_allowed() -> None:
    assert Checkpoint.parse(LOG_TEXT + "extension\n").size == 8


def test_a_proof_file_has_the_bytes_of_the_format() -> None:
    proof = TlogProof(b"leaf", 5, [b"\x01" * 32, b"\x02" * 32], f"{LOG_TEXT}\n{LOG_LINE}")
    assert proof.text() == (
        "c2sp.org/tlog-proof@v1\nextra bGVhZg==\nindex 5\n"
        "AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE=\nAgICAgICAgICAgICAgICAgICAgICAgICAgICAgICAgI=\n"
        f"\n{LOG_TEXT}\n{LOG_LINE}"
    )
    assert TlogProof.parse(proof.text()) == proof


@given(st.none() | st.binary(max_size=300), st.integers(0, 2**62), st.lists(st.binary(min_size=32, max_size=32), max_size=63))
def test_proof_files_survive_parsing(leaf: bytes | None, index: int, path: list[bytes]) -> None:
    proof = TlogProof(leaf, index, path, f"{LOG_TEXT}\n{LOG_LINE}")
    assert TlogProof.parse(proof.text()) == proof


@pytest.mark.parametrize(
    "text",
    [
        "",
        "c2sp.org/tlog-proof@v1",
        "c2sp.org/tlog-proof@v2\nindex 0\n\nx",
        "c2sp.org/tlog-proof@v1\n\nx",
        "c2sp.org/tlog-proof@v1\nindex 01\n\nx",
        "c2sp.org/tlog-proof@v1\nindex 0\nAAAA\n\nx",
        "c2sp.org/tlog-proof@v1\nextra !\nindex 0\n\nx",
        "c2sp.org/tlog-proof@v1\nindex 0\n" + "AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE=\n" * 64 + "\nx",
    ],
)
def test_what_is_not_a_proof_file_is_refused(text: str) -> None:
    with pytest.raises(MalformedNote):
        TlogProof.parse(text)
