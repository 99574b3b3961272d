"""Fetches one JSON document over HTTPS, with a bound on everything that comes back.

Knows: HTTP/1.1 on one connection, TLS 1.2 or later, the authorities of one file or of the system. Follows no redirect and takes no
proxy from the environment, so what is asked is what the settings name. Does not know what a document means. The caller sets the
deadline; cancelling closes the connection.
"""

from __future__ import annotations

import asyncio
import json
import ssl
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import h11

MAX_DOCUMENT_BYTES = 256 * 1024
_MAX_HEADER_BYTES = 16 * 1024
_READ_BYTES = 16 * 1024


class DocumentUnavailable(Exception):
    """The document could not be had, or is none that is accepted. The text says why, and quotes nothing of what came."""


async def fetch_document(url: str, ca_file: Path | None) -> dict[str, Any]:
    """Return the JSON object at an https URL. Raises DocumentUnavailable."""
    try:
        parts = urlsplit(url)
        port = parts.port or 443
    except ValueError:
        raise DocumentUnavailable("not a URL") from None
    if parts.scheme != "https" or not parts.hostname or "@" in parts.netloc or parts.fragment or not url.isascii():
        raise DocumentUnavailable("not an https URL without user and fragment")
    try:
        tls = await asyncio.to_thread(_trusting, ca_file)
        reader, writer = await asyncio.open_connection(parts.hostname, port, ssl=tls, limit=_READ_BYTES)
    except (OSError, ssl.SSLError) as error:
        raise DocumentUnavailable(f"cannot connect: {type(error).__name__}") from error
    try:
        target = parts.path + (f"?{parts.query}" if parts.query else "")
        body = await _get(reader, writer, parts.netloc, target or "/")
    except (OSError, ssl.SSLError, h11.ProtocolError) as error:
        raise DocumentUnavailable(f"no HTTP answer: {type(error).__name__}") from error
    finally:
        writer.transport.abort()
    try:
        document = json.loads(body)
    except (ValueError, RecursionError):
        raise DocumentUnavailable("the answer is not JSON") from None
    if not isinstance(document, dict):
        raise DocumentUnavailable("the answer is not a JSON object")
    return document


def _trusting(ca_file: Path | None) -> ssl.SSLContext:
    """Read the authorities, each time anew, since they are rotated too."""
    context = ssl.create_default_context(cafile=None if ca_file is None else str(ca_file))
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    return context


async def _get(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, host: str, target: str) -> bytes:
    http = h11.Connection(h11.CLIENT, max_incomplete_event_size=_MAX_HEADER_BYTES)
    headers = [("Host", host), ("User-Agent", "lionrock-gateway"), ("Accept", "application/json"), ("Connection", "close")]
    for sent in (h11.Request(method="GET", target=target, headers=headers), h11.EndOfMessage()):
        writer.write(http.send(sent) or b"")
    await writer.drain()
    body = bytearray()
    while True:
        event = http.next_event()
        if event is h11.NEED_DATA:
            http.receive_data(await reader.read(_READ_BYTES))
        elif isinstance(event, h11.Response):
            if event.status_code != 200:
                raise DocumentUnavailable(f"the answer has status {event.status_code}")
        elif isinstance(event, h11.Data):
            body += event.data
            if len(body) > MAX_DOCUMENT_BYTES:
                raise DocumentUnavailable(f"the answer has more than {MAX_DOCUMENT_BYTES} bytes")
        elif isinstance(event, h11.EndOfMessage):
            return bytes(body)
        elif isinstance(event, h11.ConnectionClosed):
            raise DocumentUnavailable("the connection was closed before the answer")
