"""Every field of a request over HTTP: taken at its word, or refused by name. None is ignored.

One request a field: `SUPPORTED` says how a field shows in what the pipeline gets, `REFUSED` what must fail. A field of the API
that is in neither fails a test, and so does one of the official client's that the API does not know.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from openai.types import completion_create_params
from openai.types.chat import completion_create_params as chat_create_params

from http_calls import body
from lionrock.chassis.errors import InvalidField, MalformedRequest, MeshError
from lionrock.common.v1 import chat_pb2 as chat
from lionrock.common.v1 import context_pb2 as ctx
from lionrock.gateway.errors import UnsupportedParameter
from lionrock.gateway.openai.asking import Asked, asked_in_chat, asked_in_completion
from lionrock.gateway.openai.chat_fields import ChatCompletionRequest, CompletionRequest
from lionrock.gateway.openai.documents import openapi, rows, table
from lionrock.gateway.openai.parsing import parsed
from lionrock.gateway.openai.problems import problem

SCOPE: dict[str, Any] = {"headers": []}
USER = [{"role": "user", "content": "Say hello."}]
FUNCTION = {"name": "look", "description": "Look.", "parameters": {"type": "object"}, "strict": True}
TOOLS = [{"type": "function", "function": FUNCTION}]
SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}}
CALL = {"id": "call_1", "type": "function", "function": {"name": "look", "arguments": "{}"}}


def chat_of(**members: Any) -> Asked:
    return asked_in_chat(parsed(ChatCompletionRequest, json.dumps(body(**members)).encode(), SCOPE))


def completion_of(**members: Any) -> Asked:
    asked = {"model": "m", "prompt": "Once", **members}
    return asked_in_completion(parsed(CompletionRequest, json.dumps(asked).encode(), SCOPE))


def own(**members: Any) -> dict[str, Any]:
    return {"lionrock": members}


def answered(*messages: dict[str, Any]) -> dict[str, Any]:
    return {"messages": [*USER, *messages]}


def sampled(name: str, value: Any) -> Callable[[Asked], bool]:
    return lambda asked: getattr(asked.request.sampling, name) == pytest.approx(value)


def turn(number: int, content: str) -> Callable[[Asked], bool]:
    return lambda asked: asked.request.messages[number].content == content


def form(**members: Any) -> dict[str, Any]:
    return {"response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": SCHEMA, **members}}}


def schema_of(asked: Asked) -> Any:
    return json.loads(asked.request.constraint.json_schema)


def look_of(asked: Asked) -> Any:
    assert asked.tools is not None
    return asked.tools.functions["look"]


def told(asked: Asked) -> str:
    assert asked.tools is not None
    return asked.tools.calling(asked.request, "look").messages[0].content


Case = tuple[dict[str, Any], Callable[[Asked], Any]]
SUPPORTED: dict[str, Case] = {
    "model": ({"model": "parrot"}, lambda asked: asked.request.model == "parrot"),
    "stream": ({"stream": True}, lambda asked: asked.stream),
    "stream_options": ({"stream": True, "stream_options": {"include_usage": True}}, lambda asked: asked.usage_in_stream),
    "stream_options.include_usage": (
        {"stream": True, "stream_options": {"include_usage": False}},
        lambda asked: not asked.usage_in_stream,
    ),
    "temperature": ({"temperature": 0.5}, sampled("temperature", 0.5)),
    "top_p": ({"top_p": 0.5}, sampled("top_p", 0.5)),
    "n": ({"n": 3, "seed": 1}, lambda asked: [asked.of_choice(i).sampling.seed for i in range(asked.choices)] == [1, 2, 3]),
    "stop": ({"stop": ["a", "b"]}, lambda asked: list(asked.request.sampling.stop) == ["a", "b"]),
    "max_tokens": ({"max_tokens": 7}, sampled("max_tokens", 7)),
    "max_completion_tokens": ({"max_completion_tokens": 8}, sampled("max_tokens", 8)),
    "presence_penalty": ({"presence_penalty": 0.5}, sampled("presence_penalty", 0.5)),
    "frequency_penalty": ({"frequency_penalty": 0.5}, sampled("frequency_penalty", 0.5)),
    "logit_bias": ({"logit_bias": {"5": -1}}, lambda asked: dict(asked.request.sampling.logit_bias) == {5: -1.0}),
    "seed": ({"seed": 2**63}, sampled("seed", 2**63)),
    "lionrock": (own(case_id="C"), lambda asked: asked.request.case_id == "C"),
    "lionrock.purpose": (own(purpose="drafting"), lambda asked: asked.request.purpose == "drafting"),
    "lionrock.case_id": (own(case_id="C"), lambda asked: asked.request.case_id == "C"),
    "lionrock.conversation_id": (own(conversation_id="T"), lambda asked: asked.request.conversation_id == "T"),
    "lionrock.data_class": (own(data_class="public"), lambda asked: asked.request.data_class == ctx.DATA_CLASS_PUBLIC),
    "lionrock.subject_ids": (own(subject_ids=["a", "b"]), lambda asked: list(asked.request.subject_ids) == ["a", "b"]),
    "lionrock.top_k": (own(top_k=5), sampled("top_k", 5)),
    "lionrock.min_p": (own(min_p=0.5), sampled("min_p", 0.5)),
    "lionrock.repetition_penalty": (own(repetition_penalty=1.5), sampled("repetition_penalty", 1.5)),
    "lionrock.regex": (own(regex="a+"), lambda asked: asked.request.constraint.regex == "a+"),
    "lionrock.ebnf": (own(ebnf='root ::= "a"'), lambda asked: asked.request.constraint.ebnf == 'root ::= "a"'),
    "lionrock.choice": (own(choice=["a"]), lambda asked: list(asked.request.constraint.choice.values) == ["a"]),
    "messages": (answered(), turn(0, "Say hello.")),
    "messages[].role": (
        {"messages": [{"role": "developer", "content": "x"}, *USER]},
        lambda asked: asked.request.messages[0].role == chat.CHAT_ROLE_SYSTEM,
    ),
    "messages[].content": (answered({"role": "user", "content": "More."}), turn(1, "More.")),
    "messages[].content[].type": (answered({"role": "user", "content": [{"type": "text", "text": "x"}]}), turn(1, "x")),
    "messages[].content[].text": (
        answered({"role": "user", "content": [{"type": "text", "text": "x"}, {"type": "text", "text": "y"}]}),
        turn(1, "x\ny"),
    ),
    "messages[].content[].refusal": (
        answered({"role": "assistant", "content": [{"type": "refusal", "refusal": "no"}]}),
        turn(1, "no"),
    ),
    "messages[].tool_call_id": (
        answered({"role": "tool", "tool_call_id": "c", "content": "x"}),
        lambda asked: asked.request.messages[1].tool_call_id == "c",
    ),
    "messages[].tool_calls": (
        answered({"role": "assistant", "tool_calls": [CALL]}),
        turn(1, '{"name": "look", "arguments": {}}'),
    ),
    "messages[].tool_calls[].id": (answered({"role": "assistant", "tool_calls": [CALL]}), lambda asked: asked),
    "messages[].tool_calls[].type": (answered({"role": "assistant", "tool_calls": [CALL]}), lambda asked: asked),
    "messages[].tool_calls[].function": (
        answered({"role": "assistant", "tool_calls": [CALL]}),
        turn(1, '{"name": "look", "arguments": {}}'),
    ),
    "messages[].tool_calls[].function.name": (
        answered({"role": "assistant", "tool_calls": [CALL]}),
        lambda asked: "look" in asked.request.messages[1].content,
    ),
    "messages[].tool_calls[].function.arguments": (
        answered({"role": "assistant", "tool_calls": [CALL]}),
        lambda asked: "{}" in asked.request.messages[1].content,
    ),
    "messages[].refusal": (answered({"role": "assistant", "content": None, "refusal": "no"}), turn(1, "no")),
    "response_format": (
        {"response_format": {"type": "json_object"}},
        lambda asked: schema_of(asked) == {"type": "object"},
    ),
    "response_format.type": ({"response_format": {"type": "text"}}, lambda asked: not asked.request.HasField("constraint")),
    "response_format.json_schema": (form(), lambda asked: schema_of(asked) == SCHEMA),
    "response_format.json_schema.name": (form(name="b"), lambda asked: schema_of(asked) == SCHEMA),
    "response_format.json_schema.description": (form(description="Count."), turn(0, "Count.")),
    "response_format.json_schema.schema": (form(), lambda asked: schema_of(asked) == SCHEMA),
    "response_format.json_schema.strict": (form(strict=False), lambda asked: schema_of(asked) == SCHEMA),
    "tools": ({"tools": TOOLS}, lambda asked: list(asked.tools.functions) == ["look"]),
    "tools[].type": ({"tools": TOOLS}, lambda asked: look_of(asked)),
    "tools[].function": ({"tools": TOOLS}, lambda asked: look_of(asked)),
    "tools[].function.name": ({"tools": TOOLS}, lambda asked: look_of(asked).name == "look"),
    "tools[].function.description": ({"tools": TOOLS}, lambda asked: "Look." in told(asked)),
    "tools[].function.parameters": (
        {"tools": TOOLS},
        lambda asked: asked.tools.calling(asked.request, "look").constraint.json_schema == '{"type":"object"}',
    ),
    "tools[].function.strict": ({"tools": TOOLS}, lambda asked: look_of(asked).strict),
    "tool_choice": ({"tools": TOOLS, "tool_choice": "none"}, lambda asked: asked.tools is None),
    "tool_choice.type": (
        {"tools": TOOLS, "tool_choice": {"type": "function", "function": {"name": "look"}}},
        lambda asked: asked.tools.only == "look",
    ),
    "tool_choice.function": (
        {"tools": TOOLS, "tool_choice": {"type": "function", "function": {"name": "look"}}},
        lambda asked: asked.tools.only == "look",
    ),
    "tool_choice.function.name": (
        {"tools": TOOLS, "tool_choice": {"type": "function", "function": {"name": "look"}}},
        lambda asked: asked.tools.only == "look",
    ),
    "parallel_tool_calls": ({"tools": TOOLS, "parallel_tool_calls": False}, lambda asked: look_of(asked)),
    "logprobs": ({"logprobs": True}, lambda asked: asked.request.sampling.HasField("logprobs")),
    "top_logprobs": ({"logprobs": True, "top_logprobs": 3}, sampled("logprobs", 3)),
}
REFUSED: dict[str, dict[str, Any]] = {
    "stream_options.include_obfuscation": {"stream": True, "stream_options": {"include_obfuscation": True}},
    "user": {"user": "u"},
    "messages[].content[].image_url": answered({"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:"}}]}),
    "messages[].content[].input_audio": answered(
        {"role": "user", "content": [{"type": "input_audio", "input_audio": {"data": "", "format": "wav"}}]}
    ),
    "messages[].content[].file": answered({"role": "user", "content": [{"type": "file", "file": {"file_id": "f"}}]}),
    "messages[].name": answered({"role": "user", "content": "x", "name": "ada"}),
    "messages[].function_call": answered({"role": "assistant", "function_call": {"name": "look", "arguments": ""}}),
    "messages[].audio": answered({"role": "assistant", "audio": {"id": "a"}}),
    "functions": {"functions": [FUNCTION]},
    "function_call": {"function_call": "auto"},
    "audio": {"audio": {"voice": "v", "format": "wav"}},
    "modalities": {"modalities": ["text", "audio"]},
    "prediction": {"prediction": {"type": "content", "content": "x"}},
    "reasoning_effort": {"reasoning_effort": "high"},
    "verbosity": {"verbosity": "low"},
    "service_tier": {"service_tier": "priority"},
    "store": {"store": True},
    "metadata": {"metadata": {"a": "b"}},
    "safety_identifier": {"safety_identifier": "u"},
    "prompt_cache_key": {"prompt_cache_key": "k"},
    "prompt_cache_options": {"prompt_cache_options": {"mode": "explicit"}},
    "prompt_cache_retention": {"prompt_cache_retention": "24h"},
    "moderation": {"moderation": {"model": "m"}},
    "web_search_options": {"web_search_options": {}},
}
COMPLETIONS: dict[str, Case] = {
    "prompt": ({"prompt": "Twice"}, turn(0, "Twice")),
    "max_tokens": ({}, sampled("max_tokens", 16)),
    "logprobs": ({"logprobs": 2}, sampled("logprobs", 2)),
}
COMPLETIONS_REFUSED: dict[str, dict[str, Any]] = {
    "suffix": {"suffix": "x"},
    "echo": {"echo": True},
    "best_of": {"best_of": 2},
}


@pytest.mark.parametrize("field", SUPPORTED)
def test_a_supported_field_reaches_the_pipeline(field: str) -> None:
    members, shows = SUPPORTED[field]
    assert shows(chat_of(**members))


@pytest.mark.parametrize("field", REFUSED)
def test_a_field_that_is_not_offered_is_refused_by_name(field: str) -> None:
    with pytest.raises(UnsupportedParameter) as refused:
        chat_of(**REFUSED[field])
    named = {name.replace("[0]", "[]").replace("[1]", "[]") for name, _ in refused.value.field_violations}
    assert field in named


@pytest.mark.parametrize("field", COMPLETIONS)
def test_a_field_of_completions_reaches_the_pipeline(field: str) -> None:
    members, shows = COMPLETIONS[field]
    assert shows(completion_of(**members))


@pytest.mark.parametrize("field", COMPLETIONS_REFUSED)
def test_a_field_of_completions_that_is_not_offered_is_refused_by_name(field: str) -> None:
    with pytest.raises(UnsupportedParameter) as refused:
        completion_of(**COMPLETIONS_REFUSED[field])
    assert refused.value.field_violations[0][0] == field


def test_every_field_has_its_test_here() -> None:
    stated = {name: refused is None for name, refused, _ in rows(ChatCompletionRequest)}
    assert {name for name, supported in stated.items() if supported} == SUPPORTED.keys()
    assert {name for name, supported in stated.items() if not supported} == REFUSED.keys()
    others = {name for name, _, _ in rows(CompletionRequest)} - stated.keys()
    assert others <= COMPLETIONS.keys() | COMPLETIONS_REFUSED.keys()


def test_the_api_knows_every_field_of_the_official_client() -> None:
    chats = set(chat_create_params.CompletionCreateParamsBase.__annotations__) | {"stream"}
    assert chats <= ChatCompletionRequest.model_fields.keys()
    completions = set(completion_create_params.CompletionCreateParamsBase.__annotations__) | {"stream"}
    assert completions <= CompletionRequest.model_fields.keys()


def test_the_tables_of_the_documentation_are_those_of_the_code() -> None:
    text = (Path(__file__).parents[2] / "docs" / "openai.md").read_text()
    for model in (ChatCompletionRequest, CompletionRequest):
        assert table(model) in text


def test_the_document_describes_every_field() -> None:
    schemas = openapi()["components"]["schemas"]
    assert schemas["ChatCompletionRequest"]["properties"].keys() == ChatCompletionRequest.model_fields.keys()
    json.dumps(openapi())


def test_values_that_ask_for_nothing_are_accepted() -> None:
    chat_of(n=1, logprobs=False, store=False, service_tier="auto", modalities=["text"], metadata={}, user=None, tools=None)


def test_a_field_that_nobody_knows_is_refused_by_name() -> None:
    with pytest.raises(UnsupportedParameter) as refused:
        chat_of(temprature=1)
    assert problem(refused.value)["error"]["param"] == "temprature"


@pytest.mark.parametrize(
    ("members", "field"),
    [
        ({"temperature": "1"}, "temperature"),
        ({"temperature": True}, "temperature"),
        ({"max_tokens": 1.5}, "max_tokens"),
        ({"max_tokens": 1, "max_completion_tokens": 2}, "max_tokens"),
        ({"n": 0}, "n"),
        ({"n": 9}, "n"),
        ({"seed": -1}, "seed"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"logit_bias": {"x": 1}}, "logit_bias"),
        ({"logit_bias": {"1": 1, "01": 1}}, "logit_bias"),
        ({"messages": [{"role": "function", "content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": "user"}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": 5}]}, "messages[0].content"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0].tool_call_id"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tools": TOOLS + TOOLS}, "tools"),
        ({"tools": TOOLS, "tool_choice": {"type": "function", "function": {"name": "other"}}}, "tool_choice.function.name"),
        ({"tools": TOOLS, "response_format": {"type": "json_object"}}, "tools"),
        ({"lionrock": {"data_class": "secret"}}, "lionrock.data_class"),
        ({"lionrock": {"regex": "a", "ebnf": "b"}}, "lionrock"),
        ({"lionrock": 5}, "lionrock"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        ({"logprobs": True, "tools": TOOLS}, "logprobs"),
    ],
)
def test_a_value_that_breaks_a_rule_is_refused_by_its_field(members: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidField) as refused:
        chat_of(**members)
    assert problem(refused.value)["error"]["param"] == field


@pytest.mark.parametrize(
    "text",
    [b"", b"[]", b"{", b'{"model": "a", "model": "b"}', b'{"a": NaN}', b"[" * 100_000, b'{"a": "\xff"}', b'{"a": ' * 50_000],
    ids=["empty", "list", "cut", "twice", "nan", "deep", "bytes", "deep objects"],
)
def test_a_body_that_readers_would_understand_differently_is_refused(text: bytes) -> None:
    with pytest.raises(MalformedRequest):
        parsed(ChatCompletionRequest, text, SCOPE)


def test_half_a_surrogate_is_refused() -> None:
    with pytest.raises(MalformedRequest):
        chat_of(messages=[{"role": "user", "content": "\ud800"}])
    assert chat_of(messages=[{"role": "user", "content": "\U0001f600"}]).request.messages[0].content == "\U0001f600"


def test_a_violation_never_quotes_what_was_sent() -> None:
    secret = "hunter2 is the word"
    for members in (
        {secret: 1},
        {"temperature": secret},
        {"messages": [{"role": secret, "content": secret}]},
        {"logit_bias": {secret: secret}},
    ):
        with pytest.raises(MeshError) as refused:
            chat_of(**members)
        assert "hunter2" not in json.dumps(problem(refused.value))
