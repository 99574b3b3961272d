"""What the operator keeps of an object in memory: 5,000 nodes and their pods must fit into 400 MiB.

A trimmed object has the shape of the original, so that whoever reads it needs not know. Managed fields go from all kinds; of pods
and nodes only what `nodes_and_pods` reads stays. Objects that do not matter at all are not kept (`matters`).
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final

from lionrock.operator.api_resources import NODE, POD, RAY_CLUSTER, Resource
from lionrock.operator.metadata import MODEL_LABEL
from lionrock.operator.nodes_and_pods import pod_matters

Object = dict[str, Any]

_METADATA: Final = (
    "name",
    "namespace",
    "uid",
    "resourceVersion",
    "generation",
    "creationTimestamp",
    "deletionTimestamp",
    "ownerReferences",
    "finalizers",
)
_LAST_APPLIED: Final = "kubectl.kubernetes.io/last-applied-configuration"
_POD_CONDITIONS: Final = frozenset({"PodScheduled", "Ready"})


def trim(resource: Resource, body: Mapping[str, Any]) -> Object:
    """Return what is kept of an object."""
    own = _OWN_RULES.get(resource)
    trimmed: Object = own(body) if own is not None else {key: body[key] for key in body if key not in ("metadata", "managedFields")}
    kept: Object = _shared(
        {"apiVersion": resource.api_version, "kind": resource.kind, **trimmed, "metadata": _metadata(body, own is None)}
    )
    return kept


def matters(resource: Resource, body: Mapping[str, Any]) -> bool:
    """Whether anything is kept of an object. It may come to matter, or cease to, when it changes. Raises Malformed."""
    return pod_matters(body) if resource is POD else True


def identity(body: Mapping[str, Any]) -> Object:
    """Return no more than is needed to say which object it was, and at which version."""
    metadata = body.get("metadata") or {}
    return {"metadata": {key: metadata[key] for key in ("name", "namespace", "uid", "resourceVersion") if key in metadata}}


def _metadata(body: Mapping[str, Any], with_annotations: bool) -> Object:
    metadata = body.get("metadata") or {}
    kept = _pick(metadata, _METADATA)
    if metadata.get("labels"):
        kept["labels"] = {str(key): str(value) for key, value in metadata["labels"].items()}
    if with_annotations and metadata.get("annotations"):
        kept["annotations"] = {key: value for key, value in metadata["annotations"].items() if key != _LAST_APPLIED}
    return kept


def _shared(value: Any) -> Any:
    """Copy a value so that equal names and short texts are one object: the same few hundred stand in thousands of objects."""
    if isinstance(value, dict):
        return {sys.intern(str(key)): _shared(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_shared(each) for each in value]
    return sys.intern(value) if type(value) is str and len(value) <= _SHORT else value


_SHORT: Final = 128


def _pick(body: Mapping[str, Any], keys: Iterable[str]) -> Object:
    return {key: body[key] for key in keys if body.get(key) not in (None, {}, [])}


def _node(body: Mapping[str, Any]) -> Object:
    status = body.get("status") or {}
    ready = [each for each in status.get("conditions") or () if each.get("type") == "Ready"]
    return {
        "spec": _pick(body.get("spec") or {}, ("unschedulable", "taints")),
        "status": {
            "conditions": [_pick(each, ("type", "status", "lastTransitionTime")) for each in ready],
            "allocatable": status.get("allocatable") or {},
        },
    }


def _pod(body: Mapping[str, Any]) -> Object:
    spec, status = body.get("spec") or {}, body.get("status") or {}
    kept = _pick(spec, ("nodeName", "schedulingGates", "serviceAccountName"))
    affinity = (spec.get("affinity") or {}).get("nodeAffinity")
    if affinity:
        kept["affinity"] = {"nodeAffinity": affinity}
    for key in ("containers", "initContainers"):
        if spec.get(key):
            kept[key] = [_pick(container, ("name", "resources", "restartPolicy")) for container in spec[key]]
    shown = _pick(status, ("phase", "reason", "podIP"))
    shown["conditions"] = [each for each in status.get("conditions") or () if each.get("type") in _POD_CONDITIONS]
    if MODEL_LABEL in ((body.get("metadata") or {}).get("labels") or {}):
        for key in ("containerStatuses", "initContainerStatuses"):
            if status.get(key):
                shown[key] = [_pick(each, ("name", "ready", "restartCount", "state")) for each in status[key]]
    return {"spec": kept, "status": shown}


def _ray_cluster(body: Mapping[str, Any]) -> Object:
    groups = (body.get("spec") or {}).get("workerGroupSpecs") or ()
    return {"spec": {"workerGroupSpecs": [_pick(group, _WORKER_GROUP) for group in groups]}}


_WORKER_GROUP: Final = ("groupName", "replicas", "minReplicas", "maxReplicas", "scaleStrategy")
_OWN_RULES: Final[Mapping[Resource, Callable[[Mapping[str, Any]], Object]]] = {NODE: _node, POD: _pod, RAY_CLUSTER: _ray_cluster}
