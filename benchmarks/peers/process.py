"""The process of one engine, as seen from outside: started, called, held still while another one is measured, and ended."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import select
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from benchmarks.peers.protocol import Answer

ROOT = Path(__file__).resolve().parents[2]
IDLE_LIMIT = 0.02
"""Share of one core that an engine without work may take before it is stopped by signal while others are measured."""

_IDLE_LOOK_S = 1.0
_END_S = 20.0
_SIGNAL_ON_PARENTS_DEATH = 1  # PR_SET_PDEATHSIG of prctl(2)


class PeerFailed(Exception):
    """An engine did not start, did not answer in time, or said that it failed."""


@dataclass(frozen=True, slots=True)
class Command:
    """How an engine's process is started."""

    name: str
    python: Path
    module: str
    """Of benchmarks.peers."""
    options: Mapping[str, Any]
    """Handed over as JSON."""
    environment: Mapping[str, str] | None = None


class Peer:
    """A running engine. Use `with`."""

    def __init__(self, command: Command, logs: Path, *, start_timeout_s: float = 900) -> None:
        """Start the process and wait until its engine is ready. logs: directory for its standard error. Raises PeerFailed."""
        self.name = command.name
        self._log = logs / f"{command.name.replace(' ', '-')}.log"
        arguments = [str(command.python), "-m", f"benchmarks.peers.{command.module}", json.dumps(dict(command.options))]
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1", **(command.environment or {})}
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, cwd=ROOT, env=environment,
                preexec_fn=_end_with_parent,  # prctl alone
            )  # fmt: skip
        self._held = False
        self.idle_share = 0.0
        begun = time.monotonic()
        try:
            self._reply(start_timeout_s)
        except PeerFailed:
            self.close()
            raise
        self.start_s = time.monotonic() - begun

    def __enter__(self) -> Peer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def call(self, method: str, *, timeout_s: float = 300, **arguments: Any) -> Any:
        """Call a method of its Engine. Raises PeerFailed."""
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # what it said last, and its log, tell why
            self._process.stdin.write(json.dumps({"method": method, "arguments": arguments}).encode() + b"\n")
            self._process.stdin.flush()
        return self._reply(timeout_s)

    def answer(self, prompts: Sequence[Sequence[int]], max_tokens: int, **options: Any) -> list[Answer]:
        """Answer all prompts at once. Raises PeerFailed, also when an answer has another length than asked for."""
        answers = [Answer(**item) for item in self.call("answer", prompts=prompts, max_tokens=max_tokens, **options)]
        lengths = {len(answer.token_ids) for answer in answers}
        if lengths != {max_tokens} or len(answers) != len(prompts):
            raise PeerFailed(f"{self.name} gave {len(answers)} answers of {sorted(lengths)} tokens, not of {max_tokens}")
        return answers

    # ---- while others are measured ---------------------------------------------------------------------------------------

    def look_idle(self) -> None:
        """Measure what the engine takes when it has nothing to do; one that does not sleep is stopped when it is not measured."""
        time.sleep(_IDLE_LOOK_S)
        before = self._cpu_s()
        time.sleep(_IDLE_LOOK_S)
        self.idle_share = (self._cpu_s() - before) / _IDLE_LOOK_S

    @property
    def must_be_held(self) -> bool:
        """Whether the engine takes processor time from others while it has nothing to do."""
        return self.idle_share > IDLE_LIMIT

    def hold(self) -> None:
        """Stop a process that does not sleep by itself."""
        if self.must_be_held and not self._held:
            self._held = True
            self._signal(signal.SIGSTOP)

    def release(self) -> None:
        """Let it go on."""
        if self._held:
            self._held = False
            self._signal(signal.SIGCONT)

    def memory_mib(self) -> float:
        """Proportional set size of the engine's processes."""
        return float(sum(process.memory_full_info().pss for process in self._tree())) / 2**20

    def anonymous_mib(self) -> float:
        """Resident memory that is no file's: unlike shares of files it does not depend on other processes."""
        infos = [process.memory_info() for process in self._tree()]
        return float(sum(info.rss - info.shared for info in infos)) / 2**20

    def close(self) -> None:
        """End the process and what it started."""
        tree = self._tree()
        self.release()
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        _, alive = psutil.wait_procs(tree, timeout=_END_S)
        for process in alive:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        self._process.wait(_END_S)
        self._process.stdout.close()

    def _reply(self, timeout_s: float) -> Any:
        assert self._process.stdout is not None
        readable, _, _ = select.select([self._process.stdout], [], [], timeout_s)
        line = self._process.stdout.readline() if readable else b""
        if not line:
            why = f"no answer within {timeout_s:.0f} s" if not readable else f"it ended with {self._process.wait(_END_S)}"
            raise PeerFailed(f"{why}; the end of {self._log}:\n{self._last_words()}")
        reply = json.loads(line)
        if "error" in reply:
            raise PeerFailed(f"{reply['error']}; its log: {self._log}")
        return reply["result"]

    def _last_words(self) -> str:
        return "\n".join(self._log.read_text(errors="replace").splitlines()[-12:])

    def _tree(self) -> list[psutil.Process]:
        try:
            process = psutil.Process(self._process.pid)
            return [process, *process.children(recursive=True)]
        except psutil.NoSuchProcess:
            return []

    def _cpu_s(self) -> float:
        total = 0.0
        for process in self._tree():
            with contextlib.suppress(psutil.NoSuchProcess):
                total += sum(process.cpu_times()[:2])
        return total

    def _signal(self, number: signal.Signals) -> None:
        for process in self._tree():
            with contextlib.suppress(psutil.NoSuchProcess):
                process.send_signal(number)


def _end_with_parent() -> None:
    ctypes.CDLL(None).prctl(_SIGNAL_ON_PARENTS_DEATH, signal.SIGKILL)
