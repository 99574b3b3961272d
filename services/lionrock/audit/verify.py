"""Verifies a receipt offline: one file, standard library and `cryptography`, no other part of this product.

    python verify.py RECEIPT.tlog-proof 'lionrock.local/audit/bank+1f2e3d4c+AZ…'
    python verify.py RECEIPT.tlog-proof KEY… --platform-proof PLATFORM.tlog-proof --witness KEY… --threshold 2

It shares no code with the log that wrote the receipt, so a mistake there is not repeated here. It checks, in this order:

    1. the text is a tlog-proof whose extra data is the leaf                  c2sp.org/tlog-proof, version 1
    2. a key that you trust signed the checkpoint                             c2sp.org/signed-note, c2sp.org/tlog-checkpoint
    3. SHA-256(0x00 || leaf) leads to the checkpoint's root                   RFC 9162, section 2.1.3.2
    4. the leaf is a JSON object without duplicate keys or fractions, and its tenant is the one that the log's origin names

and, with a proof from the platform's log, whose leaves are the checkpoints of all tenants' logs:

    5. the proof is of the very checkpoint in the receipt, and leads to a checkpoint that a key that you trust signed for the log
       whose origin is that of the tenant's log without the tenant
    6. enough of the witnesses that you trust cosigned that one                c2sp.org/tlog-cosignature

Signatures are Ed25519 (type 0x01), Ed25519 cosignatures (0x04) and ML-DSA-44 cosignatures (0x06), with which logs may sign too.
Signatures by keys that you did not give are ignored, as the format demands. Every failure is a `VerificationFailed` with one
`Reason`, whatever the bytes are.
"""

import argparse
import base64
import hmac
import json
import re
import struct
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import Enum
from hashlib import sha256
from pathlib import Path
from typing import Any, NoReturn

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.mldsa import MLDSA44PublicKey

RECEIPT_MAX_CHARS = 1_000_000
_HEADER = "c2sp.org/tlog-proof@v1"
_DECIMAL = re.compile(r"(0|[1-9][0-9]{0,18})", re.ASCII)
_ED25519, _ED25519_COSIGNATURE, _ML_DSA_44_COSIGNATURE = 0x01, 0x04, 0x06
_PUBLIC_KEY_BYTES = {_ED25519: 32, _ED25519_COSIGNATURE: 32, _ML_DSA_44_COSIGNATURE: 1312}
_LOGS_SIGN_WITH = (_ED25519, _ML_DSA_44_COSIGNATURE)
_WITNESSES_SIGN_WITH = (_ED25519_COSIGNATURE, _ML_DSA_44_COSIGNATURE)
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
    PLATFORM_MISMATCH = "the platform's proof is of something else than the receipt's checkpoint"
    WITNESSES_TOO_FEW = "too few of the given witnesses cosigned"
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
    checkpoint: str
    """The signed note itself."""


@dataclass(frozen=True, slots=True)
class VerifiedPlatform:
    """A checkpoint of the platform's log that holds a tenant's checkpoint. Only `verify_platform_proof` makes one."""

    origin: str
    leaf_index: int
    """Of the tenant's checkpoint."""
    tree_size: int
    root: bytes
    cosigned: Mapping[str, int]
    """Given witnesses that cosigned, and when by their own statement, in seconds since 1970."""


@dataclass(frozen=True, slots=True)
class _Key:
    name: str
    key_id: bytes
    type: int
    public_key: bytes


@dataclass(frozen=True, slots=True)
class _Signature:
    key: _Key
    time_s: int | None


def verify_receipt(text: str | bytes, verifier_keys: Sequence[str]) -> VerifiedLeaf:
    """Check a receipt against verifier keys that you got from somewhere you trust. Raises VerificationFailed."""
    keys = [_parse_key(key) for key in verifier_keys]
    proven = _verify_proof(_text_of(text), keys)
    fields = _parse_leaf(proven.leaf)
    if proven.origin.rpartition("/")[2] != fields.get("tenant"):
        _fail(Reason.TENANT_MISMATCH, "the origin ends in another tenant")
    signed_by = [signature.key.name for signature in proven.signatures]
    hash_of_leaf = sha256(b"\x00" + proven.leaf).digest()
    return VerifiedLeaf(
        fields, proven.leaf, hash_of_leaf, proven.index, proven.origin, proven.size, proven.root, signed_by, proven.note
    )


