"""What a model's status says: plan, chips, revisions, endpoints, conditions; and the events of what has just changed.

State that must be found again after a restart and words for people, in one place, since both are read from the same picture. Does
not decide anything.
"""

from __future__ import annotations

from typing import Any

from lionrock.operator.actions import Event, Severity
from lionrock.operator.candidates import Option
from lionrock.operator.conditions import ConditionType, Finding, Reason, Status, carried_on, timestamp
from lionrock.operator.desired_state import endpoint
from lionrock.operator.model_picture import Objects, Picture, replicas_of
from lionrock.operator.placement import Outcome
from lionrock.operator.resources import Placement, Revision
from lionrock.operator.revision_template import RevisionTemplate
from lionrock.operator.rollout import Phase


def status_of(picture: Picture, objects: Objects) -> dict[str, Any]:
    """Whole `.status` of the model."""
    model, target = picture.model, picture.target
    slots = [slot for revision in picture.step.weights for slot in picture.slots(revision)]
    placement = Placement(pool=None if target is None else target.pool, revision=picture.step.target, slots=tuple(sorted(slots)))
    status: dict[str, Any] = {
        "observedGeneration": model.meta.generation,
        "placement": placement.as_status(),
        "revisions": [_revision(picture, name) for name in _newest_first(picture)],
        "rollout": picture.record.rollout_status(),
        "replicas": {"desired": picture.scaling.replicas, "ready": picture.ready},
        "endpoints": _endpoints(picture),
        "conditions": carried_on(
            model.status.body.get("conditions") or (),
            findings_of(picture, objects),
            generation=model.meta.generation,
            now=picture.now,
        ),
    }
    if (plan := _plan(picture)) is not None:
        status["plan"] = plan
    if picture.facts is not None:
        status["facts"] = dict(picture.facts)
    if picture.record.low_since is not None:
        status["autoscaling"] = {"lowSince": timestamp(picture.record.low_since)}
    return status


def findings_of(picture: Picture, objects: Objects) -> list[Finding]:
    """Every condition of the model as it is now."""
    scheduled = _scheduled(picture, objects)
    return [_planned(picture), scheduled, _ready(picture, scheduled), _degraded(picture), _rolled_back(picture)]


def events_of(picture: Picture, objects: Objects) -> tuple[Event, ...]:
    """Say what has just changed."""
    events = [
        _event(picture, Reason.REVISION_STARTED, f"revision {name} is started on pool {_pool(picture, name)}")
        for name in picture.step.weights
        if name not in picture.running and picture.slots(name)
    ]
    if picture.step.promoted:
        events.append(_event(picture, Reason.REVISION_PROMOTED, f"revision {picture.step.target} gets all requests"))
    if (given_up := picture.step.rejection) is not None:
        events.append(_event(picture, given_up.reason, given_up.message, Severity.WARNING))
    for name, outcome in picture.outcomes.items():
        one = picture.running.get(name)
        if one is not None and outcome.survival is not None and outcome.survival.why and set(outcome.slots) != set(one.slots):
            why = "; ".join(f"replica {replica}: {told}" for replica, told in sorted(outcome.survival.why.items()))
            events.append(_event(picture, Reason.REPLICA_MOVED, why, Severity.WARNING))
    before = picture.model.status.desired_replicas
    if picture.model.spec.autoscaling is not None and before is not None and before != picture.scaling.replicas:
        events.append(_event(picture, Reason.SCALED, f"{before} to {picture.scaling.replicas} replicas: {picture.scaling.why}"))
    for node in objects.strangers:
        told = f"node {node} is not labelled as standing in {picture.model.spec.territory}; its pods are deleted"
        events.append(_event(picture, Reason.OUT_OF_TERRITORY, told, Severity.WARNING))
    return tuple(events)


# ---- conditions ------------------------------------------------------------------------------------------------------------------


def _planned(picture: Picture) -> Finding:
    if picture.problem is not None:
        return picture.problem
    plan = _plan(picture) or {}
    told = f"{plan.get('summary')} on pool {plan.get('pool')}"
    if "kvTokens" in plan:
        told += f", {plan['kvTokens']} tokens of KV cache"
    return Finding(ConditionType.PLANNED, Status.TRUE, Reason.FITS, told)


