"""ModelDeployment as typed values: the spec, and the parts of the status that are state.

State is what the operator wrote and must find again after a restart: chips kept, revisions that run, since when a condition holds.
An object whose spec cannot be read becomes UnreadableModel, which keeps its chips and names the field.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from lionrock.operator.fields import Fields, Malformed
from lionrock.operator.metadata import (
    Condition,
    Metadata,
    NodeName,
    ObjectKey,
    PoolName,
    Revision,
    condition,
    conditions_of,
    metadata_of,
)
from lionrock.operator.model_spec import ModelSpec, parse_model_spec


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class Slot:
    """Chips kept on one node for one pod of one replica. Sorts by revision, replica, part."""

    revision: Revision
    replica: int
    part: int
    """Which pod of the replica."""
    node: NodeName
    chips: int
    resource: str
    """Extended resource of the chips, for example huawei.com/Ascend910."""
    pool: PoolName


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """Chips that are kept for a model, of all its revisions. pool, revision: of the newest."""

    pool: PoolName | None
    revision: Revision | None
    slots: tuple[Slot, ...] = ()

    def of(self, revision: Revision) -> tuple[Slot, ...]:
        """Slots of one revision."""
        return tuple(slot for slot in self.slots if slot.revision == revision)

    def as_status(self) -> dict[str, Any]:
        """Value of `status.placement`."""
        pods = [
            {
                "revision": slot.revision,
                "replica": slot.replica,
                "part": slot.part,
                "node": slot.node,
                "chips": slot.chips,
                "resource": slot.resource,
                "pool": slot.pool,
            }
            for slot in sorted(self.slots)
        ]
        value: dict[str, Any] = {"pods": pods}
        if self.pool is not None:
            value["pool"] = self.pool
        if self.revision is not None:
            value["revision"] = self.revision
        return value


@dataclass(frozen=True, slots=True, kw_only=True)
class RevisionStatus:
    """One revision that runs, or comes, or goes."""

    name: Revision
    pool: PoolName | None
    weight_percent: int
    replicas: int
    ready_replicas: int
    started_at: datetime | None
    ready_at: datetime | None


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanStatus:
    """The parts of the written plan that say how many chips a waiting model waits for."""

    pool: PoolName | None
    chips_per_pod: int
    pods_per_replica: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelStatus:
    """What the operator wrote before."""

    observed_generation: int | None = None
    plan: PlanStatus | None = None
    placement: Placement | None = None
    revisions: tuple[RevisionStatus, ...] = ()
    desired_replicas: int | None = None
    ready_replicas: int | None = None
    facts: Mapping[str, Any] | None = None
    conditions: tuple[Condition, ...] = ()
    body: Mapping[str, Any]
    """The status as it is, to see whether it must be written again."""
    problem: str | None = None
    """Which field could not be read; all others are then None or empty too."""

    def condition(self, kind: str) -> Condition | None:
        """Condition of that type, or None."""
        return condition(self.conditions, kind)


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelDeployment:
    """A model to be served."""

    meta: Metadata
    spec: ModelSpec
    status: ModelStatus

    @property
    def key(self) -> ObjectKey:
        """Namespace and name."""
        return self.meta.key

    @property
    def served_name(self) -> str:
        """Name by which callers ask for it."""
        return self.spec.model_name or self.meta.name


@dataclass(frozen=True, slots=True, kw_only=True)
class UnreadableModel:
    """A model whose spec cannot be read. What runs keeps its chips and is left alone."""

    meta: Metadata
    problem: str
    status: ModelStatus

    @property
    def key(self) -> ObjectKey:
        """Namespace and name."""
        return self.meta.key


def parse_model_deployment(body: Mapping[str, Any]) -> ModelDeployment | UnreadableModel:
    """Read a ModelDeployment as the API gives it. Raises Malformed only for one without metadata."""
    meta = metadata_of(body)
    status = parse_model_status(body.get("status"))
    try:
        return ModelDeployment(meta=meta, spec=parse_model_spec(Fields.of(body.get("spec"), "spec")), status=status)
    except Malformed as error:
        return UnreadableModel(meta=meta, problem=str(error), status=status)


def parse_model_status(body: object) -> ModelStatus:
    """Read a status. One that cannot be read is empty and says so."""
    if not isinstance(body, Mapping):
        return ModelStatus(body={})
    fields = Fields("status", body)
    try:
        facts, replicas = body.get("facts"), fields.under("replicas")
        return ModelStatus(
            observed_generation=fields.optional_count("observedGeneration"),
            plan=_plan(fields.under("plan")) if fields.has("plan") else None,
            placement=_placement(fields.under("placement")) if fields.has("placement") else None,
            revisions=tuple(_revision(each) for each in fields.each("revisions")),
            desired_replicas=replicas.optional_count("desired"),
            ready_replicas=replicas.optional_count("ready"),
            facts=facts if isinstance(facts, Mapping) else None,
            conditions=conditions_of(fields),
            body=body,
        )
    except Malformed as error:
        return ModelStatus(body=body, problem=str(error))


def _plan(fields: Fields) -> PlanStatus | None:
    pool, chips, pods = fields.optional_text("pool"), fields.optional_count("chipsPerPod"), fields.optional_count("podsPerReplica")
    if not chips or not pods:
        return None
    return PlanStatus(pool=None if pool is None else PoolName(pool), chips_per_pod=chips, pods_per_replica=pods)


def _placement(fields: Fields) -> Placement:
    pool, revision = fields.optional_text("pool"), fields.optional_text("revision")
    return Placement(
        pool=None if pool is None else PoolName(pool),
        revision=None if revision is None else Revision(revision),
        slots=tuple(
            Slot(
                revision=Revision(each.text("revision")),
                replica=each.count("replica"),
                part=each.count("part"),
                node=NodeName(each.text("node")),
                chips=each.count("chips", least=1),
                resource=each.text("resource"),
                pool=PoolName(each.text("pool")),
            )
            for each in fields.each("pods")
        ),
    )


def _revision(fields: Fields) -> RevisionStatus:
    pool = fields.optional_text("pool")
    return RevisionStatus(
        name=Revision(fields.text("name")),
        pool=None if pool is None else PoolName(pool),
        weight_percent=fields.count("weightPercent", 0),
        replicas=fields.count("replicas", 0),
        ready_replicas=fields.count("readyReplicas", 0),
        started_at=fields.optional_time("startedAt"),
        ready_at=fields.optional_time("readyAt"),
    )
