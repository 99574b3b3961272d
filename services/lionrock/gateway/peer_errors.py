"""What an inner service's failure means to the gateway's caller.

Knows the reasons in the inner contracts and the reasons in the gateway's own. An error that the caller can mend is passed on with
the field path of the request that they sent; every other one says only which service failed, with its status and reason as
metadata, since its text was written for another reader.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import grpc
from grpc import StatusCode

from lionrock.chassis.errors import InvalidField, MeshError, Overloaded, RemoteError, remote_error
from lionrock.gateway import errors

# Of these states it is the caller who can do something, or learn something.
_CALLERS_OWN = frozenset(
    {
        StatusCode.INVALID_ARGUMENT,
        StatusCode.NOT_FOUND,
        StatusCode.FAILED_PRECONDITION,
        StatusCode.PERMISSION_DENIED,
        StatusCode.UNIMPLEMENTED,
    }
)
_WORTH_WAITING_FOR = frozenset({"KEYS_UNAVAILABLE", "LEAF_NOT_COVERED"})

Translate = Callable[[RemoteError], MeshError]


@contextmanager
def translated(translate: Translate) -> Iterator[None]:
    """Raise what `translate` makes of a failed call, of a late answer, or of a stream that the peer has already ended."""
    try:
        yield
    except grpc.aio.AioRpcError as error:
        raise translate(remote_error(error)) from error
    except TimeoutError as error:
        raise translate(_failure(StatusCode.DEADLINE_EXCEEDED, "NO_ANSWER_IN_TIME")) from error
    except asyncio.InvalidStateError as error:
        raise translate(_failure(StatusCode.UNAVAILABLE, "STREAM_ENDED")) from error


def protocol_violation(detail: str) -> RemoteError:
    """Return an answer that the contract does not allow; `detail` is a reason such as STREAM_ENDED_EARLY."""
    return _failure(StatusCode.INTERNAL, detail)


def from_guardrails(error: RemoteError) -> MeshError:
    """Anything that the caller cannot mend: GUARDRAILS_UNAVAILABLE."""
    if error.status is StatusCode.RESOURCE_EXHAUSTED:
        return _overloaded("the guardrails", error)
    if error.reason == "TEXT_TOO_LONG":
        return InvalidField("the messages are too long", field_violations=[("messages", "the contents together are too long")])
    if error.reason == "INVALID_FIELD" and (violations := _mapped(error, {"parts": "messages"})):
        return InvalidField("a message was not accepted", field_violations=violations)
    return _unavailable(errors.GuardrailsUnavailable, "the guardrails did not judge", error)


def from_tokenization(error: RemoteError) -> MeshError:
    """Anything that the caller cannot mend: TOKENIZATION_UNAVAILABLE."""
    if error.status is StatusCode.RESOURCE_EXHAUSTED:
        return _overloaded("the tokenizer", error)
    if error.reason == "MODEL_NOT_FOUND":
        return errors.ModelNotFound("no such model is served")
    violations = _mapped(error, {"conversation.messages": "messages", "request.conversation.messages": "messages"})
    if error.reason == "CHAT_TEMPLATE_REFUSED":
        violations = violations or [("messages", "the model's chat template does not accept this sequence of turns")]
        return errors.ChatTemplateRefused("the model's chat template refused the conversation", field_violations=violations)
    if error.reason == "INVALID_FIELD" and violations:
        return InvalidField("a message was not accepted", field_violations=violations)
    return _unavailable(errors.TokenizationUnavailable, "the tokenizer did not answer", error)


def from_inference(error: RemoteError) -> MeshError:
    """Anything that the caller cannot mend: INFERENCE_UNAVAILABLE."""
    if error.status is StatusCode.RESOURCE_EXHAUSTED:
        return _overloaded("the engine", error)
    fields = {"sampling": "sampling", "constraint": "constraint", "token_ids": "messages"}
    violations = _mapped(error, fields)
    match error.reason:
        case "MODEL_NOT_FOUND":
            return errors.ModelNotFound("no such model is served")
        case "PROMPT_TOO_LONG":
            too_long = [("messages", "more tokens than the context window leaves room for")]
            return errors.PromptTooLong("the prompt is too long for the model", field_violations=too_long, metadata=_numbers(error))
        case "UNSUPPORTED_SAMPLING_OPTION":
            return errors.UnsupportedSamplingOption("the engine does not offer a sampling option", field_violations=violations)
        case "UNSUPPORTED_OUTPUT_CONSTRAINT":
            return errors.UnsupportedOutputConstraint("the engine cannot enforce the constraint", field_violations=violations)
        case "INVALID_CONSTRAINT":
            return errors.InvalidConstraint("the output constraint was not accepted", field_violations=violations)
        case "INVALID_FIELD" if violations:
            return InvalidField("a sampling parameter was not accepted", field_violations=violations)
    return _unavailable(errors.InferenceUnavailable, "the engine did not answer", error)


def from_audit(error: RemoteError) -> MeshError:
    """Every failure to record: AUDIT_UNAVAILABLE, or OVERLOADED when the log says so."""
    if error.status is StatusCode.RESOURCE_EXHAUSTED:
        return _overloaded("the audit log", error)
    if error.reason == "LEAF_TOO_LARGE":
        # The leaf repeats what the caller chose freely; nothing else in it varies so much.
        fields = ("case_id", "conversation_id", "sampling.stop_token_ids")
        return InvalidField(
            "too long for one audit leaf", field_violations=[(name, "together too long to be recorded") for name in fields]
        )
    if error.reason in ("TENANT_LEAVING", "LOG_SEALED"):
        return errors.TenantLeaving("the tenant is being off-boarded, or has been: nothing is answered any more")
    return _unavailable(errors.AuditUnavailable, "the audit log did not record the request", error)


def passed_on(error: RemoteError) -> MeshError:
    """As the audit service said it, to whom a call was forwarded; what only operators can mend: AUDIT_UNAVAILABLE."""
    if error.status is StatusCode.RESOURCE_EXHAUSTED:
        return _overloaded("the audit service", error)
    if error.status not in _CALLERS_OWN and error.reason not in _WORTH_WAITING_FOR:
        return _unavailable(errors.AuditUnavailable, "the audit service did not answer", error)
    if error.reason is None:
        return _unavailable(errors.AuditUnavailable, "the audit service answered without a reason", error)
    return errors.SaidByAudit(error)


def from_audit_query(error: RemoteError) -> MeshError:
    """As from_audit, for readers: what is not in the tenant's log is RECEIPT_NOT_FOUND, whoever else may have it."""
    if error.status is StatusCode.NOT_FOUND or error.status is StatusCode.INVALID_ARGUMENT:
        return errors.ReceiptNotFound("the tenant has no answer with this request id")
    return from_audit(error)


def _failure(status: StatusCode, reason: str) -> RemoteError:
    return RemoteError(status, reason, "")


def _overloaded(what: str, error: RemoteError) -> MeshError:
    return Overloaded(f"{what} has no room", retry_after_s=error.retry_after_s or 1.0)


def _unavailable(kind: type[errors.PeerUnavailable], message: str, error: RemoteError) -> MeshError:
    metadata = {"peer_status": error.status.name, "peer_reason": error.reason or ""}
    return kind(message, metadata=metadata, retry_after_s=error.retry_after_s or 1.0)


def _numbers(error: RemoteError) -> dict[str, str]:
    """Return counts that the engine reported, such as prompt_tokens and context_window; nothing else passes."""
    return {key: value for key, value in error.metadata.items() if value.isdigit() and len(value) < 16}


def _mapped(error: RemoteError, fields: dict[str, str]) -> Sequence[tuple[str, str]]:
    """Violations of the fields named, under the names that the caller used for them."""
    mapped = []
    for path, description in error.field_violations:
        for theirs, ours in fields.items():
            if path == theirs or path.startswith((theirs + ".", theirs + "[")):
                mapped.append((ours + path[len(theirs) :].replace("].text", "].content"), description))
    return mapped
