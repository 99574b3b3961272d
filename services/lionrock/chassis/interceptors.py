"""What happens to every call before and after its handler, in one place; calls that come over HTTP (http_door.py) pass it too.

  identity → allow-list → draining? → concurrency bound → server span → deadline cap → decode and validate → handler → error mapping

One interceptor instead of a chain: each further one costs an RPC a coroutine and a wrapped context, and the order is a security
matter that should be readable. Unary requests are received as streams of one message, so that all of this runs when the call
arrives and not when its message does: a caller that sends headers only is bounded like any other. The published OpenTelemetry
server interceptor is not used, because it continues the trace of whoever sends a header, before the caller is verified, and copies
exception texts into spans.
"""

from __future__ import annotations

import asyncio
import hashlib
import inspect
import logging
import time
from collections.abc import Awaitable, Callable, Hashable, Iterable, Mapping
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, TypeVar

import grpc
import protovalidate
from opentelemetry import context as otel_context
from opentelemetry import trace
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from lionrock.chassis import calls
from lionrock.chassis.admission import Admission, shutting_down
from lionrock.chassis.errors import (
    CallerNotPermitted,
    DeadlineExceeded,
    Internal,
    MalformedRequest,
    MeshError,
    MethodNotFound,
    ShuttingDown,
)
from lionrock.chassis.identity import AnyMember, Callers, SpiffeId, permits, shows_certificate, verified_identity
from lionrock.chassis.refusals import abort, mesh_error
from lionrock.chassis.settings import ServerSettings
from lionrock.chassis.telemetry import meter, tracer
from lionrock.chassis.validation import Decoder, Requests

log = logging.getLogger("lionrock.chassis")

Context = grpc.aio.ServicerContext
Answer = TypeVar("Answer")

PROBE_LIMIT = 64
PROBE_LIMIT_PER_CALLER = 16
REFUSALS_LOGGED_EVERY_S = 1.0
_PROPAGATOR = TraceContextTextMapPropagator()
AUTHORIZATION = "authorization"
TRACE_KEYS = frozenset({"traceparent", "tracestate"})
# Statuses that are the server's fault (OpenTelemetry semantic conventions for gRPC servers).
_SERVER_FAULTS = frozenset(
    {
        grpc.StatusCode.UNKNOWN,
        grpc.StatusCode.DEADLINE_EXCEEDED,
        grpc.StatusCode.UNIMPLEMENTED,
        grpc.StatusCode.INTERNAL,
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.DATA_LOSS,
    }
)


def token_bearer(authorization: Iterable[bytes]) -> bytes:
    """Return as whom a caller without a certificate is counted: as the holder of their token, whoever that will turn out to be."""
    return hashlib.sha256(b"\0".join(authorization)).digest()


@dataclass(frozen=True, slots=True)
class Operation:
    """What is asked for, by whichever door: its name in spans, its attributes in metrics."""

    name: str
    attributes: Mapping[str, str]
    probe: bool = False


@dataclass(frozen=True, slots=True)
class Method:
    """One method as the interceptor serves it."""

    full_name: str
    callers: Callers
    handler: grpc.RpcMethodHandler[Any, Any]
    decoder: Decoder
    attributes: Mapping[str, str]

    @property
    def rpc(self) -> Operation:
        """The same for spans, metrics and bounds."""
        return Operation(self.full_name, self.attributes, probe=self.probe)

    @property
    def probe(self) -> bool:
        """Health and reflection: outside of the bound of real work, answered while draining, not traced."""
        return isinstance(self.callers, AnyMember)


