"""Follows the routes file: reads it at the start and whenever it has changed, and keeps the former routes when it is no good.

A mounted ConfigMap changes by a swap of symbolic links, so what is watched is the file that the name leads to. It is looked at, not
waited for with inotify: a look a second costs nothing, and works on every file system. Knows files; routes.py knows the document.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable
from pathlib import Path

from lionrock.chassis.tls import TlsFilesUnusable
from lionrock.gateway.routes import MAX_ROUTES_BYTES, RoutesInvalid, RouteTable, parse_routes

log = logging.getLogger("lionrock.gateway")

_Signature = tuple[int, int, int, int]


class RoutesFile:
    """One file, and who is told of it."""

    def __init__(self, path: Path, follow: Callable[[RouteTable], None], refused: Callable[[], None]) -> None:
        """`follow` gets each new table; it may raise TlsFilesUnusable. `refused` is told of each change that is not followed."""
        self._path = path
        self._follow = follow
        self._refused = refused
        self._seen: _Signature | None = None
        self._missing = False

    def start(self) -> None:
        """Read it for the first time. A file that is missing is a cluster without models. Raises RoutesInvalid, OSError."""
        self._seen = self._signature()
        if self._seen is None:
            self._missing = True
            log.warning("there is no routes file yet: no models are served")
            self._follow(RouteTable())
            return
        try:
            self._follow(parse_routes(self._read()))
        except RoutesInvalid as error:
            raise RoutesInvalid(f"routes_file {self._path}: {error}") from None

    def look(self) -> bool:
        """Read it again if it is another one. Returns whether new routes are followed."""
        signature = self._signature()
        if signature == self._seen and (signature is not None or self._missing):
            return False
        if signature is None:
            self._missing, self._seen = True, None
            self._refuse("it is missing")
            return False
        try:
            table = parse_routes(self._read())
            self._follow(table)
        except TlsFilesUnusable:
            self._refuse("the gateway's own certificate cannot be read")  # looked at again: it is the routes' turn after it
            return False
        except (RoutesInvalid, OSError) as error:
            self._seen, self._missing = signature, False
            self._refuse(str(error) if isinstance(error, RoutesInvalid) else "it cannot be read")
            return False
        self._seen, self._missing = signature, False
        log.info("routes changed", extra={"models": len(table.models), "engines": len(table.targets)})
        return True

    async def keep_looking(self, every_s: float) -> None:
        """Look until cancelled."""
        while True:
            await asyncio.sleep(every_s)
            self.look()

    def _refuse(self, why: str) -> None:
        log.error("the routes file is not followed, the former routes stay", extra={"why": why})
        self._refused()

    def _signature(self) -> _Signature | None:
        try:
            found = os.stat(self._path)
        except OSError:
            return None
        return found.st_dev, found.st_ino, found.st_mtime_ns, found.st_size

    def _read(self) -> bytes:
        with self._path.open("rb") as file:
            return file.read(MAX_ROUTES_BYTES + 1)
