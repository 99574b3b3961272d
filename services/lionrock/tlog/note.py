"""Signed notes: text, a blank line, signature lines. Source: c2sp.org/signed-note.

Knows: the format to the byte, and whose signatures count. Does not know: what the text says (checkpoint.py), what a signature is
over (keys.py).
"""

from collections.abc import Sequence
from dataclasses import dataclass

from lionrock.tlog.encoding import MalformedNote, decode_base64, encode_base64
from lionrock.tlog.keys import KEY_ID_BYTES, Ed25519Signer, Signer, UntrustedNote, VerifierKey, check_name

__all__ = [
    "Ed25519Signer",
    "MalformedNote",
    "OpenedNote",
    "Signature",
    "UntrustedNote",
    "VerifierKey",
    "add_signatures",
    "open_note",
    "sign_note",
    "signature_line",
]

NOTE_MAX_BYTES = 1_000_000
SIGNATURES_MAX = 64
"""The format asks for at least 16."""


@dataclass(frozen=True, slots=True)
class Signature:
    """A signature of a known key that is right. `time_s`: the time that a cosignature states, in seconds since 1970."""

    key: VerifierKey
    time_s: int | None
    line: str
    """The signature line as it stands in the note, with its newline."""


@dataclass(frozen=True, slots=True)
class OpenedNote:
    """A note that at least one known key signed. Only `open_note` makes one."""

    text: str
    signatures: Sequence[Signature]
    """Those of known keys, in the order of the note."""

    def signed_by(self, key: VerifierKey) -> bool:
        """Whether this key signed."""
        return any(signature.key == key for signature in self.signatures)


def sign_note(text: str, *signers: Signer) -> str:
    """Make a note. `text` ends in a newline. Raises MalformedNote for text that no note can carry."""
    _check_text(text)
    if not text.endswith("\n"):
        raise MalformedNote("the text of a note ends in a newline")
    return f"{text}\n{''.join(signature_line(text, signer) for signer in signers)}"


def signature_line(text: str, signer: Signer) -> str:
    """Signature line of one signer, with its newline. Raises MalformedNote."""
    key = signer.verifier_key
    return f"— {key.name} {encode_base64(key.key_id + signer.sign(text))}\n"


def add_signatures(note: str, lines: Sequence[str]) -> str:
    """Put signature lines at the end of a note. They are not judged here."""
    return note + "".join(lines)


def open_note(note: str, verifier_keys: Sequence[VerifierKey]) -> OpenedNote:
    """Open a note that at least one of the keys signed, and say which did.

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
    signatures: dict[VerifierKey, Signature] = {}
    for line in lines:
        dash, _, rest = line.partition(" ")
        name, _, encoded = rest.partition(" ")
        if dash != "—":
            raise MalformedNote("a signature line starts with an em dash and a space")
        check_name(name)
        blob = decode_base64(encoded)
        if len(blob) <= KEY_ID_BYTES:
            raise MalformedNote("a signature line has no signature")
        key = known.get((name, blob[:KEY_ID_BYTES]))
        if key is not None:
            signature = Signature(key, key.verify(text, blob[KEY_ID_BYTES:]), f"{line}\n")
            signatures.setdefault(key, signature)
    if not signatures:
        raise UntrustedNote("no known key signed the note")
    return OpenedNote(text, tuple(signatures.values()))


def _check_text(text: str) -> None:
    if len(text) > NOTE_MAX_BYTES:
        raise MalformedNote(f"the note is longer than {NOTE_MAX_BYTES} characters")
    if any(character < " " and character != "\n" for character in text):
        raise MalformedNote("a note has no control characters but the newline")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise MalformedNote("a note is valid UTF-8") from error
