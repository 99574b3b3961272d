"""Answers a question over HTTP: drives the pipeline once for each request that it takes, and writes as it speaks.

Knows ASGI's messages, the chunks of OpenAI's API and their order. Writing waits for the client, and what waits for it is the
pipeline: a slow reader slows its own engine and holds no more than the pipeline's bounds. The task is cancelled when the client
goes, and with it every request that it runs.
"""

from __future__ import annotations

import asyncio
import base64
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from lionrock.chassis.errors import MeshError
from lionrock.chassis.http_exchange import Send
from lionrock.gateway.openai.answer import Choice, Told, fingerprint, usage
from lionrock.gateway.openai.asking import Asked
from lionrock.gateway.openai.logprobs import chat_logprobs, completion_logprobs
from lionrock.gateway.openai.problems import problem
from lionrock.gateway.openai.tools import IN_WORDS
from lionrock.gateway.openai.wire import encoded, send_json
from lionrock.gateway.peer_errors import from_inference, protocol_violation
from lionrock.gateway.v1 import gateway_pb2 as gw

Delta = gw.ChatResponse.Delta
Ask = Callable[[gw.ChatRequest, Callable[[gw.ChatResponse], Awaitable[None]]], Awaitable[None]]
"""Answer one request through a function that takes what is said."""

_MAX_RECEIPT_HEADER_BYTES = 6 * 1024
_EVENT_STREAM = [(b"content-type", b"text/event-stream; charset=utf-8"), (b"cache-control", b"no-store")]
DISCLOSED = [(b"lionrock-ai-generated", b"true")]


class Chat:
    """The forms of a chat completion."""

    prefix, whole, chunk = "chatcmpl-", "chat.completion", "chat.completion.chunk"

    @staticmethod
    def choice(choice: Choice) -> dict[str, Any]:
        """Return a whole answer."""
        told = chat_logprobs(choice.answer.logprobs) if choice.logprobs else None
        return {"index": choice.index, "message": choice.message(), "logprobs": told, "finish_reason": choice.finish_reason}

    @staticmethod
    def opening(choice: Choice) -> dict[str, Any] | None:
        """Return the first chunk of an answer."""
        return {"index": choice.index, "delta": choice.opening(), "logprobs": None, "finish_reason": None}

    @staticmethod
    def more(choice: Choice, more: Delta) -> dict[str, Any]:
        """Return a chunk of text."""
        told = chat_logprobs(more.logprobs) if choice.logprobs else None
        return {"index": choice.index, "delta": choice.delta(more.text), "logprobs": told, "finish_reason": None}

    @staticmethod
    def closing(choice: Choice) -> dict[str, Any]:
        """Return the last chunk."""
        delta = {} if choice.answer.blocked is None else {"refusal": choice.answer.blocked}
        return {"index": choice.index, "delta": delta, "logprobs": None, "finish_reason": choice.finish_reason}


class Completion(Chat):
    """The forms of a completion."""

    prefix, whole, chunk = "cmpl-", "text_completion", "text_completion"

    @staticmethod
    def choice(choice: Choice) -> dict[str, Any]:
        """Return a whole answer."""
        told = completion_logprobs(choice.answer.logprobs) if choice.logprobs else None
        return {"index": choice.index, "text": choice.answer.text, "logprobs": told, "finish_reason": choice.finish_reason}

    @staticmethod
    def opening(choice: Choice) -> dict[str, Any] | None:
        """Return nothing: a completion begins with its text."""
        del choice
        return None

    @staticmethod
    def more(choice: Choice, more: Delta) -> dict[str, Any]:
        """Return a chunk of text."""
        told = completion_logprobs(more.logprobs) if choice.logprobs else None
        return {"index": choice.index, "text": more.text, "logprobs": told, "finish_reason": None}

    @staticmethod
    def closing(choice: Choice) -> dict[str, Any]:
        """Return the last chunk."""
        return {"index": choice.index, "text": "", "logprobs": None, "finish_reason": choice.finish_reason}


