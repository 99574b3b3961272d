"""Whether a checkpoint may be cosigned, in the order in which c2sp.org/tlog-witness asks, and the request that brings it.

Knows: the add-checkpoint body, the checks, that remembering comes before answering. Does not know: HTTP (app.py), SQLite
(state.py). One call at a time: whoever calls sees to that, and the state's compare-and-swap is there for when nobody does.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256

from lionrock.tlog.checkpoint import Checkpoint
from lionrock.tlog.encoding import MalformedNote, decode_base64
from lionrock.tlog.keys import Signer, UntrustedNote, VerifierKey
from lionrock.tlog.merkle import EMPTY_ROOT, HASH_BYTES, InvalidProof, verify_consistency
from lionrock.tlog.note import OpenedNote, open_note, signature_line
from lionrock.witness.failures import Inconsistent, MalformedRequest, OtherSize, UnknownLog, UntrustedLog
from lionrock.witness.state import Cosigned, WitnessState

PROOF_MAX = 63
SIZE_MAX = 2**63 - 1
_OLD = re.compile(r"old (0|[1-9][0-9]{0,18})", re.ASCII)


@dataclass(frozen=True, slots=True)
class AddCheckpoint:
    """A request as parsed: nothing in it is checked yet."""

    old_size: int
    proof: Sequence[bytes]
    note: str

    @classmethod
    def parse(cls, body: bytes) -> "AddCheckpoint":
        """Read a request body. Raises MalformedRequest."""
        try:
            head, separator, note = body.decode("utf-8").partition("\n\n")
        except UnicodeDecodeError:
            raise MalformedRequest("the body is not UTF-8") from None
        lines = head.split("\n")
        old = _OLD.fullmatch(lines[0])
        if not separator or old is None:
            raise MalformedRequest("the body is an old size, a proof, an empty line and a checkpoint")
        if len(lines) - 1 > PROOF_MAX:
            raise MalformedRequest(f"a proof has at most {PROOF_MAX} hashes")
        try:
            proof = [decode_base64(line) for line in lines[1:]]
        except MalformedNote as error:
            raise MalformedRequest("a hash of the proof is not Base64") from error
        if any(len(sibling) != HASH_BYTES for sibling in proof):
            raise MalformedRequest("a hash of the proof is not one of SHA-256")
        return cls(int(old[1]), proof, note)


class Witness:
    """Cosigns checkpoints of known logs, each an extension of the one before."""

    def __init__(self, state: WitnessState, cosigners: Sequence[Signer], logs: Mapping[str, Sequence[VerifierKey]]) -> None:
        """Use `state` until it is closed. `logs`: verifier keys by origin."""
        self._state = state
        self._cosigners = cosigners
        self._logs = dict(logs)
        self._origins = {sha256(origin.encode()).hexdigest(): origin for origin in logs}

    def add_checkpoint(self, body: bytes) -> str:
        """Check, remember, and return the signature lines. Raises WitnessError."""
        request = AddCheckpoint.parse(body)
        opened, checkpoint = self._open(request.note)
        if checkpoint.size > SIZE_MAX:
            raise MalformedRequest("the checkpoint is larger than any tree can be")
        if request.old_size > checkpoint.size:
            raise MalformedRequest("the old size exceeds that of the checkpoint")
        last = self._state.last(checkpoint.origin)
        if request.old_size != last.size:
            raise OtherSize(last.size)
        _check_extends(last, checkpoint, request.proof)
        lines = "".join(signature_line(opened.text, cosigner) for cosigner in self._cosigners)
        # Kept with the log's signatures that were verified and with ours; lines of strangers are not ours to publish.
        note = f"{opened.text}\n{''.join(signature.line for signature in opened.signatures)}{lines}"
        self._state.advance(checkpoint.origin, last, Cosigned(checkpoint.size, checkpoint.root, note))
        return lines

    def latest(self, origin_hash: str) -> str | None:
        """Last cosigned checkpoint of the log whose origin has this SHA-256, in hexadecimal. Raises StateFailed."""
        origin = self._origins.get(origin_hash)
        return None if origin is None else self._state.last(origin).note

    def _open(self, note: str) -> tuple[OpenedNote, Checkpoint]:
        origin, _, _ = note.partition("\n")
        keys = self._logs.get(origin)
        if keys is None:
            raise UnknownLog("no log with this origin is witnessed")
        try:
            opened = open_note(note, keys)
            return opened, Checkpoint.parse(opened.text)
        except UntrustedNote as error:
            raise UntrustedLog(str(error)) from error
        except MalformedNote as error:
            raise MalformedRequest(str(error)) from error


def _check_extends(last: Cosigned, checkpoint: Checkpoint, proof: Sequence[bytes]) -> None:
    """Check that the checkpoint's tree has the last one as prefix. Raises Inconsistent."""
    if checkpoint.size == 0 and checkpoint.root != EMPTY_ROOT:
        raise Inconsistent("the root of an empty tree is another one")
    if last.size == 0:
        if proof:
            raise Inconsistent("from the empty tree there is nothing to prove")
        return
    try:
        verify_consistency(last.size, checkpoint.size, last.root, checkpoint.root, proof)
    except InvalidProof as error:
        raise Inconsistent(str(error)) from error
