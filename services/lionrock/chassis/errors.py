"""The errors that cross the wire, and what a failed call looks like to its caller.

    MeshError                       status and reason; subclassed in <service>/errors.py
     ├─ InvalidField                INVALID_ARGUMENT     INVALID_FIELD
     ├─ MalformedRequest            INVALID_ARGUMENT     MALFORMED_REQUEST
     ├─ CallerNotPermitted          PERMISSION_DENIED    CALLER_NOT_PERMITTED
     ├─ MethodNotFound              UNIMPLEMENTED        METHOD_NOT_FOUND
     ├─ ServiceNotFound             NOT_FOUND            SERVICE_NOT_FOUND
     ├─ Overloaded                  RESOURCE_EXHAUSTED   OVERLOADED
     ├─ DeadlineTooShort            DEADLINE_EXCEEDED    DEADLINE_TOO_SHORT
     ├─ DeadlineExceeded            DEADLINE_EXCEEDED    DEADLINE_EXCEEDED
     ├─ StreamIdle                  DEADLINE_EXCEEDED    STREAM_IDLE
     ├─ ShuttingDown                UNAVAILABLE          SHUTTING_DOWN
     ├─ DependencyUnavailable       UNAVAILABLE          DEPENDENCY_UNAVAILABLE
     └─ Internal                    INTERNAL             INTERNAL_ERROR
    RemoteError                     what `remote_error` makes of a failed call

A `MeshError` travels as `google.rpc.Status` in `grpc-status-details-bin` with ErrorInfo (always), BadRequest, RetryInfo and
QuotaFailure (where they apply), as https://google.aip.dev/193 asks. Its text is for the caller and never quotes the request.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import ClassVar

import grpc
from google.protobuf import duration_pb2
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2, status_pb2  # type: ignore[import-untyped]

ERROR_DOMAIN = "lionrock.io"
DETAILS_KEY = "grpc-status-details-bin"
MAX_MESSAGE_CHARS = 1000
# Trailing metadata above 8 KiB is refused by peers with default settings; base64 adds a third.
MAX_DETAILS_BYTES = 4096

_NOTHING: Mapping[str, str] = MappingProxyType({})

FieldViolation = tuple[str, str]
"""(field path, description)"""
QuotaViolation = tuple[str, str]
"""(subject, description)"""


class MeshError(Exception):
    """An error that its caller may see. A subclass's first docstring line is the documented meaning of its reason."""

    status: ClassVar[grpc.StatusCode]
    reason: ClassVar[str]

    def __init__(
        self,
        message: str,
        *,
        metadata: Mapping[str, str] = _NOTHING,
        retry_after_s: float | None = None,
        field_violations: Sequence[FieldViolation] = (),
        quota_violations: Sequence[QuotaViolation] = (),
    ) -> None:
        super().__init__(message)
        self.message = message
        self.metadata = dict(metadata)
        self.retry_after_s = retry_after_s
        self.field_violations = tuple(field_violations)
        self.quota_violations = tuple(quota_violations)


class InvalidField(MeshError):
    """A field of the request breaks its rule; BadRequest names the field and the rule, never the value."""

    status, reason = grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD"


class MalformedRequest(MeshError):
    """The request's bytes are not a message of the method's type."""

    status, reason = grpc.StatusCode.INVALID_ARGUMENT, "MALFORMED_REQUEST"


class CallerNotPermitted(MeshError):
    """The caller's certificate names an identity that may not call this method."""

    status, reason = grpc.StatusCode.PERMISSION_DENIED, "CALLER_NOT_PERMITTED"


class MethodNotFound(MeshError):
    """The server has no such method."""

    status, reason = grpc.StatusCode.UNIMPLEMENTED, "METHOD_NOT_FOUND"


class ServiceNotFound(MeshError):
    """A health check named a service that this server does not have."""

    status, reason = grpc.StatusCode.NOT_FOUND, "SERVICE_NOT_FOUND"


class Overloaded(MeshError):
    """The server, or the caller's share of it, is busy; RetryInfo says when to come back."""

    status, reason = grpc.StatusCode.RESOURCE_EXHAUSTED, "OVERLOADED"


class DeadlineTooShort(MeshError):
    """The time that is left cannot suffice, so the work was not begun."""

    status, reason = grpc.StatusCode.DEADLINE_EXCEEDED, "DEADLINE_TOO_SHORT"


class DeadlineExceeded(MeshError):
    """The call's deadline, or the server's cap on it, passed before the answer was complete."""

    status, reason = grpc.StatusCode.DEADLINE_EXCEEDED, "DEADLINE_EXCEEDED"


class StreamIdle(MeshError):
    """Nothing arrived on the request stream for longer than the server waits."""

    status, reason = grpc.StatusCode.DEADLINE_EXCEEDED, "STREAM_IDLE"


