"""May this principal do this, for this purpose, with this class of data, on this model? Default deny.

`decide` is a pure function of its arguments: no clock, no state, no I/O, so that it can be tabulated exhaustively and exchanged
for a policy language behind the same signature. It does not know whether the model exists: a model that a principal may not use
and one that nobody serves must look the same to them.

Sources: role and purpose as conditions of access, PDPO Data Protection Principles 3 and 4; separation of operators from payloads.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from lionrock.gateway.tenants import Principal


class Action(StrEnum):
    """What can be asked of the gateway."""

    CHAT = "chat"
    COUNT_TOKENS = "count_tokens"
    LIST_MODELS = "list_models"
    GET_RECEIPT = "get_receipt"
    LIST_AUDIT_KEYS = "list_audit_keys"
    READ_RECORD = "read_record"
    SEARCH_RECORDS = "search_records"
    ERASE_RECORDS = "erase_records"
    CORRECT_RECORD = "correct_record"
    HOLD_RECORDS = "hold_records"
    LOG_REFUSAL = "log_refusal"
    READ_LOG_BOOK = "read_log_book"
    EXPORT_RECORDS = "export_records"
    READ_LOG_STATS = "read_log_stats"
    READ_LEAVES = "read_leaves"
    VERIFY_LOG = "verify_log"


_VERIFY = frozenset({Action.GET_RECEIPT, Action.LIST_AUDIT_KEYS, Action.VERIFY_LOG})
_ASK = _VERIFY | {Action.CHAT, Action.COUNT_TOKENS, Action.LIST_MODELS}
_WATCH = _VERIFY | {Action.READ_LOG_STATS, Action.READ_LEAVES}
_LOOK = frozenset({Action.READ_RECORD, Action.SEARCH_RECORDS})
_OVERSEE = _WATCH | _LOOK | {Action.READ_LOG_BOOK, Action.EXPORT_RECORDS}

# A role that is missing here permits nothing. platform_operator sees what is served and never a payload or its proof.
# What concerns records and logs, the audit service decides again, by the same table (lionrock.audit.records.permissions).
ROLE_ACTIONS: dict[str, frozenset[Action]] = {
    "user": _ASK,
    "tenant_admin": _WATCH | {Action.LIST_MODELS},
    "reviewer": _ASK | {Action.READ_RECORD},
    "mlro": _ASK | _LOOK | {Action.HOLD_RECORDS},
    "privacy_officer": _OVERSEE | {Action.ERASE_RECORDS, Action.CORRECT_RECORD, Action.HOLD_RECORDS, Action.LOG_REFUSAL},
    "auditor": _OVERSEE,
    "regulator": _OVERSEE | {Action.HOLD_RECORDS},
    "platform_operator": frozenset({Action.LIST_MODELS}),
    "model_risk": _ASK | _WATCH,
    "security": _WATCH | {Action.LIST_MODELS},
}


class Denial(StrEnum):
    """Why not: the reasons that a caller may learn."""

    ROLE = "ROLE_NOT_PERMITTED"
    PURPOSE = "PURPOSE_NOT_PERMITTED"
    DATA_CLASS = "DATA_CLASS_NOT_PERMITTED"
    MODEL = "MODEL_NOT_PERMITTED"


@dataclass(frozen=True, slots=True)
class AccessRequest:
    """What is asked for. None where the action has no such dimension."""

    action: Action
    purpose: str | None = None
    data_class: str | None = None
    model: str | None = None


@dataclass(frozen=True, slots=True)
class Decision:
    """Allowed exactly when `denial` is None."""

    denial: Denial | None

    @property
    def allowed(self) -> bool:
        """Whether the request may go on."""
        return self.denial is None


def decide(principal: Principal, request: AccessRequest) -> Decision:
    """Decide. Every dimension must permit; the first that does not, in the order role, purpose, data class, model, is named."""
    grant = principal.grant
    if not any(request.action in ROLE_ACTIONS.get(role, frozenset()) for role in grant.roles):
        return Decision(Denial.ROLE)
    if request.purpose is not None and request.purpose not in grant.purposes:
        return Decision(Denial.PURPOSE)
    if request.data_class is not None and request.data_class not in grant.data_classes:
        return Decision(Denial.DATA_CLASS)
    if request.model is not None and not principal.may_use(request.model):
        return Decision(Denial.MODEL)
    return Decision(None)
