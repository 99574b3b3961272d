"""A process in which a constraint is compiled and tried before the engine's own process takes it.

A grammar can be written so that compiling or matching it takes hours or all memory, or ends the process; nothing in the process
that serves others' answers can stop that. So each constraint is first compiled and walked through in a child of a child, under
limits of CPU time, elapsed time and memory; only what passes is compiled again by the engine. The helper knows the vocabulary and
nothing else: no environment, no open files of its parent. It ends when its input does.

Messages both ways: length (4 bytes, little-endian), then JSON.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import resource
import select
import signal
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import IO, Any

import numpy as np

from lionrock.inference.engine.errors import InvalidConstraint
from lionrock.inference.engine.grammar import AnswerMatcher, GrammarCompiler
from lionrock.inference.engine.sequence import Constraint

_LENGTH = struct.Struct("<I")
_MAX_MESSAGE_BYTES = 256 << 20
_MAX_VERDICT_BYTES = 4096
_START_S = 120.0
_WALKS, _REHEARSED_TOKENS = 4, 128


@dataclass(frozen=True, slots=True)
class SandboxLimits:
    """What compiling and trying one constraint may take."""

    cpu_s: int = 15
    elapsed_s: float = 60.0
    """More than the CPU time, for machines whose cores are busy."""
    memory_bytes: int = 1 << 30
    """Beyond what the process takes to begin with."""


class SandboxFailed(Exception):
    """The helper process did not start, or ended; the constraint was not judged."""


class ConstraintSandbox:
    """The helper process, started on first use and again after it was lost. For one thread at a time."""

    def __init__(self, tokens: Sequence[bytes], eos_token_ids: Sequence[int], limits: SandboxLimits | None = None) -> None:
        """tokens: bytes of each id of the model."""
        self._tokens = tuple(tokens)
        self._eos_token_ids = list(eos_token_ids)
        self._limits = limits or SandboxLimits()
        self._process: subprocess.Popen[bytes] | None = None
        self._closing = threading.Event()
        self._in_use = threading.Lock()

    def start(self) -> None:
        """Have the helper ready; takes seconds. Raises SandboxFailed."""
        with self._in_use:
            self._start()

    def _start(self) -> None:
        if self._process is not None and self._process.poll() is None:
            return
        self._end()
        # The helper finds the same packages, and knows nothing else of this process.
        environment = {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path), "OMP_NUM_THREADS": "1"}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "lionrock.inference.engine.constraint_sandbox"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment, start_new_session=True,
        )  # fmt: skip
        limits = self._limits
        hello = {
            "lengths": [len(token) for token in self._tokens],
            "eos_token_ids": self._eos_token_ids,
            "limits": [limits.cpu_s, limits.elapsed_s, limits.memory_bytes],
        }
        self._exchange([json.dumps(hello).encode(), b"".join(self._tokens)], _START_S)

    def judge(self, checked: Constraint) -> None:
        """Return when the constraint has passed. Raises InvalidConstraint, or SandboxFailed."""
        message = json.dumps({"kind": checked.kind, "source": checked.source}).encode()
        timeout_s = 2 * self._limits.elapsed_s + 10
        with self._in_use:
            was_there = self._process is not None
            self._start()
            try:
                refused = self._exchange([message], timeout_s)["refused"]
            except SandboxFailed:
                if not was_there or self._closing.is_set():
                    raise
                self._start()  # the helper had died since it was last used
                refused = self._exchange([message], timeout_s)["refused"]
        if refused is not None:
            raise InvalidConstraint(checked.kind, refused)

    def close(self) -> None:
        """End the helper, also while it judges; any thread. What waits for its verdict gets SandboxFailed."""
        self._closing.set()
        if (process := self._process) is not None:
            process.kill()
        with self._in_use:
            self._end()

    def _exchange(self, messages: Sequence[bytes], timeout_s: float) -> dict[str, Any]:
        process = self._process
        assert process is not None, "the helper was started"
        assert process.stdin is not None, "it has pipes"
        assert process.stdout is not None, "it has pipes"
        if self._closing.is_set():
            process.kill()
        try:
            for message in messages:
                _send(process.stdin, message)
            if not select.select([process.stdout], [], [], timeout_s)[0]:
                raise SandboxFailed(f"no answer within {timeout_s:.0f} s")
            reply: dict[str, Any] = json.loads(_receive(process.stdout, _MAX_VERDICT_BYTES))
            return reply
        except (OSError, EOFError, ValueError, SandboxFailed) as error:
            self._end()
            raise SandboxFailed(f"the helper process failed: {type(error).__name__}") from None

    def _end(self) -> None:
        if self._process is not None:
            self._process.kill()
            for pipe in (self._process.stdin, self._process.stdout):
                if pipe is not None:
                    _close_quietly(pipe)
            self._process.wait()
            self._process = None


def _close_quietly(pipe: IO[bytes]) -> None:
    with contextlib.suppress(OSError):  # what was not flushed to a process that is gone
        pipe.close()


def _send(pipe: IO[bytes], message: bytes) -> None:
    pipe.write(_LENGTH.pack(len(message)))
    pipe.write(message)
    pipe.flush()


def _receive(pipe: IO[bytes], limit: int) -> bytes:
    header = pipe.read(_LENGTH.size)
    if len(header) < _LENGTH.size:
        raise EOFError
    (length,) = _LENGTH.unpack(header)
    if length > limit:
        raise ValueError("a message is too long")
    message = pipe.read(length)
    if len(message) < length:
        raise EOFError
    return message


# ---- in the helper -----------------------------------------------------------------------------------------------------------


def serve(requests: IO[bytes], replies: IO[bytes]) -> None:
    """Judge constraints until the input ends."""
    hello = json.loads(_receive(requests, _MAX_MESSAGE_BYTES))
    blob, tokens, at = _receive(requests, _MAX_MESSAGE_BYTES), [], 0
    for length in hello["lengths"]:
        tokens.append(blob[at : at + length])
        at += length
    limits = SandboxLimits(*hello["limits"])
    compiler = GrammarCompiler(tokens, hello["eos_token_ids"])
    eos_token_ids = frozenset(hello["eos_token_ids"])
    _send(replies, json.dumps({"refused": None}).encode())
    while True:
        try:
            asked = json.loads(_receive(requests, _MAX_MESSAGE_BYTES))
        except EOFError:
            return
        refused = _judged_by_a_child(compiler, eos_token_ids, Constraint(asked["kind"], asked["source"]), limits)
        _send(replies, json.dumps({"refused": refused}).encode())


def _judged_by_a_child(
    compiler: GrammarCompiler, eos_token_ids: frozenset[int], checked: Constraint, limits: SandboxLimits
) -> str | None:
    """Why the constraint is refused, or None."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            os.close(reading)
            _limit_this_process(limits)
            os.write(writing, json.dumps(_tried(compiler, eos_token_ids, checked)).encode()[:_MAX_VERDICT_BYTES])
            status = 0
        finally:
            os._exit(status)
    os.close(writing)
    verdict, until_s = b"", time.monotonic() + limits.elapsed_s
    while select.select([reading], [], [], max(0.0, until_s - time.monotonic()))[0]:
        part = os.read(reading, _MAX_VERDICT_BYTES)
        if not part:
            break
        verdict += part
    os.close(reading)
    os.kill(pid, signal.SIGKILL)  # a child that has ended stays until it is waited for, so this reaches no other
    os.waitpid(pid, 0)
    try:
        refused: str | None = json.loads(verdict)
    except ValueError:
        return "takes more time or memory to prepare than a constraint may"
    return refused