class ShuttingDown(MeshError):
    """The server finishes what it has begun and takes nothing new; call again, another one answers."""

    status, reason = grpc.StatusCode.UNAVAILABLE, "SHUTTING_DOWN"


class DependencyUnavailable(MeshError):
    """A service that this one needs does not answer."""

    status, reason = grpc.StatusCode.UNAVAILABLE, "DEPENDENCY_UNAVAILABLE"


class Internal(MeshError):
    """A defect of the server; the metadata's error_id finds it in the server's log."""

    status, reason = grpc.StatusCode.INTERNAL, "INTERNAL_ERROR"


class RemoteError(Exception):
    """A call that failed. `reason` is None where the answer carried no ErrorInfo, as when no server answered at all."""

    def __init__(
        self,
        status: grpc.StatusCode,
        reason: str | None,
        message: str,
        *,
        metadata: Mapping[str, str] = _NOTHING,
        retry_after_s: float | None = None,
        field_violations: Sequence[FieldViolation] = (),
        quota_violations: Sequence[QuotaViolation] = (),
    ) -> None:
        super().__init__(f"{status.name} {reason}: {message}" if reason else f"{status.name}: {message}")
        self.status = status
        self.reason = reason
        self.message = message
        self.metadata = dict(metadata)
        self.retry_after_s = retry_after_s
        self.field_violations = tuple(field_violations)
        self.quota_violations = tuple(quota_violations)


def _details(
    error: MeshError,
) -> Iterator[error_details_pb2.BadRequest | error_details_pb2.RetryInfo | error_details_pb2.QuotaFailure]:
    if error.retry_after_s is not None:
        delay = duration_pb2.Duration()
        delay.FromNanoseconds(round(error.retry_after_s * 1e9))
        yield error_details_pb2.RetryInfo(retry_delay=delay)
    if error.quota_violations:
        violation = error_details_pb2.QuotaFailure.Violation
        yield error_details_pb2.QuotaFailure(
            violations=[violation(subject=subject, description=text) for subject, text in error.quota_violations]
        )
    if error.field_violations:
        field_violation = error_details_pb2.BadRequest.FieldViolation
        bad_request = error_details_pb2.BadRequest()
        for field, text in error.field_violations:
            if bad_request.ByteSize() + len(field) + len(text) > MAX_DETAILS_BYTES // 2:
                break
            bad_request.field_violations.append(field_violation(field=field, description=text))
        yield bad_request


def encode_status(error: MeshError) -> bytes:
    """Serialize `google.rpc.Status` of an error in MAX_DETAILS_BYTES: details that do not fit are left out, ErrorInfo never."""
    status = status_pb2.Status(code=error.status.value[0], message=error.message[:MAX_MESSAGE_CHARS])
    status.details.add().Pack(error_details_pb2.ErrorInfo(reason=error.reason, domain=ERROR_DOMAIN, metadata=error.metadata))
    for detail in _details(error):
        status.details.add().Pack(detail)
        if status.ByteSize() > MAX_DETAILS_BYTES:
            del status.details[-1]
    encoded: bytes = status.SerializeToString()
    return encoded


def remote_error(error: grpc.aio.AioRpcError | grpc.RpcError) -> RemoteError:
    """Read what the server said about a failed call. Details that do not decode are left out: the status always counts."""
    status = error.code() if isinstance(error, grpc.Call | grpc.aio.AioRpcError) else grpc.StatusCode.UNKNOWN
    text = error.details() if isinstance(error, grpc.Call | grpc.aio.AioRpcError) else None
    trailing = error.trailing_metadata() if isinstance(error, grpc.Call | grpc.aio.AioRpcError) else None
    encoded = next((value for key, value in trailing or () if key == DETAILS_KEY and isinstance(value, bytes)), b"")
    rich = status_pb2.Status()
    try:
        rich.ParseFromString(encoded)
    except DecodeError:
        rich.Clear()
    reason: str | None = None
    metadata: dict[str, str] = {}
    retry_after_s: float | None = None
    fields: list[FieldViolation] = []
    quotas: list[QuotaViolation] = []
    for packed in rich.details:
        info, retry, bad = error_details_pb2.ErrorInfo(), error_details_pb2.RetryInfo(), error_details_pb2.BadRequest()
        quota = error_details_pb2.QuotaFailure()
        try:
            if packed.Unpack(info) and info.domain == ERROR_DOMAIN:
                reason, metadata = info.reason, dict(info.metadata)
            elif packed.Unpack(retry):
                retry_after_s = retry.retry_delay.ToNanoseconds() / 1e9
            elif packed.Unpack(bad):
                fields += [(violation.field, violation.description) for violation in bad.field_violations]
            elif packed.Unpack(quota):
                quotas += [(violation.subject, violation.description) for violation in quota.violations]
        except DecodeError:
            continue
    return RemoteError(
        status,
        reason,
        text or "",
        metadata=metadata,
        retry_after_s=retry_after_s,
        field_violations=fields,
        quota_violations=quotas,
    )
