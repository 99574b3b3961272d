"""Who may do what with logs and records: one table, default deny.

Knows: roles, actions, which call is which action, who is cleared for records of the data class "suspicion". Does not know: how
a role was proven (the gateway writes it from the credential, and refuses by the same names before a call comes here). The
platform's own operators have no action here: they see neither payloads nor leaves.
"""

import json
from collections.abc import Iterable, Mapping
from enum import StrEnum
from typing import Final

from lionrock.audit.failures import RoleNotPermitted


class Action(StrEnum):
    """What can be asked for."""

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


_VERIFY: Final = frozenset({Action.VERIFY_LOG})
_WATCH: Final = _VERIFY | {Action.READ_LOG_STATS, Action.READ_LEAVES}
_LOOK: Final = frozenset({Action.READ_RECORD, Action.SEARCH_RECORDS})

ROLE_ACTIONS: Final[Mapping[str, frozenset[Action]]] = {
    "user": _VERIFY,
    "reviewer": _VERIFY | {Action.READ_RECORD},
    "mlro": _VERIFY | _LOOK | {Action.HOLD_RECORDS},
    "privacy_officer": _WATCH
    | _LOOK
    | {
        Action.ERASE_RECORDS,
        Action.CORRECT_RECORD,
        Action.HOLD_RECORDS,
        Action.LOG_REFUSAL,
        Action.READ_LOG_BOOK,
        Action.EXPORT_RECORDS,
        Action.ERASE_TENANT,
    },
    "regulator": _WATCH | _LOOK | {Action.HOLD_RECORDS, Action.READ_LOG_BOOK, Action.EXPORT_RECORDS},
    "auditor": _WATCH | _LOOK | {Action.READ_LOG_BOOK, Action.EXPORT_RECORDS},
    "tenant_admin": _WATCH | {Action.BEGIN_OFFBOARDING},
    "security": _WATCH,
    "model_risk": _WATCH,
    "platform_operator": frozenset(),
}
"""A role that is missing here permits nothing."""

CLEARED_ROLES: Final = frozenset({"mlro", "regulator"})
"""Behind the tipping-off wall: for all others records of the data class "suspicion" do not exist."""

EMERGENCY_READER: Final = "emergency_reader"
EMERGENCY_CLEARED: Final = "emergency_cleared"
"""What the gateway adds to the roles of who reads under an emergency that two people opened; the second one where an mlro approved
it for suspicion too. No grant has them, and they count with `break_glass_id` alone (asking.py)."""
EMERGENCY_ROLES: Final = frozenset({EMERGENCY_READER, EMERGENCY_CLEARED})
EMERGENCY_ACTIONS: Final = _LOOK | {Action.EXPORT_RECORDS}
_CLEARED: Final = CLEARED_ROLES | {EMERGENCY_CLEARED}

CALL_ACTIONS: Final[Mapping[str, Action]] = {
    "ReadRecord": Action.READ_RECORD,
    "StreamRecord": Action.READ_RECORD,
    "SearchSubject": Action.SEARCH_RECORDS,
    "EraseSubject": Action.ERASE_RECORDS,
    "CorrectRecord": Action.CORRECT_RECORD,
    "PlaceHold": Action.HOLD_RECORDS,
    "ReleaseHold": Action.HOLD_RECORDS,
    "ListHolds": Action.HOLD_RECORDS,
    "LogRefusal": Action.LOG_REFUSAL,
    "ListRefusals": Action.READ_LOG_BOOK,
    "Export": Action.EXPORT_RECORDS,
    "GetLogStats": Action.READ_LOG_STATS,
    "BeginOffboarding": Action.BEGIN_OFFBOARDING,
    "CancelOffboarding": Action.BEGIN_OFFBOARDING,
    "EraseTenant": Action.ERASE_TENANT,
    "GetOffboarding": Action.READ_LOG_STATS,
    "ListLeaves": Action.READ_LEAVES,
    "GetReceipt": Action.VERIFY_LOG,
    "ProveLeaf": Action.VERIFY_LOG,
    "GetCheckpoint": Action.VERIFY_LOG,
    "GetConsistencyProof": Action.VERIFY_LOG,
    "ListKeys": Action.VERIFY_LOG,
}
"""By RPC of RecordsService and AuditService. Append is missing: the gateway alone calls it, for requests that it has admitted."""


def permit(roles: Iterable[str], action: Action) -> None:
    """Raise RoleNotPermitted unless one of the roles permits the action."""
    held = frozenset(roles)
    if EMERGENCY_READER in held and action in EMERGENCY_ACTIONS:
        return
    if not any(action in ROLE_ACTIONS.get(role, frozenset()) for role in held):
        raise RoleNotPermitted(f"none of the caller's roles permits {action}")


def is_cleared(roles: Iterable[str]) -> bool:
    """Whether records of the data class "suspicion" exist for the caller."""
    return not _CLEARED.isdisjoint(roles)


def is_withheld(leaf: bytes, roles: Iterable[str]) -> bool:
    """Whether a leaf is of the data class "suspicion" and the caller not cleared for it."""
    if b'"data_class":"suspicion"' not in leaf or is_cleared(roles):  # canonical JSON has one way to write it
        return False
    return bool(json.loads(leaf).get("data_class") == "suspicion")
