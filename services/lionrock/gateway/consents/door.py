"""The gateway's consents as one piece: the gate that requests pass, and the service that keeps what it asks."""

from __future__ import annotations

from dataclasses import dataclass

from lionrock.chassis.server import AnyTenant, Registration
from lionrock.gateway.authorization import Authorizer
from lionrock.gateway.consents import rows
from lionrock.gateway.consents.gate import ConsentGate
from lionrock.gateway.consents.servicer import SERVICE_NAME, Choices, ConsentServicer
from lionrock.gateway.consents.settings import ConsentSettings
from lionrock.gateway.consents.subjects import SubjectHashes
from lionrock.gateway.identity.authenticator import Authenticator
from lionrock.gateway.peers import AuditLog
from lionrock.gateway.state.store import StateStore
from lionrock.gateway.v1.consent_pb2_grpc import add_ConsentServiceServicer_to_server


@dataclass(frozen=True, slots=True)
class ConsentDoor:
    """`kept` is None where the settings name no consents: then notices are served and nothing else."""

    kept: Choices | None = None

    @property
    def gate(self) -> ConsentGate:
        """What the pipeline asks."""
        return ConsentGate() if self.kept is None else ConsentGate(self.kept.store, self.kept.hashes)

    def registration(self, authenticator: Authenticator, authorizer: Authorizer, audit_log: AuditLog) -> Registration:
        """Return the service as the chassis registers it."""
        servicer = ConsentServicer(authenticator, authorizer, audit_log, self.kept)
        return Registration(add_ConsentServiceServicer_to_server, servicer, SERVICE_NAME, AnyTenant(tokens=True))


async def open_consents(settings: ConsentSettings | None, store: StateStore | None) -> ConsentDoor:
    """Read the secret and bind the rows to it. Raises ValueError for another secret than theirs, StateUnavailable."""
    if settings is None:
        return ConsentDoor()
    assert store is not None, "the settings name a state wherever they name consents"
    hashes = SubjectHashes(settings.secret())
    try:
        await rows.adopt_secret(store, hashes.check)
    except rows.OtherSecretError:
        told = f"{settings.secret_file} holds another secret than the one under which the state's consents were recorded"
        raise ValueError(f"{told}: restore that one, or nobody's opt-out would be heeded") from None
    return ConsentDoor(Choices(store, hashes))
