"""What a flood by one tenant costs another: `lionrock up` with two tenants on one engine, as a user has it.

The victim keeps two answers open, one after the other. The aggressor, from a process of its own, sends fifty times the requests
that its quota permits, at an even pace, and never waits for an answer. Its quota also bounds its open answers, to as many as the
victim has. Rounds with and without it alternate, so that a slow minute of the machine hits both. Of the victim counted: tokens a
second, and the time to the first token. Of the aggressor: what it was given and what it was refused.

Two further cases have no such bound, and no limit is stated for them: a quota of requests alone, which may be used up in its first
second, and 32 open answers without any quota, where the engine's fair order alone protects the victim.

    python -m benchmarks.fairness [--quick]
"""

from __future__ import annotations

import argparse
import asyncio
import multiprocessing
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.mesh import Mesh
from benchmarks.report import Row, row, write
from lionrock.cli.state import StateDir
from lionrock.client import AsyncClient, LionrockError, RetryPolicy, SamplingParams, TenantQuota, Tls

QUESTION = "Write a long story about a fisherman, a lighthouse and a letter. Case number {number}."
QUOTA_PER_MINUTE = 30
TIMES_ITS_QUOTA = 50
VICTIM_STREAMS, VICTIM_TOKENS = 2, 32
AGGRESSOR_TOKENS = 16
FLOOD_STREAMS = 32
MOVED_AT_MOST = 0.2

TENANT = """apiVersion: lionrock.io/v1alpha1
kind: Tenant
metadata: {{name: {name}}}
spec:
  territory: HK
  maxStreams: 128
  {quotas}
  principals:
    - spiffeId: spiffe://lionrock.local/tenant/{name}/user/*
      purposes: [benchmark]
"""


@dataclass(slots=True)
class Heard:
    """What the victim got in one round."""

    first_s: list[float] = field(default_factory=list)
    tokens: int = 0
    took_s: float = 0.0


def client_of(state: Path, tenant: str) -> AsyncClient:
    """Return a client with the certificate that onboarding made."""
    certs = state / "certs" / "tenants" / tenant
    target = StateDir(state).read_mesh().endpoints["gateway"].target
    tls = Tls(certs / "tls.crt", certs / "tls.key", certs / "ca.crt")
    return AsyncClient(target, tls=tls, retry=RetryPolicy(max_attempts=1))


async def ask(client: AsyncClient, number: int, tokens: int) -> float:
    """Ask, read the answer, and return the seconds to its first token."""
    sampling = SamplingParams(max_tokens=tokens, ignore_eos=True)
    began, first_s = time.perf_counter(), 0.0
    async for _ in client.chat(QUESTION.format(number=number), sampling=sampling):
        first_s = first_s or time.perf_counter() - began
    return first_s


async def victim(state: Path, seconds: float, seed: int) -> Heard:
    """Ask for so long."""
    heard, ends_at = Heard(), time.perf_counter() + seconds
    async with client_of(state, "victim") as client:

        async def one_after_the_other(stream: int) -> None:
            number = seed + stream * 100_000
            while time.perf_counter() < ends_at:
                heard.first_s.append(await ask(client, number, VICTIM_TOKENS))
                heard.tokens += VICTIM_TOKENS
                number += 1

        began = time.perf_counter()
        await asyncio.gather(*map(one_after_the_other, range(VICTIM_STREAMS)))
        heard.took_s = time.perf_counter() - began
    return heard


async def bounded(state: Path, counts: Any) -> None:
    """Send fifty times what the quotas permit."""
    await over_its_quota(state, counts, "bounded")


async def bursting(state: Path, counts: Any) -> None:
    """Send fifty times what the quota permits, where it may all be answered at once."""
    await over_its_quota(state, counts, "bursting")


async def over_its_quota(state: Path, counts: Any, tenant: str) -> None:
    """Send fifty times what the quota permits, for ever."""
    told: Counter[str] = Counter()
    async with client_of(state, tenant) as client, asyncio.TaskGroup() as group:

        async def one(number: int) -> None:
            try:
                await ask(client, number, AGGRESSOR_TOKENS)
                told["answered"] += 1
            except TenantQuota:
                told["refused"] += 1
            except LionrockError as error:
                told[type(error).__name__] += 1
            counts.update(told)

        began, number = time.perf_counter(), 0
        while True:
            group.create_task(one(number))
            number += 1
            await asyncio.sleep(max(0.0, began + number * 60 / (QUOTA_PER_MINUTE * TIMES_ITS_QUOTA) - time.perf_counter()))


async def as_much_as_there_is(state: Path, counts: Any) -> None:
    """Keep many answers open, for ever."""
    async with client_of(state, "flood") as client, asyncio.TaskGroup() as group:

        async def one_after_the_other(stream: int) -> None:
            for number in range(stream * 1_000_000, (stream + 1) * 1_000_000):
                await ask(client, number, VICTIM_TOKENS)
                counts["answered"] = counts.get("answered", 0) + 1

        for stream in range(FLOOD_STREAMS):
            group.create_task(one_after_the_other(stream))


