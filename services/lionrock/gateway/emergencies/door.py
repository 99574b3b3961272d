"""The gateway's emergencies as one piece: what is in force, the service that manages them, and what closes them."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from lionrock.audit.v1 import audit_pb2 as audit
from lionrock.chassis.server import AnyTenant, Registration
from lionrock.gateway.authorization import Authorizer
from lionrock.gateway.emergencies.closing import keep_closing
from lionrock.gateway.emergencies.emergency import Emergency
from lionrock.gateway.emergencies.leaves import Approval, approval, asking_context
from lionrock.gateway.emergencies.live import LiveEmergencies
from lionrock.gateway.emergencies.servicer import SERVICE_NAME, BreakGlassServicer, Stepped
from lionrock.gateway.identity.authenticator import Authenticator
from lionrock.gateway.peers import AuditLog, Deadline
from lionrock.gateway.state.store import StateStore
from lionrock.gateway.v1.break_glass_pb2_grpc import add_BreakGlassServiceServicer_to_server

_ASKING_S = 10.0


@dataclass(frozen=True, slots=True)
class EmergencyDoor:
    """`live` is what decides about a call; None where gateways share no state, and nothing is registered then."""

    live: LiveEmergencies | None = None
    store: StateStore | None = None
    audit_log: AuditLog | None = None
    stepped: Stepped | None = None

    def registrations(self, authenticator: Authenticator, authorizer: Authorizer) -> tuple[Registration, ...]:
        """Return the service as the chassis registers it."""
        if self.store is None or self.audit_log is None or self.stepped is None:
            return ()
        servicer = BreakGlassServicer(authenticator, authorizer, self.store, self.audit_log, self.stepped)
        return (Registration(add_BreakGlassServiceServicer_to_server, servicer, SERVICE_NAME, AnyTenant(tokens=True)),)


@asynccontextmanager
async def open_emergencies(store: StateStore | None, audit_log: AuditLog, stepped: Stepped) -> AsyncIterator[EmergencyDoor]:
    """Know what is in force, and close what is over, for as long as the block lasts. Raises StateUnavailable."""
    if store is None:
        yield EmergencyDoor()
        return

    async def confirm(emergency: Emergency) -> Approval | None:
        deadline = Deadline.after(_ASKING_S)
        return approval(await audit_log.receipt(asking_context(emergency), emergency.decision_id, deadline), emergency)

    async def append(leaf: audit.AppendRequest) -> audit.AppendResponse:
        return await audit_log.append(leaf, Deadline.after(_ASKING_S))

    live = LiveEmergencies(store, confirm)
    async with live.following():
        closing = asyncio.create_task(
            keep_closing(store, append, lambda tenant: stepped(tenant, "expired")), name="lionrock-emergencies-closed"
        )
        try:
            yield EmergencyDoor(live, store, audit_log, stepped)
        finally:
            closing.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await closing
