"""The four inner services as the pipeline calls them: stubs, time limits, and errors in the gateway's own words.

Knows which RPC does what and how long it may take; does not know in which order they are called. Every call carries the gateway's
RequestContext and ends by the request's deadline or the peer's own limit, whichever is earlier.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

import grpc

from lionrock.audit.v1 import audit_pb2 as audit
from lionrock.audit.v1 import records_pb2 as rec
from lionrock.audit.v1.audit_pb2_grpc import AuditServiceStub
from lionrock.audit.v1.records_pb2_grpc import RecordsServiceStub
from lionrock.common.v1 import chat_pb2 as chat
from lionrock.common.v1 import context_pb2 as ctx
from lionrock.gateway.answer_text import Guarding
from lionrock.gateway.generation import GenerateCall
from lionrock.gateway.paired_stream import PairedStream
from lionrock.gateway.peer_errors import (
    from_audit,
    from_audit_query,
    from_guardrails,
    from_inference,
    from_tokenization,
    passed_on,
    protocol_violation,
    translated,
)
from lionrock.gateway.vocabulary import AnswerDecoder, Vocabularies
from lionrock.guardrails.v1 import guardrails_pb2 as guard
from lionrock.guardrails.v1.guardrails_pb2_grpc import GuardrailsServiceStub
from lionrock.inference.v1 import inference_pb2 as inf
from lionrock.inference.v1.inference_pb2_grpc import InferenceServiceStub
from lionrock.tokenization.v1 import tokenization_pb2 as tok
from lionrock.tokenization.v1.tokenization_pb2_grpc import TokenizationServiceStub

_SOURCES = {
    chat.CHAT_ROLE_SYSTEM: guard.TEXT_SOURCE_SYSTEM,
    chat.CHAT_ROLE_USER: guard.TEXT_SOURCE_USER,
    chat.CHAT_ROLE_ASSISTANT: guard.TEXT_SOURCE_MODEL,
    chat.CHAT_ROLE_TOOL: guard.TEXT_SOURCE_DOCUMENT,
}


@dataclass(frozen=True, slots=True)
class Deadline:
    """When the caller stops waiting, in the event loop's time."""

    at: float

    @classmethod
    def after(cls, seconds: float) -> Deadline:
        """Return the deadline `seconds` from now."""
        return cls(asyncio.get_running_loop().time() + seconds)

    @property
    def passed(self) -> bool:
        """Whether the caller has stopped waiting."""
        return self.left_s() <= 0

    def left_s(self, at_most: float = float("inf")) -> float:
        """Seconds left, at most `at_most`, never negative."""
        return max(0.0, min(at_most, self.at - asyncio.get_running_loop().time()))


class Guardrails:
    """Judges prompts and answers. Raises GuardrailsUnavailable, Overloaded, InvalidField."""

    def __init__(self, channel: grpc.aio.Channel, timeout_s: float) -> None:
        self._stub = GuardrailsServiceStub(channel)
        self._timeout_s = timeout_s

    async def inspect_prompt(
        self, context: ctx.RequestContext, messages: Sequence[chat.ChatMessage], deadline: Deadline
    ) -> guard.InspectResponse:
        """Return the verdict on a conversation, one part a turn."""
        parts = [guard.TextPart(text=message.content, source=_SOURCES[message.role]) for message in messages]
        request = guard.InspectRequest(context=context, direction=guard.DIRECTION_PROMPT, parts=parts)
        with translated(from_guardrails):
            return await self._stub.Inspect(request, timeout=deadline.left_s(self._timeout_s))

    async def inspect_answers(self, context: ctx.RequestContext, texts: Sequence[str], deadline: Deadline) -> guard.InspectResponse:
        """Return the verdict on texts that the model could have written, one part a text."""
        parts = [guard.TextPart(text=text, source=guard.TEXT_SOURCE_MODEL) for text in texts]
        request = guard.InspectRequest(context=context, direction=guard.DIRECTION_ANSWER, parts=parts)
        with translated(from_guardrails):
            return await self._stub.Inspect(request, timeout=deadline.left_s(self._timeout_s))

    def guard_answer(self, context: ctx.RequestContext, deadline: Deadline) -> Guarding:
        """Open the stream that judges an answer while it is written."""
        opening = guard.InspectStreamRequest(open=guard.StreamOpen(context=context, direction=guard.DIRECTION_ANSWER))
        call = self._stub.InspectStream(timeout=deadline.left_s())
        return PairedStream(call, opening, timeout_s=self._timeout_s, translate=from_guardrails)


