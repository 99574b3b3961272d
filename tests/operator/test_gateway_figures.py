"""What gateways tell is added up so that no answer counts twice, whoever restarts, comes, goes or is silent."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from models_with_figures import AUTOSCALING, CANARY, NEW, OLD, a_model

from lionrock.operator import gateway_figures
from lionrock.operator.gateway_figures import (
    GatewayFigures,
    GatewayReading,
    RevisionReading,
    Served,
    Unreadable,
    percentile,
    wanted_of,
    what_matters,
)
from lionrock.operator.reports import RevisionReport
from lionrock.operator.resources import ModelDeployment, ObjectKey, Revision
from lionrock.operator.rollout import MIN_CANARY_ANSWERS, RevisionFigures

BOUNDS = (0.1, 0.5, 1.0)
UPPER = (*BOUNDS, 1.0)
"""Bound that stands for each bucket."""
MODEL = ObjectKey("models", "llama")
WANTED: dict[Served, ObjectKey] = {("llama", OLD): MODEL, ("llama", NEW): MODEL}


def counted(*answers: tuple[bool, int | None]) -> tuple[int, int, tuple[int, ...]]:
    """Answers, failed answers, and answers by bucket."""
    times = Counter(bucket for _, bucket in answers if bucket is not None)
    return len(answers), sum(failed for failed, _ in answers), tuple(times[bucket] for bucket in range(len(UPPER)))


def told(
    answers: int = 0, failed: int = 0, *, waiting: int = 0, window: tuple[int, ...] = (), ever: tuple[int, ...] = (), since: int = 1
) -> GatewayReading:
    """What a gateway tells of the new revision alone."""
    one = RevisionReading(waiting=waiting, answers=answers, failed=failed, ttft_counts=ever, window_ttft_counts=window)
    return GatewayReading(counting_since_ns=since, ttft_bounds_s=BOUNDS, revisions={("llama", NEW): one})


def answers_of(reports: Any, revision: Revision = NEW) -> tuple[int, int]:
    figures = reports[MODEL, revision].figures
    return figures.answers, figures.failed


# ---- adding up ---------------------------------------------------------------------------------------------------------------


@dataclass
class Gateway:
    """One gateway's life after the other, with every answer by itself."""

    life: int = 1
    answers: dict[Revision, list[tuple[bool, int | None]]] = field(default_factory=dict)

    def reading(self) -> GatewayReading:
        found = {}
        for revision, answers in self.answers.items():
            count, failed, times = counted(*answers)
            found["llama", revision] = RevisionReading(
                waiting=len(answers) % 3, answers=count, failed=failed, ttft_counts=times, window_ttft_counts=times
            )
        return GatewayReading(counting_since_ns=self.life, ttft_bounds_s=BOUNDS, revisions=found)


ANSWER = st.tuples(st.sampled_from([OLD, NEW]), st.booleans(), st.none() | st.integers(0, 3), st.integers(1, 30))
ROUND = st.tuples(
    st.lists(st.tuples(st.integers(0, 2), ANSWER | st.just("restarts")), max_size=6),
    st.lists(st.sampled_from(["tells", "is silent", "is not there"]), min_size=3, max_size=3),
)


@given(st.lists(ROUND, max_size=8))
def test_sums_are_of_every_answer_that_a_gateway_ever_told_and_of_each_once(rounds: Sequence[Any]) -> None:
    gateways = [Gateway() for _ in range(3)]
    figures, heard = GatewayFigures(), dict[Any, tuple[Revision, bool, int | None]]()
    for events, behaviour in rounds:
        for number, event in events:
            gateway = gateways[number]
            if event == "restarts":
                gateways[number] = Gateway(life=gateway.life + 1)
            else:
                revision, failed, bucket, times = event
                gateway.answers.setdefault(revision, []).extend([(failed, None if failed else bucket)] * times)
        asked = {number: does for number, does in enumerate(behaviour) if does != "is not there"}
        tell = {f"gateway-{number}": gateways[number].reading() if does == "tells" else None for number, does in asked.items()}
        for number in [number for number, does in asked.items() if does == "tells"]:
            for revision, answers in gateways[number].answers.items():
                for place, (failed, bucket) in enumerate(answers):
                    heard[number, gateways[number].life, revision, place] = (revision, failed, bucket)
        reports = figures.add(tell, WANTED)
        for revision in (OLD, NEW):
            named = any(reading is not None and ("llama", revision) in reading.revisions for reading in tell.values())
            mine = [(failed, bucket) for of, failed, bucket in heard.values() if of == revision]
            partial = None in tell.values()
            assert ((MODEL, revision) in reports) == (named or (partial and bool(mine)))
            if (report := reports.get((MODEL, revision))) is None:
                continue
            assert report.partial is partial
            assert answers_of(reports, revision) == counted(*mine)[:2]
            waiting = [
                r.revisions[key].waiting for r in tell.values() if r is not None for key in r.revisions if key[1] == revision
            ]
            assert report.waiting == sum(waiting)
            slow = sorted(UPPER[bucket] for _, bucket in mine if bucket is not None)
            expected = slow[math.ceil(0.95 * len(slow)) - 1] * 1000 if len(slow) >= MIN_CANARY_ANSWERS else None
            assert report.figures is not None
            assert report.figures.ttft_p95_ms == expected


