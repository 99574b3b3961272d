"""How long an answer takes does not say whether what was asked for is another tenant's or nobody's.

A run of TRIALS finds an AUC of 0.6 or more. That nothing is over 0.55 takes two thousand trials: set LIONROCK_TIMING_TRIALS=2000
on a machine that does nothing else. A run fails when it is sure of more than LIMIT: when what it found, less its uncertainty, is
above it. A run with enough trials also fails when it cannot exclude more.
"""

from __future__ import annotations

import os
import random

import grpc
import pytest
from hypothesis import given
from hypothesis import strategies as st

from attacks.answers import answer
from attacks.rpcs import Way, methods_of, ways_of
from attacks.tenants import AttackedMesh, Belongings
from attacks.timing import Distinguisher, distinguisher, measured, resolution

LIMIT = 0.55
TRIALS = int(os.environ.get("LIONROCK_TIMING_TRIALS", "300"))

ORACLES = [
    ("user", "GatewayService.GetReceipt", "request_id"),
    ("user", "AuditService.GetReceipt", "event_id"),
    ("reviewer", "RecordsService.ReadRecord", "request_id"),
    ("tenant_admin", "ApiKeyService.RotateApiKey", "key_id"),
    ("tenant_admin", "ApiKeyService.RevokeApiKey", "key_id"),
]


@pytest.mark.parametrize(("role", "rpc", "field"), ORACLES, ids=[f"{rpc}-{field}" for _, rpc, field in ORACLES])
async def test_time_does_not_tell_another_tenants_from_nobodys(
    attacked: AttackedMesh, theirs: Belongings, role: str, rpc: str, field: str
) -> None:
    ways = {str(way): way for method in methods_of(attacked.registrations) for way in ways_of(method)}
    way = ways[f"{rpc} by {field}"]
    async with attacked.as_(role) as channel:
        real, missing = theirs.ids[way.kind], theirs.missing(way.kind)
        found = await measured(lambda: ask(channel, way, real), lambda: ask(channel, way, missing), TRIALS)
    print(f"{way}: {found}")  # shown by pytest -s
    assert found.least <= LIMIT, found
    if resolution(TRIALS) <= LIMIT:
        assert found.auc <= LIMIT, found


async def ask(channel: grpc.aio.Channel, way: Way, value: str | int) -> None:
    got = await answer(channel, way.method, way.request(value), value)
    assert got.status == "NOT_FOUND", got


async def test_the_tool_finds_a_difference_that_is_there() -> None:
    """Half a standard deviation between two samples of numbers, and a fifth more work between two that are timed."""
    rng = random.Random(7)
    quick = [rng.gauss(1.0, 0.1) for _ in range(300)]
    assert distinguisher([value + 0.05 for value in quick], [rng.gauss(1.0, 0.1) for _ in range(300)]).least > LIMIT
    slow = Kinds(work=4000)
    found = await measured(slow.one, slow.other, 100)
    assert found.least > LIMIT, found


async def test_the_tool_finds_none_where_none_is() -> None:
    same = Kinds(work=0)
    found = await measured(same.one, same.other, 300)
    assert found.least <= LIMIT, found
    rng = random.Random(11)
    sure = [distinguisher(*([rng.expovariate(1) for _ in range(100)] for _ in range(2))).least > 0.5 for _ in range(300)]
    assert sum(sure) <= 3, "one of a thousand is expected"


class Kinds:
    """Two ways to ask, of which one does more work."""

    def __init__(self, work: int) -> None:
        self.work = work

    async def one(self) -> None:
        sum(range(20_000))

    async def other(self) -> None:
        sum(range(20_000 + self.work))


@given(st.lists(st.integers(0, 5), min_size=2, max_size=30), st.lists(st.integers(0, 5), min_size=2, max_size=30))
def test_auc_is_the_share_of_pairs_that_are_in_order(one: list[int], other: list[int]) -> None:
    pairs = [(a > b) + 0.5 * (a == b) for a in one for b in other]
    share = sum(pairs) / len(pairs)
    found = distinguisher(one, other)
    assert found.auc == pytest.approx(max(share, 1 - share))
    assert 0.5 <= found.least <= found.auc <= found.most <= 1


def test_two_thousand_trials_find_what_the_limit_forbids() -> None:
    assert resolution(2000) < LIMIT < resolution(300) < 0.6
    assert Distinguisher(0.5, 0, 1).least == 0.5
