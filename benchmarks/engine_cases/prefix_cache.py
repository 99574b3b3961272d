"""What sharing a system prompt is worth to one tenant, and whether another tenant can tell by the clock that it is cached.

The second is a test: pairs of requests of new tenants, one with the cached system prompt of somebody else, one with a prompt that
nobody ever sent, in random order; if the cache leaked, the first would be faster. A control, the owner's own requests against the
same cold ones, shows that the test would see it. Source: signed-rank test (Wilcoxon 1945), its
distribution drawn at random.
"""

from __future__ import annotations

import random
import statistics
from collections import defaultdict
from collections.abc import Sequence

from benchmarks.engine_cases.bench import Bench, settle, timed
from benchmarks.peers.process import Peer
from benchmarks.report import Row, row

SYSTEM, QUESTION, REQUESTS = 512, 32, 32
GOAL = 5.0
SIGNIFICANT = 0.05
_FLIPS = 20_000
_WITH, _WITHOUT = "lionrock, prefix cache", "lionrock, no prefix cache"


def measure(bench: Bench) -> list[Row]:
    """Measure the time to the first token of one tenant's requests, alone and all at once, and test what another tenant sees."""
    with bench.running([bench.lionrock(_WITH, prefix_cache=True), bench.lionrock(_WITHOUT)]) as peers:
        return _one_tenant(bench, peers) + _another_tenant(bench, peers[_WITH])


def p_value(differences: Sequence[float], seed: int = 0) -> float:
    """Probability of signed ranks at least as one-sided as those of the differences, were their signs a matter of chance."""
    chosen = random.Random(seed)
    ranked = [rank if d > 0 else -rank for rank, d in enumerate(sorted(differences, key=abs), 1)]
    observed = abs(sum(ranked))
    as_far = sum(abs(sum(rank if chosen.getrandbits(1) else -rank for rank in ranked)) >= observed for _ in range(_FLIPS))
    return (as_far + 1) / (_FLIPS + 1)


def _one_tenant(bench: Bench, peers: dict[str, Peer]) -> list[Row]:
    """Give both engines the same prompts; the first request of the tenant, which fills the cache, is not counted."""
    alone: dict[str, list[float]] = defaultdict(list)
    at_once: dict[str, list[float]] = defaultdict(list)
    (system,) = bench.prompts(1, 1, SYSTEM)
    for number, question in enumerate(bench.prompts(2, 1 + (REQUESTS if not bench.quick else 8), QUESTION)):
        for name, peer in peers.items():
            settle()
            (first_s,) = timed(peer, [system + question], 2, salts=["tenant"]).first_s
            if number:
                alone[name].append(first_s * 1000)
    for number in range(bench.rounds):
        (system,) = bench.prompts(100 + number, 1, SYSTEM)
        prompts = [system + question for question in bench.prompts(200 + number, REQUESTS, QUESTION)]
        for name, peer in peers.items():
            settle()
            heard = timed(peer, prompts, 2, salts=[f"tenant-{number}"] * REQUESTS)
            at_once[name].append(statistics.median(heard.first_s) * 1000)
    return [
        row(
            f"first token, {SYSTEM} + {QUESTION} tokens, shared system prompt, {how}, goal {GOAL:g}",
            values[_WITH],
            "ms",
            "lower",
            baseline="without the cache",
            baseline_values=values[_WITHOUT],
        )
        for how, values in (("one after another", alone), (f"{REQUESTS} at once", at_once))
    ]


def _another_tenant(bench: Bench, peer: Peer) -> list[Row]:
    pairs = 20 if bench.quick else 60
    (system,) = bench.prompts(3, 1, SYSTEM)
    (question,) = bench.prompts(4, 1, QUESTION)
    timed(peer, [system + question], 2, salts=["owner"])  # from now on it is cached for this tenant
    chosen = random.Random(5)
    seen: dict[str, list[float]] = defaultdict(list)
    for number, question in enumerate(bench.prompts(6, pairs, QUESTION)):
        (unknown,) = bench.prompts(1000 + number, 1, SYSTEM)
        requests = {
            "another tenant": (system + question, f"other-{number}"),
            "cold": (unknown + question, f"cold-{number}"),
            "owner": (system + question, "owner"),
        }
        for name in chosen.sample(sorted(requests), len(requests)):
            prompt, salt = requests[name]
            settle()
            (first_s,) = timed(peer, [prompt], 2, salts=[salt]).first_s
            seen[name].append(first_s * 1000)
    differences = {
        name: [mine - cold for mine, cold in zip(seen[name], seen["cold"], strict=True)] for name in ("another tenant", "owner")
    }
    other, owner = p_value(differences["another tenant"]), p_value(differences["owner"])
    limit = [SIGNIFICANT]
    return [
        row(f"first token, cached for somebody else, {pairs} pairs", seen["another tenant"], "ms", "lower",
            baseline="cold", baseline_values=seen["cold"]),
        row("first token, cached for somebody else, less cold", differences["another tenant"], "ms", "higher"),
        row("p of no difference from cold (below 0.05 by chance once in 20 runs)", [other], "", "higher",
            baseline="limit", baseline_values=limit),
        row("p of no difference from cold, control: the tenant whose prompt it is", [owner], "", "lower",
            baseline="limit", baseline_values=limit),
    ]  # fmt: skip
