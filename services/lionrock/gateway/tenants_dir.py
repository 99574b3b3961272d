"""Keeps the directory of tenants as the settings and the Tenant files say, from the start on and whenever a file changes.

Takes over all tenants in one step: a request has the tenant that it was authenticated with to its end, the next one has the new.
Knows when to look and whom to tell; lionrock.tenancy.following knows the files.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from pathlib import Path

from lionrock.gateway.granting import (
    GatewayLacksState,
    refuse_uncounted_quotas,
    refuse_undivided_engine,
    refuse_unkept_consents,
    refuse_unkept_reviews,
    tenant_of,
)
from lionrock.gateway.tenants import Tenant, TenantDirectory
from lionrock.tenancy.following import Refusal, TenantFiles
from lionrock.tenancy.spec import TenantResource

log = logging.getLogger("lionrock.gateway")


class TenantsDir:
    """A directory of Tenant files, beside the tenants that the settings name."""

    def __init__(
        self,
        path: Path,
        named: Sequence[Tenant],
        directory: TenantDirectory,
        *,
        trust_domain: str,
        counts_quotas: bool,
        keeps_consents: bool,
        divides_engines: bool,
        refused: Callable[[], None],
    ) -> None:
        """`named`: the tenants of the settings. `counts_quotas`: whether there is a state; files with quotas are refused otherwise.

        `keeps_consents`: whether consents are kept; files with purposes that need consent are refused otherwise.
        `divides_engines`: whether there are routes; files of tenants that share no engines are refused otherwise.

        `refused` is told of each file that is not followed.
        """
        self._path = path
        self._files = TenantFiles(path)
        self._named = tuple(named)
        self._directory = directory
        self._trust_domain = trust_domain
        self._counts_quotas = counts_quotas
        self._keeps_consents = keeps_consents
        self._divides_engines = divides_engines
        self._lacking: GatewayLacksState | None = None
        self._refused = refused

    def start(self) -> None:
        """Read all files. One that is no good is refused and keeps nobody else out.

        Raises OSError for the directory itself, and GatewayLacksState, once the log says in which files: there the file is good,
        and the gateway lacks something.
        """
        self._tell(self._files.start(self._accept))
        if self._lacking is not None:
            raise self._lacking

    async def look(self) -> bool:
        """Read what has changed, off the event loop. Returns whether anything had."""
        reading = await asyncio.to_thread(self._files.read)
        self._tell(self._files.settle(reading, self._accept))
        if reading.changed:
            log.info("tenants files changed", extra={"files": len(self._files.by_file)})
        return reading.changed

    async def keep_looking(self, every_s: float) -> None:
        """Look until cancelled."""
        while True:
            await asyncio.sleep(every_s)
            await self.look()

    def _accept(self, resources: Sequence[TenantResource]) -> None:
        tenants = [tenant_of(resource.name, resource.spec, trust_domain=self._trust_domain) for resource in resources]
        try:
            if not self._counts_quotas:
                refuse_uncounted_quotas(tenants)
                refuse_unkept_reviews(tenants)
            if not self._keeps_consents:
                refuse_unkept_consents(tenants)
        except GatewayLacksState as lacking:
            self._lacking = lacking
            raise
        if not self._divides_engines:
            refuse_undivided_engine(tenants)
        self._directory.follow([*self._named, *tenants])

    def _tell(self, refusals: Sequence[Refusal]) -> None:
        for refusal in refusals:
            what = str(self._path / refusal.file) if refusal.file else str(self._path)
            log.error("a tenants file is not followed, what it said before stays", extra={"file": what, "why": refusal.why})
            self._refused()
