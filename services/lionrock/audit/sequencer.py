"""The one writer of a store: takes everything that waits, commits it in one transaction, signs one checkpoint a log, then answers.

Knows: order, idempotence, which outcome closes which intent, and in which sequence the two durable places are written. Does
not know: how a leaf is made, who asked.

Group commit without linger: a batch is what arrived while the last one was being fsynced, so a lone append waits for nobody and
a crowd shares one fsync. Leaves are encoded on the event loop, so that goes on while the disk works. The second place is written
through before the next batch begins: to let that batch be hashed meanwhile would save some 3% of a batch of 128, whose time is
the processor's, and leave two batches in doubt after a crash where there is one now. Whatever fails in a transaction or in the
second place ends all writing until restart: after a failed fsync nobody knows what the disk holds, and a second try that
succeeds proves nothing (Rebello et al., USENIX ATC 2020).
"""

import asyncio
import collections
import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, NamedTuple

from lionrock.audit.failures import (
    AuditError,
    EventAlreadyRecorded,
    IntentClosed,
    IntentNotFound,
    LogReadOnly,
    QueueFull,
    RecordErased,
    StoreFailed,
)
from lionrock.audit.leaf import Event, Intent, Outcome
from lionrock.audit.signed_checkpoints import SignedCheckpoints
from lionrock.audit.store import LogId, LogStore, OpenIntent, StoredLeaf, Transaction
from lionrock.audit.store.records import KEPT, NOTHING, Beside, SealedPayload, StoredHold, StoredRecord
from lionrock.audit.tenant_log import Head, TenantLog
from lionrock.audit.wall_clock import ClockUs
from lionrock.tlog.merkle import Frontier, Subtree, leaf_hash, where_stored

log = logging.getLogger("lionrock.audit")

_HEARTBEAT_INTERVAL_S = 2.0
_FORGET_INTERVAL_S = 10.0
_FORGET_AT_ONCE = 1000


class Appended(NamedTuple):
    """Where an event is. `proof` is a tlog-proof file, when it was asked for; `salt` is empty when nothing was committed to."""

    origin: str
    leaf_index: int
    leaf_hash: bytes
    recorded_at_us: int
    salt: bytes
    proof: str | None


class PendingAppend(NamedTuple):
    """An event on its way. A tuple: one is made for every append, and to make a frozen dataclass costs five times as much.

    `rebuild(recorded_at_us, salt)` makes its leaf as it would have been then, to recognise a repeated call. `beside`: what is
    written with the leaf. `retry_salt`: the salt as the store keeps it for the retry window, which `open_retry_salt` undoes.
    """

    log: TenantLog
    event: Event
    data: bytes
    recorded_at_us: int
    salt: bytes
    want_receipt: bool
    rebuild: Callable[[int, bytes], bytes]
    done: "asyncio.Future[Appended]"
    beside: Beside = NOTHING
    retry_salt: bytes | None = None
    open_retry_salt: Callable[[bytes], bytes] = bytes


@dataclass(frozen=True, slots=True)
class PendingWork:
    """Something else to do for the one who may write: alone, between batches."""

    run: Callable[[LogStore], Any]
    done: "asyncio.Future[Any]"


