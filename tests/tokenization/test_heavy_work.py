"""The place for work beside the event loop: bounded, and free again when the thread is."""

from __future__ import annotations

import asyncio
import threading

import pytest

from lionrock.tokenization.heavy_work import HeavyWork, QueueFull


async def test_work_over_the_bound_is_refused_at_once_and_the_rest_is_done() -> None:
    place = HeavyWork(threads=1, queue=1)
    release = threading.Event()
    running = asyncio.ensure_future(place.run(release.wait))
    waiting = asyncio.ensure_future(place.run(lambda: "done"))
    await asyncio.sleep(0)
    with pytest.raises(QueueFull):
        await place.run(lambda: "refused")
    release.set()
    assert (await running, await waiting) == (True, "done")
    assert await place.run(lambda: "again") == "again"
    place.close()


async def test_caller_that_leaves_gives_up_its_place_only_when_its_work_is_not_running() -> None:
    place = HeavyWork(threads=1, queue=1)
    begun, release = threading.Event(), threading.Event()

    def work() -> None:
        begun.set()
        release.wait()

    running = asyncio.ensure_future(place.run(work))
    await asyncio.to_thread(begun.wait)
    waiting = asyncio.ensure_future(place.run(lambda: None))
    await asyncio.sleep(0)
    running.cancel()
    waiting.cancel()
    await asyncio.gather(running, waiting, return_exceptions=True)
    await asyncio.sleep(0)
    next_in_line = asyncio.ensure_future(place.run(lambda: "mine"))
    await asyncio.sleep(0)
    with pytest.raises(QueueFull):
        await place.run(lambda: "refused")
    release.set()
    assert await next_in_line == "mine"
    place.close()


async def test_what_the_work_raises_reaches_the_caller() -> None:
    place = HeavyWork(threads=1, queue=0)
    with pytest.raises(ZeroDivisionError):
        await place.run(lambda: 1 // 0)
    place.close()