def verify_platform_proof(
    text: str | bytes, leaf: VerifiedLeaf, platform_keys: Sequence[str], witness_keys: Sequence[str], threshold: int
) -> VerifiedPlatform:
    """Check that the platform's log holds the checkpoint in a receipt, and that `threshold` of the witnesses cosigned it.

    A witness with several keys counts once. Raises VerificationFailed.
    """
    witnesses = [_parse_key(key) for key in witness_keys]
    if any(key.type not in _WITNESSES_SIGN_WITH for key in witnesses):
        _fail(Reason.KEY_MALFORMED, "a key that is given as a witness's is a log's")
    proven = _verify_proof(_text_of(text), [*(_parse_key(key) for key in platform_keys), *witnesses])
    if leaf.origin.rpartition("/")[0] != proven.origin:
        _fail(Reason.PLATFORM_MISMATCH, "the log of the proof is not the one above the receipt's")
    if proven.leaf != leaf.checkpoint.encode("utf-8"):
        _fail(Reason.PLATFORM_MISMATCH, "the proof is of another checkpoint")
    cosigned: dict[str, int] = {}
    for signature in proven.signatures:
        if signature.key in witnesses and signature.time_s:
            cosigned[signature.key.name] = max(signature.time_s, cosigned.get(signature.key.name, 0))
    if len(cosigned) < threshold:
        _fail(Reason.WITNESSES_TOO_FEW, f"{len(cosigned)} of {len({key.name for key in witnesses})}, and {threshold} are needed")
    return VerifiedPlatform(proven.origin, proven.index, proven.size, proven.root, cosigned)


def check_opening(leaf: VerifiedLeaf, kind: str, salt: bytes, payload: bytes) -> None:
    """Check that `payload` is what the leaf committed to as `kind` ("prompt", "stop", "answer"). Raises VerificationFailed."""
    commitments = leaf.fields.get("commitments")
    expected = commitments.get(kind) if isinstance(commitments, dict) else None
    if not isinstance(expected, str):
        _fail(Reason.COMMITMENT_ABSENT, "no such commitment")
    if not hmac.compare_digest(hmac.digest(salt, payload, "sha256").hex().encode(), expected.encode("utf-8", "surrogatepass")):
        _fail(Reason.OPENING_INVALID, "HMAC-SHA256(salt, payload) is another value")


@dataclass(frozen=True, slots=True)
class _Proven:
    """Something that a log holds; what it is, is not looked at."""

    leaf: bytes
    index: int
    origin: str
    size: int
    root: bytes
    signatures: Sequence[_Signature]
    note: str


def _verify_proof(text: str, keys: Sequence[_Key]) -> _Proven:
    leaf, index, path, note = _parse_proof(text)
    body, signatures = _open_note(note, keys)
    origin, size, root = _parse_checkpoint(body)
    if not any(signature.key.name == origin and signature.key.type in _LOGS_SIGN_WITH for signature in signatures):
        _fail(Reason.ORIGIN_MISMATCH, "the origin line names another log than the key does")
    if index >= size:
        _fail(Reason.INDEX_OUT_OF_RANGE, f"index {index}, size {size}")
    if _climb(index, size, sha256(b"\x00" + leaf).digest(), path) != root:
        _fail(Reason.INCLUSION_INVALID, "the path leads to another root")
    return _Proven(leaf, index, origin, size, root, signatures, note)


def _text_of(text: str | bytes) -> str:
    if isinstance(text, bytes):
        try:
            text = text.decode("utf-8")
        except UnicodeDecodeError:
            _fail(Reason.RECEIPT_MALFORMED, "not UTF-8")
    if len(text) > RECEIPT_MAX_CHARS:
        _fail(Reason.RECEIPT_MALFORMED, f"more than {RECEIPT_MAX_CHARS} characters")
    return text


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
    if not material or len(material) - 1 != _PUBLIC_KEY_BYTES.get(material[0]):
        _fail(Reason.KEY_MALFORMED, "neither an Ed25519 nor an ML-DSA-44 key")
    try:
        expected = sha256(name.encode() + b"\n" + material).digest()[:4]
    except ValueError:
        _fail(Reason.KEY_MALFORMED, "the name is not UTF-8")
    if expected.hex() != key_id:
        _fail(Reason.KEY_MALFORMED, "the key id does not belong to the key")
    return _Key(name, expected, material[0], material[1:])


