"""What the tests of off-boarding share: a place with two tenants of which one may leave, and the people who decide on it.

Run as a program it records, lets the tenant leave, and ends itself by SIGKILL at a named step:

    python offboarding_harness.py DIRECTORY STEP        records first
    python offboarding_harness.py DIRECTORY STEP again  goes on from what is there
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, closing
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from audit_harness import Place, context_of
from records_harness import RETENTION, Clock, Opened, RecordsPlace

from lionrock.audit.keys import KeyDirectory
from lionrock.audit.leaf import Context
from lionrock.audit.records.contents import Vault
from lionrock.audit.records.destruction import go_on
from lionrock.audit.records.offboarding import Offboarding, Progress
from lionrock.audit.records.recording import Recorder
from lionrock.audit.records.records import Records
from lionrock.audit.records.retention import Retention
from lionrock.audit.records.upkeep import Upkeep
from lionrock.audit.store import LogStore
from lionrock.audit.vault.key_cache import KeyCache
from lionrock.audit.vault.key_management import LocalKeyManagement
from lionrock.audit.vault.key_store import KeyStore
from lionrock.audit.vault.record_keys import RecordKeys

PROMPT = "客戶陳大文想知道佢嘅戶口結餘 and A123456(3)".encode()
ANSWER = b"The balance of Chan Tai Man is HKD 1,234.56"
SUBJECT = "customer-7f3a91"
BASIS = "contract of 2024 ended"


def person(name: str, *roles: str, tenant: str = "bank", **changes: object) -> Context:
    """Somebody of a tenant, by name."""
    actor = f"spiffe://lionrock.local/tenant/{tenant}/user/{name}"
    return context_of(tenant, **{"actor": actor, "roles": roles, "purpose": "oversight", **changes})


ADMIN = person("ann", "tenant_admin")
OFFICER = person("pat", "privacy_officer")


@dataclass(frozen=True, slots=True)
class Leaving:
    """An open place."""

    opened: Opened
    offboarding: Offboarding

    async def leave(self) -> Progress:
        """Begin, and decide."""
        await self.offboarding.begin(ADMIN, "bank")
        return await self.offboarding.erase(OFFICER, "bank", BASIS)


@asynccontextmanager
async def open_place(
    directory: Path,
    *,
    clock: Clock | None = None,
    at: Callable[[str], None] = go_on,
    retention: Retention = RETENTION,
    store: LogStore | None = None,
) -> AsyncIterator[Leaving]:
    """Open as the service does."""
    place, clock = RecordsPlace(Place(directory)), clock or Clock()
    async with place.place.open(store, clock_us=clock) as logs:
        with closing(KeyStore(place.key_store_file)) as key_store:
            keys = RecordKeys(key_store, LocalKeyManagement(place.tenant_key_dir), KeyCache(1024, 60), clock)
            try:
                recorder = Recorder(keys, retention, [name for name in ("bank", "broker") if not logs.has_left(name)])
                logs.record_with(recorder)
                vault = Vault(keys, recorder, retention)
                records = Records(logs, vault, at=at)
                upkeep = Upkeep(logs, records, vault, batch=100)
                await upkeep.finish_all()
                offboarding = Offboarding(logs, records, KeyDirectory(place.place.key_dir), at)
                await offboarding.finish_all()
                yield Leaving(Opened(logs, records, upkeep, key_store, keys), offboarding)
                await records.settle()
                await offboarding.close()
            finally:
                await keys.close()


async def main(directory: Path, step: str, *, again: bool) -> None:
    def at(reached: str) -> None:
        if reached == step:
            os.kill(os.getpid(), signal.SIGKILL)

    async with open_place(directory, at=at) as place:
        if not again:
            await place.opened.say(PROMPT, ANSWER, subjects=(SUBJECT,))
            await place.opened.say(b"another", b"one")
        await place.leave()
    print("done", flush=True)


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]), sys.argv[2], again="again" in sys.argv))
