"""The messages of a Chat stream, from what is known of the request, and a quota as it is shown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from lionrock.audit.v1 import audit_pb2 as audit
from lionrock.common.v1 import sampling_pb2 as sampling
from lionrock.gateway.answer_logprobs import AnswerLogprobs
from lionrock.gateway.quotas.ledger import Use
from lionrock.gateway.record import RequestRecord, duration
from lionrock.gateway.v1 import gateway_pb2 as gw
from lionrock.gateway.verdict import Verdict
from lionrock.guardrails.v1 import guardrails_pb2 as guard
from lionrock.inference.v1 import inference_pb2 as inf


def started(
    record: RequestRecord, engine: inf.GenerateResponse.Started, seed: int, prompt: Verdict, disclosure: Mapping[str, str]
) -> gw.ChatResponse:
    """Return the first message. `disclosure`: what the tenant says to readers, by language."""
    return gw.ChatResponse(
        started=gw.ChatResponse.Started(
            request_id=record.context.request_id,
            trace_id=record.trace_id,
            model=engine.model,
            seed=seed,
            prompt_findings=prompt.masked,
            ai_disclosure=dict(disclosure),
        )
    )


def finished(
    record: RequestRecord,
    intent: audit.AppendResponse,
    outcome: audit.AppendResponse,
    blocked: guard.Blocked | None,
    logprobs: AnswerLogprobs | None,
) -> gw.ChatResponse:
    """Return the last message."""
    last = gw.ChatResponse.Finished(
        reason=record.finish_reason,
        usage=record.usage,
        receipt=outcome.receipt,
        answer_salt=outcome.salt,
        prompt_salt=intent.salt,
        answer_findings=record.answer_verdict.masked if record.answer_verdict is not None else (),
        logprobs_withheld=0 if logprobs is None else logprobs.withheld,
    )
    if blocked is not None:
        last.blocked.CopyFrom(blocked)
    if record.first_text_s is not None:
        last.time_to_first_token.CopyFrom(duration(record.first_text_s))
    return gw.ChatResponse(finished=last)


def held(record: RequestRecord, intent: audit.AppendResponse, outcome: audit.AppendResponse, expires_at_us: int) -> gw.ChatResponse:
    """Return the last message of an answer that waits for a reviewer: nothing in it opens or describes the text."""
    last = gw.ChatResponse.Finished(
        reason=sampling.FINISH_REASON_HELD, usage=record.usage, receipt=outcome.receipt, prompt_salt=intent.salt
    )
    last.held.expires_at.FromMicroseconds(expires_at_us)
    return gw.ChatResponse(finished=last)


def delta(text: str, tokens: int, logprobs: Sequence[gw.TokenLogprob] = ()) -> gw.ChatResponse:
    """Released text, the tokens generated since the last, and what may be told of those whose text was released."""
    return gw.ChatResponse(delta=gw.ChatResponse.Delta(text=text, tokens=tokens, logprobs=logprobs))


def quota_use(use: Use) -> gw.QuotaUse:
    """Return how much of one quota is taken."""
    shown = gw.QuotaUse(name=use.budget.quota, principal=use.budget.principal, limit=use.limit, taken=use.taken)
    if use.resets_at_us is not None:
        shown.resets_at.FromMicroseconds(use.resets_at_us)
    return shown