def _limit_this_process(limits: SandboxLimits) -> None:
    with open("/proc/self/statm", encoding="ascii") as file:
        held_bytes = int(file.read().split()[0]) * resource.getpagesize()
    memory_bytes = held_bytes + limits.memory_bytes
    resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))
    resource.setrlimit(resource.RLIMIT_CPU, (limits.cpu_s, limits.cpu_s))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _tried(compiler: GrammarCompiler, eos_token_ids: frozenset[int], checked: Constraint) -> str | None:
    """Compile a constraint and walk through a few answers, the same for the same constraint."""
    try:
        grammar = compiler.compile(checked)
        for seed in range(_WALKS):
            _walk(grammar.matcher(), eos_token_ids, random.Random(seed))  # noqa: S311  # no secret
    except InvalidConstraint as error:
        return error.description
    return None


def _walk(matcher: AnswerMatcher, eos_token_ids: frozenset[int], generator: random.Random) -> None:
    """Follow any tokens. Raises InvalidConstraint for a step that takes too long."""
    for _ in range(_REHEARSED_TOKENS):
        bits = np.unpackbits(np.frombuffer(matcher.allowed, dtype=np.uint8), bitorder="little")
        choices = [token_id for token_id in np.flatnonzero(bits).tolist() if token_id not in eos_token_ids]
        if not choices:
            return
        try:
            matcher.accept(generator.choice(choices))
        except InvalidConstraint:
            if matcher.slow:
                raise
            return  # a walk may end where the vocabulary lacks a byte; that says nothing of other answers


if __name__ == "__main__":
    serve(sys.stdin.buffer, sys.stdout.buffer)
