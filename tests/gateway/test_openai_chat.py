"""Chat completions with the official client, over TLS, against a real gateway."""

from __future__ import annotations

import base64
from collections.abc import AsyncIterator
from typing import Any

import openai
import pytest

from http_calls import body, official, raw
from lionrock.audit.v1 import audit_pb2 as audit
from lionrock.common.v1 import chat_pb2 as chat
from lionrock.common.v1 import context_pb2 as ctx
from scripted_mesh import BLOCKED_WORD, MASKED_WORD, MODEL, SAFE_MESSAGE, ScriptedMesh, ShardGroupLost

ASK: dict[str, Any] = body()


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


async def test_the_official_client_gets_a_whole_answer(web: ScriptedMesh, client: openai.AsyncOpenAI) -> None:
    answer = await client.chat.completions.create(**ASK)
    assert answer.choices[0].message.content == web.engine.text
    assert (answer.object, answer.model, answer.choices[0].finish_reason) == ("chat.completion", MODEL, "stop")
    assert answer.usage is not None
    assert answer.usage.completion_tokens == len(web.engine.text)
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
    assert answer.system_fingerprint


async def test_the_official_client_streams_an_answer(web: ScriptedMesh, client: openai.AsyncOpenAI) -> None:
    stream = await client.chat.completions.create(**ASK, stream=True)
    chunks = [chunk async for chunk in stream]
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == web.engine.text
    assert chunks[0].choices[0].delta.role == "assistant"
    assert [chunk.choices[0].finish_reason for chunk in chunks] == [None] * (len(chunks) - 1) + ["stop"]
    assert len({chunk.id for chunk in chunks}) == 1


async def test_the_official_client_reads_log_probabilities_whole_and_streamed(
    web: ScriptedMesh, client: openai.AsyncOpenAI
) -> None:
    web.engine.text, web.engine.others, web.engine.chunk = f"It is {MASKED_WORD}, yes", "ab", 100
    answer = await client.chat.completions.create(**ASK, logprobs=True, top_logprobs=2)
    told = answer.choices[0].logprobs
    assert told is not None
    assert told.content is not None
    assert bytes(byte for token in told.content for byte in token.bytes or ()) == b"It is yes"
    assert [(other.token, other.logprob) for other in told.content[0].top_logprobs] == [("a", -1.5), ("b", -1.5)]
    assert answer.model_extra is not None
    assert answer.model_extra["lionrock"]["answers"][0]["logprobs_withheld"] == len(MASKED_WORD) + 2

    stream = await client.chat.completions.create(**ASK, logprobs=True, stream=True)
    choices = [chunk.choices[0] async for chunk in stream]
    streamed = [token.token for choice in choices if choice.logprobs for token in choice.logprobs.content or ()]
    assert "".join(streamed) == "It is yes"

    completion = await client.completions.create(model=MODEL, prompt="Say hello.", logprobs=1, max_tokens=50)
    assert completion.choices[0].logprobs is not None
    assert "".join(completion.choices[0].logprobs.tokens or ()) == "It is yes"
    assert completion.choices[0].logprobs.top_logprobs == [{"a": -1.5}] * len("It is yes")


async def test_usage_comes_in_the_last_chunk_when_asked_for(web: ScriptedMesh, client: openai.AsyncOpenAI) -> None:
    stream = await client.chat.completions.create(**ASK, stream=True, stream_options={"include_usage": True})
    chunks = [chunk async for chunk in stream]
    assert chunks[-1].choices == []
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == len(web.engine.text)
    assert all(chunk.usage is None for chunk in chunks[:-1])


async def test_a_whole_answer_carries_its_receipt_in_a_header_and_in_its_body(web: ScriptedMesh) -> None:
    async with raw(web) as client:
        response = await client.post("chat/completions", json=ASK)
    proof = response.json()["lionrock"]["answers"][0]
    request_id = response.headers["x-request-id"]
    assert proof["request_id"] == request_id
    assert proof["receipt"]["tlog_proof"] == base64.b64decode(response.headers["lionrock-receipt"]).decode()
    assert web.log.outcomes[0].context.request_id == request_id
    assert web.log.opens(base64.b64decode(proof["answer_salt"]), web.engine.text.encode())


