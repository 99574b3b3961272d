"""What can go wrong at the door, as callers see it.

    MeshError
    ├── CredentialMissing           UNAUTHENTICATED       CREDENTIAL_MISSING
    ├── TokenInvalid                UNAUTHENTICATED       TOKEN_INVALID
    ├── TokenExpired                UNAUTHENTICATED       TOKEN_EXPIRED
    ├── UnknownPrincipal            UNAUTHENTICATED       UNKNOWN_PRINCIPAL
    ├── ApiKeysUnavailable          UNAVAILABLE           API_KEYS_UNAVAILABLE
    ├── ScopeNotHeld                PERMISSION_DENIED     SCOPE_NOT_HELD
    ├── ApiKeyNotFound              NOT_FOUND             API_KEY_NOT_FOUND
    ├── TooManyApiKeys              FAILED_PRECONDITION   TOO_MANY_API_KEYS
    ├── EmergencyNotFound           NOT_FOUND             EMERGENCY_NOT_FOUND
    ├── EmergencyDecided            FAILED_PRECONDITION   EMERGENCY_DECIDED
    ├── TooManyEmergencies          FAILED_PRECONDITION   TOO_MANY_EMERGENCIES
    ├── AccessDenied                PERMISSION_DENIED
    │   ├── RoleNotPermitted                              ROLE_NOT_PERMITTED
    │   ├── AuthorMayNotReview                            AUTHOR_MAY_NOT_REVIEW
    │   ├── RequesterMayNotDecide                         REQUESTER_MAY_NOT_DECIDE
    │   ├── PurposeNotPermitted                           PURPOSE_NOT_PERMITTED
    │   ├── DataClassNotPermitted                         DATA_CLASS_NOT_PERMITTED
    │   └── ModelNotPermitted                             MODEL_NOT_PERMITTED
    ├── ConsentMissing              PERMISSION_DENIED     CONSENT_MISSING
    ├── OptedOut                    PERMISSION_DENIED     OPTED_OUT
    ├── ConsentSubjectMissing       INVALID_ARGUMENT      CONSENT_SUBJECT_MISSING
    ├── ConsentNotFound             NOT_FOUND             CONSENT_NOT_FOUND
    ├── NoticeNotFound              NOT_FOUND             NOTICE_NOT_FOUND
    ├── TooManyConsents             FAILED_PRECONDITION   TOO_MANY_CONSENTS
    ├── TenantLeaving               FAILED_PRECONDITION   TENANT_LEAVING
    ├── PromptBlocked               PERMISSION_DENIED     PROMPT_BLOCKED
    ├── ReviewRequired              PERMISSION_DENIED     REVIEW_REQUIRED
    ├── ReviewQueueFull             RESOURCE_EXHAUSTED    REVIEW_QUEUE_FULL
    ├── ReviewNotFound              NOT_FOUND             REVIEW_NOT_FOUND
    ├── AlreadyDecided              FAILED_PRECONDITION   ALREADY_DECIDED
    ├── PromptTooLong               INVALID_ARGUMENT      PROMPT_TOO_LONG
    ├── ChatTemplateRefused         INVALID_ARGUMENT      CHAT_TEMPLATE_REFUSED
    ├── UnsupportedParameter        INVALID_ARGUMENT      UNSUPPORTED_PARAMETER      (HTTP)
    ├── EmbeddingsUnsupported       UNIMPLEMENTED         EMBEDDINGS_UNSUPPORTED     (HTTP)
    ├── UnsupportedSamplingOption   UNIMPLEMENTED         UNSUPPORTED_SAMPLING_OPTION
    ├── UnsupportedOutputConstraint UNIMPLEMENTED         UNSUPPORTED_OUTPUT_CONSTRAINT
    ├── InvalidConstraint           INVALID_ARGUMENT      INVALID_CONSTRAINT
    ├── ModelNotFound               NOT_FOUND             MODEL_NOT_FOUND
    ├── ReceiptNotFound             NOT_FOUND             RECEIPT_NOT_FOUND
    ├── TenantQuota                 RESOURCE_EXHAUSTED    TENANT_QUOTA
    ├── SharedStateUnavailable      UNAVAILABLE           STATE_UNAVAILABLE
    ├── SaidByAudit                 as the audit service said it, for calls that are forwarded to it
    └── PeerUnavailable             UNAVAILABLE
        ├── AuditUnavailable                              AUDIT_UNAVAILABLE
        ├── GuardrailsUnavailable                         GUARDRAILS_UNAVAILABLE
        ├── TokenizationUnavailable                       TOKENIZATION_UNAVAILABLE
        └── InferenceUnavailable                          INFERENCE_UNAVAILABLE

and from the chassis InvalidField, Overloaded, DeadlineTooShort, DeadlineExceeded, ShuttingDown, Internal. No message carries text
of a prompt or an answer; `request_id` in the metadata finds the request in the audit log.
"""

from __future__ import annotations

from grpc import StatusCode

