"""What must be remembered of a roll-out and of scaling, as it stands in a model's status.

A record that cannot be read counts as empty: then nothing is given up and nothing is kept, and all else follows from what runs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final

from lionrock.operator.conditions import Reason, timestamp
from lionrock.operator.fields import Fields, Malformed
from lionrock.operator.resources import ModelStatus, NodeName, Revision
from lionrock.operator.rollout import Phase, Rejection

MAX_REJECTED: Final = 8
MAX_REFUSED: Final = 64
_REASONS: Final = {reason.word: reason for reason in Reason}


@dataclass(frozen=True, slots=True, kw_only=True)
class RolloutRecord:
    """`status.rollout` and `status.autoscaling`."""

    phase: Phase = Phase.STEADY
    kept: Revision | None = None
    promoted_at: datetime | None = None
    rejected: tuple[Rejection, ...] = ()
    """The newest last."""
    refused: Mapping[NodeName, datetime] = field(default_factory=dict)
    """Nodes on which the scheduler refused a pod of the model, and when."""
    low_since: datetime | None = None

    def rejected_at(self, generation: int) -> dict[Revision, Rejection]:
        """Revisions that are not tried at that generation."""
        return {each.revision: each for each in self.rejected if each.generation == generation}

    def rollout_status(self) -> dict[str, Any]:
        """Value of `status.rollout`."""
        value: dict[str, Any] = {"phase": self.phase.value}
        if self.kept is not None:
            value["kept"] = self.kept
        if self.promoted_at is not None:
            value["promotedAt"] = timestamp(self.promoted_at)
        if self.rejected:
            value["rejected"] = [
                {
                    "revision": each.revision,
                    "generation": each.generation,
                    "reason": each.reason.word,
                    "message": each.message[:1024],
                }
                for each in self.rejected[-MAX_REJECTED:]
            ]
        if self.refused:
            value["refused"] = [{"node": node, "at": timestamp(at)} for node, at in sorted(self.refused.items())][:MAX_REFUSED]
        return value


def record_of(status: ModelStatus) -> RolloutRecord:
    """Read the record."""
    fields = Fields("status", status.body)
    try:
        rollout, scaling = fields.under("rollout"), fields.under("autoscaling")
        kept = rollout.optional_text("kept")
        return RolloutRecord(
            phase=Phase(rollout.one_of("phase", tuple(phase.value for phase in Phase), Phase.STEADY.value)),
            kept=None if kept is None else Revision(kept),
            promoted_at=rollout.optional_time("promotedAt"),
            rejected=tuple(_rejection(each) for each in rollout.each("rejected")),
            refused={
                NodeName(each.text("node")): at for each in rollout.each("refused") if (at := each.optional_time("at")) is not None
            },
            low_since=scaling.optional_time("lowSince"),
        )
    except Malformed:
        return RolloutRecord()


def _rejection(fields: Fields) -> Rejection:
    return Rejection(
        revision=Revision(fields.text("revision")),
        generation=fields.count("generation"),
        reason=_REASONS.get(fields.text("reason"), Reason.DEADLINE_EXCEEDED),
        message=fields.text("message", ""),
    )
