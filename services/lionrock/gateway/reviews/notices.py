"""Tells a tenant that an answer waits: one signed HTTPS POST, without a word of question or answer.

    Content-Type: application/json
    Lionrock-Signature: t=<seconds since 1970>,v1=<HMAC-SHA256(secret, "<t>." + body), hexadecimal>

    {"event":"review.held","expires_at":…,"held_at":…,"purpose":…,"request_id":…,"tenant":…}

A receiver compares the signature in constant time and refuses a time that is minutes old. The request id is the same at every try.
HTTP/1.1, TLS 1.2 or later, no redirects, no proxies of the environment; the caller sets the deadline.
"""

from __future__ import annotations

import asyncio
import hmac
import json
import ssl
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

import h11

from lionrock.chassis.private_files import PrivateFileUnusable, read_private
from lionrock.gateway.reviews.rows import Review
from lionrock.gateway.reviews.rules import Notify

MIN_SECRET_CHARS: Final = 32
_MAX_SECRET_BYTES: Final = 4096
_MAX_ANSWER_BYTES: Final = 64 * 1024
_READ_BYTES: Final = 16 * 1024


class NotNotified(Exception):
    """They could not be told. The text says why, and quotes nothing of what came."""


async def tell(notify: Notify, review: Review, now_s: int) -> None:
    """Send the notice; any answer of 200 to 299 will do. `now_s`: seconds since 1970. Raises NotNotified."""
    body = notice(review)
    try:
        secret = await asyncio.to_thread(read_private, notify.secret_file, _MAX_SECRET_BYTES)
    except (OSError, PrivateFileUnusable) as error:
        raise NotNotified(f"the secret cannot be read: {type(error).__name__}") from error
    if len(secret) < MIN_SECRET_CHARS:
        raise NotNotified(f"the secret has fewer than {MIN_SECRET_CHARS} characters")
    await _post(notify, body, f"t={now_s},v1={signature(secret, now_s, body)}")


def notice(review: Review) -> bytes:
    """Return what is sent."""
    said = {
        "event": "review.held",
        "tenant": review.tenant,
        "request_id": review.request_id,
        "purpose": review.purpose,
        "held_at": _moment(review.held_at_us),
        "expires_at": _moment(review.expires_at_us),
    }
    return json.dumps(said, separators=(",", ":"), sort_keys=True).encode()


def signature(secret: str, now_s: int, body: bytes) -> str:
    """Return HMAC-SHA256(secret, "<now_s>." + body), hexadecimal."""
    return hmac.digest(secret.encode(), f"{now_s}.".encode() + body, sha256).hex()


def _moment(time_us: int) -> str:
    return datetime.fromtimestamp(time_us // 1_000_000, UTC).isoformat().replace("+00:00", "Z")


async def _post(notify: Notify, body: bytes, signed: str) -> None:
    parts = urlsplit(notify.url)
    try:
        tls = await asyncio.to_thread(_trusting, notify.ca_file)
        reader, writer = await asyncio.open_connection(parts.hostname, parts.port or 443, ssl=tls, limit=_READ_BYTES)
    except (OSError, ValueError, ssl.SSLError) as error:
        raise NotNotified(f"cannot connect: {type(error).__name__}") from error
    headers = [
        ("Host", parts.netloc),
        ("User-Agent", "lionrock-gateway"),
        ("Content-Type", "application/json"),
        ("Content-Length", str(len(body))),
        ("Lionrock-Signature", signed),
        ("Connection", "close"),
    ]
    try:
        http = h11.Connection(h11.CLIENT, max_incomplete_event_size=_READ_BYTES)
        request = h11.Request(method="POST", target=parts.path or "/", headers=headers)
        for sent in (request, h11.Data(data=body), h11.EndOfMessage()):
            writer.write(http.send(sent) or b"")
        await writer.drain()
        status = await _status(reader, http)
    except (OSError, ssl.SSLError, h11.ProtocolError) as error:
        raise NotNotified(f"no HTTP answer: {type(error).__name__}") from error
    finally:
        writer.transport.abort()
    if not 200 <= status < 300:
        raise NotNotified(f"the answer has status {status}")


async def _status(reader: asyncio.StreamReader, http: h11.Connection) -> int:
    read = 0
    while read <= _MAX_ANSWER_BYTES:
        event = http.next_event()
        if event is h11.NEED_DATA:
            data = await reader.read(_READ_BYTES)
            read += len(data)
            http.receive_data(data)
        elif isinstance(event, h11.Response):
            return event.status_code
        elif isinstance(event, h11.ConnectionClosed):
            raise NotNotified("the connection was closed before the answer")
    raise NotNotified("the answer is too long")


def _trusting(ca_file: Path | None) -> ssl.SSLContext:
    """Read the authorities, each time anew, since they are rotated too."""
    context = ssl.create_default_context(cafile=None if ca_file is None else str(ca_file))
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    return context
