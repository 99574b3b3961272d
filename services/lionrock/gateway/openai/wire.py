"""JSON answers in ASGI's messages."""

from __future__ import annotations

import json
from collections.abc import Sequence

from lionrock.chassis.http_exchange import Send

Headers = Sequence[tuple[bytes, bytes]]


def encoded(value: object) -> bytes:
    """Return JSON in UTF-8, on one line."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()


async def send_json(send: Send, status: int, value: object, headers: Headers = ()) -> None:
    """Send a whole answer."""
    body = encoded(value)
    told = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body)), (b"cache-control", b"no-store")]
    await send({"type": "http.response.start", "status": status, "headers": [*told, *headers]})
    await send({"type": "http.response.body", "body": body})
