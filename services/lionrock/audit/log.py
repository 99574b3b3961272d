"""The logs of all tenants: append, prove, list.

This is the domain's whole surface; servicer.py puts it on the wire.
Knows: which tenant has which log, what may be read up to where. Does not know: gRPC, SQL, how a batch is committed.
Reads stop at the last head that is durable in both places (tenant_log.Head): nothing is shown that could still be taken back.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from typing import Self, TypeVar

from lionrock.audit.failures import (
    LeafNotFound,
    LogNotFound,
    LogReadOnly,
    LogSealed,
    StoreFailed,
    TenantLeaving,
    TreeSizeOutOfRange,
    WitnessPolicyUnmet,
)
from lionrock.audit.key_links import KeyLink, key_links
from lionrock.audit.keys import KeyDirectory
from lionrock.audit.leaf import Event, Intent, Outcome, build_leaf, new_salt
from lionrock.audit.records.recording import ALONE, Recorder
from lionrock.audit.sequencer import Appended, PendingAppend, PendingWork, Sequencer
from lionrock.audit.signed_checkpoints import SignedCheckpoints
from lionrock.audit.store import LogId, LogStore, OpenIntent, StoredLeaf, Transaction
from lionrock.audit.store.departures import SEALING, Stages
from lionrock.audit.store.records import RecordReader, StoredHold
from lionrock.audit.tenant_log import SEALED_WHY, Head, TenantLog, open_tenant_log
from lionrock.audit.wall_clock import ClockUs, wall_clock_us
from lionrock.tlog.merkle import Subtree, consistency_proof

_T = TypeVar("_T")
_PAGE_BYTES = 256 * 1024
_LARGE_PAYLOAD_BYTES = 64 * 1024
"""From here on an HMAC takes longer than the event loop may stand still."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds of the sequencer. Defaults: settings.py."""

    max_pending: int
    max_batch: int
    retry_window_s: float