def _scheduled(picture: Picture, objects: Objects) -> Finding:
    kind, step = ConditionType.SCHEDULED, picture.step
    if picture.scaling.replicas == 0:
        return Finding(kind, Status.TRUE, Reason.SCALED_TO_ZERO, "no replicas are asked for")
    outcome = picture.outcomes.get(step.target) if step.target is not None else None
    if outcome is None and picture.choice is None and not step.weights:
        return Finding(kind, Status.FALSE, Reason.NOT_PLANNED, "there is no plan to find chips for")
    if step.phase is Phase.FAILED:
        return Finding(kind, Status.FALSE, Reason.REVISION_FAILED, step.message)
    if step.phase is Phase.WAITING_FOR_CHIPS:
        return Finding(kind, Status.FALSE, Reason.WAITING_FOR_CHIPS, _joined(step.message, _told(picture.choice)))
    if outcome is None:
        return Finding(kind, Status.FALSE, Reason.NO_ROOM, _told(picture.choice))
    if not outcome.complete:
        return Finding(
            kind, Status.FALSE, Reason.NO_ROOM, _joined(outcome.message, "" if outcome.placed else _told(picture.choice))
        )
    if objects.waits:
        return Finding(kind, Status.FALSE, Reason.PLACING, objects.waits)
    return Finding(kind, Status.TRUE, Reason.PLACED, outcome.message)


def _ready(picture: Picture, scheduled: Finding) -> Finding:
    kind, wanted = ConditionType.READY, picture.scaling.replicas
    if wanted == 0:
        return Finding(kind, Status.FALSE, Reason.SCALED_TO_ZERO, "no replicas are asked for")
    if picture.ready:
        return Finding(kind, Status.TRUE, Reason.SERVING, f"{picture.ready} of {wanted} replicas answer")
    if picture.step.phase is Phase.FAILED:
        return Finding(kind, Status.FALSE, Reason.REVISION_FAILED, picture.step.message)
    if not any(picture.slots(name) for name in picture.step.weights):
        if picture.problem is not None:
            return Finding(kind, Status.FALSE, Reason.NOT_PLANNED, picture.problem.message)
        return Finding(kind, Status.FALSE, Reason.NOT_SCHEDULED, scheduled.message)
    served = [one for name, one in picture.running.items() if one.status.ready_at is not None and name in picture.step.weights]
    said = next((one.said for name, one in picture.running.items() if picture.step.weights.get(name) and one.said), "")
    late = picture.step.message if picture.step.reason is Reason.DEADLINE_EXCEEDED else ""
    if served:
        return Finding(kind, Status.FALSE, Reason.NOTHING_SERVES, said or "no pod of a whole replica is ready")
    return Finding(kind, Status.FALSE, Reason.STARTING, _joined(late, _awaited(said, scheduled)))


def _awaited(said: str, scheduled: Finding) -> str:
    """Say what a model that starts waits for."""
    if scheduled.status is not Status.TRUE:
        return scheduled.message
    return said or "pods are being started and the model is being loaded"


def _degraded(picture: Picture) -> Finding:
    kind, wanted, target = ConditionType.DEGRADED, picture.scaling.replicas, picture.target
    if not picture.ready:
        return Finding(kind, Status.FALSE, Reason.AS_ASKED, "it does not answer; see Ready")
    if picture.problem is not None:
        return Finding(kind, Status.TRUE, picture.problem.reason, f"what ran before goes on: {picture.problem.message}")
    if picture.ready < wanted:
        told = f"{picture.ready} of {wanted} replicas answer"
        return Finding(kind, Status.TRUE, Reason.FEWER_REPLICAS, _joined(told, _told(picture.choice)))
    first = picture.model.spec.pools[0] if picture.model.spec.pools else None
    if target is not None and first is not None and target.pool != first:
        told = f"it runs on pool {target.pool}, pool {first} is preferred"
        return Finding(kind, Status.TRUE, Reason.FALLBACK_POOL, _joined(told, _told(picture.choice)))
    if picture.step.phase is not Phase.STEADY:
        return Finding(kind, Status.FALSE, Reason.ROLLING_OUT, picture.step.message or f"revision {picture.step.target} is coming")
    return Finding(kind, Status.FALSE, Reason.AS_ASKED, _joined("everything is as it was asked for", picture.scaling.unknown))