Aggressor = Callable[[Path, Any], Coroutine[Any, Any, None]]


def _attack(aggressor: Aggressor, state: Path, counts: Any) -> None:
    asyncio.run(aggressor(state, counts))


@asynccontextmanager
async def attacked(aggressor: Aggressor, state: Path) -> AsyncIterator[Any]:
    """Run an aggressor in a process of its own; yields its counts."""
    context = multiprocessing.get_context("spawn")
    with context.Manager() as manager:
        counts = manager.dict()
        process = context.Process(target=_attack, args=(aggressor, state, counts), daemon=True)
        process.start()
        try:
            while not counts:
                if not process.is_alive():
                    raise SystemExit("the aggressor ended")
                await asyncio.sleep(0.1)
            yield counts
        finally:
            process.kill()
            process.join()


async def compared(state: Path, aggressor: Aggressor, rounds: int, seconds: float) -> tuple[list[Heard], list[Heard], Counter[str]]:
    """Return the victim's rounds without and with the aggressor, and what the aggressor was told."""
    alone, beside, told = [], [], Counter[str]()
    for number in range(rounds):
        alone.append(await victim(state, seconds, seed=number * 1000))
        async with attacked(aggressor, state) as counts:
            beside.append(await victim(state, seconds, seed=500_000 + number * 1000))
            told.update(dict(counts))
    return alone, beside, told


def rows_of(what: str, alone: list[Heard], beside: list[Heard], *, limit: bool) -> list[Row]:
    """Compare."""
    rate = [[heard.tokens / heard.took_s for heard in rounds] for rounds in (alone, beside)]
    tail = [[_p99(heard.first_s) * 1000 for heard in rounds] for rounds in (alone, beside)]
    both_tails = [_p99([first for heard in rounds for first in heard.first_s]) * 1000 for rounds in (alone, beside)]
    slower = [1 - with_it / without for without, with_it in zip(*rate, strict=True)]
    later = [both_tails[1] / both_tails[0] - 1]
    against: dict[str, Any] = {"baseline": "limit", "baseline_values": [MOVED_AT_MOST]} if limit else {}
    return [
        row(f"{what}: tokens/s of the victim", rate[1], "tok/s", "higher", baseline="without", baseline_values=rate[0]),
        row(f"{what}: victim's first token, p99 of a round", tail[1], "ms", "lower", baseline="without", baseline_values=tail[0]),
        row(f"{what}: tokens/s lost", slower, "", "lower", **against),
        row(f"{what}: p99 of all first tokens, later by", later, "", "lower", **against),
    ]


def _p99(values: list[float]) -> float:
    return sorted(values)[min(len(values) - 1, int(len(values) * 0.99))]


async def measure(state: Path, *, quick: bool) -> list[Row]:
    """All cases."""
    rounds, seconds = (2, 20.0) if quick else (5, 60.0)
    await victim(state, 5, seed=900_000)
    rows: list[Row] = []
    for what, aggressor, limit in (
        (f"{TIMES_ITS_QUOTA} x its quota", bounded, True),
        (f"{TIMES_ITS_QUOTA} x its quota, open answers not bounded", bursting, False),
    ):
        alone, beside, told = await compared(state, aggressor, rounds, seconds)
        rows += rows_of(what, alone, beside, limit=limit)
        print(f"{what}: the aggressor was told {dict(told)}", flush=True)
        refused = [told["refused"] / max(1, told["answered"])]
        rows.append(row(f"{what}: requests of the aggressor refused for each answered", refused, "", "higher"))
    alone, beside, told = await compared(state, as_much_as_there_is, rounds, seconds)
    return rows + rows_of(f"{FLOOD_STREAMS} answers open, no quota", alone, beside, limit=False)


def onboard(state: Path) -> None:
    """Bring in the tenants, as their administrator does."""
    program = str(Path(sys.executable).parent / "lionrock")
    quotas_of = {
        "victim": "weight: 1",
        "bounded": f"requestsPerMinute: {QUOTA_PER_MINUTE}, concurrentStreams: {VICTIM_STREAMS}",
        "bursting": f"requestsPerMinute: {QUOTA_PER_MINUTE}",
        "flood": "weight: 1",
    }
    for name, stated in quotas_of.items():
        quotas = f"quotas: {{{stated}}}"
        file = state.parent / f"{name}.yaml"
        file.write_text(TENANT.format(name=name, quotas=quotas))
        subprocess.run([program, "tenant", "onboard", str(file), "--state-dir", str(state)], check=True)


def main() -> None:
    """Measure and report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="at most five minutes")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="lionrock-bench-") as directory:
        state, config = Path(directory) / "state", Path(directory) / "up.yaml"
        config.write_text("{}\n")
        program = str(Path(sys.executable).parent / "lionrock")
        subprocess.run([program, "models", "pull", "smollm2-135m-instruct", "--state-dir", str(state)], check=True)
        mesh = Mesh(state, config)
        mesh.start()
        try:
            onboard(state)
            rows = asyncio.run(measure(state, quick=arguments.quick))
        finally:
            mesh.stop()
    print(write("fairness", rows))


if __name__ == "__main__":
    main()
