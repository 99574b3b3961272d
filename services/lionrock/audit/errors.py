"""Errors of the audit service on the wire.

    MeshError
     ├─ LogNotFound           NOT_FOUND             LOG_NOT_FOUND
     ├─ LeafNotFound          NOT_FOUND             LEAF_NOT_FOUND
     ├─ LeafNotCovered        UNAVAILABLE           LEAF_NOT_COVERED
     ├─ LeafTooLarge          INVALID_ARGUMENT      LEAF_TOO_LARGE
     ├─ TreeSizeOutOfRange    INVALID_ARGUMENT      TREE_SIZE_OUT_OF_RANGE
     ├─ EventAlreadyRecorded  ALREADY_EXISTS        EVENT_ALREADY_RECORDED
     ├─ IntentClosed          FAILED_PRECONDITION   INTENT_CLOSED
     ├─ WitnessPolicyUnmet    FAILED_PRECONDITION   WITNESS_POLICY_UNMET
     ├─ LogReadOnly           FAILED_PRECONDITION   LOG_READ_ONLY
     ├─ LogSealed             FAILED_PRECONDITION   LOG_SEALED
     ├─ TenantLeaving         FAILED_PRECONDITION   TENANT_LEAVING
     ├─ OffboardingNotBegun   FAILED_PRECONDITION   OFFBOARDING_NOT_BEGUN
     ├─ ErasureDecided        FAILED_PRECONDITION   ERASURE_DECIDED
     ├─ SecondPersonNeeded    PERMISSION_DENIED     SECOND_PERSON_NEEDED
     ├─ StoreUnavailable      UNAVAILABLE           STORE_UNAVAILABLE
     ├─ KeysUnavailable       UNAVAILABLE           KEYS_UNAVAILABLE
     ├─ RoleNotPermitted      PERMISSION_DENIED     ROLE_NOT_PERMITTED
     ├─ VaultDisabled         FAILED_PRECONDITION   VAULT_DISABLED
     ├─ RecordNotFound        NOT_FOUND             RECORD_NOT_FOUND
     ├─ HoldNotFound          NOT_FOUND             HOLD_NOT_FOUND
     ├─ RecordErased          FAILED_PRECONDITION   RECORD_ERASED
     ├─ RecordTooLarge        FAILED_PRECONDITION   RECORD_TOO_LARGE
     ├─ RetentionApplies      FAILED_PRECONDITION   RETENTION_APPLIES
     ├─ LegalHoldApplies      FAILED_PRECONDITION   LEGAL_HOLD_APPLIES
     ├─ RequestOpen           FAILED_PRECONDITION   REQUEST_OPEN
     └─ TooManyRecords        FAILED_PRECONDITION   TOO_MANY_RECORDS

`mesh_error` maps the domain's failures (failures.py) to them. Messages of the store may name files of this host, so they stay
in its log.
"""

import logging
from collections.abc import Mapping

import grpc

from lionrock.audit import failures
from lionrock.audit.leaf import rfc3339
from lionrock.chassis.errors import InvalidField, MeshError, Overloaded

log = logging.getLogger("lionrock.audit")

_RETRY_AFTER_S = 0.05
_KEYS_RETRY_AFTER_S = 1.0
_NEXT_CHECKPOINT_S = 10.0


class LogNotFound(MeshError):
    """The tenant has no audit log: the settings of the audit service do not name it."""

    status, reason = grpc.StatusCode.NOT_FOUND, "LOG_NOT_FOUND"


class LeafNotFound(MeshError):
    """The tenant's log has no such leaf under its latest checkpoint."""

    status, reason = grpc.StatusCode.NOT_FOUND, "LEAF_NOT_FOUND"


class LeafNotCovered(MeshError):
    """The leaf is too new: the platform's log has no checkpoint yet, cosigned where there are witnesses, that covers it."""

    status, reason = grpc.StatusCode.UNAVAILABLE, "LEAF_NOT_COVERED"


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


class WitnessPolicyUnmet(MeshError):
    """Settings let no request begin while witnesses do not cosign, and too few have for too long; the message says for how long."""

    status, reason = grpc.StatusCode.FAILED_PRECONDITION, "WITNESS_POLICY_UNMET"


class LogReadOnly(MeshError):
    """The log refuses to sign because its store, key or last checkpoint do not agree; the service's log says what to do."""

    status, reason = grpc.StatusCode.FAILED_PRECONDITION, "LOG_READ_ONLY"


class LogSealed(MeshError):
    """The tenant was off-boarded: nothing is ever added to its log again, and its name is not given to another."""

    status, reason = grpc.StatusCode.FAILED_PRECONDITION, "LOG_SEALED"


class TenantLeaving(MeshError):
    """The tenant is being off-boarded: no request of it is answered any more."""

    status, reason = grpc.StatusCode.FAILED_PRECONDITION, "TENANT_LEAVING"


class OffboardingNotBegun(MeshError):
    """A tenant is erased only after somebody has begun its off-boarding."""

    status, reason = grpc.StatusCode.FAILED_PRECONDITION, "OFFBOARDING_NOT_BEGUN"


class ErasureDecided(MeshError):
    """The erasure of the tenant is decided, so its off-boarding cannot be cancelled."""

    status, reason = grpc.StatusCode.FAILED_PRECONDITION, "ERASURE_DECIDED"


class SecondPersonNeeded(MeshError):
    """Whoever began the off-boarding of a tenant may not decide on its erasure: somebody else has to."""

    status, reason = grpc.StatusCode.PERMISSION_DENIED, "SECOND_PERSON_NEEDED"


