"""`python -m lionrock.audit --config FILE`."""

from __future__ import annotations

import asyncio
import logging
import sys
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager, closing, suppress
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from lionrock.audit.export.exporter import Exporter
from lionrock.audit.failures import AuditError
from lionrock.audit.keeping import Keeping
from lionrock.audit.keys import LOG_SIGNATURES, KeyDirectory
from lionrock.audit.log import AuditLogs, Limits, departing, open_logs
from lionrock.audit.platform_log import PlatformLog, open_platform_log
from lionrock.audit.publisher import PublishedLog
from lionrock.audit.publishing import HEALTH_PART, TilePublishing, tenant_logs
from lionrock.audit.records.offboarding import Offboarding
from lionrock.audit.records.opening import open_records
from lionrock.audit.records.records import Records
from lionrock.audit.records.servicer import SERVICE_NAME as RECORDS_SERVICE_NAME
from lionrock.audit.records.servicer import RecordsServicer
from lionrock.audit.recovery import OrphanSweep
from lionrock.audit.rotation import Rotation
from lionrock.audit.servicer import AuditServicer
from lionrock.audit.settings import RESERVED_NAMES, AuditSettings
from lionrock.audit.signed_checkpoints import SignedCheckpoints
from lionrock.audit.standby import take_over, until_store_is_lost
from lionrock.audit.store import LogStore
from lionrock.audit.store.opening import open_postgres, open_sqlite
from lionrock.audit.tenant_log import open_tenant_log
from lionrock.audit.tenants_dir import TenantsDir
from lionrock.audit.tile_service import tile_service
from lionrock.audit.v1.audit_pb2_grpc import add_AuditServiceServicer_to_server
from lionrock.audit.v1.records_pb2_grpc import add_RecordsServiceServicer_to_server
from lionrock.audit.witnesses import Witnesses
from lionrock.audit.witnessing import CosignedFile, Policy, Witnessing
from lionrock.chassis.server import Registration, prometheus_metrics, serve
from lionrock.chassis.settings import load_settings
from lionrock.chassis.telemetry import Telemetry, start_telemetry

if TYPE_CHECKING:
    from lionrock.chassis.prometheus import PrometheusMetrics

SERVICE_NAME = "lionrock.audit.v1.AuditService"
CALLERS = frozenset({"gateway"})
_READINESS_INTERVAL_S = 0.5
_OFFBOARDING_INTERVAL_S = 3600.0


async def main(settings: AuditSettings) -> None:
    """Open the store and every tenant's log, then serve. Raises AuditError before anything listens, or when the store is lost."""
    metrics = prometheus_metrics(settings.server)
    readers = () if metrics is None else (metrics.reader,)
    telemetry = start_telemetry("audit", settings.telemetry, readers)  # there is much to say before anything is served
    try:
        await _open_and_serve(settings, telemetry, metrics)
    finally:
        await asyncio.to_thread(telemetry.close)


async def _open_and_serve(settings: AuditSettings, telemetry: Telemetry, metrics: PrometheusMetrics | None) -> None:
    with (
        closing(await _open_store(settings)) as store,
        closing(SignedCheckpoints(settings.key_dir / "signed-checkpoints.jsonl")) as signed,
    ):
        keys = KeyDirectory(settings.key_dir, LOG_SIGNATURES[settings.signature])
        limits = Limits(settings.max_pending, settings.max_batch, settings.retry_window_s)
        reserved = RESERVED_NAMES if settings.tiles.wanted else frozenset[str]()
        files = None if settings.tenants_dir is None else TenantsDir(settings.tenants_dir, reserved, settings.vault)
        tenants = settings.tenants if files is None else files.start(settings.tenants)
        tenants = (*tenants, *sorted(departing(store, settings.platform) - set(tenants)))
        logs = open_logs(store, keys, signed, tenants, platform=settings.platform, region=settings.region, limits=limits)
        platform = open_platform_log(settings.platform, store, keys, signed)
        async with logs:
            platform_log = PlatformLog(platform, logs, store, signed)
            async with (
                open_records(settings.vault, logs, tenants, Keeping if files is None else lambda: files.keeping) as records,
                _offboarding(settings, logs, records, keys) as offboarding,
                _witnesses(settings, logs, platform_log) as witnessing,
                _tiles(settings, logs, platform_log, store) as publishing,
                _joining(settings, files, _Opening(logs, keys, signed, records)),
                _running(Rotation(logs, platform, keys, signed, settings.region).run(settings.sweep_interval_s), "audit-rotation"),
            ):
                await _serve(settings, telemetry, metrics, logs, platform_log, (records, offboarding), witnessing, publishing)


async def _open_store(settings: AuditSettings) -> LogStore:
    if settings.store_file is not None:
        return open_sqlite(settings.store_file)
    assert settings.store_dsn_file is not None
    lease_s, accept_timeline = settings.store_lease_s, settings.store_accept_timeline
    open_shared = partial(open_postgres, settings.store_dsn_file, lease_s=lease_s, accept_timeline=accept_timeline)
    return await take_over(open_shared, settings.server.probe_listen, SERVICE_NAME)