class AuditLogs:
    """One log a tenant in one store, with one sequencer. Open it with `open_logs`, then `async with` it."""

    def __init__(
        self,
        store: LogStore,
        sequencer: Sequencer,
        logs: dict[str, TenantLog],
        unusable: dict[str, str],
        region: str,
        clock_us: ClockUs,
    ) -> None:
        """Hold what `open_logs` has opened. `unusable`: tenants without even a head to read, and why."""
        self._store = store
        self._sequencer = sequencer
        self._logs = logs
        self._unusable = unusable
        self._region = region
        self._clock_us = clock_us
        self._recorder: Recorder | None = None
        self._refusal: Callable[[], str | None] = _nothing
        self._stopped: str | None = None
        self._reader = ThreadPoolExecutor(max_workers=1, thread_name_prefix="audit-reader")

    async def __aenter__(self) -> Self:
        """Start the sequencer."""
        self._sequencer.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        """Write what waits, then stop."""
        await asyncio.to_thread(self._sequencer.close)
        self._reader.shutdown()

    @property
    def tenants(self) -> Sequence[str]:
        """Tenants with a log that can be read."""
        return sorted(self._logs)

    def now_us(self) -> int:
        """Time by the clock that leaves are stamped with, microseconds since 1970: for whatever runs beside the logs."""
        return self._clock_us()

    def read_only_reasons(self) -> dict[str, str]:
        """Tenants whose logs refuse to sign, and why. Those that have left are among them."""
        return self._unusable | {tenant: log.read_only for tenant, log in self._logs.items() if log.read_only is not None}

    @property
    def broken(self) -> str | None:
        """Why nothing is written any more until restart; None while the store does what it must."""
        return self._sequencer.broken

    @property
    def writable(self) -> bool:
        """Whether an append of any tenant could succeed now."""
        if self._sequencer.broken is not None:
            return False
        staying = [log for log in self._logs.values() if not log.sealed]
        nobody_yet = not staying and not self._unusable
        return nobody_yet or any(log.read_only is None for log in staying)

    async def join(self, tenant: str, open_log: Callable[[LogStore], TenantLog]) -> None:
        """Open the log of a tenant that joins while others write, on the thread that writes.

        A log that does not pass its checks refuses from now on, as at the start. Raises QueueFull, StoreFailed.
        """

        def opened(store: LogStore) -> TenantLog | str:
            try:
                return open_log(store)
            except LogReadOnly as refusal:
                return str(refusal)

        found = await self.sequence(opened)
        if isinstance(found, str):
            self._unusable[tenant] = found
            return
        found.read_only = found.read_only or self._stopped
        self._unusable.pop(tenant, None)
        self._logs.setdefault(tenant, found)

    def stop_signing(self, why: str) -> None:
        """Make every log read-only, also those of tenants that join: what the store holds is not what was signed for."""
        self._stopped = self._stopped or why
        for log in self._logs.values():
            log.read_only = log.read_only or why

    def refuse_appends(self, why: Callable[[], str | None]) -> None:
        """Ask before each append whether it is refused, and with which reason; None: accept it.

        Outcomes go on: they say what has happened already. So do reads and proofs.
        """
        self._refusal = why

    def record_with(self, recorder: Recorder) -> None:
        """Keep payloads from now on, for the tenants for whom `recorder` does."""
        self._recorder = recorder

    async def append(
        self, event: Event, *, want_receipt: bool, place: StoredHold | None = None, release: str | None = None
    ) -> Appended:
        """Record an event of `event.context.tenant`; returns when its leaf is durable, and its payloads are where they are kept.

        The same event id with the same content gives the first leaf again. An outcome closes its intent, once. Cancelling the
        wait does not take the event back. `place` and `release`: a hold that is placed or released in the same transaction.
        Raises LogNotFound, LogReadOnly, TenantLeaving, WitnessPolicyUnmet, LeafTooLarge, EventAlreadyRecorded, IntentNotFound,
        IntentClosed, QueueFull, RecordErased, KeysUnavailable, StoreFailed.
        """
        log = self._log(event.context.tenant)
        _refuse_what_departure_ends(log, event)
        if not isinstance(event.body, Outcome) and (refusal := self._refusal()) is not None:
            raise WitnessPolicyUnmet(refusal)
        if self._recorder is not None:
            event = self._recorder.classified(event)
        salt = new_salt(event)
        recorded_at_us = self._clock_us()
        build = partial(self._build, event)
        if sum(map(len, event.payloads.values())) < _LARGE_PAYLOAD_BYTES:
            data = build(recorded_at_us, salt)
        else:
            data = await asyncio.to_thread(build, recorded_at_us, salt)
        recording = ALONE if self._recorder is None else await self._recorder.seal(log.origin, event, recorded_at_us, salt)
        _refuse_what_departure_ends(log, event)  # a stage may have been reached meanwhile
        done: asyncio.Future[Appended] = asyncio.get_running_loop().create_future()
        beside = recording.beside
        if place is not None or release is not None:
            beside = replace(beside, placed=place, released=release)
        retry = (recording.retry_salt, recording.open_retry_salt)
        self._sequencer.submit(PendingAppend(log, event, data, recorded_at_us, salt, want_receipt, build, done, beside, *retry))
        return await done

    async def write(self, tenant: str, step: Callable[[Transaction, LogId], _T]) -> _T:
        """Run a step of a transaction of its own, between batches; returns when it is durable.

        The step raises its refusals before it writes. Raises them, LogNotFound, LogReadOnly, QueueFull, StoreFailed.
        """
        log = self._log(tenant)
        if log.read_only is not None:
            raise log.refused()

        def run(store: LogStore) -> _T:
            with store.transaction() as transaction:
                return step(transaction, log.log_id)

        return await self.sequence(run)

    async def forget_deleted(self) -> str | None:
        """Overwrite what was deleted, as far as the store can. Returns why that failed. Raises QueueFull, StoreFailed."""

        def run(store: LogStore) -> str | None:
            try:
                store.forget_deleted()
            except StoreFailed as failure:  # what was committed stays so: no reason to end all writing
                return str(failure)
            return None

        return await self.sequence(run)

    async def read_records(self, tenant: str, question: Callable[[RecordReader, LogId], _T]) -> _T:
        """Ask about records. Raises LogNotFound, LogReadOnly, StoreFailed."""
        log = self._log(tenant)
        return await self.read(lambda: question(self._store.records, log.log_id))

    async def stages(self, tenant: str) -> Stages:
        """Return how far a tenant's departure is. Raises LogNotFound, LogReadOnly, StoreFailed."""
        log = self._log(tenant)
        return await self.read(lambda: self._store.departures.stages(log.log_id))

    def has_left(self, tenant: str) -> bool:
        """Whether a tenant's log is sealed."""
        log = self._logs.get(tenant)
        return log is not None and log.sealed

    async def leaf_at(self, tenant: str, index: int) -> StoredLeaf:
        """Leaf at an index below the head. Raises LogNotFound, LogReadOnly, LeafNotFound, StoreFailed."""
        log = self._log(tenant)
        leaf = await self.read(lambda: self._store.leaf(log.log_id, index)) if index < log.head.size else None
        if leaf is None:
            raise LeafNotFound("no such leaf under the latest checkpoint")
        return leaf

    def origin(self, tenant: str) -> str:
        """Origin of a tenant's log. Raises LogNotFound, LogReadOnly."""
        return self._log(tenant).origin

    def log_id(self, tenant: str) -> LogId:
        """Return the number of a tenant's log in the store. Raises LogNotFound, LogReadOnly."""
        return self._log(tenant).log_id

    def heads(self) -> Mapping[str, Head]:
        """Latest head of every log that can be read, by tenant."""
        return {tenant: log.head for tenant, log in self._logs.items()}

    async def receipt(self, tenant: str, leaf: int | str) -> Appended:
        """Prove a leaf, by index or by event id, at the latest head. Raises LogNotFound, LogReadOnly, LeafNotFound, StoreFailed."""
        log = self._log(tenant)
        return await self.read(lambda: self._receipt(log, leaf))

    def checkpoint(self, tenant: str) -> str:
        """Latest signed checkpoint. Raises LogNotFound, LogReadOnly."""
        return self._log(tenant).head.checkpoint

    async def consistency_proof(self, tenant: str, first: int, second: int) -> tuple[Sequence[bytes], str]:
        """Prove that the tree of `first` leaves is a prefix of that of `second`; 0: the latest.

        Returns the hashes, and the checkpoint when the later tree is the latest. Raises LogNotFound, LogReadOnly,
        TreeSizeOutOfRange, StoreFailed.
        """
        log = self._log(tenant)
        head = log.head
        later = second or head.size
        if not 1 <= first <= later <= head.size:
            raise TreeSizeOutOfRange(f"sizes from 1 to {head.size} can be proven, the earlier one first")
        hashes = await self.read(lambda: consistency_proof(first, later, partial(self._store.subtree_hashes, log.log_id)))
        return hashes, head.checkpoint if later == head.size else ""

    async def subtree_hashes(self, tenant: str, subtrees: Sequence[Subtree]) -> Sequence[bytes]:
        """Hashes of complete subtrees, in the order asked. Raises LogNotFound, LogReadOnly, StoreFailed."""
        log = self._log(tenant)
        return await self.read(lambda: self._store.subtree_hashes(log.log_id, subtrees))

    async def leaves(self, tenant: str, start: int, limit: int) -> AsyncIterator[Sequence[StoredLeaf]]:
        """Pages of leaves from `start` on, at most `limit` in all. Raises LogNotFound, LogReadOnly, StoreFailed."""
        log = self._log(tenant)
        stop = min(start + limit, log.head.size)
        while start < stop:
            page = await self.read(partial(self._store.leaves, log.log_id, start, stop, _PAGE_BYTES))
            if not page:
                return
            yield page
            start = page[-1].index + 1

    def opened(self, tenant: str) -> TenantLog:
        """Return the log itself, whose head and key the sequencer's thread alone changes. Raises LogNotFound, LogReadOnly."""
        return self._log(tenant)

    def verifier_keys(self, tenant: str) -> Sequence[str]:
        """Keys under which the log's checkpoints verify, newest first. Raises LogNotFound, LogReadOnly."""
        return self._log(tenant).verifier_keys

    async def key_links(self, opened: TenantLog) -> Sequence[KeyLink]:
        """Return what leads from its earlier keys to the one of today, newest first. Raises StoreFailed."""
        return await self.read(lambda: key_links(self._store, opened.log_id)) if opened.retired else []

    def size(self, tenant: str) -> int:
        """Leaves under the latest head. Raises LogNotFound, LogReadOnly."""
        return self._log(tenant).head.size

    async def open_intents(self, tenant: str, below: int, limit: int) -> Sequence[tuple[OpenIntent, StoredLeaf]]:
        """Intents without an outcome below an index, oldest first, with their leaves.

        Raises LogNotFound, LogReadOnly, StoreFailed.
        """
        log = self._log(tenant)

        def read() -> list[tuple[OpenIntent, StoredLeaf]]:
            intents = self._store.open_intents(log.log_id, below, limit)
            leaves = [self._store.leaf(log.log_id, intent.index) for intent in intents]
            return [(intent, leaf) for intent, leaf in zip(intents, leaves, strict=True) if leaf is not None]

        return await self.read(read)

    def keeps_payloads(self, tenant: str) -> bool:
        """Whether what leaves commit to is kept."""
        return self._recorder is not None and self._recorder.keeps(tenant)

    async def has_event(self, tenant: str, event_id: str) -> bool:
        """Whether an event id is taken. Raises LogNotFound, LogReadOnly, StoreFailed."""
        return await self.leaf_of_event(tenant, event_id) is not None

    async def leaf_of_event(self, tenant: str, event_id: str) -> StoredLeaf | None:
        """Leaf of an event, if it is recorded. Raises LogNotFound, LogReadOnly, StoreFailed."""
        log = self._log(tenant)
        return await self.read(lambda: self._store.leaf_of_event(log.log_id, event_id))

    def _log(self, tenant: str) -> TenantLog:
        if tenant in self._unusable:
            raise LogReadOnly(self._unusable[tenant])
        log = self._logs.get(tenant)
        if log is None:
            raise LogNotFound("the settings of the audit service name no log of this tenant")
        return log

    def _build(self, event: Event, recorded_at_us: int, salt: bytes) -> bytes:
        return build_leaf(event, recorded_at_us=recorded_at_us, salt=salt, region=self._region)

    def _receipt(self, log: TenantLog, wanted: int | str) -> Appended:
        head = log.head
        if isinstance(wanted, int):
            leaf = self._store.leaf(log.log_id, wanted) if wanted < head.size else None
        else:
            leaf = self._store.leaf_of_event(log.log_id, wanted)
            head = log.head if leaf is not None and leaf.index >= head.size else head
        if leaf is None or leaf.index >= head.size:
            raise LeafNotFound("no such leaf under the latest checkpoint")
        proof = head.receipt(leaf, partial(self._store.subtree_hashes, log.log_id))
        return Appended(log.origin, leaf.index, leaf.completed[0], leaf.recorded_at_us, b"", proof)

    async def sequence(self, run: Callable[[LogStore], _T]) -> _T:
        """Do something else on the writer's thread, between batches. Raises QueueFull, StoreFailed, what `run` raises."""
        done: asyncio.Future[_T] = asyncio.get_running_loop().create_future()
        self._sequencer.do(PendingWork(run, done))
        return await done

    async def read(self, read: Callable[[], _T]) -> _T:
        """Read from the store on the thread that reads. Raises what `read` raises."""
        return await asyncio.get_running_loop().run_in_executor(self._reader, read)


