"""How a tenant leaves: nothing new is asked, everything that may go is destroyed, the log is sealed, and each step is provable.

    1  leaving   the row, then the leaf "tenant.offboarding_begun": from the row on no request begins; what was begun ends
    2  erasing   somebody else decided: records go, a batch an ERASURE leaf, as far as neither retention nor a hold keeps them. What
                 is kept goes by itself when its time has come (`run`)
    3  sealing   nothing is kept: "tenant.erased" is the last leaf, and no other one is taken any more
    4  sealed    nothing is signed any more; salts of the retry window are gone
    5  ended     the keys of records, the tenant's own and the one that signed the log are destroyed

Knows: this order, and who may decide. Does not know: how records are destroyed (destruction.py), gRPC. Each stage is a row that
stays (store/departures.py); a crash anywhere leaves the row of the last one, and `finish_all` goes on from it: every later step can
be repeated. Only the first stage can be taken back. A log that is sealed is never signed again, so its name is not given again.

Records of the data class "suspicion" go by the same rules, under leaves of that class, and are counted for who is cleared.
"""

import asyncio
import json
import logging
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from hashlib import sha256
from typing import Any, Final

from lionrock.audit.failures import (
    AuditError,
    ErasureDecided,
    KeysUnavailable,
    LeafNotFound,
    NotThisTenant,
    OffboardingNotBegun,
    RequestOpen,
    RoleNotPermitted,
    SecondPersonNeeded,
    StoreFailed,
    VaultDisabled,
)
from lionrock.audit.keys import KeyDirectory
from lionrock.audit.leaf import Context, Erasure, Event, Governance
from lionrock.audit.log import AuditLogs
from lionrock.audit.records.contents import Vault
from lionrock.audit.records.destruction import go_on, records_digest
from lionrock.audit.records.holds import Holds
from lionrock.audit.records.permissions import Action, is_cleared, permit
from lionrock.audit.records.recording import SUSPICION
from lionrock.audit.records.records import LEGAL_HOLD_APPLIES, RETENTION_APPLIES, Records
from lionrock.audit.sequencer import Appended
from lionrock.audit.store import LogStore
from lionrock.audit.store.departures import ENDED, ERASING, LEAVING, SEALED, SEALING, Stages, furthest
from lionrock.audit.store.records import DESTROYING, KEPT, StoredRecord
from lionrock.audit.tenant_log import SEALED_WHY, TenantLog
from lionrock.chassis.ids import uuid7

log = logging.getLogger("lionrock.audit")

BEGUN: Final = "tenant.offboarding_begun"
CANCELLED: Final = "tenant.offboarding_cancelled"
ERASED: Final = "tenant.erased"
AT_ONCE: Final = 1024
"""Records that are looked at together, and that one ERASURE leaf covers at most."""
STEPS: Final = (LEAVING, "begun", ERASING, "erased", SEALING, "last_leaf", SEALED, "keys_destroyed", ENDED)
"""What is durable when `at` is called with the name."""
DESTROYED, ELSEWHERE, NONE = "destroyed", "elsewhere", "none"
_FOR_EVER_US: Final = 253_402_300_799_000_000
_API_KEY: Final = "api_key"


@dataclass(frozen=True, slots=True)
class Kept:
    """Records that are not destroyed yet. `until_us`: when the last of them may be, microseconds since 1970; None: nobody knows."""

    reason: str
    retention_class: str
    records: int
    until_us: int | None


@dataclass(frozen=True, slots=True)
class Progress:
    """How far it is. `stage`: as in store/departures.py. `erased`: the last leaf and its proof. `vault_key`: once it is sealed."""

    stage: str | None
    begun_by: str = ""
    begun: Appended | None = None
    decided_by: str = ""
    basis: str = ""
    open_requests: int = 0
    records: dict[str, int] | None = None
    holds: int = 0
    kept: Sequence[Kept] = ()
    erased: Appended | None = None
    vault_key: str = ""


