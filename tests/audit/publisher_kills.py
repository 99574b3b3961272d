"""Kills a publisher of tiles again and again, and walks what it has left each time.

    python tests/audit/publisher_kills.py --rounds 1000 --seed 7

Each round the log grows and a child process publishes it; the child kills itself (SIGKILL) at one of the system calls that write,
chosen by the seed. After every round the published log must be correct as it lies there: a signed checkpoint with all its tiles,
no file that differs from the tree, and never a smaller log than before. At the end one publisher runs to the end.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1])]

from tile_harness import ORIGIN, GrowingLog, strict_walk

from lionrock.audit.publisher import LogPublisher
from lionrock.audit.store.sqlite import SqliteLogStore
from lionrock.audit.tile_sinks import DirectorySink

CALLS = ("open", "link", "rename", "fsync", "unlink", "mkdir", "fchmod", "rmdir")


def die_after(calls: int) -> None:
    """Make this process kill itself before its n-th writing system call from now on."""

    def dying(real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            nonlocal calls
            calls -= 1
            if calls == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*arguments, **options)

        return call

    for name in CALLS:
        setattr(os, name, dying(getattr(os, name)))


def publish(directory: Path, calls: int | None) -> None:
    """Publish to the end, or die."""
    with closing(SqliteLogStore(directory / "audit.db")) as store, closing(DirectorySink(directory / "tiles")) as sink:
        publisher = LogPublisher(GrowingLog(store).published(), store, sink)
        if calls is not None:
            die_after(calls)
        while publisher.step():
            pass


def kill_rounds(directory: Path, *, rounds: int, seed: int) -> tuple[int, int]:
    """Returns how many children were killed, and the size at the end. Raises AssertionError."""
    chance = random.Random(seed)
    published = killed = 0
    for _ in range(rounds):
        with closing(SqliteLogStore(directory / "audit.db")) as store:
            log = GrowingLog(store)
            log.grow(chance.choice([0, 1, 30, 256, 300]))
            leaves, key = [log.leaf(index) for index in range(log.head.size)], log.key
        child = os.fork()
        if child == 0:
            publish(directory, chance.randint(1, 60))
            os._exit(0)
        _, status = os.waitpid(child, 0)
        assert status in (0, signal.SIGKILL), status
        killed += status != 0
        now = strict_walk(directory / "tiles" / ORIGIN, key, leaves)
        assert now >= published, "a smaller log was published"
        published = now
        if len(leaves) > 20_000:
            for name in ("audit.db", "audit.db-wal", "audit.db-shm"):
                (directory / name).unlink(missing_ok=True)
            shutil.rmtree(directory / "tiles")
            published = 0
    publish(directory, None)
    with closing(SqliteLogStore(directory / "audit.db")) as store:
        log = GrowingLog(store)
        leaves, key = [log.leaf(index) for index in range(log.head.size)], log.key
    assert strict_walk(directory / "tiles" / ORIGIN, key, leaves) == len(leaves)
    for place in (directory / "tiles").rglob("*.p"):
        assert not place.with_suffix("").exists(), f"{place} was left although the full tile is there"
    return killed, len(leaves)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=time.time_ns() % 10**9)
    parser.add_argument("--directory", type=Path)
    arguments = parser.parse_args()
    print(f"seed {arguments.seed}", flush=True)
    with tempfile.TemporaryDirectory() as temporary:
        killed, size = kill_rounds(arguments.directory or Path(temporary), rounds=arguments.rounds, seed=arguments.seed)
    print(f"{arguments.rounds} rounds, {killed} killed, {size} leaves at the end, every walk clean")


if __name__ == "__main__":
    main()