async def test_a_stream_carries_its_receipt_in_the_final_chunk(web: ScriptedMesh, client: openai.AsyncOpenAI) -> None:
    stream = await client.chat.completions.create(**ASK, stream=True)
    chunks = [chunk async for chunk in stream]
    told = [chunk.model_extra["lionrock"] for chunk in chunks if chunk.model_extra and "lionrock" in chunk.model_extra]
    assert len(told) == 1
    assert chunks[-1].choices[0].finish_reason == "stop"
    assert told[0]["answers"][0]["receipt"]["origin"] == "test/audit/bank"
    assert stream.response.headers["x-request-id"] == told[0]["answers"][0]["request_id"]


async def test_answers_say_that_a_machine_wrote_them(web: ScriptedMesh) -> None:
    async with raw(web) as client:
        response = await client.post("chat/completions", json=ASK)
    assert response.headers["lionrock-ai-generated"] == "true"
    assert set(response.json()["lionrock"]["ai_disclosure"]) == {"en", "zh-Hant", "zh-Hans"}


async def test_extensions_of_body_and_headers_reach_the_audit_log(web: ScriptedMesh, client: openai.AsyncOpenAI) -> None:
    own = {"case_id": "CASE-1", "data_class": "internal", "subject_ids": ["customer/7"]}
    headers = {"Lionrock-Purpose": "drafting", "Lionrock-Conversation": "talk-1"}
    await client.chat.completions.create(**ASK, extra_body={"lionrock": own}, extra_headers=headers)
    intent = web.log.intents[0]
    context = intent.context
    assert (context.purpose, context.case_id, context.conversation_id) == ("drafting", "CASE-1", "talk-1")
    assert context.data_class == ctx.DATA_CLASS_INTERNAL


async def test_a_header_and_a_body_that_disagree_are_refused(web: ScriptedMesh, client: openai.AsyncOpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        await client.chat.completions.create(
            **ASK, extra_body={"lionrock": {"purpose": "testing"}}, extra_headers={"Lionrock-Purpose": "drafting"}
        )
    assert refused.value.code == "INVALID_FIELD"


async def test_roles_become_turns(web: ScriptedMesh, client: openai.AsyncOpenAI) -> None:
    messages: list[Any] = [
        {"role": "developer", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "One."}, {"type": "text", "text": "Two."}]},
        {"role": "assistant", "content": None, "tool_calls": [
            {"id": "call_1", "type": "function", "function": {"name": "look", "arguments": '{"at": 1}'}}
        ]},
        {"role": "tool", "tool_call_id": "call_1", "content": "seen"},
    ]  # fmt: skip
    await client.chat.completions.create(model=MODEL, messages=messages)
    turns = web.tokenizer.encoded[-1].conversation.messages
    assert [turn.role for turn in turns] == [
        chat.CHAT_ROLE_SYSTEM, chat.CHAT_ROLE_USER, chat.CHAT_ROLE_ASSISTANT, chat.CHAT_ROLE_TOOL
    ]  # fmt: skip
    assert turns[1].content == "One.\nTwo."
    assert turns[2].content == '{"name": "look", "arguments": {"at": 1}}'
    assert turns[3].tool_call_id == "call_1"


async def test_an_answer_of_the_api_can_be_sent_back_as_it_came(web: ScriptedMesh, client: openai.AsyncOpenAI) -> None:
    first = await client.chat.completions.create(**ASK)
    again = [*ASK["messages"], first.choices[0].message, {"role": "user", "content": "Once more."}]
    second = await client.chat.completions.create(model=MODEL, messages=again)
    assert second.choices[0].message.content == web.engine.text


async def test_a_blocked_answer_ends_with_content_filter_and_what_to_show(web: ScriptedMesh, client: openai.AsyncOpenAI) -> None:
    web.engine.text, web.engine.chunk = f"Well, {BLOCKED_WORD} things.", 100
    answer = await client.chat.completions.create(**ASK)
    assert answer.choices[0].finish_reason == "content_filter"
    assert answer.choices[0].message.content == "Well, "
    assert answer.choices[0].message.refusal == SAFE_MESSAGE
    stream = await client.chat.completions.create(**ASK, stream=True)
    last = [chunk async for chunk in stream][-1]
    assert last.choices[0].finish_reason == "content_filter"
    assert last.choices[0].delta.refusal == SAFE_MESSAGE


