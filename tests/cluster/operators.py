"""Operators inside the test's own process, each with a way of its own to the API server that can be made to fail or cut.

A killed operator is one whose way is cut for good: nothing that it still does reaches the cluster, as after SIGKILL. What a pod of
KubeRay would do is done here by `play_kuberay`, since no test of the operator's own writes needs Ray to run.
"""

from __future__ import annotations

import secrets
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import kubernetes.client
import opentelemetry.metrics
import urllib3
from fault_proxy import Fault, FaultProxy, Plan, no_faults, proxy_to
from testcluster.control_plane import ControlPlane
from testcluster.objects import Manifest, Objects, Refused
from testcluster.waiting import wait_for

from lionrock.operator.cluster import Call, Cluster
from lionrock.operator.informers import Pace
from lionrock.operator.running_operator import RunningOperator
from lionrock.operator.settings import OperatorSettings
from lionrock.operator.telemetry import OperatorMetrics
from lionrock.operator.work_queue import Backoff

PACE = Pace(backoff=Backoff(base_s=0.02, cap_s=0.5), silence_s=30)
CHIP = "huawei.com/Ascend910"
SINCE = "2026-01-01T00:00:00Z"
REGION = "topology.kubernetes.io/region"
_PEERS = [{"podSelector": {"matchLabels": {"app.kubernetes.io/name": "lionrock"}}}]
_OPENING = {"peers": _PEERS, "ports": [50053]}


def settings_for(namespace: str, region: str, **changes: Any) -> OperatorSettings:
    """Settings of an operator that has one namespace and one region to itself."""
    values: dict[str, Any] = {
        "namespace": namespace,
        "namespaces": [namespace],
        "instance": "operator",
        "trust_domain": "lionrock.test",
        "territories": {"HK": {"values": [region]}},
        "engine_images": {"ascend-910b": "registry.internal/lionrock/engine-ascend:1"},
        "openings": {"gateways": _OPENING, "kuberay": _OPENING},
        "certificates": {"mode": "builtin", "authority_secret": "lionrock-ca"},
        "lease": {"duration_s": 6, "renew_deadline_s": 5, "retry_s": 0.5},
        "timing": {"drain_s": 5},
        "call_timeout_s": 6,
    }
    return OperatorSettings(**(values | changes))


@dataclass
class TestedOperator:
    """One operator and its way to the cluster."""

    __test__ = False

    proxy: FaultProxy
    running: RunningOperator
    cluster: Cluster
    calls: list[Call] = field(default_factory=list)

    def kill(self) -> None:
        """End it as SIGKILL would: from now on nothing of it reaches the cluster."""
        self.proxy.plan = _nothing_passes
        self.proxy.cut_everything()
        stopping = threading.Thread(target=self.running.stop, daemon=True)
        stopping.start()
        stopping.join(30)
        self.proxy.close()
        self.cluster.close()

    def stop(self) -> bool:
        """End it as SIGTERM would."""
        clean = self.running.stop()
        self.proxy.close()
        self.cluster.close()
        return clean

    def wait_leads(self, timeout_s: float = 30) -> None:
        """Wait until it acts."""
        wait_for(lambda: self.running.leads, "the operator leads", timeout_s=timeout_s)

    @property
    def writes(self) -> list[Call]:
        """What it wrote, the lease left out."""
        return [call for call in self.calls if call.verb not in ("get", "list", "watch", "discover") and call.resource != "leases"]


def _nothing_passes(request: object) -> Fault:
    del request
    return Fault(cut_before=True)


def start_operator_here(
    control_plane: ControlPlane,
    settings: OperatorSettings,
    *,
    kubeconfig: Path | None = None,
    plan: Plan = no_faults,
    pace: Pace = PACE,
) -> TestedOperator:
    """Start an operator in this process."""
    proxy = proxy_to(control_plane.api_url, kubeconfig or control_plane.kubeconfig)
    proxy.plan = plan
    configuration = kubernetes.client.Configuration(host=proxy.url)
    configuration.retries = False
    configuration.connection_pool_maxsize = 64
    calls: list[Call] = []
    cluster = Cluster(kubernetes.client.ApiClient(configuration), calls.append, call_timeout_s=settings.call_timeout_s)
    running = RunningOperator(cluster, settings, OperatorMetrics(opentelemetry.metrics.NoOpMeter("test")), pace=pace)
    running.start()
    return TestedOperator(proxy, running, cluster, calls)


