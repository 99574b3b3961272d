"""Verifies a receipt offline: one file, standard library and `cryptography`, no other part of this product.

    python verify.py RECEIPT.tlog-proof 'lionrock.local/audit/bank+1f2e3d4c+AZ…'

It shares no code with the log that wrote the receipt, so a mistake there is not repeated here. It checks, in this order:

    1. the text is a tlog-proof whose extra data is the leaf                  c2sp.org/tlog-proof, version 1
    2. a key that you trust signed the checkpoint                             c2sp.org/signed-note, c2sp.org/tlog-checkpoint
    3. SHA-256(0x00 || leaf) leads to the checkpoint's root                   RFC 9162, section 2.1.3.2
    4. the leaf is a JSON object without duplicate keys or fractions, and its tenant is the one that the log's origin names

Signatures by keys that you did not give (a witness, say) are ignored, as the format demands. Every failure is a
`VerificationFailed` with one `Reason`, whatever the bytes are.
"""

import base64
import hmac
import json
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from hashlib import sha256
from pathlib import Path
from typing import Any, NoReturn

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

RECEIPT_MAX_CHARS = 1_000_000
_HEADER = "c2sp.org/tlog-proof@v1"
_DECIMAL = re.compile(r"(0|[1-9][0-9]{0,18})", re.ASCII)
_ED25519 = 0x01
_SCHEMA_VERSIONS = frozenset({1})
_SIGNATURES_MAX = 64
_PATH_MAX = 63


class Reason(Enum):
    """Why a receipt, a key or an opening is not accepted."""

    KEY_MALFORMED = "a verifier key is not one"
    RECEIPT_MALFORMED = "the receipt is not a tlog-proof file"
    LEAF_MISSING = "the receipt has no leaf in it"
    CHECKPOINT_MALFORMED = "the checkpoint in the receipt is not one"
    SIGNER_UNKNOWN = "none of the given keys signed the checkpoint"
    SIGNATURE_INVALID = "the signature of a given key is wrong"
    ORIGIN_MISMATCH = "the key that signed belongs to another log"
    INDEX_OUT_OF_RANGE = "the leaf's index is not below the checkpoint's size"
    INCLUSION_INVALID = "the leaf is not in the tree that was signed"
    LEAF_MALFORMED = "the leaf is not an audit leaf"
    SCHEMA_UNKNOWN = "the leaf has a schema version that this program does not know"
    TENANT_MISMATCH = "the leaf belongs to another tenant than the log"
    COMMITMENT_ABSENT = "the leaf commits to nothing of this kind"
    OPENING_INVALID = "salt and payload do not open the commitment"


class VerificationFailed(Exception):
    """What was given does not prove anything. `reason` is for programs, `detail` for people; neither quotes the leaf."""

    def __init__(self, reason: Reason, detail: str = "") -> None:
        super().__init__(f"{reason.value}: {detail}" if detail else reason.value)
        self.reason = reason
        self.detail = detail


@dataclass(frozen=True, slots=True)
class VerifiedLeaf:
    """A leaf that the log's signer has committed to. Only `verify_receipt` makes one."""

    fields: Mapping[str, Any]
    """The parsed leaf."""
    data: bytes
    """The leaf as it was hashed."""
    leaf_hash: bytes
    leaf_index: int
    origin: str
    tree_size: int
    root: bytes
    signed_by: Sequence[str]
    """Names of the given keys whose signatures are on the checkpoint."""


@dataclass(frozen=True, slots=True)
class _Key:
    name: str
    key_id: bytes
    public_key: Ed25519PublicKey


def verify_receipt(text: str | bytes, verifier_keys: Sequence[str]) -> VerifiedLeaf:
    """Check a receipt against verifier keys that you got from somewhere you trust. Raises VerificationFailed."""
    keys = [_parse_key(key) for key in verifier_keys]
    if isinstance(text, bytes):
        try:
            text = text.decode("utf-8")
        except UnicodeDecodeError:
            _fail(Reason.RECEIPT_MALFORMED, "not UTF-8")
    if len(text) > RECEIPT_MAX_CHARS:
        _fail(Reason.RECEIPT_MALFORMED, f"more than {RECEIPT_MAX_CHARS} characters")
    leaf, index, path, note = _parse_proof(text)
    body, signed_by = _open_note(note, keys)
    origin, size, root = _parse_checkpoint(body)
    if origin not in signed_by:
        _fail(Reason.ORIGIN_MISMATCH, "the origin line names another log than the key does")
    if index >= size:
        _fail(Reason.INDEX_OUT_OF_RANGE, f"index {index}, size {size}")
    hash_of_leaf = sha256(b"\x00" + leaf).digest()
    if _climb(index, size, hash_of_leaf, path) != root:
        _fail(Reason.INCLUSION_INVALID, "the path leads to another root")
    fields = _parse_leaf(leaf)
    if origin.rpartition("/")[2] != fields.get("tenant"):
        _fail(Reason.TENANT_MISMATCH, "the origin ends in another tenant")
    return VerifiedLeaf(fields, leaf, hash_of_leaf, index, origin, size, root, signed_by)


