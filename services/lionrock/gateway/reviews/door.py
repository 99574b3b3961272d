"""The review queue as one piece: what the pipeline fills, the service that shows it, and its upkeep."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass

from lionrock.chassis.server import AnyTenant, Registration
from lionrock.gateway.authorization import Authorizer
from lionrock.gateway.identity.authenticator import Authenticator
from lionrock.gateway.peers import AuditLog
from lionrock.gateway.reviews.deciding import Decisions
from lionrock.gateway.reviews.servicer import SERVICE_NAME, ReviewServicer
from lionrock.gateway.reviews.upkeep import Upkeep
from lionrock.gateway.state.store import StateStore
from lionrock.gateway.tenants import TenantDirectory
from lionrock.gateway.v1.review_pb2_grpc import add_ReviewServiceServicer_to_server


@dataclass(frozen=True, slots=True)
class ReviewDoor:
    """`servicer` is None where the gateway has no state; nothing is registered then."""

    servicer: ReviewServicer | None = None

    def registrations(self) -> tuple[Registration, ...]:
        """Return the service as the chassis registers it."""
        if self.servicer is None:
            return ()
        return (Registration(add_ReviewServiceServicer_to_server, self.servicer, SERVICE_NAME, AnyTenant(tokens=True)),)


@asynccontextmanager
async def open_reviews(
    store: StateStore | None,
    log: AuditLog,
    authenticator: Authenticator,
    authorizer: Authorizer,
    directory: TenantDirectory,
    *,
    trust_domain: str,
    unnotified: Callable[[str], None],
) -> AsyncIterator[ReviewDoor]:
    """Serve the queue and look after it for as long as the block lasts."""
    if store is None:
        yield ReviewDoor()
        return
    decisions = Decisions(store, log)
    upkeep = Upkeep(
        store,
        decisions,
        directory,
        gateway_id=f"spiffe://{trust_domain}/service/gateway",
        policies_digest=lambda: authorizer.digest,
        unnotified=unnotified,
    )
    looking = asyncio.create_task(upkeep.keep_looking(), name="lionrock-reviews")
    try:
        yield ReviewDoor(ReviewServicer(authenticator, authorizer, store, log, decisions))
    finally:
        looking.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await looking
