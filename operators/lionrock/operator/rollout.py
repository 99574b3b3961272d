"""How a changed model takes the place of the one that runs: a pure state machine over revisions.

A revision is everything that makes new pods. `step` looks at the revisions that run, what is wanted, the room that there is and the
time, and says which revisions run from now on, with which part of the requests. It remembers nothing itself: what must outlive a
restart is in `RevisionStatus` and `RolloutRecord`, which stand in the model's status. Does not know pods, chips or manifests.

Moves: Surge starts the new revision beside the old one and waits for chips if it must; InPlace ends the old one first, and keeps
its record to return to it; Canary is Surge with a part of the requests for a while; Auto is Surge where there is room, else
InPlace. One that is not ready before its deadline, or that does badly as a canary, is given up until the object changes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import Enum, StrEnum

from lionrock.operator.conditions import Reason
from lionrock.operator.resources import Canary, Revision, RevisionStatus, Rollout

MIN_CANARY_ANSWERS = 20
"""Answers below which a revision's figures say nothing."""


class Room(Enum):
    """Whether there are chips for the wanted revision."""

    BESIDE = "beside"
    """Beside everything that runs."""
    IN_PLACE = "in place"
    """On the chips of the revision that serves, once it has ended, and free ones."""
    NONE = "none"


class Phase(StrEnum):
    """Where a roll-out stands."""

    STEADY = "Steady"
    STARTING = "Starting"
    WAITING_FOR_CHIPS = "WaitingForChips"
    OBSERVING = "Observing"
    DRAINING = "Draining"
    """The new revision has all requests; the old one finishes what it has begun."""
    FAILED = "Failed"
    """The only revision was given up."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rejection:
    """A revision that was given up, and is not tried again at this generation of the object."""

    revision: Revision
    generation: int
    reason: Reason
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RevisionFigures:
    """How a revision answers, since it became ready. ttft_p95_ms: of the time that revisions run side by side; None: not known."""

    answers: int
    failed: int
    ttft_p95_ms: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Moment:
    """What a step is decided upon."""

    wanted: Revision
    generation: int
    moves: Rollout
    running: Sequence[RevisionStatus]
    """With the replicas that are ready now."""
    kept: Revision | None
    """An ended revision whose record is kept to return to it."""
    rejected: Mapping[Revision, Rejection]
    """Of this generation."""
    room: Room
    elsewhere: bool
    """Whether there is another pool that the model could run on, and that has not failed it."""
    figures: Mapping[Revision, RevisionFigures]
    """Those that are known."""
    partial: bool = False
    """Whether a gateway has not told its figures."""
    asked: bool = True
    """Whether gateways are asked for figures of this model."""
    promoted_at: datetime | None
    """Since when the wanted revision has all requests."""
    now: datetime
    drain_s: float
    """Time that an old revision gets to finish its answers."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """What runs from now on."""

    target: Revision | None
    """What the roll-out goes to: what is wanted, or what it returns to. None: nothing can run."""
    weights: Mapping[Revision, int]
    """Revisions that run, with their percent of the requests. Others are ended. The sum is 100 unless nothing runs."""
    phase: Phase
    kept: Revision | None = None
    rejection: Rejection | None = None
    """Given up in this step."""
    promoted: bool = False
    """Whether the target has got all requests in this step."""
    reason: Reason | None = None
    message: str = ""
    recheck_after_s: float | None = None


def step(moment: Moment) -> Step:
    """Decide the next step. Deciding again with its result, at the same time, changes nothing."""
    given_up = moment.rejected.get(moment.wanted)
    target = moment.wanted if given_up is None else _way_back(moment)
    if target is None:
        assert given_up is not None
        return Step(target=None, weights={}, phase=Phase.FAILED, reason=given_up.reason, message=given_up.message)
    running = {revision.name: revision for revision in moment.running}
    if target not in running:
        return _begin(moment, target, running)
    others = [revision for name, revision in running.items() if name != target]
    if not others:
        return _alone(moment, running[target])
    return _replace(moment, running[target], _serving(others))


def _way_back(moment: Moment) -> Revision | None:
    """Revision to return to when the wanted one is given up: one that runs, else the one that was kept for it."""
    others = [revision for revision in moment.running if revision.name not in moment.rejected]
    return _serving(others).name if others else (None if moment.kept in moment.rejected else moment.kept)


def _serving(revisions: Sequence[RevisionStatus]) -> RevisionStatus:
    """Revision that serves: with the most requests, then with the most replicas, then the oldest."""
    return max(
        revisions,
        key=lambda each: (
            each.weight_percent,
            each.ready_at is not None,
            each.ready_replicas,
            -(each.started_at.timestamp() if each.started_at else 0),
            each.name,
        ),
    )


def _begin(moment: Moment, target: Revision, running: Mapping[Revision, RevisionStatus]) -> Step:
    """Start the target, which does not run yet, if it may be started."""
    if not running:
        # The record of what served before stays until the target is ready: it may have to be returned to.
        kept = moment.kept if moment.kept != target else None
        return Step(target=target, weights={target: 100}, phase=Phase.STARTING, kept=kept)
    serving = _serving(list(running.values()))
    if serving.ready_at is None:  # it never served: nothing is lost by ending it
        kept = moment.kept if moment.kept != target else None
        return Step(target=target, weights={target: 100}, phase=Phase.STARTING, kept=kept)
    ends_first = moment.moves.type == "InPlace" or (moment.moves.type == "Auto" and moment.room is Room.IN_PLACE)
    if ends_first and moment.room is not Room.NONE:
        return Step(target=target, weights={target: 100}, phase=Phase.STARTING, kept=serving.name)
    if moment.room is Room.BESIDE:
        return Step(target=target, weights={serving.name: 100, target: 0}, phase=Phase.STARTING)
    return Step(
        target=target,
        weights={serving.name: 100},
        phase=Phase.WAITING_FOR_CHIPS,
        reason=Reason.WAITING_FOR_CHIPS,
        message=f"revision {target} waits for chips; {serving.name} serves",
    )


def _alone(moment: Moment, target: RevisionStatus) -> Step:
    """Only the target runs."""
    alone = {target.name: 100}
    if target.ready_at is not None:
        return Step(target=target.name, weights=alone, phase=Phase.STEADY)
    kept = moment.kept if moment.kept != target.name else None
    left_s = _left_s(moment, target)
    if left_s > 0:
        return Step(target=target.name, weights=alone, phase=Phase.STARTING, kept=kept, recheck_after_s=left_s)
    late = _too_late(moment, target)
    if target.name == moment.wanted and kept is None and moment.elsewhere:
        return Step(target=None, weights={}, phase=Phase.STARTING, rejection=late, reason=late.reason, message=late.message)
    if kept is None or kept in moment.rejected or target.name != moment.wanted:
        # There is nothing to return to: it may still come, and says meanwhile that it is late.
        return Step(target=target.name, weights=alone, phase=Phase.STARTING, reason=late.reason, message=late.message)
    return Step(target=kept, weights={kept: 100}, phase=Phase.STARTING, rejection=late, reason=late.reason, message=late.message)


def _replace(moment: Moment, target: RevisionStatus, serving: RevisionStatus) -> Step:
    """Put the target, which runs, in the place of the revision that serves; whatever else runs is ended."""
    if target.ready_at is None:
        if serving.ready_at is None:
            return Step(target=target.name, weights={target.name: 100}, phase=Phase.STARTING, kept=moment.kept)
        left_s = _left_s(moment, target)
        if left_s > 0:
            weights = {serving.name: 100, target.name: 0}
            return Step(target=target.name, weights=weights, phase=Phase.STARTING, recheck_after_s=left_s)
        return _give_up(serving, _too_late(moment, target))
    returns = target.started_at is not None and serving.started_at is not None and target.started_at < serving.started_at
    if target.name != moment.wanted or target.weight_percent == 100 or moment.moves.canary is None or returns:
        # What ran before the other is no canary of it: an owner who takes a canary back wants it without requests now.
        return _promote(moment, target, serving)
    return _observe(moment, moment.moves.canary, target, serving)


def _observe(moment: Moment, canary: Canary, target: RevisionStatus, serving: RevisionStatus) -> Step:
    """Watch the target, which is ready, with a part of the requests."""
    assert target.ready_at is not None
    figures, usual = moment.figures.get(target.name), moment.figures.get(serving.name)
    if target.ready_replicas == 0:
        return _give_up(serving, _rejection(moment, target, Reason.CANARY_LOST, f"canary {target.name} stopped answering"))
    if figures is not None and figures.answers >= MIN_CANARY_ANSWERS:
        failed = 100 * figures.failed / figures.answers
        if failed > canary.max_failed_percent:
            message = (
                f"{failed:.1f} % of {figures.answers} answers of canary {target.name} failed; {canary.max_failed_percent} % may"
            )
            return _give_up(serving, _rejection(moment, target, Reason.CANARY_FAILED_ANSWERS, message))
        if usual is not None and usual.ttft_p95_ms and figures.ttft_p95_ms is not None:
            share = 100 * figures.ttft_p95_ms / usual.ttft_p95_ms
            if share > canary.max_ttft_percent:
                message = (
                    f"p95 time to the first token of canary {target.name} is {figures.ttft_p95_ms:.0f} ms, {share:.0f} % of "
                    f"{serving.name}'s; {canary.max_ttft_percent} % may be"
                )
                return _give_up(serving, _rejection(moment, target, Reason.CANARY_SLOW, message))
    left_s = (target.ready_at + timedelta(seconds=canary.observe_s) - moment.now).total_seconds()
    known = all(each is not None and _says_something(each) for each in (figures, usual))
    if left_s <= 0 and known and not moment.partial:
        return _promote(moment, target, serving)
    weights = {serving.name: 100 - canary.percent, target.name: canary.percent}
    message = f"canary {target.name} gets {canary.percent} % of the requests"
    if not moment.asked and not known:
        message += "; it is not promoted, for no gateways are asked for this namespace's figures (the operator's setting gateways)"
    elif moment.partial:
        message += "; it is not promoted while a gateway does not tell its figures"
    elif not known:
        message += f"; it is not promoted before both revisions' figures are known ({MIN_CANARY_ANSWERS} answers at least)"
    return Step(
        target=target.name,
        weights=weights,
        phase=Phase.OBSERVING,
        reason=Reason.CANARY_OBSERVED,
        message=message,
        recheck_after_s=left_s if left_s > 0 else None,
    )


def _says_something(figures: RevisionFigures) -> bool:
    return figures.answers >= MIN_CANARY_ANSWERS and figures.ttft_p95_ms is not None


def _promote(moment: Moment, target: RevisionStatus, serving: RevisionStatus) -> Step:
    """Give the target all requests, and end the old one when it had the time to finish its answers."""
    if target.weight_percent != 100 or moment.promoted_at is None:
        weights = {target.name: 100, serving.name: 0}
        return Step(target=target.name, weights=weights, phase=Phase.DRAINING, promoted=True, recheck_after_s=moment.drain_s)
    left_s = (moment.promoted_at + timedelta(seconds=moment.drain_s) - moment.now).total_seconds()
    if left_s <= 0:
        return Step(target=target.name, weights={target.name: 100}, phase=Phase.STEADY)
    return Step(target=target.name, weights={target.name: 100, serving.name: 0}, phase=Phase.DRAINING, recheck_after_s=left_s)


def _give_up(serving: RevisionStatus, rejection: Rejection) -> Step:
    return Step(
        target=serving.name,
        weights={serving.name: 100},
        phase=Phase.STEADY,
        rejection=rejection,
        reason=rejection.reason,
        message=rejection.message,
    )


def _left_s(moment: Moment, target: RevisionStatus) -> float:
    """Time until the target's deadline, seconds."""
    started_at = target.started_at or moment.now
    return (started_at + timedelta(seconds=moment.moves.progress_deadline_s) - moment.now).total_seconds()


def _too_late(moment: Moment, target: RevisionStatus) -> Rejection:
    message = f"revision {target.name} was not ready within {moment.moves.progress_deadline_s} s"
    return _rejection(moment, target, Reason.DEADLINE_EXCEEDED, message)


def _rejection(moment: Moment, target: RevisionStatus, reason: Reason, message: str) -> Rejection:
    return Rejection(revision=target.name, generation=moment.generation, reason=reason, message=message)
