"""The revisions of a model as they are now: template, chips, pods, and how many replicas answer.

Read from the model's status, the children and the pods; nothing is decided here. A revision whose record is gone has no template:
it is left as it is until another takes its place.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime

from lionrock.operator.decision_settings import DecisionSettings
from lionrock.operator.desired_state import TEMPLATE_KEY, child_name
from lionrock.operator.fields import Malformed
from lionrock.operator.gang import Crew, muster
from lionrock.operator.ray_service import HEAD
from lionrock.operator.reports import NO_REPORT, Reports, RevisionReport
from lionrock.operator.resources import (
    TOKENIZATION_ROLE,
    Child,
    ChildKey,
    ModelDeployment,
    Pod,
    RayServiceView,
    Revision,
    RevisionStatus,
    Slot,
)
from lionrock.operator.revision_template import RevisionTemplate, template_from_json
from lionrock.operator.world import World

_BEING_DECLARED = "DEPLOYING"


@dataclass(frozen=True, slots=True, kw_only=True)
class Running:
    """One revision that runs, or is to run."""

    status: RevisionStatus
    """With the replicas that answer now."""
    template: RevisionTemplate | None
    slots: tuple[Slot, ...]
    crew: Crew
    head: Pod | None
    report: RevisionReport
    said: str = ""
    """What KubeRay or Serve say of it while it does not answer."""


def running_revisions(
    world: World, model: ModelDeployment, reports: Reports, now: datetime, *, settings: DecisionSettings
) -> dict[Revision, Running]:
    """Revisions in the model's status, the newest first."""
    templates = recorded_templates(world, model)
    alone = len(model.status.revisions) == 1
    return {
        revision.name: _running(world, model, revision, templates.get(revision.name), reports, now, settings, alone=alone)
        for revision in model.status.revisions
    }


def recorded_templates(world: World, model: ModelDeployment) -> dict[Revision, RevisionTemplate]:
    """Templates of all revisions whose record is there."""
    found: dict[Revision, RevisionTemplate] = {}
    for child in world.children_of(model.key):
        if child.kind != "ConfigMap" or child.revision is None or child.meta.is_deleting:
            continue
        try:
            template = template_from_json(str((child.body.get("data") or {}).get(TEMPLATE_KEY, "")))
        except Malformed:
            continue
        if template.digest == child.revision and child.meta.name == child_name(model.meta.name, child.revision):
            found[child.revision] = template
    return found


def ray_service_of(world: World, model: ModelDeployment, revision: Revision) -> Child | None:
    """RayService of a revision, unless it is going."""
    child = world.child(ChildKey("RayService", model.key.namespace, child_name(model.meta.name, revision)))
    return None if child is None or child.meta.is_deleting else child


def _running(
    world: World,
    model: ModelDeployment,
    revision: RevisionStatus,
    template: RevisionTemplate | None,
    reports: Reports,
    now: datetime,
    settings: DecisionSettings,
    *,
    alone: bool,
) -> Running:
    slots = tuple(slot for slot in world.slots_of(model.key) if slot.revision == revision.name)
    pods = world.pods_of(model.key)
    crew = muster(world, pods, revision.name, slots)
    heads = [
        pod for pod in pods if pod.revision == revision.name and pod.role == HEAD and pod.deleted_at is None and not pod.has_ended
    ]
    tokenization = any(pod.revision == revision.name and pod.role == TOKENIZATION_ROLE and _serves(pod) for pod in pods)
    head, report = heads[0] if len(heads) == 1 else None, reports.get((model.key, revision.name), NO_REPORT)
    child = ray_service_of(world, model, revision.name)
    view = None if child is None else child.ray_service
    said = _silence(view, head, report, revision, tokenization=tokenization, asked=settings.fronts_are_asked)
    replicas = _by_replica(slots)
    ready = 0 if said else sum(crew.is_running(own) for own in replicas.values())
    if not said and settings.gang.by != "operator" and template is not None:
        ready = min(len(replicas), crew.ready // template.pods_per_replica)
    if view is not None and any(each.status == _BEING_DECLARED for each in view.applications):
        ready = min(ready, revision.ready_replicas)  # which replicas are new and load yet is not to be seen from here
    enough = 1 if alone else max(1, len(replicas))
    ready_at = revision.ready_at or (now if ready >= enough else None)
    status = replace(revision, ready_replicas=ready, ready_at=ready_at)
    return Running(status=status, template=template, slots=slots, crew=crew, head=head, report=report, said=said)


def _serves(pod: Pod) -> bool:
    return pod.is_ready and pod.deleted_at is None and not pod.has_ended


def _silence(
    view: RayServiceView | None,
    head: Pod | None,
    report: RevisionReport,
    revision: RevisionStatus,
    *,
    tokenization: bool,
    asked: bool,
) -> str:
    """Why no replica answers; empty: some may."""
    if view is None:
        return "there is no RayService yet"
    if head is None or not head.is_ready:
        return "the head pod is not ready"
    if not tokenization:
        return "no pod of its tokenization is ready"
    if not view.is_ready:
        told = f": {view.ready.message}" if view.ready is not None and view.ready.message else ""
        return f"KubeRay's RayService is not ready{told}"
    fine = {"RUNNING"} if revision.ready_at is None else {"RUNNING", _BEING_DECLARED}
    for application in view.applications:
        if application.status not in fine:
            return (
                f"Serve says {application.status}: {application.message}"
                if application.message
                else f"Serve says {application.status}"
            )
    if not view.applications:
        return "Serve has no application yet"
    if report.answers is False:
        return "the front says that the model does not answer"
    starting = asked and revision.ready_at is None and report.answers is None
    return "the front has not said yet that the model answers" if starting else ""


def _by_replica(slots: tuple[Slot, ...]) -> Mapping[int, list[Slot]]:
    found: dict[int, list[Slot]] = {}
    for slot in slots:
        found.setdefault(slot.replica, []).append(slot)
    return found