@asynccontextmanager
async def _witnesses(settings: AuditSettings, logs: AuditLogs, platform_log: PlatformLog) -> AsyncIterator[Witnessing]:
    """Keep the platform's log growing, and cosigned where settings name witnesses, while the block runs."""
    policy = settings.witness_policy
    witnesses = None
    if settings.witnesses:
        witnesses = Witnesses(settings.witnesses, platform_log.consistency_proof, timeout_s=policy.timeout_s)
    witnessing = Witnessing(
        logs,
        platform_log,
        witnesses,
        Policy(policy.threshold or len(settings.witnesses), policy.refresh_s, policy.require_within_s),
        CosignedFile(settings.key_dir / "cosigned-checkpoint"),
    )
    await witnessing.begin()
    # What a witness must be given before it cosigns.
    ours = {"origin": platform_log.origin, "verifier_key": platform_log.verifier_key}
    logging.getLogger("lionrock.audit").info("the platform's log", extra=ours | {"witnesses": len(settings.witnesses)})
    async with _running(witnessing.run(settings.platform_interval_s), "audit-witnessing"):
        yield witnessing


@dataclass(frozen=True, slots=True)
class _Opening:
    """What a tenant that joins needs opened."""

    logs: AuditLogs
    keys: KeyDirectory
    signed: SignedCheckpoints
    records: Records


@asynccontextmanager
async def _joining(settings: AuditSettings, files: TenantsDir | None, opening: _Opening) -> AsyncIterator[None]:
    """Let tenants join by their files while the block runs, where settings name a directory."""
    if files is None:
        yield
        return
    kept = None if settings.vault is None else settings.vault.tenants

    async def join(tenant: str) -> None:
        if opening.logs.has_left(tenant):
            logging.getLogger("lionrock.audit").error("a tenant was off-boarded and does not join", extra={"tenant": tenant})
            return
        if kept is None or tenant in kept:
            await opening.records.join(tenant)
        origin = f"{settings.platform}/audit/{tenant}"
        await opening.logs.join(tenant, lambda store: open_tenant_log(tenant, origin, store, opening.keys, opening.signed))

    async with _running(files.keep_looking(settings.tenants_poll_s, join), "audit-tenants"):
        yield


@asynccontextmanager
async def _offboarding(
    settings: AuditSettings, logs: AuditLogs, records: Records, keys: KeyDirectory
) -> AsyncIterator[Offboarding]:
    """Let tenants leave while the block runs, after finishing what a crash left of it."""
    offboarding = Offboarding(logs, records, keys)
    await offboarding.finish_all()
    interval_s = _OFFBOARDING_INTERVAL_S if settings.vault is None else settings.vault.expiry_interval_s
    try:
        async with _running(offboarding.run(interval_s), "audit-offboarding"):
            yield offboarding
    finally:
        await offboarding.close()


@asynccontextmanager
async def _running(work: Coroutine[Any, Any, None], name: str) -> AsyncIterator[None]:
    """Do something beside the block, to its end."""
    task = asyncio.create_task(work, name=name)
    try:
        yield
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


@asynccontextmanager
async def _tiles(
    settings: AuditSettings, logs: AuditLogs, platform_log: PlatformLog, store: LogStore
) -> AsyncIterator[TilePublishing | None]:
    """Publish and serve tiles while the block runs, if settings say where."""
    published = [*tenant_logs(logs, store, settings.platform), PublishedLog(*platform_log.published)]
    trust_domain = settings.server.trust_domain
    service = tile_service(settings.tiles, published, store, platform=settings.platform, trust_domain=trust_domain)
    async with service as publishing:
        yield publishing


async def _serve(
    settings: AuditSettings,
    telemetry: Telemetry,
    metrics: PrometheusMetrics | None,
    logs: AuditLogs,
    platform_log: PlatformLog,
    kept: tuple[Records, Offboarding],
    witnessing: Witnessing,
    publishing: TilePublishing | None,
) -> None:
    records, offboarding = kept

    async def say_what_is_read_only(port: int) -> None:
        del port
        for tenant, why in logs.read_only_reasons().items():
            if logs.has_left(tenant):
                continue
            logging.getLogger("lionrock.audit").error("a log is read-only", extra={"tenant": tenant, "why": why})

    witness_keys = [witness.verifier_key for witness in settings.witnesses]
    exporter = Exporter(logs, records, platform_log, witness_keys=witness_keys)
    served = RecordsServicer(
        records,
        witnessing.witnessed_at,
        exporter,
        offboarding=offboarding,
        max_message_bytes=settings.server.max_message_bytes,
    )
    registrations = (
        Registration(add_AuditServiceServicer_to_server, AuditServicer(logs, platform_log), SERVICE_NAME, CALLERS),
        Registration(add_RecordsServiceServicer_to_server, served, RECORDS_SERVICE_NAME, CALLERS),
    )
    sweep = OrphanSweep(logs, orphan_after_s=settings.orphan_after_s)
    async with _running(sweep.run(settings.sweep_interval_s), "audit-sweep"):
        readiness = _told_when_it_changes(lambda: logs.writable)
        parts = {}
        if publishing is not None:
            parts[HEALTH_PART] = _told_when_it_changes(lambda: not publishing.alarms)
        serving = serve(
            settings,
            "audit",
            registrations,
            on_ready=say_what_is_read_only,
            readiness=readiness,
            parts=parts,
            telemetry=telemetry,
            metrics=metrics,
        )
        await (serving if settings.store_file is not None else until_store_is_lost(serving, logs))


async def _told_when_it_changes(able_now: Callable[[], bool]) -> AsyncIterator[bool]:
    """Say when something becomes able to do its work or ceases to be: without a record there is no answer, so health shows it."""
    able: bool | None = None
    while True:
        if (now := able_now()) is not able:
            able = now
            yield able
        await asyncio.sleep(_READINESS_INTERVAL_S)


if __name__ == "__main__":
    try:
        asyncio.run(main(load_settings(AuditSettings, sys.argv[1:])))
    except (AuditError, OSError) as error:
        sys.exit(f"lionrock audit: {error}")
