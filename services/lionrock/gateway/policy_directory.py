"""Follows a site's directory of access policies: a sound change is in force within seconds, any other changes nothing.

The directory is looked at, not waited for with inotify: a look costs little, works on every file system, and sees the swap of
symbolic links by which a mounted ConfigMap changes. A change is read whole and validated in a thread before it decides anything, so
no request waits for it. Knows files and moments; what a sound set is, access_policies.py knows.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable
from pathlib import Path

from lionrock.gateway.access_policies import AccessPolicies, PoliciesInvalid, read_policy_files
from lionrock.gateway.authorization import Authorizer

log = logging.getLogger("lionrock.gateway")

_Signature = tuple[tuple[str, int, int, int, int], ...]


class PolicyDirectory:
    """One directory, and the authorizer that decides by it."""

    def __init__(self, directory: Path, *, served_in: str | None, refused: Callable[[], None]) -> None:
        """`served_in` as of AccessPolicies. `refused` is told of each change that is not followed."""
        self._directory = directory
        self._served_in = served_in
        self._refused = refused
        self._seen: _Signature | None = None

    def start(self) -> Authorizer:
        """Read it for the first time. Raises PoliciesInvalid, OSError: without policies nobody is served."""
        self._seen = self._signature()
        self.authorizer = Authorizer(self._read())
        return self.authorizer

    async def look(self) -> bool:
        """Read it again if it has changed. Returns whether a new set is in force."""
        try:
            signature = self._signature()
            if signature == self._seen:
                return False
            policies = await asyncio.to_thread(self._read)
            if self._signature() != signature:
                return False  # it is being written: looked at again
        except (PoliciesInvalid, OSError) as error:
            self._refuse(error)
            return False
        self._seen = signature
        if policies.digest == self.authorizer.digest:
            return False
        self.authorizer.follow(policies)
        log.info("access policies changed", extra={"policy_digest": policies.digest, "policies": len(policies.policies)})
        return True

    async def keep_looking(self, every_s: float) -> None:
        """Look until cancelled."""
        while True:
            await asyncio.sleep(every_s)
            await self.look()

    def _refuse(self, error: PoliciesInvalid | OSError) -> None:
        """Say once of each state of the directory why it is not followed."""
        try:
            signature: _Signature | None = self._signature()
        except OSError:
            signature = None  # it is gone
        if signature == self._seen:
            return
        self._seen = signature
        why = str(error) if isinstance(error, PoliciesInvalid) else "it cannot be read"
        log.error("access policies are not followed, the former ones stay", extra={"why": why})
        self._refused()

    def _read(self) -> AccessPolicies:
        return AccessPolicies(read_policy_files(self._directory), served_in=self._served_in)

    def _signature(self) -> _Signature:
        found = []
        for path in sorted(self._directory.iterdir()):
            if path.suffix == ".cedar" and not path.name.startswith("."):
                stat = os.stat(path)
                found.append((path.name, stat.st_dev, stat.st_ino, stat.st_mtime_ns, stat.st_size))
        return tuple(found)
