"""All that one decision about a model rests on and comes to, before it is put into words and objects."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from lionrock.operator.actions import Delete, Manifest, ObjectRef, Patch
from lionrock.operator.autoscaling import Scaling
from lionrock.operator.candidates import Option
from lionrock.operator.conditions import Finding
from lionrock.operator.placement import Outcome
from lionrock.operator.resources import API_VERSION, ModelDeployment, Revision, Slot
from lionrock.operator.revision_template import RevisionTemplate
from lionrock.operator.rollout import Step
from lionrock.operator.rollout_record import RolloutRecord
from lionrock.operator.running_revisions import Running


@dataclass(frozen=True, slots=True, kw_only=True)
class Picture:
    """What was seen of a model, and what was decided."""

    model: ModelDeployment
    options: Sequence[Option]
    """What it can be on its pools, those that it prefers first."""
    problem: Finding | None
    """Why there is no option."""
    facts: Mapping[str, Any] | None
    choice: Outcome | None
    """The pool, as if revisions of another spec had given their chips back."""
    step: Step
    running: Mapping[Revision, Running]
    templates: Mapping[Revision, RevisionTemplate]
    outcomes: Mapping[Revision, Outcome]
    """Chips from now on, of revisions that run."""
    scaling: Scaling
    record: RolloutRecord
    """As it is from now on."""
    now: datetime

    @property
    def about(self) -> ObjectRef:
        """The model, for events."""
        meta = self.model.meta
        return ObjectRef(api_version=API_VERSION, kind="ModelDeployment", namespace=meta.namespace, name=meta.name, uid=meta.uid)

    @property
    def target(self) -> RevisionTemplate | None:
        """Template of what the roll-out goes to."""
        return None if self.step.target is None else self.templates.get(self.step.target)

    @property
    def ready(self) -> int:
        """Replicas that answer requests."""
        found = sum(
            self.running[name].status.ready_replicas
            for name, weight in self.step.weights.items()
            if weight and name in self.running
        )
        return min(found, self.scaling.replicas)

    def slots(self, revision: Revision) -> tuple[Slot, ...]:
        """Chips of a revision from now on."""
        outcome, one = self.outcomes.get(revision), self.running.get(revision)
        if outcome is not None:
            return outcome.slots
        return () if one is None else one.slots


@dataclass(frozen=True, slots=True, kw_only=True)
class Objects:
    """What is to be written beside the status, and what it waits for."""

    apply: tuple[Manifest, ...] = ()
    delete: tuple[Delete, ...] = ()
    patches: tuple[Patch, ...] = ()
    waits: str = ""
    """What the pods of the target wait for; empty: all have been let go."""
    strangers: tuple[str, ...] = ()
    """Nodes outside the territory on which pods are."""
    recheck_after_s: float | None = None


def replicas_of(slots: Sequence[Slot]) -> int:
    """How many replicas have chips."""
    return len({slot.replica for slot in slots})