def check_opening(leaf: VerifiedLeaf, kind: str, salt: bytes, payload: bytes) -> None:
    """Check that `payload` is what the leaf committed to as `kind` ("prompt", "stop", "answer"). Raises VerificationFailed."""
    commitments = leaf.fields.get("commitments")
    expected = commitments.get(kind) if isinstance(commitments, dict) else None
    if not isinstance(expected, str):
        _fail(Reason.COMMITMENT_ABSENT, "no such commitment")
    if not hmac.compare_digest(hmac.digest(salt, payload, "sha256").hex().encode(), expected.encode("utf-8", "surrogatepass")):
        _fail(Reason.OPENING_INVALID, "HMAC-SHA256(salt, payload) is another value")


def _fail(reason: Reason, detail: str) -> NoReturn:
    raise VerificationFailed(reason, detail) from None


def _base64(text: str, reason: Reason) -> bytes:
    """Decode; a second spelling of the same bytes (stray padding bits) is refused, so no bit of a receipt is without meaning."""
    try:
        value = base64.b64decode(text.encode("ascii"), validate=True)
    except ValueError:
        _fail(reason, "not Base64")
    if base64.b64encode(value) != text.encode("ascii"):
        _fail(reason, "not canonical Base64")
    return value


def _decimal(text: str, reason: Reason) -> int:
    if not _DECIMAL.fullmatch(text):
        _fail(reason, "not a decimal number below 10**19")
    return int(text)


def _valid_name(name: str) -> bool:
    return bool(name) and "+" not in name and not any(character.isspace() for character in name)


def _parse_key(text: str) -> _Key:
    name, _, rest = text.partition("+")
    key_id, _, encoded = rest.partition("+")
    if not _valid_name(name) or not re.fullmatch(r"[0-9a-f]{8}", key_id):
        _fail(Reason.KEY_MALFORMED, "expected <name>+<8 hexadecimal digits>+<Base64>")
    material = _base64(encoded, Reason.KEY_MALFORMED)
    if len(material) != 33 or material[0] != _ED25519:
        _fail(Reason.KEY_MALFORMED, "not an Ed25519 key")
    try:
        expected = sha256(name.encode() + b"\n" + material).digest()[:4]
        public_key = Ed25519PublicKey.from_public_bytes(material[1:])
    except ValueError:
        _fail(Reason.KEY_MALFORMED, "not an Ed25519 key")
    if expected.hex() != key_id:
        _fail(Reason.KEY_MALFORMED, "the key id does not belong to the key")
    return _Key(name, expected, public_key)


def _parse_proof(text: str) -> tuple[bytes, int, list[bytes], str]:
    head, blank, note = text.partition("\n\n")
    lines = head.split("\n")
    if not blank or lines[0] != _HEADER:
        _fail(Reason.RECEIPT_MALFORMED, f"expected {_HEADER!r} first and a checkpoint after a blank line")
    if len(lines) < 2 or not lines[1].startswith("extra "):
        _fail(Reason.LEAF_MISSING, "no line starts with 'extra '")
    leaf = _base64(lines[1].removeprefix("extra "), Reason.RECEIPT_MALFORMED)
    if len(lines) < 3 or not lines[2].startswith("index "):
        _fail(Reason.RECEIPT_MALFORMED, "no line starts with 'index '")
    index = _decimal(lines[2].removeprefix("index "), Reason.RECEIPT_MALFORMED)
    path = [_base64(line, Reason.RECEIPT_MALFORMED) for line in lines[3:]]
    if len(path) > _PATH_MAX or any(len(sibling) != 32 for sibling in path):
        _fail(Reason.RECEIPT_MALFORMED, f"the path is not a list of at most {_PATH_MAX} SHA-256 hashes")
    return leaf, index, path, note