class Offboarding:
    """The departures of all tenants. Belongs to one event loop."""

    def __init__(self, logs: AuditLogs, records: Records, keys: KeyDirectory, at: Callable[[str], None] = go_on) -> None:
        """`keys`: that sign the logs. `at` is called after each durable step: where a test ends the process."""
        self._logs = logs
        self._records = records
        self._keys = keys
        self._at = at
        self._locks: dict[str, asyncio.Lock] = {}
        self._erasing: set[asyncio.Task[None]] = set()

    async def begin(self, asker: Context, tenant: str) -> Appended:
        """Let no request begin any more; done twice, it is as done once. Returns the leaf that says so, with its proof.

        Raises RoleNotPermitted, NotThisTenant and what appending raises.
        """
        _permit(asker, Action.BEGIN_OFFBOARDING, tenant)
        async with self._lock(tenant):
            stages = await self._stages(tenant)
            if LEAVING not in stages:
                event = Event(uuid7(), "", asker, Governance(BEGUN, tenant), {})
                await self._reach(tenant, LEAVING, _plan(event))
            else:
                event = _event(stages[LEAVING])
            return await self._said(event)

    async def cancel(self, asker: Context, tenant: str) -> Appended:
        """Let requests begin again. Raises OffboardingNotBegun, ErasureDecided, and as `begin` does."""
        _permit(asker, Action.BEGIN_OFFBOARDING, tenant)
        async with self._lock(tenant):
            stages = await self._stages(tenant)
            if ERASING in stages:
                raise ErasureDecided("the erasure of the tenant is decided")
            if LEAVING not in stages:
                raise OffboardingNotBegun("the tenant is not being off-boarded")
            begun = _event(stages[LEAVING])
            await self._said(begun)
            body = Governance(CANCELLED, tenant, {"begun_event_id": begun.event_id})
            cancelled = await self._logs.append(Event(uuid7(), "", asker, body, {}), want_receipt=False)
            await self._logs.write(tenant, lambda transaction, log_id: transaction.departures.stay(log_id))
            self._logs.opened(tenant).departure = None
            return cancelled

    async def erase(self, asker: Context, tenant: str, basis: str) -> Progress:
        """Destroy what may be destroyed, and seal the log if that was all. What is begun is carried through, whoever stops waiting.

        Raises OffboardingNotBegun, SecondPersonNeeded, RequestOpen, VaultDisabled, KeysUnavailable, and as `begin` does.
        """
        _permit(asker, Action.ERASE_TENANT, tenant)
        task = asyncio.create_task(self._erase(asker, tenant, basis), name="lionrock-offboarding")
        self._erasing.add(task)
        task.add_done_callback(self._erasing.discard)
        await asyncio.shield(task)
        return await self._progress(asker)

    async def progress(self, asker: Context) -> Progress:
        """Say how far it is. Raises RoleNotPermitted, LogNotFound, KeysUnavailable, StoreFailed."""
        permit(asker.roles, Action.READ_LOG_STATS)
        return await self._progress(asker)

    async def finish_all(self) -> None:
        """Finish what a crash left between two steps, before anything is served. A tenant where that fails is tried again later."""
        for tenant in self._departing():
            try:
                async with self._lock(tenant):
                    await self._finish(tenant)
            except AuditError as error:
                log.error("an off-boarding could not be finished", extra={"tenant": tenant, "why": str(error)})

    async def run(self, interval_s: float) -> None:
        """Carry on with what was decided, for ever: records whose time has come go, and the log is sealed after the last one."""
        while True:
            for tenant in self._departing():
                try:
                    async with self._lock(tenant):
                        await self._finish(tenant)
                        if self._logs.opened(tenant).departure == ERASING:
                            await self._carry_on(tenant)
                except AuditError as error:
                    log.warning("an off-boarding could not be carried on", extra={"tenant": tenant, "why": str(error)})
            await asyncio.sleep(interval_s)

    async def close(self) -> None:
        """Stop where it is; the next start goes on from there."""
        for task in list(self._erasing):
            task.cancel()
            with suppress(asyncio.CancelledError, AuditError):
                await task

    async def _erase(self, asker: Context, tenant: str, basis: str) -> None:
        async with self._lock(tenant):
            stages = await self._stages(tenant)
            if LEAVING not in stages:
                raise OffboardingNotBegun("the off-boarding of the tenant was not begun")
            begun = _event(stages[LEAVING])
            if begun.context.actor == asker.actor:
                raise SecondPersonNeeded("somebody else than who began it decides on the erasure")
            if ERASING not in stages:
                await self._said(begun)
                if waiting := await self._open_requests(tenant):
                    raise RequestOpen(waiting)
                if self._vault(tenant) is None and await self._keeps_anything(tenant):
                    raise VaultDisabled("payloads of this tenant were kept once, and the vault is switched off")
                await self._reach(tenant, ERASING, json.dumps({"context": asdict(asker), "basis": basis}).encode())
            await self._finish(tenant)
            if self._logs.opened(tenant).departure == ERASING:
                await self._carry_on(tenant)

    async def _finish(self, tenant: str) -> None:
        """Do what follows from the last stage without any decision."""
        stages = await self._stages(tenant)
        stage = furthest(stages)
        if stage in (LEAVING, ERASING):
            await self._said(_event(stages[LEAVING]))
        if stage == SEALING:
            await self._seal(tenant, _event(stages[SEALING]))
        elif stage == SEALED:
            await self._destroy_keys(tenant, _event(stages[SEALING]))

    async def _carry_on(self, tenant: str) -> None:
        """Destroy what may be destroyed, and seal the log if nothing is left."""
        stages = await self._stages(tenant)
        decided = json.loads(stages[ERASING])
        context, basis = _context(decided["context"]), str(decided["basis"])
        vault = self._vault(tenant)
        if vault is not None:
            await self._destroy_records(context, basis)
        self._at("erased")
        opened = self._logs.opened(tenant)
        last = Event(uuid7(), "", context, _last_leaf(tenant, basis, opened.head.size, kept=vault is not None), {})
        # From here on nothing else is recorded: what waits in the queue is, and then it is looked whether anything is left.
        opened.last_event_id, opened.departure = last.event_id, SEALING
        try:
            await self._logs.sequence(_nothing)
            empty = await self._is_empty(tenant)
            if empty:
                last = replace(last, body=_last_leaf(tenant, basis, opened.head.size, kept=vault is not None))
                await self._reach(tenant, SEALING, _plan(last))
        except BaseException:
            opened.departure = furthest(await self._stages(tenant))
            raise
        if not empty:
            opened.departure = ERASING
            return
        await self._seal(tenant, last)

    async def _destroy_records(self, context: Context, basis: str) -> None:
        tenant, after = context.tenant, ""
        while True:
            async with self._records.alone(tenant) as (vault, holds, destruction):
                page = await self._page(tenant, after)
                if not page:
                    return
                after = page[-1].request_id
                kept = await self._why_kept(vault, holds, tenant, page)
                for restricted in (False, True):
                    doomed = [one for one in page if one.request_id not in kept and one.restricted is restricted]
                    if ids := [record.request_id for record in doomed]:
                        body = Erasure(basis, "tenant", "", len(ids), records_digest(ids))
                        whose = replace(context, data_class=SUSPICION) if restricted else context
                        await destruction.destroy(Event(uuid7(), "", whose, body, {}), ids)

    async def _seal(self, tenant: str, last: Event) -> None:
        opened = self._logs.opened(tenant)
        opened.last_event_id, opened.departure = last.event_id, SEALING
        await self._said(last)
        self._at("last_leaf")
        plan = json.dumps({"event_id": last.event_id}).encode()

        def seal(store: LogStore) -> None:
            with store.transaction() as transaction:
                transaction.departures.reach(opened.log_id, SEALED, plan)
                transaction.departures.forget_retry_salts_of(opened.log_id)

        await self._logs.sequence(seal)
        opened.departure, opened.read_only = SEALED, SEALED_WHY
        self._at(SEALED)
        await self._destroy_keys(tenant, last)

    async def _destroy_keys(self, tenant: str, last: Event) -> None:
        """Destroy every key of the tenant, and note that it is done."""
        opened, vault = self._logs.opened(tenant), self._records.vault
        vault_key = NONE
        if vault is not None:
            vault.recorder.forget(tenant)
            destroyed = await vault.keys.destroy_tenant(tenant)
            assert isinstance(last.body, Governance)
            if (last.body.details or {}).get("vault") != NONE:
                vault_key = DESTROYED if destroyed else ELSEWHERE
        opened.signer = None
        try:
            await asyncio.to_thread(self._keys.destroy, tenant)
        except OSError as error:
            raise KeysUnavailable(f"the key that signed the log could not be destroyed: {error.strerror}") from error
        if (why := await self._logs.forget_deleted()) is not None:  # what is left of ciphertexts is worth nothing without keys
            log.warning("deleted ciphertexts were not overwritten yet", extra={"why": why})
        self._at("keys_destroyed")
        plan = json.dumps({"vault_key": vault_key}).encode()

        def end(store: LogStore) -> None:
            with store.transaction() as transaction:
                transaction.departures.reach(opened.log_id, ENDED, plan)

        await self._logs.sequence(end)
        opened.departure = ENDED
        self._at(ENDED)
        log.info("a tenant has left, and its log is sealed", extra={"tenant": tenant})

    async def _progress(self, asker: Context) -> Progress:
        tenant, cleared = asker.tenant, is_cleared(asker.roles)
        counts = await self._logs.read_records(tenant, lambda reader, log_id: reader.counts(log_id, with_restricted=cleared))
        open_requests, records, holds = counts.open_intents, dict(counts.records), counts.holds
        stages = await self._stages(tenant)
        stage = furthest(stages)
        if stage is None:
            return Progress(None, open_requests=open_requests, records=records, holds=holds)
        begun = _event(stages[LEAVING])
        decided = json.loads(stages[ERASING]) if ERASING in stages else {}
        done = Progress(
            stage,
            begun.context.actor,
            await self._leaf_of(tenant, begun.event_id),
            str(decided.get("context", {}).get("actor", "")),
            str(decided.get("basis", "")),
            open_requests,
            records,
            holds,
        )
        if SEALED in stages:
            vault_key = str(json.loads(stages[ENDED])["vault_key"]) if ENDED in stages else ""
            erased = await self._leaf_of(tenant, _event(stages[SEALING]).event_id)
            return replace(done, erased=erased, vault_key=vault_key)
        return replace(done, kept=await self._kept(tenant, cleared=cleared)) if ERASING in stages else done

    async def _kept(self, tenant: str, *, cleared: bool) -> tuple[Kept, ...]:
        """Count what is kept, by reason and class. Raises KeysUnavailable, StoreFailed."""
        if self._vault(tenant) is None:
            return ()
        counts: Counter[tuple[str, str]] = Counter()
        until: dict[tuple[str, str], int | None] = {}
        after = ""
        while True:
            async with self._records.alone(tenant) as (vault, holds, _):
                page = await self._page(tenant, after)
                if not page:
                    return tuple(Kept(*place, counts[place], until[place]) for place in sorted(counts))
                after = page[-1].request_id
                kept = await self._why_kept(vault, holds, tenant, page)
            for record in page:
                if record.request_id not in kept or (record.restricted and not cleared):
                    continue
                place = kept[record.request_id], record.retention_class
                counts[place] += 1
                ends_us = vault.retention.kept_until_us(record.retention_class, record.recorded_at_us)
                known = until.get(place, 0)
                lasting = place[0] != RETENTION_APPLIES or ends_us is None or known is None
                until[place] = None if lasting else max(known or 0, ends_us or 0)

    async def _why_kept(self, vault: Vault, holds: Holds, tenant: str, records: Sequence[StoredRecord]) -> dict[str, str]:
        """Return why records must stay, by id; those that may go are not among them."""
        now_us = self._logs.now_us()
        held = await holds.held(tenant, records)
        kept = {}
        for record in records:
            if vault.retention.must_be_kept(record.retention_class, record.recorded_at_us, now_us):
                kept[record.request_id] = RETENTION_APPLIES
            elif record.request_id in held:
                kept[record.request_id] = LEGAL_HOLD_APPLIES
        return kept

    async def _page(self, tenant: str, after: str) -> list[StoredRecord]:
        return await self._logs.read_records(tenant, lambda reader, log_id: reader.kept_records(log_id, after, AT_ONCE))

    async def _is_empty(self, tenant: str) -> bool:
        """Whether nothing of the tenant is kept, held, open or on its way out."""

        def look(reader: Any, log_id: int) -> bool:
            states = {state for state, _ in reader.states(log_id)}
            counts = reader.counts(log_id, with_restricted=True)
            return states.isdisjoint((KEPT, DESTROYING)) and not counts.holds and not counts.open_intents

        return await self._logs.read_records(tenant, look)

    async def _keeps_anything(self, tenant: str) -> bool:
        return bool(await self._page(tenant, ""))

    async def _open_requests(self, tenant: str) -> int:
        counts = await self._logs.read_records(tenant, lambda reader, log_id: reader.counts(log_id, with_restricted=True))
        return counts.open_intents

    def _vault(self, tenant: str) -> Vault | None:
        """Return the vault that keeps the tenant's payloads; None where none does. What it once kept makes `_is_empty` false."""
        vault = self._records.vault
        return vault if vault is not None and vault.recorder.keeps(tenant) else None

    async def _said(self, event: Event) -> Appended:
        """Return the leaf of an event with its proof, made now if it is not there."""
        tenant = event.context.tenant
        known = await self._leaf_of(tenant, event.event_id)
        if known is not None:
            return known
        appended = await self._logs.append(event, want_receipt=True)
        assert isinstance(event.body, Governance)
        if event.body.operation == BEGUN:
            self._at("begun")
        return appended

    async def _leaf_of(self, tenant: str, event_id: str) -> Appended | None:
        try:
            return await self._logs.receipt(tenant, event_id)
        except LeafNotFound:
            return None

    async def _reach(self, tenant: str, stage: str, plan: bytes) -> None:
        await self._logs.write(tenant, lambda transaction, log_id: transaction.departures.reach(log_id, stage, plan))
        self._logs.opened(tenant).departure = stage
        self._at(stage)

    async def _stages(self, tenant: str) -> Stages:
        return await self._logs.stages(tenant)

    def _departing(self) -> list[str]:
        """Tenants that leave and have not left wholly."""
        opened = {tenant: self._logs.opened(tenant) for tenant in self._logs.tenants}
        return [tenant for tenant, one in opened.items() if one.departure not in (None, ENDED) and _goes_on(one)]

    def _lock(self, tenant: str) -> asyncio.Lock:
        self._logs.opened(tenant)  # none is made for names that nobody has
        return self._locks.setdefault(tenant, asyncio.Lock())