@dataclass(slots=True)
class _Draft:
    """What a batch adds to one log.

    `edge` is that of the tree before it. `recorded` and `waiting` are what the store has of the batch's events and requests: leaves
    by event id, open intents by request id; `records` what it has of the records that leaves belong to, by request id. `leaves` and
    `appends` are those of the batch that are new, in order of index; `places` their places there, by event id.
    """

    log: TenantLog
    frontier: Frontier
    edge: Mapping[Subtree, bytes]
    recorded: Mapping[str, StoredLeaf]
    waiting: Mapping[str, Sequence[OpenIntent]]
    records: dict[str, StoredRecord]
    leaves: list[StoredLeaf] = field(default_factory=list)
    appends: list[PendingAppend] = field(default_factory=list)
    places: dict[str, int] = field(default_factory=dict)
    intents: list[OpenIntent] = field(default_factory=list)
    closed: set[OpenIntent] = field(default_factory=set)
    new_records: list[StoredRecord] = field(default_factory=list)
    record_leaves: list[tuple[str, int, str]] = field(default_factory=list)
    payloads: list[tuple[str, SealedPayload]] = field(default_factory=list)
    placed: list[StoredHold] = field(default_factory=list)
    released: list[str] = field(default_factory=list)
    head: Head | None = None

    @classmethod
    def of(cls, log: TenantLog, appends: "Sequence[PendingAppend]", transaction: Transaction) -> "_Draft":
        """Begin where the log ends, after asking the store for the whole batch at once."""
        recorded = transaction.leaves_of_events(log.log_id, [append.event.event_id for append in appends])
        ending = {append.event.context.request_id for append in appends if isinstance(append.event.body, Outcome)}
        waiting: dict[str, list[OpenIntent]] = {}
        for intent in transaction.open_intents_of(log.log_id, ending) if ending else ():
            waiting.setdefault(intent.request_id, []).append(intent)
        wanted = {append.beside.record.request_id for append in appends if append.beside.record is not None}
        records = transaction.records.records(log.log_id, wanted) if wanted else {}
        return cls(log, log.frontier.copy(), log.frontier.subtrees(), recorded, waiting, records)

    def refuse_what_is_destroyed(self, append: PendingAppend) -> None:
        """Raise RecordErased when the leaf would add to a record that is destroyed, or about to be."""
        record = append.beside.record
        known = None if record is None else self.records.get(record.request_id)
        if known is not None and known.state != KEPT:
            raise RecordErased("the record of this request is destroyed, or about to be; nothing is added to it")

    def put_beside(self, append: PendingAppend, index: int) -> None:
        """Note what is written with the leaf at `index`. A record begins with an intent, a payload, or data subjects."""
        beside, event = append.beside, append.event
        if beside.record is not None:
            record_id = beside.record.request_id
            if record_id not in self.records and (beside.payloads or event.begins_record):
                self.records[record_id] = beside.record
                self.new_records.append(beside.record)
            if record_id in self.records:
                self.record_leaves.append((record_id, index, event.type))
            for kind, sealed in beside.payloads.items():
                self.payloads.append((record_id, SealedPayload(index, kind, event.event_id, sealed)))
        if beside.placed is not None:
            self.placed.append(replace(beside.placed, leaf_index=index))
        if beside.released is not None:
            self.released.append(beside.released)

    def read(self, subtrees: Sequence[Subtree]) -> list[bytes]:
        """Return every hash that the proof of a new leaf can need: those of the old edge, and those that new leaves completed."""
        first = self.leaves[0].index
        places = [where_stored(subtree) - first for subtree in subtrees]
        return [
            self.leaves[place].completed[subtree.level] if place >= 0 else self.edge[subtree]
            for subtree, place in zip(subtrees, places, strict=True)
        ]


