"""Gives every tenant of a directory of Tenant files a log, from the start on and when one joins.

Knows which tenants there are, in which order one joins (the vault's key first, then the log, since a tenant with a log is asked for
at once), and what each says of keeping (keeping.py). Does not know what a tenant may do: that is the gateway's. A tenant that has
left keeps its log open until the service ends, and its leaves and keys for ever: name it in `tenants` to go on serving proofs.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

from lionrock.audit.failures import AuditError
from lionrock.audit.keeping import Keeping, keeping_of
from lionrock.audit.vault.settings import VaultSettings
from lionrock.tenancy.following import Refusal, TenantFiles
from lionrock.tenancy.spec import TenantResource

log = logging.getLogger("lionrock.audit")


class TenantsDir:
    """One directory, and who joins by it."""

    def __init__(self, path: Path, reserved: frozenset[str], vault: VaultSettings | None = None) -> None:
        """`reserved`: names that no tenant can have here. `vault`: where payloads are kept; None: nowhere."""
        self._path = path
        self._reserved = reserved
        self._vault = vault
        self._keeping = Keeping()
        self._files = TenantFiles(path)
        self._names: frozenset[str] = frozenset()
        self._joined: set[str] = set()

    @property
    def keeping(self) -> Keeping:
        """What the tenants state now of retention and keys."""
        return self._keeping

    def start(self, named: Sequence[str]) -> tuple[str, ...]:
        """Return the tenants of the settings and of the files. Raises OSError."""
        self._tell(self._files.start(self._accept))
        self._joined = {*named, *self._names}
        return (*named, *sorted(self._names.difference(named)))

    async def keep_looking(self, every_s: float, join: Callable[[str], Awaitable[None]]) -> None:
        """Look until cancelled. `join` opens a tenant's log; where it raises AuditError it is asked again at the next look."""
        while True:
            await asyncio.sleep(every_s)
            reading = await asyncio.to_thread(self._files.read)
            self._tell(self._files.settle(reading, self._accept))
            for tenant in sorted(self._names - self._joined):
                try:
                    await join(tenant)
                except AuditError as failure:
                    log.error("a tenant that joins has no log yet", extra={"tenant": tenant, "why": str(failure)})
                    continue
                self._joined.add(tenant)
                log.info("a tenant has joined", extra={"tenant": tenant})

    def _accept(self, resources: Sequence[TenantResource]) -> None:
        names = [resource.name for resource in resources]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"tenant {twice[0]!r} is defined twice")
        if taken := sorted(self._reserved.intersection(names)):
            raise ValueError(f"no tenant can be called {taken[0]} where tiles are published")
        self._keeping = keeping_of(resources, self._vault)
        self._names = frozenset(names)

    def _tell(self, refusals: Sequence[Refusal]) -> None:
        for refusal in refusals:
            what = str(self._path / refusal.file) if refusal.file else str(self._path)
            log.error("a tenants file is not followed, what it said before stays", extra={"file": what, "why": refusal.why})
