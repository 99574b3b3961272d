"""Notices of held answers: a real HTTPS receiver, and what it can check."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from lionrock.chassis.ids import uuid7
from lionrock.gateway.reviews.notices import NotNotified, tell
from lionrock.gateway.reviews.rows import Review
from lionrock.gateway.reviews.rules import Cause, Notify
from mesh_ca import DevCa

SECRET = "correct-horse-battery-staple-secret"


class Receiver:
    """An HTTPS server that answers every request alike. `received`: heads and bodies."""

    def __init__(self, directory: Path) -> None:
        directory.mkdir(exist_ok=True)
        self._tls = DevCa(directory).issue("gateway")
        self.ca_file = self._tls.ca_file
        self.reply = b"HTTP/1.1 204 No Content\r\n\r\n"
        self.received: list[tuple[dict[str, str], bytes]] = []
        self.port = 0

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[Receiver]:
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(self._tls.cert_file, self._tls.key_file)
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0, ssl=context)
        self.port = server.sockets[0].getsockname()[1]
        try:
            yield self
        finally:
            server.close()
            await server.wait_closed()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
            headers = {"": head[0]} | {
                name.lower(): value for name, _, value in (line.partition(": ") for line in head[1:] if line)
            }
            self.received.append((headers, await reader.readexactly(int(headers["content-length"]))))
            writer.write(self.reply)
            await writer.drain()
        except (OSError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()


@pytest.fixture
async def receiver(tmp_path: Path) -> AsyncIterator[Receiver]:
    async with Receiver(tmp_path / "receiver").serving() as serving:
        yield serving


@pytest.fixture
def secret_file(tmp_path: Path) -> Path:
    file = tmp_path / "secret"
    file.write_text(SECRET)
    file.chmod(0o600)
    return file


def held() -> Review:
    who = ("ada", frozenset({"ada"}), "drafting", "case-1", "personal")
    return Review("bank", uuid7(), uuid7(), *who, Cause.PURPOSE, held_at_us=1_000_000, expires_at_us=61_000_000)


async def test_a_notice_is_signed_and_says_no_more_than_that_an_answer_waits(receiver: Receiver, secret_file: Path) -> None:
    review = held()
    await tell(Notify(f"https://localhost:{receiver.port}/hooks/review", secret_file, receiver.ca_file), review, 1_700_000_000)
    ((headers, body),) = receiver.received
    assert headers[""] == "POST /hooks/review HTTP/1.1"
    signed = hmac.digest(SECRET.encode(), b"1700000000." + body, hashlib.sha256).hex()
    assert headers["lionrock-signature"] == f"t=1700000000,v1={signed}"
    assert json.loads(body) == {
        "event": "review.held",
        "tenant": "bank",
        "request_id": review.request_id,
        "purpose": "drafting",
        "held_at": "1970-01-01T00:00:01Z",
        "expires_at": "1970-01-01T00:01:01Z",
    }


@pytest.mark.parametrize(
    "reply",
    [
        b"HTTP/1.1 500 Oh\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 302 Found\r\nLocation: https://localhost/elsewhere\r\nContent-Length: 0\r\n\r\n",
        b"no HTTP\r\n\r\n",
        b"",
    ],
)
async def test_what_does_not_take_a_notice_was_not_notified(receiver: Receiver, secret_file: Path, reply: bytes) -> None:
    receiver.reply = reply
    with pytest.raises(NotNotified):
        await tell(Notify(f"https://localhost:{receiver.port}/", secret_file, receiver.ca_file), held(), 1)
    assert len(receiver.received) == 1


async def test_an_untrusted_receiver_gets_nothing(receiver: Receiver, secret_file: Path, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    foreign = DevCa(tmp_path / "other").issue("gateway").ca_file
    with pytest.raises(NotNotified):
        await tell(Notify(f"https://localhost:{receiver.port}/", secret_file, foreign), held(), 1)
    assert receiver.received == []


@pytest.mark.parametrize(("mode", "secret"), [(0o644, SECRET), (0o600, "short"), (0o600, None)])
async def test_nothing_is_sent_without_a_secret_that_others_cannot_read(
    receiver: Receiver, tmp_path: Path, mode: int, secret: str | None
) -> None:
    file = tmp_path / "bad"
    await asyncio.to_thread(written, file, mode, secret)
    with pytest.raises(NotNotified):
        await tell(Notify(f"https://localhost:{receiver.port}/", file, receiver.ca_file), held(), 1)
    assert receiver.received == []


def written(file: Path, mode: int, secret: str | None) -> None:
    if secret is not None:
        file.write_text(secret)
        file.chmod(mode)
