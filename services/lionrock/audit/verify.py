"""Verifies a receipt or an export offline: one file, standard library and `cryptography`, no other part of this product.

    python verify.py RECEIPT.tlog-proof 'lionrock.local/audit/bank+1f2e3d4c+AZ…'
    python verify.py RECEIPT.tlog-proof KEY… --platform-proof PLATFORM.tlog-proof --witness KEY… --threshold 2
    python verify.py EXPORT.zip --key KEY --key KEY-OF-THE-PLATFORM --witness-key KEY --witnesses 1
    python verify.py EXPORT.zip --key EARLIER-KEY --linked-key KEY --link LINK.tlog-proof …

It shares no code with the log that wrote them, so a mistake there is not repeated here. Of a receipt it checks, in this order:

    1. the text is a tlog-proof whose extra data is the leaf                  c2sp.org/tlog-proof, version 1
    2. a key that you trust signed the checkpoint                             c2sp.org/signed-note, c2sp.org/tlog-checkpoint
    3. SHA-256(0x00 || leaf) leads to the checkpoint's root                   RFC 9162, section 2.1.3.2
    4. the leaf is a JSON object without duplicate keys or fractions, and its tenant is the one that the log's origin names

and, with a proof from the platform's log, whose leaves are the checkpoints of all tenants' logs:

    5. the proof is of the very checkpoint in the receipt, and leads to a checkpoint that a key that you trust signed for the log
       whose origin is that of the tenant's log without the tenant
    6. enough of the witnesses that you trust cosigned that one                c2sp.org/tlog-cosignature

Of an export (a ZIP archive), all of it:

    a. the archive has the form in which exports are written, without a byte that belongs to no file, and every file is listed in
       manifest.json with the SHA-256 that it has; there is no other, and none twice
    b. its checkpoint as in 2, and the platform's proof of it as in 5 and 6
    c. every leaf as in 3 and 4, and where no case was chosen that their indices have no gap and reach over both ends of the time
    d. every payload opens the commitment of a leaf that is there: HMAC-SHA256(salt, payload)
    e. earlier checkpoints are prefixes of this one                            RFC 9162, section 2.1.4.2
    f. where keys changed, that the leaves which say so make one chain, each under a checkpoint that both keys signed. One key of it
       is enough: what it leads on to may sign what the export shows; the keys before it, earlier checkpoints alone

keys.txt in an archive is for comparison with your keys and is not used. report.html is for reading: that it is the page that was
exported is checked, not what it says. Memory does not grow with the number of leaves, but with that of the payload files.

Signatures are Ed25519 (type 0x01), Ed25519 cosignatures (0x04) and ML-DSA-44 cosignatures (0x06), with which logs may sign too.
Signatures by keys that you did not give are ignored, as the format demands. Every failure is a `VerificationFailed` with one
`Reason`, whatever the bytes are.
"""

import argparse
import base64
import binascii
import hmac
import json
import re
import struct
import sys
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from enum import Enum
from hashlib import sha256
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

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
    ARCHIVE_MALFORMED = "the archive does not have the form of an export"
    FILE_ALTERED = "a file in the archive is not the one that the manifest lists"
    MANIFEST_MALFORMED = "the manifest is not one"
    LEAVES_INCOMPLETE = "leaves of the export are missing or do not belong to it"
    PAYLOAD_MALFORMED = "a file of payloads is not one"
    CONSISTENCY_INVALID = "an earlier checkpoint is not a prefix of the export's"
    KEY_NOT_LINKED = "no link leads from a key that you trust to this one"


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
    keys, witnesses = [_parse_key(key) for key in platform_keys], _witnesses(witness_keys)
    return _verify_platform(_text_of(text), leaf.origin, leaf.checkpoint, keys, witnesses, threshold)


def follow_links(verifier_keys: Sequence[str], linked: Sequence[str], links: Sequence[str | bytes]) -> list[str]:
    """Return the keys that you trust and the `linked` ones, to which links lead from them, one after the other.

    A link is a tlog-proof of the leaf with which a log changed its key, under a checkpoint that the earlier key signed; the leaf
    names both keys by their SHA-256. Raises VerificationFailed.
    """
    trusted, missing = list(verifier_keys), [key for key in linked if key not in verifier_keys]
    texts = [_text_of(link) for link in links]
    while missing:
        reached = [key for key in missing if any(_leads_to(key, text, trusted) for text in texts)]
        if not reached:
            _fail(Reason.KEY_NOT_LINKED, f"{len(missing)} keys, {len(texts)} links")
        trusted += reached
        missing = [key for key in missing if key not in reached]
    return trusted


def _leads_to(following: str, text: str, trusted: Sequence[str]) -> bool:
    keys = {_parse_key(key): _key_digest(key) for key in trusted}
    try:
        proven = _verify_proof(text, list(keys))
    except VerificationFailed as failure:
        if failure.reason is Reason.SIGNER_UNKNOWN:  # a later link, of keys that are not reached yet
            return False
        raise
    change = _parse_leaf(proven.leaf)
    return (
        change.get("type") == "key_change"
        and change.get("origin") == proven.origin == _parse_key(following).name
        and change.get("previous_key") in {keys[signature.key] for signature in proven.signatures}
        and change.get("next_key") == _key_digest(following)
    )


def _key_digest(verifier_key: str) -> str:
    return f"sha256:{sha256(verifier_key.encode()).hexdigest()}"


def _witnesses(keys: Sequence[str]) -> list[_Key]:
    witnesses = [_parse_key(key) for key in keys]
    if any(key.type not in _WITNESSES_SIGN_WITH for key in witnesses):
        _fail(Reason.KEY_MALFORMED, "a key that is given as a witness's is a log's")
    return witnesses


