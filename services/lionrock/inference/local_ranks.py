"""Ranks as plain processes of this machine: a shard group without Ray, for scripts, tests and one node.

Each process runs this module and is asked over a socket pair that nobody else has; it ends when that socket does, so none outlives
its owner.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Connection
from typing import Any

from lionrock.inference.engine.errors import ShardGroupLost
from lionrock.inference.group_builder import GroupBuilder
from lionrock.inference.settings import HealthSettings
from lionrock.inference.shard_process import Placement, RankSettings, ShardProcess

_NODE_ID, _NODE_ADDRESS = "here", "127.0.0.1"


class LocalRank:
    """See RankProcess."""

    def __init__(self, settings: RankSettings) -> None:
        """Start the process."""
        ours, theirs = socket.socketpair()
        with theirs:
            arguments = [sys.executable, "-m", "lionrock.inference.local_ranks", str(theirs.fileno())]
            self.process = subprocess.Popen(arguments, pass_fds=(theirs.fileno(),), stdin=subprocess.DEVNULL)  # noqa: S603  # this program
        self._connection = Connection(ours.detach())
        self._caller = ThreadPoolExecutor(1, thread_name_prefix="lionrock-rank-call")
        self._settings = settings
        self._ending = threading.Lock()
        self._ended = False

    async def place(self) -> Placement:
        """See RankProcess."""
        placement: Placement = await self.call("start", self._settings)
        return placement

    async def call(self, method: str, *arguments: object) -> Any:
        """See RankProcess. The error has the failure's type and own words."""
        try:
            failed, result = await asyncio.get_running_loop().run_in_executor(self._caller, self._ask, method, arguments)
        except (OSError, EOFError, RuntimeError):
            raise ShardGroupLost("the process of a rank has ended") from None
        if failed:
            raise ShardGroupLost(f"a rank failed with {result}")
        return result

    def kill(self) -> None:
        """See RankProcess."""
        with self._ending:
            if self._ended:
                return
            self._ended = True
        self.process.kill()
        self.process.wait()
        self._caller.submit(self._connection.close)
        self._caller.shutdown(wait=False)

    def _ask(self, method: str, arguments: tuple[object, ...]) -> tuple[bool, Any]:
        self._connection.send((method, arguments))
        answer: tuple[bool, Any] = self._connection.recv()
        return answer


def local_group_builder(settings: RankSettings, health: HealthSettings, *, restock_after_s: float = 5.0) -> GroupBuilder:
    """Return what builds shard groups of processes on this machine. `close` it. restock_after_s: see GroupBuilder."""

    def spawn(rank: int | None) -> LocalRank:
        del rank  # every process can become every rank
        return LocalRank(settings)

    return GroupBuilder(settings, health, spawn, node_id=_NODE_ID, node_address=_NODE_ADDRESS, restock_after_s=restock_after_s)


def _answer_calls(connection: Connection) -> None:
    """Run one rank's methods as the owner asks for them, until it is gone."""
    _, (settings,) = connection.recv()
    rank = ShardProcess(settings)
    connection.send((False, rank.where()))
    while True:
        method, arguments = connection.recv()
        try:
            answer = (False, getattr(rank, method)(*arguments))
        except Exception as error:  # noqa: BLE001  # whatever it is, the owner is told
            answer = (True, f"{type(error).__name__}: {error}")
        connection.send(answer)


if __name__ == "__main__":
    with contextlib.suppress(EOFError, OSError):
        _answer_calls(Connection(int(sys.argv[1])))
    os._exit(0)
