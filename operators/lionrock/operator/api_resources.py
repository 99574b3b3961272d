"""The kinds of objects that the operator reads or writes, and where the API server keeps them.

A kind that is not in the table cannot be written: the rules of the operator's role are made for these alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import quote


@dataclass(frozen=True, slots=True)
class Resource:
    """One kind of object. group is empty for the core group."""

    group: str
    version: str
    kind: str
    plural: str
    namespaced: bool = True

    @property
    def api_version(self) -> str:
        """As manifests state it."""
        return f"{self.group}/{self.version}" if self.group else self.version

    def path(self, namespace: str | None = None, name: str | None = None, subresource: str | None = None) -> str:
        """Path of an object, or of all objects of a namespace or of the cluster (namespace None)."""
        parts = ["apis", self.group, self.version] if self.group else ["api", self.version]
        if self.namespaced and namespace is not None:
            parts += ["namespaces", namespace]
        parts.append(self.plural)
        if name is not None:
            if self.namespaced and namespace is None:
                raise ValueError(f"{self.kind} {name} needs a namespace")
            parts.append(name)
        if subresource is not None:
            parts.append(subresource)
        return "/" + "/".join(quote(part, safe="") for part in parts)


MODEL_DEPLOYMENT: Final = Resource("lionrock.io", "v1alpha1", "ModelDeployment", "modeldeployments")
TENANT: Final = Resource("lionrock.io", "v1alpha1", "Tenant", "tenants")
CHIP_POOL: Final = Resource("lionrock.io", "v1alpha1", "ChipPool", "chippools", namespaced=False)
RAY_SERVICE: Final = Resource("ray.io", "v1", "RayService", "rayservices")
RAY_CLUSTER: Final = Resource("ray.io", "v1", "RayCluster", "rayclusters")
NODE: Final = Resource("", "v1", "Node", "nodes", namespaced=False)
POD: Final = Resource("", "v1", "Pod", "pods")
SERVICE: Final = Resource("", "v1", "Service", "services")
CONFIG_MAP: Final = Resource("", "v1", "ConfigMap", "configmaps")
SECRET: Final = Resource("", "v1", "Secret", "secrets")
DEPLOYMENT: Final = Resource("apps", "v1", "Deployment", "deployments")
DISRUPTION_BUDGET: Final = Resource("policy", "v1", "PodDisruptionBudget", "poddisruptionbudgets")
NETWORK_POLICY: Final = Resource("networking.k8s.io", "v1", "NetworkPolicy", "networkpolicies")
LEASE: Final = Resource("coordination.k8s.io", "v1", "Lease", "leases")
EVENT: Final = Resource("events.k8s.io", "v1", "Event", "events")
SIGNING_REQUEST: Final = Resource(
    "certificates.k8s.io", "v1", "CertificateSigningRequest", "certificatesigningrequests", namespaced=False
)

CHILDREN: Final = (RAY_SERVICE, RAY_CLUSTER, DEPLOYMENT, SERVICE, CONFIG_MAP, DISRUPTION_BUDGET, NETWORK_POLICY)
"""Kinds that belong to models: the operator makes them and keeps them as they should be, but for RayClusters, which KubeRay makes.

Of those it changes the number of workers alone.
"""

_BY_KIND: Final[Mapping[tuple[str, str], Resource]] = {
    (resource.api_version, resource.kind): resource
    for resource in (
        MODEL_DEPLOYMENT,
        TENANT,
        CHIP_POOL,
        NODE,
        POD,
        SECRET,
        LEASE,
        EVENT,
        SIGNING_REQUEST,
        *CHILDREN,
    )
}


class UnknownKind(Exception):
    """The operator has nothing to do with objects of this kind."""


def resource_of(api_version: str, kind: str) -> Resource:
    """Return the table's row. Raises UnknownKind."""
    try:
        return _BY_KIND[api_version, kind]
    except KeyError:
        raise UnknownKind(f"{api_version} {kind}") from None


def resource_of_manifest(manifest: Mapping[str, Any]) -> Resource:
    """Return the table's row for an object. Raises UnknownKind."""
    return resource_of(str(manifest.get("apiVersion")), str(manifest.get("kind")))
