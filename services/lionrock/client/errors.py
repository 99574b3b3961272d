"""What a caller of the mesh can catch.

    LionrockError
    ├── MeshNotRunning                          connect_local found no mesh
    ├── TokenUnusable                           tokens.py: there is no token where one was promised
    ├── StreamBroken                            the answer ended without its last message
    └── CallError                               the gateway said no; status, reason, message, metadata, request_id
        ├── NotAuthenticated                    UNAUTHENTICATED
        ├── NotPermitted                        PERMISSION_DENIED
        │   └── PromptBlocked                   PROMPT_BLOCKED: rules, safe_message
        ├── InvalidRequest                      INVALID_ARGUMENT: field_violations
        │   └── PromptTooLong                   PROMPT_TOO_LONG
        ├── NotFound                            NOT_FOUND
        │   ├── ModelNotFound                   MODEL_NOT_FOUND
        │   └── ReceiptNotFound                 RECEIPT_NOT_FOUND
        ├── NotSupported                        UNIMPLEMENTED: field_violations
        ├── ResourceExhausted                   RESOURCE_EXHAUSTED: retry_after_s
        │   ├── TenantQuota                     TENANT_QUOTA
        │   └── Overloaded                      OVERLOADED
        ├── Unavailable                         UNAVAILABLE: retry_after_s
        │   ├── AuditUnavailable                AUDIT_UNAVAILABLE
        │   ├── GuardrailsUnavailable           GUARDRAILS_UNAVAILABLE
        │   ├── TokenizationUnavailable         TOKENIZATION_UNAVAILABLE
        │   ├── InferenceUnavailable            INFERENCE_UNAVAILABLE
        │   └── Unreachable                     no gateway answered at all
        ├── DeadlineExceeded                    DEADLINE_EXCEEDED
        ├── CallCancelled                       CANCELLED
        └── ServerFault                         every other status

An error without ErrorInfo did not come from a gateway's own code. Messages quote no prompt and no answer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from grpc import StatusCode

from lionrock.chassis.errors import RemoteError


class LionrockError(Exception):
    """Anything that this package raises."""


class MeshNotRunning(LionrockError):
    """The state directory describes no running mesh."""


class StreamBroken(LionrockError):
    """The stream ended, or carried a message out of order, before `finished`: what was received is no complete answer."""


class CallError(LionrockError):
    """A call that failed. `reason` is None where no gateway answered."""

    def __init__(self, error: RemoteError) -> None:
        super().__init__(str(error))
        self.status = error.status
        self.reason = error.reason
        self.message = error.message
        self.quota_violations: Sequence[tuple[str, str]] = error.quota_violations
        self.metadata: Mapping[str, str] = error.metadata
        self.retry_after_s = error.retry_after_s
        self.field_violations: Sequence[tuple[str, str]] = tuple(error.field_violations)

    @property
    def request_id(self) -> str | None:
        """Id of the request in the audit log; None when it was refused before it got one."""
        return self.metadata.get("request_id")


class NotAuthenticated(CallError):
    """The gateway does not know this identity."""


class NotPermitted(CallError):
    """Role, purpose, data class or model: `reason` says which of them the grants do not permit."""


class PromptBlocked(NotPermitted):
    """A guardrail refused the prompt."""

    @property
    def safe_message(self) -> str:
        """What to show to the user, in the language of their text."""
        return self.message

    @property
    def rules(self) -> Sequence[str]:
        """Rules that refused."""
        return tuple(rule for rule in self.metadata.get("rules", "").split(",") if rule)


class InvalidRequest(CallError):
    """A field is not acceptable: see `field_violations`, pairs of path and description."""


class PromptTooLong(InvalidRequest):
    """The prompt has more tokens than the model's context window leaves room for."""


class NotFound(CallError):
    """What was named does not exist, or not for this caller."""


class ModelNotFound(NotFound):
    """No such model is served."""


class ReceiptNotFound(NotFound):
    """The tenant has no answer with this request id."""


class NotSupported(CallError):
    """The engine does not offer an option, or the gateway has no such method."""


class ResourceExhausted(CallError):
    """Too much at a time: come back after `retry_after_s` seconds."""


class TenantQuota(ResourceExhausted):
    """The tenant's, or the caller's, own limit."""


class Overloaded(ResourceExhausted):
    """The mesh has no room."""


class Unavailable(CallError):
    """A part of the mesh does not answer; nothing was answered in its place."""


class AuditUnavailable(Unavailable):
    """The audit log cannot record."""


class GuardrailsUnavailable(Unavailable):
    """The guardrails cannot judge."""


class TokenizationUnavailable(Unavailable):
    """The tokenizer failed."""


class InferenceUnavailable(Unavailable):
    """No engine takes the request, or it was lost."""


class Unreachable(Unavailable):
    """No gateway answered: wrong address, none running, or one of the two sides does not trust the other's certificate."""


class DeadlineExceeded(CallError):
    """The deadline passed before the answer was complete."""


class CallCancelled(CallError):
    """The call was cancelled, by this side or by the server."""


class ServerFault(CallError):
    """A defect of the mesh; metadata `error_id` finds it in the gateway's log."""


_BY_REASON: Mapping[str, type[CallError]] = {
    "PROMPT_BLOCKED": PromptBlocked,
    "PROMPT_TOO_LONG": PromptTooLong,
    "MODEL_NOT_FOUND": ModelNotFound,
    "RECEIPT_NOT_FOUND": ReceiptNotFound,
    "TENANT_QUOTA": TenantQuota,
    "OVERLOADED": Overloaded,
    "AUDIT_UNAVAILABLE": AuditUnavailable,
    "GUARDRAILS_UNAVAILABLE": GuardrailsUnavailable,
    "TOKENIZATION_UNAVAILABLE": TokenizationUnavailable,
    "INFERENCE_UNAVAILABLE": InferenceUnavailable,
}
_BY_STATUS: Mapping[StatusCode, type[CallError]] = {
    StatusCode.UNAUTHENTICATED: NotAuthenticated,
    StatusCode.PERMISSION_DENIED: NotPermitted,
    StatusCode.INVALID_ARGUMENT: InvalidRequest,
    StatusCode.NOT_FOUND: NotFound,
    StatusCode.UNIMPLEMENTED: NotSupported,
    StatusCode.RESOURCE_EXHAUSTED: ResourceExhausted,
    StatusCode.UNAVAILABLE: Unavailable,
    StatusCode.DEADLINE_EXCEEDED: DeadlineExceeded,
    StatusCode.CANCELLED: CallCancelled,
}


def call_error(error: RemoteError) -> CallError:
    """Return the typed error of a failed call. A reason counts only with the status that belongs to it."""
    by_status = _BY_STATUS.get(error.status, ServerFault)
    by_reason = _BY_REASON.get(error.reason or "", by_status)
    if by_status is Unavailable and error.reason is None:
        return Unreachable(error)
    return (by_reason if issubclass(by_reason, by_status) else by_status)(error)
