"""Nodes and pods as typed values, no larger than placing needs: 5,000 nodes must stay small.

Heartbeats and everything else that placing does not read are left out, so that equal views mean that nothing happened. An object of
the API server's own kinds is always readable; where one is not, Malformed names the field and the runtime reports it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from lionrock.operator.fields import Fields, Malformed
from lionrock.operator.metadata import (
    GANG_GATE,
    MODEL_LABEL,
    PART_OF,
    PART_OF_LABEL,
    REVISION_LABEL,
    ROLE_LABEL,
    NodeName,
    ObjectKey,
    Revision,
    condition,
    conditions_of,
    metadata_of,
)
from lionrock.operator.quantities import QuantityError, parse_count

_ENDED: Final = frozenset({"Succeeded", "Failed"})
_NATIVE_DOMAINS: Final = ("kubernetes.io/",)


@dataclass(frozen=True, slots=True, kw_only=True)
class Taint:
    """A taint of a node."""

    key: str
    value: str
    effect: str  # "NoSchedule", "PreferNoSchedule" or "NoExecute"


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """A node. chips: allocatable extended resources by name, those of which there are none left out."""

    name: NodeName
    labels: Mapping[str, str]
    is_ready: bool
    ready_since: datetime | None
    """When is_ready became what it is; None: the node never said."""
    is_cordoned: bool
    is_deleting: bool
    taints: tuple[Taint, ...]
    chips: Mapping[str, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Pod:
    """A pod. chips: extended resources that it asks for by name."""

    key: ObjectKey
    uid: str
    labels: Mapping[str, str]
    node: NodeName | None
    phase: str
    created_at: datetime | None
    deleted_at: datetime | None
    chips: Mapping[str, int]
    gates: tuple[str, ...]
    pinned_node: NodeName | None
    """Node that its required affinity names by kubernetes.io/hostname: the slot that it was given."""
    scheduled: bool
    unschedulable: str | None
    """What the scheduler says against it; None: nothing."""
    unschedulable_since: datetime | None
    is_ready: bool
    pod_ip: str | None
    service_account: str | None
    last_words: str | None = None
    """What a container left when it ended, of a pod of one container."""

    @property
    def is_ours(self) -> bool:
        """Whether it carries the labels of a model's pods."""
        return self.labels.get(PART_OF_LABEL) == PART_OF and MODEL_LABEL in self.labels

    @property
    def model(self) -> ObjectKey | None:
        """Model that it belongs to, or None for a pod of others."""
        return ObjectKey(self.key.namespace, self.labels[MODEL_LABEL]) if self.is_ours else None

    @property
    def revision(self) -> Revision | None:
        """Revision of the model, or None for a pod of others."""
        return Revision(self.labels[REVISION_LABEL]) if self.is_ours and REVISION_LABEL in self.labels else None

    @property
    def role(self) -> str | None:
        """What it does for its revision: "head" or "worker" of the Ray cluster, or "tokenization"."""
        return self.labels.get(ROLE_LABEL)

    @property
    def is_gated(self) -> bool:
        """Whether it waits for its gang."""
        return GANG_GATE in self.gates

    @property
    def has_ended(self) -> bool:
        """Whether all of its containers ended for good; its chips are free."""
        return self.phase in _ENDED

    @property
    def holds_chips(self) -> bool:
        """Whether its node counts its chips."""
        return self.node is not None and not self.has_ended and bool(self.chips)


def parse_node(body: Mapping[str, Any]) -> Node:
    """Read a Node. Raises Malformed."""
    meta = metadata_of(body)
    spec, status = Fields("", body).under("spec"), Fields("", body).under("status")
    ready = condition(conditions_of(status), "Ready")
    return Node(
        name=NodeName(meta.name),
        labels=meta.labels,
        is_ready=ready is not None and ready.is_true,
        ready_since=None if ready is None else ready.since,
        is_cordoned=spec.flag("unschedulable"),
        is_deleting=meta.is_deleting,
        taints=tuple(
            Taint(key=each.text("key"), value=each.text("value", ""), effect=each.text("effect", ""))
            for each in spec.each("taints")
        ),
        chips=_extended(status.under("allocatable")),
    )


