"""The audit service that lives through a replayed day (audit_day.py): real store, vault, witness, tiles and monitor, one clock.

The parts are those of `python -m lionrock.audit` without the wire; what runs there every so many seconds is called here, when the
day's clock says so. The witness answers over HTTP; the monitor reads the directory of tiles, with keys to which links lead.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, closing
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from lionrock.audit.export.exporter import Exporter
from lionrock.audit.keys import KeyDirectory
from lionrock.audit.log import AuditLogs, Limits, open_logs
from lionrock.audit.monitor import LogMonitor, WatchedLog
from lionrock.audit.platform_log import KEY_NAME, PlatformLog, open_platform_log
from lionrock.audit.publisher import PublishedLog
from lionrock.audit.publishing import TilePublishing, tenant_logs
from lionrock.audit.records.contents import Vault
from lionrock.audit.records.recording import Recorder
from lionrock.audit.records.records import Records
from lionrock.audit.records.retention import Retention
from lionrock.audit.records.upkeep import Upkeep
from lionrock.audit.recovery import OrphanSweep
from lionrock.audit.rotation import Rotation
from lionrock.audit.signed_checkpoints import SignedCheckpoints
from lionrock.audit.store import LogStore
from lionrock.audit.tenant_log import TenantLog
from lionrock.audit.tile_sinks import DirectorySink
from lionrock.audit.tile_sources import DirectorySource
from lionrock.audit.vault.key_cache import KeyCache
from lionrock.audit.vault.key_management import LocalKeyManagement
from lionrock.audit.vault.key_store import KeyStore
from lionrock.audit.vault.record_keys import RecordKeys
from lionrock.audit.verify import follow_links
from lionrock.audit.witness_settings import WitnessPeer
from lionrock.audit.witnesses import Witnesses
from lionrock.audit.witnessing import CosignedFile, Policy, Witnessing
from lionrock.chassis.http_server import start_http_server
from lionrock.chassis.http_settings import HttpServerSettings
from lionrock.tlog.keys import Cosigner, VerifierKey
from lionrock.witness.app import witness_app
from lionrock.witness.state import create_state, open_state
from lionrock.witness.witness import Witness

PLATFORM = "day.example"
ORIGIN = f"{PLATFORM}/audit"
STORE_FILE = Path("store/audit.db")
"""Below the directory, where the logs are in SQLite."""


@dataclass(slots=True)
class DayClock:
    """The time of the day that is replayed, moved by hand. It never goes back."""

    now_us: int

    def __call__(self) -> int:
        """Microseconds since 1970."""
        return self.now_us

    def seconds(self) -> float:
        """Seconds since 1970."""
        return self.now_us / 1e6

    def set(self, now_us: int) -> None:
        """Go forward."""
        assert now_us >= self.now_us
        self.now_us = now_us


@dataclass(frozen=True, slots=True)
class Pace:
    """Times of the day's clock, in seconds.

    When a request that nobody answers is closed; when a checkpoint is cosigned again although nothing was added; for how long the
    platform's log may stand still before that is an alarm.
    """

    orphan_after_s: float
    refresh_s: float
    stall_after_s: float
    expiry_batch: int = 256


class Directory:
    """Where everything lies, and what outlives a restart: the keys that an auditor got and learnt, the witness's own key."""

    def __init__(self, root: Path, clock: DayClock, open_store: Callable[[], LogStore]) -> None:
        self.root = root
        self.clock = clock
        self.open_store = open_store
        self.trusted: dict[str, list[str]] = {}
        """Verifier keys by origin: the first one, and those to which links led from it."""
        self.cosigner = Cosigner("witness.example", Ed25519PrivateKey.generate(), clock=clock.seconds)
        create_state(self.witness_state, [self.witness_key])

    @property
    def witness_key(self) -> str:
        """Verifier key of the witness."""
        return str(self.cosigner.verifier_key)

    @property
    def witness_state(self) -> Path:
        """File of what the witness cosigned last."""
        return self.root / "witness" / "state.db"

    @property
    def key_dir(self) -> Path:
        """Directory of the logs' keys and of the second place."""
        return self.root / "keys"

    @property
    def key_store_file(self) -> Path:
        """File of the records' wrapped keys."""
        return self.root / "vault" / "keys.db"

    @property
    def tiles(self) -> Path:
        """Directory of what is published."""
        return self.root / "tiles"

    def trust(self, origin: str, verifier_keys: Sequence[str], links: Sequence[str]) -> None:
        """Learn the keys of a log: its only one when it is new, else those that links prove. Raises VerificationFailed."""
        known = self.trusted.setdefault(origin, list(verifier_keys[-1:]))
        self.trusted[origin] = follow_links(known, verifier_keys, links)


