"""Replicas follow the load within their bounds, and a load that stays moves them in one direction only."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from lionrock.operator.autoscaling import Load, Scaling, scale
from lionrock.operator.resources import Autoscaling

NOW = datetime(2026, 1, 1, tzinfo=UTC)
BOUNDS = Autoscaling(min_replicas=1, max_replicas=8, target_waiting=10, target_ttft_ms=1000, scale_down_after_s=600)


def asked(before: int | None, load: Load | None, *, ready: int | None = None, low_since: datetime | None = None) -> Scaling:
    return scale(BOUNDS, before, ready=ready if ready is not None else before or 0, load=load, low_since=low_since, now=NOW)


def test_it_begins_with_the_least_and_stays_within_bounds() -> None:
    assert asked(None, None).replicas == 1
    assert asked(99, None).replicas == 8
    assert asked(0, None).replicas == 1


def test_unknown_load_moves_nothing() -> None:
    assert asked(3, None, low_since=NOW - timedelta(days=1)).replicas == 3


def test_what_is_not_known_of_the_load_is_said() -> None:
    assert "the load is unknown" in asked(3, None).unknown
    assert "a gateway does not tell" in asked(3, Load(waiting=0, ttft_p95_ms=None, partial=True)).unknown
    assert not asked(3, Load(waiting=0, ttft_p95_ms=None)).unknown


def test_load_that_is_known_in_part_adds_replicas_and_begins_no_time_of_little_load() -> None:
    assert asked(2, Load(waiting=1000, ttft_p95_ms=None, partial=True)).replicas == 4
    quiet = asked(3, Load(waiting=0, ttft_p95_ms=None, partial=True), low_since=NOW - timedelta(days=1))
    assert (quiet.replicas, quiet.low_since) == (3, None)


@given(st.integers(0, 200), st.none() | st.floats(0, 5000), st.integers(1, 8), st.integers(0, 8), st.booleans())
def test_nothing_that_is_known_in_part_takes_a_replica_away(
    waiting: int, ttft: float | None, before: int, ready: int, long_low: bool
) -> None:
    low_since = NOW - timedelta(days=1) if long_low else None
    load = Load(waiting=waiting, ttft_p95_ms=ttft, partial=True)
    partly = asked(before, load, ready=ready, low_since=low_since)
    assert partly.replicas >= before
    assert partly.replicas == max(before, asked(before, replace(load, partial=False), ready=ready, low_since=low_since).replicas)


def test_waiting_requests_add_replicas_but_never_more_than_double() -> None:
    assert asked(2, Load(waiting=21, ttft_p95_ms=None)).replicas == 3
    assert asked(2, Load(waiting=1000, ttft_p95_ms=None)).replicas == 4
    assert asked(8, Load(waiting=1000, ttft_p95_ms=None)).replicas == 8


def test_a_late_first_token_adds_one_only_while_requests_wait() -> None:
    assert asked(2, Load(waiting=1, ttft_p95_ms=1001.0)).replicas == 3
    assert asked(2, Load(waiting=0, ttft_p95_ms=5000.0)).replicas == 2, "slow without a queue: more replicas would not help"


def test_no_replica_is_added_while_the_last_ones_load() -> None:
    assert asked(4, Load(waiting=1000, ttft_p95_ms=None), ready=2).replicas == 4


def test_a_replica_goes_after_a_time_of_little_load_and_the_time_begins_anew() -> None:
    quiet = Load(waiting=0, ttft_p95_ms=None)
    begun = asked(3, quiet)
    assert (begun.replicas, begun.low_since, begun.recheck_after_s) == (3, NOW, 600)
    assert asked(3, quiet, low_since=NOW - timedelta(seconds=599)).replicas == 3
    gone = asked(3, quiet, low_since=NOW - timedelta(seconds=600))
    assert (gone.replicas, gone.low_since) == (2, NOW)
    assert asked(3, Load(waiting=29, ttft_p95_ms=None), low_since=NOW - timedelta(days=1)).low_since is None


@given(st.integers(0, 200), st.one_of(st.none(), st.floats(1, 5000)), st.integers(1, 8), st.integers(1, 5), st.integers(0, 4))
def test_a_load_that_stays_never_turns_the_replicas_around(
    waiting: int, ttft: float | None, before: int, least: int, more: int
) -> None:
    bounds = Autoscaling(
        min_replicas=least, max_replicas=least + more, target_waiting=10, target_ttft_ms=1000, scale_down_after_s=60
    )
    load, now, low_since, seen = Load(waiting=waiting, ttft_p95_ms=ttft), NOW, None, [before]
    for _ in range(40):
        scaling = scale(bounds, seen[-1], ready=seen[-1], load=load, low_since=low_since, now=now)
        assert least <= scaling.replicas <= least + more
        seen.append(scaling.replicas)
        low_since, now = scaling.low_since, now + timedelta(seconds=30)
    moves = [after - earlier for earlier, after in pairwise(seen[1:]) if after != earlier]
    late = ttft is not None and ttft > 1000 and waiting > 0
    assert all(move > 0 for move in moves) or all(move < 0 for move in moves) or late
    assert seen[-1] == seen[-2], "it has come to rest"
