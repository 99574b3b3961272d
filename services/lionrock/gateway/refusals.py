"""What stops a request before or after the engine: the caller's grants, the limits of the service, the policy's verdict.

Knows decisions and their errors; makes no calls. Fails closed: what is not known to be permitted is refused.
"""

from __future__ import annotations

from collections.abc import Sequence

from lionrock.chassis.errors import InvalidField
from lionrock.common.v1 import chat_pb2 as chat
from lionrock.common.v1 import sampling_pb2 as sampling
from lionrock.gateway import errors
from lionrock.gateway.access_policies import AccessPolicies
from lionrock.gateway.authorization import AccessRequest, Authorizer, Denial
from lionrock.gateway.generation import Generation
from lionrock.gateway.peer_errors import from_guardrails, from_inference, protocol_violation
from lionrock.gateway.tenants import Principal
from lionrock.gateway.v1 import gateway_pb2 as gw
from lionrock.guardrails.v1 import guardrails_pb2 as guard
from lionrock.inference.v1 import inference_pb2 as inf

_DENIALS: dict[Denial, type[errors.AccessDenied]] = {
    Denial.ROLE: errors.RoleNotPermitted,
    Denial.AUTHOR: errors.AuthorMayNotReview,
    Denial.REQUESTER: errors.RequesterMayNotDecide,
    Denial.PURPOSE: errors.PurposeNotPermitted,
    Denial.DATA_CLASS: errors.DataClassNotPermitted,
    Denial.MODEL: errors.ModelNotPermitted,
}


def permit(policies: Authorizer | AccessPolicies, principal: Principal, asked: AccessRequest) -> None:
    """Raise the AccessDenied of whatever does not permit the request; DecisionFailedError when nobody can tell."""
    decision = policies.decide(principal, asked)
    if decision.denial is not None:
        raise _DENIALS[decision.denial](f"not permitted: {decision.denial.name.lower().replace('_', ' ')}")


def refuse_what_is_not_offered(request: gw.ChatRequest, max_prompt_code_points: int) -> None:
    """Refuse what no model behind this gateway could be asked. Raises InvalidField, UnsupportedSamplingOption."""
    if sum(len(message.content) for message in request.messages) > max_prompt_code_points:
        rule = f"contents together: {max_prompt_code_points} code points at most"
        raise InvalidField("the conversation is too long", field_violations=[("messages", rule)])


def refuse_what_the_policy_refuses(judged: guard.InspectResponse, *, reviewable: bool = False) -> None:
    """Let through what is allowed or masked, and, where a person can decide on the answer, what needs one.

    Raises PromptBlocked, ReviewRequired, and GuardrailsUnavailable for a verdict nobody knows.
    """
    match judged.action:
        case guard.ACTION_ALLOW | guard.ACTION_MASK:
            return
        case guard.ACTION_BLOCK:
            rules = dict.fromkeys(finding.rule for finding in judged.findings if finding.action == guard.ACTION_BLOCK)
            raise errors.PromptBlocked(judged.safe_message, metadata={"rules": ",".join(list(rules)[:16])})
        case guard.ACTION_REVIEW if reviewable:
            return
        case guard.ACTION_REVIEW:
            raise errors.ReviewRequired("the policy wants a person to decide on this prompt")
    raise from_guardrails(protocol_violation("UNKNOWN_ACTION"))


def masked(messages: Sequence[chat.ChatMessage], judged: guard.InspectResponse) -> Sequence[chat.ChatMessage]:
    """Return the conversation with its masked texts in place. Raises GuardrailsUnavailable when one is missing."""
    if len(judged.masked_texts) != len(messages):
        raise from_guardrails(protocol_violation("MASKED_TEXTS_MISSING"))
    return [
        chat.ChatMessage(role=message.role, content=text, tool_call_id=message.tool_call_id)
        for message, text in zip(messages, judged.masked_texts, strict=True)
    ]


def with_tokenizer(started: inf.GenerateResponse.Started, tokenizer_digest: str) -> inf.GenerateResponse.Started:
    """Name the tokenizer that encoded the prompt in the identity of what answers: an engine sees ids only.

    Raises InferenceUnavailable when the engine was told of another tokenizer.
    """
    told = started.model.tokenizer_digest
    if told and told != tokenizer_digest:
        raise from_inference(protocol_violation("TOKENIZER_MISMATCH"))
    named = inf.GenerateResponse.Started()
    named.CopyFrom(started)
    named.model.tokenizer_digest = tokenizer_digest
    return named


def engine_reason(generation: Generation) -> sampling.FinishReason.ValueType:
    """Why the engine ended. Raises InferenceUnavailable for a reason that only we may give, or that nobody knows."""
    reason = generation.finish_reason
    if reason not in (sampling.FINISH_REASON_STOP, sampling.FINISH_REASON_LENGTH):
        raise from_inference(protocol_violation("UNKNOWN_FINISH_REASON"))
    return reason
