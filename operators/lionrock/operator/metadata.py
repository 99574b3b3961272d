"""What every object of the API has: names, owner, versions, conditions.

Times are aware datetimes in UTC, as the API writes them. Does not know kinds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, NamedTuple, NewType

from lionrock.operator.fields import Fields, Malformed

PoolName = NewType("PoolName", str)
NodeName = NewType("NodeName", str)
Revision = NewType("Revision", str)
"""8 hex digits: the digest of everything that makes a new pod of a model."""

GROUP = "lionrock.io"
VERSION = "v1alpha1"
API_VERSION = f"{GROUP}/{VERSION}"
FIELD_MANAGER = "lionrock-operator"

PART_OF_LABEL = "app.kubernetes.io/part-of"
PART_OF = "lionrock"
MANAGED_BY_LABEL = "app.kubernetes.io/managed-by"
MANAGED_BY = FIELD_MANAGER
MODEL_LABEL = f"{GROUP}/model"
REVISION_LABEL = f"{GROUP}/revision"
POOL_LABEL = f"{GROUP}/pool"
TERRITORY_LABEL = f"{GROUP}/territory"
ROLE_LABEL = f"{GROUP}/role"
PROPOSED_LABEL = f"{GROUP}/proposed"
GANG_GATE = f"{GROUP}/gang"
TOKENIZATION_ROLE = "tokenization"
"""Role of a revision's pods that know its tokenizer and have no chips."""


class ObjectKey(NamedTuple):
    """Which object of a kind; sorts by namespace, then name. namespace: "" for kinds that have none."""

    namespace: str
    name: str

    def __str__(self) -> str:
        return f"{self.namespace}/{self.name}" if self.namespace else self.name


@dataclass(frozen=True, slots=True, kw_only=True)
class Metadata:
    """An object's `metadata`, as far as the operator reads it. Mappings are never changed."""

    key: ObjectKey
    uid: str
    resource_version: str
    generation: int
    """0 for kinds that have none."""
    labels: Mapping[str, str]
    annotations: Mapping[str, str]
    finalizers: tuple[str, ...]
    owner_uids: tuple[str, ...]
    created_at: datetime | None
    deleted_at: datetime | None
    """When it is to be gone; None: it stays."""

    @property
    def name(self) -> str:
        """Name within its namespace."""
        return self.key.name

    @property
    def namespace(self) -> str:
        """Namespace, "" for kinds that have none."""
        return self.key.namespace

    @property
    def is_deleting(self) -> bool:
        """Whether somebody asked for its deletion."""
        return self.deleted_at is not None


@dataclass(frozen=True, slots=True, kw_only=True)
class Condition:
    """One of an object's conditions."""

    type: str
    status: str  # "True", "False" or "Unknown"
    reason: str
    message: str
    since: datetime | None  # lastTransitionTime
    observed_generation: int | None = None

    @property
    def is_true(self) -> bool:
        """Whether the status is True."""
        return self.status == "True"


def metadata_of(body: Mapping[str, Any]) -> Metadata:
    """Read `metadata`. Raises Malformed, for an object that no API server would send."""
    fields = Fields.of(body.get("metadata"), "metadata")
    owners = fields.each("ownerReferences")
    finalizers = fields.values.get("finalizers") or []
    if not isinstance(finalizers, list):
        raise Malformed("metadata.finalizers is not a list")
    return Metadata(
        key=ObjectKey(fields.text("namespace", ""), fields.text("name")),
        uid=fields.text("uid", ""),
        resource_version=fields.text("resourceVersion", ""),
        generation=fields.count("generation", 0),
        labels=fields.texts("labels"),
        annotations=fields.texts("annotations"),
        finalizers=tuple(str(name) for name in finalizers),
        owner_uids=tuple(owner.text("uid", "") for owner in owners),
        created_at=fields.optional_time("creationTimestamp"),
        deleted_at=fields.optional_time("deletionTimestamp"),
    )


def conditions_of(status: Fields) -> tuple[Condition, ...]:
    """Read `status.conditions`. Raises Malformed."""
    return tuple(
        Condition(
            type=each.text("type"),
            status=each.text("status"),
            reason=each.text("reason", ""),
            message=each.text("message", ""),
            since=each.optional_time("lastTransitionTime"),
            observed_generation=each.optional_count("observedGeneration"),
        )
        for each in status.each("conditions")
    )


def condition(conditions: Sequence[Condition], kind: str) -> Condition | None:
    """Condition of that type, or None."""
    return next((each for each in conditions if each.type == kind), None)
