"""The blocking client, for threads and scripts. Everything that is not waiting is in chat.py, retry.py and errors.py."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from types import TracebackType
from typing import TYPE_CHECKING, Self, TypeVar, Unpack

import grpc

from lionrock.audit.v1.audit_pb2 import Receipt
from lionrock.chassis.errors import remote_error
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
from lionrock.client.connection import BlockingConnection, ServerTls, Tls, trace_metadata
from lionrock.client.errors import CallError, call_error
from lionrock.client.retry import RetryPolicy
from lionrock.client.tokens import TokenSource
from lionrock.gateway.v1 import gateway_pb2 as gw
from lionrock.gateway.v1.gateway_pb2_grpc import GatewayServiceStub

if TYPE_CHECKING:
    from grpc import _CallIterator

Response = TypeVar("Response")


class Chat(Iterator[Delta]):
    """One answer, while it is written: iterate over it, or `complete()`.

    Leaving the iteration early does not end the call: use `with`, or `close`. Ctrl-C in the iteration does. `started`, `finished`
    and `receipt` are None until they have arrived.
    """

    def __init__(self, connection: BlockingConnection, request: gw.ChatRequest, deadline: float, retry: RetryPolicy) -> None:
        """`deadline`: a time of time.monotonic()."""
        self._connection = connection
        self._request = request
        self._deadline = deadline
        self._retry = retry
        self._attempt = 0
        self._call: _CallIterator[gw.ChatResponse] | None = None
        self._open = ExitStack()
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

    def __next__(self) -> Delta:
        """Return the next text. Raises CallError, StreamBroken."""
        try:
            return self._next()
        except BaseException:
            # The end, an error, or Ctrl-C while waiting: in every case nobody reads on.
            self.close()
            raise

    def complete(self) -> Answer:
        """Wait for the whole answer. Raises like iterating."""
        for _ in self:
            pass
        return self.progress.answer()

    def close(self) -> None:
        """End the call if it still runs; the engine stops."""
        if self._call is not None:
            self._call.cancel()
        self._open.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def _next(self) -> Delta:
        while True:
            try:
                response = self._read()
            except grpc.RpcError as failure:
                self._wait_to_repeat(call_error(remote_error(failure)))
                continue
            if response is None:
                self.progress.ended()
                raise StopIteration
            delta = self.progress.accept(response)
            if delta is not None:
                return delta

    def _read(self) -> gw.ChatResponse | None:
        if self._call is None:
            self._attempt += 1
            stub = self._open.enter_context(self._connection.stub())
            timeout_s = max(0.0, self._deadline - time.monotonic())
            self._call = stub.Chat(self._request, timeout=timeout_s, metadata=trace_metadata())
        return next(self._call, None)

    def _wait_to_repeat(self, error: CallError) -> None:
        left_s = self._deadline - time.monotonic()
        received = self.progress.started is not None
        wait_s = self._retry.wait_s(error, self._attempt, received=received, left_s=left_s, random=random.random)
        if wait_s is None:
            raise error
        time.sleep(wait_s)
        self._open.close()
        self._call = None


class Client:
    """A client of one gateway, safe for threads. Use it as a context manager, or `close` it."""

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
        Raises chassis.tls.TlsFilesUnusable for bad certificate files, TokenUnusable, and ValueError where there is neither
        certificate nor token. Connects at the first call.
        """
        self._connection = BlockingConnection(target, tls, server, token)
        self._deadline_s = deadline_s
        self._retry = retry or RetryPolicy()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection; calls that run are cancelled."""
        self._connection.close()

    def chat(self, messages: Messages, *, deadline_s: float | None = None, **options: Unpack[ChatOptions]) -> Chat:
        """Ask. The call begins when the answer is read. Raises ValueError for messages that cannot be sent."""
        deadline = time.monotonic() + (self._deadline_s if deadline_s is None else deadline_s)
        return Chat(self._connection, chat_request(messages, options), deadline, self._retry)

    def count_tokens(self, messages: Messages, *, model: str = "", deadline_s: float | None = None) -> int:
        """Count the tokens of a conversation, chat template included. Raises CallError."""
        request = gw.CountTokensRequest(model=model, messages=wire_messages(messages))
        return self._unary(
            lambda stub, timeout_s: stub.CountTokens(request, timeout=timeout_s, metadata=trace_metadata()), deadline_s
        ).tokens

    def list_models(self, *, deadline_s: float | None = None) -> Sequence[gw.Model]:
        """List the models that this identity may use. Raises CallError."""
        request = gw.ListModelsRequest()
        return self._unary(
            lambda stub, timeout_s: stub.ListModels(request, timeout=timeout_s, metadata=trace_metadata()), deadline_s
        ).models

    def get_quota(self, *, deadline_s: float | None = None) -> Sequence[gw.QuotaUse]:
        """Say how much of the quotas that bound this identity is taken; empty: none does. Raises CallError."""
        request = gw.GetQuotaRequest()
        return self._unary(
            lambda stub, timeout_s: stub.GetQuota(request, timeout=timeout_s, metadata=trace_metadata()), deadline_s
        ).quotas

    def get_receipt(self, request_id: str, *, deadline_s: float | None = None) -> Receipt:
        """Fetch the proof of an earlier answer of the tenant. Raises ReceiptNotFound and other CallErrors."""
        request = gw.GetReceiptRequest(request_id=request_id)
        return self._unary(
            lambda stub, timeout_s: stub.GetReceipt(request, timeout=timeout_s, metadata=trace_metadata()), deadline_s
        ).receipt

    def list_audit_keys(self, *, deadline_s: float | None = None) -> gw.ListAuditKeysResponse:
        """Fetch origin and verifier keys of the tenant's log. Raises CallError."""
        request = gw.ListAuditKeysRequest()
        return self._unary(
            lambda stub, timeout_s: stub.ListAuditKeys(request, timeout=timeout_s, metadata=trace_metadata()), deadline_s
        )

    def _unary(self, call: Callable[[GatewayServiceStub, float], Response], deadline_s: float | None) -> Response:
        deadline = time.monotonic() + (self._deadline_s if deadline_s is None else deadline_s)
        attempt = 0
        while True:
            attempt += 1
            try:
                with self._connection.stub() as stub:
                    return call(stub, max(0.0, deadline - time.monotonic()))
            except grpc.RpcError as failure:
                error = call_error(remote_error(failure))
            left_s = deadline - time.monotonic()
            wait_s = self._retry.wait_s(error, attempt, received=False, left_s=left_s, random=random.random)
            if wait_s is None:
                raise error
            time.sleep(wait_s)
