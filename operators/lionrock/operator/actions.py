"""What a decision consists of: keys, and the writes that bring the cluster nearer to what is wanted.

Plain values. Does not know how a write is made (`cluster`) nor why (`decision`). Applying is server-side apply with the field
manager `lionrock-operator`, forced; it is idempotent, as is deleting. Patches are JSON Patch (RFC 6902) whose `test` operations
make them fail, and the key come again, when the object is no longer the one that was looked at.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final

from lionrock.operator.metadata import API_VERSION, FIELD_MANAGER

__all__ = [
    "API_VERSION",
    "DISCOVERY",
    "FIELD_MANAGER",
    "FINALIZER",
    "Decision",
    "Delete",
    "Event",
    "Key",
    "Kind",
    "Manifest",
    "ObjectRef",
    "Patch",
    "RandomSecret",
    "Severity",
    "model_key",
    "namespace_key",
    "pool_key",
    "tenant_key",
]

Manifest = Mapping[str, Any]
"""An object of the API as JSON has it."""

FINALIZER: Final = "lionrock.io/operator"


class Kind(StrEnum):
    """What is reconciled."""

    MODEL = "ModelDeployment"
    POOL = "ChipPool"
    TENANT = "Tenant"
    """A tenant's status alone; what is published of all tenants belongs to their namespace."""
    NAMESPACE = "Namespace"
    """What a namespace has once: the routes of its models, the secret of its Ray clusters, and its published tenants."""
    DISCOVERY = "Discovery"
    """Pools that are proposed for chips seen on nodes. One key, `DISCOVERY`."""


@dataclass(frozen=True, slots=True, order=True)
class Key:
    """What one decision is about. namespace: "" for what has none."""

    kind: Kind
    namespace: str
    name: str

    def __str__(self) -> str:
        return "/".join(part for part in (self.kind, self.namespace, self.name) if part)


DISCOVERY: Final = Key(Kind.DISCOVERY, "", "")


def model_key(namespace: str, name: str) -> Key:
    """Key of a ModelDeployment."""
    return Key(Kind.MODEL, namespace, name)


def pool_key(name: str) -> Key:
    """Key of a ChipPool."""
    return Key(Kind.POOL, "", name)


def tenant_key(namespace: str, name: str) -> Key:
    """Key of a Tenant."""
    return Key(Kind.TENANT, namespace, name)


def namespace_key(namespace: str) -> Key:
    """Key of what a namespace has once. It is reconciled whenever a ModelDeployment or Tenant of the namespace changes."""
    return Key(Kind.NAMESPACE, namespace, "")


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class ObjectRef:
    """One object. uid, where it is given, must be the object's own: another object of the name is left alone."""

    api_version: str
    kind: str
    namespace: str
    name: str
    uid: str = ""

    def __str__(self) -> str:
        return f"{self.kind} {self.namespace}/{self.name}" if self.namespace else f"{self.kind} {self.name}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Delete:
    """An object to delete, its dependents in the background. Its absence is a success."""

    ref: ObjectRef
    why: str
    grace_s: int | None = None
    """Of a pod: 0 where its node does not answer and nobody would confirm its end; None: what the pod states."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Patch:
    """Changes of one object, all or none (`application/json-patch+json`)."""

    ref: ObjectRef
    operations: tuple[Mapping[str, Any], ...]
    why: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RandomSecret:
    """A Secret that is to exist, with random text under one key, made where it is missing and never changed."""

    manifest: Manifest
    """Without data."""
    key: str
    random_bytes: int = 32


class Severity(StrEnum):
    """Type of an event."""

    NORMAL = "Normal"
    WARNING = "Warning"


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """Something that a person who looks at an object wants to know. Written when it happens, not as long as it is so."""

    about: ObjectRef
    severity: Severity
    reason: str
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """What is to be done now. It is carried out in the order of the fields; a failure ends it, and the key comes again.

    Status before objects: chips are reserved by status.placement, so the reservation is written before a pod can use it.
    """

    status: Mapping[str, Any] | None = None
    """Whole new `.status` of the key's object, to be applied; None: it is right as it is."""
    secrets: tuple[RandomSecret, ...] = ()
    apply: tuple[Manifest, ...] = ()
    """Objects that are missing or differ from what is wanted."""
    delete: tuple[Delete, ...] = ()
    pod_patches: tuple[Patch, ...] = ()
    """Pods that are let go to their nodes, Ray clusters whose number of workers changes, and keys of tenants that are gone."""
    events: tuple[Event, ...] = ()
    requeue_after_s: float | None = None
    """When to decide again if nothing changes; None: only when something does."""

    @property
    def quiet(self) -> bool:
        """Whether nothing is to be written."""
        return self.status is None and not (self.secrets or self.apply or self.delete or self.pod_patches)
