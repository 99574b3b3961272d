"""The gateway's API keys as one piece: what accepts them, and the service that manages them, where the settings want any."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from lionrock.chassis.server import AnyTenant, Registration
from lionrock.gateway.authorization import Authorizer
from lionrock.gateway.identity.api_key_servicer import SERVICE_NAME, ApiKeyServicer
from lionrock.gateway.identity.api_keys import Marks
from lionrock.gateway.identity.authenticator import Authenticator
from lionrock.gateway.identity.live_keys import LiveKeys
from lionrock.gateway.identity.settings import ApiKeySettings
from lionrock.gateway.peers import AuditLog
from lionrock.gateway.state.store import StateStore
from lionrock.gateway.v1.api_key_pb2_grpc import add_ApiKeyServiceServicer_to_server

_DAY_S = 24 * 3600


@dataclass(frozen=True, slots=True)
class ApiKeyDoor:
    """`live` is what the Authenticator asks; None where no keys are issued, and nothing is registered then."""

    live: LiveKeys | None = None
    marks: Marks | None = None
    store: StateStore | None = None
    max_lifetime_s: float = 0

    def registrations(self, authenticator: Authenticator, authorizer: Authorizer, audit_log: AuditLog) -> tuple[Registration, ...]:
        """Return the service as the chassis registers it."""
        if self.marks is None or self.store is None:
            return ()
        servicer = ApiKeyServicer(authenticator, authorizer, self.store, self.marks, audit_log, max_lifetime_s=self.max_lifetime_s)
        return (Registration(add_ApiKeyServiceServicer_to_server, servicer, SERVICE_NAME, AnyTenant(tokens=True)),)


@asynccontextmanager
async def open_api_keys(settings: ApiKeySettings | None, store: StateStore | None) -> AsyncIterator[ApiKeyDoor]:
    """Know the keys for as long as the block lasts. Raises ValueError for the secret, StateUnavailable."""
    if settings is None:
        yield ApiKeyDoor()
        return
    assert store is not None, "the settings name a state wherever they name API keys"
    marks = Marks(settings.secret())
    live = LiveKeys(store, marks)
    async with live.following():
        yield ApiKeyDoor(live, marks, store, settings.max_lifetime_days * _DAY_S)
