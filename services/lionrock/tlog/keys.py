"""Keys that sign notes: names, ids, verifier keys, signer keys, and the algorithm that belongs to each type byte.

Source: c2sp.org/signed-note (type 0x01), c2sp.org/tlog-cosignature (0x04 and 0x06).
Knows: how a key is written and what its signatures are over. Does not know: how a note is laid out (note.py), where keys are kept.

Signature types: Ed25519 over the text (logs); the two timestamped cosignatures (witnesses, and logs that sign with ML-DSA-44, as
c2sp.org/tlog-checkpoint advises). A new algorithm is one entry of `_VERIFY` and one signer; names, ids and lines follow from the
type byte.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import IntEnum
from hashlib import sha256
from typing import Protocol

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.mldsa import MLDSA44PrivateKey, MLDSA44PublicKey

from lionrock.tlog import cosignature
from lionrock.tlog.encoding import MalformedNote, decode_base64, encode_base64

KEY_ID_BYTES = 4
SEED_BYTES = 32
_SIGNER_KEY_PREFIX = "PRIVATE+KEY+"


class UntrustedNote(ValueError):
    """No known key signed the note, or a known key's signature is wrong."""


class SignatureType(IntEnum):
    """Signature type identifier bytes of c2sp.org/signed-note that we sign with."""

    ED25519 = 0x01
    ED25519_COSIGNATURE = 0x04
    ML_DSA_44_COSIGNATURE = 0x06


def _verify_ed25519(key: "VerifierKey", text: str, signature: bytes) -> None:
    Ed25519PublicKey.from_public_bytes(key.public_key).verify(signature, text.encode())


def _verify_ed25519_cosignature(key: "VerifierKey", text: str, signature: bytes) -> int:
    time_s, signature = cosignature.split(signature)
    Ed25519PublicKey.from_public_bytes(key.public_key).verify(signature, cosignature.ed25519_message(time_s, text))
    return time_s


def _verify_ml_dsa_44_cosignature(key: "VerifierKey", text: str, signature: bytes) -> int:
    time_s, signature = cosignature.split(signature)
    MLDSA44PublicKey.from_public_bytes(key.public_key).verify(signature, cosignature.ml_dsa_message(key.name, time_s, text))
    return time_s


_VERIFY: Mapping[SignatureType, Callable[["VerifierKey", str, bytes], int | None]] = {
    SignatureType.ED25519: _verify_ed25519,
    SignatureType.ED25519_COSIGNATURE: _verify_ed25519_cosignature,
    SignatureType.ML_DSA_44_COSIGNATURE: _verify_ml_dsa_44_cosignature,
}
_PUBLIC_KEY_BYTES: Mapping[SignatureType, int] = {
    SignatureType.ED25519: 32,
    SignatureType.ED25519_COSIGNATURE: 32,
    SignatureType.ML_DSA_44_COSIGNATURE: 1312,
}


@dataclass(frozen=True, slots=True)
class VerifierKey:
    """What a verifier needs to know of a signer: "<name>+<key id>+<type and public key>"."""

    name: str
    type: SignatureType
    public_key: bytes

    @property
    def key_id(self) -> bytes:
        """First four bytes of SHA-256(name || 0x0A || type || public key)."""
        return sha256(self.name.encode() + b"\n" + bytes([self.type]) + self.public_key).digest()[:KEY_ID_BYTES]

    def __str__(self) -> str:
        return f"{self.name}+{self.key_id.hex()}+{encode_base64(bytes([self.type]) + self.public_key)}"

    @classmethod
    def parse(cls, text: str) -> "VerifierKey":
        """Read a verifier key. Raises MalformedNote."""
        name, type_, public_key, key_id = _parse_key(text)
        if type_ is None or len(public_key) != _PUBLIC_KEY_BYTES[type_]:
            raise MalformedNote("the verifier key has an unknown algorithm or a wrong length")
        key = cls(name, type_, public_key)
        if key_id != key.key_id.hex():
            raise MalformedNote("the key id does not belong to the key")
        return key

    def verify(self, text: str, signature: bytes) -> int | None:
        """Check a signature over `text`, without the key id. Returns the time that a cosignature states. Raises UntrustedNote."""
        try:
            return _VERIFY[self.type](self, text, signature)
        except (InvalidSignature, ValueError) as error:
            raise UntrustedNote(f"the signature of {self.name} is wrong") from error


class Signer(Protocol):
    """Signs notes with one key under one name."""

    @property
    def verifier_key(self) -> VerifierKey:
        """What verifies the signatures."""

    def encode(self) -> str:
        """Write the signer key. A secret."""

    def sign(self, text: str) -> bytes:
        """Signature over the text of a note, its final newline included; without the key id. Raises MalformedNote."""