def test_a_new_gateway_and_one_that_began_anew_count_from_zero() -> None:
    figures = GatewayFigures()
    assert answers_of(figures.add({"a": told(10, 1)}, WANTED)) == (10, 1)
    assert answers_of(figures.add({"a": told(12, 1), "b": told(5, 5)}, WANTED)) == (17, 6)
    assert answers_of(figures.add({"a": told(30, 2, since=2), "b": told(5, 5)}, WANTED)) == (47, 8), (
        "more than before, and yet anew"
    )


def test_a_revision_that_a_gateway_forgot_and_met_again_counts_from_zero() -> None:
    figures = GatewayFigures()
    figures.add({"a": told(10, 1)}, WANTED)
    assert answers_of(figures.add({"a": told(3, 0)}, WANTED)) == (13, 1)


def test_a_gateway_that_left_took_its_answers_with_it_but_not_what_it_told() -> None:
    figures = GatewayFigures()
    figures.add({"a": told(10, 1, waiting=4), "b": told(20, 0, waiting=3)}, WANTED)
    report = figures.add({"a": told(11, 1, waiting=4)}, WANTED)[MODEL, NEW]
    assert (report.waiting, report.partial) == (4, False)
    assert report.figures == RevisionFigures(answers=31, failed=1, ttft_p95_ms=None)


def test_who_does_not_tell_makes_the_rest_partial_and_what_was_told_before_stays() -> None:
    figures = GatewayFigures()
    assert figures.add({"a": None, "b": None}, WANTED) == {}, "nothing is known yet"
    figures.add({"a": told(10, 1, waiting=4), "b": told(20, 0, waiting=3)}, WANTED)
    report = figures.add({"a": told(11, 1, waiting=4), "b": None}, WANTED)[MODEL, NEW]
    assert (report.waiting, report.partial) == (4, True)
    report = figures.add({"a": None, "b": None}, WANTED)[MODEL, NEW]
    assert (report.waiting, report.partial, report.figures) == (0, True, RevisionFigures(answers=31, failed=1, ttft_p95_ms=None))
    assert figures.add({}, WANTED) == {}, "no gateway is known, so nothing is"
    assert answers_of(figures.add({"a": told(12, 1), "b": told(21, 0)}, WANTED)) == (33, 1)


def test_a_gateway_that_cannot_tell_of_all_revisions_is_partial() -> None:
    whole = told(10)
    cut = GatewayReading(counting_since_ns=1, ttft_bounds_s=BOUNDS, revisions=whole.revisions, complete=False)
    assert GatewayFigures().add({"a": cut}, WANTED)[MODEL, NEW].partial


def test_figures_of_a_revision_that_went_do_not_come_back_with_it() -> None:
    figures = GatewayFigures()
    figures.add({"a": told(100, 50)}, WANTED)
    gone = GatewayReading(counting_since_ns=1, ttft_bounds_s=BOUNDS, revisions={})
    figures.add({"a": gone}, {("llama", OLD): MODEL})
    assert answers_of(figures.add({"a": told(1, 0)}, WANTED)) == (1, 0)
    figures.forget()
    assert answers_of(figures.add({"a": told(2, 1)}, WANTED)) == (2, 1), "who begins to ask begins with what gateways have counted"


def test_gateways_that_left_are_forgotten_one_day(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gateway_figures, "MAX_REMEMBERED", 4)
    figures = GatewayFigures()
    for number in range(10):
        figures.add({f"gateway-{number}": told(1)}, WANTED)
    assert list(figures._last) == [f"gateway-{number}" for number in range(6, 10)]
    assert answers_of(figures.add({}, {}) or figures.add({"gateway-9": told(3)}, WANTED)) == (2, 0)


# ---- times -------------------------------------------------------------------------------------------------------------------


@given(st.lists(st.sampled_from([0.1, 0.25, 0.5, 1.0, 2.0]), max_size=60), st.floats(0.01, 1))
def test_a_percentile_is_what_the_sorted_values_say(values: list[float], share: float) -> None:
    expected = sorted(values)[max(0, math.ceil(share * len(values)) - 1)] if values else None
    assert percentile(Counter(values), share) == expected


