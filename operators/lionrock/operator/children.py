"""Children of models, as the cluster holds them: RayServices with what they say of themselves, and the rest.

Source of the RayService's status: KubeRay v1.6.2, `ray-operator/apis/ray/v1/rayservice_types.go`. Does not know what children
should be: that is `desired_state`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from lionrock.operator.fields import Fields, Malformed
from lionrock.operator.metadata import (
    MODEL_LABEL,
    REVISION_LABEL,
    Condition,
    Metadata,
    ObjectKey,
    Revision,
    condition,
    conditions_of,
    metadata_of,
)


class ChildKey(NamedTuple):
    """Which child of a namespace."""

    kind: str
    namespace: str
    name: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Application:
    """One Ray Serve application. status: Ray's own word, RUNNING when it answers."""

    name: str
    status: str
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RayServiceView:
    """What a RayService says of itself."""

    observed_generation: int | None
    is_ready: bool
    ready: Condition | None
    service_status: str
    cluster_name: str | None
    applications: tuple[Application, ...]

    @property
    def all_running(self) -> bool:
        """Whether it is ready and each application of it runs."""
        return self.is_ready and bool(self.applications) and all(each.status == "RUNNING" for each in self.applications)


@dataclass(frozen=True, slots=True, kw_only=True)
class Child:
    """An object that the operator made, or that stands where it would make one."""

    kind: str
    meta: Metadata
    body: Mapping[str, Any]
    """As the informer keeps it, without managed fields."""
    ray_service: RayServiceView | None = None
    """Of kind RayService alone."""

    @property
    def key(self) -> ChildKey:
        """Kind, namespace and name."""
        return ChildKey(self.kind, self.meta.namespace, self.meta.name)

    @property
    def model(self) -> ObjectKey | None:
        """Model that its label names."""
        name = self.meta.labels.get(MODEL_LABEL)
        return None if name is None else ObjectKey(self.meta.namespace, name)

    @property
    def revision(self) -> Revision | None:
        """Revision that its label names."""
        name = self.meta.labels.get(REVISION_LABEL)
        return None if name is None else Revision(name)


def parse_child(kind: str, body: Mapping[str, Any]) -> Child:
    """Read a child. Raises Malformed for one without metadata; a status that cannot be read is one that is not ready."""
    ray_service = None
    if kind == "RayService":
        try:
            ray_service = _ray_service(Fields.of(body.get("status") or {}, "status"))
        except Malformed:
            ray_service = RayServiceView(
                observed_generation=None, is_ready=False, ready=None, service_status="", cluster_name=None, applications=()
            )
    return Child(kind=kind, meta=metadata_of(body), body=body, ray_service=ray_service)


def _ray_service(status: Fields) -> RayServiceView:
    active = status.under("activeServiceStatus")
    if not active.has("applicationStatuses"):  # on its first start everything is pending
        pending = status.under("pendingServiceStatus")
        active = pending if pending.values else active
    ready = condition(conditions_of(status), "Ready")
    applications = active.under("applicationStatuses")
    return RayServiceView(
        observed_generation=status.optional_count("observedGeneration"),
        is_ready=ready is not None and ready.is_true,
        ready=ready,
        service_status=status.text("serviceStatus", ""),
        cluster_name=active.optional_text("rayClusterName"),
        applications=tuple(
            Application(
                name=name,
                status=applications.under(name).text("status", ""),
                message=applications.under(name).text("message", ""),
            )
            for name in sorted(applications.values)
        ),
    )
