"""What the operator hears of revisions: counted once, in a window that slides, within bounds."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lionrock.gateway import model_stats
from lionrock.gateway.model_stats import SLICES, TTFT_BOUNDS_S, WINDOW_S, ModelStats, percentile


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@given(st.lists(st.tuples(st.floats(0, 40), st.booleans(), st.none() | st.floats(0, 200)), max_size=40))
def test_the_window_holds_what_a_list_of_all_answers_would(steps: list[tuple[float, bool, float | None]]) -> None:
    clock = Clock()
    stats = ModelStats(clock)
    answers: list[tuple[float, bool, float | None]] = []
    for pause_s, failed, ttft_s in steps:
        clock.now += pause_s
        answer = stats.answer("m")
        answer.asked("r")
        answer.progressed()
        answer.ended(failed=failed, ttft_s=ttft_s)
        answers.append((clock.now, failed, None if failed else ttft_s))
    slice_s = WINDOW_S / SLICES
    oldest = (clock.now // slice_s - SLICES + 1) * slice_s
    lately = [(failed, ttft_s) for at, failed, ttft_s in answers if at >= oldest]
    if not answers:
        assert stats.figures() == []
        return
    (figures,) = stats.figures()
    assert (figures.answers, figures.failed_answers) == (len(answers), sum(failed for _, failed, _ in answers))
    assert (figures.window_answers, figures.window_failed_answers) == (len(lately), sum(failed for failed, _ in lately))
    assert (figures.open, figures.waiting) == (0, 0)
    times = sorted(ttft_s for _, ttft_s in lately if ttft_s is not None)
    assert sum(figures.window_ttft_counts) == len(times)
    assert sum(figures.ttft_counts) == sum(ttft_s is not None for _, _, ttft_s in answers)
    if not times:
        assert figures.window_ttft_p95_s is None
        return
    exact = times[-(-95 * len(times) // 100) - 1]
    told = figures.window_ttft_p95_s
    assert told is not None
    if TTFT_BOUNDS_S[0] < exact <= TTFT_BOUNDS_S[-1]:
        assert exact <= told <= exact * 2**0.25 * 1.0001


def test_an_answer_that_moves_counts_against_whom_it_left_and_for_whom_it_ended_with() -> None:
    stats = ModelStats()
    answer = stats.answer("m")
    answer.asked("canary")
    assert [(f.revision, f.open, f.waiting) for f in stats.figures()] == [("canary", 1, 1)]
    answer.progressed()
    assert [(f.revision, f.open, f.waiting) for f in stats.figures()] == [("canary", 1, 0)]
    answer.asked("old")
    answer.ended(failed=False, ttft_s=0.1)
    told = {f.revision: (f.answers, f.failed_answers, f.open, f.waiting) for f in stats.figures()}
    assert told == {"canary": (1, 1, 0, 0), "old": (1, 0, 0, 0)}


def test_an_answer_that_goes_on_where_it_was_lost_is_no_failure() -> None:
    stats = ModelStats()
    answer = stats.answer("m")
    for revision in ("a", "b", "a"):
        answer.asked(revision)
        if revision == "b":
            answer.withdrawn()  # it serves other weights
    answer.ended(failed=False, ttft_s=0.1)
    assert {f.revision: (f.answers, f.failed_answers) for f in stats.figures()} == {"a": (1, 0), "b": (0, 0)}


def test_what_a_caller_or_a_guardrail_ended_says_nothing_of_engines() -> None:
    stats = ModelStats()
    answer = stats.answer("m")
    answer.asked("r")
    answer.ended(failed=None, ttft_s=0.5)
    (figures,) = stats.figures()
    assert (figures.answers, figures.open, figures.waiting) == (0, 0, 0)
    never = stats.answer("m")
    never.ended(failed=None, ttft_s=None)
    assert never.revision is None


def test_revisions_out_of_the_routes_are_forgotten_once_nothing_is_open() -> None:
    stats = ModelStats()
    running, ended = stats.answer("m"), stats.answer("m")
    running.asked("old")
    ended.asked("new")
    ended.ended(failed=False, ttft_s=None)
    stats.keep([("m", "new")])
    assert [f.revision for f in stats.figures()] == ["new", "old"]
    running.ended(failed=None, ttft_s=None)
    assert [f.revision for f in stats.figures()] == ["new"]
    stats.keep([])
    assert stats.figures() == []


def test_what_is_routed_has_figures_before_anybody_asks_it() -> None:
    stats = ModelStats()
    stats.keep([("m", "new")])
    (idle,) = stats.figures()
    assert (idle.revision, idle.waiting, idle.answers, idle.window_ttft_p95_s) == ("new", 0, 0, None)
    answer = stats.answer("m")
    answer.asked("new")
    answer.ended(failed=False, ttft_s=0.1)
    stats.keep([("m", "new")])
    assert [figures.answers for figures in stats.figures()] == [1], "routes that stay begin no new count"


def test_there_are_so_many_revisions_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model_stats, "MAX_REVISIONS", 16)
    stats = ModelStats()
    for number in range(26):
        answer = stats.answer(f"m{number}")
        answer.asked("r")
        answer.ended(failed=number % 2 == 0, ttft_s=0.1)
    assert len(stats.figures()) == 16


def test_a_percentile_is_the_bound_of_the_bucket_that_holds_it() -> None:
    counts = [0] * (len(TTFT_BOUNDS_S) + 1)
    assert percentile(counts, 0.95) is None
    counts[3], counts[10] = 95, 5
    assert percentile(counts, 0.95) == TTFT_BOUNDS_S[3]
    counts[10] += 1
    assert percentile(counts, 0.95) == TTFT_BOUNDS_S[10]
    assert percentile([*[0] * len(TTFT_BOUNDS_S), 1], 0.95) == TTFT_BOUNDS_S[-1]
    assert Counter(counts)[0] == len(counts) - 2
