"""The async client. Everything that is not waiting is in chat.py, retry.py and errors.py, which the blocking client shares."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Self, TypeVar, Unpack

import grpc

from lionrock.audit.v1.audit_pb2 import Receipt
from lionrock.chassis.channel import MeshChannel
from lionrock.chassis.errors import remote_error
from lionrock.chassis.settings import PeerSettings
from lionrock.client.chat import (
    Answer,
    ChatOptions,
    ChatProgress,
    Delta,
    Finished,
    Messages,
    Started,
    chat_request,
    receipt_of,
    wire_messages,
)
from lionrock.client.connection import ServerTls, Tls, credentials_of_calls
from lionrock.client.errors import CallError, call_error
from lionrock.client.retry import RetryPolicy
from lionrock.client.tokens import TokenSource
from lionrock.gateway.v1 import gateway_pb2 as gw
from lionrock.gateway.v1.gateway_pb2_grpc import GatewayServiceStub

if TYPE_CHECKING:
    from lionrock.gateway.v1.gateway_pb2_grpc import GatewayServiceAsyncStub

Response = TypeVar("Response")


class AsyncChat:
    """One answer, while it is written: iterate over it, or `await complete()`.

    Leaving the iteration early does not end the call: use `async with`, or `aclose`. Cancelling the task that iterates does.
    `started`, `finished` and `receipt` are None until they have arrived.
    """

    def __init__(self, stub: GatewayServiceAsyncStub, request: gw.ChatRequest, deadline: float, retry: RetryPolicy) -> None:
        """`deadline`: a time of time.monotonic()."""
        self._stub = stub
        self._request = request
        self._deadline = deadline
        self._retry = retry
        self._attempt = 0
        self._call: grpc.aio.UnaryStreamCall[gw.ChatRequest, gw.ChatResponse] | None = None
        self.progress = ChatProgress()

    @property
    def started(self) -> Started | None:
        """Request id, model identity, seed, masked spans of the prompt."""
        return self.progress.started

    @property
    def finished(self) -> Finished | None:
        """Why the answer ended, counts, receipt and the salts that open it."""
        return self.progress.finished

    @property
    def receipt(self) -> Receipt | None:
        """Proof of the outcome in the audit log."""
        return receipt_of(self.progress.finished)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Delta:
        """Return the next text. Raises CallError, StreamBroken."""
        while True:
            try:
                response = await self._read()
            except grpc.aio.AioRpcError as failure:
                await self._wait_to_repeat(call_error(remote_error(failure)))
                continue
            if response is None:
                self.progress.ended()
                raise StopAsyncIteration
            delta = self.progress.accept(response)
            if delta is not None:
                return delta

    async def complete(self) -> Answer:
        """Wait for the whole answer. Raises like iterating."""
        async for _ in self:
            pass
        return self.progress.answer()

    async def aclose(self) -> None:
        """End the call if it still runs; the engine stops."""
        if self._call is not None:
            self._call.cancel()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exception: object) -> None:
        await self.aclose()

    async def _read(self) -> gw.ChatResponse | None:
        if self._call is None:
            self._attempt += 1
            self._call = self._stub.Chat(self._request, timeout=max(0.0, self._deadline - time.monotonic()))
        response = await self._call.read()
        return response if isinstance(response, gw.ChatResponse) else None  # otherwise grpc.aio.EOF

    async def _wait_to_repeat(self, error: CallError) -> None:
        left_s = self._deadline - time.monotonic()
        received = self.progress.started is not None
        wait_s = self._retry.wait_s(error, self._attempt, received=received, left_s=left_s, random=random.random)
        if wait_s is None:
            raise error
        await asyncio.sleep(wait_s)
        self._call = None


class AsyncClient:
    """A client of one gateway, for any number of tasks of one event loop. Use it as an async context manager."""

    def __init__(
        self,
        target: str,
        *,
        tls: Tls | ServerTls,
        token: TokenSource | None = None,
        deadline_s: float = 120.0,
        retry: RetryPolicy | None = None,
        server: str = "gateway",
    ) -> None:
        """`target`: host:port; of the gateway's port for tokens, with ServerTls. `token`: needed there, and possible with Tls.

        `deadline_s`: of calls that give none. `server`: service name in the gateway's certificate.
        """
        self._peer = PeerSettings(target=target, service=server, timeout_s=deadline_s)
        self._tls = tls
        self._token = token
        self._deadline_s = deadline_s
        self._retry = retry or RetryPolicy()
        self._channel: MeshChannel | None = None

    async def __aenter__(self) -> Self:
        """Raise chassis.tls.TlsFilesUnusable, TokenUnusable, and ValueError where there is neither certificate nor token.

        Connects at the first call.
        """
        calls = credentials_of_calls(self._tls, self._token)
        self._channel = MeshChannel(self._peer, self._tls.settings(), calls=calls)
        return self

    async def __aexit__(self, *exception: object) -> None:
        if self._channel is not None:
            await self._channel.close()
            self._channel = None

    def chat(self, messages: Messages, *, deadline_s: float | None = None, **options: Unpack[ChatOptions]) -> AsyncChat:
        """Ask. The call begins when the answer is read. Raises ValueError for messages that cannot be sent."""
        deadline = time.monotonic() + (self._deadline_s if deadline_s is None else deadline_s)
        return AsyncChat(self._stub, chat_request(messages, options), deadline, self._retry)

    async def count_tokens(self, messages: Messages, *, model: str = "", deadline_s: float | None = None) -> int:
        """Count the tokens of a conversation, chat template included. Raises CallError."""
        request = gw.CountTokensRequest(model=model, messages=wire_messages(messages))
        return (await self._unary(lambda timeout_s: self._stub.CountTokens(request, timeout=timeout_s), deadline_s)).tokens

    async def list_models(self, *, deadline_s: float | None = None) -> Sequence[gw.Model]:
        """List the models that this identity may use. Raises CallError."""
        return (
            await self._unary(lambda timeout_s: self._stub.ListModels(gw.ListModelsRequest(), timeout=timeout_s), deadline_s)
        ).models

    async def get_quota(self, *, deadline_s: float | None = None) -> Sequence[gw.QuotaUse]:
        """Say how much of the quotas that bound this identity is taken; empty: none does. Raises CallError."""
        return (
            await self._unary(lambda timeout_s: self._stub.GetQuota(gw.GetQuotaRequest(), timeout=timeout_s), deadline_s)
        ).quotas

    async def get_receipt(self, request_id: str, *, deadline_s: float | None = None) -> Receipt:
        """Fetch the proof of an earlier answer of the tenant. Raises ReceiptNotFound and other CallErrors."""
        request = gw.GetReceiptRequest(request_id=request_id)
        return (await self._unary(lambda timeout_s: self._stub.GetReceipt(request, timeout=timeout_s), deadline_s)).receipt

    async def list_audit_keys(self, *, deadline_s: float | None = None) -> gw.ListAuditKeysResponse:
        """Fetch origin and verifier keys of the tenant's log. Raises CallError."""
        return await self._unary(
            lambda timeout_s: self._stub.ListAuditKeys(gw.ListAuditKeysRequest(), timeout=timeout_s), deadline_s
        )

    @property
    def _stub(self) -> GatewayServiceAsyncStub:
        if self._channel is None:
            raise RuntimeError("the client is not open: use `async with AsyncClient(…) as client`")
        return GatewayServiceStub(self._channel)

    async def _unary(self, call: Callable[[float], Awaitable[Response]], deadline_s: float | None) -> Response:
        deadline = time.monotonic() + (self._deadline_s if deadline_s is None else deadline_s)
        attempt = 0
        while True:
            attempt += 1
            try:
                return await call(max(0.0, deadline - time.monotonic()))
            except grpc.aio.AioRpcError as failure:
                error = call_error(remote_error(failure))
            left_s = deadline - time.monotonic()
            wait_s = self._retry.wait_s(error, attempt, received=False, left_s=left_s, random=random.random)
            if wait_s is None:
                raise error
            await asyncio.sleep(wait_s)