class StoreUnavailable(MeshError):
    """The store failed; nothing is written until the audit service is restarted."""

    status, reason = grpc.StatusCode.UNAVAILABLE, "STORE_UNAVAILABLE"


class KeysUnavailable(MeshError):
    """The keys of the tenant's records do not answer; nothing of the tenant is recorded or read until they do."""

    status, reason = grpc.StatusCode.UNAVAILABLE, "KEYS_UNAVAILABLE"


class RoleNotPermitted(MeshError):
    """None of the caller's roles permits this action."""

    status, reason = grpc.StatusCode.PERMISSION_DENIED, "ROLE_NOT_PERMITTED"


class VaultDisabled(MeshError):
    """Payloads of this tenant are not kept, so there are no records of them."""

    status, reason = grpc.StatusCode.FAILED_PRECONDITION, "VAULT_DISABLED"


class RecordNotFound(MeshError):
    """There is no such record, or none that the caller may know of."""

    status, reason = grpc.StatusCode.NOT_FOUND, "RECORD_NOT_FOUND"


class HoldNotFound(MeshError):
    """No such hold is in force, or none that the caller may know of."""

    status, reason = grpc.StatusCode.NOT_FOUND, "HOLD_NOT_FOUND"


class RecordErased(MeshError):
    """The keys and salts of the record are destroyed; its leaves stay."""

    status, reason = grpc.StatusCode.FAILED_PRECONDITION, "RECORD_ERASED"


class RecordTooLarge(MeshError):
    """The record does not fit one message: read it with StreamRecord, as `lionrock audit show` does."""

    status, reason = grpc.StatusCode.FAILED_PRECONDITION, "RECORD_TOO_LARGE"


class RetentionApplies(MeshError):
    """Records must be kept still; metadata has records and until, the latest of their dates (RFC 3339)."""

    status, reason = grpc.StatusCode.FAILED_PRECONDITION, "RETENTION_APPLIES"


class LegalHoldApplies(MeshError):
    """A hold keeps records; metadata has records."""

    status, reason = grpc.StatusCode.FAILED_PRECONDITION, "LEGAL_HOLD_APPLIES"


class RequestOpen(MeshError):
    """Requests of records have not ended yet; metadata has records."""

    status, reason = grpc.StatusCode.FAILED_PRECONDITION, "REQUEST_OPEN"


class TooManyRecords(MeshError):
    """The scope has more records than one call may erase; erase by case or request."""

    status, reason = grpc.StatusCode.FAILED_PRECONDITION, "TOO_MANY_RECORDS"


def mesh_error(failure: failures.AuditError) -> MeshError:
    """Translate a failure of the domain for its caller."""
    match failure:
        case failures.RecordsFailure():
            return _records_error(failure)
        case failures.LogNotFound():
            return LogNotFound("the tenant has no audit log")
        case failures.LeafNotFound():
            return LeafNotFound(str(failure))
        case failures.LeafNotCovered():
            return LeafNotCovered(str(failure), retry_after_s=_NEXT_CHECKPOINT_S)
        case failures.WitnessPolicyUnmet():
            return WitnessPolicyUnmet(str(failure))
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
            return Overloaded(str(failure), retry_after_s=_RETRY_AFTER_S)
        case failures.TenantLeaving():
            return TenantLeaving(str(failure))
        case failures.LogSealed():
            return LogSealed(str(failure))
        case failures.LogReadOnly():
            log.error("a log is read-only", extra={"why": str(failure)})
            return LogReadOnly("the tenant's audit log is read-only; the audit service's own log says why and what to do")
        case _:
            log.error("the store failed", extra={"failure": type(failure).__name__, "why": str(failure)})
            return StoreUnavailable("the audit store failed; the audit service's own log says how")


_PLAIN: Mapping[type[failures.RecordsFailure], type[MeshError]] = {
    failures.RoleNotPermitted: RoleNotPermitted,
    failures.OffboardingNotBegun: OffboardingNotBegun,
    failures.ErasureDecided: ErasureDecided,
    failures.SecondPersonNeeded: SecondPersonNeeded,
    failures.VaultDisabled: VaultDisabled,
    failures.RecordNotFound: RecordNotFound,
    failures.HoldNotFound: HoldNotFound,
    failures.RecordErased: RecordErased,
    failures.RecordTooLarge: RecordTooLarge,
    failures.TooManyRecords: TooManyRecords,
}


def _records_error(failure: failures.RecordsFailure) -> MeshError:
    match failure:
        case failures.RetentionApplies():
            metadata = {"records": str(failure.records), "until": rfc3339(failure.until_us)}
            return RetentionApplies(str(failure), metadata=metadata)
        case failures.LegalHoldApplies():
            return LegalHoldApplies(str(failure), metadata={"records": str(failure.records)})
        case failures.RequestOpen():
            return RequestOpen(str(failure), metadata={"records": str(failure.records)})
        case failures.NotThisTenant():
            rule = "the caller's own tenant"
            return InvalidField("another tenant is written out than the caller's", field_violations=[("tenant", rule)])
        case failures.KeysUnavailable():
            log.error("keys are unavailable", extra={"why": str(failure)})
            return KeysUnavailable("the keys of the tenant's records do not answer", retry_after_s=_KEYS_RETRY_AFTER_S)
        case _:
            return _PLAIN[type(failure)](str(failure))
