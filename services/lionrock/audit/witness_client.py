"""One conversation with one witness: HTTP/1.1 on one connection, with a bound on everything that comes back.

Knows: c2sp.org/tlog-witness from the client's side, as bytes. Does not know: what is asked when, and whether a cosignature is right
(witnesses.py). The caller sets the deadline; cancelling closes the connection.
"""

import asyncio
import ssl
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from urllib.parse import urlsplit

import h11

from lionrock.tlog.encoding import encode_base64

ANSWER_MAX_BYTES = 64 * 1024
_HEADERS_MAX_BYTES = 16 * 1024
_READ_BYTES = 16 * 1024
_USER_AGENT = "lionrock-audit"


class WitnessUnreachable(Exception):
    """The witness could not be asked, or what it answered is not HTTP or too long."""


@dataclass(frozen=True, slots=True)
class WitnessAnswer:
    """Status, content type without parameters, body."""

    status: int
    content_type: str
    body: bytes


class WitnessConnection:
    """An open connection to a witness."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, host: str, path: str) -> None:
        self._reader = reader
        self._writer = writer
        self._host = host
        self._path = path
        self._http = h11.Connection(h11.CLIENT, max_incomplete_event_size=_HEADERS_MAX_BYTES)

    async def add_checkpoint(self, old_size: int, proof: Sequence[bytes], note: str) -> WitnessAnswer:
        """Submit a checkpoint. Raises WitnessUnreachable."""
        body = "\n".join([f"old {old_size}", *map(encode_base64, proof), "", note]).encode()
        headers = [
            ("Host", self._host),
            ("User-Agent", _USER_AGENT),
            ("Content-Type", "text/plain; charset=utf-8"),
            ("Content-Length", str(len(body))),
        ]
        try:
            if self._http.our_state is h11.DONE:
                self._http.start_next_cycle()
            request = h11.Request(method="POST", target=f"{self._path}/add-checkpoint", headers=headers)
            for event in (request, h11.Data(data=body), h11.EndOfMessage()):
                self._writer.write(self._http.send(event) or b"")
            await self._writer.drain()
            return await self._answer()
        except (OSError, h11.ProtocolError) as error:
            raise WitnessUnreachable(type(error).__name__) from error

    async def _answer(self) -> WitnessAnswer:
        response: h11.Response | None = None
        body = bytearray()
        while True:
            event = self._http.next_event()
            if event is h11.NEED_DATA:
                self._http.receive_data(await self._reader.read(_READ_BYTES))
            elif isinstance(event, h11.Response):
                response = event
            elif isinstance(event, h11.Data):
                body += event.data
                if len(body) > ANSWER_MAX_BYTES:
                    raise WitnessUnreachable(f"the answer has more than {ANSWER_MAX_BYTES} bytes")
            elif isinstance(event, h11.EndOfMessage):
                break
            elif isinstance(event, h11.ConnectionClosed):
                raise WitnessUnreachable("the connection was closed")
        assert response is not None
        content_type = next((value for name, value in response.headers if name == b"content-type"), b"")
        return WitnessAnswer(response.status_code, content_type.partition(b";")[0].strip().decode("latin-1").lower(), bytes(body))


@asynccontextmanager
async def connect_witness(url: str, ca_file: Path | None) -> AsyncIterator[WitnessConnection]:
    """Open a connection to the witness at a submission prefix. Raises WitnessUnreachable."""
    parts = urlsplit(url)
    secure = parts.scheme == "https"
    assert parts.hostname is not None
    try:
        reader, writer = await asyncio.open_connection(
            parts.hostname, parts.port or (443 if secure else 80), ssl=_tls(ca_file) if secure else None, limit=_READ_BYTES
        )
    except (OSError, ssl.SSLError) as error:
        raise WitnessUnreachable(type(error).__name__) from error
    try:
        yield WitnessConnection(reader, writer, parts.netloc.rpartition("@")[2], parts.path.rstrip("/"))
    finally:
        writer.transport.abort()


@cache
def _tls(ca_file: Path | None) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=None if ca_file is None else str(ca_file))
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    return context
