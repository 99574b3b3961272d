"""What can be done with records: read, search, erase, correct, hold, and the log book of refusals.

The domain's whole surface; servicer.py puts it on the wire, the command line and the export use it as it is.
Knows: who may do what (permissions.py), what may be destroyed (retention, holds), which leaf says that it was done. Does not know:
gRPC, SQL, how keys are wrapped.

- Every call but `stats` appends a leaf, which is durable before anything is returned.
- Calls that change something of a tenant wait for each other, and first finish what a crash left unfinished.
- For whoever is not cleared, records of the data class "suspicion" do not exist: not in results, counts, errors, nor in the leaves
  that they cause, which are then of that class themselves.
"""

import asyncio
import json
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import Any, Final

from lionrock.audit.canonical_json import canonical_json
from lionrock.audit.failures import (
    HoldNotFound,
    LegalHoldApplies,
    RecordErased,
    RecordNotFound,
    RecordTooLarge,
    RequestOpen,
    RetentionApplies,
    RoleNotPermitted,
    TooManyRecords,
    VaultDisabled,
)
from lionrock.audit.leaf import Access, Context, Correction, Erasure, Event, HoldRelease, Refusal
from lionrock.audit.leaf import Hold as HoldBody
from lionrock.audit.log import AuditLogs
from lionrock.audit.records.contents import Contents, Opened, RecordContent, RecordSummary, RefusalEntry, Vault
from lionrock.audit.records.destruction import Destruction, go_on, records_digest
from lionrock.audit.records.holds import Hold, Holds, RecordScope, new_salt
from lionrock.audit.records.permissions import Action, is_cleared, permit
from lionrock.audit.records.recording import SUSPICION
from lionrock.audit.sequencer import Appended
from lionrock.audit.store.records import KEPT, RecordCounts, StoredRecord
from lionrock.audit.vault.record_keys import KeyScope
from lionrock.chassis.ids import uuid7

ERASURE_MAX_RECORDS: Final = 100_000
_SEARCH_MAX_RECORDS: Final = 20_000
"""Looked at before those that the caller may not know of are left out."""
RETENTION_APPLIES: Final = "RETENTION_APPLIES"
LEGAL_HOLD_APPLIES: Final = "LEGAL_HOLD_APPLIES"
REQUEST_OPEN: Final = "REQUEST_OPEN"
HELD: Final = "held"
"""Status of an outcome whose answer waits for a reviewer."""
RELEASED: Final = "review.released"
"""Operation of the leaf that lets an answer be shown."""


@dataclass(frozen=True, slots=True)
class Erased:
    """`kept`: records that stay, by reason. `scope_salt` opens the leaf's commitment to the scope and is kept nowhere."""

    records: int
    kept: Mapping[str, int]
    leaf: Appended
    scope_salt: bytes


