"""What the tests of the witness share: a log that can be cut anywhere and forked, requests, and a witness on real files."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import yaml
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from lionrock.chassis.http_server import start_http_server
from lionrock.chassis.http_settings import HttpServerSettings
from lionrock.tlog.checkpoint import Checkpoint
from lionrock.tlog.encoding import encode_base64
from lionrock.tlog.keys import Ed25519Signer, VerifierKey
from lionrock.tlog.merkle import Frontier, Subtree, consistency_proof, leaf_hash
from lionrock.tlog.note import sign_note
from lionrock.witness.app import witness_app
from lionrock.witness.keys import load_keys, new_keys
from lionrock.witness.state import open_state
from lionrock.witness.witness import Witness

ORIGIN = "audit.example.hk/audit"
NAME = "witness.example.hk/w1"


class GrowingLog:
    """A log of numbered leaves; `branch` makes it another history than `parent` from some leaf on."""

    def __init__(
        self, origin: str = ORIGIN, *, seed: int = 1, branch: str = "", fork_at: int = 0, parent: GrowingLog | None = None
    ) -> None:
        self.origin = origin
        self.signer = Ed25519Signer(origin, Ed25519PrivateKey.from_private_bytes(bytes([seed]) * 32))
        self._frontier = Frontier(0, [])
        self._hashes: dict[Subtree, bytes] = {}
        self._roots = [self._frontier.root()]
        self._branch = branch
        self._fork_at = fork_at
        self._parent = parent

    @property
    def key(self) -> VerifierKey:
        return self.signer.verifier_key

    def grow_to(self, size: int) -> None:
        while self._frontier.size < size:
            index = self._frontier.size
            for level, hash_ in enumerate(self._frontier.append(leaf_hash(self.leaf(index)))):
                self._hashes[Subtree(level, index >> level)] = hash_
            self._roots.append(self._frontier.root())

    def leaf(self, index: int) -> bytes:
        if index >= self._fork_at:
            return f"{self._branch}{index}".encode()
        return str(index).encode() if self._parent is None else self._parent.leaf(index)

    def root(self, size: int) -> bytes:
        self.grow_to(size)
        return self._roots[size]

    def note(self, size: int) -> str:
        return sign_note(Checkpoint(self.origin, size, self.root(size)).text(), self.signer)

    def proof(self, old: int, size: int) -> list[bytes]:
        self.grow_to(size)
        if old in (0, size):
            return []
        return consistency_proof(old, size, lambda subtrees: [self._hashes[subtree] for subtree in subtrees])

    def request(self, old: int, size: int) -> bytes:
        return request(old, self.proof(old, size), self.note(size))


def request(old: int | str, proof: list[bytes], note: str) -> bytes:
    return "\n".join([f"old {old}", *(encode_base64(sibling) for sibling in proof), "", note]).encode()


@dataclass(frozen=True, slots=True)
class WitnessPlace:
    """A directory with the files of a witness."""

    root: Path
    logs: dict[str, tuple[VerifierKey, ...]] = field(default_factory=lambda: {ORIGIN: (GrowingLog().key,)})
    name: str = NAME

    @property
    def key_file(self) -> Path:
        return self.root / "keys" / "witness.key"

    @property
    def state_file(self) -> Path:
        return self.root / "state" / "witness.db"

    def make_keys(self, *algorithms: str) -> list[VerifierKey]:
        signers = new_keys(self.name, algorithms or ("ml-dsa-44", "ed25519"), self.key_file, self.state_file)
        return [signer.verifier_key for signer in signers]

    @contextmanager
    def open(self) -> Iterator[Witness]:
        signers = load_keys(self.key_file, self.name)
        with closing(open_state(self.state_file, [str(signer.verifier_key) for signer in signers])) as state:
            yield Witness(state, signers, self.logs)

    @asynccontextmanager
    async def serve(self, **limits: object) -> AsyncIterator[int]:
        """Serve in this process. Yields the port."""
        with self.open() as witness, ThreadPoolExecutor(1) as worker:
            server = await start_http_server(witness_app(witness, worker), HttpServerSettings.model_validate(limits))
            try:
                yield server.port
            finally:
                await server.stop(0)

    def write_config(self) -> Path:
        config = self.root / "witness.yaml"
        settings = {
            "name": self.name,
            "key_file": str(self.key_file),
            "state_file": str(self.state_file),
            "logs": {origin: [str(key) for key in keys] for origin, keys in self.logs.items()},
            "http": {"ready_file": str(self.root / "ready")},
        }
        config.write_text(yaml.safe_dump(settings), encoding="utf-8")
        return config

    async def start(self) -> tuple[asyncio.subprocess.Process, int]:
        """Start the real program. Returns it and its port."""
        ready = self.root / "ready"
        ready.unlink(missing_ok=True)
        log = os.open(self.root / "log.jsonl", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        try:
            process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "lionrock.witness", "--config", str(self.write_config()), stderr=log
            )
        finally:
            os.close(log)
        async with asyncio.timeout(60):
            while not ready.exists():
                assert process.returncode is None, (self.root / "log.jsonl").read_text()
                await asyncio.sleep(0.01)
        return process, int(ready.read_text())


@dataclass(frozen=True, slots=True)
class Reply:
    status: int
    content_type: str
    body: str


async def call(port: int, body: bytes | None, path: str = "/add-checkpoint") -> Reply:
    """POST a body, or GET without one. Raises OSError, EOFError when the server goes."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        method, content = ("GET", b"") if body is None else ("POST", body)
        head = f"{method} {path} HTTP/1.1\r\nHost: w\r\nContent-Length: {len(content)}\r\nConnection: close\r\n\r\n"
        writer.write(head.encode() + content)
        response_head, separator, response_body = (await asyncio.wait_for(reader.read(-1), 30)).partition(b"\r\n\r\n")
        if not separator:
            raise EOFError
        lines = response_head.decode().split("\r\n")
        headers = dict(line.lower().split(": ", 1) for line in lines[1:])
        if len(response_body) != int(headers.get("content-length", len(response_body))):
            raise EOFError
        return Reply(int(lines[0].split(" ")[1]), headers.get("content-type", ""), response_body.decode())
    finally:
        writer.transport.abort()
