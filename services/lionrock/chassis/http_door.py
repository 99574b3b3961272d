"""HTTP requests as calls of the mesh: a second door beside a gRPC server, under the same rules.

Knows how a request is admitted, bounded, timed, traced and refused: by the server's own Guard (interceptors.py), so that a caller
with two doors has the bounds of one. Does not know what a request asks for, nor who a bearer token belongs to.
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Hashable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from google.protobuf.message import Message

from lionrock.chassis.calls import Call
from lionrock.chassis.errors import CallerNotPermitted, InvalidField
from lionrock.chassis.identity import AnyTenant, SpiffeId, certified_identity, permits
from lionrock.chassis.interceptors import AUTHORIZATION, TRACE_KEYS, Answer, Guard, Operation, token_bearer
from lionrock.chassis.validation import check

if TYPE_CHECKING:
    from lionrock.chassis.http_exchange import Application
    from lionrock.chassis.http_settings import HttpServerSettings

TIMEOUT_HEADER = "lionrock-timeout"
_TRACED = frozenset(key.encode() for key in TRACE_KEYS)

Scope = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class HttpDoor:
    """A port for HTTP beside the gRPC port: its settings, and what makes its ASGI application."""

    settings: HttpServerSettings
    app: Callable[[HttpCalls], Application]


def header(scope: Scope, name: str) -> str | None:
    """Return the value of a header, None without one. Raises InvalidField for several, of which each reader may take another."""
    values = [value for key, value in scope["headers"] if key == name.encode("ascii")]
    if len(values) > 1:
        raise InvalidField("a header is repeated", field_violations=[(name, "at most once")])
    return values[0].decode("latin-1") if values else None


class HttpCalls:
    """Serves requests as calls."""

    def __init__(self, guard: Guard, trust_domain: str) -> None:
        self._guard = guard
        self._trust_domain = trust_domain

    async def serve(self, name: str, scope: Scope, body: Callable[[], Awaitable[Answer]]) -> Answer:
        """Run `body` as the call `name` in the current task. Raises MeshError, for everything but cancellation.

        Inside, `current_call()` has the caller of the certificate and the deadline: the seconds of the Lionrock-Timeout header, or
        the server's default, and never more than the server's cap.
        """
        identity = self._identity(scope)
        deadline = self._guard.deadline(_remaining_s(scope))
        key = _key(scope, identity)
        self._guard.enter(key)
        try:
            service, _, method = name.partition("/")
            operation = Operation(name, {"rpc.system": "http", "rpc.service": service, "rpc.method": method})
            carrier = {key.decode(): value.decode("latin-1") for key, value in scope["headers"] if key in _TRACED}
            return await self._guard.run(operation, Call(None, identity, deadline), carrier, body)
        finally:
            self._guard.work.leave(key)

    def check(self, message: Message) -> None:
        """Check a message by the rules of its proto, as those are that come over gRPC. Raises InvalidField."""
        check(message, self._guard.validator)

    def _identity(self, scope: Scope) -> SpiffeId | None:
        chain = scope.get("extensions", {}).get("tls", {}).get("client_cert_chain", ())
        if not chain:
            return None
        identity = certified_identity(chain[0], self._trust_domain)
        if not permits(AnyTenant(), identity):
            raise CallerNotPermitted("this identity may not call this method")
        return identity


def _key(scope: Scope, identity: SpiffeId | None) -> Hashable:
    """Whose share of the concurrency a call takes: the certificate's holder or, without one, the token's, whoever that will be."""
    if identity is not None:
        return identity
    return token_bearer(value for key, value in scope["headers"] if key == AUTHORIZATION.encode())


def _remaining_s(scope: Scope) -> float | None:
    text = header(scope, TIMEOUT_HEADER)
    if text is None:
        return None
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 0 < seconds < math.inf:
        raise InvalidField("the timeout is no time", field_violations=[(TIMEOUT_HEADER, "seconds, more than 0")])
    return seconds
