"""Election with virtual clocks: skewed, slow and fast ones, lost answers, crashes; and what a release brings."""

from __future__ import annotations

import datetime as dt
import random
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lionrock.operator.election import Election, LeaseConflict, LeaseRecord, LeaseTimes, LeaseUnavailable

TIMES = LeaseTimes(duration_s=15, renew_deadline_s=10.0, retry_s=2.0)


class Etcd:
    """One lease, compare-and-swap on its version."""

    def __init__(self) -> None:
        self.record: LeaseRecord | None = None
        self.version = 0
        self.writes = 0

    def read(self) -> LeaseRecord | None:
        return self.record

    def write(self, record: LeaseRecord) -> LeaseRecord:
        present = None if self.record is None else self.record.resource_version
        if record.resource_version != present:
            raise LeaseConflict
        self.version += 1
        self.writes += 1
        self.record = replace(record, resource_version=str(self.version))
        return self.record


class Network:
    """The way to the lease: calls take time, and fail before or after they were carried out."""

    def __init__(self, etcd: Etcd, candidate: Candidate) -> None:
        self.etcd = etcd
        self.candidate = candidate

    def read(self) -> LeaseRecord | None:
        self.candidate.call_takes()
        if self.candidate.is_cut_off:
            raise LeaseUnavailable("cut off")
        return self.etcd.read()

    def write(self, record: LeaseRecord) -> LeaseRecord:
        self.candidate.call_takes()
        if self.candidate.is_cut_off:
            raise LeaseUnavailable("cut off")
        written = self.etcd.write(record)
        if self.candidate.loses_answers:
            raise LeaseUnavailable("the answer was lost")
        return written


class Candidate:
    """An election with a clock of its own, offset and drifting from true time, and a wall clock years off."""

    def __init__(self, etcd: Etcd, world: World, name: str, offset_s: float, rate: float, wall_skew_s: float) -> None:
        self.world = world
        self.offset_s, self.rate = offset_s, rate
        self.latency_s = 0.0
        self.is_cut_off = self.loses_answers = False
        now = dt.datetime(2026, 11, 23, tzinfo=dt.UTC) + dt.timedelta(seconds=wall_skew_s)
        self.election = Election(Network(etcd, self), name, TIMES, clock=self.clock, wall_clock=lambda: now)

    def clock(self) -> float:
        return self.offset_s + self.rate * self.world.now

    def call_takes(self) -> None:
        self.world.now += self.latency_s


class World:
    now = 0.0


def candidates(etcd: Etcd, world: World, draw: random.Random, count: int, drift: float) -> list[Candidate]:
    return [
        Candidate(
            etcd,
            world,
            f"operator-{index}",
            draw.uniform(0, 1e6),
            1 + draw.uniform(-drift, drift),
            draw.uniform(-1e8, 1e8),
        )
        for index in range(count)
    ]


@given(seed=st.integers(0, 2**32))
@settings(max_examples=150, deadline=None)
def test_two_never_act_together_whatever_clocks_and_networks_do(seed: int) -> None:
    draw = random.Random(seed)
    etcd, world = Etcd(), World()
    # Two clocks that differ by 20 % still leave a part of the margin of 5 in 15 seconds.
    standing = candidates(etcd, world, draw, 3, drift=0.1)
    for _ in range(300):
        candidate = draw.choice(standing)
        candidate.is_cut_off = draw.random() < 0.2
        candidate.loses_answers = draw.random() < 0.2
        candidate.latency_s = draw.choice([0.0, 0.1, 3.0])
        candidate.election.step()
        world.now += draw.choice([0.0, 0.5, 2.0, 4.0, 20.0])
        acting = [each for each in standing if each.election.may_act()]
        assert len(acting) <= 1, f"seed {seed}: {len(acting)} act at {world.now}"


def test_wall_clocks_decide_nothing() -> None:
    etcd, world = Etcd(), World()
    old = Candidate(etcd, world, "old", 0.0, 1.0, wall_skew_s=-1e8)
    new = Candidate(etcd, world, "new", 1e6, 1.0, wall_skew_s=1e8)
    assert old.election.step()
    for _ in range(20):  # the lease looks three years out of date to the other one, and is renewed
        world.now += 2.0
        assert old.election.step()
        assert not new.election.step()


def test_a_lease_that_is_not_renewed_is_taken_after_its_duration_and_no_sooner() -> None:
    etcd, world = Etcd(), World()
    old, new = candidates(etcd, world, random.Random(1), 2, drift=0.0)
    old.election.step()
    new.election.step()
    old.is_cut_off = True
    taken_at = None
    while taken_at is None:
        world.now += 0.5
        old.election.step()
        assert old.election.may_act() == (world.now < TIMES.renew_deadline_s)
        if new.election.step():
            taken_at = world.now
    assert taken_at == TIMES.duration_s


def test_nothing_is_begun_that_could_end_after_the_lease() -> None:
    etcd, world = Etcd(), World()
    (leader,) = candidates(etcd, world, random.Random(1), 1, drift=0.0)
    leader.election.step()
    world.now = 6.0
    assert leader.election.may_act(8.9)
    assert not leader.election.may_act(9.1)


def test_a_released_lease_is_taken_at_the_next_look() -> None:
    etcd, world = Etcd(), World()
    old, new = candidates(etcd, world, random.Random(1), 2, drift=0.0)
    old.election.step()
    new.election.step()
    old.election.release()
    assert not old.election.may_act()
    assert new.election.step()
    assert not old.election.step()


def test_a_renewal_whose_answer_was_lost_costs_no_leadership() -> None:
    etcd, world = Etcd(), World()
    old, new = candidates(etcd, world, random.Random(1), 2, drift=0.0)
    old.election.step()
    for _ in range(10):
        world.now += 2.0
        old.loses_answers = not old.loses_answers
        assert old.election.step()
        assert not new.election.step()


def test_renewing_costs_one_call() -> None:
    etcd, world = Etcd(), World()
    (leader,) = candidates(etcd, world, random.Random(1), 1, drift=0.0)
    leader.election.step()
    reads = 0

    def read() -> LeaseRecord | None:
        nonlocal reads
        reads += 1
        return etcd.record

    etcd.read = read  # type: ignore[method-assign]
    for _ in range(5):
        world.now += 2.0
        leader.election.step()
    assert (reads, etcd.writes) == (0, 6)


def test_a_deleted_lease_ends_the_leadership_and_is_made_again() -> None:
    etcd, world = Etcd(), World()
    (leader,) = candidates(etcd, world, random.Random(1), 1, drift=0.0)
    leader.election.step()
    etcd.record = None
    assert not leader.election.step()
    assert leader.election.step()


@pytest.mark.parametrize("times", [(15, 15.0, 2.0), (15, 10.0, 10.0), (15, 10.0, 0.0), (10, 15.0, 2.0)])
def test_times_by_which_two_could_act_are_refused(times: tuple[int, float, float]) -> None:
    with pytest.raises(ValueError, match="renew_deadline_s"):
        LeaseTimes(*times)


def test_an_empty_identity_is_refused() -> None:
    with pytest.raises(ValueError, match="identity"):
        Election(Etcd(), "", TIMES)