class Sequencer:
    """A thread that owns the writing side of a store."""

    def __init__(
        self,
        store: LogStore,
        signed: SignedCheckpoints,
        *,
        max_pending: int,
        max_batch: int,
        retry_window_s: float,
        clock_us: ClockUs,
    ) -> None:
        """Own `store` and `signed` from `start` to `close`. `retry_window_s` 0: salts are never stored."""
        self._store = store
        self._signed = signed
        self._max_pending = max_pending
        self._max_batch = max_batch
        self._retry_window_us = round(retry_window_s * 1e6)
        self._clock_us = clock_us
        self._pending: collections.deque[PendingAppend | PendingWork] = collections.deque()
        self._arrival = threading.Condition()  # guards the four around it
        self._broken: str | None = None
        self._closing = False
        self._announced = False
        self._forgot_at = 0.0
        self._thread = threading.Thread(target=self._run, name="audit-sequencer", daemon=True)

    @property
    def broken(self) -> str | None:
        """Why nothing is written any more; None while all is well."""
        return self._broken

    def start(self) -> None:
        """Begin to write."""
        self._thread.start()

    def close(self) -> None:
        """Write what waits, then stop. Blocks."""
        with self._arrival:
            self._closing = True
            self._arrival.notify()
        self._thread.join()

    def submit(self, append: PendingAppend) -> None:
        """Queue an append; its future gets `Appended` once the leaf is durable. Raises QueueFull, LogReadOnly, StoreFailed."""
        if append.log.read_only is not None:
            raise append.log.refused()
        self._admit(append)

    def do(self, work: PendingWork) -> None:
        """Queue work; its future gets what `run` returns or the AuditError that it raises.

        StoreFailed and LogReadOnly end all writing, as they do in an append. Raises QueueFull, StoreFailed.
        """
        self._admit(work)

    def _admit(self, wanted: PendingAppend | PendingWork) -> None:
        """Queue, and wake the thread once the event loop has run everything else that is ready: a crowd is one batch."""
        with self._arrival:
            if self._broken is not None:
                raise StoreFailed(self._broken)
            if len(self._pending) >= self._max_pending:
                raise QueueFull(f"{self._max_pending} appends wait already")
            self._pending.append(wanted)
            if not self._announced:
                self._announced = True
                wanted.done.get_loop().call_soon(self._announce)

    def _announce(self) -> None:
        with self._arrival:
            self._announced = False
            self._arrival.notify()

    def _run(self) -> None:
        while (batch := self._take()) is not None:
            if self._broken is None:
                try:
                    self._write_batch(batch)
                except AuditError as error:
                    self._break(str(error))
                except Exception as error:  # a defect: whoever waits must hear of it, and nothing more may be signed
                    log.exception("the sequencer failed")
                    self._break(f"the sequencer failed with {type(error).__name__}")
                else:
                    continue
            self._refuse(batch)  # those that were answered before the failure stay so
        with self._arrival:
            self._broken = self._broken or "the audit service is shutting down"
        self._refuse(self._drain())

    def _write_batch(self, batch: "Sequence[PendingAppend | PendingWork]") -> None:
        """Commit the appends, then do each work by itself. Raises StoreFailed and LogReadOnly."""
        works = [wanted for wanted in batch if isinstance(wanted, PendingWork)]
        if len(works) < len(batch) or not batch:
            self._commit([wanted for wanted in batch if isinstance(wanted, PendingAppend)])
        for work in works:
            try:
                answer = work.run(self._store)
            except (StoreFailed, LogReadOnly):
                raise
            except AuditError as refusal:
                answer = refusal
            _settle([(work, answer)])

    def _take(self) -> "list[PendingAppend | PendingWork] | None":
        """Wait for appends. Returns at most `max_batch`, none when there was nothing for a while, None at the end."""
        with self._arrival:
            self._arrival.wait_for(lambda: self._pending or self._closing, _HEARTBEAT_INTERVAL_S)
            if not self._pending and self._closing:
                return None
            return [self._pending.popleft() for _ in range(min(len(self._pending), self._max_batch))]

    def _drain(self) -> "list[PendingAppend | PendingWork]":
        with self._arrival:
            left = list(self._pending)
            self._pending.clear()
        return left

    def _break(self, why: str) -> None:
        with self._arrival:
            self._broken = why
        log.error("no more leaves are written until restart", extra={"why": why})

    def _refuse(self, batch: "Sequence[PendingAppend | PendingWork]") -> None:
        assert self._broken is not None
        _settle([(append, StoreFailed(self._broken)) for append in batch])

    def _commit(self, batch: Sequence[PendingAppend]) -> None:
        """Make a batch durable, then answer it. Raises StoreFailed and LogReadOnly, having answered nobody."""
        if not batch:
            self._store.heartbeat()
            if not self._is_time_to_forget():
                return
        drafts: dict[LogId, _Draft] = {}
        placed: list[tuple[PendingAppend, StoredLeaf, bytes]] = []
        refused: list[tuple[PendingAppend, AuditError]] = []
        with self._store.transaction() as transaction:
            for log, appends in _by_log(batch):
                drafts[log.log_id] = _Draft.of(log, appends, transaction)
            for append in batch:
                draft = drafts[append.log.log_id]
                try:
                    leaf, salt = self._place(transaction, draft, append)
                except (EventAlreadyRecorded, IntentClosed, IntentNotFound, RecordErased) as refusal:
                    refused.append((append, refusal))
                else:
                    placed.append((append, leaf, salt))
            for draft in drafts.values():
                if draft.leaves:
                    self._write(transaction, draft)
            self._forget_salts(transaction)
        grown = [draft for draft in drafts.values() if draft.head is not None]
        if grown:
            self._signed.record({draft.log.origin: draft.head.checkpoint for draft in grown if draft.head is not None})
        for draft in grown:
            assert draft.head is not None
            draft.log.frontier, draft.log.head = draft.frontier, draft.head
        answers = [(append, self._appended(drafts[append.log.log_id], append, leaf, salt)) for append, leaf, salt in placed]
        _settle([*answers, *refused])

    def _place(self, transaction: Transaction, draft: _Draft, append: PendingAppend) -> tuple[StoredLeaf, bytes]:
        """Give an event its leaf and salt: those that it has, or the next ones."""
        event = append.event
        event_id, body = event.event_id, event.body
        if event_id in draft.places or event_id in draft.recorded:
            return self._placed_before(transaction, draft, append)
        index = draft.frontier.size
        draft.refuse_what_is_destroyed(append)
        if isinstance(body, Intent):
            draft.intents.append(OpenIntent(index, event.context.request_id))
        elif isinstance(body, Outcome):
            draft.closed.update(self._intents_closed(transaction, draft, append, body.intent_index))
        leaf = StoredLeaf(index, event_id, append.recorded_at_us, draft.frontier.append(leaf_hash(append.data)), append.data)
        draft.places[event_id] = len(draft.leaves)
        draft.leaves.append(leaf)
        draft.appends.append(append)
        if append.beside is not NOTHING:
            draft.put_beside(append, index)
        return leaf, append.salt

    def _placed_before(self, transaction: Transaction, draft: _Draft, append: PendingAppend) -> tuple[StoredLeaf, bytes]:
        """Return leaf and salt that an event has already. Raises EventAlreadyRecorded when it is not the same event."""
        event, place = append.event, draft.places.get(append.event.event_id)
        if place is not None:
            recorded, salt = draft.leaves[place], draft.appends[place].salt
        else:
            recorded, salt = draft.recorded[event.event_id], b""
        if not salt:
            salt = append.open_retry_salt(transaction.retry_salt(append.log.log_id, recorded) or b"")
        # A pure function of event, time and salt made the leaf. Without the salt no payload can be compared: refuse.
        if (event.payloads and not salt) or append.rebuild(recorded.recorded_at_us, salt) != recorded.data:
            raise EventAlreadyRecorded("the event id is taken by another content, or the time for repeating it has passed")
        return recorded, salt

    def _intents_closed(
        self, transaction: Transaction, draft: _Draft, append: PendingAppend, intent_index: int | None
    ) -> Sequence[OpenIntent]:
        """Intents that an outcome closes.

        The one that it names; without one, those of its request, whose index its caller never learnt.
        """
        log_id, request_id = append.log.log_id, append.event.context.request_id
        waiting = [intent for intent in draft.waiting.get(request_id, ()) if intent not in draft.closed]
        if intent_index is None:
            return waiting + [intent for intent in draft.intents if intent.request_id == request_id]
        named = [intent for intent in waiting if intent.index == intent_index]
        if named:
            return named
        if intent_index >= append.log.head.size:
            raise IntentNotFound("no leaf with the index of the intent was ever answered for")
        other = transaction.open_intent(log_id, intent_index)
        if other is not None and other.request_id != request_id:
            raise IntentNotFound("the intent belongs to another request")
        raise IntentClosed("the intent has an outcome already, or the leaf is not an intent")

    def _write(self, transaction: Transaction, draft: _Draft) -> None:
        log_id, old = draft.log.log_id, draft.log.head
        draft.head = draft.log.sign(draft.frontier.size, draft.frontier.root())
        transaction.add_leaves(log_id, draft.leaves)
        transaction.add_open_intents(log_id, draft.intents)
        transaction.close_intents(log_id, list(draft.closed))
        if self._retry_window_us:
            salts = [append.salt if append.retry_salt is None else append.retry_salt for append in draft.appends]
            kept = [(leaf.index, leaf.recorded_at_us, salt) for leaf, salt in zip(draft.leaves, salts, strict=True) if salt]
            transaction.keep_retry_salts(log_id, kept)
        self._write_beside(transaction, draft)
        transaction.advance(log_id, old.size, old.root, draft.head.size, draft.head.root, draft.head.checkpoint)

    def _write_beside(self, transaction: Transaction, draft: _Draft) -> None:
        log_id, records = draft.log.log_id, transaction.records
        if draft.record_leaves:
            records.add_records(log_id, draft.new_records)
            records.add_leaves_of(log_id, draft.record_leaves)
            records.add_payloads(log_id, draft.payloads)
        for hold in draft.placed:
            records.add_hold(log_id, hold)
        for hold_id in draft.released:
            records.remove_hold(log_id, hold_id)

    def _is_time_to_forget(self) -> bool:
        return time.monotonic() - self._forgot_at >= _FORGET_INTERVAL_S

    def _forget_salts(self, transaction: Transaction) -> None:
        if not self._is_time_to_forget():
            return
        before_us = self._clock_us() - self._retry_window_us
        if transaction.forget_retry_salts(before_us, _FORGET_AT_ONCE) < _FORGET_AT_ONCE:
            self._forgot_at = time.monotonic()

    def _appended(self, draft: _Draft, append: PendingAppend, leaf: StoredLeaf, salt: bytes) -> Appended:
        proof = None
        if append.want_receipt:
            new = append.event.event_id in draft.places
            read = draft.read if new else partial(self._store.subtree_hashes, append.log.log_id)
            proof = append.log.head.receipt(leaf, read)
        return Appended(append.log.origin, leaf.index, leaf.completed[0], leaf.recorded_at_us, salt, proof)


def _by_log(batch: Sequence[PendingAppend]) -> "list[tuple[TenantLog, list[PendingAppend]]]":
    by_log: dict[LogId, tuple[TenantLog, list[PendingAppend]]] = {}
    for append in batch:
        by_log.setdefault(append.log.log_id, (append.log, []))[1].append(append)
    return list(by_log.values())


def _settle(answers: "Sequence[tuple[PendingAppend | PendingWork, Any]]") -> None:
    """Hand answers to the event loops that wait for them, with one wake-up each."""
    by_loop: dict[asyncio.AbstractEventLoop, list[tuple[asyncio.Future[Any], Any]]] = {}
    for waiting, answer in answers:
        by_loop.setdefault(waiting.done.get_loop(), []).append((waiting.done, answer))
    for loop, settled in by_loop.items():
        if not loop.is_closed():
            loop.call_soon_threadsafe(_set_results, settled)


def _set_results(settled: "Sequence[tuple[asyncio.Future[Any], Any]]") -> None:
    for done, answer in settled:
        if done.done():  # the caller went away; the leaf stays
            continue
        if isinstance(answer, AuditError):
            done.set_exception(answer)
        else:
            done.set_result(answer)
