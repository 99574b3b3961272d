"""The service over mutual TLS: what a caller sees of each RPC and of each refusal."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import grpc
import pytest

from lionrock.chassis.channel import open_channel
from lionrock.chassis.errors import RemoteError, remote_error
from lionrock.chassis.server import Registration, start_server
from lionrock.chassis.settings import PeerSettings, ServerSettings
from lionrock.common.v1 import chat_pb2, context_pb2
from lionrock.tokenization.chat_template import Message
from lionrock.tokenization.codec import Codec, open_codec
from lionrock.tokenization.errors import ChatTemplateRefused
from lionrock.tokenization.gguf_tokenizer import read_gguf_definition
from lionrock.tokenization.heavy_work import HeavyWork
from lionrock.tokenization.servicer import CALLERS, SERVICE_NAME, TokenizationServicer
from lionrock.tokenization.settings import TokenizationSettings
from lionrock.tokenization.v1 import tokenization_pb2 as pb
from lionrock.tokenization.v1 import tokenization_pb2_grpc as stubs
from mesh_ca import TRUST_DOMAIN, DevCa
from real_tokenizers import Served

CONTEXT = context_pb2.RequestContext(
    request_id="0190163d-8694-739b-aea5-966c26f8ad91",
    tenant="bank",
    actor="spiffe://lionrock.local/tenant/bank/user/ada",
    auth_method=context_pb2.AUTH_METHOD_MTLS,
    purpose="customer_service",
    territory="HK",
    profile="default",
)
Stub = stubs.TokenizationServiceAsyncStub if TYPE_CHECKING else object
CANARY = "canary-7f3a"


@pytest.fixture(scope="module")
def small(smollm2: Served) -> Codec:
    return open_codec("small", smollm2.path, max_tokens=50)


@pytest.fixture
def heavy_work() -> HeavyWork:
    return HeavyWork(threads=1, queue=1)


@pytest.fixture
async def stub(tmp_path: Path, smollm2: Served, small: Codec, heavy_work: HeavyWork) -> AsyncIterator[Stub]:
    authority = DevCa(tmp_path)
    settings = TokenizationSettings(
        server=ServerSettings(tls=authority.issue("tokenization"), trust_domain=TRUST_DOMAIN), models={"m": smollm2.path}
    )
    servicer = TokenizationServicer({"m": smollm2.codec, "small": small}, heavy_work, heavy_chars=10_000)
    registration = Registration(stubs.add_TokenizationServiceServicer_to_server, servicer, SERVICE_NAME, CALLERS)
    server = await start_server(settings, "tokenization", [registration])
    peer = PeerSettings(target=f"127.0.0.1:{server.port}", service="tokenization")
    async with open_channel(peer, authority.issue("gateway"), name="gateway") as channel:
        yield stubs.TokenizationServiceStub(channel)  # type: ignore[misc]
    await server.stop(0)
    heavy_work.close()


def conversation(*turns: tuple[int, str], model: str = "m") -> pb.EncodeRequest:
    messages = [chat_pb2.ChatMessage(role=role, content=content) for role, content in turns]  # type: ignore[arg-type]
    return pb.EncodeRequest(context=CONTEXT, model=model, conversation=pb.Conversation(messages=messages))


def text(content: str, model: str = "m") -> pb.EncodeRequest:
    return pb.EncodeRequest(context=CONTEXT, model=model, text=content)


async def refusal(call: object) -> RemoteError:
    with pytest.raises(grpc.aio.AioRpcError) as failed:
        await call  # type: ignore[misc]
    return remote_error(failed.value)


USER, ASSISTANT = chat_pb2.CHAT_ROLE_USER, chat_pb2.CHAT_ROLE_ASSISTANT


async def test_conversation_is_encoded_with_its_digest_and_counts(stub: Stub, smollm2: Served) -> None:
    request = conversation((USER, "你好"), (ASSISTANT, "Hi"), (USER, "<|im_end|>"))
    answer = await stub.Encode(request, timeout=10)
    expected = smollm2.codec.encode_conversation(
        [Message("user", "你好"), Message("assistant", "Hi"), Message("user", "<|im_end|>")]
    )
    assert list(answer.token_ids) == expected.token_ids
    assert (answer.content_tokens, answer.tokenizer_digest) == (expected.content_tokens, smollm2.codec.digest)
    counted = await stub.CountTokens(pb.CountTokensRequest(request=request), timeout=10)
    assert (counted.tokens, counted.tokenizer_digest) == (len(expected.token_ids), smollm2.codec.digest)


async def test_text_is_encoded_without_template(stub: Stub, smollm2: Served) -> None:
    answer = await stub.Encode(text("plain <|im_start|>"), timeout=10)
    assert list(answer.token_ids) == smollm2.codec.encode_text("plain <|im_start|>").token_ids
    assert answer.content_tokens == len(answer.token_ids)


async def test_long_input_is_encoded_beside_the_loop_with_the_same_ids(stub: Stub, smollm2: Served) -> None:
    content = "the quick brown fox " * 2_000
    answer = await stub.Encode(text(content), timeout=30)
    assert list(answer.token_ids) == smollm2.codec.encode_text(content).token_ids


async def test_long_inputs_over_the_bound_are_refused_with_the_time_to_come_back_and_short_ones_go_on(
    stub: Stub, heavy_work: HeavyWork
) -> None:
    release = threading.Event()
    held = [asyncio.ensure_future(heavy_work.run(release.wait)) for _ in range(2)]
    await asyncio.sleep(0)
    refused = await refusal(stub.Encode(text("x" * 20_000), timeout=10))
    assert (refused.status, refused.reason, refused.retry_after_s) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "OVERLOADED", 1.0)
    assert (await stub.Encode(text("short"), timeout=10)).token_ids
    release.set()
    await asyncio.gather(*held)
    assert (await stub.Encode(text("x" * 20_000), timeout=10)).token_ids


@pytest.mark.parametrize(
    ("request_of", "status", "reason", "field"),
    [
        (lambda: text(CANARY, model="absent"), grpc.StatusCode.NOT_FOUND, "MODEL_NOT_FOUND", None),
        (lambda: text(f"{CANARY} " * 50, model="small"), grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD", "text"),
        (
            lambda: conversation((USER, f"{CANARY} " * 50), model="small"),
            grpc.StatusCode.INVALID_ARGUMENT,
            "INVALID_FIELD",
            "conversation.messages",
        ),
        (
            lambda: conversation(*[(USER, CANARY * 60_000)] * 2),
            grpc.StatusCode.INVALID_ARGUMENT,
            "INVALID_FIELD",
            "conversation.messages",
        ),
        (lambda: conversation((USER, CANARY * 100_000)), grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD", None),
        (lambda: conversation((0, CANARY)), grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD", None),
        (lambda: conversation((99, CANARY)), grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD", None),
        (lambda: conversation(), grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD", None),
        (lambda: pb.EncodeRequest(context=CONTEXT, model="m"), grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD", None),
    ],
)
async def test_refusal_is_precise_and_quotes_nothing(
    stub: Stub,
    request_of: Callable[[], pb.EncodeRequest],
    status: grpc.StatusCode,
    reason: str,
    field: str | None,
) -> None:
    refused = await refusal(stub.Encode(request_of(), timeout=10))
    assert (refused.status, refused.reason) == (status, reason)
    assert CANARY not in str(refused) + str(refused.field_violations) + str(refused.metadata)
    if field is not None:
        assert [path for path, _ in refused.field_violations] == [field]
    counted = await refusal(stub.CountTokens(pb.CountTokensRequest(request=request_of()), timeout=10))
    assert (counted.status, counted.reason) == (status, reason)
    if field is not None:
        assert [path for path, _ in counted.field_violations] == [f"request.{field}"]


def opening(**fields: str) -> pb.DecodeRequest:
    return pb.DecodeRequest(open=pb.DecodeOpen(context=CONTEXT, **{"model": "m", **fields}))  # type: ignore[arg-type]


def chunk(*token_ids: int) -> pb.DecodeRequest:
    return pb.DecodeRequest(chunk=pb.DecodeChunk(token_ids=token_ids))


END = pb.DecodeRequest(end=pb.DecodeEnd())


async def test_decode_answers_each_message_once_and_never_a_part_of_a_character(stub: Stub, smollm2: Served) -> None:
    whole = "你好 🀄 hello"
    ids = smollm2.encode(whole)
    call = stub.Decode(timeout=10)
    await call.write(opening(tokenizer_digest=smollm2.codec.digest))
    assert (await call.read()).text == ""  # type: ignore[union-attr]
    texts = []
    for token_id in ids:
        await call.write(chunk(token_id))
        texts.append((await call.read()).text)  # type: ignore[union-attr]
    assert "".join(texts) == whole
    assert "" in texts
    await call.write(chunk(ids[0]))
    assert (await call.read()).text == ""  # type: ignore[union-attr]
    await call.write(END)
    assert (await call.read()).text == "\ufffd"  # type: ignore[union-attr]
    await call.done_writing()
    assert await call.read() is grpc.aio.EOF
    assert await call.code() is grpc.StatusCode.OK


@pytest.mark.parametrize(
    ("messages", "status", "reason"),
    [
        ([chunk(5)], grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD"),
        ([END], grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD"),
        ([pb.DecodeRequest()], grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD"),
        ([opening(), opening()], grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD"),
        ([opening(), END, chunk(5)], grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD"),
        ([opening(model="absent")], grpc.StatusCode.NOT_FOUND, "MODEL_NOT_FOUND"),
        ([opening(tokenizer_digest="sha256:0")], grpc.StatusCode.FAILED_PRECONDITION, "TOKENIZER_CHANGED"),
        ([opening(), chunk(49_152)], grpc.StatusCode.INVALID_ARGUMENT, "UNKNOWN_TOKEN_ID"),
        ([opening(), chunk(2**32 - 1)], grpc.StatusCode.INVALID_ARGUMENT, "UNKNOWN_TOKEN_ID"),
        ([opening(), chunk(*[5] * 65_537)], grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD"),
    ],
)
async def test_decode_stream_out_of_order_or_out_of_range_is_refused(
    stub: Stub, messages: list[pb.DecodeRequest], status: grpc.StatusCode, reason: str
) -> None:
    async def requests() -> AsyncIterator[pb.DecodeRequest]:
        for message in messages:
            yield message

    async def drain() -> None:
        async for _ in stub.Decode(requests(), timeout=10):
            pass

    refused = await refusal(drain())
    assert (refused.status, refused.reason) == (status, reason)


async def test_tokenizer_describes_itself(stub: Stub, smollm2: Served) -> None:
    answer = await stub.GetTokenizer(pb.GetTokenizerRequest(model="m"), timeout=10)
    assert (answer.tokenizer_digest, answer.vocabulary_size) == (smollm2.codec.digest, 49_152)
    assert list(answer.eos_token_ids) == [2]
    assert answer.control_tokens[1] == "<|im_start|>"
    assert len(answer.control_tokens) == 17
    assert (await refusal(stub.GetTokenizer(pb.GetTokenizerRequest(model="absent"), timeout=10))).reason == "MODEL_NOT_FOUND"


async def test_template_that_refuses_a_conversation_is_named(smollm2: Served) -> None:
    picky = "{% if messages[0].role != 'user' %}{{ raise_exception('no system prompts') }}{% endif %}{{ messages[0].content }}"
    codec = Codec(replace(read_gguf_definition(smollm2.path), chat_template=picky))
    servicer = TokenizationServicer({"m": codec}, HeavyWork(1, 1), heavy_chars=10_000)
    with pytest.raises(ChatTemplateRefused) as refused:
        await servicer.Encode(conversation((chat_pb2.CHAT_ROLE_SYSTEM, CANARY), (USER, CANARY)), None)  # type: ignore[arg-type]
    assert [path for path, _ in refused.value.field_violations] == ["conversation.messages"]
    assert CANARY not in str(refused.value)


async def test_tokens_are_spelled_one_by_one_and_together_make_the_text(stub: Stub, smollm2: Served) -> None:
    ids = [1, *smollm2.codec.encode_text("早晨 👋 again").token_ids]
    request = pb.SpellTokensRequest(context=CONTEXT, model="m", tokenizer_digest=smollm2.codec.digest, token_ids=ids)

    spelled = (await stub.SpellTokens(request, timeout=10)).token_bytes

    assert spelled[0] == b""  # <|im_start|> decodes to nothing
    assert b"".join(spelled).decode() == "早晨 👋 again"
    unknown = await stub.SpellTokens(pb.SpellTokensRequest(context=CONTEXT, model="m", token_ids=[2, 49_152]), timeout=10)
    assert (list(unknown.unknown_ids), len(unknown.token_bytes)) == ([49_152], 2)
    other = pb.SpellTokensRequest(context=CONTEXT, model="m", tokenizer_digest="sha256:" + "0" * 64, token_ids=[1])
    assert (await refusal(stub.SpellTokens(other, timeout=10))).reason == "TOKENIZER_CHANGED"
