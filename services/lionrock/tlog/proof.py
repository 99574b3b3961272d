"""The file that a regulator gets: leaf, index, inclusion proof and signed checkpoint in one text.

Source: c2sp.org/tlog-proof (version 1).
Knows: the format to the byte. Does not know: whether any of it is true (verify.py checks that, and shares no code with this
module). The extra data is the leaf itself, so the file needs nothing beside it but the log's verifier key.
"""

import base64
import re
from collections.abc import Sequence
from dataclasses import dataclass

from lionrock.tlog.encoding import MalformedNote, decode_base64
from lionrock.tlog.merkle import HASH_BYTES

HEADER = "c2sp.org/tlog-proof@v1"
_PATH_MAX = 63
_INDEX = re.compile(r"index (0|[1-9][0-9]{0,18})")


@dataclass(frozen=True, slots=True)
class TlogProof:
    """A proof as parsed or to be written.

    `path` has one 32-byte hash a level, the leaf's sibling first; `checkpoint` is a signed note.
    """

    leaf: bytes | None
    leaf_index: int
    path: Sequence[bytes]
    checkpoint: str

    def text(self) -> str:
        """Return the file."""
        lines = [HEADER]
        if self.leaf is not None:
            lines.append(f"extra {base64.b64encode(self.leaf).decode('ascii')}")
        lines.append(f"index {self.leaf_index}")
        lines.extend(base64.b64encode(sibling).decode("ascii") for sibling in self.path)
        return "\n".join([*lines, "", self.checkpoint])

    @classmethod
    def parse(cls, text: str) -> "TlogProof":
        """Read a file without judging it. Raises MalformedNote."""
        head, separator, checkpoint = text.partition("\n\n")
        lines = head.split("\n")
        if not separator or lines.pop(0) != HEADER:
            raise MalformedNote(f"a proof starts with {HEADER!r} and has a checkpoint after a blank line")
        leaf = decode_base64(lines.pop(0).removeprefix("extra ")) if lines and lines[0].startswith("extra ") else None
        index = _INDEX.fullmatch(lines.pop(0)) if lines else None
        if index is None:
            raise MalformedNote("the index line is missing or not a decimal number")
        path = [decode_base64(line) for line in lines]
        if len(path) > _PATH_MAX or any(len(sibling) != HASH_BYTES for sibling in path):
            raise MalformedNote(f"the path is not a list of at most {_PATH_MAX} SHA-256 hashes")
        return cls(leaf, int(index[1]), path, checkpoint)
