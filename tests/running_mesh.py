"""The whole mesh for tests, started by `lionrock up` as a user starts it. tests/mesh/conftest.py starts one for all tests there."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import psutil

from lionrock.cli.state import MeshInfo, StateDir
from lionrock.client import Client, Tls
from models import smollm2_path

# Half of it passes while the tests run, so that every test after the first minute runs on rotated certificates.
CERTIFICATE_LIFETIME_S = 60
SERVICES = ("gateway", "tokenization", "inference", "guardrails", "audit")
Found = TypeVar("Found")


def lionrock(*arguments: str, timeout_s: float = 120) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "lionrock.cli", *arguments], capture_output=True, text=True, timeout=timeout_s, check=False
    )


def eventually(look: Callable[[], Found | None], what: str, *, within_s: float = 60) -> Found:
    """What `look` returns as soon as that is true; the mesh tells of a change in files, which cannot be waited for otherwise."""
    deadline = time.monotonic() + within_s
    while time.monotonic() < deadline:
        found = look()
        if found:
            return found
        time.sleep(0.1)
    raise AssertionError(f"not within {within_s} s: {what}")


class Mesh:
    """A running `lionrock up` and what it prints."""

    def __init__(self, root: Path, process: subprocess.Popen[str]) -> None:
        self.state = StateDir(root)
        self.process = process
        self.lines: list[str] = []
        self.reader = threading.Thread(target=self._read, daemon=True)
        self.reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        self.lines.extend(iter(self.process.stdout.readline, ""))

    @property
    def output(self) -> str:
        return "".join(self.lines)

    @property
    def info(self) -> MeshInfo:
        return self.state.read_mesh()

    def command(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return lionrock(*arguments, "--state-dir", str(self.state.root))

    def client(self) -> Client:
        certs = self.state.client_certs
        return Client(self.info.endpoints["gateway"].target, tls=Tls(certs / "tls.crt", certs / "tls.key", certs / "ca.crt"))

    def processes(self) -> list[psutil.Process]:
        return [psutil.Process(self.process.pid), *psutil.Process(self.process.pid).children(recursive=True)]


@contextlib.contextmanager
def running_mesh(root: Path) -> Iterator[Mesh]:
    """A mesh that is ready; killed at the end if it still runs then, so that a failed test leaves nothing behind."""
    root.mkdir(parents=True, exist_ok=True)
    config = root.parent / f"{root.name}.yaml"
    config.write_text(f"certificate_lifetime_s: {CERTIFICATE_LIFETIME_S}\nmodel: {smollm2_path()}\n")
    command = [sys.executable, "-m", "lionrock.cli", "up", "--port", "0", "--state-dir", str(root), "--config", str(config)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        mesh = Mesh(root, process)
        try:
            eventually(lambda: mesh.state.mesh_file.exists() or process.poll() is not None, "ready", within_s=180)
            assert process.poll() is None, mesh.output
            yield mesh
        finally:
            if process.poll() is None:
                process.kill()
            mesh.reader.join()
