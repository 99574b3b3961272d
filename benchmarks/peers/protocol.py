"""The process of one engine, as seen from inside: calls come as lines of JSON on standard input, results leave the same way.

Runs in every peer's own environment, so it needs nothing but the standard library. What libraries print goes to standard error.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
import traceback
from collections.abc import Awaitable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol


@dataclass(slots=True)
class Answer:
    """One answer. Seconds from the moment at which all of its call's prompts were handed over."""

    token_ids: list[int]
    first_s: float
    last_s: float


class Engine(Protocol):
    """What every engine does. Further public methods may be called by name too; all take and return JSON's types."""

    async def answer(self, prompts: Sequence[Sequence[int]], max_tokens: int) -> list[Answer]:
        """Answer all prompts at once, greedily, with exactly max_tokens tokens each."""
        ...

    async def close(self) -> None:
        """End what the engine started."""
        ...


class Stopwatch:
    """Collects one answer's tokens as they come."""

    __slots__ = ("_begun_s", "answer")

    def __init__(self, begun_s: float) -> None:
        """begun_s: `time.perf_counter()` when the call began."""
        self._begun_s = begun_s
        self.answer = Answer([], 0.0, 0.0)

    def add(self, token_ids: Sequence[int]) -> None:
        """Take in what came just now."""
        if not token_ids:
            return
        now_s = time.perf_counter() - self._begun_s
        if not self.answer.token_ids:
            self.answer.first_s = now_s
        self.answer.token_ids += token_ids
        self.answer.last_s = now_s


def serve(start: Awaitable[Engine]) -> None:
    """Start the engine, say so, and answer calls until standard input ends."""
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    asyncio.run(_serve(start, lambda reply: print(json.dumps(reply), file=replies, flush=True)))
    sys.stderr.flush()
    os._exit(0)  # threads that a library left behind hold nothing up


async def _serve(start: Awaitable[Engine], reply: Any) -> None:
    try:
        engine = await start
    except (Exception, SystemExit) as error:  # noqa: BLE001  # the caller is told
        traceback.print_exc()
        reply({"error": f"{type(error).__name__}: {error}"})
        return
    reply({"result": None})
    try:
        while line := await asyncio.to_thread(sys.stdin.readline):
            call = json.loads(line)
            try:
                result = await getattr(engine, call["method"])(**call["arguments"])
            except Exception as error:  # noqa: BLE001  # the caller is told
                traceback.print_exc()
                reply({"error": f"{type(error).__name__}: {error}"})
            else:
                reply({"result": [asdict(item) for item in result] if call["method"] == "answer" else result})
    finally:
        await engine.close()
