"""The routes of the HTTP API, and what every request passes on its way to one.

    certificate, concurrency, deadline, span (HttpCalls) → credential (Authenticator) → body → ChatRequest → its rules → pipeline

Knows paths and order. Each handler is one call of the mesh from its first header to the last byte of its answer.
"""

from __future__ import annotations

import base64
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from starlette.applications import Starlette
from starlette.routing import Route

from lionrock.chassis.calls import current_call
from lionrock.chassis.errors import MalformedRequest, MeshError, MethodNotFound
from lionrock.chassis.http_door import HttpCalls, header
from lionrock.chassis.http_exchange import Application, Receive, Send
from lionrock.chassis.ids import uuid7
from lionrock.gateway import errors
from lionrock.gateway.identity.authenticator import Authenticator, Presented
from lionrock.gateway.identity.failures import TokenInvalidError, Why
from lionrock.gateway.identity.refusing import refusing
from lionrock.gateway.openai.answer import receipt, review
from lionrock.gateway.openai.answering import Answering, Chat, Completion
from lionrock.gateway.openai.asking import Asked, asked_in_chat, asked_in_completion
from lionrock.gateway.openai.chat_fields import ChatCompletionRequest, CompletionRequest
from lionrock.gateway.openai.documents import openapi
from lionrock.gateway.openai.parsing import parsed
from lionrock.gateway.openai.problems import http_status, problem, problem_headers
from lionrock.gateway.openai.wire import send_json
from lionrock.gateway.peers import Deadline
from lionrock.gateway.pipeline import ChatPipeline
from lionrock.gateway.reviews.servicer import ReviewServicer
from lionrock.gateway.servicer import GatewayServicer
from lionrock.gateway.tenants import Principal
from lionrock.gateway.v1 import consent_pb2 as consent
from lionrock.gateway.v1 import gateway_pb2 as gw
from lionrock.gateway.v1 import review_pb2 as pb

Scope = MutableMapping[str, Any]
Handler = Callable[[Scope, bytes, Send], Awaitable[None]]

_SERVICE = "lionrock.gateway.openai"
_STATES = {
    pb.REVIEW_DECISION_UNSPECIFIED: "pending",
    pb.REVIEW_DECISION_RELEASE: "released",
    pb.REVIEW_DECISION_REFUSE: "refused",
    pb.REVIEW_DECISION_EXPIRED: "expired",
}
_SCHEME = "bearer "
_NO_TOKEN = "certificate"  # noqa: S105  a word that is no password
"""What stands for the API key of a client that shows a certificate: the official clients do not go without one. It is no token."""