def parse_pod(body: Mapping[str, Any]) -> Pod:
    """Read a Pod. Raises Malformed."""
    meta = metadata_of(body)
    spec, status = Fields("", body).under("spec"), Fields("", body).under("status")
    conditions = conditions_of(status)
    placed, ready = condition(conditions, "PodScheduled"), condition(conditions, "Ready")
    refused = placed if placed is not None and placed.status == "False" and placed.reason == "Unschedulable" else None
    node = spec.optional_text("nodeName")
    return Pod(
        key=meta.key,
        uid=meta.uid,
        labels=meta.labels,
        node=NodeName(node) if node else None,
        phase=status.text("phase", "Pending"),
        created_at=meta.created_at,
        deleted_at=meta.deleted_at,
        chips=_requested(spec),
        gates=tuple(each.text("name") for each in spec.each("schedulingGates")),
        pinned_node=_pinned_node(spec),
        scheduled=placed is not None and placed.is_true,
        unschedulable=None if refused is None else refused.message,
        unschedulable_since=None if refused is None else refused.since,
        is_ready=ready is not None and ready.is_true,
        pod_ip=status.optional_text("podIP"),
        service_account=spec.optional_text("serviceAccountName"),
        last_words=_last_words(status),
    )


def pod_matters(body: Mapping[str, Any]) -> bool:
    """Whether the operator reads that pod at all: pods of models, and others that ask for extended resources.

    The informer keeps nothing of those that do not. Raises Malformed.
    """
    fields = Fields("", body)
    ours = fields.under("metadata").under("labels").values.get(PART_OF_LABEL) == PART_OF
    return ours or bool(_requested(fields.under("spec")))


def _is_extended(resource: str) -> bool:
    """Whether a device plugin may advertise it: a name with a domain that is not Kubernetes' own."""
    domain, slash, _ = resource.partition("/")
    return bool(slash) and not f"{domain}/".endswith(_NATIVE_DOMAINS)


def _extended(resources: Fields) -> dict[str, int]:
    found = {}
    for name, value in resources.values.items():
        if not _is_extended(name):
            continue
        try:
            count = parse_count(value)
        except QuantityError as error:
            raise Malformed(f"{resources.at(name)}: {error}") from None
        if count:
            found[name] = count
    return found


def _requested(spec: Fields) -> dict[str, int]:
    """Add up the extended resources of a pod, as the scheduler counts them.

    Containers and restartable init containers (sidecars) run together; other init containers run one after the other beside the
    sidecars that were started before them. Source: `k8s.io/component-helpers/resource/helpers.go`.
    """
    running: dict[str, int] = {}
    peak: dict[str, int] = {}
    for container in spec.each("initContainers"):
        asked = _container_chips(container)
        sidecar = container.optional_text("restartPolicy") == "Always"
        for name, count in asked.items():
            peak[name] = max(peak.get(name, 0), running.get(name, 0) + count)
            if sidecar:
                running[name] = running.get(name, 0) + count
    for container in spec.each("containers"):
        for name, count in _container_chips(container).items():
            running[name] = running.get(name, 0) + count
    return {name: most for name in running.keys() | peak.keys() if (most := max(running.get(name, 0), peak.get(name, 0)))}


def _container_chips(container: Fields) -> dict[str, int]:
    """Read the extended resources of a container: requests equal limits, and either may be left out."""
    resources = container.under("resources")
    return {**_extended(resources.under("limits")), **_extended(resources.under("requests"))}


def _last_words(status: Fields) -> str | None:
    ended = [each.under("state").under("terminated") for each in status.each("containerStatuses")]
    return ended[0].optional_text("message") if len(ended) == 1 else None


def _pinned_node(spec: Fields) -> NodeName | None:
    required = spec.under("affinity").under("nodeAffinity").under("requiredDuringSchedulingIgnoredDuringExecution")
    for term in required.each("nodeSelectorTerms"):
        for each in term.each("matchExpressions"):
            values = each.values.get("values")
            if (
                each.text("key") == "kubernetes.io/hostname"
                and each.text("operator") == "In"
                and isinstance(values, list)
                and values
            ):
                return NodeName(str(values[0]))
    return None