from lionrock.chassis.errors import MeshError, RemoteError


class CredentialMissing(MeshError):
    """Neither a client certificate nor a bearer token was presented."""

    status, reason = StatusCode.UNAUTHENTICATED, "CREDENTIAL_MISSING"


class TokenInvalid(MeshError):
    """The bearer token is not accepted; metadata `why`: MALFORMED, NOT_ACCEPTED, NOT_YET_VALID or TOO_OLD."""

    status, reason = StatusCode.UNAUTHENTICATED, "TOKEN_INVALID"


class TokenExpired(MeshError):
    """The bearer token was good until its time ran out: get a new one."""

    status, reason = StatusCode.UNAUTHENTICATED, "TOKEN_EXPIRED"


class UnknownPrincipal(MeshError):
    """The credential is good, but no tenant grants anything to whom it names."""

    status, reason = StatusCode.UNAUTHENTICATED, "UNKNOWN_PRINCIPAL"


class ApiKeysUnavailable(MeshError):
    """API keys cannot be checked or changed at the moment, because the gateways' shared state cannot be reached."""

    status, reason = StatusCode.UNAVAILABLE, "API_KEYS_UNAVAILABLE"


class ScopeNotHeld(MeshError):
    """An API key may do no more than who makes it; the field violations say where it would."""

    status, reason = StatusCode.PERMISSION_DENIED, "SCOPE_NOT_HELD"


class ApiKeyNotFound(MeshError):
    """The caller's tenant has no such API key, or it has ended or has a successor already."""

    status, reason = StatusCode.NOT_FOUND, "API_KEY_NOT_FOUND"


class TooManyApiKeys(MeshError):
    """The tenant has as many API keys as it may: revoke one that is not used."""

    status, reason = StatusCode.FAILED_PRECONDITION, "TOO_MANY_API_KEYS"


class EmergencyNotFound(MeshError):
    """The caller's tenant has no such emergency, or none that the caller may know of."""

    status, reason = StatusCode.NOT_FOUND, "EMERGENCY_NOT_FOUND"


class EmergencyDecided(MeshError):
    """The emergency is approved, denied or over, or somebody decides on it at this moment."""

    status, reason = StatusCode.FAILED_PRECONDITION, "EMERGENCY_DECIDED"


class TooManyEmergencies(MeshError):
    """The caller has an emergency that is asked for or in force, or the tenant has as many as it may."""

    status, reason = StatusCode.FAILED_PRECONDITION, "TOO_MANY_EMERGENCIES"


class AccessDenied(MeshError):
    """The tenant's grants do not permit the request."""

    status = StatusCode.PERMISSION_DENIED


class RoleNotPermitted(AccessDenied):
    """None of the caller's roles permits this call."""

    reason = "ROLE_NOT_PERMITTED"


class AuthorMayNotReview(AccessDenied):
    """An answer is reviewed by somebody else than who asked for it."""

    reason = "AUTHOR_MAY_NOT_REVIEW"


class RequesterMayNotDecide(AccessDenied):
    """An emergency is decided on by somebody else than who asked for it."""

    reason = "REQUESTER_MAY_NOT_DECIDE"


class PurposeNotPermitted(AccessDenied):
    """The credential does not permit the stated purpose."""

    reason = "PURPOSE_NOT_PERMITTED"


class DataClassNotPermitted(AccessDenied):
    """The credential does not permit data of the declared class."""

    reason = "DATA_CLASS_NOT_PERMITTED"


class ModelNotPermitted(AccessDenied):
    """The credential does not permit this model, whether or not it is served."""

    reason = "MODEL_NOT_PERMITTED"


class ConsentMissing(MeshError):
    """The purpose needs the consent of each data subject, and of one none holds; the field violations say which."""

    status, reason = StatusCode.PERMISSION_DENIED, "CONSENT_MISSING"


class OptedOut(MeshError):
    """A data subject of the request opted out of answers by AI; the field violations say which."""

    status, reason = StatusCode.PERMISSION_DENIED, "OPTED_OUT"


class ConsentSubjectMissing(MeshError):
    """The purpose needs the consent of each data subject, and the request names none."""

    status, reason = StatusCode.INVALID_ARGUMENT, "CONSENT_SUBJECT_MISSING"


class ConsentNotFound(MeshError):
    """The caller's tenant has recorded nothing of the kind for the data subject, or it has ended."""

    status, reason = StatusCode.NOT_FOUND, "CONSENT_NOT_FOUND"


class NoticeNotFound(MeshError):
    """The caller's tenant has no such purpose, or no notice for it."""

    status, reason = StatusCode.NOT_FOUND, "NOTICE_NOT_FOUND"


class TooManyConsents(MeshError):
    """The tenant has as many consents and opt-outs as it may."""

    status, reason = StatusCode.FAILED_PRECONDITION, "TOO_MANY_CONSENTS"


