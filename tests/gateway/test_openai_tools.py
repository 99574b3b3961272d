"""Tools over HTTP: which requests they take, what constrains them, and how a call looks to the official client."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import openai
import pytest

from http_calls import body, official
from lionrock.gateway.openai.tools import IN_WORDS
from scripted_mesh import BLOCKED_WORD, SAFE_MESSAGE, ScriptedMesh

PARAMETERS = {"type": "object", "properties": {"river": {"type": "string"}}, "required": ["river"]}
LOOK = {"type": "function", "function": {"name": "look", "description": "Look at a river.", "parameters": PARAMETERS}}
WAIT = {"type": "function", "function": {"name": "wait"}}
ARGUMENTS = '{"river": "Lam Tsuen"}'


@pytest.fixture
async def web(idle_mesh: ScriptedMesh) -> AsyncIterator[ScriptedMesh]:
    """A running mesh with an HTTP port."""
    idle_mesh.http = {}
    async with idle_mesh.running():
        yield idle_mesh


@pytest.fixture
async def client(web: ScriptedMesh) -> AsyncIterator[openai.AsyncOpenAI]:
    async with official(web) as made:
        yield made


def scripted(mesh: ScriptedMesh, *texts: str) -> None:
    """Let the engine say one text a request."""
    left = list(texts)

    async def next_text() -> None:
        mesh.engine.text = left.pop(0)

    mesh.engine.faults["Generate"] = next_text


def asked(mesh: ScriptedMesh) -> list[Any]:
    return [request for request in mesh.engine.requests if hasattr(request, "sampling")]


def ask(**members: Any) -> Any:
    return {**body(tools=[LOOK, WAIT]), **members}


async def test_a_named_tool_is_called_with_arguments_that_the_engine_constrains(
    web: ScriptedMesh, client: openai.AsyncOpenAI
) -> None:
    scripted(web, ARGUMENTS)
    answer = await client.chat.completions.create(**ask(tool_choice={"type": "function", "function": {"name": "look"}}))
    (call,) = answer.choices[0].message.tool_calls or ()
    assert call.type == "function"
    assert (call.function.name, call.function.arguments) == ("look", ARGUMENTS)
    assert (answer.choices[0].finish_reason, answer.choices[0].message.content) == ("tool_calls", None)
    (request,) = asked(web)
    assert json.loads(request.constraint.json_schema) == PARAMETERS


async def test_a_required_call_is_chosen_first(web: ScriptedMesh, client: openai.AsyncOpenAI) -> None:
    scripted(web, "look", ARGUMENTS)
    answer = await client.chat.completions.create(**ask(tool_choice="required"))
    (call,) = answer.choices[0].message.tool_calls or ()
    assert call.type == "function"
    assert call.function.name == "look"
    choosing, calling = asked(web)
    assert list(choosing.constraint.choice.values) == ["look", "wait"]
    assert json.loads(calling.constraint.json_schema) == PARAMETERS
    assert answer.model_extra is not None
    assert [proof["step"] for proof in answer.model_extra["lionrock"]["answers"]] == ["choose_tool", "answer"]
    assert len(web.log.outcomes) == 2
    assert answer.usage is not None
    assert answer.usage.completion_tokens == len("look") + len(ARGUMENTS)


async def test_the_model_may_answer_in_words(web: ScriptedMesh, client: openai.AsyncOpenAI) -> None:
    scripted(web, IN_WORDS, "It rains.")
    answer = await client.chat.completions.create(**ask())
    assert answer.choices[0].message.content == "It rains."
    assert not answer.choices[0].message.tool_calls
    choosing, answering = asked(web)
    assert list(choosing.constraint.choice.values) == ["look", "wait", IN_WORDS]
    assert not answering.HasField("constraint")


async def test_a_call_streams_as_the_official_client_reads_it(web: ScriptedMesh, client: openai.AsyncOpenAI) -> None:
    scripted(web, "look", ARGUMENTS)
    stream = await client.chat.completions.create(**ask(tool_choice="required"), stream=True)
    name, arguments, reason = "", "", None
    async for chunk in stream:
        for call in chunk.choices[0].delta.tool_calls or ():
            assert call.function is not None
            name += call.function.name or ""
            arguments += call.function.arguments or ""
        reason = chunk.choices[0].finish_reason or reason
    assert (name, arguments, reason) == ("look", ARGUMENTS, "tool_calls")


async def test_without_leave_to_call_the_model_is_told_of_no_tool(web: ScriptedMesh, client: openai.AsyncOpenAI) -> None:
    await client.chat.completions.create(**ask(tool_choice="none"))
    (turn,) = web.tokenizer.encoded[-1].conversation.messages
    assert turn.content == "Say hello."


@pytest.mark.parametrize("stream", [False, True])
async def test_a_choice_that_a_guardrail_ends_is_the_answer(web: ScriptedMesh, client: openai.AsyncOpenAI, stream: bool) -> None:
    web.engine.chunk = 100
    scripted(web, BLOCKED_WORD)
    answer: Any = await client.chat.completions.create(**ask(stream=stream))
    last = [chunk async for chunk in answer][-1] if stream else answer
    assert last.choices[0].finish_reason == "content_filter"
    assert last.model_extra["lionrock"]["answers"][0]["blocked"]["message"] == SAFE_MESSAGE
    assert len(asked(web)) == 1


async def test_a_choice_that_is_none_of_the_choices_fails(web: ScriptedMesh, client: openai.AsyncOpenAI) -> None:
    scripted(web, "look awa")
    with pytest.raises(openai.InternalServerError) as failed:
        await client.chat.completions.create(**ask())
    assert failed.value.code == "INFERENCE_UNAVAILABLE"
