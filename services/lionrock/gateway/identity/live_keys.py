"""The API keys that are accepted now, held in memory and followed in the shared state.

A request costs no round trip here. In return the keys are looked at every LOOK_S, and when they could not be looked at for
MAX_STALE_S no key is accepted at all: a key that was revoked may be among them. So a revocation holds everywhere after
REVOKED_WITHIN_S, whichever gateway heard of it and whatever fails.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Final

from lionrock.gateway.identity import api_key_rows
from lionrock.gateway.identity.api_key_rows import KeyRow
from lionrock.gateway.identity.api_keys import ApiKey, KeyId, Marks
from lionrock.gateway.identity.failures import KeysUnavailableError, TokenExpiredError, TokenInvalidError, Why
from lionrock.gateway.state.store import StateStore, StateUnavailable

log = logging.getLogger("lionrock.gateway")

LOOK_S: Final = 1.0
MAX_STALE_S: Final = 4.0
REVOKED_WITHIN_S: Final = 5.0


class LiveKeys:
    """All keys of all tenants. Used from one event loop."""

    def __init__(self, store: StateStore, marks: Marks, clock: Callable[[], float] = time.monotonic) -> None:
        """`clock`: seconds, of any beginning."""
        self._store = store
        self._marks = marks
        self._clock = clock
        self._keys: Mapping[KeyId, KeyRow] = {}
        self._changes: int | None = None
        self._as_of: float | None = None

    def key(self, key_id: KeyId, secret: str, now_s: float) -> ApiKey:
        """Return the key that is presented. `now_s`: seconds since 1970.

        Raises TokenInvalidError, TokenExpiredError, and KeysUnavailableError, which says nothing about the key.
        """
        if self._as_of is None or self._clock() - self._as_of > MAX_STALE_S:
            raise KeysUnavailableError("the API keys cannot be looked at")
        row = self._keys.get(key_id)
        if row is None or not self._marks.fits(row.key, row.mark, secret):
            raise TokenInvalidError(Why.NOT_ACCEPTED)
        if now_s * 1e6 >= row.key.ends_at_us:
            raise TokenExpiredError("the API key has expired")
        return row.key

    async def look(self) -> None:
        """Follow what has changed. Raises StateUnavailable; what was known stays, for as long as it may."""
        began = self._clock()
        if self._changes is None or await api_key_rows.changes(self._store) != self._changes:
            self._changes, rows = await api_key_rows.accepted(self._store)
            self._keys = {row.key.key_id: row for row in rows}
        self._as_of = began

    @asynccontextmanager
    async def following(self) -> AsyncIterator[None]:
        """Know the keys for as long as the block lasts. Raises StateUnavailable."""
        await self.look()
        looking = asyncio.create_task(self._keep_looking(), name="lionrock-api-keys")
        try:
            yield
        finally:
            looking.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await looking

    async def _keep_looking(self) -> None:
        while True:
            await asyncio.sleep(LOOK_S)
            try:
                await self.look()
            except StateUnavailable as error:
                log.error("the API keys cannot be looked at", extra={"why": str(error)})
