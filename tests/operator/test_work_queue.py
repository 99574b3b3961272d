"""The work queue against a naive reference in virtual time, and its threads."""

from __future__ import annotations

import random
import threading
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from lionrock.operator.work_queue import Backoff, Schedule, ShutDown, WorkQueue

KEYS = st.sampled_from("abcde")
DELAYS = st.floats(min_value=0, max_value=100, allow_nan=False)


@dataclass
class NaiveSchedule:
    """One list of (due, arrival) a key, looked through from the beginning each time."""

    backoff: Backoff
    draws: random.Random
    now: float = 0.0
    arrivals: int = 0
    waiting: dict[str, tuple[float, int]] = field(default_factory=dict)  # ready: due is -1
    taken: set[str] = field(default_factory=set)
    failures: dict[str, int] = field(default_factory=dict)

    def _arrive(self, key: str) -> tuple[float, int]:
        self.arrivals += 1
        return -1.0, self.arrivals

    def add(self, key: str) -> None:
        if self.waiting.get(key, (0.0, 0))[0] != -1.0:
            self.waiting[key] = self._arrive(key)

    def add_at(self, key: str, due: float) -> None:
        known = self.waiting.get(key)
        if known is None or due < known[0]:
            self.arrivals += 1
            self.waiting[key] = (due, self.arrivals)

    def fail(self, key: str, now: float) -> None:
        self.failures[key] = self.failures.get(key, 0) + 1
        self.add_at(key, now + self.backoff.delay_s(self.failures[key], self.draws.random()))

    def take(self, now: float) -> str | None:
        for _, _, key in sorted((due, order, key) for key, (due, order) in self.waiting.items() if -1.0 < due <= now):
            self.waiting[key] = self._arrive(key)
        ready = sorted((order, key) for key, (due, order) in self.waiting.items() if due == -1.0 and key not in self.taken)
        if not ready:
            return None
        key = ready[0][1]
        del self.waiting[key]
        self.taken.add(key)
        return key

    def done(self, key: str) -> None:
        self.taken.remove(key)
        if self.waiting.get(key, (0.0, 0))[0] == -1.0:
            self.waiting[key] = self._arrive(key)


class ScheduleMachine(RuleBasedStateMachine):
    """Does the same to both and compares what is given out."""

    @initialize(seed=st.integers(0, 2**16))
    def begin(self, seed: int) -> None:
        backoff = Backoff(base_s=1.0, cap_s=20.0)
        self.schedule: Schedule[str] = Schedule(backoff, seed=seed)
        self.naive = NaiveSchedule(backoff, random.Random(seed))
        self.now = 0.0
        self.held: list[str] = []

    @rule(key=KEYS)
    def add(self, key: str) -> None:
        self.schedule.add(key)
        self.naive.add(key)

    @rule(key=KEYS, delay=DELAYS)
    def add_later(self, key: str, delay: float) -> None:
        self.schedule.add_at(key, self.now + delay)
        self.naive.add_at(key, self.now + delay)

    @rule(delay=DELAYS)
    def time_passes(self, delay: float) -> None:
        self.now += delay

    @rule()
    def take(self) -> None:
        taken = self.schedule.take(self.now)
        assert taken == self.naive.take(self.now)
        if taken is not None:
            self.held.append(taken)

    @precondition(lambda self: self.held)
    @rule(failed=st.booleans())
    def finish(self, failed: bool) -> None:
        key = self.held.pop(0)
        if failed:
            self.schedule.fail(key, self.now)
            self.naive.fail(key, self.now)
        else:
            self.schedule.forget(key)
            self.naive.failures.pop(key, None)
        self.schedule.done(key)
        self.naive.done(key)

    @invariant()
    def nobody_holds_a_key_twice(self) -> None:
        assert len(self.held) == len(set(self.held)) == self.schedule.processing

    @invariant()
    def as_many_keys_wait(self) -> None:
        assert len(self.schedule) == len(self.naive.waiting)


TestSchedule = ScheduleMachine.TestCase
TestSchedule.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)


@given(st.integers(1, 10_000), st.floats(0, 1, exclude_max=True))
def test_back_off_grows_to_its_cap_and_no_further(failures: int, draw: float) -> None:
    backoff = Backoff(base_s=0.05, cap_s=60.0, factor=2.0, jitter=0.25)
    whole = min(60.0, 0.05 * 2.0 ** min(failures - 1, 64))
    assert whole * 0.75 <= backoff.delay_s(failures, draw) <= whole


def test_what_the_server_asked_for_outlasts_the_back_off() -> None:
    schedule: Schedule[str] = Schedule(Backoff(base_s=0.01), seed=1)
    schedule.add("a")
    schedule.take(0.0)
    assert schedule.fail("a", 0.0, at_least_s=30.0) == 30.0
    schedule.done("a")
    assert schedule.take(29.9) is None
    assert schedule.take(30.0) == "a"


def test_success_begins_the_back_off_anew() -> None:
    schedule: Schedule[str] = Schedule(Backoff(base_s=1.0, jitter=0.0), seed=1)
    for expected in (1.0, 2.0, 4.0):
        assert schedule.fail("a", 0.0) == expected
    schedule.forget("a")
    assert schedule.fail("a", 0.0) == 1.0


def test_a_full_queue_remembers_that_it_dropped_something() -> None:
    schedule: Schedule[int] = Schedule(capacity=3)
    for key in range(5):
        schedule.add(key)
        schedule.add(key)
    assert len(schedule) == 3
    assert schedule.overflowed


def test_delays_that_are_overtaken_leave_nothing_behind() -> None:
    schedule: Schedule[int] = Schedule()
    for step in range(10_000, 0, -1):
        schedule.add_at(step % 10, float(step))
    assert len(schedule._heap) <= 2 * 10 + 64


def test_waiting_thread_gets_a_key_that_is_added_later() -> None:
    queue: WorkQueue[str] = WorkQueue()
    taken: list[str | None] = []
    thread = threading.Thread(target=lambda: taken.append(queue.take(10)))
    thread.start()
    queue.add_after("a", 0.01)
    thread.join(10)
    assert taken == ["a"]


def test_two_threads_never_hold_one_key_and_no_add_is_lost() -> None:
    queue: WorkQueue[int] = WorkQueue()
    held: set[int] = set()
    worked: dict[int, int] = {}
    guard = threading.Lock()
    together = []

    def work() -> None:
        while True:
            try:
                key = queue.take(10)
            except ShutDown:
                return
            if key is None:
                return
            with guard:
                together.append(key in held)
                held.add(key)
            with guard:
                held.remove(key)
                worked[key] = worked.get(key, 0) + 1
            queue.succeed(key)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for step in range(2000):
        queue.add(step % 20)
    for key in range(100, 120):
        queue.add(key)
    while len(queue):
        threading.Event().wait(0.001)
    assert queue.shut_down(10)
    for thread in threads:
        thread.join(10)
    assert not any(together)
    assert worked.keys() == {*range(20), *range(100, 120)}


def test_shutting_down_waits_for_what_is_being_worked_on() -> None:
    queue: WorkQueue[str] = WorkQueue()
    queue.add("a")
    assert queue.take(0) == "a"
    assert not queue.shut_down(0.01)
    queue.succeed("a", again_after_s=0.0)
    assert queue.shut_down(0)
    with pytest.raises(ShutDown):
        queue.take(0)
