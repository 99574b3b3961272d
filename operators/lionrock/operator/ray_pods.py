"""Pods of one revision: the head, with Ray's store and the front, and the workers, with the chips.

Made for the restricted Pod Security Standard, an image without wget, and a root that cannot be written. A worker waits behind a
scheduling gate for its gang; all pods are bound to the territory by required node affinity. Knows how KubeRay completes a pod: it
puts `ray start` into the first container, adds an init container that waits for the head, and sets the token. Does not know
replicas or placement. Sources: KubeRay v1.6.2, `controllers/ray/common/pod.go`; Ray 2.60's environment.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from lionrock.operator.decision_settings import Gang, PodSettings
from lionrock.operator.engine_settings import (
    CONFIG_DIRECTORY,
    CONFIG_FILE,
    FRONT_PORT,
    MODEL_DIRECTORY,
    PROBE_PORT,
    TLS_DIRECTORY,
    TOKEN_FILE,
)
from lionrock.operator.quantities import format_bytes
from lionrock.operator.resources import GANG_GATE, ClaimSource, ImageSource, ModelFiles, ObjectSource
from lionrock.operator.revision_template import PodBasis, RevisionTemplate

TOKEN_SECRET: Final = "lionrock-ray-token"  # noqa: S105  # a name
TOKEN_KEY: Final = "auth_token"  # noqa: S105  # KubeRay's name of the key
GCS_PORT: Final = 6379
DASHBOARD_PORT: Final = 8265
AGENT_PORT: Final = 52365
SERVE_PORT: Final = 8000
METRICS_PORT: Final = 8080
_TOKEN_LIFETIME_S: Final = 600
_FACTS_DEADLINE_S: Final = 600
_ACCOUNT_DIRECTORY: Final = "/var/run/secrets/kubernetes.io/serviceaccount"


Manifest = dict[str, Any]


def head_pod(template: RevisionTemplate, labels: Mapping[str, str], config_map: str, settings: PodSettings) -> Manifest:
    """Pod template of the head. It has no chips and no CPUs for tasks: replicas run beside their chips."""
    sizes = settings.sizes
    ray = _ray_container(settings, "ray-head", sizes.head_cpu_m, sizes.head_memory_bytes, {}, image=template.image)
    ray["ports"] = [
        {"name": "gcs-server", "containerPort": GCS_PORT},
        {"name": "dashboard", "containerPort": DASHBOARD_PORT},
        {"name": "metrics", "containerPort": METRICS_PORT},
        # KubeRay makes no service for an application without this port. Nobody listens there: the front answers.
        {"name": "serve", "containerPort": SERVE_PORT},
    ]
    spec = _pod(template.basis, settings, [ray, _front(template, settings)])
    spec["volumes"].append(_config(config_map))
    # Ray looks for the front, a driver on its node, by process id.
    spec["shareProcessNamespace"] = True
    token = {"secretName": TOKEN_SECRET, "items": [{"key": TOKEN_KEY, "path": TOKEN_FILE.rpartition("/")[2]}], "defaultMode": 0o440}
    spec["volumes"].append({"name": "ray-token", "secret": token})
    spec["initContainers"] = [_enrolment(template.image, settings, head=True)]
    return {"metadata": {"labels": dict(labels)}, "spec": spec}


def worker_pod(template: RevisionTemplate, labels: Mapping[str, str], settings: PodSettings, gang: Gang) -> Manifest:
    """Pod template of the workers: a pod's chips, and the model's files."""
    sizes, chips = settings.sizes, template.chips_per_pod
    memory = sizes.worker_memory_bytes + chips * sizes.worker_memory_bytes_per_chip
    if template.on_cpu:
        memory += chips * template.rank_bytes
    cpu_m = sizes.worker_cpu_m + chips * sizes.worker_cpu_m_per_chip
    ray = _ray_container(settings, "ray-worker", cpu_m, memory, {template.resource: str(chips)}, image=template.image)
    ray["ports"] = [{"name": "metrics", "containerPort": METRICS_PORT}]
    ray["volumeMounts"].append({"name": "model", "mountPath": MODEL_DIRECTORY, "readOnly": True})
    spec = _pod(template.basis, settings, [ray])
    spec["affinity"] = node_affinity(template.basis, with_selector=True)
    spec["volumes"].append(_model_volume(template.source))
    spec["initContainers"] = [_enrolment(template.image, settings)]
    if isinstance(template.source, ObjectSource):
        spec["initContainers"].append(_fetch(template.image, template.source, settings))
    if gang.by == "operator":
        spec["schedulingGates"] = [{"name": GANG_GATE}]
    return {"metadata": {"labels": dict(labels)}, "spec": spec}


def tokenization_pod(template: RevisionTemplate, config_map: str, key: str, port: int, settings: PodSettings) -> Manifest:
    """Spec of the pods of the tokenization. config_map, key: where its settings stand. port: where it listens.

    They need no chips, and may stand on nodes that have some. Weights that are fetched stay in the store.
    """
    sizes, image = settings.sizes, settings.tokenization_image or template.image
    container = _container("tokenization", image, sizes.tokenization_cpu_m, sizes.tokenization_memory_bytes, {})
    container["command"] = ["python", "-m", "lionrock.tokenization", "--config", f"{CONFIG_DIRECTORY}/{key}"]
    container["ports"] = [{"name": "grpc", "containerPort": port}, {"name": "probes", "containerPort": PROBE_PORT}]
    container["volumeMounts"] = [
        {"name": "tmp", "mountPath": "/tmp"},  # noqa: S108  # of the pod
        {"name": "tls", "mountPath": TLS_DIRECTORY, "readOnly": True},
        {"name": "config", "mountPath": CONFIG_DIRECTORY, "readOnly": True},
        {"name": "model", "mountPath": MODEL_DIRECTORY, "readOnly": True},
    ]
    _probe(container)
    spec = _pod(template.basis, settings, [container])
    spec["terminationGracePeriodSeconds"] = settings.tokenization_drain_s + 15
    spec["volumes"] = [
        *(volume for volume in spec["volumes"] if volume["name"] != "shm"),
        {"name": "config", "configMap": {"name": config_map, "items": [{"key": key, "path": key}]}},
        _model_volume(template.source),
    ]
    spec["initContainers"] = [_enrolment(image, settings, service="tokenization")]
    if isinstance(template.source, ObjectSource):
        # The engine image has what speaks with object stores.
        spec["initContainers"].append(_fetch(template.image, template.source, settings, only_config=True))
    return spec


def facts_pod(basis: PodBasis, settings: PodSettings, path: str) -> Manifest:
    """Spec of the pod that reads a model's config, and ends with the facts as its last words. It needs no chips."""
    spec = _pod(basis, settings, [])
    sizes = settings.sizes
    spec["volumes"] = [_tmp(settings), _model_volume(basis.source)]
    spec["restartPolicy"] = "Never"
    spec["activeDeadlineSeconds"] = _FACTS_DEADLINE_S
    spec["terminationGracePeriodSeconds"] = 1
    read = _container("facts", basis.image, sizes.init_cpu_m, sizes.front_memory_bytes, {})
    read["command"] = ["python", "-m", "lionrock.modelstore.facts", path]
    read["terminationMessagePolicy"] = "FallbackToLogsOnError"
    read["volumeMounts"] = [
        {"name": "tmp", "mountPath": "/tmp"},  # noqa: S108  # of the pod
        {"name": "model", "mountPath": MODEL_DIRECTORY, "readOnly": True},
    ]
    spec["containers"] = [read]
    if isinstance(basis.source, ObjectSource):
        spec["initContainers"] = [_fetch(basis.image, basis.source, settings, only_config=True)]
    return spec


