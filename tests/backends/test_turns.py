"""The order in which tenants share an engine that takes one number a request, without the engine."""

from __future__ import annotations

import heapq
import itertools
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lionrock.inference.backends.turns import CLASS_SPAN, Turn, Turns


class OneAtATime:
    """An engine with one place, that serves the smallest number first."""

    def __init__(self) -> None:
        self.turns = Turns()
        self._queue: list[tuple[int, int, Turn, int]] = []
        self._numbers = itertools.count()

    def ask(self, tenant: str, weight: int = 1, priority: int = 0, prompt: int = 10, answer: int = 20) -> None:
        turn = self.turns.take(tenant, weight, priority, prompt, answer)
        heapq.heappush(self._queue, (turn.number, next(self._numbers), turn, answer))

    def serve(self) -> tuple[str, int]:
        _, _, turn, answer = heapq.heappop(self._queue)
        self.turns.begun(turn)
        self.turns.end(turn, answer, whole=True)
        return turn.tenant, turn.prompt_tokens + 2 * answer

    @property
    def waiting(self) -> int:
        return len(self._queue)


def test_a_newcomer_is_not_behind_the_queue_of_another_tenant() -> None:
    engine = OneAtATime()
    for _ in range(100):
        engine.ask("flood")
    for _ in range(10):
        engine.serve()
    engine.ask("late")
    assert "late" in [engine.serve()[0] for _ in range(2)]


@pytest.mark.parametrize("weight", [1, 2, 5])
def test_tenants_that_always_want_more_are_served_by_weight(weight: int) -> None:
    engine = OneAtATime()
    for _ in range(200):
        engine.ask("plain")
        engine.ask("heavy", weight)
    served = Counter(engine.serve()[0] for _ in range(120))
    assert served["heavy"] / served["plain"] == pytest.approx(weight, rel=0.1)


def test_nobody_saves_up_turns_by_staying_away() -> None:
    engine = OneAtATime()
    for _ in range(200):
        engine.ask("steady")
    for _ in range(100):
        engine.serve()
    for _ in range(50):
        engine.ask("back")
    served = Counter(engine.serve()[0] for _ in range(40))
    assert abs(served["steady"] - served["back"]) <= 1


def test_nobody_sheds_what_was_served_by_leaving_and_coming_back() -> None:
    turns = Turns()
    turns.take("present", 1, 0, 10, 10)
    turn = turns.take("leaver", 1, 0, 1000, 10)
    turns.end(turn, 10, whole=True)
    assert turns.take("leaver", 1, 0, 10, 10).start == 1020


def test_an_answer_that_was_shorter_than_thought_gives_the_rest_back() -> None:
    turns = Turns()
    turns.take("present", 1, 0, 10, 10)
    turn = turns.take("brief", 2, 0, 10, 4000)
    turns.end(turn, 1, whole=False)
    assert turns.take("brief", 2, 0, 10, 10).start == 12 / 2


def test_a_larger_priority_goes_before_every_turn_of_a_smaller_one() -> None:
    turns = Turns()
    for _ in range(50):
        turns.take("flood", 1, 1, 1_000_000, 1_000_000)
    assert turns.take("flood", 1, 1, 1, 1).number < turns.take("other", 1, 0, 1, 1).number
    assert abs(turns.take("other", 1, -100, 1, 1).number) + CLASS_SPAN < 2**63


@settings(deadline=None, max_examples=200)
@given(
    sizes=st.lists(st.tuples(st.integers(1, 100), st.integers(1, 100)), min_size=2, max_size=60),
    weights=st.tuples(st.integers(1, 5), st.integers(1, 5)),
)
def test_what_two_busy_tenants_get_differs_by_a_request_of_each_at_most(
    sizes: list[tuple[int, int]], weights: tuple[int, int]
) -> None:
    engine, names = OneAtATime(), ("one", "two")
    for prompt, answer in sizes:
        for name, weight in zip(names, weights, strict=True):
            engine.ask(name, weight, prompt=prompt, answer=answer)
    left = {name: len(sizes) for name in names}
    got = dict.fromkeys(names, 0.0)
    largest = max(prompt + 2 * answer for prompt, answer in sizes)
    while all(left.values()):
        name, work = engine.serve()
        left[name] -= 1
        got[name] += work / weights[names.index(name)]
        assert abs(got["one"] - got["two"]) <= largest / weights[0] + largest / weights[1] + 1