def _verify_platform(
    text: str, origin: str, checkpoint: str, keys: Sequence[_Key], witnesses: Sequence[_Key], threshold: int
) -> VerifiedPlatform:
    proven = _verify_proof(text, [*keys, *witnesses])
    if origin.rpartition("/")[0] != proven.origin:
        _fail(Reason.PLATFORM_MISMATCH, "the log of the proof is not the one above the tenant's")
    if proven.leaf != checkpoint.encode("utf-8"):
        _fail(Reason.PLATFORM_MISMATCH, "the proof is of another checkpoint")
    cosigned: dict[str, int] = {}
    for signature in proven.signatures:
        if signature.key in witnesses and signature.time_s:
            cosigned[signature.key.name] = max(signature.time_s, cosigned.get(signature.key.name, 0))
    if len(cosigned) < threshold:
        _fail(Reason.WITNESSES_TOO_FEW, f"{len(cosigned)} of {len({key.name for key in witnesses})}, and {threshold} are needed")
    return VerifiedPlatform(proven.origin, proven.index, proven.size, proven.root, cosigned)


def check_opening(leaf: VerifiedLeaf, kind: str, salt: bytes, payload: bytes) -> None:
    """Check that `payload` is what the leaf committed to as `kind` ("answer", "statement", …). Raises VerificationFailed."""
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


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) != len(pairs):
        raise ValueError("duplicate key")
    return fields


def _no_fraction(text: str) -> NoReturn:
    raise ValueError(f"{len(text)} characters of a number that is not an integer")


_LEAF_DECODER = json.JSONDecoder(object_pairs_hook=_without_duplicates, parse_float=_no_fraction, parse_constant=_no_fraction)


def _parse_leaf(data: bytes) -> Mapping[str, Any]:
    try:
        fields = _LEAF_DECODER.decode(data.decode("utf-8"))
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


# Exports -------------------------------------------------------------------------------------------------------------------------

_MIB = 2**20
_ARCHIVE_FILES_MAX = 60_000
_SMALL_FILE_MAX = 16 * _MIB
_PAYLOAD_FILE_MAX = 256 * _MIB
_LINE_MAX = 64 * 1024
_CHUNK = 64 * 1024
_LOCAL = struct.Struct("<4s5H3L2H")
_LOCAL_EXTRA = struct.pack("<HHQQ", 1, 16, 0, 0)
_DESCRIPTOR = struct.Struct("<4sLQQ")
_CENTRAL = struct.Struct("<4s6H3L5H2L")
_CENTRAL_EXTRA = struct.Struct("<HHQQQ")
_END = struct.Struct("<4sQHHLLQQQQ4sLQL4s4H2LH")
_VERSION, _MADE_BY, _FLAGS, _DEFLATED, _DATE, _MODE, _MANY = 45, 3 << 8 | 45, 0x0808, 8, 0x0021, 0o100644 << 16, 0xFFFFFFFF
_UUID = "[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}"
_PAYLOAD_NAME = re.compile(rf"payloads/({_UUID})\.json", re.ASCII)
_NEEDED_FILES = frozenset(
    {"README.txt", "verify.py", "checkpoint", "consistency.json", "keys.txt", "leaves.jsonl", "report.html", "manifest.json"}
)
_PLATFORM_PROOF, _KEY_LINKS = "platform-proof.tlog-proof", "key-links.json"
_INDEX = re.compile(rb":(0|[1-9][0-9]{0,15}),")
_TIME = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}\.[0-9]{6}Z", re.ASCII)
_DISORDER = timedelta(seconds=60)
"""How far times of leaves may be out of the order of their indices: they are taken when a leaf is asked for."""


@dataclass(frozen=True, slots=True)
class VerifiedExport:
    """An export of which everything that can be checked holds. Only `verify_export` makes one."""

    origin: str
    tree_size: int
    root: bytes
    signed_by: Sequence[str]
    platform: VerifiedPlatform | None
    """None: no key of the platform's log was given, or the archive has no proof from it."""
    manifest: Mapping[str, Any]
    """What it says of the selection is checked as far as leaves can show it; who exported it, only the log's EXPORT leaf shows."""
    leaves: int
    withheld: int
    """Of `leaves`, those that are there by their hash alone."""
    first_index: int | None
    last_index: int | None
    without_gap: bool
    """All indices from first to last are there; never claimed of a single case's leaves."""
    whole_time: bool
    """The leaves before and after show that none of the time that was asked for is missing."""
    opened: int
    """Payloads that open the commitments of their leaves."""
    earlier: Sequence[tuple[int, Mapping[str, int] | None]]
    """Sizes of earlier checkpoints that are prefixes, with their cosignatures where they were checked."""
    key_changes: Mapping[str, int]
    """Changes of keys that were followed, by origin of the log."""


@dataclass(frozen=True, slots=True)
class _File:
    name: str
    begin: int
    packed: int
    size: int
    crc: int