@dataclass(slots=True)
class Service:
    """The service from one start to its end."""

    at: Directory
    pace: Pace
    store: LogStore
    keys: KeyDirectory
    logs: AuditLogs
    platform: TenantLog
    platform_log: PlatformLog
    records: Records
    upkeep: Upkeep
    exporter: Exporter
    sweep: OrphanSweep
    rotation: Rotation
    witnessing: Witnessing
    witnesses: Witnesses
    publishing: TilePublishing
    monitors: dict[str, LogMonitor] = field(default_factory=dict)
    alarms: list[str] = field(default_factory=list)
    looks: int = 0
    _steps: asyncio.Lock = field(default_factory=asyncio.Lock)

    async def follow_keys(self) -> None:
        """Let the auditor and the monitor know every log's keys of now. Raises VerificationFailed."""
        for opened in (self.platform, *map(self.logs.opened, self.logs.tenants)):
            links = [link.tlog_proof for link in await self.logs.key_links(opened)]
            self.at.trust(opened.origin, opened.verifier_keys, links)
            keys = self.at.trusted[opened.origin]
            if opened.origin not in self.monitors or len(keys) > 1:
                self.monitors[opened.origin] = self._monitor(opened.origin, keys)

    def _monitor(self, origin: str, keys: Sequence[str]) -> LogMonitor:
        of_platform = origin == ORIGIN
        watched = WatchedLog(
            origin,
            DirectorySource(self.at.tiles / origin),
            [VerifierKey.parse(key) for key in keys],
            [self.at.cosigner.verifier_key] if of_platform else [],
            int(of_platform),
            self.pace.stall_after_s if of_platform else None,
        )
        return LogMonitor(watched, self.at.root / "monitor", clock=self.at.clock.seconds)

    async def attest(self) -> None:
        """Record the tenants' checkpoints in the platform's log, and have that cosigned."""
        async with self._steps:
            await self.witnessing.step()
        if self.witnesses.alarms:
            self.alarms.extend(self.witnesses.alarms)

    async def publish_and_look(self) -> None:
        """Attest, publish, and look at every log while that is going on."""
        await self.attest()
        first = not self.at.tiles.exists()
        publishing = asyncio.create_task(self.publishing.publish())
        if first:
            await publishing
        await self.look()
        await publishing
        self.alarms.extend(f"{origin}: {why}" for origin, why in {**self.publishing.alarms, **self.publishing.failing}.items())

    async def look(self, *, everything: bool = False) -> dict[str, int | None]:
        """Look at every published log. Returns sizes by origin."""
        sizes = {}
        for origin, monitor in self.monitors.items():
            look = await asyncio.to_thread(monitor.look, everything=everything)
            self.looks += 1
            sizes[origin] = look.size
            self.alarms.extend(f"{origin}: {finding.alarm}: {finding.detail}" for finding in look.findings)
        return sizes

    async def rotate(self, tenant: str | None) -> None:
        """Give a log (None: the platform's) the key that is ready, or a new one. Raises AuditError."""
        opened = self.platform if tenant is None else self.logs.opened(tenant)
        if self.keys.load_next(opened.tenant, opened.origin) is None:
            self.keys.create_next(opened.tenant, opened.origin)
        assert await self.rotation.look(opened)
        await self.follow_keys()