class Tokenization:
    """Text to ids and back. Raises TokenizationUnavailable, Overloaded, ModelNotFound, ChatTemplateRefused, InvalidField."""

    def __init__(self, channel: grpc.aio.Channel, timeout_s: float) -> None:
        self._stub = TokenizationServiceStub(channel)
        self._timeout_s = timeout_s
        self._vocabularies = Vocabularies()

    async def encode(
        self, context: ctx.RequestContext, model: str, messages: Sequence[chat.ChatMessage], deadline: Deadline
    ) -> tok.EncodeResponse:
        """Return the ids of a conversation."""
        request = tok.EncodeRequest(context=context, model=model, conversation=tok.Conversation(messages=messages))
        with translated(from_tokenization):
            return await self._stub.Encode(request, timeout=deadline.left_s(self._timeout_s))

    async def count(self, context: ctx.RequestContext, model: str, messages: Sequence[chat.ChatMessage], deadline: Deadline) -> int:
        """How many ids a conversation has."""
        request = tok.EncodeRequest(context=context, model=model, conversation=tok.Conversation(messages=messages))
        with translated(from_tokenization):
            response = await self._stub.CountTokens(
                tok.CountTokensRequest(request=request), timeout=deadline.left_s(self._timeout_s)
            )
        return response.tokens

    async def digest(self, model: str, deadline: Deadline) -> str:
        """Return the digest of a model's tokenizer."""
        request = tok.GetTokenizerRequest(model=model)
        with translated(from_tokenization):
            return (await self._stub.GetTokenizer(request, timeout=deadline.left_s(self._timeout_s))).tokenizer_digest

    def decoder(self, context: ctx.RequestContext, model: str, tokenizer_digest: str, deadline: Deadline) -> AnswerDecoder:
        """Return what turns an answer's ids into text, with the tokenizer that encoded the prompt and no other."""

        async def fetch(token_ids: Sequence[int]) -> Sequence[bytes | None]:
            request = tok.SpellTokensRequest(context=context, model=model, tokenizer_digest=tokenizer_digest, token_ids=token_ids)
            with translated(from_tokenization):
                spelled = await self._stub.SpellTokens(request, timeout=deadline.left_s(self._timeout_s))
            if len(spelled.token_bytes) != len(token_ids):
                raise from_tokenization(protocol_violation("TOKENS_UNSPELLED"))
            unknown = frozenset(spelled.unknown_ids)
            pairs = zip(token_ids, spelled.token_bytes, strict=True)
            return [None if token_id in unknown else token for token_id, token in pairs]

        return AnswerDecoder(self._vocabularies.of(tokenizer_digest), fetch)


class Inference:
    """One engine. Raises InferenceUnavailable, Overloaded and what the caller can mend (peer_errors.from_inference)."""

    def __init__(self, channel: grpc.aio.Channel, timeout_s: float) -> None:
        self._stub = InferenceServiceStub(channel)
        self._timeout_s = timeout_s

    def generate(self, request: inf.GenerateRequest, deadline: Deadline) -> GenerateCall:
        """Start one Generate call. Its failures are not translated: generation.py decides what to do about them."""
        return self._stub.Generate(request, timeout=deadline.left_s())

    async def list_models(self, deadline: Deadline) -> Sequence[inf.ServedModel]:
        """Return what is served now."""
        with translated(from_inference):
            response = await self._stub.ListModels(inf.ListModelsRequest(), timeout=deadline.left_s(self._timeout_s))
        return response.models


class AuditLog:
    """The tenant's log. Raises AuditUnavailable, Overloaded; readers ReceiptNotFound."""

    def __init__(self, channel: grpc.aio.Channel, timeout_s: float) -> None:
        self._stub = AuditServiceStub(channel)
        self._records = RecordsServiceStub(channel)
        self._timeout_s = timeout_s

    async def append(self, request: audit.AppendRequest, deadline: Deadline) -> audit.AppendResponse:
        """Record an event. Returns when it is durable."""
        with translated(from_audit):
            return await self._stub.Append(request, timeout=deadline.left_s(self._timeout_s))

    async def receipt(self, context: ctx.RequestContext, event_id: str, deadline: Deadline) -> audit.Receipt:
        """Return the proof of an event of the tenant."""
        request = audit.GetReceiptRequest(context=context, event_id=event_id)
        with translated(from_audit_query):
            return (await self._stub.GetReceipt(request, timeout=deadline.left_s(self._timeout_s))).receipt

    async def record(self, context: ctx.RequestContext, request_id: str, deadline: Deadline) -> rec.ReadRecordResponse:
        """Return what was said in a request, to a role that may see it. Raises SaidByAudit, AuditUnavailable."""
        request = rec.ReadRecordRequest(context=context, request_id=request_id)
        with translated(passed_on):
            return await self._records.ReadRecord(request, timeout=deadline.left_s(self._timeout_s))

    async def released(
        self, context: ctx.RequestContext, request_id: str, release_event_id: str, deadline: Deadline
    ) -> rec.ReadReleasedResponse:
        """Return a held answer that was released, to who asked. Raises SaidByAudit, AuditUnavailable."""
        request = rec.ReadReleasedRequest(context=context, request_id=request_id, release_event_id=release_event_id)
        with translated(passed_on):
            return await self._records.ReadReleased(request, timeout=deadline.left_s(self._timeout_s))

    async def verifier_keys(self, context: ctx.RequestContext, deadline: Deadline) -> Sequence[str]:
        """Return the verifier keys of the tenant's log, newest first."""
        with translated(from_audit):
            response = await self._stub.ListKeys(audit.ListKeysRequest(context=context), timeout=deadline.left_s(self._timeout_s))
        return response.verifier_keys


@dataclass(frozen=True, slots=True)
class Peers:
    """The inner services of one gateway, but for engines and their tokenization, of which there may be many (engines.py)."""

    guardrails: Guardrails
    audit: AuditLog
