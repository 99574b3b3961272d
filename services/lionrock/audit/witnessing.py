"""Keeps the platform log growing and cosigned, and knows how old the last checkpoint is that met the policy.

Knows: the policy (n of m), what is kept of a checkpoint that met it, when an unmet policy stops appends. Does not know: how a
witness is asked (witnesses.py), how the platform log grows (platform_log.py).

A checkpoint counts from the time at which, by their own statements, the last of the n witnesses cosigned it. The last one that
counted is kept beside the keys, written through before it is shown: proofs lead to it, also after a restart, and the published
checkpoint is this one. Answers wait for witnesses only where settings say so (`require_within_s`): then appends are refused from
the moment at which that checkpoint is too old, or at start while there is none.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from lionrock.audit.failures import AuditError, StoreFailed
from lionrock.audit.log import AuditLogs
from lionrock.audit.platform_log import PlatformLog
from lionrock.audit.tenant_log import Head
from lionrock.audit.witnesses import Witnesses
from lionrock.chassis.durable_files import replace_through
from lionrock.chassis.telemetry import meter
from lionrock.tlog.checkpoint import Checkpoint
from lionrock.tlog.encoding import MalformedNote
from lionrock.tlog.keys import UntrustedNote, VerifierKey
from lionrock.tlog.note import NOTE_MAX_BYTES, Signature, open_note

log = logging.getLogger("lionrock.audit")


@dataclass(frozen=True, slots=True)
class Policy:
    """`threshold` witnesses make a checkpoint count. Times in seconds."""

    threshold: int
    refresh_s: float
    require_within_s: float | None


@dataclass(frozen=True, slots=True)
class Cosigned:
    """A head whose checkpoint met the policy. `since_s`: by the witnesses' statements, in seconds since 1970."""

    head: Head
    since_s: int


class CosignedFile:
    """The last checkpoint that met the policy, in a file beside the keys."""

    def __init__(self, path: Path) -> None:
        """Use `path`. Nothing is read yet."""
        self._path = path

    def load(self, log_keys: Sequence[VerifierKey], witness_keys: Sequence[VerifierKey], threshold: int) -> Cosigned | None:
        """Read what was kept; None when nothing was, or it does not meet the policy of today. Raises StoreFailed."""
        try:
            with self._path.open("rb") as file:
                note = file.read(NOTE_MAX_BYTES + 1).decode("utf-8")
            opened = open_note(note, [*log_keys, *witness_keys])
            checkpoint = Checkpoint.parse(opened.text)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise StoreFailed(f"reading {self._path}: {error.strerror}") from error
        except (UnicodeDecodeError, MalformedNote, UntrustedNote) as error:
            log.error("the cosigned checkpoint that was kept is not used", extra={"file": str(self._path), "why": str(error)})
            return None
        since_s = met_at(opened.signatures, witness_keys, threshold)
        if since_s is None or not any(map(opened.signed_by, log_keys)) or checkpoint.origin != log_keys[0].name:
            return None
        return Cosigned(Head(checkpoint.size, checkpoint.root, note), since_s)

    def keep(self, cosigned: Cosigned) -> None:
        """Write a checkpoint through. Blocks. Raises StoreFailed."""
        try:
            replace_through(self._path, cosigned.head.checkpoint.encode())
        except OSError as error:
            raise StoreFailed(f"writing {self._path}: {error.strerror}") from error


def met_at(signatures: Sequence[Signature], witness_keys: Sequence[VerifierKey], threshold: int) -> int | None:
    """Time of the cosignature that made them `threshold`, newest first; None when they are too few."""
    times = sorted((signature.time_s or 0 for signature in signatures if signature.key in witness_keys), reverse=True)
    return times[threshold - 1] if len(times) >= threshold else None