@contextmanager
def operating(control_plane: ControlPlane, settings: OperatorSettings, **how: Any) -> Iterator[TestedOperator]:
    """Run an operator for a while."""
    operator = start_operator_here(control_plane, settings, **how)
    try:
        yield operator
    finally:
        operator.stop()


CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "head_dim": 128,
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "max_position_embeddings": 8192,
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "num_key_value_heads": 8,
    "tie_word_embeddings": False,
    "vocab_size": 128256,
}


def model(name: str, namespace: str, **spec: Any) -> Manifest:
    """A model of eight billion parameters."""
    claim = {"persistentVolumeClaim": {"claimName": "models"}}
    wanted: dict[str, Any] = {"model": {"source": claim, "config": CONFIG}, "territory": "HK"}
    metadata = {"name": name, "namespace": namespace}
    return {"apiVersion": "lionrock.io/v1alpha1", "kind": "ModelDeployment", "metadata": metadata, "spec": wanted | spec}


def pool(name: str, **spec: Any) -> Manifest:
    """A pool of Ascend chips in Hong Kong."""
    wanted: dict[str, Any] = {"chip": "ascend-910b", "territory": "HK"}
    return {"apiVersion": "lionrock.io/v1alpha1", "kind": "ChipPool", "metadata": {"name": name}, "spec": wanted | spec}


def node(name: str, region: str, chips: int = 8, **labels: str) -> Manifest:
    """A ready node with chips."""
    capacity = {"cpu": "64", "memory": "1Ti", "pods": "110", CHIP: str(chips)}
    return {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": name, "labels": {"kubernetes.io/hostname": name, REGION: region, **labels}},
        "status": {
            "capacity": capacity,
            "allocatable": capacity,
            "conditions": [{"type": "Ready", "status": "True", "reason": "KubeletReady", "lastTransitionTime": SINCE}],
        },
    }


