"""One answer on its way out: what the pipeline says, as a choice of OpenAI's API with Lionrock's own member beside it.

Knows the messages of a Chat stream and both forms of an answer, whole and in chunks. Does not know HTTP.
"""

from __future__ import annotations

import base64
import hashlib
from dataclasses import dataclass, field
from datetime import UTC
from typing import Any

from google.protobuf.timestamp_pb2 import Timestamp

from lionrock.audit.v1 import audit_pb2 as audit
from lionrock.common.v1 import model_pb2 as model
from lionrock.common.v1 import sampling_pb2 as sampling
from lionrock.gateway.v1 import gateway_pb2 as gw

HELD = "This answer waits for a reviewer. / 此回答正等候人員審核。 / 此回答正等候人员审核。"
_REASONS = {
    sampling.FINISH_REASON_STOP: "stop",
    sampling.FINISH_REASON_LENGTH: "length",
    sampling.FINISH_REASON_BLOCKED: "content_filter",
    sampling.FINISH_REASON_HELD: "content_filter",
}


@dataclass(slots=True)
class Told:
    """What the pipeline said of one request."""

    started: gw.ChatResponse.Started | None = None
    finished: gw.ChatResponse.Finished | None = None
    texts: list[str] = field(default_factory=list)
    logprobs: list[gw.TokenLogprob] = field(default_factory=list)

    def take(self, response: gw.ChatResponse) -> gw.ChatResponse.Delta | None:
        """Keep a message; return what is to be shown of it."""
        match response.WhichOneof("message"):
            case "started":
                self.started = response.started
            case "delta":
                self.texts.append(response.delta.text)
                self.logprobs.extend(response.delta.logprobs)
                return response.delta
            case "finished":
                self.finished = response.finished
        return None

    @property
    def text(self) -> str:
        """The answer so far."""
        return "".join(self.texts)

    @property
    def blocked(self) -> str | None:
        """What to show in place of the rest, when a guardrail ended the answer or it waits for a reviewer."""
        if self.finished is None:
            return None
        if self.finished.HasField("held"):
            return HELD
        return self.finished.blocked.safe_message if self.finished.HasField("blocked") else None


@dataclass(slots=True)
class Choice:
    """One answer: the request that it comes from, before it the one that chose a tool, and the call that it is."""

    index: int
    answer: Told = field(default_factory=Told)
    choosing: Told | None = None
    tool: str | None = None
    logprobs: bool = False
    """Whether log-probabilities were asked for."""

    @property
    def call_id(self) -> str:
        """Id of the tool call: that of the request whose answer it is."""
        assert self.answer.started is not None
        return f"call_{self.answer.started.request_id}"

    @property
    def finish_reason(self) -> str:
        """Why it ended, in OpenAI's words."""
        assert self.answer.finished is not None
        reason = _REASONS[self.answer.finished.reason]
        return "tool_calls" if reason == "stop" and self.tool is not None else reason

    def message(self) -> dict[str, Any]:
        """Return the whole message."""
        message: dict[str, Any] = {"role": "assistant", "content": self.answer.text, "refusal": self.answer.blocked}
        if self.tool is not None:
            function = {"name": self.tool, "arguments": self.answer.text}
            message["content"] = None
            message["tool_calls"] = [{"id": self.call_id, "type": "function", "function": function}]
        return message

    def opening(self) -> dict[str, Any]:
        """Return the first delta."""
        if self.tool is None:
            return {"role": "assistant", "content": ""}
        call = {"index": 0, "id": self.call_id, "type": "function", "function": {"name": self.tool, "arguments": ""}}
        return {"role": "assistant", "content": None, "tool_calls": [call]}

    def delta(self, text: str) -> dict[str, Any]:
        """Return the delta of more text."""
        if self.tool is None:
            return {"content": text}
        return {"tool_calls": [{"index": 0, "function": {"arguments": text}}]}

    def proofs(self) -> list[dict[str, Any]]:
        """Return what proves each request that this took."""
        return [proof(told, self.index, step) for told, step in ((self.choosing, "choose_tool"), (self.answer, "answer")) if told]


def proof(told: Told, index: int, step: str) -> dict[str, Any]:
    """Return Lionrock's member of one request: identity of what answered, receipt, and the salts that open it (Base64)."""
    started, finished = told.started, told.finished
    assert started is not None
    assert finished is not None
    shown: dict[str, Any] = {
        "index": index,
        "step": step,
        "request_id": started.request_id,
        "trace_id": started.trace_id,
        "seed": started.seed,
        "model": {
            "name": started.model.model,
            "weights_digest": started.model.weights_digest,
            "tokenizer_digest": started.model.tokenizer_digest,
            "engine": started.model.engine,
        },
        "receipt": receipt(finished.receipt),
        "answer_salt": base64.b64encode(finished.answer_salt).decode(),
        "prompt_salt": base64.b64encode(finished.prompt_salt).decode(),
        "masked": {"prompt": len(started.prompt_findings), "answer": len(finished.answer_findings)},
    }
    if finished.logprobs_withheld:
        shown["logprobs_withheld"] = finished.logprobs_withheld
    if finished.HasField("held"):
        del shown["answer_salt"]  # it would open what nobody was shown
        shown["review"] = review(started.request_id, "pending", finished.held.expires_at)
    if finished.HasField("blocked"):
        shown["blocked"] = {"rule": finished.blocked.rule, "message": finished.blocked.safe_message}
    return shown


def review(request_id: str, state: str, expires_at: Timestamp) -> dict[str, Any]:
    """Return what became of an answer that was held: pending, released, refused or expired, and where to ask again."""
    return {
        "state": state,
        "request_id": request_id,
        "expires_at": expires_at.ToDatetime(tzinfo=UTC).isoformat(timespec="seconds").replace("+00:00", "Z"),
        "path": f"/v1/lionrock/held-answers/{request_id}",
    }


def receipt(proven: audit.Receipt) -> dict[str, Any]:
    """Return a receipt as this API shows it."""
    position = proven.position
    return {"tlog_proof": proven.tlog_proof, "origin": position.origin, "leaf_index": position.leaf_index}


def usage(choices: list[Choice]) -> dict[str, Any]:
    """Return the counts of all requests that were made."""
    requests = [told for choice in choices for told in (choice.choosing, choice.answer) if told is not None and told.finished]
    counts = [told.finished.usage for told in requests if told.finished is not None]
    prompt, completion = sum(each.prompt_tokens for each in counts), sum(each.completion_tokens for each in counts)
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": {"cached_tokens": sum(each.cached_prompt_tokens for each in counts)},
    }


def fingerprint(identity: model.ModelIdentity) -> str:
    """Return a short name of what answered: another one, other weights, tokenizer or engine."""
    parts = (identity.model, identity.weights_digest, identity.tokenizer_digest, identity.engine)
    return "fp_" + hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]
