"""What an append leaves beside its leaf: payloads sealed under the key of their record.

Knows: which leaf belongs to which record, when a record begins, whose keys wrap its key. Does not know: how a leaf gets into
the log (log.py), who may read it again (records.py). The key is durable before the leaf is submitted, and leaf and ciphertext
are written in one transaction: what was acknowledged is in log and vault, or in neither. A key whose leaf never came is swept
(upkeep.py).
"""

import asyncio
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from functools import partial
from typing import Final

from lionrock.audit.leaf import Event, Governance, Intent, Refusal
from lionrock.audit.records.retention import LOG_BOOK, Retention
from lionrock.audit.store.records import KEPT, NOTHING, Beside, StoredRecord
from lionrock.audit.vault.record_keys import KeyScope, RecordKeys
from lionrock.audit.vault.sealing import RETRY_SALT, Sealer

SUSPICION: Final = "suspicion"
_LARGE_PAYLOAD_BYTES: Final = 64 * 1024
"""From here on encryption takes longer than the event loop may stand still."""


@dataclass(frozen=True, slots=True)
class Recording:
    """What goes with a leaf into the store; as here, nothing."""

    beside: Beside = NOTHING
    retry_salt: bytes | None = None
    open_retry_salt: Callable[[bytes], bytes] = bytes


ALONE: Final = Recording()
"""A leaf and nothing beside it."""


def nothing_stated(tenant: str) -> Retention | None:
    """No tenant states anything."""
    del tenant
    return None


class Recorder:
    """Seals payloads of the tenants that have a vault."""

    def __init__(
        self,
        keys: RecordKeys,
        retention: Retention,
        tenants: Collection[str],
        own_retention: Callable[[str], Retention | None] = nothing_stated,
    ) -> None:
        """`retention`: of the service. `own_retention`: what a tenant states itself, asked anew for every record that begins."""
        self._keys = keys
        self._retention = retention
        self._own_retention = own_retention
        self._tenants = frozenset(tenants)

    def keep(self, tenant: str) -> None:
        """Keep payloads of one more tenant from now on."""
        self._tenants |= {tenant}

    def forget(self, tenant: str) -> None:
        """Keep nothing of a tenant any more."""
        self._tenants -= {tenant}

    def keeps(self, tenant: str) -> bool:
        """Whether payloads of a tenant are kept."""
        return tenant in self._tenants

    def classified(self, event: Event) -> Event:
        """Name the class of retention in an intent whose payloads are kept, and in a decision of which something is."""
        match event.body:
            case Intent() if self.keeps(event.context.tenant):
                pass
            case Governance() if self.keeps(event.context.tenant) and (event.payloads or event.subject_ids):
                pass
            case _:
                return event
        return replace(event, body=replace(event.body, retention_class=self._class_of(event)))

    async def seal(self, origin: str, event: Event, recorded_at_us: int, salt: bytes) -> Recording:
        """Seal the payloads of an event. Raises KeysUnavailable, QueueFull, EventAlreadyRecorded."""
        record_id, tenant = event.record_id, event.context.tenant
        if record_id is None or not self.keeps(tenant):
            return ALONE
        record = self._record(record_id, event, recorded_at_us)
        if not event.payloads and not event.subject_ids:
            return Recording(Beside(record))
        key = await self._key(tenant, record_id, event)
        sealer = Sealer(key, origin, record_id)
        if sum(map(len, event.payloads.values())) < _LARGE_PAYLOAD_BYTES:
            sealed = _seal_all(sealer, event, salt)
        else:
            sealed = await asyncio.to_thread(_seal_all, sealer, event, salt)
        retry_salt = sealer.seal(RETRY_SALT, event.event_id, salt, b"") if salt else None
        return Recording(Beside(record, sealed), retry_salt, partial(sealer.open_retry_salt, event.event_id))

    async def _key(self, tenant: str, record_id: str, event: Event) -> bytes:
        """Key of the record: an intent, and a decision that names data subjects, say whose it is; the others take what is there."""
        match event.body:
            case Intent():
                return await self._keys.key_for(tenant, record_id, _scopes(event), expect_new=True)
            case Governance():
                return await self._keys.key_for(tenant, record_id, _scopes(event), join=not event.subject_ids)
            case _:
                return await self._keys.key_for(tenant, record_id, None)

    def _record(self, record_id: str, event: Event, recorded_at_us: int) -> StoredRecord:
        log_book = isinstance(event.body, Refusal)
        return StoredRecord(
            record_id,
            KEPT,
            self._class_of_record(event),
            "" if log_book else event.context.case_id,
            event.context.data_class == SUSPICION,
            log_book,
            recorded_at_us,
        )

    def _class_of_record(self, event: Event) -> str:
        match event.body:
            case Refusal():
                return LOG_BOOK
            case Intent(retention_class=name) | Governance(retention_class=name) if name:
                return name  # as the leaf says, whatever a tenant has stated meanwhile
            case _:
                return self._class_of(event)

    def _class_of(self, event: Event) -> str:
        retention = self._own_retention(event.context.tenant) or self._retention
        return retention.class_of(event.context.purpose)


def _scopes(event: Event) -> list[KeyScope]:
    if event.subject_ids:
        return [KeyScope("subject", subject_id) for subject_id in event.subject_ids]
    return [KeyScope("case", event.context.case_id)] if event.context.case_id else []


def _seal_all(sealer: Sealer, event: Event, salt: bytes) -> dict[str, bytes]:
    return {kind: sealer.seal(kind, event.event_id, salt, payload) for kind, payload in event.payloads.items()}
