"""What the demonstration applies: volumes for a cluster without a provisioner, pools of chips that CPUs play, one model, values."""

from __future__ import annotations

from pathlib import Path
from typing import Any

Manifest = dict[str, Any]

NAMESPACE = "lionrock"
RELEASE = "lionrock"
STORAGE_CLASS = "lab"
MODEL = "smollm2"
MODEL_ENTRY = "smollm2-135m-instruct"
TENANT, USER = "demo", "developer"


def namespace() -> Manifest:
    """Namespace of the mesh, under the restricted Pod Security Standard."""
    labels = {f"pod-security.kubernetes.io/{mode}": "restricted" for mode in ("enforce", "warn", "audit")}
    return {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE, "labels": labels}}


def storage_class() -> Manifest:
    """Class of volumes that somebody has made already; a claim waits for its pod, so that both are on one node."""
    return {
        "apiVersion": "storage.k8s.io/v1",
        "kind": "StorageClass",
        "metadata": {"name": STORAGE_CLASS},
        "provisioner": "kubernetes.io/no-provisioner",
        "volumeBindingMode": "WaitForFirstConsumer",
    }


def volume(name: str, path: Path, size: str, *, nodes: list[str], modes: list[str], claim: str | None = None) -> Manifest:
    """Directory of this machine as a volume of some nodes. claim: the only one that may have it."""
    expression = {"key": "kubernetes.io/hostname", "operator": "In", "values": nodes}
    spec: Manifest = {
        "capacity": {"storage": size},
        "accessModes": modes,
        "persistentVolumeReclaimPolicy": "Retain",
        "storageClassName": STORAGE_CLASS,
        "local": {"path": str(path)},
        "nodeAffinity": {"required": {"nodeSelectorTerms": [{"matchExpressions": [expression]}]}},
    }
    if claim is not None:
        spec["claimRef"] = {"namespace": NAMESPACE, "name": claim}
    return {"apiVersion": "v1", "kind": "PersistentVolume", "metadata": {"name": name}, "spec": spec}


def model_claim(volume_name: str, size: str) -> Manifest:
    """Claim of the models' volume, for many readers."""
    spec = {
        "accessModes": ["ReadOnlyMany"],
        "resources": {"requests": {"storage": size}},
        "storageClassName": STORAGE_CLASS,
        "volumeName": volume_name,
    }
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {"name": "models", "namespace": NAMESPACE},
        "spec": spec,
    }


def forged_pod(image: str) -> Manifest:
    """Pod in the mesh's namespace that is bound to no territory, and otherwise beyond reproach."""
    security = {
        "allowPrivilegeEscalation": False,
        "runAsNonRoot": True,
        "capabilities": {"drop": ["ALL"]},
        "seccompProfile": {"type": "RuntimeDefault"},
    }
    container = {"name": "forged", "image": image, "securityContext": security}
    metadata = {"name": "forged", "namespace": NAMESPACE}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": {"containers": [container]}}


def pool(name: str, product: str, extended_resource: str, ray_resource: str, image: str) -> Manifest:
    """Pool of chips that are CPUs: everything but the arithmetic is as it would be on the chip that the nodes advertise."""
    description = {
        "product": product,
        "extendedResource": extended_resource,
        "torchDevice": "cpu",
        "collective": "gloo",
        "rayResource": ray_resource,
        "memory": "2Gi",
        "chipsPerNode": 8,
    }
    spec = {"territory": "HK", "description": description, "engine": {"image": image, "backend": "torch"}}
    return {"apiVersion": "lionrock.io/v1alpha1", "kind": "ChipPool", "metadata": {"name": name}, "spec": spec}


def model_deployment(pools: list[str]) -> Manifest:
    """SmolLM2 over two chips of the first pool that has them."""
    source = {"persistentVolumeClaim": {"claimName": "models", "path": MODEL_ENTRY}}
    spec = {
        "model": {"source": source, "dtype": "bfloat16"},
        "workload": {"concurrency": 4, "contextTokens": 1024},
        "pools": [{"name": name} for name in pools],
        "parallelism": {"type": "Given", "tensor": 2},
        "replicas": 1,
        "territory": "HK",
    }
    metadata = {"name": MODEL, "namespace": NAMESPACE}
    return {"apiVersion": "lionrock.io/v1alpha1", "kind": "ModelDeployment", "metadata": metadata, "spec": spec}


def values(*, collector: str, api_address: str, api_port: int, version: str, registry: str) -> Manifest:
    """Values of the mesh's chart: one pod of each service, sizes for a machine with two cores."""
    small = {"requests": {"cpu": "10m", "memory": "96Mi"}, "limits": {"memory": "512Mi"}}
    host, port = collector.rsplit(":", 1)
    storage = {"className": STORAGE_CLASS, "size": "1Gi"}
    sizes = {
        "head_cpu_m": 100,
        "head_memory_mib": 2048,
        "front_cpu_m": 50,
        "front_memory_mib": 1024,
        "worker_cpu_m": 100,
        "worker_cpu_m_per_chip": 100,
        "worker_memory_mib": 2048,
        "worker_memory_mib_per_chip": 1024,
        "init_cpu_m": 10,
        "shm_mib": 1024,
    }
    return {
        "image": {"registry": registry, "prefix": "lionrock/", "tag": version, "pullPolicy": "Never"},
        "territories": {"HK": {"key": "topology.kubernetes.io/region", "values": ["hk-1"]}},
        "tenants": [
            {
                "name": TENANT,
                "territory": "HK",
                "principals": [
                    {"spiffe_id": f"spiffe://lionrock.local/tenant/{TENANT}/user/*", "purposes": ["demonstration"]},
                ],
            }
        ],
        "certificates": {"builtin": {"callers": [{"tenant": TENANT, "kind": "user", "name": USER}]}},
        "telemetry": {
            "otlpEndpoint": f"http://{host}:{port}",
            "otlpPeers": [{"ipBlock": {"cidr": f"{host}/32"}}],
        },
        "networkPolicy": {
            "dns": [{"ipBlock": {"cidr": f"{api_address}/32"}}],
            "apiServer": {"cidrs": [f"{api_address}/32", "10.96.0.1/32"], "ports": [443, api_port]},
        },
        "drainGraceSeconds": 20,
        "gateway": {"replicas": 1, "resources": small},
        "tokenization": {"replicas": 1, "resources": small},
        "guardrails": {"replicas": 1, "resources": small},
        "audit": {"resources": small, "storage": storage, "keyStorage": storage, "whenDeleted": "Delete"},
        "operator": {
            "replicas": 1,
            "resources": small,
            "settings": {"pods": {"sizes": sizes}, "timing": {"lost_node_after_s": 20}},
        },
    }
