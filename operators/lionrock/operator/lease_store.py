"""The election's lease as the API server keeps it: `Lease` of coordination.k8s.io/v1.

Knows the object's fields; what they mean for who leads is `election`. The lease belongs to the operator's service account, so that
it goes when the release is uninstalled, even if an operator that ends a moment later makes it again.
"""

from __future__ import annotations

import datetime as dt
from typing import Any

from lionrock.operator.api_errors import ApiError, Conflict, NotFound
from lionrock.operator.api_resources import LEASE
from lionrock.operator.cluster import Cluster, ServiceAccount
from lionrock.operator.election import LeaseConflict, LeaseRecord, LeaseUnavailable


class ClusterLease:
    """One lease. Calls are short: an answer that comes after the next look is worth nothing."""

    def __init__(
        self, cluster: Cluster, namespace: str, name: str, timeout_s: float, *, owner: ServiceAccount | None = None
    ) -> None:
        """owner: with whom the lease goes, if it is of the same namespace."""
        self._cluster = cluster
        self._owner = owner if owner is not None and owner.namespace == namespace else None
        self._namespace = namespace
        self._name = name
        self._timeout_s = timeout_s

    def read(self) -> LeaseRecord | None:
        """Return the lease; None if there is none. Raises LeaseUnavailable."""
        try:
            return _record(self._cluster.read(LEASE, self._namespace, self._name, timeout_s=self._timeout_s))
        except NotFound:
            return None
        except ApiError as error:
            raise LeaseUnavailable(str(error)) from None

    def write(self, record: LeaseRecord) -> LeaseRecord:
        """Create it (resource_version None) or replace exactly that version. Raises LeaseConflict, LeaseUnavailable."""
        try:
            if record.resource_version is None:
                return _record(self._cluster.create(self._manifest(record), timeout_s=self._timeout_s))
            return _record(self._cluster.replace(self._manifest(record), timeout_s=self._timeout_s))
        except (Conflict, NotFound):
            raise LeaseConflict from None
        except ApiError as error:
            raise LeaseUnavailable(str(error)) from None

    def _manifest(self, record: LeaseRecord) -> dict[str, Any]:
        metadata: dict[str, Any] = {"name": self._name, "namespace": self._namespace}
        if record.resource_version is not None:
            metadata["resourceVersion"] = record.resource_version
        if self._owner is not None:
            owner = {"apiVersion": "v1", "kind": "ServiceAccount", "name": self._owner.name, "uid": self._owner.uid}
            metadata["ownerReferences"] = [owner]
        spec = {
            "holderIdentity": record.holder,
            "leaseDurationSeconds": record.duration_s,
            "acquireTime": _micro_time(record.acquired_at),
            "renewTime": _micro_time(record.renewed_at),
            "leaseTransitions": record.transitions,
        }
        return {"apiVersion": LEASE.api_version, "kind": LEASE.kind, "metadata": metadata, "spec": spec}


def _record(body: dict[str, Any]) -> LeaseRecord:
    spec = body.get("spec") or {}
    return LeaseRecord(
        holder=str(spec.get("holderIdentity") or ""),
        duration_s=int(spec.get("leaseDurationSeconds") or 0),
        acquired_at=_time(spec.get("acquireTime")),
        renewed_at=_time(spec.get("renewTime")),
        transitions=int(spec.get("leaseTransitions") or 0),
        resource_version=str(body["metadata"]["resourceVersion"]),
    )


def _micro_time(at: dt.datetime | None) -> str | None:
    return None if at is None else at.astimezone(dt.UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def _time(text: object) -> dt.datetime | None:
    """Read a time, which is for people; one that cannot be read is absent."""
    try:
        return dt.datetime.fromisoformat(str(text)) if text else None
    except ValueError:
        return None
