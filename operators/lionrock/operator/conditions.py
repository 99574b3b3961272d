"""Conditions of models, pools and tenants: which there are, their reasons, and how they are carried on.

A reason is for programs and tables, a message for the person who has to act. `lastTransitionTime` changes when a status does and at
no other time. Does not know when a condition holds (`decision`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import Enum, StrEnum
from typing import Any, Final

MAX_MESSAGE_CHARACTERS: Final = 2048


class ConditionType(StrEnum):
    """Types of conditions, in the order in which they are shown."""

    ACCEPTED = "Accepted"
    """What a Tenant says now is what gateways are told."""
    PLANNED = "Planned"
    """There is a plan that holds the model and its workload on the chips of a pool."""
    SCHEDULED = "Scheduled"
    """Chips are kept for every replica, and every pod has been let go to its node."""
    READY = "Ready"
    """The model answers (of a pool: models can be placed on it; of a tenant: gateways can read it)."""
    DEGRADED = "Degraded"
    """It answers, but not as it was asked for: fewer replicas, or not on the preferred pool."""
    ROLLED_BACK = "RolledBack"
    """A new revision was given up, and the one before it serves."""


class Reason(Enum):
    """Reasons of conditions and events: the word, and what it means."""

    # Planned
    FITS = "Fits", "A plan was found; status.plan shows its arithmetic."
    DOES_NOT_FIT = "DoesNotFit", "No pool has chips that could hold the model and its workload; the message says what would."
    CONFIG_UNKNOWN = "ConfigUnknown", "The model's config is being read from its source by a pod."
    CONFIG_UNREADABLE = "ConfigUnreadable", "The pod that reads the model's config failed; the message has its words."
    MODEL_UNSUPPORTED = "ModelUnsupported", "The model's architecture or quantisation is not served."
    NO_POOL = "NoPool", "No chip pool of the territory can be used; the message says why for each."
    SPEC_INVALID = "SpecInvalid", "The object contradicts itself or names what does not exist."

    # Scheduled
    PLACED = "Placed", "Every pod has its node."
    PLACING = "Placing", "Chips are kept, and pods are being made or let go."
    NO_ROOM = "NoRoom", "No pool has enough free chips on its nodes; the message counts them for each."
    WAITING_FOR_CHIPS = "WaitingForChips", "The new revision waits for chips beside the one that serves."
    SCALED_TO_ZERO = "ScaledToZero", "No replicas are asked for."

    # Ready
    SERVING = "Serving", "Replicas answer."
    STARTING = "Starting", "Pods are there and the model is being loaded."
    NOT_SCHEDULED = "NotScheduled", "There are no chips for it yet; see Scheduled."
    NOT_PLANNED = "NotPlanned", "There is no plan yet; see Planned."
    NOTHING_SERVES = "NothingServes", "Replicas have served and do not answer now."
    REVISION_FAILED = "RevisionFailed", "The only revision was given up; it is tried again when the object changes."
    DELETING = "Deleting", "The object is being deleted."

    # Degraded
    AS_ASKED = "AsAsked", "Everything is as it was asked for."
    FEWER_REPLICAS = "FewerReplicas", "Some replicas do not answer or have no chips."
    FALLBACK_POOL = "FallbackPool", "It runs on another pool than the preferred one."
    ROLLING_OUT = "RollingOut", "A new revision is being started."

    # RolledBack
    NOT_ROLLED_BACK = "NotRolledBack", "The newest revision is the one that serves or is being started."
    DEADLINE_EXCEEDED = "DeadlineExceeded", "The new revision was not ready before its progress deadline."
    CANARY_FAILED_ANSWERS = "CanaryFailedAnswers", "More of the canary's answers failed than are allowed."
    CANARY_SLOW = "CanarySlow", "The canary's time to the first token was too far above that of the old revision."
    CANARY_LOST = "CanaryLost", "The canary stopped answering while it was observed."
    CANARY_OBSERVED = "CanaryObserved", "The canary is being observed, or its figures are not known yet."

    # Pools
    POOL_USABLE = "PoolUsable", "Models can be placed on the pool's nodes."
    UNKNOWN_CHIP = "UnknownChip", "The chip table has no row of that name."
    UNKNOWN_TERRITORY = "UnknownTerritory", "The operator's settings do not say how nodes of the territory are labelled."
    NO_ENGINE_IMAGE = "NoEngineImage", "Neither the pool nor the operator's settings name an engine image for the chip."
    NO_NODES = "NoNodes", "No node of the territory has the chip."
    NO_READY_NODES = "NoReadyNodes", "Nodes have the chip, but none is ready and not cordoned."
    POOL_IN_USE = "PoolInUse", "The pool is being deleted and models still run on it; the message names them."

    # Tenants
    ACCEPTED = "Accepted", "The tenant is as gateways want it, and gets in nobody's way."
    CLAIMED = (
        "Claimed",
        "Another tenant has the name, a principal, tokens or a chip pool that it states; the message says which.",
    )
    NO_STATE = "NoState", "It wants something kept, such as quotas or consents, that its gateways have nowhere to keep."
    TENANTS_FULL = "TenantsFull", "The ConfigMap of all tenants has no room for it."
    PUBLISHED = "Published", "Gateways and the audit service can read what it says."
    PUBLISHING = "Publishing", "It is being written to where gateways and the audit service read it."
    FORMER_PUBLISHED = "FormerPublished", "What it said before is in force, since what it says now is not accepted."
    NOT_PUBLISHED = "NotPublished", "Gateways are told nothing of it."
    NO_DEDICATED_MODEL = "NoDedicatedModel", "It shares no engines, and no model is dedicated to it."
    POOL_SHARED = "PoolShared", "Models of others still have chips of its pools; the message names them."

    # Events alone
    REPLICA_MOVED = "ReplicaMoved", "A replica lost its chips and gets others."
    OUT_OF_TERRITORY = "OutOfTerritory", "A node left the territory, and the pods on it are deleted."
    REVISION_STARTED = "RevisionStarted", "A new revision is being started."
    REVISION_PROMOTED = "RevisionPromoted", "The new revision gets all requests."
    SCALED = "Scaled", "The number of replicas follows the load."
    POOL_PROPOSED = "PoolProposed", "A pool was made for chips that were seen on nodes."

    def __init__(self, word: str, meaning: str) -> None:
        self.word = word
        self.meaning = meaning

    def __str__(self) -> str:
        return self.word


class Status(StrEnum):
    """Status of a condition."""

    TRUE = "True"
    FALSE = "False"
    UNKNOWN = "Unknown"


@dataclass(frozen=True, slots=True)
class Finding:
    """A condition as it is now."""

    type: ConditionType
    status: Status
    reason: Reason
    message: str


def carried_on(
    before: Iterable[Mapping[str, Any]], findings: Sequence[Finding], *, generation: int, now: datetime
) -> list[dict[str, Any]]:
    """Return `status.conditions` with those findings.

    before: the conditions as they stand; those that nothing is found about are dropped.
    """
    known = {condition.get("type"): condition for condition in before}
    carried = []
    for finding in sorted(findings, key=lambda finding: list(ConditionType).index(finding.type)):
        old = known.get(finding.type.value)
        since = timestamp(now)
        if old is not None and old.get("status") == finding.status.value and old.get("lastTransitionTime"):
            since = str(old["lastTransitionTime"])
        carried.append(
            {
                "type": finding.type.value,
                "status": finding.status.value,
                "reason": finding.reason.word,
                "message": _bounded(finding.message),
                "observedGeneration": generation,
                "lastTransitionTime": since,
            }
        )
    return carried


def timestamp(at: datetime) -> str:
    """RFC 3339 in whole seconds, as the API server writes times."""
    return at.astimezone(UTC).replace(microsecond=0).isoformat().replace("+00:00", "Z")


def _bounded(message: str) -> str:
    return message if len(message) <= MAX_MESSAGE_CHARACTERS else message[: MAX_MESSAGE_CHARACTERS - 1] + "…"
