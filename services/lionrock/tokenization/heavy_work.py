"""A small, bounded place for work that would hold up the event loop.

At most `threads` pieces of work run and `queue` wait; the next is refused at once. A caller that goes away leaves its place when
its work has not begun; work that runs is finished, because a thread cannot be stopped, and it is short.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

Result = TypeVar("Result")


class QueueFull(Exception):
    """As much work waits as may."""


class HeavyWork:
    """Threads with a bounded queue, for one event loop."""

    def __init__(self, threads: int, queue: int) -> None:
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix="heavy-work")
        self._limit = threads + queue
        self._present = 0

    async def run(self, work: Callable[[], Result]) -> Result:
        """Run `work` in a thread. Raises QueueFull, and what the work raises."""
        if self._present >= self._limit:
            raise QueueFull
        loop = asyncio.get_running_loop()
        self._present += 1
        future = self._threads.submit(work)
        # The place is free when the thread is, not when the caller stopped waiting.
        future.add_done_callback(lambda _: loop.call_soon_threadsafe(self._leave))
        return await asyncio.wrap_future(future)

    def _leave(self) -> None:
        self._present -= 1

    def close(self) -> None:
        """Forget what waits and end the threads when they are done."""
        self._threads.shutdown(wait=False, cancel_futures=True)
