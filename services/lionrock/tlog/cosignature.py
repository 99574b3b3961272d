"""Cosignatures: what a cosigner signs, and how time and signature stand in one blob. Source: c2sp.org/tlog-cosignature.

Knows: both signed messages to the byte, the timestamped signature. Does not know: keys (keys.py), who cosigns when.

The Ed25519 message is text over the whole checkpoint, extension lines included, and does not name the cosigner, so one key must
never serve two cosigners. The ML-DSA-44 message is binary, names cosigner and log, and covers size and root alone.
"""

import struct

from lionrock.tlog.checkpoint import Checkpoint
from lionrock.tlog.encoding import MalformedNote

TIME_BYTES = 8
TIME_MAX = 2**63 - 1
_ML_DSA_LABEL = b"subtree/v1\n\0"
_NAME_MAX_BYTES = 255


def ed25519_message(time_s: int, text: str) -> bytes:
    """Message of an Ed25519 cosignature on a checkpoint's text. Raises MalformedNote for a text that is none."""
    Checkpoint.parse(text)
    return f"cosignature/v1\ntime {time_s}\n{text}".encode()


def ml_dsa_message(name: str, time_s: int, text: str) -> bytes:
    """Message of an ML-DSA-44 cosignature on the whole tree of a checkpoint.

    Raises MalformedNote for a text that is no checkpoint, and for names that do not fit.
    """
    checkpoint = Checkpoint.parse(text)
    return b"".join(
        [
            _ML_DSA_LABEL,
            _short(name),
            struct.pack(">Q", time_s),
            _short(checkpoint.origin),
            struct.pack(">QQ", 0, checkpoint.size),
            checkpoint.root,
        ]
    )


def join(time_s: int, signature: bytes) -> bytes:
    """Write a timestamped signature. `time_s`: seconds since 1970. Raises MalformedNote for a time out of range."""
    if not 0 <= time_s <= TIME_MAX:
        raise MalformedNote("a cosignature's time is between 0 and 2**63 - 1")
    return struct.pack(">Q", time_s) + signature


def split(blob: bytes) -> tuple[int, bytes]:
    """Read a timestamped signature. Raises MalformedNote."""
    if len(blob) <= TIME_BYTES:
        raise MalformedNote("the cosignature is too short")
    time_s: int = struct.unpack(">Q", blob[:TIME_BYTES])[0]
    if time_s > TIME_MAX:
        raise MalformedNote("the cosignature's time is out of range")
    return time_s, blob[TIME_BYTES:]


def _short(name: str) -> bytes:
    encoded = name.encode()
    if not 1 <= len(encoded) <= _NAME_MAX_BYTES:
        raise MalformedNote(f"a name has 1 to {_NAME_MAX_BYTES} bytes")
    return bytes([len(encoded)]) + encoded
