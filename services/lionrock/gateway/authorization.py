"""May this principal do this, for this purpose, with this class of data, on this model? Default deny.

Knows the words of the question and of the answer, and which set of policies answers now. Does not know Cedar
(access_policies.py), where policies come from (policy_directory.py), or whether a model exists: one that a principal may not use
and one that nobody serves must look the same to them.

Sources: role and purpose as conditions of access, PDPO Data Protection Principles 3 and 4; separation of operators from payloads.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Final

from lionrock.gateway.tenants import Principal

if TYPE_CHECKING:
    from lionrock.gateway.access_policies import AccessPolicies


class Action(StrEnum):
    """What can be asked of the gateway."""

    CHAT = "chat"
    COUNT_TOKENS = "count_tokens"
    LIST_MODELS = "list_models"
    GET_QUOTA = "get_quota"
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
    BEGIN_OFFBOARDING = "begin_offboarding"
    ERASE_TENANT = "erase_tenant"
    READ_REVIEWS = "read_reviews"
    DECIDE_REVIEW = "decide_review"
    GET_HELD_ANSWER = "get_held_answer"
    READ_NOTICES = "read_notices"
    LIST_CONSENTS = "list_consents"
    WITHDRAW_CONSENT = "withdraw_consent"
    RECORD_CONSENT = "record_consent"
    LIST_API_KEYS = "list_api_keys"
    ISSUE_API_KEYS = "issue_api_keys"
    REVOKE_API_KEYS = "revoke_api_keys"
    REQUEST_EMERGENCY = "request_emergency"
    DECIDE_EMERGENCY = "decide_emergency"
    END_EMERGENCY = "end_emergency"
    READ_EMERGENCIES = "read_emergencies"


class Denial(StrEnum):
    """Why not: the reasons that a caller may learn. Of several the first in this order is named."""

    ROLE = "ROLE_NOT_PERMITTED"
    AUTHOR = "AUTHOR_MAY_NOT_REVIEW"
    REQUESTER = "REQUESTER_MAY_NOT_DECIDE"
    PURPOSE = "PURPOSE_NOT_PERMITTED"
    DATA_CLASS = "DATA_CLASS_NOT_PERMITTED"
    MODEL = "MODEL_NOT_PERMITTED"


EMERGENCY_ACTIONS: Final = frozenset({Action.READ_RECORD, Action.SEARCH_RECORDS, Action.EXPORT_RECORDS})
"""What an emergency can open: in the schema no other question has one."""


@dataclass(frozen=True, slots=True)
class BreakGlass:
    """An emergency that is in force for the caller. `suspicion`: whether it opens records of that class too."""

    id: str
    suspicion: bool


@dataclass(frozen=True, slots=True)
class AccessRequest:
    """What is asked for. None where the action has no such dimension; a chat without a purpose or a data class is refused.

    `author`: actor whose work a review decides on, or who asked for an emergency; without one none is decided. Of an API key's work
    it is who made the key. `break_glass`: only with one of EMERGENCY_ACTIONS.
    """

    action: Action
    purpose: str | None = None
    data_class: str | None = None
    model: str | None = None
    author: str | None = None
    break_glass: BreakGlass | None = None


@dataclass(frozen=True, slots=True)
class Decision:
    """Allowed exactly when `denial` is None.

    `policies`: ids of those that decided, sorted: what permits, or what forbids for the reason that is named. A refusal without
    any is the default: nothing permits.
    """

    denial: Denial | None
    policies: tuple[str, ...]

    @property
    def allowed(self) -> bool:
        """Whether the request may go on."""
        return self.denial is None


class Authorizer:
    """Decides by the policies that are in force. They are exchanged whole: a decision is by the old set or by the new one."""

    def __init__(self, policies: AccessPolicies) -> None:
        self._policies = policies

    @property
    def policies(self) -> AccessPolicies:
        """The set in force now: what decides several times for one request keeps it."""
        return self._policies

    @property
    def digest(self) -> str:
        """Digest of the set in force, "sha256:…"."""
        return self._policies.digest

    def decide(self, principal: Principal, request: AccessRequest) -> Decision:
        """Decide by the set in force. Raises DecisionFailedError."""
        return self._policies.decide(principal, request)

    def follow(self, policies: AccessPolicies) -> None:
        """Decide by another set from now on."""
        self._policies = policies
