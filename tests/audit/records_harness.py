"""What the tests of vault and records share: logs that keep payloads on real files, people who ask, and what they do."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager, closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from audit_harness import Place, context_of, intent, outcome

from lionrock.audit import failures
from lionrock.audit.leaf import Context, Event, Governance
from lionrock.audit.log import AuditLogs
from lionrock.audit.records.contents import Vault
from lionrock.audit.records.destruction import go_on
from lionrock.audit.records.recording import Recorder
from lionrock.audit.records.records import Records
from lionrock.audit.records.retention import LOG_BOOK, LOG_BOOK_KEEP_DAYS, Retention, RetentionClass
from lionrock.audit.records.upkeep import Upkeep
from lionrock.audit.store import LogStore
from lionrock.audit.vault.key_cache import KeyCache
from lionrock.audit.vault.key_management import KeyManagement, LocalKeyManagement
from lionrock.audit.vault.key_store import KeyStore
from lionrock.audit.vault.record_keys import RecordKeys
from lionrock.chassis.ids import uuid7

CLASSES: Mapping[str, RetentionClass] = {
    "free": RetentionClass(0, None),
    "short": RetentionClass(0, 30),
    "long": RetentionClass(365, 730),
    LOG_BOOK: RetentionClass(LOG_BOOK_KEEP_DAYS, None),
}
RETENTION = Retention(CLASSES, {"chit_chat": "short", "advice": "long"}, "free")


class Clock:
    """The time of day, moved by hand."""

    def __init__(self) -> None:
        self.ahead_us = 0

    def __call__(self) -> int:
        return time.time_ns() // 1000 + self.ahead_us

    def advance(self, days: float) -> None:
        self.ahead_us += round(days * 86_400_000_000)


class Unreliable(LocalKeyManagement):
    """The real one, which fails when it is told to."""

    down: frozenset[str] = frozenset()

    async def wrap(self, tenant: str, key: bytes, aad: bytes) -> bytes:
        if tenant in self.down:
            raise failures.KeysUnavailable("down")
        return await super().wrap(tenant, key, aad)

    async def unwrap(self, tenant: str, wrapped: bytes, aad: bytes) -> bytes:
        if tenant in self.down:
            raise failures.KeysUnavailable("down")
        return await super().unwrap(tenant, wrapped, aad)


@dataclass(frozen=True, slots=True)
class RecordsPlace:
    """Directories of a store, its keys and its vault."""

    place: Place

    @property
    def key_store_file(self) -> Path:
        return self.place.root / "vault" / "keys.db"

    @property
    def tenant_key_dir(self) -> Path:
        return self.place.root / "kek"

    @asynccontextmanager
    async def open(
        self,
        *,
        clock: Callable[[], int] | None = None,
        at: Callable[[str], None] = go_on,
        management: KeyManagement | None = None,
        retention: Retention = RETENTION,
        vaulted: tuple[str, ...] = ("bank", "broker"),
        store: LogStore | None = None,
        cached_keys: int = 1024,
        batch: int = 100,
        **options: Any,
    ) -> AsyncIterator[Opened]:
        clock = clock or Clock()
        async with self.place.open(store, clock_us=clock, **options) as logs:
            with closing(KeyStore(self.key_store_file)) as key_store:
                keys = RecordKeys(
                    key_store, management or LocalKeyManagement(self.tenant_key_dir), KeyCache(cached_keys, 60), clock
                )
                try:
                    recorder = Recorder(keys, retention, vaulted)
                    logs.record_with(recorder)
                    vault = Vault(keys, recorder, retention)
                    records = Records(logs, vault, at=at)
                    upkeep = Upkeep(logs, records, vault, batch=batch)
                    await upkeep.finish_all()
                    yield Opened(logs, records, upkeep, key_store, keys)
                    await records.settle()
                finally:
                    await keys.close()


@dataclass(frozen=True, slots=True)
class Said:
    """A request that was answered and recorded."""

    request_id: str
    prompt: bytes
    answer: bytes
    salts: tuple[bytes, bytes]
    events: tuple[Event, Event]
    leaves: tuple[int, int]


@dataclass(frozen=True, slots=True)
class Opened:
    """An open place."""

    logs: AuditLogs
    records: Records
    upkeep: Upkeep
    key_store: KeyStore
    keys: RecordKeys
    said: list[Said] = field(default_factory=list)

    async def say(
        self, prompt: bytes = b"a question", answer: bytes = b"an answer", *, subjects: tuple[str, ...] = (), **context: Any
    ) -> Said:
        """Record a request from its intent to its outcome."""
        asked = concerning(intent(prompt=prompt, **context), subjects)
        first = await self.logs.append(asked, want_receipt=False)
        answered = outcome(asked, first.leaf_index, answer=answer)
        second = await self.logs.append(answered, want_receipt=False)
        said = Said(
            asked.context.request_id,
            prompt,
            answer,
            (first.salt, second.salt),
            (asked, answered),
            (first.leaf_index, second.leaf_index),
        )
        self.said.append(said)
        return said


def concerning(event: Event, subjects: tuple[str, ...]) -> Event:
    """The same event, about people."""
    return Event(event.event_id, event.trace_id, event.context, event.body, event.payloads, subjects)


def decision(*, statement: bytes = b"", subjects: tuple[str, ...] = (), **context: Any) -> Event:
    """Something that was decided about access."""
    body = Governance("review.released", "object-1", {"verdict": "allow"})
    return Event(uuid7(), "", context_of(**context), body, {"statement": statement} if statement else {}, subjects)


def who(*roles: str, tenant: str = "bank") -> Context:
    """A person with roles who asks for something."""
    return context_of(tenant, roles=roles, purpose="oversight")


OFFICER = ("privacy_officer",)
