"""Objects of the API as plain dicts: server-side apply of any kind, reading them back, what a refusal says."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import kubernetes.client
import yaml

from .waiting import wait_for

Manifest = dict[str, Any]

_PLURALS = {"NetworkPolicy": "networkpolicies", "ValidatingAdmissionPolicy": "validatingadmissionpolicies", "Ingress": "ingresses"}
_CLUSTER_SCOPED = frozenset(
    {
        "ChipPool",
        "ClusterRole",
        "ClusterRoleBinding",
        "CustomResourceDefinition",
        "Namespace",
        "Node",
        "PersistentVolume",
        "StorageClass",
        "ValidatingAdmissionPolicy",
        "ValidatingAdmissionPolicyBinding",
    }
)


class Refused(Exception):
    """The API server refused a request. str() is its own message."""

    def __init__(self, status: int, body: str) -> None:
        """Keep the status code, and reason and message of the Status object in the body."""
        try:
            answer = json.loads(body)
        except ValueError:
            answer = {}
        super().__init__(answer.get("message") or body)
        self.status = status
        self.reason: str | None = answer.get("reason")


class Objects:
    """Reads and writes objects of any kind through one client."""

    def __init__(self, client: kubernetes.client.ApiClient) -> None:
        """Use this client; it stays its owner's."""
        self.client = client

    def apply(self, manifest: Manifest, *, manager: str = "test", dry_run: bool = False, force: bool = True) -> Manifest:
        """Apply on the server. Raises Refused."""
        query = [("fieldManager", manager), ("force", str(force).lower()), ("fieldValidation", "Strict")]
        query += [("dryRun", "All")] if dry_run else []
        applied: Manifest = self.call("PATCH", path_of(manifest), manifest, query, "application/apply-patch+yaml")
        return applied

    def create(self, manifest: Manifest, *, dry_run: bool = False) -> Manifest:
        """Create it; it must not be there. Raises Refused."""
        query = [("fieldValidation", "Strict"), *([("dryRun", "All")] if dry_run else [])]
        path = path_of(manifest)
        created: Manifest = self.call("POST", path.rsplit("/", 1)[0] if "name" in manifest["metadata"] else path, manifest, query)
        return created

    def read(self, api_version: str, kind: str, name: str, namespace: str | None = None) -> Manifest | None:
        """Read it; None if it is not there."""
        try:
            found: Manifest = self.call("GET", _path(api_version, kind, name, namespace))
        except Refused as refused:
            if refused.status == 404:
                return None
            raise
        return found

    def list(self, api_version: str, kind: str, namespace: str | None = None, *, labels: str | None = None) -> list[Manifest]:
        """List them, of one namespace or of all. labels: a label selector."""
        items = self.call("GET", _path(api_version, kind, None, namespace), None, [("labelSelector", labels)] if labels else [])[
            "items"
        ]
        return [{"apiVersion": api_version, "kind": kind, **item} for item in items]

    def merge(self, manifest: Manifest, change: Mapping[str, Any], *, subresource: str | None = None) -> Manifest:
        """Merge a change into the object that the manifest names (RFC 7386). Raises Refused."""
        path = path_of(manifest) + (f"/{subresource}" if subresource else "")
        merged: Manifest = self.call("PATCH", path, dict(change), content_type="application/merge-patch+json")
        return merged

    def delete(self, manifest: Manifest, *, grace_s: int | None = None) -> None:
        """Delete it; that it is not there is no error."""
        query = [("gracePeriodSeconds", str(grace_s))] if grace_s is not None else []
        try:
            self.call("DELETE", path_of(manifest), None, query)
        except Refused as refused:
            if refused.status != 404:
                raise

    def delete_and_wait(self, manifest: Manifest, *, timeout_s: float = 30) -> None:
        """Delete it and wait until it is gone."""
        self.delete(manifest)
        metadata = manifest["metadata"]
        wait_for(
            lambda: self.read(manifest["apiVersion"], manifest["kind"], metadata["name"], metadata.get("namespace")) is None,
            f"{manifest['kind']} {metadata['name']} is gone",
            timeout_s=timeout_s,
        )

    def call(
        self,
        method: str,
        path: str,
        body: object = None,
        query: Iterable[tuple[str, str]] = (),
        content_type: str = "application/json",
    ) -> Any:
        """Ask the API server for anything. Raises Refused."""
        headers = {"Accept": "application/json", "Content-Type": content_type}
        sent = json.dumps(body) if content_type.endswith("yaml") else body  # JSON is YAML; the client leaves it to us
        request = self.client.param_serialize(
            method, path, query_params=list(query), header_params=headers, body=sent, auth_settings=["BearerToken"]
        )
        response = self.client.call_api(*request, _request_timeout=30)
        data: str = response.read().decode()
        if not 200 <= response.status < 300:
            raise Refused(response.status, data)
        return json.loads(data) if data else None


def path_of(manifest: Manifest) -> str:
    """Path of an object in the API."""
    metadata = manifest["metadata"]
    return _path(manifest["apiVersion"], manifest["kind"], metadata.get("name"), metadata.get("namespace"))


def documents(path: Path, kind: str | None = None) -> Iterator[Manifest]:
    """Read the documents of one YAML file, or of every YAML file of a directory in order of their names. kind: of this one only."""
    for file in sorted(path.glob("*.y*ml")) if path.is_dir() else [path]:
        for document in yaml.safe_load_all(file.read_text()):
            if document and kind in (None, document["kind"]):
                yield document


def _path(api_version: str, kind: str, name: str | None, namespace: str | None) -> str:
    root = f"/apis/{api_version}" if "/" in api_version else f"/api/{api_version}"
    scope = "" if kind in _CLUSTER_SCOPED or namespace is None else f"/namespaces/{namespace}"
    plural = _PLURALS.get(kind) or f"{kind.lower()}{'es' if kind.endswith('s') else 's'}"
    return f"{root}{scope}/{plural}{f'/{name}' if name is not None else ''}"