class Answering:
    """One HTTP answer, of one or several choices."""

    def __init__(self, asked: Asked, form: type[Chat], ask: Ask, send: Send) -> None:
        self._asked = asked
        self._form = form
        self._ask = ask
        self._send = send
        self._created = int(time.time())
        self._first: gw.ChatResponse.Started | None = None
        self._writing = asyncio.Lock()
        self.begun = False
        """Whether the status has been sent: an error can then only be the last event."""

    async def run(self) -> None:
        """Answer. Raises MeshError, also after the answer has begun."""
        asked = self._asked.request.sampling.HasField("logprobs")
        choices = [Choice(index, logprobs=asked) for index in range(self._asked.choices)]
        if len(choices) == 1:
            await self._answer(choices[0])
        else:
            await self._answer_all(choices)
        if not self._asked.stream:
            await self._send_whole(choices)
            return
        if self._asked.usage_in_stream:
            await self._event({**self._head(self._form.chunk), "choices": [], "usage": usage(choices)})
        await self._send({"type": "http.response.body", "body": b"data: [DONE]\n\n", "more_body": False})

    async def fail(self, error: MeshError) -> None:
        """End a stream that has begun: the error is its last event, and [DONE] does not follow."""
        body = b"data: " + encoded(problem(error)) + b"\n\n"
        await self._send({"type": "http.response.body", "body": body, "more_body": False})

    async def _answer_all(self, choices: Sequence[Choice]) -> None:
        try:
            async with asyncio.TaskGroup() as group:
                for choice in choices:
                    group.create_task(self._answer(choice))
        except* MeshError as errors:
            found: BaseException = errors
            while isinstance(found, BaseExceptionGroup):
                found = found.exceptions[0]
            raise found from None

    async def _answer(self, choice: Choice) -> None:
        request, tools = self._asked.of_choice(choice.index), self._asked.tools
        if tools is not None:
            name = tools.only
            if name is None:
                name = await self._choose(choice, tools.choosing(request))
                if name is None:
                    await self._speak(choice, None)
                    return
            choice.tool = None if name == IN_WORDS else name
            request = tools.answering(request) if choice.tool is None else tools.calling(request, choice.tool)
        await self._speak(choice, request)

    async def _choose(self, choice: Choice, request: gw.ChatRequest) -> str | None:
        """Return what the model chose; None when a guardrail ended its choice, which then is the answer."""
        told = Told()

        async def take(response: gw.ChatResponse) -> None:
            told.take(response)

        await self._ask(request, take)
        assert told.finished is not None
        if told.blocked is not None:
            told.texts.clear()  # a choice is no answer
            choice.answer = told
            return None
        if told.text not in request.constraint.choice.values:
            raise from_inference(protocol_violation("CONSTRAINT_BROKEN"))
        choice.choosing = told
        return told.text

    async def _speak(self, choice: Choice, request: gw.ChatRequest | None) -> None:
        """Answer a request; without one, the answer is there already."""
        if request is None:
            await self._opened(choice)
        else:

            async def take(response: gw.ChatResponse) -> None:
                more = choice.answer.take(response)
                if response.HasField("started"):
                    await self._opened(choice)
                elif more is not None and self._asked.stream:
                    await self._chunk(self._form.more(choice, more))

            await self._ask(request, take)
        if self._asked.stream:
            await self._chunk(self._form.closing(choice), lionrock=self._own([choice]))

    async def _opened(self, choice: Choice) -> None:
        if self._first is None:
            self._first = choice.answer.started
        if not self._asked.stream:
            return
        async with self._writing:
            if not self.begun:
                self.begun = True
                headers = [*_EVENT_STREAM, *DISCLOSED, (b"x-request-id", self._request_id().encode())]
                await self._send({"type": "http.response.start", "status": 200, "headers": headers})
        if (opening := self._form.opening(choice)) is not None:
            await self._chunk(opening)

    def _request_id(self) -> str:
        assert self._first is not None
        return self._first.request_id

    def _head(self, kind: str) -> dict[str, Any]:
        assert self._first is not None
        return {
            "id": f"{self._form.prefix}{self._first.request_id}",
            "object": kind,
            "created": self._created,
            "model": self._first.model.model,
            "system_fingerprint": fingerprint(self._first.model),
        }

    def _own(self, choices: Sequence[Choice]) -> dict[str, Any]:
        assert self._first is not None
        disclosure = dict(sorted(self._first.ai_disclosure.items()))
        return {"ai_disclosure": disclosure, "answers": [proof for choice in choices for proof in choice.proofs()]}

    async def _chunk(self, choice: dict[str, Any], **members: Any) -> None:
        counts = {"usage": None} if self._asked.usage_in_stream else {}
        await self._event({**self._head(self._form.chunk), "choices": [choice], **counts, **members})

    async def _event(self, event: dict[str, Any]) -> None:
        async with self._writing:
            body = b"data: " + encoded(event) + b"\n\n"
            await self._send({"type": "http.response.body", "body": body, "more_body": True})

    async def _send_whole(self, choices: list[Choice]) -> None:
        body = {
            **self._head(self._form.whole),
            "choices": [self._form.choice(choice) for choice in choices],
            "usage": usage(choices),
            "lionrock": self._own(choices),
        }
        headers = [*DISCLOSED, (b"x-request-id", self._request_id().encode()), *_receipts(choices)]
        await send_json(self._send, 200, body, headers)


def _receipts(choices: Sequence[Choice]) -> list[tuple[bytes, bytes]]:
    """Return the receipts of the answers as headers, Base64; in the body they are in any case."""
    proofs = [told.finished.receipt.tlog_proof for told in (choice.answer for choice in choices) if told.finished is not None]
    values = [base64.b64encode(proof.encode()) for proof in proofs]
    return [(b"lionrock-receipt", value) for value in values] if sum(map(len, values)) <= _MAX_RECEIPT_HEADER_BYTES else []