def _verify_signature(key: _Key, text: str, blob: bytes) -> int | None:
    """Time that a cosignature states, None for a log's Ed25519 signature. Raises InvalidSignature, ValueError."""
    if key.type == _ED25519:
        Ed25519PublicKey.from_public_bytes(key.public_key).verify(blob, text.encode("utf-8"))
        return None
    if len(blob) <= 8:
        raise ValueError("no signature after the time")
    time_s: int = struct.unpack(">Q", blob[:8])[0]
    if time_s >= 2**63:
        raise ValueError("the time is out of range")
    origin, size, root = _parse_checkpoint(text)
    if key.type == _ED25519_COSIGNATURE:
        message = f"cosignature/v1\ntime {time_s}\n{text}".encode()
        Ed25519PublicKey.from_public_bytes(key.public_key).verify(blob[8:], message)
    else:
        name, log = key.name.encode("utf-8"), origin.encode("utf-8")
        if max(len(name), len(log)) > 255:
            raise ValueError("a name has more than 255 bytes")
        message = b"subtree/v1\n\0" + bytes([len(name)]) + name + blob[:8] + bytes([len(log)]) + log
        MLDSA44PublicKey.from_public_bytes(key.public_key).verify(blob[8:], message + struct.pack(">QQ", 0, size) + root)
    return time_s


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


def _open_note(note: str, keys: Sequence[_Key]) -> tuple[str, list[_Signature]]:
    """Text of a signed note, and the signatures by the given keys."""
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
    signatures = []
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
                    signatures.append(_Signature(key, _verify_signature(key, text, blob[4:])))
                except (InvalidSignature, ValueError):
                    _fail(Reason.SIGNATURE_INVALID, "over the checkpoint")
    if not signatures:
        _fail(Reason.SIGNER_UNKNOWN, "no signature line carries the name and id of a given key")
    return text, signatures


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


def when(time_s: int) -> str:
    """Write a time that a witness stated, in seconds since 1970, for people."""
    try:
        return datetime.fromtimestamp(time_s, UTC).isoformat()
    except (OverflowError, OSError, ValueError):
        return f"{time_s} s after 1970"


def main(arguments: Sequence[str]) -> int:
    """Verify what the arguments name. Exit status: 0 proven, 1 not proven, 2 wrong use."""
    parser = argparse.ArgumentParser(prog="verify.py", description="Verify a receipt of an audit log offline.")
    parser.add_argument("receipt", type=Path, help="tlog-proof file with the leaf")
    parser.add_argument("key", nargs="+", help="verifier key of the log, and of the platform's log where its proof is given")
    parser.add_argument("--platform-proof", type=Path, help="tlog-proof file of the receipt's checkpoint in the platform's log")
    parser.add_argument("--witness", nargs="+", default=[], metavar="KEY", help="verifier key of a witness")
    parser.add_argument("--threshold", type=int, help="witnesses that must have cosigned; default: all that are given")
    try:
        given = parser.parse_intermixed_args(arguments)
        if given.platform_proof is None and (given.witness or given.threshold is not None):
            parser.error("witnesses cosign the platform's log: give its --platform-proof")
    except SystemExit as error:
        return int(error.code or 0)
    platform: VerifiedPlatform | None = None
    try:
        leaf = verify_receipt(given.receipt.read_bytes(), given.key)
        if given.platform_proof is not None:
            threshold = len({key.partition("+")[0] for key in given.witness}) if given.threshold is None else given.threshold
            platform = verify_platform_proof(given.platform_proof.read_bytes(), leaf, given.key, given.witness, threshold)
    except OSError as error:
        print(f"{error.filename}: {error.strerror}", file=sys.stderr)
        return 2
    except VerificationFailed as failure:
        print(f"NOT PROVEN {failure.reason.name}: {failure}", file=sys.stderr)
        return 1
    print(f"PROVEN leaf {leaf.leaf_index} of {leaf.tree_size} in {leaf.origin}, signed by {', '.join(leaf.signed_by)}")
    if platform is not None:
        print(f"PROVEN checkpoint {platform.leaf_index} of {platform.tree_size} in {platform.origin}")
        for name, time_s in platform.cosigned.items():
            print(f"COSIGNED by {name} at {when(time_s)}")
    print(json.dumps(leaf.fields, indent=2, ensure_ascii=True, sort_keys=True))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
