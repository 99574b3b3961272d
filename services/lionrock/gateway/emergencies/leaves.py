"""What the audit log says of emergencies: governance leaves, and what of them a gateway believes.

    break_glass.requested   event id and request id: the emergency's; statement: why
    break_glass.approved    event id and request id: the decision's; statement: why
    break_glass.denied      the same
    break_glass.ended       by a person
    break_glass.expired     by time; the context is that of who asked, details say recorded_by "gateway"

Details: `duration_s`, `suspicion` ("true" or "false"), `requested_by_digest`: SHA-256 of the actor, since an actor may be longer
than a detail. Every one of them has the emergency's id as object and in `break_glass_id`. One that opens suspicion leaves leaves of
that class.

Knows these leaves and no store. Source: audit.proto, gateway/governance.py.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from hashlib import sha256
from typing import Final

from lionrock.audit.v1 import audit_pb2 as audit
from lionrock.chassis.ids import uuid7
from lionrock.common.v1 import context_pb2 as ctx
from lionrock.gateway.emergencies.emergency import Emergency, State
from lionrock.gateway.governance import context_of, governance_leaf
from lionrock.gateway.tenants import Principal
from lionrock.tlog.encoding import MalformedNote
from lionrock.tlog.proof import TlogProof

READER_ROLE: Final = "emergency_reader"
"""In RequestContext.roles: who reads under an emergency. No grant has it; the audit service permits by it what is opened."""
CLEARED_ROLE: Final = "emergency_cleared"
"""The same for an emergency that opens suspicion, which an mlro approved."""


@dataclass(frozen=True, slots=True)
class Approval:
    """What an approval's leaf says. `recorded_at_us` is a time of the audit service."""

    recorded_at_us: int
    duration_us: int


def context(principal: Principal, digest: str, emergency_id: str, *, suspicion: bool, request_id: str) -> ctx.RequestContext:
    """Return who does it, under which emergency. `digest`: of the policies that let the call in."""
    data_class = ctx.DATA_CLASS_SUSPICION if suspicion else ctx.DATA_CLASS_PERSONAL
    return context_of(principal, digest, request_id=request_id, data_class=data_class, break_glass_id=emergency_id)


def leaf(
    who: ctx.RequestContext, what: State, emergency: Emergency, *, reason: str = "", event_id: str, receipt: bool = False
) -> audit.AppendRequest:
    """Return the append of one step."""
    return governance_leaf(
        who,
        f"break_glass.{what.value}",
        emergency.emergency_id,
        details=details(emergency),
        statement=reason,
        event_id=event_id,
        want_receipt=receipt,
    )


def details(emergency: Emergency) -> Mapping[str, str]:
    """Return the facts that every leaf of an emergency has."""
    return {
        "duration_s": str(emergency.duration_us // 1_000_000),
        "suspicion": "true" if emergency.suspicion else "false",
        "requested_by_digest": "sha256:" + sha256(emergency.requested_by.encode()).hexdigest(),
    }


def expiry(emergency: Emergency) -> audit.AppendRequest:
    """Return the append that says that its time is up: in the name of who asked, recorded by the gateway."""
    event_id = uuid7()
    who = ctx.RequestContext.FromString(emergency.context)
    who.request_id = event_id
    request = leaf(who, State.EXPIRED, emergency, event_id=event_id)
    request.governance.details["recorded_by"] = "gateway"
    request.governance.details["was"] = emergency.state.value
    return request


def asking_context(emergency: Emergency) -> ctx.RequestContext:
    """Return the context in which a gateway asks the log for an emergency's own leaves: that of who asked, cleared for them."""
    who = ctx.RequestContext.FromString(emergency.context)
    who.request_id = uuid7()
    who.roles[:] = sorted({*who.roles, READER_ROLE, CLEARED_ROLE})
    who.break_glass_id = emergency.emergency_id
    return who


def approval(receipt: audit.Receipt, emergency: Emergency) -> Approval | None:
    """Return what an approval's leaf says; None when the leaf is not that of this emergency's approval by somebody else."""
    try:
        data = TlogProof.parse(receipt.tlog_proof).leaf
    except MalformedNote:
        return None
    said = json.loads(data) if data else {}
    expected = {
        "type": "governance",
        "operation": "break_glass.approved",
        "event_id": emergency.decision_id,
        "object_id": emergency.emergency_id,
        "break_glass_id": emergency.emergency_id,
        "tenant": emergency.tenant,
        "actor": emergency.decided_by,
        "details": details(emergency),
    }
    if any(said.get(name) != value for name, value in expected.items()) or said["actor"] == emergency.requested_by:
        return None
    return Approval(round(datetime.fromisoformat(said["ts"]).timestamp() * 1e6), emergency.duration_us)
