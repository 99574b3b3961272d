"""What the tests of exports share: an archive made by a real service's parts, and what an auditor gives to check it."""

from __future__ import annotations

import io
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from audit_harness import PLATFORM, Place
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from records_harness import RETENTION, Clock, Opened, who

from lionrock.audit.export.exporter import Exporter, Piece
from lionrock.audit.keys import KeyDirectory
from lionrock.audit.leaf import Context
from lionrock.audit.log import AuditLogs
from lionrock.audit.platform_log import PlatformLog
from lionrock.audit.records.contents import Vault
from lionrock.audit.records.recording import Recorder
from lionrock.audit.records.records import Records
from lionrock.audit.records.upkeep import Upkeep
from lionrock.audit.rotation import Rotation
from lionrock.audit.signed_checkpoints import SignedCheckpoints
from lionrock.audit.store import LogStore
from lionrock.audit.vault.key_cache import KeyCache
from lionrock.audit.vault.key_management import LocalKeyManagement
from lionrock.audit.vault.key_store import KeyStore
from lionrock.audit.vault.record_keys import RecordKeys
from lionrock.audit.verify import VerifiedExport, verify_export
from lionrock.tlog.keys import Cosigner
from lionrock.tlog.note import add_signatures, signature_line

WITNESSES = [Cosigner(f"w{n}.example", Ed25519PrivateKey.from_private_bytes(bytes([n] * 32))) for n in (1, 2, 3)]
AUDITOR = who("auditor")


@dataclass(frozen=True, slots=True)
class Exporting:
    """An open service with a vault, a platform's log with witnesses, and an exporter."""

    logs: AuditLogs
    platform_log: PlatformLog
    opened: Opened
    exporter: Exporter
    key_dir: Path
    signed: SignedCheckpoints
    asked: list[Context] = field(default_factory=list)

    async def cosign(self, *witnesses: Cosigner) -> None:
        """Record the newest checkpoints and have the platform's cosigned."""
        head, recorded = await self.platform_log.advance()
        text = head.checkpoint.partition("\n\n")[0] + "\n"
        lines = [signature_line(text, witness) for witness in witnesses or WITNESSES[:2]]
        self.platform_log.attest(replace(head, checkpoint=add_signatures(head.checkpoint, lines)), recorded)

    async def change_key(self, *, of_platform: bool = False) -> str:
        """Change the key of bank's log, or of the platform's. Returns the new one."""
        keys, opened = KeyDirectory(self.key_dir), self.platform_log.opened if of_platform else self.logs.opened("bank")
        following = keys.create_next(opened.tenant, opened.origin)
        assert await Rotation(self.logs, self.platform_log.opened, keys, self.signed, "HK").look(opened)
        return str(following.verifier_key)

    async def pieces(self, asker: Context = AUDITOR, **chosen: Any) -> AsyncIterator[Piece]:
        given: dict[str, Any] = {"from_us": None, "to_us": None, "case_id": "", "with_payloads": False}
        async for piece in self.exporter.export(asker, **(given | chosen)):
            yield piece

    async def archive(self, asker: Context = AUDITOR, **chosen: Any) -> bytes:
        return b"".join([piece.data async for piece in self.pieces(asker, **chosen)])

    @property
    def keys(self) -> list[str]:
        return [*self.logs.verifier_keys("bank"), *self.platform_log.verifier_keys]


WITNESS_KEYS = [str(witness.verifier_key) for witness in WITNESSES]


def check(archive: bytes, keys: Sequence[str], witnesses: Sequence[str] = WITNESS_KEYS, threshold: int = 2) -> VerifiedExport:
    return verify_export(io.BytesIO(archive), keys, witnesses, threshold)


@asynccontextmanager
async def exporting(
    root: Path, *, vaulted: tuple[str, ...] = ("bank",), cover_wait_s: float = 0.0, store: LogStore | None = None
) -> AsyncIterator[Exporting]:
    """Open everything. `store`: a SQLite file, unless another is given."""
    place = Place(root)
    async with place.open_all(store) as (logs, platform_log):
        with closing(KeyStore(root / "vault" / "keys.db")) as key_store:
            keys = RecordKeys(key_store, LocalKeyManagement(root / "kek"), KeyCache(1024, 60), Clock())
            try:
                recorder = Recorder(keys, RETENTION, vaulted)
                logs.record_with(recorder)
                vault = Vault(keys, recorder, RETENTION)
                records = Records(logs, vault)
                exporter = Exporter(logs, records, platform_log, witness_keys=WITNESS_KEYS, cover_wait_s=cover_wait_s)
                upkeep = Upkeep(logs, records, vault, batch=100)
                opened = Opened(logs, records, upkeep, key_store, keys)
                yield Exporting(logs, platform_log, opened, exporter, place.key_dir, platform_log._signed)
                await records.settle()
            finally:
                await keys.close()


def now_us() -> int:
    return time.time_ns() // 1000


__all__ = ["AUDITOR", "PLATFORM", "WITNESSES", "WITNESS_KEYS", "Exporting", "check", "exporting", "now_us", "who"]