class OpenAiApi:
    """The API of one gateway, as an ASGI application made by `application`."""

    def __init__(
        self,
        calls: HttpCalls,
        authenticator: Authenticator,
        pipeline: ChatPipeline,
        servicer: GatewayServicer,
        reviews: ReviewServicer | None,
    ) -> None:
        """`reviews`: None where the gateway has no state, and so no held answers."""
        self._reviews = reviews
        self._calls = calls
        self._authenticator = authenticator
        self._pipeline = pipeline
        self._servicer = servicer

    def application(self) -> Application:
        """Return the application."""
        routes = [
            ("POST", "/v1/chat/completions", "ChatCompletions", self._chat),
            ("POST", "/v1/completions", "Completions", self._completion),
            ("GET", "/v1/models", "ListModels", self._models),
            ("GET", "/v1/models/{model:path}", "GetModel", self._models),
            ("GET", "/v1/lionrock/audit-keys", "ListAuditKeys", self._audit_keys),
            ("GET", "/v1/lionrock/receipts/{request_id}", "GetReceipt", self._receipt),
            ("GET", "/v1/lionrock/notices", "ListNotices", self._notices),
            ("GET", "/v1/lionrock/held-answers/{request_id}", "GetHeldAnswer", self._held_answer),
            ("POST", "/v1/embeddings", "Embeddings", self._no_embeddings),
            ("GET", "/openapi.json", "OpenApi", self._document),
        ]
        # Raw ASGI: a handler writes its answer itself, as the pipeline speaks, and waits for the client as it writes.
        app = Starlette(routes=[Route(path, _Endpoint(self, name, handler, verb)) for verb, path, name, handler in routes])
        app.router.default = _Endpoint(self, "Unknown", _unknown, None)
        app.router.redirect_slashes = False
        return app.router

    async def serve(self, name: str, handler: Handler, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve a request as a call: its errors become answers."""

        async def body() -> None:
            await handler(scope, (await receive()).get("body", b""), send)

        try:
            await self._calls.serve(f"{_SERVICE}/{name}", scope, body)
        except MeshError as error:
            request_id = error.metadata.setdefault("request_id", uuid7())
            headers = [*problem_headers(error).items(), ("x-request-id", request_id)]
            await send_json(send, http_status(error), problem(error), [(key.encode(), value.encode()) for key, value in headers])

    async def _chat(self, scope: Scope, body: bytes, send: Send) -> None:
        principal, deadline = await self._caller(scope)
        asked = asked_in_chat(parsed(ChatCompletionRequest, _json(scope, body), scope))
        await self._answer(asked, Chat, principal, deadline, send)

    async def _completion(self, scope: Scope, body: bytes, send: Send) -> None:
        principal, deadline = await self._caller(scope)
        asked = asked_in_completion(parsed(CompletionRequest, _json(scope, body), scope))
        await self._answer(asked, Completion, principal, deadline, send)

    async def _answer(self, asked: Asked, form: type[Chat], principal: Principal, deadline: Deadline, send: Send) -> None:
        self._calls.check(asked.request)

        async def ask(request: gw.ChatRequest, take: Callable[[gw.ChatResponse], Awaitable[None]]) -> None:
            self._calls.check(request)
            await self._pipeline.answer(principal, request, deadline, take)

        answering = Answering(asked, form, ask, send)
        try:
            await answering.run()
        except MeshError as error:
            if not answering.begun:
                raise
            await answering.fail(error)

    async def _models(self, scope: Scope, body: bytes, send: Send) -> None:
        del body
        principal, deadline = await self._caller(scope)
        models = await self._servicer.list_models(principal, deadline)
        listed = [_model(model) for model in models.models]
        name = scope.get("path_params", {}).get("model")
        if name is None:
            await send_json(send, 200, {"object": "list", "data": listed}, [(b"x-request-id", uuid7().encode())])
            return
        for model in listed:
            if model["id"] == name:
                await send_json(send, 200, model, [(b"x-request-id", uuid7().encode())])
                return
        raise errors.ModelNotFound("no such model is served that the caller may use")

    async def _audit_keys(self, scope: Scope, body: bytes, send: Send) -> None:
        del body
        keys = await self._servicer.list_audit_keys(*await self._caller(scope))
        shown = {"origin": keys.origin, "verifier_keys": list(keys.verifier_keys)}
        await send_json(send, 200, shown, [(b"x-request-id", uuid7().encode())])

    async def _receipt(self, scope: Scope, body: bytes, send: Send) -> None:
        del body
        principal, deadline = await self._caller(scope)
        request = gw.GetReceiptRequest(request_id=scope["path_params"]["request_id"])
        self._calls.check(request)
        answered = await self._servicer.get_receipt(request, principal, deadline)
        shown = {"request_id": request.request_id, "receipt": receipt(answered.receipt)}
        await send_json(send, 200, shown, [(b"x-request-id", uuid7().encode())])

    async def _notices(self, scope: Scope, body: bytes, send: Send) -> None:
        del body
        principal, _ = await self._caller(scope)
        told, notices = self._servicer.privacy_statement(principal)
        shown = {
            "tenant": told.tenant,
            "territory": told.territory,
            "ai_disclosure": dict(sorted(told.ai_disclosure.items())),
            "purposes": [_purpose(each) for each in notices],
        }
        await send_json(send, 200, shown, [(b"x-request-id", uuid7().encode())])

    async def _held_answer(self, scope: Scope, body: bytes, send: Send) -> None:
        del body
        principal, deadline = await self._caller(scope)
        request = pb.GetHeldAnswerRequest(request_id=scope["path_params"]["request_id"])
        self._calls.check(request)
        if self._reviews is None:
            raise MethodNotFound("this gateway keeps no held answers")
        told = await self._reviews.get_held_answer(request, principal, deadline)
        shown: dict[str, Any] = {"lionrock": {"review": review(request.request_id, _STATES[told.decision], told.expires_at)}}
        if told.decision == pb.REVIEW_DECISION_RELEASE:
            shown |= {"content": told.answer, "answer_salt": base64.b64encode(told.answer_salt).decode()}
        elif told.safe_message:
            shown |= {"refusal": told.safe_message}
        await send_json(send, 200, shown, [(b"x-request-id", uuid7().encode())])

    async def _no_embeddings(self, scope: Scope, body: bytes, send: Send) -> None:
        del body, send
        await self._caller(scope)
        raise errors.EmbeddingsUnsupported("no model that is served makes embeddings")

    async def _document(self, scope: Scope, body: bytes, send: Send) -> None:
        del scope, body
        await send_json(send, 200, openapi())

    async def _caller(self, scope: Scope) -> tuple[Principal, Deadline]:
        call = current_call()
        assert call is not None, "the chassis admits every call"
        with refusing():
            presented = Presented(None if call.caller is None else str(call.caller), _bearer(scope))
            return await self._authenticator.authenticate(presented), Deadline(call.deadline)


class _Endpoint:
    """A route's ASGI application."""

    def __init__(self, api: OpenAiApi, name: str, handler: Handler, verb: str | None) -> None:
        self._api = api
        self._name = name
        self._handler = handler
        self._verb = verb

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        handler = self._handler if self._verb in (None, scope["method"]) else _unknown
        await self._api.serve(self._name, handler, scope, receive, send)


async def _unknown(scope: Scope, body: bytes, send: Send) -> None:
    del scope, body, send
    raise MethodNotFound("there is nothing at this path for this method")


def _bearer(scope: Scope) -> str | None:
    """Return the bearer token, None for none. Raises TokenInvalidError for another scheme."""
    value = header(scope, "authorization")
    if value is None:
        return None
    if value[: len(_SCHEME)].lower() != _SCHEME:
        raise TokenInvalidError(Why.MALFORMED)
    token = value[len(_SCHEME) :].strip(" ")
    return None if token == _NO_TOKEN else token


def _json(scope: Scope, body: bytes) -> bytes:
    """Return the body of a request that says that it is JSON. Raises MalformedRequest."""
    kind = (header(scope, "content-type") or "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise MalformedRequest("the body is not application/json")
    if header(scope, "content-encoding") not in (None, "identity"):
        raise MalformedRequest("the body is compressed")
    return body


def _purpose(told: consent.Notice) -> dict[str, Any]:
    shown: dict[str, Any] = {
        "purpose": told.purpose,
        "data_classes": list(told.data_classes),
        "requires_consent": told.requires_consent,
        "exempt_from_opt_out": told.exempt_from_opt_out,
    }
    if told.version:
        notice = {
            "version": told.version,
            "digest": told.digest,
            "consent_since": told.consent_since,
            "texts": dict(sorted(told.texts.items())),
        }
        shown["notice"] = notice
    return shown


def _model(model: gw.Model) -> dict[str, Any]:
    return {
        "id": model.identity.model,
        "object": "model",
        "created": 0,
        "owned_by": "lionrock",
        "lionrock": {
            "weights_digest": model.identity.weights_digest,
            "context_window": model.context_window,
            "ready": model.ready,
        },
    }
