"""What the audit log will say of one request: collected on its way, written once when it ends.

Knows the INTENT and OUTCOME leaves; does not know how a request is answered. The outcome's event id is the request id, so that a
receipt is found again by request id without any state in the gateway. Source: audit.proto.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field

from google.protobuf import duration_pb2

from lionrock.audit.v1 import audit_pb2 as audit
from lionrock.chassis.errors import MeshError
from lionrock.chassis.ids import uuid7
from lionrock.common.v1 import context_pb2 as ctx
from lionrock.common.v1 import sampling_pb2 as sampling
from lionrock.gateway.consents.purposes import Notice
from lionrock.gateway.errors import PromptBlocked
from lionrock.gateway.verdict import Verdict
from lionrock.inference.v1 import inference_pb2 as inf

CLIENT_CANCELLED = "CLIENT_CANCELLED"
DEADLINE_EXCEEDED = "DEADLINE_EXCEEDED"


def duration(seconds: float) -> duration_pb2.Duration:
    """Seconds as the protobuf type."""
    value = duration_pb2.Duration()
    value.FromNanoseconds(round(seconds * 1e9))
    return value


@dataclass(slots=True)
class RequestRecord:
    """One request. `arrived_at` is a time of the event loop."""

    context: ctx.RequestContext
    trace_id: str
    arrived_at: float
    intent: asyncio.Task[audit.AppendResponse] | None = None
    engine: inf.GenerateResponse.Started | None = None
    prompt_verdict: Verdict | None = None
    answer_verdict: Verdict | None = None
    usage: sampling.TokenUsage | None = None
    resumptions: int = 0
    first_text_at: float | None = None
    status: audit.OutcomeStatus.ValueType = audit.OUTCOME_STATUS_UNSPECIFIED
    finish_reason: sampling.FinishReason.ValueType = sampling.FINISH_REASON_UNSPECIFIED
    reason: str = ""
    ended_at: float = 0.0
    answer_bytes: int = 0
    _released: list[str] = field(default_factory=list)
    _withheld: list[str] = field(default_factory=list)

    @property
    def model(self) -> str:
        """Name of the model that took the request; empty before."""
        return self.engine.model.model if self.engine is not None else ""

    @property
    def ended(self) -> bool:
        """Whether the outcome is decided: from then on it is written, or being written, as it is."""
        return self.status != audit.OUTCOME_STATUS_UNSPECIFIED

    def released(self, text: str) -> None:
        """Text is about to be sent: it may reach the client from now on."""
        if self.first_text_at is None:
            self.first_text_at = asyncio.get_running_loop().time()
        self._released.append(text)
        self.answer_bytes += len(text.encode())

    def withheld(self, text: str) -> None:
        """Text has passed the guardrails and is kept from the client, for a while or until a reviewer decides."""
        self._withheld.append(text)
        self.answer_bytes += len(text.encode())

    def take_withheld(self) -> str:
        """Return what was withheld, and keep it no longer."""
        text = "".join(self._withheld)
        self.answer_bytes -= len(text.encode())
        self._withheld.clear()
        return text

    @property
    def withholds(self) -> bool:
        """Whether any text is withheld."""
        return bool(self._withheld)

    def held(self, reason: sampling.FinishReason.ValueType) -> None:
        """Say that generation ended, and that all of the answer waits for a reviewer."""
        self._end(audit.OUTCOME_STATUS_HELD, "")
        self.finish_reason = reason

    def answered(self, reason: sampling.FinishReason.ValueType) -> None:
        """Say that generation ended and everything that may be shown was sent.

        A guardrail that cut the answer makes it a blocked one.
        """
        blocked = reason == sampling.FINISH_REASON_BLOCKED
        self._end(audit.OUTCOME_STATUS_BLOCKED if blocked else audit.OUTCOME_STATUS_ANSWERED, "ANSWER_BLOCKED" if blocked else "")
        self.finish_reason = reason

    def refused(self, error: MeshError) -> None:
        """Say that the request ends with an error that the client sees."""
        self._end(audit.OUTCOME_STATUS_BLOCKED if isinstance(error, PromptBlocked) else audit.OUTCOME_STATUS_FAILED, error.reason)

    def aborted(self, *, deadline_passed: bool) -> None:
        """Say that the client went away, or its time is up."""
        if deadline_passed:
            self._end(audit.OUTCOME_STATUS_FAILED, DEADLINE_EXCEEDED)
        else:
            self._end(audit.OUTCOME_STATUS_ABORTED, CLIENT_CANCELLED)

    def failed(self, reason: str) -> None:
        """Something broke that has no name at our border."""
        self._end(audit.OUTCOME_STATUS_FAILED, reason)

    @property
    def used_tokens(self) -> int:
        """Tokens of prompt and answer; none where no engine took the request."""
        return 0 if self.engine is None or self.usage is None else self.usage.prompt_tokens + self.usage.completion_tokens

    @property
    def first_text_s(self) -> float | None:
        """From arrival to the first released text, in seconds; None when there was none."""
        return None if self.first_text_at is None else self.first_text_at - self.arrived_at

    @property
    def total_s(self) -> float:
        """From arrival to the end, in seconds."""
        return self.ended_at - self.arrived_at

    def outcome(self) -> audit.AppendRequest:
        """Return the OUTCOME leaf. The intent must have ended; one that failed leaves its index unset."""
        assert self.ended
        leaf = audit.Outcome(
            status=self.status,
            finish_reason=self.finish_reason,
            reason=self.reason,
            total_time=duration(self.total_s),
            resumptions=self.resumptions,
            answer="".join(self._withheld if self.status == audit.OUTCOME_STATUS_HELD else self._released).encode(),
        )
        intent = self.intent
        if intent is not None and intent.done() and not intent.cancelled() and intent.exception() is None:
            leaf.intent_index = intent.result().position.leaf_index
        if self.engine is not None:
            leaf.model.CopyFrom(self.engine.model)
            leaf.plan.CopyFrom(self.engine.plan)
        if intent is None and self.prompt_verdict is not None:
            leaf.prompt_verdict.CopyFrom(self.prompt_verdict.summary())
        if self.answer_verdict is not None:
            leaf.answer_verdict.CopyFrom(self.answer_verdict.summary())
        if self.usage is not None:
            leaf.usage.CopyFrom(self.usage)
        if self.first_text_s is not None:
            leaf.time_to_first_token.CopyFrom(duration(self.first_text_s))
        return audit.AppendRequest(
            context=self.context, event_id=self.context.request_id, trace_id=self.trace_id, outcome=leaf, want_receipt=True
        )

    def _end(self, status: audit.OutcomeStatus.ValueType, reason: str) -> None:
        if not self.ended:
            self.status, self.reason = status, reason
            self.ended_at = asyncio.get_running_loop().time()


def intent_leaf(
    record: RequestRecord,
    *,
    model: str,
    tokenizer_digest: str,
    params: sampling.SamplingParams,
    verdict: Verdict,
    prompt_tokens: int,
    prompt: bytes,
    subject_ids: Sequence[str] = (),
    notice: Notice | None = None,
) -> audit.AppendRequest:
    """Return the INTENT leaf of a chat.

    `prompt` and the stop strings in `params` are committed to; `subject_ids` are in no leaf. `notice`: what people were told of the
    purpose.
    """
    intent = audit.Intent(
        action="chat",
        model=model,
        tokenizer_digest=tokenizer_digest,
        sampling=params,
        prompt_verdict=verdict.summary(),
        prompt_tokens=prompt_tokens,
        prompt=prompt,
        subject_ids=subject_ids,
        notice_version=0 if notice is None else notice.version,
        notice_digest="" if notice is None else notice.digest,
    )
    return audit.AppendRequest(context=record.context, event_id=uuid7(), trace_id=record.trace_id, intent=intent)
