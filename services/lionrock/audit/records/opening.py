"""Opens what settings say of the vault, and looks after it while the service runs.

Knows: in which order things open. Does not know: what they do.
A tenant whose key does not answer is said so, and its appends are refused until it does; the others go on.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, closing, suppress

from lionrock.audit.failures import KeysUnavailable
from lionrock.audit.keeping import Keeping
from lionrock.audit.log import AuditLogs
from lionrock.audit.records.contents import Vault
from lionrock.audit.records.recording import Recorder
from lionrock.audit.records.records import Records
from lionrock.audit.records.retention import Retention
from lionrock.audit.records.upkeep import Upkeep
from lionrock.audit.vault.key_cache import KeyCache
from lionrock.audit.vault.key_management import KeyManagement, LocalKeyManagement
from lionrock.audit.vault.key_store import KeyStore
from lionrock.audit.vault.record_keys import RecordKeys
from lionrock.audit.vault.settings import VaultSettings
from lionrock.audit.vault.telemetry import MeasuredKeyManagement, VaultMetrics
from lionrock.audit.vault.transit import TransitKeyManagement
from lionrock.chassis.telemetry import meter

log = logging.getLogger("lionrock.audit")


@asynccontextmanager
async def open_records(
    settings: VaultSettings | None, logs: AuditLogs, tenants: Sequence[str], stated: Callable[[], Keeping] = Keeping
) -> AsyncIterator[Records]:
    """Keep payloads while the block runs, if settings say so; records without a vault refuse by VaultDisabled.

    `stated`: what Tenant documents say now of retention and keys. What a crash left unfinished is finished first. Raises
    KeysUnavailable for a key store that does not open.
    """
    if settings is None:
        yield Records(logs, None)
        return
    with closing(KeyStore(settings.key_store_file)) as store:
        metrics = VaultMetrics(meter())
        management = MeasuredKeyManagement(_key_management(settings, stated), metrics)
        keys = RecordKeys(store, management, KeyCache(settings.cached_keys, settings.cached_key_s), logs.now_us, metrics)
        retention = settings.retention.retention()
        own_retention = _of_tenant(stated)
        staying = [tenant for tenant in settings.tenants or tenants if not logs.has_left(tenant)]
        vault = Vault(keys, Recorder(keys, retention, staying, own_retention), retention)
        records = Records(logs, vault)
        upkeep = Upkeep(logs, records, vault, batch=settings.expiry_batch)
        try:
            logs.record_with(vault.recorder)
            await _prepare(vault, tenants)
            await upkeep.finish_all()
            caring = asyncio.create_task(upkeep.run(settings.expiry_interval_s), name="lionrock-records")
            try:
                yield records
            finally:
                caring.cancel()
                with suppress(asyncio.CancelledError):
                    await caring
                await records.settle()
        finally:
            await keys.close()


def _of_tenant(stated: Callable[[], Keeping]) -> Callable[[str], Retention | None]:
    return lambda tenant: stated().retentions.get(tenant)


def _key_management(settings: VaultSettings, stated: Callable[[], Keeping]) -> KeyManagement:
    if settings.local_key_dir is not None:
        return LocalKeyManagement(settings.local_key_dir)
    assert settings.transit is not None
    return TransitKeyManagement(settings.transit, lambda tenant: stated().keys.get(tenant))


async def _prepare(vault: Vault, tenants: Sequence[str]) -> None:
    for tenant in tenants:
        if vault.recorder.keeps(tenant):
            try:
                await vault.keys.prepare(tenant)
            except KeysUnavailable as failure:
                log.error(
                    "a tenant's keys are unavailable; its requests are refused", extra={"tenant": tenant, "why": str(failure)}
                )