def _permit(asker: Context, action: Action, tenant: str) -> None:
    """Raise unless a person of this tenant asks, in a role that permits it."""
    permit(asker.roles, action)
    if asker.auth_method == _API_KEY or asker.break_glass_id:
        raise RoleNotPermitted("neither an API key nor an emergency ends a tenant")
    if asker.tenant != tenant:
        raise NotThisTenant("another tenant is written out than the caller's")


def _goes_on(opened: TenantLog) -> bool:
    """Whether a log can be worked on: one that failed its checks waits for whoever repairs it."""
    return opened.read_only is None or opened.sealed


def _last_leaf(tenant: str, basis: str, leaves: int, *, kept: bool) -> Governance:
    details = {
        "leaves_before": str(leaves),
        "basis_digest": f"sha256:{sha256(basis.encode()).hexdigest()}",
        "vault": "erased" if kept else NONE,
    }
    return Governance(ERASED, tenant, details)


def _nothing(store: LogStore) -> None:
    """Come to the front of the queue."""
    del store


def _plan(event: Event) -> bytes:
    return json.dumps({"event_id": event.event_id, "context": asdict(event.context), "body": asdict(event.body)}).encode()


def _event(plan: bytes) -> Event:
    """Read what `_plan` wrote. Raises StoreFailed."""
    try:
        said = json.loads(plan)
        return Event(said["event_id"], "", _context(said["context"]), Governance(**said["body"]), {})
    except (ValueError, KeyError, TypeError) as error:
        raise StoreFailed("what was decided about a departure is not what was stored: restore the store") from error


def _context(said: dict[str, Any]) -> Context:
    return Context(**said | {"roles": tuple(said["roles"])})
