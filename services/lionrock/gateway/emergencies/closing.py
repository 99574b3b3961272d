"""How emergencies end that nobody ended, and how the log hears of every end.

Access ends by itself, at each gateway, when its time is up; here the row follows, and with it the leaf "break_glass.expired". A
leaf that the log did not take is owed and tried again until it is there; its event id makes that safe for several gateways at once.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Final

from lionrock.audit.v1 import audit_pb2 as audit
from lionrock.chassis.errors import MeshError
from lionrock.gateway.emergencies import rows
from lionrock.gateway.emergencies.emergency import EmergencyId, State
from lionrock.gateway.emergencies.leaves import expiry
from lionrock.gateway.state.store import StateStore, StateUnavailable

log = logging.getLogger("lionrock.gateway")

CLOSE_EVERY_S: Final = 2.0

Append = Callable[[audit.AppendRequest], Awaitable[audit.AppendResponse]]


async def close_what_is_over(store: StateStore, append: Append, expired: Callable[[str], None]) -> None:
    """End what has no time left, and append every leaf that is owed. `expired` is told of each tenant. Raises StateUnavailable."""
    over, owed = await rows.due(store)
    for emergency in over:
        leaf = expiry(emergency).SerializeToString(deterministic=True)
        if await rows.close(store, emergency, State.EXPIRED, leaf):
            expired(emergency.tenant)
            log.warning("emergency access expired", extra={"emergency": emergency.emergency_id, "tenant": emergency.tenant})
            owed.append((emergency.emergency_id, leaf))
    for emergency_id, leaf in owed:
        await _pay(store, append, emergency_id, leaf)


async def keep_closing(store: StateStore, append: Append, expired: Callable[[str], None]) -> None:
    """Do so for ever."""
    while True:
        await asyncio.sleep(CLOSE_EVERY_S)
        try:
            await close_what_is_over(store, append, expired)
        except StateUnavailable as error:
            log.error("emergencies cannot be closed", extra={"why": str(error)})


async def _pay(store: StateStore, append: Append, emergency_id: EmergencyId, leaf: bytes) -> None:
    try:
        await append(audit.AppendRequest.FromString(leaf))
    except MeshError as error:
        log.error("the end of an emergency is not in the log yet", extra={"emergency": emergency_id, "why": error.reason})
        return
    await rows.paid(store, emergency_id)
