"""What happens to records without anybody asking: expiry, the end of what a crash left, the sweep of keys that open nothing.

Knows: what is due, batch by batch. Does not know: how a batch is destroyed (destruction.py). An expired batch is one EXPIRY
leaf. Records that are held, or whose request has not ended, wait; those of the data class "suspicion" expire in batches of
their own, whose leaves are of that class.
"""

import asyncio
import logging
from collections.abc import Sequence
from typing import Final

from lionrock.audit.failures import AuditError
from lionrock.audit.leaf import Context, Event, Expiry
from lionrock.audit.log import AuditLogs
from lionrock.audit.records.contents import Vault
from lionrock.audit.records.destruction import records_digest
from lionrock.audit.records.recording import SUSPICION
from lionrock.audit.records.records import Records
from lionrock.audit.records.retention import DAY_US
from lionrock.audit.store.records import KEPT, StoredRecord
from lionrock.chassis.ids import uuid7

log = logging.getLogger("lionrock.audit")

ORPHANED_AFTER_US: Final = 3_600_000_000
"""A key whose leaf is not there after an hour waits for nothing: no append takes so long."""
_PAGE: Final = 512


class Upkeep:
    """Looks after the records of all tenants that have a vault."""

    def __init__(
        self,
        logs: AuditLogs,
        records: Records,
        vault: Vault,
        *,
        batch: int,
    ) -> None:
        """`batch`: records that one EXPIRY leaf covers at most."""
        self._logs = logs
        self._records = records
        self._vault = vault
        self._batch = batch

    async def run(self, interval_s: float) -> None:
        """Look for ever."""
        while True:
            for tenant in self._tenants():
                await self._look_after(tenant)
            self._vault.keys.forget_stale()
            await asyncio.sleep(interval_s)

    async def finish_all(self) -> None:
        """Finish what was left unfinished, before anything is served. A tenant where that fails is tried again later."""
        for tenant in self._tenants():
            try:
                async with self._records.alone(tenant):
                    pass
            except AuditError as error:
                log.error("a destruction could not be finished", extra={"tenant": tenant, "why": str(error)})

    async def expire(self, tenant: str) -> int:
        """Destroy what is due. Returns how many records. Raises AuditError."""
        expired = 0
        for name, retention in sorted(self._vault.retention.classes.items()):
            if retention.expire_days is None:
                continue
            before_us = self._logs.now_us() - retention.expire_days * DAY_US
            for restricted in (False, True):
                expired += await self._expire_class(tenant, name, before_us, restricted=restricted)
        return expired

    async def sweep_keys(self, tenant: str) -> int:
        """Destroy keys of records and holds that are not there. Returns how many. Raises AuditError."""
        swept, after = 0, ""
        while True:
            async with self._records.alone(tenant) as (vault, _, _):
                ids = await vault.keys.made_before(tenant, self._logs.now_us() - ORPHANED_AFTER_US, after, _PAGE)
                if not ids:
                    return swept
                orphans = await self._orphans(tenant, ids)
                if orphans:
                    await vault.keys.destroy(tenant, orphans)
                swept, after = swept + len(orphans), ids[-1]

    async def _look_after(self, tenant: str) -> None:
        try:
            expired = await self.expire(tenant)
            swept = await self.sweep_keys(tenant)
        except AuditError as error:
            log.warning("records could not be looked after", extra={"tenant": tenant, "why": str(error)})
        else:
            if expired or swept:
                log.info("records expired", extra={"tenant": tenant, "count": expired, "swept_keys": swept})

    async def _expire_class(self, tenant: str, name: str, before_us: int, *, restricted: bool) -> int:
        expired, after = 0, (-1, "")
        while True:
            async with self._records.alone(tenant) as (_, holds, destruction):
                page = await self._page(tenant, name, before_us, restricted, after)
                if not page:
                    return expired
                after = (page[-1].recorded_at_us, page[-1].request_id)
                spared = await holds.held(tenant, page) | await self._records.open_among(tenant, page)
                ids = [record.request_id for record in page if record.request_id not in spared]
                if ids:
                    await destruction.destroy(self._event(tenant, name, ids, restricted=restricted), ids)
                    expired += len(ids)

    async def _page(
        self, tenant: str, name: str, before_us: int, restricted: bool, after: tuple[int, str]
    ) -> Sequence[StoredRecord]:
        return await self._logs.read_records(
            tenant,
            lambda reader, log_id: reader.older_records(
                log_id, name, restricted=restricted, before_us=before_us, after=after, limit=self._batch
            ),
        )

    async def _orphans(self, tenant: str, ids: Sequence[str]) -> list[str]:
        found = await self._logs.read_records(tenant, lambda reader, log_id: reader.records(log_id, ids))
        holds = await self._logs.read_records(tenant, lambda reader, log_id: reader.holds(log_id))
        alive = {record_id for record_id, record in found.items() if record.state == KEPT} | {hold.hold_id for hold in holds}
        return [record_id for record_id in ids if record_id not in alive]

    def _tenants(self) -> list[str]:
        unwritable = self._logs.read_only_reasons()
        return [tenant for tenant in self._logs.tenants if tenant not in unwritable and self._vault.recorder.keeps(tenant)]

    @staticmethod
    def _event(tenant: str, name: str, ids: Sequence[str], *, restricted: bool) -> Event:
        context = Context(
            request_id=uuid7(),
            tenant=tenant,
            actor="",
            auth_method="",
            roles=(),
            purpose="retention",
            case_id="",
            conversation_id="",
            data_class=SUSPICION if restricted else "",
            territory="",
            profile="",
        )
        return Event(uuid7(), "", context, Expiry(name, len(ids), records_digest(ids)), {})