def _nothing() -> None:
    """Nothing is refused."""


def _refuse_what_departure_ends(log: TenantLog, event: Event) -> None:
    """Raise for what is not recorded any more: LogReadOnly, LogSealed, TenantLeaving.

    Of a tenant that leaves no request begins; what was begun ends, and what happens to its records is recorded until the last leaf.
    """
    if log.read_only is not None:
        raise log.refused()
    if log.departure is None:
        return
    if log.departure == SEALING and event.event_id != log.last_event_id:
        raise LogSealed(SEALED_WHY)
    if isinstance(event.body, Intent):
        raise TenantLeaving("the tenant is being off-boarded: nothing is asked any more")


def departing(store: LogStore, platform: str) -> frozenset[str]:
    """Tenants that leave or have left, whose proofs are served whatever settings and files still say. Raises StoreFailed."""
    prefix = f"{platform}/audit/"
    logs = [stored for stored in store.logs() if stored.origin.startswith(prefix)]
    return frozenset(stored.origin.removeprefix(prefix) for stored in logs if store.departures.stages(stored.log_id))


def open_logs(
    store: LogStore,
    keys: KeyDirectory,
    signed: SignedCheckpoints,
    tenants: Sequence[str],
    *,
    platform: str,
    region: str,
    limits: Limits,
    clock_us: ClockUs = wall_clock_us,
) -> AuditLogs:
    """Open or create the log of every tenant, checking each (tenant_log.py). Raises StoreFailed.

    A log that fails its checks is read-only; the others work.
    """
    logs: dict[str, TenantLog] = {}
    unusable: dict[str, str] = {}
    for tenant in tenants:
        try:
            logs[tenant] = open_tenant_log(tenant, f"{platform}/audit/{tenant}", store, keys, signed)
        except LogReadOnly as refusal:
            unusable[tenant] = str(refusal)
    sequencer = Sequencer(
        store,
        signed,
        max_pending=limits.max_pending,
        max_batch=limits.max_batch,
        retry_window_s=limits.retry_window_s,
        clock_us=clock_us,
    )
    return AuditLogs(store, sequencer, logs, unusable, region, clock_us)