@dataclass
class Place:
    """A namespace, a region with nodes, and a pool, which no other test sees."""

    objects: Objects
    namespace: str
    region: str
    nodes: list[str]

    @property
    def pool(self) -> str:
        """Name of the pool."""
        return f"pool-{self.region}"

    def children(self) -> dict[str, Manifest]:
        """Everything that the operator keeps in the namespace, without what differs from run to run."""
        kept: dict[str, Manifest] = {}
        for api_version, kind in CHILD_KINDS:
            found = self.objects.list(api_version, kind, self.namespace, labels="app.kubernetes.io/managed-by=lionrock-operator")
            kept |= {f"{kind}/{each['metadata']['name']}": _settled(each) for each in found}
        return kept

    def model(self, name: str) -> Manifest:
        """Read a model, which must be there."""
        found = self.objects.read("lionrock.io/v1alpha1", "ModelDeployment", name, self.namespace)
        assert found is not None, f"{name} is gone"
        return found

    def pods(self) -> list[Manifest]:
        """Pods of models."""
        return self.objects.list("v1", "Pod", self.namespace, labels="app.kubernetes.io/part-of=lionrock")

    def condition(self, name: str, kind: str) -> Mapping[str, Any]:
        """A condition of a model; empty while there is none."""
        conditions = (self.model(name).get("status") or {}).get("conditions") or ()
        return next((each for each in conditions if each["type"] == kind), {})

    def close(self) -> None:
        """Remove everything. Finalizers are taken off: no operator runs any more."""
        for kind, namespace in (("ModelDeployment", self.namespace), ("ChipPool", None)):
            for each in self.objects.list("lionrock.io/v1alpha1", kind, namespace):
                proposed = "lionrock.io/proposed" in each["metadata"].get("labels", {})
                if kind == "ChipPool" and self.region not in each["metadata"]["name"] and not proposed:
                    continue
                if each["metadata"].get("finalizers"):
                    self.objects.merge(each, {"metadata": {"finalizers": None}})
                self.objects.delete(each)
        for name in self.nodes:
            self.objects.delete({"apiVersion": "v1", "kind": "Node", "metadata": {"name": name}})
        for each in self.pods():
            self.objects.delete(each, grace_s=0)
        self.objects.delete({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": self.namespace}})


CHILD_KINDS = (
    ("ray.io/v1", "RayService"),
    ("apps/v1", "Deployment"),
    ("v1", "Service"),
    ("v1", "ConfigMap"),
    ("policy/v1", "PodDisruptionBudget"),
    ("networking.k8s.io/v1", "NetworkPolicy"),
)


def _settled(manifest: Manifest) -> Manifest:
    metadata = manifest["metadata"]
    kept = {key: metadata[key] for key in ("name", "namespace", "labels", "finalizers", "ownerReferences") if key in metadata}
    fields = [each for each in metadata.get("managedFields", ()) if each.get("subresource") != "status"]
    managers = sorted({f"{each['manager']} {each['operation']}" for each in fields})
    body = {key: value for key, value in manifest.items() if key not in ("metadata", "status")}
    if manifest["kind"] == "Service":
        body["spec"] = {key: value for key, value in body["spec"].items() if key not in ("clusterIP", "clusterIPs")}
    return {**body, "metadata": kept, "managers": managers}


def make_place(objects: Objects, nodes: int = 2) -> Place:
    """Make a namespace with what pods need, nodes of a new region, and their pool."""
    mark = secrets.token_hex(3)
    place = Place(objects, f"models-{mark}", f"r{mark}", [f"node-{mark}-{index}" for index in range(nodes)])
    objects.create({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": place.namespace}})
    account = {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "lionrock-engine", "namespace": place.namespace}}
    objects.create(account)
    for name in place.nodes:
        objects.create(node(name, place.region))
        objects.merge(node(name, place.region), {"spec": {"taints": None}})
    objects.create(pool(place.pool, nodeSelector={REGION: place.region}))
    return place


@contextmanager
def play_kuberay(place: Place) -> Iterator[None]:
    """Make a RayCluster of every RayService and the pods of that, and take them away with it; nothing of them runs."""
    over = threading.Event()

    def play() -> None:
        services = {each["metadata"]["name"]: each for each in place.objects.list("ray.io/v1", "RayService", place.namespace)}
        clusters = {each["metadata"]["name"]: each for each in place.objects.list("ray.io/v1", "RayCluster", place.namespace)}
        for name, service in services.items():
            if name not in clusters:
                clusters[name] = place.objects.create(_cluster_of(service))
                place.objects.merge(service, {"status": {"pendingServiceStatus": {"rayClusterName": name}}}, subresource="status")
        for name in clusters.keys() - services.keys():
            place.objects.delete(clusters.pop(name))
        wanted = {each["metadata"]["name"]: each for cluster in clusters.values() for each in _pods_of(cluster)}
        there = {each["metadata"]["name"]: each for each in place.pods()}
        for name, each in wanted.items():
            if name not in there:
                place.objects.create(each)
        for name, each in there.items():
            if name not in wanted and each["metadata"].get("labels", {}).get("lionrock.io/role") in ("head", "worker"):
                place.objects.delete(each, grace_s=0)

    def play_on() -> None:
        while not over.wait(0.05):
            with suppress(Refused, urllib3.exceptions.HTTPError):  # made meanwhile, or the API server is away
                play()

    thread = threading.Thread(target=play_on, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join(30)


def _cluster_of(service: Manifest) -> Manifest:
    metadata = service["metadata"]
    owner = {"apiVersion": "ray.io/v1", "kind": "RayService", "name": metadata["name"], "uid": metadata["uid"], "controller": True}
    kept = {"name": metadata["name"], "namespace": metadata["namespace"], "labels": metadata["labels"], "ownerReferences": [owner]}
    return {"apiVersion": "ray.io/v1", "kind": "RayCluster", "metadata": kept, "spec": service["spec"]["rayClusterConfig"]}


def _pods_of(cluster: Manifest) -> Iterator[Manifest]:
    name, namespace = cluster["metadata"]["name"], cluster["metadata"]["namespace"]
    owner = {"apiVersion": "ray.io/v1", "kind": "RayCluster", "name": name, "uid": cluster["metadata"]["uid"], "controller": True}
    yield _pod(f"{name}-head", namespace, cluster["spec"]["headGroupSpec"]["template"], owner)
    for group in cluster["spec"]["workerGroupSpecs"]:
        for index in range(group["replicas"]):
            yield _pod(f"{name}-worker-{index}", namespace, group["template"], owner)


def _pod(name: str, namespace: str, template: Mapping[str, Any], owner: Mapping[str, Any]) -> Manifest:
    metadata = {**(template.get("metadata") or {}), "name": name, "namespace": namespace, "ownerReferences": [dict(owner)]}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": template["spec"]}
