"""Holds in force: whom they keep.

Knows: how a hold is sealed and opened, which records it covers. Does not know: who may place one, when (records.py).
A hold's own content (a person's id may be in it) is sealed under a key of its own, which is destroyed with its release.
"""

import hmac
import json
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from lionrock.audit.canonical_json import canonical_json
from lionrock.audit.leaf import SALT_BYTES
from lionrock.audit.log import AuditLogs
from lionrock.audit.store.records import StoredHold, StoredRecord
from lionrock.audit.vault.record_keys import KeyScope, RecordKeys
from lionrock.audit.vault.sealing import Sealer

ScopeKind = Literal["subject", "case", "request"]
_KIND = "hold"


@dataclass(frozen=True, slots=True)
class RecordScope:
    """Records by person, by case or singly."""

    kind: ScopeKind
    value: str

    def commitment(self, salt: bytes) -> str:
        """Return what a leaf says of it: HMAC-SHA256(salt, kind ":" value), hexadecimal."""
        return hmac.digest(salt, f"{self.kind}:{self.value}".encode(), "sha256").hex()


@dataclass(frozen=True, slots=True)
class Hold:
    """A hold in force. `restricted`: it exists only for those who are cleared for "suspicion"."""

    hold_id: str
    scope: RecordScope
    reason: str
    placed_at_us: int
    placed_by: str
    leaf_index: int
    restricted: bool


def new_salt() -> bytes:
    """Draw the salt of a commitment to a scope."""
    return secrets.token_bytes(SALT_BYTES)


class Holds:
    """The holds of all tenants. What was opened once stays in memory until its release."""

    def __init__(self, logs: AuditLogs, keys: RecordKeys) -> None:
        self._logs = logs
        self._keys = keys
        self._opened: dict[str, Hold] = {}

    async def sealed(
        self,
        tenant: str,
        hold_id: str,
        scope: RecordScope,
        *,
        reason: str,
        by: str,
        salt: bytes,
        placed_at_us: int,
        restricted: bool,
    ) -> StoredHold:
        """Seal a new hold under a new key, for the transaction of its leaf. Raises KeysUnavailable, QueueFull."""
        key = await self._keys.key_for(tenant, hold_id, [], expect_new=True)
        content = canonical_json({"scope": scope.kind, "value": scope.value, "reason": reason, "placed_by": by})
        sealed = Sealer(key, self._logs.origin(tenant), hold_id).seal(_KIND, hold_id, salt, content)
        return StoredHold(hold_id, 0, placed_at_us, restricted, sealed)

    async def in_force(self, tenant: str) -> list[Hold]:
        """Return all holds, oldest first. Raises KeysUnavailable, StoreFailed."""
        stored = await self._logs.read_records(tenant, lambda reader, log_id: reader.holds(log_id))
        return [await self._open(tenant, hold) for hold in stored]

    async def forget(self, tenant: str, hold_id: str) -> None:
        """Destroy the key of a hold that was released. Raises KeysUnavailable."""
        self._opened.pop(hold_id, None)
        await self._keys.destroy(tenant, [hold_id])

    async def held(self, tenant: str, records: Sequence[StoredRecord]) -> set[str]:
        """Return ids of those of the records that a hold keeps. Raises KeysUnavailable, StoreFailed."""
        holds = await self.in_force(tenant)
        if not holds or not records:
            return set()
        values: Mapping[ScopeKind, set[str]] = {"subject": set(), "case": set(), "request": set()}
        for hold in holds:
            values[hold.scope.kind].add(hold.scope.value)
        kept = {
            record.request_id for record in records if record.request_id in values["request"] or record.case_id in values["case"]
        }
        if values["subject"]:
            tags = set(await self._keys.tags(tenant, [KeyScope("subject", value) for value in values["subject"]]))
            owned = await self._keys.tags_of(tenant, [record.request_id for record in records])
            kept |= {record_id for record_id, its in owned.items() if not tags.isdisjoint(its)}
        return kept

    async def _open(self, tenant: str, hold: StoredHold) -> Hold:
        if (opened := self._opened.get(hold.hold_id)) is not None:
            return opened
        key = await self._keys.key_of(tenant, hold.hold_id)
        _, content = Sealer(key, self._logs.origin(tenant), hold.hold_id).open(_KIND, hold.hold_id, hold.sealed)
        said = json.loads(content)
        scope = RecordScope(said["scope"], said["value"])
        opened = Hold(hold.hold_id, scope, said["reason"], hold.placed_at_us, said["placed_by"], hold.leaf_index, hold.restricted)
        self._opened[hold.hold_id] = opened
        return opened