@asynccontextmanager
async def running(at: Directory, tenants: Sequence[str], retention: Retention, pace: Pace) -> AsyncIterator[Service]:
    """Run the service on what lies in the directory. Raises AuditError."""
    with (
        closing(at.open_store()) as store,
        closing(SignedCheckpoints(at.key_dir / "signed-checkpoints.jsonl")) as signed,
        closing(KeyStore(at.key_store_file)) as key_store,
    ):
        keys = KeyDirectory(at.key_dir)
        limits = Limits(max_pending=8192, max_batch=1024, retry_window_s=900)
        logs = open_logs(store, keys, signed, tenants, platform=PLATFORM, region="HK", limits=limits, clock_us=at.clock)
        platform = open_platform_log(PLATFORM, store, keys, signed)
        platform_log = PlatformLog(platform, logs, store, signed)
        published = [*tenant_logs(logs, store, PLATFORM), PublishedLog(*platform_log.published)]
        publishing = TilePublishing(published, store, partial(DirectorySink, at.tiles), interval_s=3600)
        async with logs, _witness(at, keys, platform_log) as peer:
            vault_keys = RecordKeys(key_store, LocalKeyManagement(at.root / "kek"), KeyCache(4096, 300), logs.now_us)
            try:
                vault = Vault(vault_keys, Recorder(vault_keys, retention, tenants), retention)
                logs.record_with(vault.recorder)
                records = Records(logs, vault)
                upkeep = Upkeep(logs, records, vault, batch=pace.expiry_batch)
                witnesses = Witnesses([peer], platform_log.consistency_proof, timeout_s=30, clock=at.clock.seconds)
                kept = CosignedFile(at.key_dir / "cosigned-checkpoint")
                policy = Policy(1, pace.refresh_s, require_within_s=None)
                service = Service(
                    at,
                    pace,
                    store,
                    keys,
                    logs,
                    platform,
                    platform_log,
                    records,
                    upkeep,
                    Exporter(logs, records, platform_log, witness_keys=[at.witness_key]),
                    OrphanSweep(logs, orphan_after_s=pace.orphan_after_s, clock=at.clock.seconds),
                    Rotation(logs, platform, keys, signed, "HK"),
                    Witnessing(logs, platform_log, witnesses, policy, kept, clock=at.clock.seconds),
                    witnesses,
                    publishing,
                )
                for tenant in tenants:
                    await vault_keys.prepare(tenant)
                await upkeep.finish_all()
                await service.follow_keys()
                await service.witnessing.begin()
                yield service
                await records.settle()
            finally:
                await publishing.close()
                await vault_keys.close()


@asynccontextmanager
async def _witness(at: Directory, keys: KeyDirectory, platform_log: PlatformLog) -> AsyncIterator[WitnessPeer]:
    """Run a witness over HTTP that knows the platform's keys, and the next one where that is ready."""
    following = keys.load_next(KEY_NAME, ORIGIN)
    known = [*platform_log.verifier_keys, *([] if following is None else [str(following.verifier_key)])]
    with closing(open_state(at.witness_state, [at.witness_key])) as state, ThreadPoolExecutor(1) as worker:
        witness = Witness(state, [at.cosigner], {ORIGIN: [VerifierKey.parse(key) for key in known]})
        server = await start_http_server(witness_app(witness, worker), HttpServerSettings())
        try:
            yield WitnessPeer(url=f"http://127.0.0.1:{server.port}", verifier_key=at.witness_key)
        finally:
            await server.stop(0)


def new_marker() -> bytes:
    """Draw what every payload of a day begins with, so that it can be searched for in files."""
    return f"said in confidence {secrets.token_hex(16)}: ".encode()
