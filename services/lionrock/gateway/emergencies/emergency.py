"""What an emergency is: its states, its times, and who may not decide on it.

Knows no store, no wire and no policies. Times are microseconds since 1970 by the clock of the shared state.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Final, NewType

from lionrock.gateway.tenants import AuthMethod, Principal

EmergencyId = NewType("EmergencyId", str)

UNDECIDED_US: Final = 3600 * 1_000_000
"""A request on which nobody decides lapses after that."""
EFFECTIVE_WITHIN_S: Final = 5.0
"""A decision or an end holds everywhere after that, whichever gateway heard of it and whatever fails."""


class State(StrEnum):
    """How far an emergency is."""

    REQUESTED = "requested"
    APPROVED = "approved"
    DENIED = "denied"
    ENDED = "ended"
    EXPIRED = "expired"


OPEN: Final = frozenset({State.REQUESTED, State.APPROVED})


@dataclass(frozen=True, slots=True)
class Emergency:
    """One emergency.

    `requested_by`: actor; `requested_with`: SPIFFE id of the certificate that came beside their token, empty without one.
    `ends_at_us`: when it ends or ended; while it waits, when it lapses. `context`: RequestContext of the request, serialised.
    `decision`, `decided_by`, `decision_id`: of whoever decides or decided, empty before; `decision_id` is event and request id of
    the leaf. `claimed_at_us`: since when somebody decides, or did; `decided_at_us`: when it took effect, None before.
    """

    emergency_id: EmergencyId
    tenant: str
    state: State
    requested_by: str
    requested_with: str
    requested_at_us: int
    duration_us: int
    suspicion: bool
    ends_at_us: int
    context: bytes
    decision: str = ""
    decided_by: str = ""
    decision_id: str = ""
    claimed_at_us: int | None = None
    decided_at_us: int | None = None

    def is_of(self, actor: str, certificate: str) -> bool:
        """Whether a caller is who asked: by what names them, or by the certificate that one of the two came with."""
        return actor == self.requested_by or certificate == self.requested_by or actor == self.requested_with


def certificate_beside(principal: Principal, certificate: str | None) -> str:
    """Return the certificate that came beside a person's token; empty where it is the credential itself, or there is none."""
    return certificate or "" if principal.auth_method is AuthMethod.OIDC else ""
