"""From a request of OpenAI's API to the ChatRequest that the pipeline answers, and what is to be done with its answer.

Knows both forms. Where OpenAI's API has another default than ours, its own is stated: temperature 1, 16 tokens for a completion.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lionrock.chassis.errors import InvalidField
from lionrock.common.v1 import chat_pb2 as chat
from lionrock.common.v1 import sampling_pb2 as sampling
from lionrock.gateway.openai.chat_fields import ChatCompletionRequest, CompletionRequest, ResponseFormat, Sampling
from lionrock.gateway.openai.conversation import instruct, turns
from lionrock.gateway.openai.extensions import MEMBER, Extensions, data_class
from lionrock.gateway.openai.tools import ToolUse, tool_use
from lionrock.gateway.v1 import gateway_pb2 as gw

_COMPLETION_TOKENS = 16
_DEFAULT_TEMPERATURE = 1.0
_SEEDS = 2**64


@dataclass(frozen=True, slots=True)
class Asked:
    """What is asked: one ChatRequest for `choices` answers, streamed or not. `tools` is None where none may be called."""

    request: gw.ChatRequest
    choices: int
    stream: bool
    usage_in_stream: bool
    tools: ToolUse | None = None

    def of_choice(self, number: int) -> gw.ChatRequest:
        """Return the request of one answer: the same question with the seed of its number."""
        if not number or not self.request.sampling.HasField("seed"):
            return self.request
        request = gw.ChatRequest()
        request.CopyFrom(self.request)
        request.sampling.seed = (self.request.sampling.seed + number) % _SEEDS
        return request


def asked_in_chat(body: ChatCompletionRequest) -> Asked:
    """Translate a chat completion request. Raises InvalidField, UnsupportedParameter."""
    limits = {body.max_tokens, body.max_completion_tokens} - {None}
    if len(limits) > 1:
        _wrong("max_tokens", "says something else than max_completion_tokens")
    request = _request(body, turns(body.messages), next(iter(limits), None))
    tools = tool_use(body.tools, body.tool_choice)
    constraint, told = _format(body.response_format)
    if constraint is not None:
        if request.HasField("constraint"):
            _wrong("response_format", f"{MEMBER} states a constraint too")
        request.constraint.CopyFrom(constraint)
    if told:
        instruct(request, told)
    if tools is not None and request.HasField("constraint"):
        _wrong("tools", "not together with a constraint on the answer")
    if body.top_logprobs and not body.logprobs:
        _wrong("top_logprobs", "only with logprobs")
    if body.logprobs:
        if tools is not None:
            _wrong("logprobs", "not together with tools")
        request.sampling.logprobs = body.top_logprobs or 0
    return Asked(request, body.n or 1, *_streaming(body), tools)


def asked_in_completion(body: CompletionRequest) -> Asked:
    """Translate a completion request. Raises InvalidField."""
    limit = _COMPLETION_TOKENS if body.max_tokens is None else body.max_tokens
    request = _request(body, [chat.ChatMessage(role=chat.CHAT_ROLE_USER, content=body.prompt)], limit)
    if body.logprobs is not None:
        request.sampling.logprobs = body.logprobs
    return Asked(request, body.n or 1, *_streaming(body))


def _request(body: Sampling, messages: list[chat.ChatMessage], max_tokens: int | None) -> gw.ChatRequest:
    own = body.lionrock or Extensions()
    params = sampling.SamplingParams(
        temperature=_DEFAULT_TEMPERATURE if body.temperature is None else body.temperature,
        top_p=body.top_p,
        top_k=own.top_k,
        min_p=own.min_p,
        repetition_penalty=own.repetition_penalty,
        presence_penalty=body.presence_penalty,
        frequency_penalty=body.frequency_penalty,
        logit_bias=_bias(body.logit_bias or {}),
        seed=body.seed,
        max_tokens=max_tokens,
        stop=[body.stop] if isinstance(body.stop, str) else body.stop,
    )
    request = gw.ChatRequest(
        model=body.model,
        messages=messages,
        sampling=params,
        purpose=own.purpose or "",
        case_id=own.case_id or "",
        conversation_id=own.conversation_id or "",
        data_class=data_class(own.data_class),
        subject_ids=own.subject_ids,
    )
    constraint = _own_constraint(own)
    if constraint is not None:
        request.constraint.CopyFrom(constraint)
    return request


def _bias(given: Mapping[str, float]) -> dict[int, float]:
    if any(not token.isascii() or not token.isdigit() or len(token) > 10 or int(token) >= 2**32 for token in given):
        _wrong("logit_bias", "keys are token ids in decimal")
    biases = {int(token): value for token, value in given.items()}
    if len(biases) != len(given):
        _wrong("logit_bias", "a token id is written twice")
    return biases


def _own_constraint(own: Extensions) -> sampling.OutputConstraint | None:
    stated = [
        sampling.OutputConstraint(**{kind: value})  # type: ignore[arg-type]
        for kind, value in (("regex", own.regex), ("ebnf", own.ebnf))
        if value is not None
    ]
    if own.choice is not None:
        stated.append(sampling.OutputConstraint(choice=sampling.OutputConstraint.Choice(values=own.choice)))
    if len(stated) > 1:
        _wrong(MEMBER, "one of regex, ebnf and choice")
    return stated[0] if stated else None


def _format(form: ResponseFormat | None) -> tuple[sampling.OutputConstraint | None, str]:
    """Return the constraint, and what the model is told of it."""
    if form is None or form.type != "json_schema":
        if form is not None and form.json_schema is not None:
            _wrong("response_format.json_schema", "only with type json_schema")
        if form is None or form.type == "text":
            return None, ""
        return sampling.OutputConstraint(json_schema='{"type":"object"}'), ""
    if form.json_schema is None:
        _wrong("response_format.json_schema", "required")
        raise AssertionError
    schema = json.dumps(form.json_schema.schema_, ensure_ascii=False, separators=(",", ":"))
    return sampling.OutputConstraint(json_schema=schema), form.json_schema.description or ""


def _streaming(body: Sampling) -> tuple[bool, bool]:
    if body.stream_options is not None and not body.stream:
        _wrong("stream_options", "only with stream")
    options: Any = body.stream_options
    return bool(body.stream), bool(options is not None and options.include_usage)


def _wrong(field: str, rule: str) -> None:
    raise InvalidField("the request does not hold together", field_violations=[(field, rule)])
