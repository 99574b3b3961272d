"""Evidence of a fork, that convinces anyone who has the log's key and nothing else.

Two checkpoints that the log's key signed, and a consistency proof (RFC 6962, 2.1.2) from what the longer tree says of its
beginning. That the beginning has another root than the shorter checkpoint is the fork: no honest log can sign both. Of equal
size, two roots suffice. Any tool that verifies signed notes and consistency proofs can check it; `verify` is ours.
"""

import base64
import json
from collections.abc import Sequence
from dataclasses import dataclass

from lionrock.tlog.checkpoint import Checkpoint
from lionrock.tlog.encoding import MalformedNote, decode_base64
from lionrock.tlog.merkle import EMPTY_ROOT, InvalidProof, verify_consistency
from lionrock.tlog.note import UntrustedNote, VerifierKey
from lionrock.tlog.tile_client import open_checkpoint

FORMAT = "lionrock.io/fork-evidence/v1"
EVIDENCE_MAX_BYTES = 4_000_000


class NotEvidence(ValueError):
    """The file proves no fork; the message says why."""


@dataclass(frozen=True, slots=True)
class ForkEvidence:
    """Two signed notes. `root`: that of the longer tree at the size of the shorter, `proof`: from there to the longer root."""

    shorter: str
    longer: str
    root: bytes
    proof: Sequence[bytes]

    def text(self) -> str:
        """Write the file."""
        fields = {
            "format": FORMAT,
            "shorter": self.shorter,
            "longer": self.longer,
            "root_in_longer": base64.b64encode(self.root).decode(),
            "consistency_proof": [base64.b64encode(hash_).decode() for hash_ in self.proof],
        }
        return json.dumps(fields, ensure_ascii=False, indent=1) + "\n"

    @classmethod
    def parse(cls, text: str | bytes) -> "ForkEvidence":
        """Read the file without judging it. Raises NotEvidence."""
        try:
            fields = json.loads(text)
            if fields["format"] != FORMAT:
                raise NotEvidence("the file has another format")
            proof = [decode_base64(hash_) for hash_ in fields["consistency_proof"]]
            shorter, longer = fields["shorter"], fields["longer"]
            if not isinstance(shorter, str) or not isinstance(longer, str):
                raise NotEvidence("the checkpoints are not texts")
            return cls(shorter, longer, decode_base64(fields["root_in_longer"]), proof)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise NotEvidence(f"the file cannot be read: {error}") from error

    def verify(self, origin: str, keys: Sequence[VerifierKey]) -> tuple[Checkpoint, Checkpoint]:
        """Check that the log with these keys forked. Returns both checkpoints. Raises NotEvidence."""
        try:
            shorter = open_checkpoint(self.shorter, origin, keys).checkpoint
            longer = open_checkpoint(self.longer, origin, keys).checkpoint
        except (MalformedNote, UntrustedNote) as error:
            raise NotEvidence(f"not both checkpoints are signed by a given key: {error}") from error
        if shorter.size > longer.size:
            raise NotEvidence("the checkpoints are in the wrong order")
        if shorter.size == longer.size:
            forked = shorter.root != longer.root
        elif shorter.size == 0:
            forked = shorter.root != EMPTY_ROOT  # every tree begins with the empty one
        else:
            try:
                verify_consistency(shorter.size, longer.size, self.root, longer.root, self.proof)
            except InvalidProof as error:
                raise NotEvidence(f"the proof does not say how the longer tree begins: {error}") from error
            forked = shorter.root != self.root
        if not forked:
            raise NotEvidence("the shorter tree is the beginning of the longer: there is no fork")
        return shorter, longer
