"""The decision about one model: what runs of it, on which chips, and what is written for that.

In this order: is it to be there at all; what is known of it; how many replicas; what it would be on each pool; which pool has room;
which step its roll-out takes; which chips each revision has from now on; then what of it is missing in the cluster. Every part is a
module of its own, and this one lets them meet. Nothing is remembered but what stands in the model's status and records.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any, Final

from lionrock.operator.actions import FINALIZER, Decision, Delete, Manifest, ObjectRef
from lionrock.operator.autoscaling import Load, Scaling, scale
from lionrock.operator.candidates import Option, Refused, UnsupportedArchitecture, candidate_of, options_of
from lionrock.operator.conditions import ConditionType, Finding, Reason, Status, carried_on
from lionrock.operator.decision_settings import DecisionSettings
from lionrock.operator.gang import pod_ref, refused_nodes, silence_left_s
from lionrock.operator.model_facts import Facts, facts_of
from lionrock.operator.model_objects import objects_of
from lionrock.operator.model_picture import Picture
from lionrock.operator.model_status import events_of, status_of
from lionrock.operator.placement import Candidate, Outcome, Patience, Request, place
from lionrock.operator.reports import Reports
from lionrock.operator.resources import (
    API_VERSION,
    ModelDeployment,
    NodeName,
    ObjectKey,
    Revision,
    RevisionStatus,
    Rollout,
    UnreadableModel,
)
from lionrock.operator.revision_template import RevisionTemplate
from lionrock.operator.rollout import Moment, Phase, Room, Step, step
from lionrock.operator.rollout_record import MAX_REJECTED, RolloutRecord, record_of
from lionrock.operator.running_revisions import Running, recorded_templates, running_revisions
from lionrock.operator.world import World

_LOOK_AGAIN_S: Final = 10.0
"""While something is on its way whose arrival only a report tells."""


def decide_model(world: World, key: ObjectKey, now: datetime, settings: DecisionSettings, reports: Reports) -> Decision:
    """Decide about a model that is there, or is going; about one that is gone nothing is left to decide."""
    model = world.models.get(key)
    if model is None:
        return Decision()
    if model.meta.is_deleting:
        return _end(world, model, settings, now)
    if isinstance(model, UnreadableModel):
        return _unreadable(model, now)
    facts = facts_of(world, model, settings)
    return _Deciding(world, model, now, settings, reports, facts).decision()


@dataclass(slots=True)
class _Deciding:
    """One decision in the making."""

    world: World
    model: ModelDeployment
    now: datetime
    settings: DecisionSettings
    reports: Reports
    facts: Facts

    def decision(self) -> Decision:
        """Put the decision together."""
        model, now = self.model, self.now
        record = record_of(model.status)
        running = running_revisions(self.world, model, self.reports, now, settings=self.settings)
        scaling = self._scaling(running, record)
        options, problem = self._options()
        refused, look_again = self._refused(running, record)
        failed = record.rejected_at(model.meta.generation)
        untried = [option for option in options if option.template.digest not in failed] or options
        choice = self._choice(untried, running, scaling.replicas, refused.keys())
        taken = self._step(options, running, record, choice, scaling.replicas)
        templates = recorded_templates(self.world, model) | {option.template.digest: option.template for option in options}
        outcomes = self._outcomes(taken, running, templates, scaling.replicas, refused.keys())
        record = _recorded(record, taken, scaling, refused, now)
        picture = Picture(
            model=model,
            options=options,
            problem=problem or self.facts.finding,
            facts=self.facts.status,
            choice=choice,
            step=taken,
            running=running,
            templates=templates,
            outcomes=outcomes,
            scaling=scaling,
            record=record,
            now=now,
        )
        objects = objects_of(self.world, picture, self.settings)
        status = status_of(picture, objects)
        rechecks = [taken.recheck_after_s, scaling.recheck_after_s, look_again, objects.recheck_after_s, self.facts.recheck_after_s]
        rechecks += [outcome.requeue_after_s for outcome in (*outcomes.values(), *([choice] if choice else []))]
        if taken.phase is not Phase.STEADY or model.spec.autoscaling is not None or picture.ready < scaling.replicas:
            rechecks.append(_LOOK_AGAIN_S)
        return Decision(
            status=None if status == dict(model.status.body) else status,
            apply=(*_finalizer(model), *self.facts.apply, *objects.apply),
            delete=(*self.facts.delete, *objects.delete),
            pod_patches=objects.patches,
            events=events_of(picture, objects),
            requeue_after_s=min((at for at in rechecks if at is not None), default=None),
        )

    def _scaling(self, running: Mapping[Revision, Running], record: RolloutRecord) -> Scaling:
        spec = self.model.spec
        if spec.autoscaling is None:
            return Scaling(replicas=spec.replicas, low_since=None)
        told = [one.report for one in running.values() if one.report.waiting is not None]
        load = None
        if told:
            times = [report.ttft_p95_ms for report in told if report.ttft_p95_ms is not None]
            load = Load(
                waiting=sum(report.waiting or 0 for report in told),
                ttft_p95_ms=max(times, default=None),
                partial=any(report.partial for report in told),
            )
        ready = max((one.status.ready_replicas for one in running.values()), default=0)
        before = self.model.status.desired_replicas or None  # 0 was asked for before there was autoscaling
        return scale(spec.autoscaling, before, ready=ready, load=load, low_since=record.low_since, now=self.now)

    def _options(self) -> tuple[list[Option], Finding | None]:
        """Return what the model can be on its pools, those that it prefers first, and why it can be nothing."""
        if self.facts.config is None:
            return [], None
        try:
            found = options_of(self.world, self.model, self.facts.config)
        except UnsupportedArchitecture as error:
            return [], Finding(ConditionType.PLANNED, Status.FALSE, Reason.MODEL_UNSUPPORTED, str(error))
        options = [each for each in found if isinstance(each, Option)]
        if options:
            return options, None
        return [], _no_option(self.model, [each for each in found if isinstance(each, Refused)])

    def _refused(self, running: Mapping[Revision, Running], record: RolloutRecord) -> tuple[dict[NodeName, datetime], float | None]:
        """Return nodes on which the scheduler refused pods of the model not long ago, and when to look again, seconds."""
        lasts = timedelta(seconds=self.settings.refused_for_s)
        found = {node: at for node, at in record.refused.items() if self.now < at + lasts}
        again = []
        for one in running.values():
            refused, left_s = refused_nodes(one.crew, self.now, self.settings.unschedulable_after_s)
            found |= dict.fromkeys(refused.values(), self.now)
            if left_s is not None:
                again.append(left_s)
        again += [(at + lasts - self.now).total_seconds() for at in found.values()]
        return found, min(again, default=None)

    def _choice(
        self,
        options: Sequence[Option],
        running: Mapping[Revision, Running],
        replicas: int,
        refused: Set[NodeName],
    ) -> Outcome | None:
        """Choose the pool, as if revisions of another spec had given their chips back; None: there is nothing to choose from."""
        if not options:
            return None
        ours = {option.template.digest for option in options}
        newest = next((name for name in running if name in ours), None)
        return place(
            self.world,
            self._request(
                tuple(option.candidate for option in options),
                replicas,
                gives_back=frozenset(running) - ours,
                newest=newest,
                started_at=None if newest is None else running[newest].status.started_at,
                avoid=frozenset(refused),
            ),
            self._patience,
            self.now,
        )

    def _step(
        self,
        options: Sequence[Option],
        running: Mapping[Revision, Running],
        record: RolloutRecord,
        choice: Outcome | None,
        replicas: int,
    ) -> Step:
        """Decide which revisions run from now on."""
        statuses = [one.status for one in running.values()]
        if choice is None or choice.chosen is None or choice.chosen.revision is None:
            if not statuses:
                return Step(target=None, weights={}, phase=Phase.STEADY)
            wanted, room = _best(statuses).name, Room.BESIDE
        else:
            wanted, room = choice.chosen.revision, Room.BESIDE
            if wanted not in running and statuses:
                room = self._room(choice.chosen, choice, replicas)
        template = next((option.template for option in options if option.template.digest == wanted), None)
        # Of a revision that has no chips any more nothing is left that could serve meanwhile.
        rejected = record.rejected_at(self.model.meta.generation)
        alive = [status for status in statuses if status.name == wanted or running[status.name].slots]
        if wanted in rejected:  # what was returned to stays, be it without chips
            alive += [status for status in statuses if status not in alive and status.name not in rejected]
        return step(
            Moment(
                wanted=wanted,
                generation=self.model.meta.generation,
                moves=_moves(self.model.spec.rollout, template, [running[each.name] for each in alive]),
                running=alive,
                kept=record.kept,
                rejected=rejected,
                room=room,
                elsewhere=any(option.template.digest not in {wanted, *rejected} for option in options),
                figures={name: one.report.figures for name, one in running.items() if one.report.figures is not None},
                partial=any(one.report.partial for one in running.values()),
                asked=self.settings.figures_of == self.model.key.namespace,
                promoted_at=record.promoted_at,
                now=self.now,
                drain_s=self.settings.revision_drain_s,
            )
        )

    def _room(self, chosen: Candidate, choice: Outcome, replicas: int) -> Room:
        """Say whether the chosen revision has room beside everything that runs."""
        beside = place(self.world, self._request((chosen,), replicas), self._patience, self.now)
        if beside.placed >= choice.placed:
            return Room.BESIDE
        return Room.IN_PLACE

    def _outcomes(
        self,
        taken: Step,
        running: Mapping[Revision, Running],
        templates: Mapping[Revision, RevisionTemplate],
        replicas: int,
        refused: Set[NodeName],
    ) -> dict[Revision, Outcome]:
        """Give each revision that runs its chips. New chips go to one revision in a decision: what it took is seen by the next."""
        ended = frozenset(running) - set(taken.weights)
        order = sorted(taken.weights, key=lambda name: (name != taken.target, name))
        outcomes: dict[Revision, Outcome] = {}
        taken_anew = False
        for name in order:
            template = templates.get(name)
            if template is None:
                continue
            one = running.get(name)
            held = {slot.replica for slot in one.slots} if one is not None else set()
            asked = min(replicas, len(held)) if taken_anew else replicas
            request = self._request(
                (candidate_of(template),),
                asked,
                gives_back=ended,
                newest=name if one is not None else None,
                started_at=None if one is None else one.status.started_at,
                avoid=frozenset(refused),
            )
            outcome = place(self.world, request, self._patience, self.now)
            before = set() if one is None else set(one.slots)
            if taken_anew and set(outcome.slots) - before:
                continue  # a lost replica of the other revision gets its chips in the next decision
            taken_anew = taken_anew or bool(set(outcome.slots) - before)
            outcomes[name] = outcome
        return outcomes

    def _request(
        self,
        candidates: tuple[Candidate, ...],
        replicas: int,
        *,
        gives_back: frozenset[Revision] = frozenset(),
        newest: Revision | None = None,
        started_at: datetime | None = None,
        avoid: frozenset[NodeName] = frozenset(),
    ) -> Request:
        return Request(
            model=self.model.key,
            territory=self.model.spec.territory,
            candidates=candidates,
            replicas=replicas,
            ordered=bool(self.model.spec.pools),
            gives_back=gives_back,
            newest=newest,
            placed_since=started_at,
            avoid=avoid,
        )

    @property
    def _patience(self) -> Patience:
        return Patience(node_grace_s=self.settings.lost_node_after_s, settle_s=self.settings.return_after_s)


def _moves(spec: Rollout, wanted: RevisionTemplate | None, running: Sequence[Running]) -> Rollout:
    """How the wanted revision comes: as the owner says where the owner changed something, else as there is room."""
    others = [
        one.template for one in running if one.template is not None and (wanted is None or one.template.digest != wanted.digest)
    ]
    moved = wanted is not None and any(other.model_digest == wanted.model_digest and other.pool != wanted.pool for other in others)
    return replace(spec, type="Auto", canary=None) if moved else spec


def _best(statuses: Sequence[RevisionStatus]) -> RevisionStatus:
    """Revision to stay with when nothing can be chosen: that with the most requests, the newest among equals."""
    return max(enumerate(statuses), key=lambda each: (each[1].weight_percent, -each[0]))[1]


def _recorded(
    record: RolloutRecord, taken: Step, scaling: Scaling, refused: Mapping[NodeName, datetime], now: datetime
) -> RolloutRecord:
    """Return what is remembered from now on."""
    promoted_at = now if taken.promoted else (record.promoted_at if taken.phase is Phase.DRAINING else None)
    rejected = record.rejected if taken.rejection is None else (*record.rejected, taken.rejection)[-MAX_REJECTED:]
    return RolloutRecord(
        phase=taken.phase,
        kept=taken.kept,
        promoted_at=promoted_at,
        rejected=rejected,
        refused=refused,
        low_since=scaling.low_since,
    )


def _no_option(model: ModelDeployment, refused: Sequence[Refused]) -> Finding:
    if not refused:
        told = f"there is no chip pool in {model.spec.territory}"
        return Finding(ConditionType.PLANNED, Status.FALSE, Reason.NO_POOL, told)
    reason = Reason.DOES_NOT_FIT if any(each.reason is Reason.DOES_NOT_FIT for each in refused) else Reason.NO_POOL
    told = "; ".join(f"pool {each.pool}: {each.message}" for each in refused)
    return Finding(ConditionType.PLANNED, Status.FALSE, reason, told)


def _finalizer(model: ModelDeployment) -> tuple[Manifest, ...]:
    """Keep the object until nothing of it runs."""
    if FINALIZER in model.meta.finalizers:
        return ()
    return ({**_reference(model), "metadata": {**_reference(model)["metadata"], "finalizers": [FINALIZER]}},)


def _reference(model: ModelDeployment | UnreadableModel) -> dict[str, Any]:
    metadata = {"name": model.meta.name, "namespace": model.meta.namespace, "uid": model.meta.uid}
    return {"apiVersion": API_VERSION, "kind": "ModelDeployment", "metadata": metadata}


def _end(world: World, model: ModelDeployment | UnreadableModel, settings: DecisionSettings, now: datetime) -> Decision:
    """Delete everything of a model that is being deleted, and let it go when nothing of it is left."""
    children = [child for child in world.children_of(model.key) if child.kind != "RayCluster"]
    pods = world.pods_of(model.key)
    delete = [
        Delete(
            ref=ObjectRef(
                api_version=str(child.body.get("apiVersion", "v1")),
                kind=child.kind,
                namespace=child.meta.namespace,
                name=child.meta.name,
                uid=child.meta.uid,
            ),
            why="its model is being deleted",
        )
        for child in children
        if not child.meta.is_deleting and not (pods and child.kind == "NetworkPolicy")  # it holds until the last pod is gone
    ]
    silent = {pod.key: silence_left_s(world, pod.node, settings.lost_node_after_s, now) for pod in pods if pod.node is not None}
    delete += [
        Delete(ref=pod_ref(pod), why="its model is being deleted", grace_s=0 if silent.get(pod.key) == 0 else None)
        for pod in pods
        if silent.get(pod.key) == 0 or (pod.deleted_at is None and pod.revision is None)
    ]
    if children or pods:
        left = f"{len(children)} children and {len(pods)} pods are left"
        finding = Finding(ConditionType.READY, Status.FALSE, Reason.DELETING, left)
        again = min((left_s for left_s in silent.values() if left_s), default=None)
        return Decision(status=_with(model, [finding], now, endpoints=[]), delete=tuple(delete), requeue_after_s=again)
    if FINALIZER not in model.meta.finalizers:
        return Decision()
    return Decision(apply=(_reference(model),))


def _unreadable(model: UnreadableModel, now: datetime) -> Decision:
    """Say what is wrong. What runs is left alone."""
    finding = Finding(ConditionType.PLANNED, Status.FALSE, Reason.SPEC_INVALID, model.problem)
    kept = [
        Finding(kind, Status(old.status), found, old.message)
        for kind in ConditionType
        if kind is not ConditionType.PLANNED
        and (old := model.status.condition(kind)) is not None
        and (found := next((reason for reason in Reason if reason.word == old.reason), None)) is not None
    ]
    return Decision(status=_with(model, [finding, *kept], now))


def _with(
    model: ModelDeployment | UnreadableModel, findings: Sequence[Finding], now: datetime, **changed: Any
) -> Mapping[str, Any] | None:
    """Return the status as it is but for its conditions; None: it is right."""
    body = model.status.body
    conditions = carried_on(body.get("conditions") or (), findings, generation=model.meta.generation, now=now)
    status = {**body, **changed, "observedGeneration": model.meta.generation, "conditions": conditions}
    return None if status == dict(body) else status
