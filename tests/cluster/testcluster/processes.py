"""Programs that the test cluster runs: started with a log file, ended by their id, and never left behind.

The kernel ends a program whose starter is gone (setpriv --pdeathsig, where util-linux is installed), so that not even a killed
test run leaves an etcd. That is tied to the thread that started it: start programs in the main thread.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import socket
import ssl
import subprocess
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import psutil

from .waiting import NeverHappened, wait_for

_PORTS = range(20_000, 32_000)
"""Below the ports that the kernel hands out by itself, so that a port stays ours while its program is being restarted."""


_random = random.SystemRandom()  # tests seed the other one, and two runs at once would want the same ports
_given: set[int] = set()


def free_port() -> int:
    """A port of the loopback address that nobody listens on, and that this process was not given before."""
    for port in _random.sample(_PORTS, 200):
        if port in _given:
            continue
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            _given.add(port)
            return port
    raise RuntimeError("no free port")


def answers(url: str, context: ssl.SSLContext | None = None) -> bool:
    """Whether the URL answers 200, as health probes do."""
    try:
        with urllib.request.urlopen(url, timeout=2, context=context) as response:
            return bool(response.status == 200)
    except OSError:
        return False


class ProgramFailed(Exception):
    """A program ended or did not become ready. The message carries the end of its log."""


class Program:
    """One program that runs. log: its standard output and error, appended to over restarts."""

    def __init__(
        self, name: str, command: Sequence[str | Path], log: Path, *, environment: Mapping[str, str] | None = None
    ) -> None:
        """Start it at once. environment: added to ours."""
        self.name = name
        self.log = log
        self._command = [str(part) for part in command]
        self._environment = {**os.environ, **(environment or {})}
        self._process = self._start()

    @property
    def pid(self) -> int:
        """Id of the process."""
        return self._process.pid

    @property
    def running(self) -> bool:
        """Whether it has not ended."""
        return self._process.poll() is None

    @property
    def memory_bytes(self) -> int:
        """Resident memory."""
        return int(psutil.Process(self.pid).memory_info().rss)

    @property
    def cpu_s(self) -> float:
        """Processor time that it has used, user and system."""
        times = psutil.Process(self.pid).cpu_times()
        return float(times.user + times.system)

    def log_end(self, lines: int = 20) -> str:
        """Last lines of its log."""
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])

    def wait_until(self, ready: Callable[[], bool], *, timeout_s: float = 60) -> Program:
        """Wait until it is ready. Raises ProgramFailed if it ends before, or takes longer."""

        def look() -> bool:
            if not self.running:
                raise ProgramFailed(f"{self.name} ended with {self._process.returncode}:\n{self.log_end()}")
            return ready()

        try:
            wait_for(look, f"{self.name} is ready", timeout_s=timeout_s)
        except NeverHappened as error:
            raise ProgramFailed(f"{error}:\n{self.log_end()}") from None
        return self

    def stop(self, *, timeout_s: float = 15) -> None:
        """Ask it to end, and end it if it does not."""
        if self.running:
            self._process.terminate()
            try:
                self._process.wait(timeout_s)
            except subprocess.TimeoutExpired:
                self._process.kill()
        self._process.wait(timeout_s)

    def kill(self) -> None:
        """End it as a crash would (SIGKILL)."""
        if self.running:
            self._process.kill()
        self._process.wait(15)

    def pause(self) -> None:
        """Keep it from running, as a machine that hangs (SIGSTOP)."""
        self._process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Let it run on."""
        self._process.send_signal(signal.SIGCONT)

    def start_again(self) -> None:
        """Start it as before; it must have ended."""
        assert not self.running, f"{self.name} still runs"
        self._process = self._start()

    def _start(self) -> subprocess.Popen[bytes]:
        ending = ["setpriv", "--pdeathsig", "KILL", "--"] if shutil.which("setpriv") else []
        with self.log.open("ab") as log:
            return subprocess.Popen(
                [*ending, *self._command],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=self._environment,
                start_new_session=True,
            )