class TenantLeaving(MeshError):
    """The tenant is being off-boarded, or has been: no request of it is answered any more."""

    status, reason = StatusCode.FAILED_PRECONDITION, "TENANT_LEAVING"


class PromptBlocked(MeshError):
    """A guardrail refused the prompt: the message may be shown to the user, and metadata `rules` names the rules."""

    status, reason = StatusCode.PERMISSION_DENIED, "PROMPT_BLOCKED"


class ReviewRequired(MeshError):
    """A person has to decide on this answer, and the tenant has no queue for them."""

    status, reason = StatusCode.PERMISSION_DENIED, "REVIEW_REQUIRED"


class ReviewQueueFull(MeshError):
    """As many of the tenant's answers wait for a reviewer as may; the answer was not kept."""

    status, reason = StatusCode.RESOURCE_EXHAUSTED, "REVIEW_QUEUE_FULL"


class ReviewNotFound(MeshError):
    """The caller's tenant has no held answer of this request, or none that the caller may know of."""

    status, reason = StatusCode.NOT_FOUND, "REVIEW_NOT_FOUND"


class AlreadyDecided(MeshError):
    """Somebody has decided on this answer, or the time to decide is up."""

    status, reason = StatusCode.FAILED_PRECONDITION, "ALREADY_DECIDED"


class PromptTooLong(MeshError):
    """The prompt has more tokens than the model's context window leaves room for."""

    status, reason = StatusCode.INVALID_ARGUMENT, "PROMPT_TOO_LONG"


class ChatTemplateRefused(MeshError):
    """The model's chat template does not accept this sequence of turns."""

    status, reason = StatusCode.INVALID_ARGUMENT, "CHAT_TEMPLATE_REFUSED"


class UnsupportedParameter(MeshError):
    """A request over HTTP has a field that is not offered, or is not known; the field violation says which, and why not."""

    status, reason = StatusCode.INVALID_ARGUMENT, "UNSUPPORTED_PARAMETER"


class EmbeddingsUnsupported(MeshError):
    """No model that is served makes embeddings."""

    status, reason = StatusCode.UNIMPLEMENTED, "EMBEDDINGS_UNSUPPORTED"


class UnsupportedSamplingOption(MeshError):
    """The model's engine does not offer a sampling option that was asked for."""

    status, reason = StatusCode.UNIMPLEMENTED, "UNSUPPORTED_SAMPLING_OPTION"


class UnsupportedOutputConstraint(MeshError):
    """The model's engine cannot enforce the output constraint."""

    status, reason = StatusCode.UNIMPLEMENTED, "UNSUPPORTED_OUTPUT_CONSTRAINT"


class InvalidConstraint(MeshError):
    """The output constraint is malformed, matches nothing, or asks for more than is enforced; the field violation says what."""

    status, reason = StatusCode.INVALID_ARGUMENT, "INVALID_CONSTRAINT"


class ModelNotFound(MeshError):
    """No such model is served."""

    status, reason = StatusCode.NOT_FOUND, "MODEL_NOT_FOUND"


class ReceiptNotFound(MeshError):
    """The caller's tenant has no answer with this request id."""

    status, reason = StatusCode.NOT_FOUND, "RECEIPT_NOT_FOUND"


class TenantQuota(MeshError):
    """A quota of the tenant, or of the caller within it, is used up; QuotaFailure names it, RetryInfo says when to come back."""

    status, reason = StatusCode.RESOURCE_EXHAUSTED, "TENANT_QUOTA"


class SharedStateUnavailable(MeshError):
    """What gateways share cannot be reached, and nobody is let in uncounted or unchecked."""

    status, reason = StatusCode.UNAVAILABLE, "STATE_UNAVAILABLE"


class SaidByAudit(MeshError):
    """Status, reason and details of the audit service, which are in its own part of the table."""

    def __init__(self, said: RemoteError) -> None:
        assert said.reason is not None
        super().__init__(
            said.message, metadata=said.metadata, retry_after_s=said.retry_after_s, field_violations=said.field_violations
        )
        self.status = said.status  # type: ignore[misc]  # of the one error that came
        self.reason = said.reason  # type: ignore[misc]


class PeerUnavailable(MeshError):
    """An inner service failed; metadata `peer_status` and `peer_reason` say how."""

    status = StatusCode.UNAVAILABLE


class AuditUnavailable(PeerUnavailable):
    """The audit log cannot record the request, and nothing is answered without a record."""

    reason = "AUDIT_UNAVAILABLE"


class GuardrailsUnavailable(PeerUnavailable):
    """The guardrails cannot judge, and nothing is answered unjudged."""

    reason = "GUARDRAILS_UNAVAILABLE"


class TokenizationUnavailable(PeerUnavailable):
    """The tokenizer failed."""

    reason = "TOKENIZATION_UNAVAILABLE"


class InferenceUnavailable(PeerUnavailable):
    """No engine takes the request, or it was lost and could not be resumed in time."""

    reason = "INFERENCE_UNAVAILABLE"
