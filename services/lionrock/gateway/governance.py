"""The governance leaf: a decision about access, in the tenant's audit log before it takes effect.

Knows how the gateway writes one. Does not know what is decided. Whoever decides appends it first, and goes on only when that has
returned (`peers.audit.append`, which raises AuditUnavailable): what is not in the log does not happen. Source: audit.proto.

A decision that a crash cuts off between leaf and effect is made again under the event id that was kept: the log answers with the
leaf that it has. Statements are what people wrote, and names of persons: they go to the vault, and to no leaf, log or trace.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Final

from lionrock.audit.v1 import audit_pb2 as audit
from lionrock.chassis.ids import uuid7
from lionrock.chassis.telemetry import current_trace_id
from lionrock.common.v1 import context_pb2 as ctx
from lionrock.gateway.context import request_context
from lionrock.gateway.tenants import Principal

_DETAIL: Final = re.compile(r"[A-Za-z0-9._:/@#+, -]{1,128}")


def fits_detail(text: str) -> bool:
    """Whether a leaf may have this as the value of a detail (audit.proto, Governance.details)."""
    return _DETAIL.fullmatch(text) is not None


def context_of(
    principal: Principal,
    policies_digest: str,
    *,
    request_id: str | None = None,
    purpose: str = "",
    data_class: ctx.DataClass.ValueType = ctx.DATA_CLASS_PERSONAL,
    break_glass_id: str = "",
) -> ctx.RequestContext:
    """Say who decides: a context of the call's own, under a new request id unless one is given.

    `policies_digest`: of the set that let the call in. `purpose`: empty for the grant's first. `data_class`: that of what is
    decided on; DATA_CLASS_SUSPICION hides the leaf from all but `mlro` and `regulator`.
    """
    context = request_context(
        principal, request_id or uuid7(), purpose=purpose, data_class=data_class, access_policy_digest=policies_digest
    )
    context.break_glass_id = break_glass_id
    return context


def governance_leaf(
    context: ctx.RequestContext,
    operation: str,
    object_id: str,
    *,
    details: Mapping[str, str] | None = None,
    statement: str = "",
    subject_ids: Sequence[str] = (),
    event_id: str | None = None,
    want_receipt: bool = False,
) -> audit.AppendRequest:
    """Return the append of one decision.

    `operation`: "<thing>.<what happened>". `object_id`: what it was done to, never a person. `details`: codes, digests and times;
    values that are empty are left out. `statement`: what a person wrote, or what names one. `event_id`: a UUIDv7 that was kept
    where the decision must be repeatable; None: a new one.
    """
    decided = audit.Governance(
        operation=operation,
        object_id=object_id,
        details={name: value for name, value in (details or {}).items() if value},
        statement=statement.encode(),
        subject_ids=subject_ids,
    )
    return audit.AppendRequest(
        context=context,
        event_id=event_id or uuid7(),
        trace_id=current_trace_id(),
        governance=decided,
        want_receipt=want_receipt,
    )