class _Archive:
    """Reads a ZIP archive in the one form that exports have; whatever differs from it in a byte is refused."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        end_at = stream.seek(0, 2) - _END.size
        if end_at < 0:
            _fail(Reason.ARCHIVE_MALFORMED, "too short")
        end = self._read(end_at, _END.size)
        count, size, begin = _END.unpack(end)[7:10]
        zip64 = (b"PK\x06\x06", 44, _MADE_BY, _VERSION, 0, 0, count, count, size, begin)
        if end != _END.pack(*zip64, b"PK\x06\x07", 0, end_at, 1, b"PK\x05\x06", 0, 0, 0xFFFF, 0xFFFF, _MANY, _MANY, 0):
            _fail(Reason.ARCHIVE_MALFORMED, "its end is another")
        if begin + size != end_at or count > _ARCHIVE_FILES_MAX or size > 256 * count:
            _fail(Reason.ARCHIVE_MALFORMED, "its directory is not where and as long as it should be")
        self.files: dict[str, _File] = {}
        self._read_directory(self._read(begin, size), count, begin)

    def _read(self, at: int, size: int) -> bytes:
        self._stream.seek(at)
        data = self._stream.read(size)
        if len(data) != size:
            _fail(Reason.ARCHIVE_MALFORMED, "it ends early")
        return data

    def _read_directory(self, directory: bytes, count: int, end: int) -> None:
        """Read the directory; the files must follow each other without a gap, each with a header that says the same."""
        at = offset = 0
        for _ in range(count):
            if len(directory) < at + _CENTRAL.size:
                _fail(Reason.ARCHIVE_MALFORMED, "its directory ends early")
            crc, name_size = _CENTRAL.unpack_from(directory, at)[7], _CENTRAL.unpack_from(directory, at)[10]
            extra_at = at + _CENTRAL.size + name_size
            if len(directory) < extra_at + _CENTRAL_EXTRA.size:
                _fail(Reason.ARCHIVE_MALFORMED, "its directory ends early")
            raw_name = directory[at + _CENTRAL.size : extra_at]
            _, _, size, packed, begin = _CENTRAL_EXTRA.unpack_from(directory, extra_at)
            form = (_VERSION, _FLAGS, _DEFLATED, 0, _DATE)
            expected = _CENTRAL.pack(
                b"PK\x01\x02", _MADE_BY, *form, crc, _MANY, _MANY, name_size, _CENTRAL_EXTRA.size, 0, 0, 0, _MODE, _MANY
            )
            expected += raw_name + _CENTRAL_EXTRA.pack(1, 24, size, packed, begin)
            header = _LOCAL.pack(b"PK\x03\x04", *form, 0, _MANY, _MANY, name_size, len(_LOCAL_EXTRA)) + raw_name + _LOCAL_EXTRA
            data = begin + len(header)
            if directory[at : extra_at + _CENTRAL_EXTRA.size] != expected or begin != offset:
                _fail(Reason.ARCHIVE_MALFORMED, "an entry of its directory has another form")
            offset = data + packed + _DESCRIPTOR.size
            if offset > end or self._read(begin, len(header)) != header:
                _fail(Reason.ARCHIVE_MALFORMED, "a file has another header than the directory says")
            if self._read(data + packed, _DESCRIPTOR.size) != _DESCRIPTOR.pack(b"PK\x07\x08", crc, packed, size):
                _fail(Reason.ARCHIVE_MALFORMED, "a file is not as long as the directory says")
            try:
                name = raw_name.decode("ascii")
            except UnicodeDecodeError:
                _fail(Reason.ARCHIVE_MALFORMED, "a file that no export has")
            if name in self.files:
                _fail(Reason.ARCHIVE_MALFORMED, "two files have one name")
            self.files[name] = _File(name, data, packed, size, crc)
            at = extra_at + _CENTRAL_EXTRA.size
        if at != len(directory) or offset != end:
            _fail(Reason.ARCHIVE_MALFORMED, "bytes belong to no file")

    def chunks(self, name: str) -> Iterator[bytes]:
        """Contents of a file, in pieces, checked to the end."""
        file = self.files[name]
        inflate = zlib.decompressobj(-zlib.MAX_WBITS)
        crc = size = 0
        at, left, waiting = file.begin, file.packed, b""
        while not inflate.eof:
            if not waiting:
                taken = min(left, _CHUNK)
                if not taken:
                    _fail(Reason.ARCHIVE_MALFORMED, "a file does not end")
                waiting = self._read(at, taken)
                at, left = at + taken, left - taken
            try:
                piece = inflate.decompress(waiting, _CHUNK)
            except zlib.error:
                _fail(Reason.ARCHIVE_MALFORMED, "a file cannot be unpacked")
            waiting = inflate.unconsumed_tail
            crc, size = zlib.crc32(piece, crc), size + len(piece)
            if size > file.size:
                break
            yield piece
        if left or waiting or inflate.unused_data or (crc, size) != (file.crc, file.size):
            _fail(Reason.ARCHIVE_MALFORMED, "a file is not what the directory says")

    def content(self, name: str, limit: int) -> bytes:
        """Return a whole file."""
        if self.files[name].size > limit:
            _fail(Reason.ARCHIVE_MALFORMED, f"a file has more than {limit} bytes")
        return b"".join(self.chunks(name))


class _Tree:
    """Checks leaf after leaf against one root, in order of their indices. What two paths have in common is compared, not hashed.

    Kept, for each level that a path went through: the last node, its hash, and how many siblings are above it. A node of a path
    before the last one never comes again, since indices rise.
    """

    def __init__(self, size: int, root: bytes) -> None:
        self._size = size
        self._root = root
        self._path: list[bytes] = []
        self._nodes: list[tuple[int, bytes, int]] = [(-1, b"", 0)] * 128

    def check(self, index: int, hash_of_leaf: bytes, path: list[bytes]) -> None:
        """Check a leaf whose path is in Base64 (RFC 9162, 2.1.3.2)."""
        node, last, level, climbed = index, self._size - 1, 0, hash_of_leaf
        nodes, left = self._nodes, len(path)
        while True:
            known, known_hash, known_left = nodes[level]
            if known == node:
                if known_hash != climbed or known_left != left or (left and path[-left:] != self._path[-left:]):
                    _fail(Reason.INCLUSION_INVALID, f"leaf {index}: the path leads to another root")
                break
            nodes[level] = (node, climbed, left)
            if not left:
                if last != 0 or climbed != self._root:
                    _fail(Reason.INCLUSION_INVALID, f"leaf {index}: the path leads to another root")
                break
            if last == 0:
                _fail(Reason.INCLUSION_INVALID, f"leaf {index}: the path is too long")
            sibling = _hash_of(path[-left])
            left -= 1
            if node & 1 or node == last:
                climbed = sha256(b"\x01" + sibling + climbed).digest()
                while not node & 1 and node:
                    node, last, level = node >> 1, last >> 1, level + 1
            else:
                climbed = sha256(b"\x01" + climbed + sibling).digest()
            node, last, level = node >> 1, last >> 1, level + 1
        self._path = path


def _hash_of(encoded: bytes) -> bytes:
    try:
        value = binascii.a2b_base64(encoded)
    except ValueError:
        value = b""
    if len(value) != 32 or binascii.b2a_base64(value, newline=False) != encoded:
        _fail(Reason.INCLUSION_INVALID, "a path holds something else than SHA-256 hashes in canonical Base64")
    return value


def _parse_line(line: bytes, number: int) -> tuple[int, bytes, bytes, list[bytes]]:
    """Read {"index":…,"leaf" or "withheld":"<Base64>","path":["<Base64>",…]}, written so to the byte. Base64 is left as it is."""
    parts = line.split(b'"')
    path = parts[9::2]
    index = _INDEX.fullmatch(parts[2]) if len(parts) > 8 and len(parts) % 2 else None
    between = parts[10:-1:2]
    ends = parts[8:9] + parts[-1:] if path else parts[8:]
    if (
        index is None
        or [parts[0], parts[1], parts[4], parts[6], parts[7]] != [b"{", b"index", b":", b",", b"path"]
        or parts[3] not in (b"leaf", b"withheld")
        or ends != ([b":[", b"]}"] if path else [b":[]}"])
        or between != [b","] * (len(path) - 1)
    ):
        _fail(Reason.LEAF_MALFORMED, f"line {number} of leaves.jsonl is not one of an export")
    return int(index[1]), parts[3], parts[5], path


@dataclass(slots=True)
class _Seen:
    """What the leaves of an export showed."""

    count: int = 0
    withheld: int = 0
    opened: int = 0
    first: int | None = None
    last: int | None = None
    first_time: str | None = None
    last_time: str | None = None
    wanted: dict[int, dict[str, str]] = field(default_factory=dict)
    """Commitments that payloads open, hexadecimal, by leaf and kind."""
    wanted_record: dict[int, str] = field(default_factory=dict)


def verify_export(
    stream: BinaryIO, verifier_keys: Sequence[str], witness_keys: Sequence[str] = (), threshold: int = 0
) -> VerifiedExport:
    """Check an export against keys that you got from somewhere you trust, of the tenant's log and of the platform's.

    `stream`: the archive, seekable. `threshold`: witnesses that must have cosigned. Raises VerificationFailed, and what reading
    raises.
    """
    verified, _ = _verify_export(stream, verifier_keys, witness_keys, threshold, None)
    return verified


def extract_proof(
    stream: BinaryIO, verifier_keys: Sequence[str], witness_keys: Sequence[str], threshold: int, index: int
) -> tuple[VerifiedExport, str]:
    """Check an export and return the proof of one of its leaves as a tlog-proof file. Raises as `verify_export` does."""
    verified, line = _verify_export(stream, verifier_keys, witness_keys, threshold, index)
    if line is None:
        _fail(Reason.LEAF_MISSING, f"leaf {index} is not in the export, or withheld")
    leaf, path, note = line
    lines = [_HEADER, f"extra {base64.b64encode(leaf).decode()}", f"index {index}", *(sibling.decode() for sibling in path)]
    return verified, "\n".join([*lines, "", note])


def _verify_export(
    stream: BinaryIO, verifier_keys: Sequence[str], witness_keys: Sequence[str], threshold: int, extract: int | None
) -> tuple[VerifiedExport, tuple[bytes, list[bytes], str] | None]:
    keys, witnesses = [_parse_key(key) for key in verifier_keys], _witnesses(witness_keys)
    archive = _Archive(stream)
    manifest, listed = _read_manifest(archive)
    contents = {}
    for name in listed.keys() - {"leaves.jsonl"}:
        if not _PAYLOAD_NAME.fullmatch(name):
            contents[name] = _listed(archive, name, _SMALL_FILE_MAX, listed)
    note = _utf8(contents["checkpoint"], Reason.CHECKPOINT_MALFORMED)
    former, key_changes = _follow_chains(contents.get(_KEY_LINKS), keys)
    origin, size, root, signed_by = _signed_checkpoint(note, keys)
    if (manifest["origin"], manifest["tree_size"]) != (origin, size):
        _fail(Reason.MANIFEST_MALFORMED, "it names another log or tree than the checkpoint")
    platform = _export_platform(contents.get(_PLATFORM_PROOF), origin, note, keys, witnesses, threshold)
    earlier = _check_earlier(contents["consistency.json"], origin, size, root, keys, former, witnesses)
    seen = _Seen()
    for name in listed:
        if found := _PAYLOAD_NAME.fullmatch(name):
            _take_payloads(_listed(archive, name, _PAYLOAD_FILE_MAX, listed), found[1], seen)
    if len(listed) - len(contents) - 1 != manifest["payload_records"]:
        _fail(Reason.MANIFEST_MALFORMED, "it counts other payload files than there are")
    extracted = _check_leaves(archive, listed["leaves.jsonl"], manifest, _Tree(size, root), seen, extract)
    if seen.wanted:
        _fail(Reason.COMMITMENT_ABSENT, f"{len(seen.wanted)} leaves with payloads are not in the export")
    without_gap, whole_time = _check_run(manifest, seen)
    verified = VerifiedExport(
        origin,
        size,
        root,
        signed_by,
        platform,
        manifest,
        seen.count,
        seen.withheld,
        seen.first,
        seen.last,
        without_gap,
        whole_time,
        seen.opened,
        earlier,
        key_changes,
    )
    return verified, None if extracted is None else (*extracted, note)


def _utf8(data: bytes, reason: Reason) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        _fail(reason, "not UTF-8")


def _canonical(data: bytes, reason: Reason) -> Mapping[str, Any]:
    """Read a JSON object that is written canonically: sorted keys, no spaces, nothing twice."""
    try:
        value = json.loads(data)
        again = json.dumps(value, ensure_ascii=False, sort_keys=True, separators=(",", ":")).encode("utf-8")
    except (ValueError, RecursionError):
        _fail(reason, "not JSON in UTF-8")
    if again != data or not isinstance(value, dict):
        _fail(reason, "not a canonical JSON object")
    return value


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**53


def _read_manifest(archive: _Archive) -> tuple[Mapping[str, Any], Mapping[str, str]]:
    """Return the manifest and the digests that it lists, which are those of the files that are there."""
    names = archive.files.keys()
    known = (*_NEEDED_FILES, _PLATFORM_PROOF, _KEY_LINKS)
    if not names >= _NEEDED_FILES or any(name not in known and not _PAYLOAD_NAME.fullmatch(name) for name in names):
        _fail(Reason.ARCHIVE_MALFORMED, "a file is missing, or one is there that no export has")
    malformed = Reason.MANIFEST_MALFORMED
    manifest = _canonical(archive.content("manifest.json", _SMALL_FILE_MAX), malformed)
    if (manifest.get("schema_version"), manifest.get("kind")) != (1, "lionrock.audit.export"):
        _fail(malformed, "another version, or no manifest of an export")
    counts = ("first_index", "stop_index", "tree_size", "leaves", "withheld_leaves", "payload_records", "export_leaf")
    chosen, listed = manifest.get("selection"), manifest.get("files")
    if not isinstance(chosen, dict) or not isinstance(listed, dict) or not all(_is_count(manifest.get(name)) for name in counts):
        _fail(malformed, "a field is missing")
    if not all(isinstance(chosen.get(name), str) and _time(chosen[name]) for name in ("from", "to")):
        _fail(malformed, "the time that was asked for is not one")
    if (
        not isinstance(chosen.get("case_id", ""), str)
        or not manifest["first_index"] <= manifest["stop_index"] <= manifest["tree_size"]
    ):
        _fail(malformed, "the selection is not one")
    if listed.keys() != names - {"manifest.json"}:
        _fail(Reason.FILE_ALTERED, "the manifest lists other files than there are")
    digests = {}
    for name, entry in listed.items():
        if not isinstance(entry, dict) or entry.keys() != {"sha256", "bytes"} or entry["bytes"] != archive.files[name].size:
            _fail(Reason.FILE_ALTERED, "a file is longer or shorter than listed")
        digests[name] = entry["sha256"]
    return manifest, digests


def _listed(archive: _Archive, name: str, limit: int, listed: Mapping[str, str]) -> bytes:
    data = archive.content(name, limit)
    if sha256(data).hexdigest() != listed[name]:
        _fail(Reason.FILE_ALTERED, f"{name} has another SHA-256")
    return data


def _follow_chains(data: bytes | None, keys: list[_Key]) -> tuple[list[_Key], dict[str, int]]:
    """Add to `keys` what the links in an archive lead on to. Return the keys before them, and the changes by origin.

    A log's links stand in the order of its changes, each beginning with the key that the last one ended with. Both keys of a link
    signed its checkpoint, so either is reached from the other; keys that were given up are returned apart, for somebody else may
    have them. A log of which no key was given is not looked at.
    """
    if data is None:
        return [], {}
    malformed = Reason.KEY_NOT_LINKED
    links = _canonical(data, malformed).get("links")
    if not isinstance(links, list) or not links:
        _fail(malformed, "no list of links")
    chains: dict[str, list[_Key]] = {}
    for link in links:
        previous, following = _check_link(link)
        chain = chains.setdefault(previous.name, [previous])
        if chain[-1] != previous or following in chain:
            _fail(malformed, "the links are not in the order of the changes")
        chain.append(following)
    trusted_names, former, changes = {key.name for key in keys}, [], {}
    for name in chains.keys() & trusted_names:
        chain = chains[name]
        first = next((place for place, key in enumerate(chain) if key in keys), None)
        if first is None:
            _fail(malformed, "the links in the archive do not go through a key that you trust")
        keys += [key for key in chain[first:] if key not in keys]
        former += chain[:first]
        changes[name] = len(chain) - 1
    return former, changes


def _check_link(link: object) -> tuple[_Key, _Key]:
    """Return the keys between which a link leads, whoever trusts them."""
    malformed = Reason.KEY_NOT_LINKED
    names = ("previous_key", "next_key", "tlog_proof")
    if not isinstance(link, dict) or link.keys() != set(names) or not all(isinstance(value, str) for value in link.values()):
        _fail(malformed, "not a link between two keys")
    before, after, proof = (link[name] for name in names)
    if not all(map(_is_text, link.values())):
        _fail(malformed, "a link is not text")
    keys = [_parse_key(before), _parse_key(after)]
    proven = _verify_proof(_text_of(proof), keys)
    change = _parse_leaf(proven.leaf)
    named = [change.get(field) for field in ("type", "origin", "previous_key", "next_key")]
    if named != ["key_change", proven.origin, _key_digest(before), _key_digest(after)] or {key.name for key in keys} != {
        proven.origin
    }:
        _fail(malformed, "a link does not say that these keys followed each other")
    if {signature.key for signature in proven.signatures} != set(keys):
        _fail(malformed, "a link is not signed by both of its keys")
    return keys[0], keys[1]


def _signed_checkpoint(note: str, keys: Sequence[_Key]) -> tuple[str, int, bytes, list[str]]:
    text, signatures = _open_note(note, keys)
    origin, size, root = _parse_checkpoint(text)
    if not any(signature.key.name == origin and signature.key.type in _LOGS_SIGN_WITH for signature in signatures):
        _fail(Reason.ORIGIN_MISMATCH, "the origin line names another log than the key does")
    if size == 0 and root != sha256(b"").digest():
        _fail(Reason.CHECKPOINT_MALFORMED, "an empty log has another root")
    return origin, size, root, [signature.key.name for signature in signatures]


def _export_platform(
    proof: bytes | None, origin: str, note: str, keys: Sequence[_Key], witnesses: Sequence[_Key], threshold: int
) -> VerifiedPlatform | None:
    wanted = bool(witnesses) or threshold > 0
    if proof is None:
        if wanted:
            _fail(Reason.WITNESSES_TOO_FEW, "the export has no proof from the platform's log, which witnesses cosign")
        return None
    if not wanted and not any(key.name == origin.rpartition("/")[0] for key in keys):
        return None
    return _verify_platform(_text_of(proof), origin, note, keys, witnesses, threshold)


def _check_earlier(
    data: bytes, origin: str, size: int, root: bytes, keys: Sequence[_Key], former: Sequence[_Key], witnesses: Sequence[_Key]
) -> list[tuple[int, Mapping[str, int] | None]]:
    malformed = Reason.CONSISTENCY_INVALID
    links = _canonical(data, malformed).get("earlier")
    if not isinstance(links, list):
        _fail(malformed, "no list of earlier checkpoints")
    proven: list[tuple[int, Mapping[str, int] | None]] = []
    for link in links:
        if not isinstance(link, dict) or link.keys() != {"checkpoint", "consistency", "platform_proof"}:
            _fail(malformed, "not an earlier checkpoint with its proof")
        note, proof, path = link["checkpoint"], link["platform_proof"], link["consistency"]
        if not isinstance(note, str) or not isinstance(proof, str) or not isinstance(path, list) or len(path) > 2 * _PATH_MAX:
            _fail(malformed, "not an earlier checkpoint with its proof")
        if not note.isascii() and not _is_text(note):
            _fail(malformed, "the earlier checkpoint is not text")
        earlier_origin, earlier_size, earlier_root, _ = _signed_checkpoint(note, [*keys, *former])
        if earlier_origin != origin or not 1 <= earlier_size <= size:
            _fail(malformed, "the earlier checkpoint is of another log, or not earlier")
        hashes = [_base64(one, malformed) if isinstance(one, str) and one.isascii() else b"" for one in path]
        _check_consistency(earlier_size, size, earlier_root, root, hashes)
        cosigned = None
        if witnesses or any(key.name == origin.rpartition("/")[0] for key in keys):
            cosigned = _verify_platform(_text_of(proof), origin, note, keys, witnesses, 0).cosigned
        proven.append((earlier_size, cosigned))
    return proven


def _is_text(text: str) -> bool:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _check_consistency(first: int, second: int, first_root: bytes, second_root: bytes, path: Sequence[bytes]) -> None:
    """RFC 9162, 2.1.4.2."""
    failed = Reason.CONSISTENCY_INVALID
    if any(len(one) != 32 for one in path):
        _fail(failed, "the proof is not a list of SHA-256 hashes")
    if first == second:
        if path or first_root != second_root:
            _fail(failed, "trees of one size have two roots")
        return
    hashes = [first_root, *path] if first & (first - 1) == 0 else list(path)
    if not hashes:
        _fail(failed, "the proof is empty")
    node, last = first - 1, second - 1
    while node & 1:
        node, last = node >> 1, last >> 1
    old = new = hashes[0]
    for sibling in hashes[1:]:
        if last == 0:
            _fail(failed, "the proof is too long")
        if node & 1 or node == last:
            old, new = sha256(b"\x01" + sibling + old).digest(), sha256(b"\x01" + sibling + new).digest()
            while not node & 1 and node:
                node, last = node >> 1, last >> 1
        else:
            new = sha256(b"\x01" + new + sibling).digest()
        node, last = node >> 1, last >> 1
    if last != 0 or old != first_root or new != second_root:
        _fail(failed, "the proof leads to other roots")


def _take_payloads(data: bytes, request_id: str, seen: _Seen) -> None:
    """Compute the commitments that the payloads of a record open, to be found in the leaves."""
    malformed = Reason.PAYLOAD_MALFORMED
    record = _canonical(data, malformed)
    parts = record.get("payloads")
    if (
        record.keys() != {"request_id", "payloads"}
        or record["request_id"] != request_id
        or not isinstance(parts, list)
        or not parts
    ):
        _fail(malformed, "not the payloads of the record that its name says")
    for part in parts:
        if not isinstance(part, dict) or not _is_count(part.get("leaf_index")) or not isinstance(part.get("kind"), str):
            _fail(malformed, "a payload has no kind or leaf")
        form = part.keys() - {"leaf_index", "kind", "salt"}
        content = next((part[name] for name in form), None)
        if form not in ({"text"}, {"base64"}) or not isinstance(content, str) or not isinstance(part.get("salt"), str):
            _fail(malformed, "a payload has no text or no salt")
        if not part["salt"].isascii() or ("base64" in form and not content.isascii()):
            _fail(malformed, "not Base64")
        salt = _base64(part["salt"], malformed)
        payload = content.encode("utf-8") if "text" in form else _base64(content, malformed)
        index, kind = part["leaf_index"], part["kind"]
        of_leaf = seen.wanted.setdefault(index, {})
        if len(salt) != 32 or kind in of_leaf or seen.wanted_record.setdefault(index, request_id) != request_id:
            _fail(malformed, "a salt has not 32 bytes, or a payload is there twice")
        of_leaf[kind] = hmac.digest(salt, payload, "sha256").hex()


def _lines(archive: _Archive, digest: str) -> Iterator[bytes]:
    """Lines of leaves.jsonl, whose SHA-256 has been checked when the last one has been read."""
    computed, rest = sha256(), b""
    for piece in archive.chunks("leaves.jsonl"):
        computed.update(piece)
        lines = (rest + piece).split(b"\n")
        rest = lines.pop()
        if len(rest) > _LINE_MAX:
            _fail(Reason.LEAF_MALFORMED, f"a line of leaves.jsonl has more than {_LINE_MAX} bytes")
        yield from lines
    if rest:
        _fail(Reason.LEAF_MALFORMED, "leaves.jsonl ends without an end of line")
    if computed.hexdigest() != digest:
        _fail(Reason.FILE_ALTERED, "leaves.jsonl has another SHA-256")


def _check_leaves(
    archive: _Archive, digest: str, manifest: Mapping[str, Any], tree: _Tree, seen: _Seen, extract: int | None
) -> tuple[bytes, list[bytes]] | None:
    tenant, size = manifest["origin"].rpartition("/")[2], manifest["tree_size"]
    case_id = manifest["selection"].get("case_id", "")
    extracted = None
    for line in _lines(archive, digest):
        index, form, content, path = _parse_line(line, seen.count + 1)
        if index >= size:
            _fail(Reason.INDEX_OUT_OF_RANGE, f"index {index}, size {size}")
        if seen.last is not None and index <= seen.last:
            _fail(Reason.LEAVES_INCOMPLETE, f"leaf {index} comes twice, or out of order")
        try:
            data = binascii.a2b_base64(content)
        except ValueError:
            data = b""
        if binascii.b2a_base64(data, newline=False) != content:
            _fail(Reason.LEAF_MALFORMED, f"leaf {index} is not canonical Base64")
        time: str | None = None
        if form == b"withheld":
            if len(data) != 32 or case_id:
                _fail(Reason.LEAF_MALFORMED, f"leaf {index} is withheld without its hash, or of no case")
            tree.check(index, data, path)
            seen.withheld += 1
        else:
            tree.check(index, sha256(b"\x00" + data).digest(), path)
            fields = _parse_leaf(data)
            if fields.get("tenant") != tenant:
                _fail(Reason.TENANT_MISMATCH, f"leaf {index}")
            if case_id and fields.get("case_id") != case_id and fields.get("type") != "correction":
                _fail(Reason.LEAVES_INCOMPLETE, f"leaf {index} is not of the case")
            time = fields.get("ts") if isinstance(fields.get("ts"), str) else None
            if index in seen.wanted:
                _check_openings(index, fields, seen)
            if index == extract:
                extracted = data, path
        if seen.first is None:
            seen.first, seen.first_time = index, time
        seen.last, seen.last_time = index, time
        seen.count += 1
    if (seen.count, seen.withheld) != (manifest["leaves"], manifest["withheld_leaves"]):
        _fail(Reason.LEAVES_INCOMPLETE, "the manifest counts other leaves than there are")
    return extracted


def _check_openings(index: int, fields: Mapping[str, Any], seen: _Seen) -> None:
    commitments = fields.get("commitments")
    record = fields.get("record_id" if fields.get("type") == "correction" else "request_id")
    if not isinstance(commitments, dict) or record != seen.wanted_record[index]:
        _fail(Reason.COMMITMENT_ABSENT, f"leaf {index} is not of the record whose payloads name it")
    for kind, computed in seen.wanted.pop(index).items():
        if kind not in commitments:
            _fail(Reason.COMMITMENT_ABSENT, f"leaf {index} commits to no such payload")
        if commitments[kind] != computed:
            _fail(Reason.OPENING_INVALID, f"leaf {index}: HMAC-SHA256(salt, payload) is another value")
        seen.opened += 1


def _time(text: str | None) -> datetime | None:
    if text is None or not _TIME.fullmatch(text):
        return None
    try:
        return datetime.fromisoformat(text)
    except ValueError:
        return None


def _check_run(manifest: Mapping[str, Any], seen: _Seen) -> tuple[bool, bool]:
    """Say whether no index is missing, and whether no time is. Raises where the manifest claims what is not so."""
    if "case_id" in manifest["selection"]:
        if seen.first is not None and not manifest["first_index"] <= seen.first <= (seen.last or 0) < manifest["stop_index"]:
            _fail(Reason.LEAVES_INCOMPLETE, "leaves are outside of the run that the manifest names")
        return False, False
    first, stop, size = manifest["first_index"], manifest["stop_index"], manifest["tree_size"]
    begin, end = max(0, first - 1), min(stop + 1, size)
    if seen.count != end - begin or (seen.count and (seen.first, seen.last) != (begin, end - 1)):
        _fail(Reason.LEAVES_INCOMPLETE, f"not all of the leaves {begin} to {end - 1} are there")
    wanted_from, wanted_to = _time(manifest["selection"]["from"]), _time(manifest["selection"]["to"])
    assert wanted_from is not None
    assert wanted_to is not None
    whole = True
    if first > 0:
        before = _time(seen.first_time)
        whole = before is not None
        if before is not None and before >= wanted_from:
            _fail(Reason.LEAVES_INCOMPLETE, "the leaf before the run is of the time that was asked for")
    if stop < size:
        after = _time(seen.last_time)
        whole = whole and after is not None
        if after is not None and after < wanted_to - _DISORDER:
            _fail(Reason.LEAVES_INCOMPLETE, "the leaf after the run is of the time that was asked for")
    return True, whole


def main(arguments: Sequence[str]) -> int:
    """Verify what the arguments name. Exit status: 0 proven, 1 not proven, 2 wrong use."""
    parser = argparse.ArgumentParser(
        prog="verify.py", description="Verify a receipt or an export of an audit log offline.", allow_abbrev=False
    )
    parser.add_argument("file", type=Path, help="receipt (a tlog-proof file with the leaf) or export (a ZIP archive)")
    parser.add_argument("key", nargs="*", help="verifier key of the log, and of the platform's log where its proof is given")
    parser.add_argument("--key", action="append", default=[], dest="more_keys", metavar="KEY", help="the same")
    parser.add_argument("--linked-key", action="append", default=[], metavar="KEY", help="later key, to which links lead")
    parser.add_argument("--link", action="append", default=[], type=Path, metavar="FILE", help="link from one key to the next")
    parser.add_argument("--platform-proof", type=Path, help="tlog-proof file of the receipt's checkpoint in the platform's log")
    parser.add_argument("--witness", nargs="+", default=[], metavar="KEY", help="verifier key of a witness")
    parser.add_argument("--witness-key", action="append", default=[], metavar="KEY", help="the same")
    parser.add_argument(
        "--threshold", "--witnesses", type=int, metavar="N", help="witnesses that must have cosigned; default: all that are given"
    )
    parser.add_argument("--extract", type=int, metavar="INDEX", help="write the proof of this leaf of an export: a tlog-proof file")
    parser.add_argument("--output", type=Path, metavar="FILE", help="where to; default: leaf-INDEX.tlog-proof here")
    try:
        given = parser.parse_intermixed_args(arguments)
        keys, witnesses = [*given.key, *given.more_keys], [*given.witness, *given.witness_key]
        if not keys:
            parser.error("give a key that you trust: --key; the keys in an archive prove nothing")
        keys = follow_links(keys, given.linked_key, [link.read_bytes() for link in given.link])
        threshold = len({key.partition("+")[0] for key in witnesses}) if given.threshold is None else given.threshold
        with given.file.open("rb") as stream:
            is_export = stream.read(4) == b"PK\x03\x04"
            if is_export and given.platform_proof is not None:
                parser.error("an export has its own proof from the platform's log")
            if not is_export and given.extract is not None:
                parser.error("proofs are extracted from exports")
            if not is_export and given.platform_proof is None and (witnesses or given.threshold is not None):
                parser.error("witnesses cosign the platform's log: give its --platform-proof")
            if is_export:
                return _say_export(stream, keys, witnesses, threshold, given.extract, given.output)
        return _say_receipt(given.file, keys, given.platform_proof, witnesses, threshold)
    except SystemExit as error:
        return int(error.code or 0)
    except OSError as error:
        print(f"{error.filename or given.file}: {error.strerror}", file=sys.stderr)
        return 2
    except VerificationFailed as failure:
        print(f"NOT PROVEN {failure.reason.name}: {failure}", file=sys.stderr)
        return 1


def _say_receipt(file: Path, keys: Sequence[str], platform_proof: Path | None, witnesses: Sequence[str], threshold: int) -> int:
    leaf = verify_receipt(file.read_bytes(), keys)
    platform = None
    if platform_proof is not None:
        platform = verify_platform_proof(platform_proof.read_bytes(), leaf, keys, witnesses, threshold)
    print(f"PROVEN leaf {leaf.leaf_index} of {leaf.tree_size} in {leaf.origin}, signed by {', '.join(leaf.signed_by)}")
    _say_platform(platform)
    print(json.dumps(leaf.fields, indent=2, ensure_ascii=True, sort_keys=True))
    return 0


def _say_platform(platform: VerifiedPlatform | None) -> None:
    if platform is not None:
        print(f"PROVEN checkpoint {platform.leaf_index} of {platform.tree_size} in {platform.origin}")
        for name, time_s in platform.cosigned.items():
            print(f"COSIGNED by {name} at {when(time_s)}")


def _say_export(
    stream: BinaryIO, keys: Sequence[str], witnesses: Sequence[str], threshold: int, index: int | None, output: Path | None
) -> int:
    if index is None:
        export = verify_export(stream, keys, witnesses, threshold)
    else:
        export, proof = extract_proof(stream, keys, witnesses, threshold, index)
        output = output or Path(f"leaf-{index}.tlog-proof")
        output.write_text(proof, encoding="utf-8", newline="")
    for line in describe(export):
        print(line)
    if index is not None:
        print(f"WRITTEN {output}")
    return 0


def describe(export: VerifiedExport) -> list[str]:
    """Say what was proven of an export, a line each, and what was not."""
    manifest = export.manifest
    chosen = manifest["selection"]
    lines = [f"PROVEN {export.leaves} leaves under {export.tree_size} in {export.origin}, signed by {', '.join(export.signed_by)}"]
    if export.withheld:
        lines.append(f"WITHHELD {export.withheld} of them, which are here by their hash alone")
    span = f"from {chosen['from']} to {chosen['to']}"
    if not export.without_gap:
        lines.append(f"NOT SHOWN that these are all leaves of the case {json.dumps(chosen['case_id'])} {span}")
    else:
        lines.append(
            f"COMPLETE leaves {export.first_index} to {export.last_index}, without a gap" if export.leaves else "EMPTY log"
        )
        lines.append(f"{'COMPLETE' if export.whole_time else 'NOT SHOWN to be complete'} {span}")
    lines.append(f"OPENED {export.opened} payloads of {manifest['payload_records']} records")
    if export.platform is None:
        lines.append("NOT CHECKED whether the platform's log holds the checkpoint: no proof, or no key of that log was given")
    else:
        lines.append(f"PROVEN checkpoint {export.platform.leaf_index} of {export.platform.tree_size} in {export.platform.origin}")
        lines += [f"COSIGNED by {name} at {when(time_s)}" for name, time_s in export.platform.cosigned.items()]
    lines += [f"FOLLOWED {count} changes of the key of {origin}" for origin, count in sorted(export.key_changes.items())]
    for size, cosigned in export.earlier:
        by = "".join(f", cosigned by {name} at {when(time_s)}" for name, time_s in (cosigned or {}).items())
        lines.append(f"EXTENDS the checkpoint of {size} leaves{by}")
    if manifest.get("left_out"):
        lines.append(f"LEFT OUT, says the manifest: {json.dumps(manifest['left_out'], sort_keys=True)}")
    return lines


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
