"""What records hold: payloads opened and checked against their leaves, summaries, entries of the log book.

Knows: how a sealed payload becomes what was said again, and that it is what its leaf commits to. Does not know: who may see it
(records.py), what may be destroyed.
"""

import asyncio
import json
from collections.abc import Sequence
from dataclasses import dataclass

from lionrock.audit.failures import RecordErased, StoreFailed
from lionrock.audit.leaf import commitment
from lionrock.audit.log import AuditLogs
from lionrock.audit.records.recording import Recorder
from lionrock.audit.records.retention import Retention
from lionrock.audit.sequencer import Appended
from lionrock.audit.store.records import PayloadPlace, SealedPayload, StoredRecord
from lionrock.audit.vault.record_keys import RecordKeys
from lionrock.audit.vault.sealing import Sealer


@dataclass(frozen=True, slots=True)
class Opened:
    """One payload, and what opens its commitment in its leaf."""

    kind: str
    leaf_index: int
    recorded_at_us: int
    salt: bytes
    payload: bytes


@dataclass(frozen=True, slots=True)
class RecordContent:
    """What was said, oldest first, and the leaf of this reading."""

    payloads: Sequence[Opened]
    access: Appended


@dataclass(frozen=True, slots=True)
class RecordSummary:
    """A record without its payloads. `outcome_index`: None while there is none. Times: microseconds since 1970; None: no limit."""

    record: StoredRecord
    outcome: Appended | None
    other_leaves: Sequence[int]
    kept_until_us: int | None
    expires_at_us: int | None
    held: bool


@dataclass(frozen=True, slots=True)
class RefusalEntry:
    """An entry of the log book."""

    entered_at_us: int
    request: str
    subject_id: str
    ground: str
    particulars: str
    actor: str
    leaf_index: int


@dataclass(frozen=True, slots=True)
class Vault:
    """What records need where payloads are kept."""

    keys: RecordKeys
    recorder: Recorder
    retention: Retention


class Contents:
    """Reads records of all tenants."""

    def __init__(self, logs: AuditLogs) -> None:
        self._logs = logs

    async def payloads(self, vault: Vault, tenant: str, record_id: str) -> list[Opened]:
        """Open the payloads of a record and check each against its leaf. Raises RecordErased, KeysUnavailable, StoreFailed."""
        sealed = await self._logs.read_records(tenant, lambda reader, log_id: reader.payloads(log_id, record_id))
        if not sealed:
            return []
        sealer = Sealer(await vault.keys.key_of(tenant, record_id), self._logs.origin(tenant), record_id)
        return [await self._open(sealer, tenant, payload) for payload in sealed]

    async def places(self, tenant: str, record_id: str) -> list[PayloadPlace]:
        """Say which payloads a record has, in order of their leaves. Raises StoreFailed."""
        found = await self._logs.read_records(tenant, lambda reader, log_id: reader.payload_places(log_id, [record_id]))
        return sorted(found, key=lambda place: (place.leaf_index, place.kind))

    async def payload(self, vault: Vault, tenant: str, place: PayloadPlace) -> Opened:
        """Open one payload and check it against its leaf. Raises RecordErased, KeysUnavailable, StoreFailed."""
        sealed = await self._logs.read_records(tenant, lambda reader, log_id: reader.payload(log_id, place))
        if sealed is None:
            raise RecordErased("the payloads of this request are destroyed")
        key = await vault.keys.key_of(tenant, place.request_id)
        return await self._open(Sealer(key, self._logs.origin(tenant), place.request_id), tenant, sealed)

    async def _open(self, sealer: Sealer, tenant: str, sealed: SealedPayload) -> Opened:
        leaf = await self._logs.leaf_at(tenant, sealed.leaf_index)
        salt, payload = await asyncio.to_thread(sealer.open, sealed.kind, sealed.event_id, sealed.sealed)
        committed = json.loads(leaf.data).get("commitments", {}).get(sealed.kind)
        if committed != commitment(salt, payload).hex():
            raise StoreFailed(f"a payload of leaf {sealed.leaf_index} is not what the leaf commits to: restore the store")
        return Opened(sealed.kind, sealed.leaf_index, leaf.recorded_at_us, salt, payload)

    async def summary(self, vault: Vault, tenant: str, record: StoredRecord, held: set[str]) -> RecordSummary:
        """Describe a record. `held`: ids of records that a hold keeps. Raises StoreFailed, LeafNotFound."""
        leaves = await self._logs.read_records(tenant, lambda reader, log_id: reader.leaves_of(log_id, record.request_id))
        outcomes = [index for index, kind in leaves if kind == "outcome"]
        outcome = await self._place(tenant, outcomes[-1]) if outcomes else None
        return RecordSummary(
            record,
            outcome,
            [index for index, _ in leaves if not outcomes or index != outcomes[-1]],
            vault.retention.kept_until_us(record.retention_class, record.recorded_at_us),
            vault.retention.expires_at_us(record.retention_class, record.recorded_at_us),
            record.request_id in held,
        )

    async def _place(self, tenant: str, index: int) -> Appended:
        leaf = await self._logs.leaf_at(tenant, index)
        return Appended(self._logs.origin(tenant), index, leaf.completed[0], leaf.recorded_at_us, b"", None)

    async def refusal(self, vault: Vault, tenant: str, record: StoredRecord) -> RefusalEntry:
        """Open an entry of the log book. Raises RecordErased, KeysUnavailable, StoreFailed."""
        (opened,) = await self.payloads(vault, tenant, record.request_id)
        leaf = json.loads((await self._logs.leaf_at(tenant, opened.leaf_index)).data)
        said = json.loads(opened.payload)
        return RefusalEntry(
            opened.recorded_at_us,
            leaf["request"],
            said["subject_id"],
            leaf["ground"],
            said["particulars"],
            leaf["actor"],
            opened.leaf_index,
        )
