"""Lease election: at most one operator acts, and another takes over as soon as it may.

Knows a `Lease` of coordination.k8s.io/v1 and a monotonic clock, not what the leader does. As in client-go's leaderelection,
times written by others are never compared with the own clock: a candidate notes on its own clock *when it saw* the lease change,
and takes it only after it has stood unchanged for the duration that its holder promised. Every write carries the resourceVersion
that was read, so of two that try at once one is refused.

Why two never act together. The holder may act until `renewed_at + renew_deadline_s`, where renewed_at is its clock *before* the
renewal was sent. Whoever takes the lease saw that renewal no earlier than it was sent, and waits `duration_s` from there. So
between the last moment of the old leader and the first of the new one lie at least `duration_s − renew_deadline_s`, whatever both
wall clocks say, as long as both monotonic clocks run at the same rate within that margin. A call that the old leader began just
before its end must have ended within the margin too: `may_act` is told how long the call can take.

Handing over: the leader that stops writes an empty holder, which the next candidate takes at its next look, without waiting.
"""

from __future__ import annotations

import datetime as dt
import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Protocol

log = logging.getLogger("lionrock.operator")


class LeaseConflict(Exception):
    """Somebody else wrote or made the lease first."""


class LeaseUnavailable(Exception):
    """The lease could not be read or written; nothing is known of it."""


@dataclass(frozen=True, slots=True)
class LeaseRecord:
    """What a lease holds. Times are for people: nothing is decided by them. resource_version is None before it is created.

    An identity belongs to one process and is never used again.
    """

    holder: str  # empty: nobody
    duration_s: int
    acquired_at: dt.datetime | None
    renewed_at: dt.datetime | None
    transitions: int
    resource_version: str | None


class LeaseStore(Protocol):
    """Where the lease is: the API server, or a simulation of it."""

    def read(self) -> LeaseRecord | None:
        """Return the lease; None if there is none. Raises LeaseUnavailable."""
        ...

    def write(self, record: LeaseRecord) -> LeaseRecord:
        """Create it (resource_version None) or replace exactly that version. Raises LeaseConflict, LeaseUnavailable."""
        ...


@dataclass(frozen=True, slots=True)
class LeaseTimes:
    """Seconds. A renewal that fails is tried again every retry_s; after renew_deadline_s without one the leader stops acting."""

    duration_s: int = 15
    renew_deadline_s: float = 10.0
    retry_s: float = 2.0

    def __post_init__(self) -> None:
        """Check the order of the times. Raises ValueError for those by which two could act at once."""
        if not 0 < self.retry_s < self.renew_deadline_s < self.duration_s:
            raise ValueError("needed: 0 < retry_s < renew_deadline_s < duration_s")


def _wall_clock() -> dt.datetime:
    return dt.datetime.now(dt.UTC)


