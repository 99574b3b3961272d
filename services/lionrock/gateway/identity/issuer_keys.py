"""The keys of all issuers, fetched before they are needed and again while they are in use.

Knows when keys are fetched; not how (https_documents.py), what a set holds (key_set.py), or what a key is for (tokens.py). A
request never waits for an issuer here. Keys are fetched again every REFRESH_S, and when a token names a key that is not there,
but then no more often than every MIN_REFETCH_S, whatever anybody sends. While an issuer does not answer its keys stay for
MAX_STALE_S; after that nothing of it is accepted. Source: OpenID Connect Core 1.0, section 10.1.1; Discovery 1.0, section 4.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from jwt import PyJWK

from lionrock.gateway.identity.https_documents import DocumentUnavailable, fetch_document
from lionrock.gateway.identity.key_set import KeySet, KeySetInvalid, parse_key_set
from lionrock.gateway.tenants import KeyLocation

log = logging.getLogger("lionrock.gateway")

REFRESH_S = 300.0
MIN_REFETCH_S = 10.0
MAX_STALE_S = 3600.0
FETCH_TIMEOUT_S = 5.0
_LOOK_S = 1.0
_AT_ONCE = 8
_DISCOVERY = "/.well-known/openid-configuration"

Fetch = Callable[[str, Path | None], Awaitable[dict[str, Any]]]


class IssuerKeys:
    """The keys of one issuer."""

    def __init__(self, location: KeyLocation, fetch: Fetch, clock: Callable[[], float]) -> None:
        self._location = location
        self._fetch = fetch
        self._clock = clock
        self._keys: KeySet = {}
        self._fetched_at: float | None = None
        self._tried_at: float | None = None

    def find(self, key_id: str, algorithm: str) -> PyJWK | None:
        """Return the key of this id for this algorithm, if the issuer has published it and is not silent for too long."""
        if self._fetched_at is None or self._clock() - self._fetched_at > MAX_STALE_S:
            return None
        return self._keys.get((key_id, algorithm))

    @property
    def due(self) -> bool:
        """Whether it is time to fetch them: regularly, or as soon as may be when the last try failed."""
        failed = self._fetched_at is None or self._tried_at is None or self._tried_at > self._fetched_at
        return self.may_be_asked if failed else self._asked_ago_s >= REFRESH_S

    @property
    def may_be_asked(self) -> bool:
        """Whether the last try to fetch is long enough ago for another one."""
        return self._asked_ago_s >= MIN_REFETCH_S

    @property
    def _asked_ago_s(self) -> float:
        return math.inf if self._tried_at is None else self._clock() - self._tried_at

    async def refresh(self) -> bool:
        """Fetch the keys. Returns whether there are new ones or the same again; those that are there stay otherwise."""
        self._tried_at = self._clock()
        try:
            async with asyncio.timeout(FETCH_TIMEOUT_S):
                keys = parse_key_set(await self._fetch(await self._jwks_uri(), self._location.ca_file))
        except (DocumentUnavailable, KeySetInvalid, TimeoutError) as error:
            why = "no answer in time" if isinstance(error, TimeoutError) else str(error)
            log.error("the keys of an issuer cannot be had", extra={"issuer": self._location.issuer, "why": why})
            return False
        self._keys, self._fetched_at = keys, self._clock()
        return True

    async def _jwks_uri(self) -> str:
        """Return where the keys are. Raises DocumentUnavailable."""
        if self._location.jwks_uri is not None:
            return self._location.jwks_uri
        issuer = self._location.issuer
        found = await self._fetch(issuer.removesuffix("/") + _DISCOVERY, self._location.ca_file)
        # The document must speak for the issuer that was asked, or one issuer could lend its keys to another.
        if found.get("issuer") != issuer or not isinstance(uri := found.get("jwks_uri"), str):
            raise DocumentUnavailable("the discovery document is not of this issuer, or names no keys")
        return uri


class Keyring:
    """The keys of the issuers of all tenants, as the directory has them now."""

    def __init__(
        self,
        locations: Callable[[], frozenset[KeyLocation]],
        unavailable: Callable[[], None],
        *,
        fetch: Fetch = fetch_document,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`locations` says which there are, and may change its mind. `unavailable` is told of each fetch that failed."""
        self._locations = locations
        self._unavailable = unavailable
        self._fetch = fetch
        self._clock = clock
        self._issuers: dict[KeyLocation, IssuerKeys] = {}
        self._fetching: dict[KeyLocation, asyncio.Task[None]] = {}
        self._places = asyncio.Semaphore(_AT_ONCE)

    def find(self, location: KeyLocation, key_id: str, algorithm: str) -> PyJWK | None:
        """Return a key; None when the issuer has none of this id for this algorithm, as far as is known."""
        issuer = self._issuers.get(location)
        return None if issuer is None else issuer.find(key_id, algorithm)

    def missed(self, location: KeyLocation) -> None:
        """Say that a token names a key which is not there: it may be newer than the last fetch."""
        issuer = self._issuers.get(location)
        if issuer is not None and issuer.may_be_asked:
            self._begin(location, issuer)

    async def look(self) -> None:
        """Follow the directory, and wait until what was due has been fetched or could not be, for FETCH_TIMEOUT_S at most."""
        wanted = self._locations()
        for gone in self._issuers.keys() - wanted:
            del self._issuers[gone]
        for location in wanted - self._issuers.keys():
            self._issuers[location] = IssuerKeys(location, self._fetch, self._clock)
        for location, issuer in self._issuers.items():
            if issuer.due:
                self._begin(location, issuer)
        if self._fetching:
            await asyncio.wait(tuple(self._fetching.values()), timeout=FETCH_TIMEOUT_S)

    @asynccontextmanager
    async def following(self) -> AsyncIterator[None]:
        """Fetch all keys, then keep them fresh until the block ends."""
        await self.look()
        looking = asyncio.create_task(self._keep_looking(), name="lionrock-issuer-keys")
        try:
            yield
        finally:
            tasks = (looking, *self._fetching.values())
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)

    async def _keep_looking(self) -> None:
        while True:
            await asyncio.sleep(_LOOK_S)
            await self.look()

    def _begin(self, location: KeyLocation, issuer: IssuerKeys) -> None:
        if location not in self._fetching:
            self._fetching[location] = asyncio.create_task(self._refresh(location, issuer), name="lionrock-issuer-keys-fetch")

    async def _refresh(self, location: KeyLocation, issuer: IssuerKeys) -> None:
        try:
            async with self._places:
                if not await issuer.refresh():
                    self._unavailable()
        finally:
            del self._fetching[location]
