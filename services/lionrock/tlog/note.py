"""Signed notes: text, a blank line, signature lines. Source: c2sp.org/signed-note.

Knows: the format to the byte, key names and ids, verifier keys, which algorithm belongs to which signature type byte.
Does not know: what the text says (checkpoint.py), where keys are kept (keys.py).

A new algorithm is one entry of `_VERIFY` and one signer class with the same two members; names, ids and lines follow from the
type byte.
"""

import base64
import binascii
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from hashlib import sha256

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

NOTE_MAX_BYTES = 1_000_000
SIGNATURES_MAX = 64
"""The format asks for at least 16."""
KEY_ID_BYTES = 4
_SIGNER_KEY_PREFIX = "PRIVATE+KEY+"


class MalformedNote(ValueError):
    """The text is not a signed note, or the key is not a verifier key."""


class UntrustedNote(ValueError):
    """No known key signed the note, or a known key's signature is wrong."""


class SignatureType(IntEnum):
    """Signature type identifier bytes of c2sp.org/signed-note that we sign with."""

    ED25519 = 0x01


def _verify_ed25519(public_key: bytes, text: bytes, signature: bytes) -> None:
    Ed25519PublicKey.from_public_bytes(public_key).verify(signature, text)


_VERIFY: Mapping[SignatureType, Callable[[bytes, bytes, bytes], None]] = {SignatureType.ED25519: _verify_ed25519}
_PUBLIC_KEY_BYTES: Mapping[SignatureType, int] = {SignatureType.ED25519: 32}


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
        key = base64.b64encode(bytes([self.type]) + self.public_key).decode("ascii")
        return f"{self.name}+{self.key_id.hex()}+{key}"

    @classmethod
    def parse(cls, text: str) -> "VerifierKey":
        """Read a verifier key. Raises MalformedNote."""
        name, _, rest = text.partition("+")
        key_id, _, encoded = rest.partition("+")
        _check_name(name)
        material = decode_base64(encoded)
        try:
            type_ = SignatureType(material[0]) if material else None
        except ValueError:
            type_ = None
        if type_ is None or len(material) != 1 + _PUBLIC_KEY_BYTES[type_]:
            raise MalformedNote("the verifier key has an unknown algorithm or a wrong length")
        key = cls(name, type_, material[1:])
        if key_id != key.key_id.hex():
            raise MalformedNote("the key id does not belong to the key")
        return key

    def verify(self, text: str, signature: bytes) -> None:
        """Check a signature over `text`. Raises UntrustedNote."""
        try:
            _VERIFY[self.type](self.public_key, text.encode(), signature)
        except (InvalidSignature, ValueError) as error:
            raise UntrustedNote(f"the signature of {self.name} is wrong") from error


class Ed25519Signer:
    """Signs notes with one Ed25519 key under one name."""

    __slots__ = ("_private_key", "verifier_key")

    def __init__(self, name: str, private_key: Ed25519PrivateKey) -> None:
        """Sign as `name`. Raises MalformedNote for a name that no note can carry."""
        _check_name(name)
        self._private_key = private_key
        self.verifier_key = VerifierKey(name, SignatureType.ED25519, private_key.public_key().public_bytes_raw())

    @classmethod
    def decode(cls, text: str) -> "Ed25519Signer":
        """Read a signer key, "PRIVATE+KEY+<name>+<key id>+<type and seed>" (golang.org/x/mod/sumdb/note). Raises MalformedNote."""
        name, _, rest = text.removeprefix(_SIGNER_KEY_PREFIX).partition("+")
        key_id, _, encoded = rest.partition("+")
        material = decode_base64(encoded)
        if not text.startswith(_SIGNER_KEY_PREFIX) or len(material) != 33 or material[0] != SignatureType.ED25519:
            raise MalformedNote("not an Ed25519 signer key")
        signer = cls(name, Ed25519PrivateKey.from_private_bytes(material[1:]))
        if signer.verifier_key.key_id.hex() != key_id:
            raise MalformedNote("the key id does not belong to the key")
        return signer

    def encode(self) -> str:
        """Write the signer key. A secret."""
        key = self.verifier_key
        material = base64.b64encode(bytes([key.type]) + self._private_key.private_bytes_raw()).decode("ascii")
        return f"{_SIGNER_KEY_PREFIX}{key.name}+{key.key_id.hex()}+{material}"

    def sign(self, text: str) -> bytes:
        """Signature over the text of a note, its final newline included."""
        return self._private_key.sign(text.encode())


def sign_note(text: str, signer: Ed25519Signer) -> str:
    """Make a note. `text` ends in a newline. Raises MalformedNote for text that no note can carry."""
    _check_text(text)
    if not text.endswith("\n"):
        raise MalformedNote("the text of a note ends in a newline")
    key = signer.verifier_key
    signature = base64.b64encode(key.key_id + signer.sign(text)).decode("ascii")
    return f"{text}\n— {key.name} {signature}\n"


def open_note(note: str, verifier_keys: Sequence[VerifierKey]) -> str:
    """Return the text of a note that at least one of the keys signed.

    Unknown signers are ignored; the wrong signature of a known one is not. Raises MalformedNote, UntrustedNote.
    """
    _check_text(note)
    text, separator, signature_block = note.rpartition("\n\n")
    if not separator or not text or not signature_block.endswith("\n"):
        raise MalformedNote("a note is text, a blank line and signature lines")
    text += "\n"
    lines = signature_block[:-1].split("\n")
    if len(lines) > SIGNATURES_MAX:
        raise MalformedNote(f"the note has more than {SIGNATURES_MAX} signatures")
    known = {(key.name, key.key_id): key for key in verifier_keys}
    trusted = False
    for line in lines:
        dash, _, rest = line.partition(" ")
        name, _, encoded = rest.partition(" ")
        if dash != "—":
            raise MalformedNote("a signature line starts with an em dash and a space")
        _check_name(name)
        blob = decode_base64(encoded)
        if len(blob) <= KEY_ID_BYTES:
            raise MalformedNote("a signature line has no signature")
        key = known.get((name, blob[:KEY_ID_BYTES]))
        if key is not None:
            key.verify(text, blob[KEY_ID_BYTES:])
            trusted = True
    if not trusted:
        raise UntrustedNote("no known key signed the note")
    return text


def decode_base64(text: str) -> bytes:
    """Decode standard Base64 (RFC 4648, section 4) with one accepted spelling a value. Raises MalformedNote."""
    try:
        value = base64.b64decode(text.encode("ascii"), validate=True)
    except (UnicodeEncodeError, binascii.Error, ValueError) as error:
        raise MalformedNote("not Base64") from error
    if base64.b64encode(value).decode("ascii") != text:
        raise MalformedNote("not the canonical Base64 of its value")
    return value


def _check_name(name: str) -> None:
    if not name or "+" in name or any(character.isspace() for character in name):
        raise MalformedNote("a key name is not empty and has neither spaces nor plus signs")


def _check_text(text: str) -> None:
    if len(text) > NOTE_MAX_BYTES:
        raise MalformedNote(f"the note is longer than {NOTE_MAX_BYTES} characters")
    if any(character < " " and character != "\n" for character in text):
        raise MalformedNote("a note has no control characters but the newline")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise MalformedNote("a note is valid UTF-8") from error
