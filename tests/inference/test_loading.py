"""A load says how far it is: in lines of the log that are few, and in the signs of life of its rank."""

from __future__ import annotations

import asyncio
import logging
import socket
from typing import cast

import pytest

from lionrock.common.v1 import model_pb2
from lionrock.inference.backends.backend import EngineBackend
from lionrock.inference.group_builder import _while_alive
from lionrock.inference.links import Kind, Link
from lionrock.inference.loading import LoadProgress
from lionrock.inference.replica import Replica
from lionrock.inference.settings import HealthSettings
from lionrock.inference.v1 import inference_pb2 as pb


class Clock:
    """Time that stands still until told otherwise."""

    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def test_a_load_logs_every_tenth_with_its_rank_bytes_share_and_speed(caplog: pytest.LogCaptureFixture) -> None:
    clock = Clock()
    progress = LoadProgress(3, 2_000_000_000, clock)
    with caplog.at_level(logging.INFO, "lionrock.inference"):
        for done in range(1, 201):
            clock.now_s += 0.01
            progress(done, 200)
    assert len(caplog.messages) == 10
    assert caplog.messages[3] == "rank 3 has read 800 of 2000 MB of weights (40 %), 1000 MB/s"
    assert progress.percent == 100


def test_a_slow_load_logs_every_five_seconds(caplog: pytest.LogCaptureFixture) -> None:
    clock = Clock()
    progress = LoadProgress(0, 1_000_000, clock)
    with caplog.at_level(logging.INFO, "lionrock.inference"):
        for done in range(1, 31):
            clock.now_s += 1
            progress(done, 1000)
    assert len(caplog.messages) == 6


class Noticed(dict[int, int]):
    """Sets an event once two ranks have entries."""

    def __init__(self) -> None:
        super().__init__()
        self.both = asyncio.Event()

    def __setitem__(self, rank: int, percent: int) -> None:
        super().__setitem__(rank, percent)
        if len(self) == 2:
            self.both.set()


async def test_signs_of_life_carry_how_much_each_rank_has_read() -> None:
    ours, theirs = zip(*(map(Link, socket.socketpair()) for _ in range(2)), strict=True)
    loaded = Noticed()
    health = HealthSettings(heartbeat_interval_s=0.01, heartbeat_timeout_s=60)
    seen = asyncio.Event()

    async def load() -> str:
        for link, percent in zip(theirs, (40, 70), strict=True):
            link.send(Kind.BEAT, bytes((percent,)))
            link.send(Kind.BEAT)  # one that does not load, or no more
        await seen.wait()
        return "loaded"

    work = asyncio.create_task(_while_alive(ours, health, load(), loaded))
    async with asyncio.timeout(20):
        await loaded.both.wait()
        assert loaded == {0: 40, 1: 70}
        seen.set()
        assert await work == "loaded"
    assert loaded == {}
    for link in (*ours, *theirs):
        link.close()


class Loading:
    """An engine whose start does not end."""

    spec, running, waiting = None, 0, 0

    async def start(self, on_lost: object) -> None:
        await asyncio.Event().wait()

    async def close(self) -> None:
        pass


async def test_a_replica_that_loads_says_how_far_it_is() -> None:
    percent: list[int | None] = [None]
    served = pb.ServedModel(identity=model_pb2.ModelIdentity(model="model"))
    replica = Replica(served, "replica-1", cast("EngineBackend", Loading()), lambda: percent[0])
    assert replica.status().problem == "starting"
    percent[0] = 47
    assert replica.status().problem == "loading, 40 % of the weights read"
    assert not replica.status().ready
    await replica.close()