def head_start(settings: PodSettings) -> dict[str, str]:
    """`rayStartParams` of the head."""
    return {
        "num-cpus": "0",
        "num-gpus": "0",
        "object-store-memory": str(settings.sizes.object_store_bytes),
        "dashboard-host": "0.0.0.0",  # noqa: S104  # KubeRay asks from outside; the token and a NetworkPolicy stand before it
        "disable-usage-stats": "true",
    }


def worker_start(template: RevisionTemplate, settings: PodSettings) -> dict[str, str]:
    """`rayStartParams` of workers. A CPU a chip, and one for the replica's own process (see lionrock.inference.placement)."""
    chips = template.chips_per_pod
    started = {
        "num-cpus": str(chips + 1),
        # Stated also where there is none: KubeRay would count whatever resource ends in "gpu".
        "num-gpus": str(chips if template.ray_resource == "GPU" else 0),
        "object-store-memory": str(settings.sizes.object_store_bytes),
        "disable-usage-stats": "true",
    }
    if template.ray_resource not in ("CPU", "GPU"):
        started["resources"] = f"'{{\"{template.ray_resource}\": {chips}}}'"
    return started


def node_affinity(basis: PodBasis, *, with_selector: bool) -> Manifest:
    """Require the territory and, for pods with chips, the pool's own labels. One term: terms are alternatives."""
    expressions: list[Manifest] = [
        {"key": basis.territory_key, "operator": "In", "values": list(basis.territory_values)},
    ]
    if with_selector:
        expressions += [{"key": key, "operator": "In", "values": [value]} for key, value in sorted(basis.node_selector.items())]
    term = {"nodeSelectorTerms": [{"matchExpressions": expressions}]}
    return {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": term}}


# ---- parts ---------------------------------------------------------------------------------------------------------------------


def _pod(basis: PodBasis, settings: PodSettings, containers: list[Manifest]) -> Manifest:
    sizes = settings.sizes
    spec: Manifest = {
        "serviceAccountName": settings.service_account,
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "restartPolicy": "Always",
        "terminationGracePeriodSeconds": settings.termination_grace_s,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": settings.user_id,
            "runAsGroup": settings.user_id,
            "fsGroup": settings.user_id,
            "fsGroupChangePolicy": "OnRootMismatch",
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "affinity": node_affinity(basis, with_selector=False),
        "tolerations": [dict(each) for each in basis.tolerations],
        "containers": containers,
        "volumes": [
            _tmp(settings),
            {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": format_bytes(sizes.shm_bytes)}},
            {"name": "tls", "emptyDir": {"medium": "Memory", "sizeLimit": "1Mi"}},
            {"name": "account", "projected": {"defaultMode": 0o440, "sources": _account_sources()}},
        ],
    }
    if settings.image_pull_secrets:
        spec["imagePullSecrets"] = [{"name": name} for name in settings.image_pull_secrets]
    if settings.priority_class is not None:
        spec["priorityClassName"] = settings.priority_class
    return spec


def _container(name: str, image: str, cpu_m: int, memory_bytes: int, chips: Mapping[str, str]) -> Manifest:
    """Make a container. CPU has no limit: a throttled process misses its heartbeat. Memory and chips have what they ask for."""
    memory = format_bytes(memory_bytes)
    return {
        "name": name,
        "image": image,
        "imagePullPolicy": "IfNotPresent",
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "runAsNonRoot": True,
            "capabilities": {"drop": ["ALL"]},
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "resources": {
            "requests": {"cpu": _cpu(cpu_m), "memory": memory, **chips},
            "limits": {"memory": memory, **chips},
        },
    }


def _ray_container(
    settings: PodSettings, name: str, cpu_m: int, memory_bytes: int, chips: Mapping[str, str], *, image: str
) -> Manifest:
    container = _container(name, image, cpu_m, memory_bytes, chips)
    container["env"] = _ray_environment()
    container["volumeMounts"] = _mounts()
    # Ray's agent answers this path without a token, for the raylet and, on the head, for the global store.
    health = {"path": "/api/healthz", "port": AGENT_PORT}
    container["startupProbe"] = {"httpGet": health, "periodSeconds": 2, "timeoutSeconds": 5, "failureThreshold": 150}
    container["readinessProbe"] = {"httpGet": health, "periodSeconds": 5, "timeoutSeconds": 5, "failureThreshold": 3}
    container["livenessProbe"] = {"httpGet": health, "periodSeconds": 10, "timeoutSeconds": 10, "failureThreshold": 12}
    container["lifecycle"] = {"preStop": {"sleep": {"seconds": settings.drain_s}}}
    return container


def _front(template: RevisionTemplate, settings: PodSettings) -> Manifest:
    """Make the front.

    Its pod is ready when the front listens, not when the model answers: KubeRay declares the model to ready heads only. Whether the
    model answers is asked at the same port under the empty name, and gateways are sent there when it does.
    """
    sizes = settings.sizes
    container = _container("front", template.image, sizes.front_cpu_m, sizes.front_memory_bytes, {})
    container["command"] = ["python", "-m", "lionrock.inference", "--config", CONFIG_FILE]
    container["env"] = [
        *_pod_address(),
        {"name": "LIONROCK_INFERENCE_RAY__ADDRESS", "value": f"$(POD_IP):{GCS_PORT}"},
    ]
    container["ports"] = [{"name": "grpc", "containerPort": FRONT_PORT}, {"name": "probes", "containerPort": PROBE_PORT}]
    container["volumeMounts"] = [
        *_mounts(),
        {"name": "config", "mountPath": CONFIG_DIRECTORY, "readOnly": True},
        {"name": "ray-token", "mountPath": TOKEN_FILE.rpartition("/")[0], "readOnly": True},
    ]
    _probe(container)
    return container


def _probe(container: Manifest) -> None:
    """Have a gRPC service asked for its health in clear text, and drained when its pod ends."""
    alive = {"grpc": {"port": PROBE_PORT, "service": "liveness"}, "timeoutSeconds": 5}
    container["startupProbe"] = {**alive, "periodSeconds": 2, "failureThreshold": 150}
    container["readinessProbe"] = {**alive, "periodSeconds": 5, "failureThreshold": 3}
    container["livenessProbe"] = {**alive, "periodSeconds": 10, "failureThreshold": 6}
    # Endpoints forget the pod first; then the service drains.
    container["lifecycle"] = {"preStop": {"sleep": {"seconds": 5}}}


def _enrolment(image: str, settings: PodSettings, *, service: str = "inference", head: bool = False) -> Manifest:
    """Make the init container that asks for the pod's certificate. It alone sees a token of the service account.

    Workers join the head by the name of KubeRay's Service for it, and Ray checks that name.
    """
    sizes = settings.sizes
    container = _container("enrolment", image, sizes.init_cpu_m, sizes.init_memory_bytes, {})
    container["command"] = [
        "python",
        "-m",
        "lionrock.chassis.enrolment",
        f"--service={service}",
        f"--trust-domain={settings.trust_domain}",
        f"--signer={settings.certificate_signer}",
        f"--directory={TLS_DIRECTORY}",
        "--address=$(POD_IP)",
    ]
    container["env"] = _pod_address()
    if head:
        container["command"].append("--dns-name=$(RAY_CLUSTER)-head-svc.$(POD_NAMESPACE).svc.cluster.local")
        fields = (("RAY_CLUSTER", "metadata.labels['ray.io/cluster']"), ("POD_NAMESPACE", "metadata.namespace"))
        container["env"] += [{"name": name, "valueFrom": {"fieldRef": {"fieldPath": path}}} for name, path in fields]
    container["volumeMounts"] = [
        {"name": "tls", "mountPath": TLS_DIRECTORY},
        {"name": "tmp", "mountPath": "/tmp"},  # noqa: S108  # of the pod
        {"name": "account", "mountPath": _ACCOUNT_DIRECTORY, "readOnly": True},
    ]
    return container


def _fetch(image: str, source: ObjectSource, settings: PodSettings, *, only_config: bool = False) -> Manifest:
    """Make the init container that fetches the model's files into the pod."""
    sizes = settings.sizes
    container = _container("fetch", image, 1000, sizes.front_memory_bytes, {})
    container["command"] = [
        "python",
        "-m",
        "lionrock.modelstore.objects",
        f"--endpoint={source.endpoint}",
        f"--bucket={source.bucket}",
        f"--prefix={source.prefix}",
        f"--directory={MODEL_DIRECTORY}",
        *(["--without-weights"] if only_config else []),
    ]
    container["env"] = [
        {"name": variable, "valueFrom": {"secretKeyRef": {"name": source.secret_name, "key": key}}}
        for variable, key in (
            ("LIONROCK_OBJECTS_ACCESS_KEY_ID", "accessKeyId"),
            ("LIONROCK_OBJECTS_SECRET_ACCESS_KEY", "secretAccessKey"),
        )
    ]
    container["volumeMounts"] = [
        {"name": "model", "mountPath": MODEL_DIRECTORY},
        {"name": "tmp", "mountPath": "/tmp"},  # noqa: S108  # of the pod
    ]
    return container


def _config(config_map: str) -> Manifest:
    return {"name": "config", "configMap": {"name": config_map}}


def _model_volume(source: ModelFiles) -> Manifest:
    if isinstance(source, ClaimSource):
        return {"name": "model", "persistentVolumeClaim": {"claimName": source.claim_name, "readOnly": True}}
    if isinstance(source, ImageSource):
        return {"name": "model", "image": {"reference": source.reference, "pullPolicy": "IfNotPresent"}}
    return {"name": "model", "emptyDir": {}}


def _ray_environment() -> list[Manifest]:
    """Return what Ray's processes read. The front sets the same for itself (lionrock.inference.ray_cluster)."""
    values = {
        "RAY_USE_TLS": "1",
        "RAY_TLS_SERVER_CERT": f"{TLS_DIRECTORY}/tls.crt",
        "RAY_TLS_SERVER_KEY": f"{TLS_DIRECTORY}/tls.key",
        "RAY_TLS_CA_CERT": f"{TLS_DIRECTORY}/ca.crt",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
        "RAY_SERVE_LOG_TO_STDERR": "0",
        "RAY_SERVE_ENABLE_DIRECT_INGRESS": "0",
        "RAY_SERVE_TRACING_EXPORTER_IMPORT_PATH": "",
    }
    return [{"name": name, "value": value} for name, value in values.items()]


def _mounts() -> list[Manifest]:
    return [
        {"name": "tmp", "mountPath": "/tmp"},  # noqa: S108  # of the pod
        {"name": "shm", "mountPath": "/dev/shm"},  # noqa: S108  # of the pod
        {"name": "tls", "mountPath": TLS_DIRECTORY, "readOnly": True},
    ]


def _tmp(settings: PodSettings) -> Manifest:
    return {"name": "tmp", "emptyDir": {"sizeLimit": format_bytes(settings.sizes.tmp_bytes)}}


def _pod_address() -> list[Manifest]:
    return [{"name": "POD_IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}}]


def _account_sources() -> list[Manifest]:
    """Return what a client inside the cluster needs, with a token that is short-lived."""
    return [
        {"serviceAccountToken": {"path": "token", "expirationSeconds": _TOKEN_LIFETIME_S}},
        {"configMap": {"name": "kube-root-ca.crt", "items": [{"key": "ca.crt", "path": "ca.crt"}]}},
        {"downwardAPI": {"items": [{"path": "namespace", "fieldRef": {"fieldPath": "metadata.namespace"}}]}},
    ]


def _cpu(thousandths: int) -> str:
    """Canonical form, as the API server gives it back."""
    return str(thousandths // 1000) if thousandths % 1000 == 0 else f"{thousandths}m"