class Witnessing:
    """The task. `witnesses` None: the platform log grows uncosigned."""

    def __init__(
        self,
        logs: AuditLogs,
        platform_log: PlatformLog,
        witnesses: Witnesses | None,
        policy: Policy,
        kept: CosignedFile,
        *,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._logs = logs
        self._platform_log = platform_log
        self._witnesses = witnesses
        self._policy = policy
        self._kept = kept
        self._clock = clock
        self._cosigned: Cosigned | None = None
        self._met: bool | None = None
        self._age = meter().create_gauge(
            "lionrock.audit.witness.age", unit="s", description="Age of the last checkpoint that enough witnesses cosigned."
        )

    @property
    def cosigned(self) -> Cosigned | None:
        """Last checkpoint that met the policy."""
        return self._cosigned

    def witnessed_at(self) -> int | None:
        """When it was cosigned, by the witnesses' statements, seconds since 1970; None: there is none."""
        return None if self._cosigned is None else self._cosigned.since_s

    @property
    def age_s(self) -> float | None:
        """Age of that checkpoint; None: there is none."""
        return None if self._cosigned is None else max(0.0, self._clock() - self._cosigned.since_s)

    async def begin(self) -> None:
        """Go on from what was kept. Raises StoreFailed."""
        if self._witnesses is not None:
            log_keys = [VerifierKey.parse(key) for key in self._platform_log.verifier_keys]
            kept = await asyncio.to_thread(self._kept.load, log_keys, self._witnesses.keys, self._policy.threshold)
            self._cosigned = kept
        attested = None if self._cosigned is None else self._cosigned.head
        await self._platform_log.begin(attested, witnessed=self._witnesses is not None)
        if self._policy.require_within_s is not None:
            # Asked at each append: a task that hangs must not leave answers running.
            self._logs.refuse_appends(self.refusal)
        self._judge()

    def refusal(self) -> str | None:
        """Why nothing may be appended now; None: it may."""
        age_s, limit_s = self.age_s, self._policy.require_within_s
        if limit_s is None or (age_s is not None and age_s <= limit_s):
            return None
        return f"no checkpoint was cosigned by {self._policy.threshold} witnesses within the last {limit_s:g} s"

    async def run(self, interval_s: float) -> None:
        """Step for ever, every `interval_s` seconds."""
        while True:
            try:
                await self.step()
            except AuditError as error:
                log.warning("the platform log does not follow", extra={"failure": type(error).__name__, "why": str(error)})
            except Exception as error:  # a defect: it must not end the one task that sees how old the checkpoint grows
                log.error("witnessing failed", exc_info=error)
            self._judge()
            await asyncio.sleep(interval_s)

    async def step(self) -> None:
        """Record what grew, and have it cosigned. Raises AuditError."""
        head, recorded = await self._platform_log.advance()
        if self._witnesses is None:
            self._platform_log.attest(head, recorded)
            return
        self._judge()
        if self._cosigned is None or head.size > self._cosigned.head.size or (self.age_s or 0) >= self._policy.refresh_s:
            log_key = VerifierKey.parse(self._platform_log.verifier_key)
            note, signatures = await self._witnesses.cosign(head, log_key)
            since_s = met_at(signatures, self._witnesses.keys, self._policy.threshold)
            if since_s is not None:
                cosigned = Cosigned(Head(head.size, head.root, note), since_s)
                await asyncio.to_thread(self._kept.keep, cosigned)
                self._cosigned = cosigned
                self._platform_log.attest(cosigned.head, recorded)
        self._judge()

    def _judge(self) -> None:
        """Say how old the last checkpoint is that counted, and when appends stop or start for it."""
        if self._witnesses is None:
            return
        age_s = self.age_s
        if age_s is not None:
            self._age.set(age_s)
        if self._policy.require_within_s is None:
            return
        met = self.refusal() is None
        if met is not self._met:
            if met:
                log.info("the witness policy is met", extra={"age_s": age_s})
            else:
                log.error("the witness policy is not met: nothing is appended", extra={"age_s": age_s})
        self._met = met
