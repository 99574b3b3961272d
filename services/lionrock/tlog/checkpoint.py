"""Checkpoints: the origin, size and root of a log, as the text of a signed note. Source: c2sp.org/tlog-checkpoint.

Knows: the three lines. Does not know: whether size and root are those of any stored tree (tenant_log.py, sequencer.py).
"""

import base64
import re
from dataclasses import dataclass

from lionrock.tlog.encoding import MalformedNote, decode_base64
from lionrock.tlog.merkle import HASH_BYTES

_SIZE = re.compile(r"0|[1-9][0-9]{0,18}")


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """What a log commits to when it signs: `size` leaves under `root` (32 bytes)."""

    origin: str
    size: int
    root: bytes

    def text(self) -> str:
        """Text of the note: three lines."""
        return f"{self.origin}\n{self.size}\n{base64.b64encode(self.root).decode('ascii')}\n"

    @classmethod
    def parse(cls, text: str) -> "Checkpoint":
        """Read the text of an opened note; extension lines are allowed and ignored. Raises MalformedNote."""
        lines = text.split("\n")
        if len(lines) < 4 or lines.pop() != "" or not all(lines):
            raise MalformedNote("a checkpoint has an origin, a size and a root, one a line")
        origin, size, encoded_root = lines[:3]
        if not _SIZE.fullmatch(size):
            raise MalformedNote("the tree size is not a decimal number")
        root = decode_base64(encoded_root)
        if len(root) != HASH_BYTES:
            raise MalformedNote("the root is not a SHA-256 hash")
        return cls(origin, int(size), root)
