"""Asks witnesses to cosign the platform's checkpoint, all at once, and judges what comes back.

Knows: the order of a conversation (a wrong size is put right once), which cosignatures count, how long a witness that fails is
left alone. Does not know: when to ask and what an unmet policy means (witnessing.py), HTTP (witness_client.py).

A witness that says that this log forked or shrank (422; a size beyond ours) is the alarm that witnesses are for: it is logged as an
error each time, never retried away, and never counts.
"""

import asyncio
import logging
import re
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field

from lionrock.audit.tenant_log import Head
from lionrock.audit.witness_client import WitnessAnswer, WitnessConnection, WitnessUnreachable, connect_witness
from lionrock.audit.witness_settings import WitnessPeer
from lionrock.chassis.telemetry import meter
from lionrock.tlog.encoding import MalformedNote
from lionrock.tlog.keys import UntrustedNote, VerifierKey
from lionrock.tlog.note import Signature, add_signatures, open_note

log = logging.getLogger("lionrock.audit")

Prove = Callable[[int, int], Awaitable[Sequence[bytes]]]
"""Consistency proof from one size to another of the log that is witnessed."""

SIZE_TYPE = "text/x.tlog.size"
_SIZE = re.compile(rb"(0|[1-9][0-9]{0,18})\n")
_AHEAD_MAX_S = 300
"""A cosignature from further in the future is a wrong clock, or a statement for later."""
_PAUSE_MIN_S = 5.0
_PAUSE_MAX_S = 300.0


class WitnessRefused(Exception):
    """The witness answered, and not with a cosignature that counts. `alarm`: it contradicts this log."""

    def __init__(self, message: str, *, alarm: bool = False) -> None:
        super().__init__(message)
        self.alarm = alarm


@dataclass(slots=True)
class _Witness:
    """What is remembered of a witness. `size`: of what it cosigned last, as far as we know."""

    peer: WitnessPeer
    key: VerifierKey
    size: int = 0
    failures: int = 0
    ask_after: float = 0.0
    alarm: str | None = field(default=None)


class Witnesses:
    """The witnesses of one log."""

    def __init__(
        self, peers: Sequence[WitnessPeer], prove: Prove, *, timeout_s: float, clock: Callable[[], float] = time.time
    ) -> None:
        """Ask `peers`. `timeout_s`: for one conversation."""
        self._witnesses = [_Witness(peer, VerifierKey.parse(peer.verifier_key)) for peer in peers]
        self._prove = prove
        self._timeout_s = timeout_s
        self._clock = clock
        self._failed = meter().create_counter(
            "lionrock.audit.witness.failures", description="Conversations with witnesses without a cosignature."
        )

    @property
    def keys(self) -> Sequence[VerifierKey]:
        """Verifier keys of all witnesses."""
        return [witness.key for witness in self._witnesses]

    @property
    def alarms(self) -> Sequence[str]:
        """What witnesses say against this log, by name."""
        return [f"{witness.key.name}: {witness.alarm}" for witness in self._witnesses if witness.alarm is not None]

    async def cosign(self, head: Head, log_key: VerifierKey) -> tuple[str, Sequence[Signature]]:
        """Ask every witness that is not left alone for now. Returns the note with the cosignatures that count, and these."""
        asked = [witness for witness in self._witnesses if time.monotonic() >= witness.ask_after]
        answers = await asyncio.gather(*(self._ask(witness, head, log_key) for witness in asked))
        signatures = [signature for signature in answers if signature is not None]
        return add_signatures(head.checkpoint, [signature.line for signature in signatures]), signatures

    async def _ask(self, witness: _Witness, head: Head, log_key: VerifierKey) -> Signature | None:
        try:
            async with asyncio.timeout(self._timeout_s), connect_witness(witness.peer.url, witness.peer.ca_file) as connection:
                signature = await self._converse(connection, witness, head, log_key)
        except (WitnessUnreachable, WitnessRefused, TimeoutError) as failure:
            self._note_failure(witness, failure)
            return None
        witness.size, witness.failures, witness.alarm = head.size, 0, None
        return signature

    async def _converse(self, connection: WitnessConnection, witness: _Witness, head: Head, log_key: VerifierKey) -> Signature:
        """Submit the checkpoint, put a wrong size right once, judge the answer. Raises WitnessUnreachable, WitnessRefused."""
        old_size = min(witness.size, head.size)
        answer = await connection.add_checkpoint(old_size, await self._prove(old_size, head.size), head.checkpoint)
        if answer.status == 409:
            witness.size = old_size = _size_of(answer)
            if old_size > head.size:
                raise WitnessRefused(f"it cosigned {old_size} leaves of this log, which has {head.size}", alarm=True)
            answer = await connection.add_checkpoint(old_size, await self._prove(old_size, head.size), head.checkpoint)
        if answer.status == 422:
            raise WitnessRefused("it says that this checkpoint does not extend what it cosigned before", alarm=True)
        if answer.status != 200:
            raise WitnessRefused(f"it answered with status {answer.status}")
        return self._cosignature(answer, witness.key, head, log_key)

    def _cosignature(self, answer: WitnessAnswer, key: VerifierKey, head: Head, log_key: VerifierKey) -> Signature:
        try:
            opened = open_note(head.checkpoint + answer.body.decode("utf-8"), [log_key, key])
        except (UnicodeDecodeError, MalformedNote, UntrustedNote) as error:
            raise WitnessRefused(f"its answer is no cosignature ({error})") from error
        signature = next((signature for signature in opened.signatures if signature.key == key), None)
        if signature is None or not signature.time_s:
            raise WitnessRefused("its answer has no cosignature by its key")
        if signature.time_s > self._clock() + _AHEAD_MAX_S:
            raise WitnessRefused("its cosignature is from the future")
        return signature

    def _note_failure(self, witness: _Witness, failure: Exception) -> None:
        alarm = isinstance(failure, WitnessRefused) and failure.alarm
        why = str(failure) or type(failure).__name__
        witness.alarm = why if alarm else witness.alarm
        pause_s = min(_PAUSE_MIN_S * 2**witness.failures, _PAUSE_MAX_S)
        witness.failures = min(witness.failures + 1, 16)
        witness.ask_after = time.monotonic() + pause_s
        self._failed.add(1, {"lionrock.witness": witness.key.name, "lionrock.alarm": alarm})
        say = log.error if alarm else log.warning
        say(
            "a witness contradicts this log" if alarm else "a witness did not cosign",
            extra={"witness": witness.key.name, "why": why, "next_try_s": pause_s},
        )


def _size_of(answer: WitnessAnswer) -> int:
    found = _SIZE.fullmatch(answer.body)
    if answer.content_type != SIZE_TYPE or found is None:
        raise WitnessRefused("it answered with a conflict and without a size")
    return int(found[1])