def test_gateways_with_other_buckets_are_added_by_their_bounds() -> None:
    one = GatewayReading(
        counting_since_ns=1,
        ttft_bounds_s=(0.2,),
        revisions={("llama", NEW): RevisionReading(waiting=0, answers=0, failed=0, window_ttft_counts=(90, 0))},
    )
    report = GatewayFigures().add({"a": one, "b": told(window=(0, 5, 5, 0))}, WANTED)[MODEL, NEW]
    assert report.ttft_p95_ms == 500.0
    over = told(window=(0, 0, 0, 1))
    assert GatewayFigures().add({"a": over}, WANTED)[MODEL, NEW].ttft_p95_ms == 1000.0, "above all bounds: the highest"


def test_revisions_are_compared_over_the_time_that_they_run_side_by_side() -> None:
    figures = GatewayFigures()
    alone = {("llama", OLD): MODEL}

    def both(old: tuple[int, ...], new: tuple[int, ...] | None = None) -> GatewayReading:
        found = {("llama", OLD): RevisionReading(waiting=0, answers=sum(old), failed=0, ttft_counts=old)}
        if new is not None:
            found["llama", NEW] = RevisionReading(waiting=0, answers=sum(new), failed=0, ttft_counts=new, window_ttft_counts=new)
        return GatewayReading(counting_since_ns=1, ttft_bounds_s=BOUNDS, revisions=found)

    def p95(reports: Any, revision: Revision) -> float | None:
        value: float | None = reports[MODEL, revision].figures.ttft_p95_ms
        return value

    assert p95(figures.add({"a": both((1000, 0, 0, 0))}, alone), OLD) is None, "a life's answers are of many hours"
    assert p95(figures.add({"a": both((1100, 0, 0, 0))}, alone), OLD) == 100.0
    first = figures.add({"a": both((1100, 0, 19, 0), (0, 0, 19, 0))}, WANTED)
    assert (p95(first, OLD), p95(first, NEW)) == (None, None), f"less than {MIN_CANARY_ANSWERS} say nothing"
    then = figures.add({"a": both((1100, 0, 20, 0), (0, 0, 20, 0))}, WANTED)
    assert (p95(then, OLD), p95(then, NEW)) == (1000.0, 1000.0), "slow is the hour, not the canary"


@pytest.mark.parametrize(
    ("bounds", "counts"),
    [((0.5, 0.1), ()), ((0.1, 0.1), ()), ((0.1, math.inf), ()), ((math.nan,), ()), (BOUNDS, (1, 2)), ((), (1,))],
)
def test_a_gateway_that_contradicts_itself_is_not_believed(bounds: tuple[float, ...], counts: tuple[int, ...]) -> None:
    for revision in (
        RevisionReading(waiting=0, answers=0, failed=0, ttft_counts=counts),
        RevisionReading(waiting=0, answers=0, failed=0, window_ttft_counts=counts),
    ):
        with pytest.raises(Unreadable):
            GatewayReading(counting_since_ns=1, ttft_bounds_s=bounds, revisions={("llama", NEW): revision})


# ---- what is asked for -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "revisions"),
    [
        (a_model(rollout=CANARY), {OLD, NEW}),
        (a_model(rollout=CANARY, revisions=1), set()),
        (a_model(), set()),
        (a_model(autoscaling=AUTOSCALING, revisions=1), {NEW}),
        (a_model(autoscaling=AUTOSCALING, namespace="others"), set()),
    ],
    ids=["a canary", "no canary now", "nothing", "autoscaling", "another namespace"],
)
def test_gateways_are_asked_for_what_something_depends_on(model: ModelDeployment, revisions: set[Revision]) -> None:
    assert wanted_of([model], "models") == {("llama", revision): model.key for revision in revisions}


def test_of_two_models_with_one_served_name_the_one_that_is_routed_has_the_figures() -> None:
    older = a_model("llama", autoscaling=AUTOSCALING, created=1)
    newer = a_model("usurper", served="llama", autoscaling=AUTOSCALING, created=2)
    assert set(wanted_of([newer, older], "models").values()) == {older.key}


def test_a_model_is_looked_at_when_something_changes_that_it_is_decided_by() -> None:
    def matter(model: ModelDeployment, **changed: Any) -> object:
        report = RevisionReport(waiting=1, figures=RevisionFigures(answers=MIN_CANARY_ANSWERS, failed=0, ttft_p95_ms=100.0))
        changed_report = RevisionReport(**{"waiting": 1, "figures": report.figures, **changed})
        return what_matters([model], {(model.key, NEW): changed_report})

    canary, scaled = a_model(rollout=CANARY), a_model(autoscaling=AUTOSCALING)
    more = RevisionFigures(answers=MIN_CANARY_ANSWERS + 1, failed=0, ttft_p95_ms=100.0)
    assert matter(canary) == matter(canary, figures=more), "more of the same"
    assert matter(canary) != matter(canary, figures=RevisionFigures(answers=MIN_CANARY_ANSWERS, failed=1, ttft_p95_ms=100.0))
    assert matter(canary) != matter(canary, partial=True)
    assert matter(canary) == matter(canary, waiting=2)
    assert matter(scaled) != matter(scaled, waiting=2)
    assert what_matters([canary], {}) == {}
