"""What happens to records without anybody asking: expiry, the end of what a crash left, the sweep of keys that open nothing.

Knows: what is due, batch by batch; that keys are wrapped anew where a tenant names another key for that. Does not know: how a
batch is destroyed (destruction.py). An expired batch is one EXPIRY leaf. Records that are held, or whose request has not ended,
wait; those of the data class "suspicion" expire in batches of their own, whose leaves are of that class.
"""

import asyncio
import logging
import time
from collections.abc import Sequence
from contextlib import suppress
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
from lionrock.audit.vault.telemetry import UpkeepRun
from lionrock.chassis.ids import uuid7

log = logging.getLogger("lionrock.audit")

ORPHANED_AFTER_US: Final = 3_600_000_000
"""A key whose leaf is not there after an hour waits for nothing: no append takes so long."""
_PAGE: Final = 512
_COUNTED_MAX: Final = 100_000
"""Records of a class that are counted as overdue at most; nobody acts on more in another way."""


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
        self._wrapped_by: dict[str, bytes] = {}

    async def run(self, interval_s: float) -> None:
        """Look for ever."""
        while True:
            await self.look_after_all()
            self._vault.keys.forget_stale()
            await asyncio.sleep(interval_s)

    async def look_after_all(self) -> UpkeepRun:
        """Expire and sweep for every tenant, and tell metrics what there was. Where a tenant fails, the others go on."""
        run, began_s = UpkeepRun(), time.perf_counter()
        for tenant in self._tenants():
            await self._look_after(tenant, run)
        self._vault.keys.metrics.upkept(run, seconds=time.perf_counter() - began_s, ended_s=self._logs.now_us() / 1e6)
        return run

    async def finish_all(self) -> None:
        """Finish what was left unfinished, before anything is served. A tenant where that fails is tried again later."""
        for tenant in self._tenants():
            try:
                async with self._records.alone(tenant):
                    pass
            except AuditError as error:
                log.error("a destruction could not be finished", extra={"tenant": tenant, "why": str(error)})

    async def expire(self, tenant: str, run: UpkeepRun | None = None) -> int:
        """Destroy what is due. Returns how many records; `run` counts what stays. Raises AuditError."""
        run = run or UpkeepRun()
        expired = 0
        for name, before_us, restricted in await self._due(tenant):
            expired += await self._expire_class(tenant, name, before_us, restricted=restricted, run=run)
        return expired

    async def sweep_keys(self, tenant: str, run: UpkeepRun | None = None) -> int:
        """Destroy keys of records and holds that are not there. Returns how many; `run` counts the others. Raises AuditError."""
        run = run or UpkeepRun()
        swept, after = 0, ""
        while True:
            async with self._records.alone(tenant) as (vault, _, _):
                ids = await vault.keys.made_before(tenant, self._logs.now_us() - ORPHANED_AFTER_US, after, _PAGE)
                if not ids:
                    return swept
                orphans = await self._orphans(tenant, ids)
                if orphans:
                    await vault.keys.destroy(tenant, orphans)
                    vault.keys.metrics.destroyed(len(orphans), "sweep")
                run.keys += len(ids) - len(orphans)
                swept, after = swept + len(orphans), ids[-1]

    async def rewrap_keys(self, tenant: str) -> int:
        """Have the key that a tenant names now wrap what another wrapped. Returns how many keys that was. Raises KeysUnavailable.

        A run that finds none says that the former key is not needed, a run after the last that found some: what was being wrapped
        while the key changed is there by then.
        """
        mark, done = self._vault.keys.mark(tenant), 0
        if mark is None or self._wrapped_by.get(tenant) == mark:
            return 0
        while found := await self._vault.keys.rewrap(tenant, mark, _PAGE):
            done += found
        if done:
            log.info("keys of a tenant were wrapped anew", extra={"tenant": tenant, "count": done})
        else:
            self._wrapped_by[tenant] = mark
            log.info("all keys of a tenant are wrapped by the key that it has", extra={"tenant": tenant})
        return done

    async def _look_after(self, tenant: str, run: UpkeepRun) -> None:
        of_tenant = UpkeepRun()
        try:
            expired = await self.expire(tenant, of_tenant)
            swept = await self.sweep_keys(tenant, of_tenant)
            await self.rewrap_keys(tenant)
        except AuditError as error:
            log.warning("records could not be looked after", extra={"tenant": tenant, "why": str(error)})
            await self._count_failed(tenant, run)
        except Exception:  # a defect must not end the expiry of all tenants unheard
            log.exception("looking after records failed", extra={"tenant": tenant})
            await self._count_failed(tenant, run)
        else:
            run.kept += of_tenant.kept
            run.keys += of_tenant.keys
            if expired or swept:
                log.info("records expired", extra={"tenant": tenant, "count": expired, "swept_keys": swept})

    async def _count_failed(self, tenant: str, run: UpkeepRun) -> None:
        """Count what is due and still there: where a tenant failed, why each record stays is not known."""
        run.failing += 1
        with suppress(AuditError):  # a store that cannot be read is told elsewhere
            for name, before_us, restricted in await self._due(tenant):
                after, counted = (-1, ""), 0
                while counted < _COUNTED_MAX and (page := await self._page(tenant, name, before_us, restricted, after)):
                    counted += len(page)
                    after = (page[-1].recorded_at_us, page[-1].request_id)
                run.overdue += counted

    async def _due(self, tenant: str) -> list[tuple[str, int, bool]]:
        """Name the tenant's classes that expire, by kind of data class, and the time before which their records do."""
        now_us, due = self._logs.now_us(), list[tuple[str, int, bool]]()
        for restricted in (False, True):
            names = await self._classes(tenant, restricted)
            for name in names:
                if (expire_days := self._vault.retention.expire_days(name)) is not None:
                    due.append((name, now_us - expire_days * DAY_US, restricted))
        return due

    async def _classes(self, tenant: str, restricted: bool) -> Sequence[str]:
        return await self._logs.read_records(tenant, lambda reader, log_id: reader.retention_classes(log_id, restricted=restricted))

    async def _expire_class(self, tenant: str, name: str, before_us: int, *, restricted: bool, run: UpkeepRun) -> int:
        expired, after = 0, (-1, "")
        while True:
            async with self._records.alone(tenant) as (_, holds, destruction):
                page = await self._page(tenant, name, before_us, restricted, after)
                if not page:
                    return expired
                after = (page[-1].recorded_at_us, page[-1].request_id)
                spared = await holds.held(tenant, page) | await self._records.open_among(tenant, page)
                ids = [record.request_id for record in page if record.request_id not in spared]
                run.kept += len(page) - len(ids)
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
