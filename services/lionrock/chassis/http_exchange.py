"""One HTTP request and its answer, within bounds: size of the body, time, and nothing of it in the logs.

Knows: which requests are refused before the application sees them, how a body is collected, when an application is cancelled.
Does not know: sockets and framing (http_connection.py).

The application gets the whole body at once, so it never meets half of one, and learns by cancellation that its client is gone.
Refused here: bodies with both Content-Length and Transfer-Encoding (request smuggling, RFC 9112, section 6.1), more than the
limits, upgrades of any kind.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable, Mapping, MutableMapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from lionrock.chassis.http_settings import HttpServerSettings

log = logging.getLogger("lionrock.http")

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Application = Callable[[MutableMapping[str, Any], Receive, Send], Awaitable[None]]
"""An ASGI application; `lifespan` is never sent to it."""

_RETRY_AFTER_S = b"1"
_PATH_LOGGED_CHARS = 200


class _Refused(Exception):
    """The request is answered with a status and no more."""

    def __init__(self, status: int, headers: Sequence[tuple[bytes, bytes]] = ()) -> None:
        super().__init__(status)
        self.status = status
        self.headers = headers


@dataclass(slots=True)
class Load:
    """Requests that are served now, over all connections."""

    running: int = 0
    idle: asyncio.Event = field(default_factory=asyncio.Event)

    def __post_init__(self) -> None:
        self.idle.set()

    def begin(self) -> None:
        """Count a request."""
        self.running += 1
        self.idle.clear()

    def end(self) -> None:
        """Forget it."""
        self.running -= 1
        if not self.running:
            self.idle.set()


class Exchange:
    """Wraps an application for one connection. `abort` ends that connection at once."""

    def __init__(
        self,
        app: Application,
        settings: HttpServerSettings,
        load: Load,
        abort: Callable[[], None],
        extensions: Mapping[str, Any],
    ) -> None:
        self._app = app
        self._settings = settings
        self._load = load
        self._abort = abort
        self._extensions = extensions

    async def __call__(self, scope: Any, receive: Any, send: Any, sync_spawn: Any, call_soon: Any) -> None:
        """Serve one request, as Hypercorn calls applications."""
        del sync_spawn, call_soon
        if scope["type"] != "http":
            with contextlib.suppress(OSError):
                await send({"type": "websocket.close"})
            return
        answer = _Answer(send)
        inbox = _Inbox(receive, self._settings.max_body_bytes)
        began = time.monotonic()
        pump = asyncio.create_task(inbox.pump(), name="lionrock-http-inbox")
        self._load.begin()
        try:
            async with asyncio.timeout(self._settings.request_timeout_s):
                await self._serve(scope, inbox, answer)
        except _Refused as refusal:
            await answer.refuse(refusal, scope)
        except TimeoutError:
            await self._fail(answer, scope, 503)
        except Exception as error:
            log.error("a request failed", exc_info=error, extra={"method": scope["method"]})
            await self._fail(answer, scope, 500)
        finally:
            self._load.end()
            pump.cancel()
            _log_access(scope, answer, time.monotonic() - began)

    async def _fail(self, answer: _Answer, scope: Mapping[str, Any], status: int) -> None:
        if answer.status is None:
            await answer.refuse(_Refused(status), scope)
        elif not answer.complete:
            self._abort()  # a cut answer must not look like a whole one

    async def _serve(self, scope: MutableMapping[str, Any], inbox: _Inbox, answer: _Answer) -> None:
        self._check(scope)
        try:
            async with asyncio.timeout(self._settings.body_timeout_s):
                body = await inbox.body()
        except TimeoutError:
            raise _Refused(408) from None
        if body is None:
            return
        scope["extensions"] = {**scope.get("extensions", {}), **self._extensions}
        app = asyncio.ensure_future(self._app(scope, _Replay(body, inbox), answer.send))
        gone = asyncio.create_task(inbox.gone.wait())
        try:
            await asyncio.wait({app, gone}, return_when=asyncio.FIRST_COMPLETED)
            if not app.done() and not answer.complete:
                return
            await app
        finally:
            gone.cancel()
            if not app.done():
                app.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await app

    def _check(self, scope: Mapping[str, Any]) -> None:
        """Refuse by what the headers say. Raises _Refused."""
        if scope["http_version"] not in ("1.0", "1.1", "2"):
            raise _Refused(505)
        headers: list[tuple[bytes, bytes]] = scope["headers"]
        size = len(scope["raw_path"]) + len(scope["query_string"]) + sum(len(name) + len(value) + 4 for name, value in headers)
        if size > self._settings.max_header_bytes:
            raise _Refused(431)
        names = [name.lower() for name, _ in headers]
        if b"transfer-encoding" in names and b"content-length" in names:
            raise _Refused(400)
        for name, value in headers:
            if name.lower() == b"content-length":
                if not value.isdigit():
                    raise _Refused(400)
                if len(value) > 18 or int(value) > self._settings.max_body_bytes:  # int() is slow for many digits
                    raise _Refused(413)
        if self._load.running > self._settings.max_concurrent_requests:
            raise _Refused(503, [(b"retry-after", _RETRY_AFTER_S)])


class _Inbox:
    """Takes what the client sends as it comes, so that the connection never waits, and keeps no more than the limit."""

    def __init__(self, receive: Receive, max_body_bytes: int) -> None:
        self._receive = receive
        self._limit = max_body_bytes
        self._body = bytearray()
        self._complete = False
        self._too_large = False
        self._changed = asyncio.Event()
        self.gone = asyncio.Event()

    async def pump(self) -> None:
        while True:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                self.gone.set()
                self._changed.set()
                return
            if not self._too_large:
                self._body += message.get("body", b"")
                if len(self._body) > self._limit:
                    self._too_large = True
                    self._body.clear()
            self._complete = self._complete or not message.get("more_body", False)
            if self._complete or self._too_large:
                self._changed.set()

    async def body(self) -> bytes | None:
        """Return the whole body; None when the client went before its end. Raises _Refused."""
        await self._changed.wait()
        if self._too_large:
            raise _Refused(413)
        return bytes(self._body) if self._complete else None


class _Replay:
    """What the application receives: the body, then that the client is gone, when it is."""

    def __init__(self, body: bytes, inbox: _Inbox) -> None:
        self._body: bytes | None = body
        self._inbox = inbox

    async def __call__(self) -> Message:
        if self._body is not None:
            body, self._body = self._body, None
            return {"type": "http.request", "body": body, "more_body": False}
        await self._inbox.gone.wait()
        return {"type": "http.disconnect"}


class _Answer:
    """Passes an answer on, and remembers how far it got."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self.status: int | None = None
        self.complete = False
        self.body_bytes = 0

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = int(message["status"])
        elif message["type"] == "http.response.body":
            self.body_bytes += len(message.get("body", b""))
            self.complete = not message.get("more_body", False)
        await self._send(message)

    async def refuse(self, refusal: _Refused, scope: Mapping[str, Any]) -> None:
        headers = [(b"content-length", b"0"), *refusal.headers]
        if scope["http_version"] != "2":
            headers.append((b"connection", b"close"))
        await self.send({"type": "http.response.start", "status": refusal.status, "headers": headers})
        await self.send({"type": "http.response.body", "body": b""})


def _log_access(scope: Mapping[str, Any], answer: _Answer, took_s: float) -> None:
    fields: dict[str, object] = {
        "method": scope["method"][:16],
        "status": answer.status,
        "complete": answer.complete,
        "body_bytes": answer.body_bytes,
        "took_ms": round(took_s * 1000, 3),
        "http_version": scope["http_version"],
        "client": scope["client"][0] if scope.get("client") else None,
    }
    # What the application does not know is a stranger's text, and so is any query.
    if answer.status is not None and answer.status < 400:
        fields["path"] = scope["path"][:_PATH_LOGGED_CHARS]
    log.info("request", extra=fields)