def _rolled_back(picture: Picture) -> Finding:
    kind = ConditionType.ROLLED_BACK
    given_up = list(picture.record.rejected_at(picture.model.meta.generation).values())
    if given_up:
        told = f"{given_up[-1].message}; it is tried again when the object changes"
        return Finding(kind, Status.TRUE, given_up[-1].reason, told)
    if picture.step.phase is Phase.OBSERVING:
        return Finding(kind, Status.FALSE, Reason.CANARY_OBSERVED, picture.step.message)
    return Finding(kind, Status.FALSE, Reason.NOT_ROLLED_BACK, "no revision of this spec was given up")


# ---- state -----------------------------------------------------------------------------------------------------------------------


def _revision(picture: Picture, name: Revision) -> dict[str, Any]:
    one, template = picture.running.get(name), picture.templates.get(name)
    status = None if one is None else one.status
    value: dict[str, Any] = {
        "name": name,
        "weightPercent": picture.step.weights[name],
        "replicas": replicas_of(picture.slots(name)),
        "readyReplicas": 0 if status is None else status.ready_replicas,
        "startedAt": timestamp(picture.now if status is None or status.started_at is None else status.started_at),
    }
    pool = template.pool if template is not None else (None if status is None else status.pool)
    if pool is not None:
        value["pool"] = pool
    if status is not None and status.ready_at is not None:
        value["readyAt"] = timestamp(status.ready_at)
    return value


def _newest_first(picture: Picture) -> list[Revision]:
    """Target, then the others in their present order."""
    known = list(picture.running)
    return sorted(picture.step.weights, key=lambda name: (name != picture.step.target, known.index(name) if name in known else -1))


def _endpoints(picture: Picture) -> list[dict[str, Any]]:
    """Where gateways send requests: to revisions that have answered once. Whether they answer now gateways see sooner."""
    meta = picture.model.meta
    return [
        {"address": endpoint(meta.namespace, meta.name, name), "revision": name, "weightPercent": picture.step.weights[name]}
        for name in _newest_first(picture)
        if picture.step.weights[name]
        and (one := picture.running.get(name)) is not None
        and one.status.ready_at is not None
        and picture.slots(name)
    ]


def _plan(picture: Picture) -> dict[str, Any] | None:
    """Plan of the target, or of what is waited for."""
    if (option := _option(picture)) is not None:
        return {**option.plan.status(), "pool": option.pool.name}
    template = picture.target
    return None if template is None else _short_plan(template)


def _option(picture: Picture) -> Option | None:
    """Option of the target; where nothing runs yet that of the pool that is preferred."""
    target = picture.step.target
    found = next((option for option in picture.options if option.template.digest == target), None)
    if found is None and target is None and picture.options:
        return picture.options[0]
    return found


def _short_plan(template: RevisionTemplate) -> dict[str, Any]:
    """Plan of a revision whose spec is not the present one: without the memory of its ranks."""
    tensor, pipeline = template.tensor_parallel, template.pipeline_parallel
    return {
        "summary": f"{tensor * pipeline} × {template.chip}, TP {tensor} × PP {pipeline}",
        "pool": template.pool,
        "chip": template.chip,
        "tensorParallel": tensor,
        "pipelineParallel": pipeline,
        "chipsPerReplica": tensor * pipeline,
        "podsPerReplica": template.pods_per_replica,
        "chipsPerPod": template.chips_per_pod,
    }


def _pool(picture: Picture, name: Revision) -> str:
    template = picture.templates.get(name)
    return "" if template is None else template.pool


def _told(outcome: Outcome | None) -> str:
    return "" if outcome is None else outcome.message


def _joined(*parts: str) -> str:
    return "; ".join(dict.fromkeys(part for part in parts if part))


def _event(picture: Picture, reason: Reason, message: str, severity: Severity = Severity.NORMAL) -> Event:
    return Event(about=picture.about, severity=severity, reason=reason.word, message=message[:1024])