class Guard(grpc.aio.ServerInterceptor):
    """The interceptor of a server."""

    def __init__(self, settings: ServerSettings, callers: Mapping[str, Callers]) -> None:
        """Take `callers` by full service name; a service that is not named there is not served."""
        self._settings = settings
        self._callers = callers
        self.work = Admission(limit=settings.max_concurrent_rpcs, limit_per_caller=settings.max_concurrent_rpcs)
        self._probes = Admission(limit=PROBE_LIMIT, limit_per_caller=PROBE_LIMIT_PER_CALLER)
        tenants_share = max(1, settings.max_concurrent_rpcs // 4)
        self._tenant_limit = settings.max_concurrent_rpcs_per_caller or tenants_share
        self._service_limit = settings.max_concurrent_rpcs_per_caller or settings.max_concurrent_rpcs
        self.draining = False
        self._ending = False
        self._serving: set[asyncio.Task[Any]] = set()
        self._handlers: dict[str, grpc.RpcMethodHandler[Any, Any]] = {}
        self._unknown: grpc.RpcMethodHandler[Any, Any] = grpc.stream_stream_rpc_method_handler(self._refuse_unknown)
        self.validator = protovalidate.Validator()
        self._tracer = tracer()
        self._duration = meter().create_histogram("rpc.server.duration", "ms", "Time from the arrival of a call to its status")
        self._active = meter().create_up_down_counter("rpc.server.active_requests", "{request}", "Calls that are served now")
        self._refusals_unlogged = 0
        self._refusal_logged_at = 0.0

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler[Any, Any] | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler[Any, Any]:
        """Return the guarded handler of a method, made once; for an unknown method one that says so."""
        name = handler_call_details.method
        known = self._handlers.get(name)
        if known is not None:
            return known
        handler = await continuation(handler_call_details)
        service, _, method = name.removeprefix("/").partition("/")
        callers = self._callers.get(service)
        if handler is None or callers is None:
            return self._unknown
        attributes = {"rpc.system": "grpc", "rpc.service": service, "rpc.method": method}
        decoder = Decoder(handler.request_deserializer, self.validator)  # type: ignore[arg-type]
        guarded = self._guarded(Method(name.removeprefix("/"), callers, handler, decoder, attributes))
        self._handlers[name] = guarded
        return guarded

    def _guarded(self, method: Method) -> grpc.RpcMethodHandler[Any, Any]:
        handler = method.handler
        if handler.response_streaming:
            behaviour: Any = handler.stream_stream if handler.request_streaming else handler.unary_stream
            generator = inspect.isasyncgenfunction(behaviour)

            async def write_responses(request: Any, context: Context[Any, Any]) -> None:
                if not generator:
                    await behaviour(request, context)
                    return
                async with aclosing(behaviour(request, context)) as responses:
                    async for response in responses:
                        await context.write(response)

            async def serve_stream(requests: object, context: Context[Any, Any]) -> None:
                del requests
                await self._serve(method, context, write_responses)

            return grpc.stream_stream_rpc_method_handler(serve_stream, None, handler.response_serializer)
        answer: Any = handler.stream_unary if handler.request_streaming else handler.unary_unary
        serialize: Any = handler.response_serializer

        async def write_response(request: Any, context: Context[Any, Any]) -> bytes:
            encoded: bytes = serialize(await answer(request, context))
            return encoded

        async def serve_unary(requests: object, context: Context[Any, Any]) -> bytes:
            del requests
            answered: bytes = await self._serve(method, context, write_response)
            return answered

        return grpc.stream_unary_rpc_method_handler(serve_unary)

    async def _refuse_unknown(self, requests: object, context: Context[Any, Any]) -> None:
        del requests
        try:
            self._identity(context)
        except CallerNotPermitted as error:
            await self._refuse(context, error, "unknown")
        await self._refuse(context, MethodNotFound("the server has no such method"), "unknown")

    async def _refuse(self, context: Context[Any, Any], error: MeshError, method: str) -> None:
        """Refuse a call that was not admitted. Such lines are logged at a bounded rate: they cost the caller nothing."""
        self._refusals_unlogged += 1
        now = time.monotonic()
        if now - self._refusal_logged_at >= REFUSALS_LOGGED_EVERY_S:
            log.info("call refused", extra={"reason": error.reason, "rpc": method, "refusals": self._refusals_unlogged})
            self._refusal_logged_at, self._refusals_unlogged = now, 0
        await abort(context, error)

    def _identity(self, context: Context[Any, Any]) -> SpiffeId | None:
        """Return who calls, None on the port for bearer tokens. Raises CallerNotPermitted."""
        auth_context = context.auth_context()
        if self._settings.token_listen is not None and not shows_certificate(auth_context):
            return None
        return verified_identity(auth_context, self._settings.trust_domain)

    def _admit(self, method: Method, context: Context[Any, Any]) -> tuple[SpiffeId | None, Hashable]:
        """Verify the caller and count the call. Returns who calls, and as whom they are counted.

        Raises MeshError, having counted nothing.
        """
        identity = self._identity(context)
        if not permits(method.callers, identity):
            raise CallerNotPermitted("this identity may not call this method")
        if identity is None:
            counted: Hashable = token_bearer(
                value.encode() if isinstance(value, str) else value
                for key, value in context.invocation_metadata() or ()
                if key == AUTHORIZATION
            )
            self.enter(counted)
        elif method.probe:
            counted = identity
            self._probes.enter(counted)
        else:
            counted = identity
            self.enter(counted, None if identity.service is None else self._service_limit)
        return identity, counted

    def enter(self, caller: Hashable, limit: int | None = None) -> None:
        """Count one more call of a caller; `work.leave` counts it less. Raises ShuttingDown, Overloaded."""
        if self.draining:
            raise shutting_down()
        self.work.enter(caller, limit or self._tenant_limit)

    def deadline(self, remaining_s: float | None, *, probe: bool = False) -> float:
        """Return until when a call may take whose caller leaves it so many seconds, as a time of the event loop."""
        longest = self._settings.max_deadline_s
        if remaining_s is None:
            remaining_s = longest if probe else self._settings.default_deadline_s
        return asyncio.get_running_loop().time() + min(remaining_s, longest)

    def _start_span(self, operation: Operation, carrier: Mapping[str, str], identity: SpiffeId | None) -> trace.Span:
        parent = _PROPAGATOR.extract(carrier, otel_context.Context()) if carrier else otel_context.Context()
        attributes = dict(operation.attributes)
        if identity is not None and identity.service is not None:
            attributes["lionrock.caller.service"] = identity.service
        elif identity is not None and identity.tenant is not None:
            attributes["lionrock.caller.tenant"] = identity.tenant
        span = self._tracer.start_span(operation.name, parent, trace.SpanKind.SERVER, attributes)
        otel_context.attach(trace.set_span_in_context(span, parent))
        return span

    def end_running(self) -> None:
        """Cancel the handlers that run; their callers get SHUTTING_DOWN."""
        self._ending = True
        for task in tuple(self._serving):
            task.cancel()

    async def _serve(
        self, method: Method, context: Context[Any, Any], body: Callable[[Any, Context[Any, Any]], Awaitable[Any]]
    ) -> Any:
        try:
            identity, counted = self._admit(method, context)
        except MeshError as error:
            await self._refuse(context, error, method.full_name)
        try:
            call = calls.Call(context, identity, self.deadline(context.time_remaining(), probe=method.probe))
            carrier = {
                key: value for key, value in context.invocation_metadata() or () if key in TRACE_KEYS and isinstance(value, str)
            }
            return await self.run(method.rpc, call, carrier, lambda: self._answer(method, context, body))
        except MeshError as refusal:
            await abort(context, refusal)
        finally:
            (self._probes if method.probe else self.work).leave(counted)

    async def run(
        self, operation: Operation, call: calls.Call, carrier: Mapping[str, str], body: Callable[[], Awaitable[Answer]]
    ) -> Answer:
        """Run an admitted call in the current task: span, deadline, end of drain, measurement.

        `carrier` holds its caller's trace context. Raises MeshError for everything but cancellation and gRPC's own AbortError.
        """
        began = time.perf_counter()
        span: trace.Span = trace.INVALID_SPAN
        status, reason = grpc.StatusCode.OK, None
        task = asyncio.current_task()
        assert task is not None, "each call is served in a task"
        self._serving.add(task)
        self._active.add(1, operation.attributes)
        try:
            if not operation.probe:
                span = self._start_span(operation, carrier, call.caller)
            calls.enter_call(call)
            return await self._in_time(call, body)
        except grpc.aio.AbortError:
            assert call.context is not None
            status = call.context.code()
            raise
        except asyncio.CancelledError:
            if not self._ending:
                status = grpc.StatusCode.CANCELLED
                raise
            task.uncancel()
            status, reason = grpc.StatusCode.UNAVAILABLE, ShuttingDown.reason
            raise shutting_down() from None
        except Exception as error:
            refusal = mesh_error(error)
            status, reason = refusal.status, refusal.reason
            if reason != Internal.reason:
                log.debug("call failed", extra={"reason": reason, "rpc": operation.name})
            if refusal is error:
                raise
            raise refusal from error
        finally:
            self._serving.discard(task)
            self._finish(operation, span, status, reason, began)

    @staticmethod
    async def _in_time(call: calls.Call, body: Callable[[], Awaitable[Answer]]) -> Answer:
        try:
            async with asyncio.timeout_at(call.deadline) as limit:
                return await body()
        except TimeoutError:
            if not limit.expired():
                raise
            raise DeadlineExceeded("the deadline passed before the answer was complete") from None

    async def _answer(
        self, method: Method, context: Context[Any, Any], body: Callable[[Any, Context[Any, Any]], Awaitable[Any]]
    ) -> Any:
        requests = Requests(context, method.decoder, self._settings.stream_idle_timeout_s)
        if method.handler.request_streaming:
            answer = await body(requests, context)
        else:
            request = await anext(requests, None)
            if request is None:
                raise MalformedRequest("the call carries no message")
            answer = await body(request, context)
        if requests.refused is not None:
            raise requests.refused
        return answer

    def _finish(self, operation: Operation, span: trace.Span, status: grpc.StatusCode, reason: str | None, began: float) -> None:
        number = status.value[0]
        measured: dict[str, str | int] = {**operation.attributes, "rpc.grpc.status_code": number}
        self._active.add(-1, operation.attributes)
        self._duration.record((time.perf_counter() - began) * 1000, measured)
        if span.is_recording():
            span.set_attribute("rpc.grpc.status_code", number)
            if reason is not None:
                span.set_attribute("error.type", reason)
            if status in _SERVER_FAULTS:
                span.set_status(trace.StatusCode.ERROR)
        span.end()