class Records:
    """Records of all tenants."""

    def __init__(
        self,
        logs: AuditLogs,
        vault: Vault | None,
        *,
        at: Callable[[str], None] = go_on,
    ) -> None:
        """`vault`: None where no payloads are kept. `at`: see Destruction."""
        self._logs = logs
        self._contents = Contents(logs)
        self._vault = vault
        self._locks: dict[str, asyncio.Lock] = {}
        self._destroying: set[asyncio.Task[Any]] = set()
        if vault is not None:
            self._destruction = Destruction(logs, vault.keys, at)
            self._holds = Holds(logs, vault.keys)

    @property
    def vault(self) -> Vault | None:
        """What keeps payloads; None where nothing does."""
        return self._vault

    async def join(self, tenant: str) -> None:
        """Keep payloads of a tenant that joins, where any are kept. Raises KeysUnavailable when its key does not answer."""
        if self._vault is not None:
            await self._vault.keys.prepare(tenant)
            self._vault.recorder.keep(tenant)

    async def read(self, asker: Context, request_id: str, max_bytes: int | None = None) -> RecordContent:
        """Read one record, of at most `max_bytes`.

        Raises RoleNotPermitted, VaultDisabled, RecordNotFound, RecordErased, RecordTooLarge, KeysUnavailable and what appending
        raises.
        """
        permit(asker.roles, Action.READ_RECORD)
        vault = self._vault_of(asker.tenant)
        record = await self._record(asker, request_id)
        await self._refuse_own_held(asker, record)
        if max_bytes is not None:
            places = await self._contents.places(asker.tenant, record.request_id)
            if (size := sum(place.size for place in places)) > max_bytes:
                raise RecordTooLarge(f"the record has {size} bytes, and one answer {max_bytes} at most")
        payloads = await self._contents.payloads(vault, asker.tenant, record.request_id)
        return RecordContent(payloads, await self._accessed(asker, "read_record", [record], scope="request"))

    async def stream(self, asker: Context, request_id: str) -> AsyncGenerator[Appended | Opened]:
        """Read one record part by part: first the leaf of this reading, then the payloads in order. Memory: one of them.

        Raises as `read` does; RecordErased, KeysUnavailable and StoreFailed also between two parts.
        """
        permit(asker.roles, Action.READ_RECORD)
        vault = self._vault_of(asker.tenant)
        record = await self._record(asker, request_id)
        await self._refuse_own_held(asker, record)
        places = await self._contents.places(asker.tenant, record.request_id)
        yield await self._accessed(asker, "read_record", [record], scope="request")
        for place in places:
            yield await self._contents.payload(vault, asker.tenant, place)

    async def opened(self, asker: Context, request_id: str) -> list[Opened]:
        """Open one record for a call that has its own leaf already. Raises as `read` does, but what appending raises."""
        permit(asker.roles, Action.READ_RECORD)
        vault = self._vault_of(asker.tenant)
        record = await self._record(asker, request_id)
        return await self._contents.payloads(vault, asker.tenant, record.request_id)

    async def released(self, asker: Context, request_id: str, release_event_id: str) -> tuple[Opened, Appended]:
        """Read the answer of a held request for who asked it, once a leaf of the log has released it.

        Returns the leaf of this reading too. The answer is theirs by authorship and not by role. Raises VaultDisabled,
        RecordNotFound for whoever else asks and before it is released, RecordErased, KeysUnavailable and what appending raises.
        """
        vault = self._vault_of(asker.tenant)
        if not await self._is_released(asker.tenant, request_id, release_event_id):
            raise RecordNotFound("no record of this request")
        record = await self._record(asker, request_id)
        for place in await self._contents.places(asker.tenant, record.request_id):
            leaf = json.loads((await self._logs.leaf_at(asker.tenant, place.leaf_index)).data)
            if place.kind == "answer" and leaf.get("status") == HELD and leaf.get("actor") == asker.actor:
                opened = await self._contents.payload(vault, asker.tenant, place)
                return opened, await self._accessed(asker, "read_released", [record], scope="request")
        raise RecordNotFound("no record of this request")

    async def search(self, asker: Context, scope: RecordScope, limit: int) -> list[RecordSummary]:
        """List records of a person, a case or a request, newest first, erased ones as far as anything still names them.

        Raises as `read` does, but RecordErased.
        """
        permit(asker.roles, Action.SEARCH_RECORDS)
        vault = self._vault_of(asker.tenant)
        records = (await self._matching(asker, scope, _SEARCH_MAX_RECORDS))[:limit]
        held = await self._holds.held(asker.tenant, [record for record in records if record.state == KEPT])
        summaries = [await self._contents.summary(vault, asker.tenant, record, held) for record in records]
        await self._accessed(asker, "search_subject", records, scope=scope.kind)
        return summaries

    async def erase(self, asker: Context, scope: RecordScope, *, basis: str, allow_partial: bool) -> Erased:
        """Destroy keys and salts of records. What is begun is carried through, whoever stops waiting.

        Raises RoleNotPermitted, VaultDisabled, RecordNotFound, RecordErased, RetentionApplies, LegalHoldApplies, RequestOpen,
        TooManyRecords, KeysUnavailable and what appending raises.
        """
        permit(asker.roles, Action.ERASE_RECORDS)
        task = asyncio.create_task(self._erase(asker, scope, basis, allow_partial))
        self._destroying.add(task)
        task.add_done_callback(self._destroying.discard)
        return await asyncio.shield(task)

    async def correct(self, asker: Context, request_id: str, statement: str) -> Appended:
        """Add a statement to a record. Raises as `read` does."""
        permit(asker.roles, Action.CORRECT_RECORD)
        async with self._alone(asker.tenant):
            record = await self._record(asker, request_id)
            event = self._event(asker, Correction(request_id), {"correction": statement.encode()}, restricted=record.restricted)
            return await self._logs.append(event, want_receipt=False)

    async def place_hold(self, asker: Context, scope: RecordScope, reason: str) -> tuple[str, Appended]:
        """Keep records from erasure and expiry. Returns the hold's id and its leaf.

        A hold on a person or case keeps also what will be recorded later. Raises as `read` does.
        """
        permit(asker.roles, Action.HOLD_RECORDS)
        async with self._alone(asker.tenant):
            if scope.kind == "request":
                covered = [await self._record(asker, scope.value)]
            else:
                covered = await self._matching(asker, scope, _SEARCH_MAX_RECORDS)
            restricted = bool(covered) and all(record.restricted for record in covered)
            hold_id, salt = uuid7(), new_salt()
            stored = await self._holds.sealed(
                asker.tenant,
                hold_id,
                scope,
                reason=reason,
                by=asker.actor,
                salt=salt,
                placed_at_us=self._logs.now_us(),
                restricted=restricted,
            )
            body = HoldBody(hold_id, scope.kind, scope.commitment(salt), reason)
            return hold_id, await self._logs.append(
                self._event(asker, body, {}, restricted=restricted), want_receipt=False, place=stored
            )

    async def release_hold(self, asker: Context, hold_id: str) -> Appended:
        """End a hold. Raises RoleNotPermitted, VaultDisabled, HoldNotFound, KeysUnavailable and what appending raises."""
        permit(asker.roles, Action.HOLD_RECORDS)
        async with self._alone(asker.tenant):
            found = [hold for hold in await self._visible_holds(asker) if hold.hold_id == hold_id]
            if not found:
                raise HoldNotFound("no such hold is in force")
            event = self._event(asker, HoldRelease(hold_id, found[0].leaf_index), {}, restricted=found[0].restricted)
            released = await self._logs.append(event, want_receipt=False, release=hold_id)
            await self._holds.forget(asker.tenant, hold_id)
            return released

    async def holds(self, asker: Context) -> list[Hold]:
        """List holds in force, oldest first. Raises RoleNotPermitted, VaultDisabled, KeysUnavailable and what appending raises."""
        permit(asker.roles, Action.HOLD_RECORDS)
        self._vault_of(asker.tenant)
        holds = await self._visible_holds(asker)
        body = Access("list_holds", len(holds), records_digest([hold.hold_id for hold in holds]))
        restricted = any(hold.restricted for hold in holds)
        await self._logs.append(self._event(asker, body, {}, restricted=restricted), want_receipt=False)
        return holds

    async def log_refusal(self, asker: Context, *, request: str, subject_id: str, ground: str, particulars: str) -> Appended:
        """Enter a refused data request into the log book. Raises RoleNotPermitted, VaultDisabled and what appending raises."""
        permit(asker.roles, Action.LOG_REFUSAL)
        self._vault_of(asker.tenant)
        content = canonical_json({"subject_id": subject_id, "particulars": particulars})
        event = self._event(asker, Refusal(request, ground), {"refusal": content}, restricted=False)
        return await self._logs.append(event, want_receipt=False)

    async def refusals(self, asker: Context, limit: int) -> list[RefusalEntry]:
        """Read the log book, newest first. Raises RoleNotPermitted, VaultDisabled, KeysUnavailable and what appending raises."""
        permit(asker.roles, Action.READ_LOG_BOOK)
        vault = self._vault_of(asker.tenant)
        records = await self._logs.read_records(asker.tenant, lambda reader, log_id: reader.log_book(log_id, limit))
        entries = [await self._contents.refusal(vault, asker.tenant, record) for record in records]
        await self._accessed(asker, "list_refusals", records)
        return entries

    async def stats(self, asker: Context) -> tuple[int, RecordCounts]:
        """Leaves of the log, and counts of what exists for the caller. Raises RoleNotPermitted, LogNotFound, StoreFailed."""
        permit(asker.roles, Action.READ_LOG_STATS)
        cleared = is_cleared(asker.roles)
        counts = await self._logs.read_records(asker.tenant, lambda reader, log_id: reader.counts(log_id, with_restricted=cleared))
        return self._logs.size(asker.tenant), counts

    async def settle(self) -> None:
        """Wait for destructions that are under way."""
        while self._destroying:
            await asyncio.wait(self._destroying)

    @asynccontextmanager
    async def alone(self, tenant: str) -> AsyncIterator[tuple[Vault, Holds, Destruction]]:
        """Change a tenant's records while nobody else does, after finishing what was left unfinished. Raises VaultDisabled."""
        vault = self._vault_of(tenant)
        async with self._locks.setdefault(tenant, asyncio.Lock()):
            await self._destruction.finish(tenant)
            yield vault, self._holds, self._destruction

    @asynccontextmanager
    async def _alone(self, tenant: str) -> AsyncIterator[Vault]:
        async with self.alone(tenant) as (vault, _, _):
            yield vault

    async def _refuse_own_held(self, asker: Context, record: StoredRecord) -> None:
        """Keep an answer that was held from who asked for it, whatever roles they have: `released` is their way to it."""
        leaves = await self._logs.read_records(asker.tenant, lambda reader, log_id: reader.leaves_of(log_id, record.request_id))
        for index, kind in leaves:
            if kind == "outcome":
                leaf = json.loads((await self._logs.leaf_at(asker.tenant, index)).data)
                if leaf.get("status") == HELD and leaf.get("actor") == asker.actor:
                    raise RoleNotPermitted("an answer that was held is not read by who asked for it")

    async def _is_released(self, tenant: str, request_id: str, event_id: str) -> bool:
        leaf = await self._logs.leaf_of_event(tenant, event_id)
        if leaf is None:
            return False
        said = json.loads(leaf.data)
        return (said.get("type"), said.get("operation"), said.get("object_id")) == ("governance", RELEASED, request_id)

    async def _erase(self, asker: Context, scope: RecordScope, basis: str, allow_partial: bool) -> Erased:
        async with self._alone(asker.tenant) as vault:
            records = await self._erasable(asker, scope)
            doomed, kept = await self._judge(vault, asker.tenant, records, allow_partial=allow_partial)
            salt = new_salt()
            ids = [record.request_id for record in doomed]
            body = Erasure(basis, scope.kind, scope.commitment(salt), len(ids), records_digest(ids), dict(kept) or None)
            event = self._event(asker, body, {}, restricted=any(record.restricted for record in records))
            return Erased(len(ids), kept, await self._destruction.destroy(event, ids), salt)

    async def _erasable(self, asker: Context, scope: RecordScope) -> list[StoredRecord]:
        if scope.kind == "request":
            return [await self._record(asker, scope.value)]
        found = await self._matching(asker, scope, ERASURE_MAX_RECORDS + 1)
        if len(found) > ERASURE_MAX_RECORDS:
            raise TooManyRecords(f"one call erases {ERASURE_MAX_RECORDS} records at most")
        kept = [record for record in found if record.state == KEPT]
        if not kept:
            raise RecordNotFound("no record is kept under this scope")
        return kept

    async def _judge(
        self, vault: Vault, tenant: str, records: Sequence[StoredRecord], *, allow_partial: bool
    ) -> tuple[list[StoredRecord], Counter[str]]:
        """Return what may be destroyed and count what may not, by reason. Raises the first reason unless part of it will do."""
        now_us, until_us = self._logs.now_us(), 0
        held = await self._holds.held(tenant, records)
        open_ids = await self.open_among(tenant, records)
        doomed, kept = [], Counter[str]()
        for record in records:
            if vault.retention.must_be_kept(record.retention_class, record.recorded_at_us, now_us):
                kept[RETENTION_APPLIES] += 1
                until_us = max(
                    until_us, vault.retention.kept_until_us(record.retention_class, record.recorded_at_us) or _FOR_EVER_US
                )
            elif record.request_id in held:
                kept[LEGAL_HOLD_APPLIES] += 1
            elif record.request_id in open_ids:
                kept[REQUEST_OPEN] += 1
            else:
                doomed.append(record)
        if not allow_partial:
            if kept[RETENTION_APPLIES]:
                raise RetentionApplies(kept[RETENTION_APPLIES], until_us)
            if kept[LEGAL_HOLD_APPLIES]:
                raise LegalHoldApplies(kept[LEGAL_HOLD_APPLIES])
            if kept[REQUEST_OPEN]:
                raise RequestOpen(kept[REQUEST_OPEN])
        return doomed, +kept

    async def open_among(self, tenant: str, records: Sequence[StoredRecord]) -> set[str]:
        """Return ids of those of the records whose requests have no outcome yet. Raises StoreFailed."""
        ids = [record.request_id for record in records]
        return await self._logs.write(
            tenant, lambda transaction, log_id: {intent.request_id for intent in transaction.open_intents_of(log_id, ids)}
        )

    def _vault_of(self, tenant: str) -> Vault:
        self._logs.size(tenant)  # a tenant without a log is not told about vaults
        if self._vault is None or not self._vault.recorder.keeps(tenant):
            raise VaultDisabled("payloads of this tenant are not kept")
        return self._vault

    async def _record(self, asker: Context, request_id: str) -> StoredRecord:
        """Return a record that is kept and exists for the caller. Raises RecordNotFound, RecordErased."""
        found = await self._logs.read_records(asker.tenant, lambda reader, log_id: reader.records(log_id, [request_id]))
        record = self._visible(asker, list(found.values()))
        if not record:
            raise RecordNotFound("no record of this request")
        if record[0].state != KEPT:
            raise RecordErased("the payloads of this request are destroyed")
        return record[0]

    async def _matching(self, asker: Context, scope: RecordScope, limit: int) -> list[StoredRecord]:
        """Return records of a scope that exist for the caller, newest first."""
        if scope.kind == "case":
            found = await self._logs.read_records(
                asker.tenant, lambda reader, log_id: reader.records_of_case(log_id, scope.value, limit)
            )
            return self._visible(asker, found)
        ids = [scope.value]
        if scope.kind == "subject":
            ids = await self._vault_of(asker.tenant).keys.members(asker.tenant, KeyScope("subject", scope.value), limit)
        by_id = await self._logs.read_records(asker.tenant, lambda reader, log_id: reader.records(log_id, ids))
        return self._visible(
            asker, sorted(by_id.values(), key=lambda record: (record.recorded_at_us, record.request_id), reverse=True)
        )

    @staticmethod
    def _visible(asker: Context, records: Sequence[StoredRecord]) -> list[StoredRecord]:
        cleared = is_cleared(asker.roles)
        return [record for record in records if not record.log_book and (cleared or not record.restricted)]

    async def _visible_holds(self, asker: Context) -> list[Hold]:
        cleared = is_cleared(asker.roles)
        return [hold for hold in await self._holds.in_force(asker.tenant) if cleared or not hold.restricted]

    async def _accessed(self, asker: Context, operation: str, records: Sequence[StoredRecord], *, scope: str = "") -> Appended:
        ids = [record.request_id for record in records]
        body = Access(operation, len(ids), records_digest(ids), scope)
        event = self._event(asker, body, {}, restricted=any(record.restricted for record in records))
        return await self._logs.append(event, want_receipt=False)

    @staticmethod
    def _event(asker: Context, body: Any, payloads: Mapping[str, bytes], *, restricted: bool) -> Event:
        context = replace(asker, data_class=SUSPICION) if restricted else asker
        return Event(uuid7(), "", context, body, payloads)


_FOR_EVER_US: Final = 253_402_300_799_000_000
"""The end of the year 9999, for records whose class settings no longer name."""
