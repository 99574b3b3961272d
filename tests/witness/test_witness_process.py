"""The real process, killed at random moments under load by clients that want it to cosign two histories."""

from __future__ import annotations

import asyncio
import random
import signal
import time
from contextlib import suppress
from hashlib import sha256
from itertools import pairwise
from pathlib import Path

import pytest
from witness_harness import ORIGIN, GrowingLog, WitnessPlace, call

from lionrock.tlog.checkpoint import Checkpoint
from lionrock.tlog.merkle import InvalidProof, verify_consistency
from lionrock.tlog.note import open_note
from lionrock.witness.keys import load_keys

ROUNDS = 14
CLIENTS = 6
STEP = 40


class Branches:
    """Histories that a dishonest log keeps: each round new forks of what was cosigned, from different leaves."""

    def __init__(self, place: WitnessPlace, seed: int) -> None:
        self.random = random.Random(seed)
        self.keys = [signer.verifier_key for signer in load_keys(place.key_file, place.name)]
        self.cosigned: dict[tuple[int, bytes], GrowingLog] = {}
        self.base = GrowingLog()
        self.contenders: list[GrowingLog] = []
        self.wanted = 0
        self.enough = asyncio.Event()

    async def begin_round(self, port: int) -> None:
        """Find out which branch the witness follows by now, also if its last answer was lost, and fork from it."""
        latest = 0
        reply = await call(port, None, f"/{sha256(ORIGIN.encode()).hexdigest()}/checkpoint")
        if reply.status == 200:
            checkpoint = Checkpoint.parse(open_note(reply.body, self.keys).text)
            latest = checkpoint.size
            [*_, self.base] = [branch for branch in (self.base, *self.contenders) if branch.root(latest) == checkpoint.root]
            self.cosigned[(latest, checkpoint.root)] = self.base
        forks = [self.random.randrange(latest, latest + STEP) for _ in range(CLIENTS - 1)]
        forks.append(self.random.randrange(latest + 1))  # this one would change what was cosigned
        self.contenders = [GrowingLog(branch=f"{self.random.random()} ", fork_at=fork, parent=self.base) for fork in forks]
        self.wanted = len(self.cosigned) + self.random.randrange(1, 16)
        self.enough.clear()

    async def client(self, port: int, branch: GrowingLog) -> None:
        """Ask for ever larger trees of one branch until the witness dies."""
        old = 0
        with suppress(OSError, EOFError):
            while True:
                size = old + self.random.randrange(1, STEP)
                reply = await call(port, branch.request(old, size))
                match reply.status:
                    case 200:
                        opened = open_note(branch.note(size) + reply.body, self.keys)
                        assert Checkpoint.parse(opened.text) == Checkpoint(ORIGIN, size, branch.root(size))
                        self.cosigned[(size, branch.root(size))] = branch
                        old = size
                        if len(self.cosigned) >= self.wanted:
                            self.enough.set()
                    case 409:
                        old = int(reply.body)
                        await asyncio.sleep(0)
                    case 422:
                        return  # another branch won
                    case other:
                        raise AssertionError(f"{other}: {reply.body}")


@pytest.mark.slow
@pytest.mark.timeout(300)
async def test_kill_minus_nine_at_any_moment_never_makes_two_histories(tmp_path: Path) -> None:
    seed = time.time_ns() % 10**9
    print(f"seed {seed}")
    place = WitnessPlace(tmp_path)
    place.make_keys("ed25519")
    branches = Branches(place, seed)
    for _ in range(ROUNDS):
        process, port = await place.start()
        await branches.begin_round(port)
        clients = [asyncio.create_task(branches.client(port, branch)) for branch in branches.contenders]
        await asyncio.wait_for(branches.enough.wait(), 30)
        await asyncio.sleep(branches.random.uniform(0, 0.03))  # into the middle of a later request
        process.kill()
        await process.wait()
        await asyncio.gather(*clients)
    check_one_history(branches)
    print(f"{len(branches.cosigned)} trees cosigned")
    assert len(branches.cosigned) > 4 * ROUNDS


def check_one_history(branches: Branches) -> None:
    """Every pair of neighbours among all cosigned trees is consistent, which makes all of them so."""
    trees = sorted(branches.cosigned)
    assert len({size for size, _ in trees}) == len(trees), "two roots of one size"
    for (first, first_root), (second, second_root) in pairwise(trees):
        branch = branches.cosigned[(second, second_root)]
        try:
            verify_consistency(first, second, first_root, second_root, branch.proof(first, second))
        except InvalidProof as error:
            raise AssertionError(f"{first} and {second} are of two histories") from error


async def test_sigterm_finishes_what_runs_and_leaves_with_zero(tmp_path: Path) -> None:
    place = WitnessPlace(tmp_path)
    place.make_keys()
    process, port = await place.start()
    assert (await call(port, GrowingLog().request(0, 5))).status == 200
    process.send_signal(signal.SIGTERM)
    assert await asyncio.wait_for(process.wait(), 30) == 0
