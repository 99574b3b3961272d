"""The roll-out's state machine by itself: every move, held against a model of the cluster that obeys it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lionrock.operator.conditions import Reason
from lionrock.operator.resources import Canary, PoolName, Revision, RevisionStatus, Rollout
from lionrock.operator.rollout import MIN_CANARY_ANSWERS, Moment, Phase, Rejection, RevisionFigures, Room, Step, step

NOW = datetime(2026, 1, 1, tzinfo=UTC)
OLD, NEW, NEWER = Revision("0ld00000"), Revision("new00000"), Revision("newer000")
AUTO = Rollout()
CANARY = Rollout(type="Canary", canary=Canary(percent=10, observe_s=600, max_failed_percent=1, max_ttft_percent=150))
GOOD, USUAL = RevisionFigures(answers=100, failed=0, ttft_p95_ms=100.0), RevisionFigures(answers=900, failed=1, ttft_p95_ms=100.0)


def a_revision(name: Revision, *, weight: int = 0, ready: bool = True, age_s: float = 10_000, replicas: int = 1) -> RevisionStatus:
    started = NOW - timedelta(seconds=age_s)
    return RevisionStatus(
        name=name,
        pool=PoolName("pool"),
        weight_percent=weight,
        replicas=replicas,
        ready_replicas=replicas if ready else 0,
        started_at=started,
        ready_at=started + timedelta(seconds=min(60, age_s)) if ready else None,
    )


def a_moment(
    *running: RevisionStatus, wanted: Revision = NEW, moves: Rollout = AUTO, room: Room = Room.BESIDE, **more: object
) -> Moment:
    values: dict[str, object] = {
        "generation": 2,
        "kept": None,
        "rejected": {},
        "elsewhere": False,
        "figures": {},
        "promoted_at": None,
        "now": NOW,
        "drain_s": 60.0,
    }
    return Moment(wanted=wanted, moves=moves, running=running, room=room, **(values | more))  # type: ignore[arg-type]


def rejected(name: Revision) -> Mapping[Revision, Rejection]:
    return {name: Rejection(revision=name, generation=2, reason=Reason.DEADLINE_EXCEEDED, message="late")}


def test_the_first_revision_is_started() -> None:
    taken = step(a_moment())
    assert (taken.target, dict(taken.weights), taken.phase) == (NEW, {NEW: 100}, Phase.STARTING)


@pytest.mark.parametrize(
    ("kind", "room", "weights", "kept", "phase"),
    [
        ("Auto", Room.BESIDE, {OLD: 100, NEW: 0}, None, Phase.STARTING),
        ("Auto", Room.IN_PLACE, {NEW: 100}, OLD, Phase.STARTING),
        ("Auto", Room.NONE, {OLD: 100}, None, Phase.WAITING_FOR_CHIPS),
        ("Surge", Room.BESIDE, {OLD: 100, NEW: 0}, None, Phase.STARTING),
        ("Surge", Room.IN_PLACE, {OLD: 100}, None, Phase.WAITING_FOR_CHIPS),
        ("InPlace", Room.BESIDE, {NEW: 100}, OLD, Phase.STARTING),
        ("InPlace", Room.IN_PLACE, {NEW: 100}, OLD, Phase.STARTING),
        ("InPlace", Room.NONE, {OLD: 100}, None, Phase.WAITING_FOR_CHIPS),
        ("Canary", Room.BESIDE, {OLD: 100, NEW: 0}, None, Phase.STARTING),
        ("Canary", Room.IN_PLACE, {OLD: 100}, None, Phase.WAITING_FOR_CHIPS),
    ],
)
def test_a_change_begins_as_the_owner_says_and_as_there_is_room(
    kind: str, room: Room, weights: Mapping[Revision, int], kept: Revision | None, phase: Phase
) -> None:
    taken = step(a_moment(a_revision(OLD, weight=100), moves=replace(CANARY, type=kind), room=room))
    assert (dict(taken.weights), taken.kept, taken.phase) == (weights, kept, phase)


def test_a_revision_that_never_served_is_not_waited_for() -> None:
    taken = step(a_moment(a_revision(OLD, weight=100, ready=False), room=Room.NONE))
    assert dict(taken.weights) == {NEW: 100}


def test_requests_move_when_the_new_revision_answers_and_the_old_one_finishes_what_it_began() -> None:
    ready = step(a_moment(a_revision(NEW), a_revision(OLD, weight=100)))
    assert (dict(ready.weights), ready.promoted, ready.recheck_after_s) == ({NEW: 100, OLD: 0}, True, 60.0)
    running = (a_revision(NEW, weight=100), a_revision(OLD))
    draining = step(a_moment(*running, promoted_at=NOW - timedelta(seconds=20)))
    assert (dict(draining.weights), draining.promoted, draining.recheck_after_s) == ({NEW: 100, OLD: 0}, False, 40.0)
    drained = step(a_moment(*running, promoted_at=NOW - timedelta(seconds=60)))
    assert (dict(drained.weights), drained.phase) == ({NEW: 100}, Phase.STEADY)


def test_a_surge_that_is_late_leaves_the_old_revision_alone() -> None:
    taken = step(a_moment(a_revision(NEW, ready=False, age_s=1801), a_revision(OLD, weight=100)))
    assert (dict(taken.weights), taken.target) == ({OLD: 100}, OLD)
    assert taken.rejection is not None
    assert (taken.rejection.revision, taken.rejection.reason) == (NEW, Reason.DEADLINE_EXCEEDED)


def test_a_revision_in_place_that_is_late_gives_way_to_the_one_that_was_kept() -> None:
    taken = step(a_moment(a_revision(NEW, weight=100, ready=False, age_s=1801), kept=OLD))
    assert (dict(taken.weights), taken.target) == ({OLD: 100}, OLD)
    again = step(a_moment(a_revision(OLD, weight=100, ready=False, age_s=0), rejected=rejected(NEW)))
    assert (dict(again.weights), again.rejection) == ({OLD: 100}, None)


def test_a_first_revision_that_is_late_goes_on_unless_another_pool_may_do_better() -> None:
    late = a_revision(NEW, weight=100, ready=False, age_s=1801)
    alone = step(a_moment(late))
    assert (dict(alone.weights), alone.rejection, alone.reason) == ({NEW: 100}, None, Reason.DEADLINE_EXCEEDED)
    moved = step(a_moment(late, elsewhere=True))
    assert (dict(moved.weights), moved.rejection is not None) == ({}, True)


def test_a_revision_that_was_given_up_is_not_tried_again_and_what_serves_stays() -> None:
    taken = step(a_moment(a_revision(OLD, weight=100), rejected=rejected(NEW)))
    assert (dict(taken.weights), taken.phase, taken.rejection) == ({OLD: 100}, Phase.STEADY, None)
    assert step(a_moment(rejected=rejected(NEW))).phase is Phase.FAILED
    assert dict(step(a_moment(rejected=rejected(NEW), kept=OLD)).weights) == {OLD: 100}


def test_a_change_in_the_middle_of_a_change_ends_what_was_coming() -> None:
    running = (a_revision(NEW, ready=False, age_s=5), a_revision(OLD, weight=100))
    assert dict(step(a_moment(*running, wanted=NEWER)).weights) == {OLD: 100, NEWER: 0}
    assert dict(step(a_moment(*running, wanted=OLD)).weights) == {OLD: 100, NEW: 0}


def a_canary(age_s: float, weight: int = 10) -> tuple[RevisionStatus, RevisionStatus]:
    new = replace(a_revision(NEW, weight=weight), ready_at=NOW - timedelta(seconds=age_s))
    return new, a_revision(OLD, weight=100 - weight)


def test_a_canary_gets_its_part_and_is_promoted_by_its_figures_alone() -> None:
    begun = step(a_moment(*a_canary(0, weight=0), moves=CANARY))
    assert (dict(begun.weights), begun.phase) == ({OLD: 90, NEW: 10}, Phase.OBSERVING)
    few = replace(GOOD, answers=MIN_CANARY_ANSWERS - 1)
    untimed = {NEW: replace(GOOD, ttft_p95_ms=None), OLD: USUAL}
    for figures in ({}, {NEW: GOOD}, {OLD: USUAL}, {NEW: few, OLD: USUAL}, {NEW: GOOD, OLD: few}, untimed):
        assert dict(step(a_moment(*a_canary(9999), moves=CANARY, figures=figures)).weights) == {OLD: 90, NEW: 10}
    known = {NEW: GOOD, OLD: USUAL}
    assert dict(step(a_moment(*a_canary(599), moves=CANARY, figures=known)).weights) == {OLD: 90, NEW: 10}
    assert dict(step(a_moment(*a_canary(600), moves=CANARY, figures=known)).weights) == {NEW: 100, OLD: 0}


@pytest.mark.parametrize(
    ("figures", "reason"),
    [
        (replace(GOOD, failed=2), Reason.CANARY_FAILED_ANSWERS),
        (replace(GOOD, ttft_p95_ms=151.0), Reason.CANARY_SLOW),
    ],
)
def test_a_canary_that_does_badly_goes_before_its_time(figures: RevisionFigures, reason: Reason) -> None:
    taken = step(a_moment(*a_canary(30), moves=CANARY, figures={NEW: figures, OLD: USUAL}))
    assert dict(taken.weights) == {OLD: 100}
    assert taken.rejection is not None
    assert taken.rejection.reason is reason


def test_what_is_just_allowed_does_not_roll_back() -> None:
    allowed = RevisionFigures(answers=100, failed=1, ttft_p95_ms=150.0)
    assert dict(step(a_moment(*a_canary(600), moves=CANARY, figures={NEW: allowed, OLD: USUAL})).weights) == {NEW: 100, OLD: 0}


def test_a_canary_is_not_promoted_by_figures_that_lack_a_gateway_and_is_sent_back_by_them() -> None:
    well = step(a_moment(*a_canary(9999), moves=CANARY, figures={NEW: GOOD, OLD: USUAL}, partial=True))
    assert dict(well.weights) == {OLD: 90, NEW: 10}
    assert "while a gateway does not tell its figures" in well.message
    badly = {NEW: replace(GOOD, failed=50), OLD: USUAL}
    assert dict(step(a_moment(*a_canary(30), moves=CANARY, figures=badly, partial=True)).weights) == {OLD: 100}


def test_a_canary_that_is_held_says_for_want_of_what() -> None:
    held = step(a_moment(*a_canary(9999), moves=CANARY, asked=False))
    assert dict(held.weights) == {OLD: 90, NEW: 10}
    assert "no gateways are asked" in held.message
    assert f"{MIN_CANARY_ANSWERS} answers at least" in step(a_moment(*a_canary(9999), moves=CANARY)).message


@pytest.mark.parametrize("weight", [1, 10, 99])
def test_a_canary_that_its_owner_takes_back_has_no_requests_at_once(weight: int) -> None:
    new, old = a_canary(30, weight=weight)
    new = replace(new, started_at=NOW - timedelta(seconds=90))
    taken = step(a_moment(new, old, wanted=OLD, moves=CANARY))
    assert (taken.target, dict(taken.weights), taken.phase) == (OLD, {OLD: 100, NEW: 0}, Phase.DRAINING)


def test_a_canary_that_stops_answering_is_rolled_back() -> None:
    new, old = a_canary(30)
    taken = step(a_moment(replace(new, ready_replicas=0), old, moves=CANARY))
    assert taken.rejection is not None
    assert taken.rejection.reason is Reason.CANARY_LOST


revision = st.builds(
    a_revision,
    st.sampled_from([OLD, NEW, NEWER]),
    weight=st.sampled_from([0, 10, 90, 100]),
    ready=st.booleans(),
    age_s=st.sampled_from([0.0, 10.0, 5000.0]),
    replicas=st.integers(1, 3),
)
moments = st.builds(
    lambda running, wanted, kind, room, kept, given_up, figures, promoted, elsewhere: a_moment(
        *running,
        wanted=wanted,
        moves=replace(CANARY, type=kind, canary=CANARY.canary if kind == "Canary" else None),
        room=room,
        kept=kept,
        rejected={name: rejected(name)[name] for name in given_up},
        figures=dict.fromkeys(figures, GOOD),
        promoted_at=promoted,
        elsewhere=elsewhere,
    ),
    st.lists(revision, max_size=3, unique_by=lambda each: each.name),
    st.sampled_from([OLD, NEW, NEWER]),
    st.sampled_from(["Auto", "Surge", "InPlace", "Canary"]),
    st.sampled_from(Room),
    st.sampled_from([None, OLD, NEW]),
    st.sets(st.sampled_from([OLD, NEW, NEWER])),
    st.sets(st.sampled_from([OLD, NEW, NEWER])),
    st.sampled_from([None, NOW, NOW - timedelta(hours=1)]),
    st.booleans(),
)


def obeyed(moment: Moment, taken: Step) -> Moment:
    """The same moment after the step was carried out."""
    known = {each.name: each for each in moment.running}
    running = [
        replace(known.get(name, a_revision(name, ready=False, age_s=0)), weight_percent=weight)
        for name, weight in taken.weights.items()
    ]
    given_up = dict(moment.rejected) | ({taken.rejection.revision: taken.rejection} if taken.rejection else {})
    promoted = moment.now if taken.promoted else (moment.promoted_at if taken.phase is Phase.DRAINING else None)
    return replace(moment, running=running, kept=taken.kept, rejected=given_up, promoted_at=promoted)


@given(moments)
def test_steps_lead_to_rest_in_a_few_moves_and_never_take_requests_from_all(moment: Moment) -> None:
    for _ in range(6):
        taken = step(moment)
        assert sum(taken.weights.values()) == (100 if taken.weights else 0)
        assert taken.target is None or taken.target in taken.weights or taken.phase is Phase.WAITING_FOR_CHIPS
        served = {each.name for each in moment.running if each.ready_at is not None and each.ready_replicas}
        if served & taken.weights.keys() and taken.phase is not Phase.STARTING:
            assert any(taken.weights[name] for name in served & taken.weights.keys())
        following = obeyed(moment, taken)
        if following == moment:
            return
        moment = following
    again = step(moment)
    assert obeyed(moment, again) == moment, "the machine does not come to rest"