class Election:
    """One candidate. `step` is called every retry_s, or sooner when the lease was seen to change; `may_act` from any thread."""

    def __init__(
        self,
        store: LeaseStore,
        identity: str,
        times: LeaseTimes,
        *,
        clock: Callable[[], float] = time.monotonic,
        wall_clock: Callable[[], dt.datetime] = _wall_clock,
    ) -> None:
        if not identity:
            raise ValueError("an empty identity means that nobody holds the lease")
        self._store = store
        self.identity = identity
        self._times = times
        self._clock = clock
        self._wall_clock = wall_clock
        self._seen: LeaseRecord | None = None
        self._seen_at = 0.0
        self._acts_until: float | None = None
        self._stopped = False

    def may_act(self, for_s: float = 0.0) -> bool:
        """Whether this candidate leads and what it begins now ends in time.

        for_s: how long what it begins can take. It may reach into the margin between renew_deadline_s and duration_s, no further.
        """
        acts_until = self._acts_until
        if acts_until is None:
            return False
        now = self._clock()
        return now < acts_until and now + for_s < acts_until - self._times.renew_deadline_s + self._times.duration_s

    def step(self) -> bool:
        """Take or renew the lease if that is possible now. Returns whether this candidate may act. Never raises for the store."""
        if self._stopped:
            return False
        try:
            self._try()
        except LeaseConflict:
            # Another candidate was faster; the next step sees who. Who led keeps what it had, and `_renew` has looked already.
            self._seen = None if self._acts_until is None else self._seen
        except LeaseUnavailable as error:
            log.warning("the lease cannot be reached: %s", error)
        if not self.may_act():
            self._acts_until = None
        return self._acts_until is not None

    def release(self) -> None:
        """Stop acting, and let the next candidate in at once. Call it when everything that was begun has ended; idempotent."""
        held = self._acts_until is not None
        self._stopped = True
        self._acts_until = None
        if not held or self._seen is None or self._seen.holder != self.identity:
            return
        try:
            self._store.write(replace(self._seen, holder="", duration_s=1, renewed_at=self._wall_clock()))
        except LeaseConflict:
            log.warning("the lease was taken before it was released")
        except LeaseUnavailable as error:
            log.warning("the lease was not released, it runs out by itself: %s", error)

    def _try(self) -> None:
        sent_at = self._clock()
        if self._acts_until is not None and self._seen is not None:
            self._renew(self._seen)
            return
        record = self._store.read()
        now = self._wall_clock()
        if record is None:
            self._hold(LeaseRecord(self.identity, self._times.duration_s, now, now, 0, None), sent_at)
            return
        if self._seen is None or record.resource_version != self._seen.resource_version:
            self._seen, self._seen_at = record, self._clock()
        if record.holder not in ("", self.identity) and self._clock() < self._seen_at + self._patience_s(record):
            return
        # A lease in the own name was written by a call whose answer was lost: nobody else has the identity.
        taken = replace(
            record,
            holder=self.identity,
            duration_s=self._times.duration_s,
            acquired_at=now,
            renewed_at=now,
            transitions=record.transitions + (record.holder != self.identity),
        )
        self._hold(taken, self._clock())

    def _renew(self, known: LeaseRecord) -> None:
        """Renew with one call, as the leader knows the version that it wrote; with three after a call whose answer was lost."""
        sent_at = self._clock()
        try:
            self._hold(replace(known, renewed_at=self._wall_clock()), sent_at)
        except LeaseConflict:
            record = self._store.read()
            if record is None or record.holder != self.identity:
                log.warning("the lease was taken")
                self._seen = self._acts_until = None
                return
            sent_at = self._clock()
            self._hold(replace(record, renewed_at=self._wall_clock()), sent_at)

    def _patience_s(self, record: LeaseRecord) -> float:
        """How long an unchanged lease is respected: what its holder promised, and never less than the own setting."""
        return max(record.duration_s, self._times.duration_s)

    def _hold(self, record: LeaseRecord, sent_at: float) -> None:
        written = self._store.write(record)
        if self._acts_until is None:
            log.info("leads as %s", self.identity)
        self._seen, self._seen_at = written, self._clock()
        self._acts_until = sent_at + self._times.renew_deadline_s


class ElectionLoop:
    """Steps an election in a thread of its own, so that slow work never delays a renewal."""

    def __init__(self, election: Election, retry_s: float, on_change: Callable[[bool], None]) -> None:
        """on_change is told from the loop's thread when the candidate begins (True) or ends (False) to lead."""
        self._election = election
        self._retry_s = retry_s
        self._on_change = on_change
        self._wake = threading.Event()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="election", daemon=True)

    def start(self) -> None:
        """Begin to stand for election."""
        self._thread.start()

    def look(self) -> None:
        """Step at once: the lease was seen to change."""
        self._wake.set()

    @property
    def is_alive(self) -> bool:
        """Whether the steps go on."""
        return self._thread.is_alive()

    def stop(self, timeout_s: float, *, release: bool) -> None:
        """End the steps. release: all work has ended, and the next candidate may come at once; else the lease runs out."""
        self._stopping.set()
        self._wake.set()
        self._thread.join(timeout_s)
        if release and not self._thread.is_alive():
            self._election.release()

    def _run(self) -> None:
        leading = False
        while not self._stopping.is_set():
            self._wake.clear()
            now_leading = self._election.step()
            if now_leading != leading:
                leading = now_leading
                log.info("leads now" if leading else "leads no longer")
                self._on_change(leading)
            self._wake.wait(self._retry_s)
