"""KubeRay's RayService of one revision.

KubeRay starts the pods and declares the Serve application; moving from one revision to another is ours, so its own upgrades are
off. It does not pass a changed number of workers on to a Ray cluster that runs, since the number is left out of its comparison
(`GenerateHashWithoutReplicasAndWorkersToDelete`): `worker_count_patch` does. Source: KubeRay v1.6.2, `apis/ray/v1`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, Final

from lionrock.operator.actions import ObjectRef, Patch
from lionrock.operator.decision_settings import DecisionSettings
from lionrock.operator.engine_settings import application_arguments
from lionrock.operator.ray_pods import TOKEN_SECRET, head_pod, head_start, worker_pod, worker_start
from lionrock.operator.resources import ROLE_LABEL
from lionrock.operator.revision_template import RevisionTemplate

RAY_API_VERSION: Final = "ray.io/v1"
WORKER_GROUP: Final = "workers"
APPLICATION_PATH: Final = "lionrock.inference.serve_application:build"
DEPLOYMENT: Final = "replica"
HEAD, WORKER = "head", "worker"

Manifest = dict[str, Any]


def ray_service(template: RevisionTemplate, metadata: Mapping[str, Any], replicas: int, settings: DecisionSettings) -> Manifest:
    """Manifest of the RayService. metadata: with name, namespace, labels and owner."""
    name, labels = metadata["name"], metadata["labels"]
    workers = replicas * template.pods_per_replica
    cluster: Manifest = {
        "rayVersion": settings.pods.ray_version,
        "enableInTreeAutoscaling": False,
        "authOptions": {"mode": "token", "secretName": TOKEN_SECRET},
        "headGroupSpec": {
            "serviceType": "ClusterIP",
            "rayStartParams": head_start(settings.pods),
            "template": head_pod(template, {**labels, ROLE_LABEL: HEAD}, name, settings.pods),
        },
        "workerGroupSpecs": [
            {
                "groupName": WORKER_GROUP,
                "replicas": workers,
                "minReplicas": workers,
                "maxReplicas": workers,
                "numOfHosts": 1,
                "rayStartParams": worker_start(template, settings.pods),
                "template": worker_pod(template, {**labels, ROLE_LABEL: WORKER}, settings.pods, settings.gang),
            }
        ],
    }
    return {
        "apiVersion": RAY_API_VERSION,
        "kind": "RayService",
        "metadata": {**metadata, "labels": {**labels, **_queue_labels(settings)}},
        "spec": {
            "upgradeStrategy": {"type": "None"},
            "excludeHeadPodFromServeSvc": True,
            "rayClusterDeletionDelaySeconds": 0,
            "serveConfigV2": _serve_config(template, replicas, settings),
            "rayClusterConfig": cluster,
        },
    }


def worker_count_patch(cluster: ObjectRef, spec: Mapping[str, Any], workers: int, surplus: Sequence[str]) -> Patch | None:
    """Patch that gives a Ray cluster so many workers; None: it has them. spec: of the cluster. surplus: pods to delete by name.

    Without names KubeRay deletes whichever comes first, which would break other replicas.
    """
    groups = spec.get("workerGroupSpecs") or []
    index = next((number for number, group in enumerate(groups) if group.get("groupName") == WORKER_GROUP), None)
    if index is None:
        return None
    group, path = groups[index], f"/spec/workerGroupSpecs/{index}"
    counted = tuple(group.get(key) for key in ("replicas", "minReplicas", "maxReplicas"))
    listed = tuple((group.get("scaleStrategy") or {}).get("workersToDelete") or ())
    if counted == (workers,) * 3 and set(surplus) <= set(listed):
        return None
    operations: list[Mapping[str, Any]] = [{"op": "test", "path": f"{path}/groupName", "value": WORKER_GROUP}]
    operations += [{"op": "add", "path": f"{path}/{key}", "value": workers} for key in ("replicas", "minReplicas", "maxReplicas")]
    operations.append({"op": "add", "path": f"{path}/scaleStrategy", "value": {"workersToDelete": sorted(surplus)}})
    return Patch(ref=cluster, operations=tuple(operations), why=f"{workers} workers are wanted")


def _serve_config(template: RevisionTemplate, replicas: int, settings: DecisionSettings) -> str:
    """Write the declaration of the application. JSON is YAML, and the same value is the same text.

    The number of replicas stands in it once, beside the arguments: Serve then adds or ends replicas and restarts none.
    """
    arguments = application_arguments(template, 1, settings.pods)
    config = {
        "proxy_location": "Disabled",
        "applications": [
            {
                "name": template.served_name,
                "import_path": APPLICATION_PATH,
                "args": arguments,
                "deployments": [{"name": DEPLOYMENT, "num_replicas": replicas}],
            }
        ],
    }
    return _readable(json.dumps(config, sort_keys=True))


@lru_cache(maxsize=4096)
def _readable(text: str) -> str:
    """Return JSON on many lines, which is written slowly."""
    return json.dumps(json.loads(text), sort_keys=True, indent=1)


def _queue_labels(settings: DecisionSettings) -> dict[str, str]:
    """Labels by which another scheduler of gangs takes the Ray cluster over."""
    queue = settings.gang.queue
    if settings.gang.by == "kueue":
        return {"kueue.x-k8s.io/queue-name": queue or "default"}
    if settings.gang.by == "volcano":
        return {"ray.io/scheduler-name": "volcano", **({"volcano.sh/queue-name": queue} if queue else {})}
    return {}