def _open_note(note: str, keys: Sequence[_Key]) -> tuple[str, list[str]]:
    """Text of a signed note, and the names of the given keys that signed it."""
    malformed = Reason.CHECKPOINT_MALFORMED
    if any(character < " " and character != "\n" for character in note):
        _fail(malformed, "control characters")
    text, blank, block = note.rpartition("\n\n")
    if not blank or not block.endswith("\n"):
        _fail(malformed, "expected text, a blank line and signature lines")
    text += "\n"
    lines = block[:-1].split("\n")
    if len(lines) > _SIGNATURES_MAX:
        _fail(malformed, f"more than {_SIGNATURES_MAX} signatures")
    signed_by = []
    for line in lines:
        dash, _, rest = line.partition(" ")
        name, _, encoded = rest.partition(" ")
        if dash != "—" or not _valid_name(name):
            _fail(malformed, "a signature line is not '— <name> <Base64>'")
        blob = _base64(encoded, malformed)
        if len(blob) <= 4:
            _fail(malformed, "a signature line has no signature")
        for key in keys:
            if (key.name, key.key_id) == (name, blob[:4]):
                try:
                    key.public_key.verify(blob[4:], text.encode("utf-8"))
                except (InvalidSignature, ValueError):
                    _fail(Reason.SIGNATURE_INVALID, "Ed25519 over the checkpoint's text")
                signed_by.append(name)
    if not signed_by:
        _fail(Reason.SIGNER_UNKNOWN, "no signature line carries the name and id of a given key")
    return text, signed_by


def _parse_checkpoint(text: str) -> tuple[str, int, bytes]:
    lines = text.split("\n")[:-1]
    if len(lines) < 3 or not all(lines):
        _fail(Reason.CHECKPOINT_MALFORMED, "expected an origin, a size and a root")
    root = _base64(lines[2], Reason.CHECKPOINT_MALFORMED)
    if len(root) != 32:
        _fail(Reason.CHECKPOINT_MALFORMED, "the root is not a SHA-256 hash")
    return lines[0], _decimal(lines[1], Reason.CHECKPOINT_MALFORMED), root


def _climb(index: int, size: int, hash_of_leaf: bytes, path: Sequence[bytes]) -> bytes:
    """Root that the path leads to, after RFC 9162, 2.1.3.2."""
    node, last, climbed = index, size - 1, hash_of_leaf
    for sibling in path:
        if last == 0:
            _fail(Reason.INCLUSION_INVALID, "the path is too long")
        if node % 2 == 1 or node == last:
            climbed = sha256(b"\x01" + sibling + climbed).digest()
            while node % 2 == 0 and node != 0:
                node //= 2
                last //= 2
        else:
            climbed = sha256(b"\x01" + climbed + sibling).digest()
        node //= 2
        last //= 2
    if last != 0:
        _fail(Reason.INCLUSION_INVALID, "the path is too short")
    return climbed


def _parse_leaf(data: bytes) -> Mapping[str, Any]:
    def without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        fields = dict(pairs)
        if len(fields) != len(pairs):
            raise ValueError("duplicate key")
        return fields

    def no_fraction(text: str) -> NoReturn:
        raise ValueError(f"{len(text)} characters of a number that is not an integer")

    try:
        fields = json.loads(
            data.decode("utf-8"), object_pairs_hook=without_duplicates, parse_float=no_fraction, parse_constant=no_fraction
        )
    except (ValueError, RecursionError):
        _fail(Reason.LEAF_MALFORMED, "not JSON in UTF-8 with unique keys and integers only")
    if not isinstance(fields, dict):
        _fail(Reason.LEAF_MALFORMED, "not an object")
    version = fields.get("schema_version")
    if isinstance(version, bool) or not isinstance(version, int):
        _fail(Reason.LEAF_MALFORMED, "no schema_version")
    if version not in _SCHEMA_VERSIONS:
        _fail(Reason.SCHEMA_UNKNOWN, f"version {version}")
    return fields


def main(arguments: Sequence[str]) -> int:
    """Verify the file named first with the keys that follow. Exit status: 0 proven, 1 not proven, 2 wrong use."""
    if len(arguments) < 2:
        print("usage: verify.py RECEIPT VERIFIER_KEY…", file=sys.stderr)
        return 2
    try:
        leaf = verify_receipt(Path(arguments[0]).read_bytes(), arguments[1:])
    except OSError as error:
        print(f"{arguments[0]}: {error.strerror}", file=sys.stderr)
        return 2
    except VerificationFailed as failure:
        print(f"NOT PROVEN {failure.reason.name}: {failure}", file=sys.stderr)
        return 1
    print(f"PROVEN leaf {leaf.leaf_index} of {leaf.tree_size} in {leaf.origin}, signed by {', '.join(leaf.signed_by)}")
    print(json.dumps(leaf.fields, indent=2, ensure_ascii=True, sort_keys=True))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
