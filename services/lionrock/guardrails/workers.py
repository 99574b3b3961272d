"""Threads for texts that would hold up the event loop.

Knows: a bounded number at work and a bounded number waiting; who comes on top is refused at once. Work whose caller went away
is told so and ends at its next step. Does not know: what the work is.
"""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from threading import Event
from typing import TypeVar

T = TypeVar("T")


class WorkersBusy(RuntimeError):
    """As much work waits as may wait."""


class Workers:
    """A bounded thread pool for one event loop."""

    def __init__(self, threads: int, waiting: int) -> None:
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="inspect")
        self._limit = threads + waiting
        self._admitted = 0

    async def run(self, work: Callable[[Callable[[], bool]], T]) -> T:
        """Run `work(abandoned)` in a thread; `abandoned()` turns true when the awaiting task is cancelled. Raises WorkersBusy."""
        if self._admitted >= self._limit:
            raise WorkersBusy
        gone = Event()
        self._admitted += 1
        future = self._pool.submit(work, gone.is_set)
        loop = asyncio.get_running_loop()
        # The place is free when the thread is, not when the caller stops waiting.
        future.add_done_callback(lambda _: loop.call_soon_threadsafe(self._leave))
        try:
            return await asyncio.wrap_future(future)
        finally:
            gone.set()

    def _leave(self) -> None:
        self._admitted -= 1

    def close(self) -> None:
        """Refuse new work and drop what waits."""
        self._pool.shutdown(wait=False, cancel_futures=True)
