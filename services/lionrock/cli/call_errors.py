"""A failed call of the gateway as a command says it: exit status, sentence, and what the user can do about it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Final

import grpc

from lionrock.chassis.errors import remote_error
from lionrock.cli.errors import EXIT_CANCELLED, EXIT_FAILED, EXIT_REFUSED, EXIT_UNAVAILABLE, EXIT_USAGE, CommandError
from lionrock.client import (
    CallCancelled,
    CallError,
    InvalidRequest,
    NotAuthenticated,
    NotPermitted,
    PromptBlocked,
    Unavailable,
    Unreachable,
)
from lionrock.client.errors import call_error

_FIXES: Final[Mapping[str, str]] = {
    "ROLE_NOT_PERMITTED": "use the certificate of someone whose role may do this; docs/audit.md has the table of roles",
    "SCOPE_NOT_HELD": "ask for no more than your own certificate may do, or use one that may do it",
    "API_KEY_NOT_FOUND": "lionrock keys list",
    "TOO_MANY_API_KEYS": "lionrock keys list, then lionrock keys revoke those that nobody uses",
    "CONSENT_MISSING": "lionrock consent list SUBJECT; lionrock consent record, once they have agreed",
    "CONSENT_SUBJECT_MISSING": "say whom it concerns: --subject",
    "CONSENT_NOT_FOUND": "lionrock consent list SUBJECT",
    "NOTICE_NOT_FOUND": "lionrock notice",
    "REQUESTER_MAY_NOT_DECIDE": "somebody else decides, who is privacy_officer or mlro",
    "EMERGENCY_NOT_FOUND": "lionrock emergency list --all",
    "EMERGENCY_DECIDED": "lionrock emergency list --all",
    "TOO_MANY_EMERGENCIES": "lionrock emergency list, then lionrock emergency end those that nobody needs",
    "RETENTION_APPLIES": "wait until the time named above, or erase what may go now: --partial",
    "LEGAL_HOLD_APPLIES": "lionrock audit hold list; what is not held can go now: --partial",
    "REQUEST_OPEN": "wait until the request has ended, or erase the others now: --partial",
    "VAULT_DISABLED": "payloads of this tenant are not kept; leaves and proofs are: lionrock audit tail, prove, export",
    "RECORD_ERASED": "nothing brings it back; its leaves still verify: lionrock audit prove",
    "TOO_MANY_RECORDS": "name a case or single requests instead",
    "LEAF_NOT_COVERED": "try again when the platform's log has its next checkpoint, or wait longer: --timeout",
    "TENANT_LEAVING": "lionrock tenant offboard says how far it is; a tenant_admin may --cancel until the erasure is decided",
    "LOG_SEALED": "nothing is added to it any more; its leaves still verify: lionrock audit tail, prove",
    "OFFBOARDING_NOT_BEGUN": "somebody who is tenant_admin begins it: lionrock tenant offboard",
    "ERASURE_DECIDED": "what is kept still goes when its time has come: lionrock tenant offboard says when",
    "SECOND_PERSON_NEEDED": "somebody else decides, who is privacy_officer",
    "AUTHOR_MAY_NOT_REVIEW": "somebody else reviews it; lionrock review answer says what became of it",
    "ALREADY_DECIDED": "lionrock review list --all says what was decided",
    "REVIEW_NOT_FOUND": "lionrock review list shows what waits; the answers to your own questions: lionrock review answer",
    "REVIEW_REQUIRED": "a reviewer cannot be asked: the tenant has no review queue",
    "LOG_READ_ONLY": "the log of the audit service says why; its operator must repair it",
}


def exit_status(error: CallError) -> int:
    """Return the exit status that a failed call stands for."""
    match error:
        case NotPermitted() | NotAuthenticated():
            return EXIT_REFUSED
        case Unavailable():
            return EXIT_UNAVAILABLE
        case InvalidRequest():
            return EXIT_USAGE
        case CallCancelled():
            return EXIT_CANCELLED
    return EXIT_FAILED


def explained(error: CallError) -> str:
    """Return the gateway's message, with what it says about fields, rules and time."""
    text = error.message
    for path, description in error.field_violations:
        text += f"; {path}: {description}"
    for subject, description in error.quota_violations:
        text += f"; {subject}: {description}"
    if isinstance(error, PromptBlocked) and error.rules:
        text += f" (refused by {', '.join(error.rules)})"
    if until := error.metadata.get("until"):
        text += f"; until {until}"
    if error.retry_after_s is not None:
        text += f"; try again in {error.retry_after_s:g} s"
    if error.request_id:
        text += f"  [request {error.request_id}]"
    return text


@contextmanager
def calls_explained() -> Iterator[None]:
    """Raise failed calls of the block as CommandErrors."""
    try:
        yield
    except grpc.RpcError as failure:
        error = call_error(remote_error(failure))
        raise command_error(error) from failure


def command_error(error: CallError) -> CommandError:
    """Say a failed call, its reason and the fix."""
    reason = f"{error.reason}: " if error.reason else ""
    fix = _FIXES.get(error.reason or "")
    if isinstance(error, Unreachable):
        fix = "look at --gateway and --certificates, and whether the mesh runs"
    return CommandError(f"{reason}{explained(error)}", fix=fix, exit_code=exit_status(error))