class Ed25519Signer:
    """Signs the text of notes with Ed25519."""

    __slots__ = ("_private_key", "verifier_key")

    def __init__(self, name: str, private_key: Ed25519PrivateKey) -> None:
        """Sign as `name`. Raises MalformedNote for a name that no note can carry."""
        check_name(name)
        self._private_key = private_key
        self.verifier_key = VerifierKey(name, SignatureType.ED25519, private_key.public_key().public_bytes_raw())

    @classmethod
    def decode(cls, text: str) -> "Ed25519Signer":
        """Read an Ed25519 signer key. Raises MalformedNote."""
        signer = decode_signer(text)
        if not isinstance(signer, cls):
            raise MalformedNote("not an Ed25519 signer key")
        return signer

    def encode(self) -> str:
        """Write the signer key. A secret."""
        return _encode_signer(self.verifier_key, self._private_key.private_bytes_raw())

    def sign(self, text: str) -> bytes:
        """Signature over the text."""
        return self._private_key.sign(text.encode())


class Cosigner:
    """Signs checkpoints, and nothing else, with the time. Ed25519 for today's witnesses, ML-DSA-44 for new deployments."""

    __slots__ = ("_clock", "_private_key", "verifier_key")

    def __init__(
        self, name: str, private_key: Ed25519PrivateKey | MLDSA44PrivateKey, *, clock: Callable[[], float] = time.time
    ) -> None:
        """Sign as `name`. Raises MalformedNote for a name that no note can carry."""
        check_name(name)
        self._private_key = private_key
        self._clock = clock
        type_ = (
            SignatureType.ED25519_COSIGNATURE if isinstance(private_key, Ed25519PrivateKey) else SignatureType.ML_DSA_44_COSIGNATURE
        )
        self.verifier_key = VerifierKey(name, type_, private_key.public_key().public_bytes_raw())

    def encode(self) -> str:
        """Write the signer key. A secret."""
        return _encode_signer(self.verifier_key, self._private_key.private_bytes_raw())

    def sign(self, text: str) -> bytes:
        """Cosignature of a checkpoint's text: time and signature. Raises MalformedNote when the text is no checkpoint."""
        time_s = int(self._clock())
        if self.verifier_key.type is SignatureType.ED25519_COSIGNATURE:
            message = cosignature.ed25519_message(time_s, text)
        else:
            message = cosignature.ml_dsa_message(self.verifier_key.name, time_s, text)
        return cosignature.join(time_s, self._private_key.sign(message))


def signer_from_seed(name: str, type_: SignatureType, seed: bytes) -> Signer:
    """Make the signer of a private key of 32 bytes. Raises MalformedNote."""
    if len(seed) != SEED_BYTES:
        raise MalformedNote(f"a private key has {SEED_BYTES} bytes")
    if type_ is SignatureType.ML_DSA_44_COSIGNATURE:
        return Cosigner(name, MLDSA44PrivateKey.from_seed_bytes(seed))
    private_key = Ed25519PrivateKey.from_private_bytes(seed)
    return Ed25519Signer(name, private_key) if type_ is SignatureType.ED25519 else Cosigner(name, private_key)


def decode_signer(text: str) -> Signer:
    """Read a signer key, "PRIVATE+KEY+<name>+<key id>+<type and seed>" (golang.org/x/mod/sumdb/note). Raises MalformedNote."""
    if not text.startswith(_SIGNER_KEY_PREFIX):
        raise MalformedNote("not a signer key")
    name, type_, seed, key_id = _parse_key(text.removeprefix(_SIGNER_KEY_PREFIX))
    if type_ is None:
        raise MalformedNote("the signer key has an unknown algorithm")
    signer = signer_from_seed(name, type_, seed)
    if signer.verifier_key.key_id.hex() != key_id:
        raise MalformedNote("the key id does not belong to the key")
    return signer


def check_name(name: str) -> None:
    """Accept a key name that a note can carry. Raises MalformedNote."""
    if not name or "+" in name or any(character.isspace() for character in name):
        raise MalformedNote("a key name is not empty and has neither spaces nor plus signs")


def _encode_signer(key: VerifierKey, seed: bytes) -> str:
    return f"{_SIGNER_KEY_PREFIX}{key.name}+{key.key_id.hex()}+{encode_base64(bytes([key.type]) + seed)}"


def _parse_key(text: str) -> tuple[str, SignatureType | None, bytes, str]:
    """Name, type if we know it, material and claimed id of a key of either kind."""
    name, _, rest = text.partition("+")
    key_id, _, encoded = rest.partition("+")
    check_name(name)
    material = decode_base64(encoded)
    try:
        type_ = SignatureType(material[0]) if material else None
    except ValueError:
        type_ = None
    return name, type_, material[1:], key_id