async def test_several_answers_are_several_requests_in_the_log(web: ScriptedMesh, client: openai.AsyncOpenAI) -> None:
    answer = await client.chat.completions.create(**ASK, n=3, seed=7)
    assert [choice.index for choice in answer.choices] == [0, 1, 2]
    assert sorted(request.sampling.seed for request in web.engine.requests if hasattr(request, "sampling")) == [7, 8, 9]
    assert len(web.log.outcomes) == 3
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 3 * len(web.engine.text)


async def test_several_answers_stream_side_by_side(web: ScriptedMesh, client: openai.AsyncOpenAI) -> None:
    stream = await client.chat.completions.create(**ASK, n=2, stream=True)
    texts = {0: "", 1: ""}
    async for chunk in stream:
        texts[chunk.choices[0].index] += chunk.choices[0].delta.content or ""
    assert texts == {0: web.engine.text, 1: web.engine.text}


async def test_one_of_several_answers_that_fails_fails_all(idle_mesh: ScriptedMesh) -> None:
    idle_mesh.http = {}
    idle_mesh.tenants[0]["max_streams"] = 1
    idle_mesh.engine.pace = None
    async with idle_mesh.running(), official(idle_mesh) as client:
        with pytest.raises(openai.RateLimitError) as refused:
            await client.chat.completions.create(**ASK, n=2)
    assert refused.value.code == "TENANT_QUOTA"


async def test_an_error_before_the_first_word_is_an_answer_with_a_status(web: ScriptedMesh, client: openai.AsyncOpenAI) -> None:
    with pytest.raises(openai.PermissionDeniedError) as refused:
        await client.chat.completions.create(**body(f"{BLOCKED_WORD}?"), stream=True)
    assert refused.value.code == "PROMPT_BLOCKED"
    assert refused.value.body["message"] == SAFE_MESSAGE  # type: ignore[index]
    assert refused.value.request_id == web.log.outcomes[0].context.request_id
    assert web.log.outcomes[0].outcome.status == audit.OUTCOME_STATUS_BLOCKED


async def test_an_error_within_a_stream_is_its_last_event(idle_mesh: ScriptedMesh) -> None:
    idle_mesh.http, idle_mesh.limits["max_resumptions"] = {}, 0
    idle_mesh.engine.text, idle_mesh.engine.losses = "x" * 100, [(50, ShardGroupLost("gone"))]
    async with idle_mesh.running(), official(idle_mesh) as client:
        stream = await client.chat.completions.create(**ASK, stream=True)
        with pytest.raises(openai.APIError) as failed:
            async for _ in stream:
                pass
    assert failed.value.code == "INFERENCE_UNAVAILABLE"


async def test_completions_ask_one_turn(web: ScriptedMesh, client: openai.AsyncOpenAI) -> None:
    answer = await client.completions.create(model=MODEL, prompt="Once upon", max_tokens=100)
    assert answer.choices[0].text == web.engine.text
    stream = await client.completions.create(model=MODEL, prompt="Once upon", max_tokens=100, stream=True)
    assert "".join([chunk.choices[0].text async for chunk in stream]) == web.engine.text
    await client.completions.create(model=MODEL, prompt="Once upon")
    assert web.engine.requests[-1].sampling.max_tokens == 16


async def test_models_are_listed_and_described(web: ScriptedMesh, client: openai.AsyncOpenAI) -> None:
    assert [model.id async for model in client.models.list()] == [MODEL]
    assert (await client.models.retrieve(MODEL)).id == MODEL
    with pytest.raises(openai.NotFoundError) as unknown:
        await client.models.retrieve("another")
    assert unknown.value.code == "MODEL_NOT_FOUND"


async def test_embeddings_are_refused_clearly(client: openai.AsyncOpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        await client.embeddings.create(model=MODEL, input="text")
    assert refused.value.code == "EMBEDDINGS_UNSUPPORTED"
