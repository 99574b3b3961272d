"""Errors of the audit service on the wire.

    MeshError
     ├─ LogNotFound           NOT_FOUND             LOG_NOT_FOUND
     ├─ LeafNotFound          NOT_FOUND             LEAF_NOT_FOUND
     ├─ LeafTooLarge          INVALID_ARGUMENT      LEAF_TOO_LARGE
     ├─ TreeSizeOutOfRange    INVALID_ARGUMENT      TREE_SIZE_OUT_OF_RANGE
     ├─ EventAlreadyRecorded  ALREADY_EXISTS        EVENT_ALREADY_RECORDED
     ├─ IntentClosed          FAILED_PRECONDITION   INTENT_CLOSED
     ├─ LogReadOnly           FAILED_PRECONDITION   LOG_READ_ONLY
     └─ StoreUnavailable      UNAVAILABLE           STORE_UNAVAILABLE

`mesh_error` maps the domain's failures (failures.py) to them. Messages of the store may name files of this host, so they stay
in its log.
"""

import logging

import grpc

from lionrock.audit import failures
from lionrock.chassis.errors import InvalidField, MeshError, Overloaded

log = logging.getLogger("lionrock.audit")

_RETRY_AFTER_S = 0.05


class LogNotFound(MeshError):
    """The tenant has no audit log: the settings of the audit service do not name it."""

    status, reason = grpc.StatusCode.NOT_FOUND, "LOG_NOT_FOUND"


class LeafNotFound(MeshError):
    """The tenant's log has no such leaf under its latest checkpoint."""

    status, reason = grpc.StatusCode.NOT_FOUND, "LEAF_NOT_FOUND"


class LeafTooLarge(MeshError):
    """The event does not fit one audit leaf; metadata has size_bytes and limit_bytes."""

    status, reason = grpc.StatusCode.INVALID_ARGUMENT, "LEAF_TOO_LARGE"


class TreeSizeOutOfRange(MeshError):
    """The log has not been signed at the sizes asked for, or they are in the wrong order."""

    status, reason = grpc.StatusCode.INVALID_ARGUMENT, "TREE_SIZE_OUT_OF_RANGE"


class EventAlreadyRecorded(MeshError):
    """The event id is taken by another content, or the time for repeating the call has passed."""

    status, reason = grpc.StatusCode.ALREADY_EXISTS, "EVENT_ALREADY_RECORDED"


class IntentClosed(MeshError):
    """The intent has an outcome already, maybe one that recovery wrote; the answer must not be released."""

    status, reason = grpc.StatusCode.FAILED_PRECONDITION, "INTENT_CLOSED"


class LogReadOnly(MeshError):
    """The log refuses to sign because its store, key or last checkpoint do not agree; the service's log says what to do."""

    status, reason = grpc.StatusCode.FAILED_PRECONDITION, "LOG_READ_ONLY"


class StoreUnavailable(MeshError):
    """The store failed; nothing is written until the audit service is restarted."""

    status, reason = grpc.StatusCode.UNAVAILABLE, "STORE_UNAVAILABLE"


def mesh_error(failure: failures.AuditError) -> MeshError:
    """Translate a failure of the domain for its caller."""
    match failure:
        case failures.LogNotFound():
            return LogNotFound("the tenant has no audit log")
        case failures.LeafNotFound():
            return LeafNotFound(str(failure))
        case failures.LeafTooLarge():
            sizes = {"size_bytes": str(failure.size_bytes), "limit_bytes": str(failure.limit_bytes)}
            return LeafTooLarge(str(failure), metadata=sizes)
        case failures.TreeSizeOutOfRange():
            return TreeSizeOutOfRange(str(failure))
        case failures.EventAlreadyRecorded():
            return EventAlreadyRecorded(str(failure))
        case failures.IntentClosed():
            return IntentClosed(str(failure))
        case failures.IntentNotFound():
            return InvalidField(
                "the outcome names no intent of its request", field_violations=[("outcome.intent_index", str(failure))]
            )
        case failures.QueueFull():
            return Overloaded("too many appends wait", retry_after_s=_RETRY_AFTER_S)
        case failures.LogReadOnly():
            log.error("a log is read-only", extra={"why": str(failure)})
            return LogReadOnly("the tenant's audit log is read-only; the audit service's own log says why and what to do")
        case _:
            log.error("the store failed", extra={"failure": type(failure).__name__, "why": str(failure)})
            return StoreUnavailable("the audit store failed; the audit service's own log says how")
