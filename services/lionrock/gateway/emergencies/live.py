"""The emergencies that are in force now, held in memory and followed in the shared state.

A request costs no round trip here. In return the state is looked at every LOOK_S, and when it could not be looked at for
MAX_STALE_S no emergency counts: one that was ended may be among them. So an approval and an end hold everywhere after
EFFECTIVE_WITHIN_S.

A row alone opens nothing: it counts once the tenant's log has shown the approval's leaf, made by somebody else than who asked, and
no longer than that leaf says. Whoever can write rows, as the database's operators can, lets nobody in.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Final

from lionrock.chassis.errors import MeshError
from lionrock.gateway.authorization import BreakGlass
from lionrock.gateway.emergencies import rows
from lionrock.gateway.emergencies.emergency import Emergency
from lionrock.gateway.emergencies.leaves import Approval
from lionrock.gateway.errors import ReceiptNotFound
from lionrock.gateway.state.store import StateStore, StateUnavailable
from lionrock.gateway.tenants import Principal

log = logging.getLogger("lionrock.gateway")

LOOK_S: Final = 1.0
MAX_STALE_S: Final = 3.5

Confirm = Callable[[Emergency], Awaitable[Approval | None]]
"""Asks the tenant's log for the approval. Raises MeshError where it does not answer."""


class EmergenciesUnknownError(Exception):
    """The caller had an emergency when the state could last be read, and nobody knows whether it still is in force."""


@dataclass(frozen=True, slots=True)
class _InForce:
    emergency: Emergency
    ends_at_us: int


class LiveEmergencies:
    """What is in force, of all tenants. Used from one event loop."""

    def __init__(self, store: StateStore, confirm: Confirm, clock: Callable[[], float] = time.monotonic) -> None:
        """`clock`: seconds, of any beginning."""
        self._store = store
        self._confirm = confirm
        self._clock = clock
        self._in_force: Mapping[tuple[str, str], _InForce] = {}
        self._unconfirmed: list[Emergency] = []
        self._changes: int | None = None
        self._as_of: float | None = None
        self._ahead_s = 0.0
        """The state's time less this process's clock."""

    def of(self, principal: Principal) -> BreakGlass | None:
        """Return the caller's emergency, if one is in force. Raises EmergenciesUnknownError."""
        found = self._in_force.get((principal.tenant.name, principal.actor))
        if found is None:
            return None
        if self._as_of is None or self._clock() - self._as_of > MAX_STALE_S:
            raise EmergenciesUnknownError("the state could not be looked at")
        if self._now_us() >= found.ends_at_us:
            return None
        return BreakGlass(found.emergency.emergency_id, found.emergency.suspicion)

    def counts(self) -> Mapping[str, int]:
        """How many are in force, by tenant."""
        counts: dict[str, int] = {}
        for (tenant, _), found in self._in_force.items():
            counts[tenant] = counts.get(tenant, 0) + (self._now_us() < found.ends_at_us)
        return counts

    async def look(self) -> None:
        """Follow what has changed. Raises StateUnavailable; what was known stays, for as long as it may."""
        began = self._clock()
        number, now_us = await rows.changes(self._store)
        if number != self._changes:
            number, now_us, found = await rows.approved(self._store)
            # What is over ends at once; what is new waits for its leaf.
            known = {one.emergency: one for one in self._in_force.values()}
            self._in_force = {_whose(one): known[one] for one in found if one in known}
            self._unconfirmed = [one for one in found if one not in known]
            self._changes = number
        self._as_of, self._ahead_s = began, now_us / 1e6 - began

    async def confirm(self) -> None:
        """Ask the log for the leaves of what is new: again where it does not answer. What it does not show stays closed."""
        for emergency in list(self._unconfirmed):
            try:
                approval = await self._confirm(emergency)
            except ReceiptNotFound:
                approval = None
            except MeshError as error:
                log.warning(
                    "an emergency's approval cannot be read", extra={"emergency": emergency.emergency_id, "why": error.reason}
                )
                continue
            if emergency not in self._unconfirmed:
                continue  # it ended meanwhile
            self._unconfirmed.remove(emergency)
            if approval is None:
                log.error(
                    "an emergency has no approval in the log and is not in force", extra={"emergency": emergency.emergency_id}
                )
                continue
            ends_at_us = min(emergency.ends_at_us, approval.recorded_at_us + approval.duration_us)
            self._in_force = {**self._in_force, _whose(emergency): _InForce(emergency, ends_at_us)}

    @asynccontextmanager
    async def following(self) -> AsyncIterator[None]:
        """Know them for as long as the block lasts. Raises StateUnavailable."""
        await self.look()
        tasks = [
            asyncio.create_task(self._keep(self._look_or_say), name="lionrock-emergencies"),
            asyncio.create_task(self._keep(self.confirm), name="lionrock-emergencies-confirmed"),
        ]
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
            for task in tasks:
                with contextlib.suppress(asyncio.CancelledError):
                    await task

    async def _keep(self, work: Callable[[], Awaitable[None]]) -> None:
        while True:
            await asyncio.sleep(LOOK_S)
            await work()

    async def _look_or_say(self) -> None:
        try:
            await self.look()
        except StateUnavailable as error:
            log.error("emergencies cannot be looked at", extra={"why": str(error)})

    def _now_us(self) -> int:
        return round((self._clock() + self._ahead_s) * 1e6)


def _whose(emergency: Emergency) -> tuple[str, str]:
    return emergency.tenant, emergency.requested_by
