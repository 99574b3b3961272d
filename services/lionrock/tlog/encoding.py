"""What every text format of a log shares: Base64 with one spelling a value, and the error for what is not the format."""

import base64
import binascii


class MalformedNote(ValueError):
    """The text is not a signed note, a key, a checkpoint or a proof."""


def encode_base64(value: bytes) -> str:
    """Encode as standard Base64 (RFC 4648, section 4)."""
    return base64.b64encode(value).decode("ascii")


def decode_base64(text: str) -> bytes:
    """Decode standard Base64 (RFC 4648, section 4) with one accepted spelling a value. Raises MalformedNote."""
    try:
        value = base64.b64decode(text.encode("ascii"), validate=True)
    except (UnicodeEncodeError, binascii.Error, ValueError) as error:
        raise MalformedNote("not Base64") from error
    if base64.b64encode(value).decode("ascii") != text:
        raise MalformedNote("not the canonical Base64 of its value")
    return value
