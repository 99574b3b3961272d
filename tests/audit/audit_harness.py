"""What the tests of the audit service share: events, and logs opened on real files."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rfc6962_reference import tree_hash

from lionrock.audit.keys import KeyDirectory
from lionrock.audit.leaf import Context, Event, Intent, Model, Outcome
from lionrock.audit.log import AuditLogs, Limits, open_logs
from lionrock.audit.platform_log import PlatformLog, open_platform_log
from lionrock.audit.signed_checkpoints import SignedCheckpoints
from lionrock.audit.store import LogStore
from lionrock.audit.store.sqlite import SqliteLogStore
from lionrock.audit.wall_clock import ClockUs, wall_clock_us
from lionrock.chassis.ids import uuid7
from lionrock.tlog.merkle import leaf_hash

PLATFORM = "audit.example.hk"
TENANTS = ("bank", "broker")


def context_of(tenant: str = "bank", **changes: Any) -> Context:
    values: dict[str, Any] = {
        "request_id": uuid7(),
        "tenant": tenant,
        "actor": f"spiffe://lionrock.local/tenant/{tenant}/user/ada",
        "auth_method": "mtls",
        "roles": ("user",),
        "purpose": "customer_support",
        "case_id": "",
        "conversation_id": "",
        "data_class": "personal",
        "territory": "HK",
        "profile": "default",
    }
    return Context(**values | changes)


def intent(tenant: str = "bank", *, prompt: bytes = b"", event_id: str | None = None, **context: Any) -> Event:
    body = Intent("chat", Model("smollm2"), None, None, 3)
    payloads = {"prompt": prompt} if prompt else {}
    return Event(event_id or uuid7(), "", context_of(tenant, **context), body, payloads)


def outcome(of: Event, index: int | None, *, answer: bytes = b"", event_id: str | None = None, status: str = "answered") -> Event:
    payloads = {"answer": answer} if answer else {}
    return Event(event_id or uuid7(), "", of.context, Outcome(index, status), payloads)


@dataclass(frozen=True, slots=True)
class Place:
    """A directory with a store and keys."""

    root: Path

    @property
    def store_file(self) -> Path:
        return self.root / "store" / "audit.db"

    @property
    def key_dir(self) -> Path:
        return self.root / "keys"

    @property
    def signed_file(self) -> Path:
        return self.key_dir / "signed-checkpoints.jsonl"

    @asynccontextmanager
    async def open(self, store: LogStore | None = None, **options: Any) -> AsyncIterator[AuditLogs]:
        async with self.open_all(store, **options) as (logs, _):
            yield logs

    @asynccontextmanager
    async def open_all(
        self,
        store: LogStore | None = None,
        *,
        tenants: tuple[str, ...] = TENANTS,
        max_pending: int = 4096,
        retry_window_s: float = 3600,
        clock_us: ClockUs = wall_clock_us,
    ) -> AsyncIterator[tuple[AuditLogs, PlatformLog]]:
        with closing(store or SqliteLogStore(self.store_file)) as opened, closing(SignedCheckpoints(self.signed_file)) as signed:
            limits = Limits(max_pending, 1024, retry_window_s)
            keys = KeyDirectory(self.key_dir)
            logs = open_logs(opened, keys, signed, tenants, platform=PLATFORM, region="HK", limits=limits, clock_us=clock_us)
            platform_log = PlatformLog(open_platform_log(PLATFORM, opened, keys, signed), logs, opened, signed)
            async with logs:
                await platform_log.begin(None)
                yield logs, platform_log


def check_store(store_file: Path, tenant: str | None = "bank") -> list[bytes]:
    """Check the log in a file as `check_leaves` does. The store must not be open elsewhere."""
    with closing(SqliteLogStore(store_file)) as store:
        return check_leaves(store, tenant)


def check_leaves(store: LogStore, tenant: str | None = "bank") -> list[bytes]:
    """Leaves of a log (None: the platform's) after a literal check: indexes without gap, hashes, root."""
    stored = store.find_log(f"{PLATFORM}/audit/{tenant}" if tenant else f"{PLATFORM}/audit")
    assert stored is not None
    leaves = store.leaves(stored.log_id, 0, 1 << 40, 1 << 40)
    assert [leaf.index for leaf in leaves] == list(range(stored.size))
    assert all(leaf.completed[0] == leaf_hash(leaf.data) for leaf in leaves)
    assert len({leaf.event_id for leaf in leaves}) == len(leaves)
    data = [leaf.data for leaf in leaves]
    assert tree_hash(data) == stored.root
    return data


def copy_files(source: Path, target: Path) -> None:
    """Copy a directory as a crash would leave it: byte by byte, with no help of the database."""
    target.mkdir(parents=True, exist_ok=True)
    for file in source.iterdir():
        if file.is_file() and not file.name.endswith((".lock", "-shm")):
            descriptor = os.open(target / file.name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
            with open(descriptor, "wb") as copy:
                copy.write(file.read_bytes())
