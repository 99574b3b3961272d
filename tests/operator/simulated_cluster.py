"""A small Kubernetes in memory, to drive the real `decide` to rest. A simulator, not a mock of what is tested.

It keeps objects as dicts, carries decisions out, and models as much of the others as deciding can notice: server-side apply and
JSON Patch with its tests; the scheduler (gates, required affinity, taints, extended resources); the kubelet (bound pods become
ready, ended ones go); Deployments; garbage collection by owner; and KubeRay v1.6.2: a RayService makes one RayCluster, that makes a
head and workers, replaces pods that are gone, passes no changed number of workers on, and deletes whichever worker comes first when
it is to have fewer and none are named. Time stands still but for `pass_time`. Left out: validation of names, quotas, CPU, memory.
"""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

from lionrock.operator.actions import (
    DISCOVERY,
    FINALIZER,
    Decision,
    Event,
    Key,
    Kind,
    model_key,
    namespace_key,
    pool_key,
    tenant_key,
)
from lionrock.operator.conditions import timestamp
from lionrock.operator.decision import decide
from lionrock.operator.decision_settings import DecisionSettings, Opening, Openings, PodSettings
from lionrock.operator.pools import PoolRules, TerritoryRule
from lionrock.operator.reports import Reports
from lionrock.operator.resources import (
    ChildKey,
    NodeName,
    ObjectKey,
    PoolName,
    parse_child,
    parse_chip_pool,
    parse_model_deployment,
    parse_node,
    parse_pod,
)
from lionrock.operator.tenant import parse_tenant
from lionrock.operator.world import World

Object = dict[str, Any]
Id = tuple[str, str, str]
NAMESPACE = "models"
BEGIN = datetime(2026, 1, 1, tzinfo=UTC)
CHILD_KINDS = ("RayService", "RayCluster", "Deployment", "Service", "ConfigMap", "PodDisruptionBudget", "NetworkPolicy", "Secret")
REGION = "topology.kubernetes.io/region"
LOOK_S = 10.0
"""How often a decision wants to be made again while something is on its way."""

CONFIG: Object = {
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "max_position_embeddings": 131072,
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "num_key_value_heads": 8,
    "vocab_size": 128256,
}
"""Of Llama 3.1 8B."""


def settings(**changed: Any) -> DecisionSettings:
    """Settings of a small installation."""
    values: dict[str, Any] = {
        "pools": PoolRules(
            {
                "HK": TerritoryRule(REGION, frozenset({"hk-1", "hk-2"})),
                "SG": TerritoryRule(REGION, frozenset({"sg-1"})),
            },
            {"ascend-910b": "registry.internal/engine-npu:1", "cambricon-mlu590": "registry.internal/engine-mlu:1"},
        ),
        "pods": PodSettings(trust_domain="bank.example"),
        "openings": Openings(
            gateways=Opening(peers=({"podSelector": {"matchLabels": {"app.kubernetes.io/component": "gateway"}}},), ports=(50053,)),
            kuberay=Opening(
                peers=(
                    {
                        "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "kuberay"}},
                        "podSelector": {"matchLabels": {"app.kubernetes.io/name": "kuberay-operator"}},
                    },
                ),
                ports=(8265,),
            ),
            api_server=Opening(peers=({"ipBlock": {"cidr": "10.0.0.10/32"}},), ports=(6443,)),
        ),
    }
    return DecisionSettings(**(values | changed))


class Conflict(Exception):
    """A patch's test did not hold, or its object is another one."""


class SimulatedCluster:
    """See the module."""

    def __init__(self, using: DecisionSettings | None = None, seed: int = 0) -> None:
        self.settings = using or settings()
        self.now = BEGIN
        self.world = World(self.settings.pools, self.settings.tenants)
        self.objects: dict[Id, Object] = {}
        self.reports: Reports = {}
        self.events: list[Event] = []
        self.writes = 0
        self.history: list[str] = []
        self.on_change: Callable[[], None] = lambda: None
        self._random = random.Random(seed)
        self._serial = 0
        self._stated: dict[Id, set[str]] = {}
        """Keys of data that the operator applied last."""
        self.broken_images: set[str] = set()
        """Engine images whose model never comes up."""
        self.silent_roles: set[str] = set()
        """Roles of pods that start and never become ready."""
        self.refusing_nodes: set[str] = set()
        """Nodes for which the scheduler finds something that the operator cannot know, for example too little memory."""

    # ---- what a person or the environment does -----------------------------------------------------------------------------

    def add_node(
        self, name: str, resource: str = "huawei.com/Ascend910", chips: int = 8, region: str = "hk-1", **labels: str
    ) -> None:
        self.put(
            {
                "kind": "Node",
                "metadata": {"name": name, "labels": {"kubernetes.io/hostname": f"host-{name}", REGION: region, **labels}},
                "spec": {},
                "status": {
                    "allocatable": {"cpu": "64", resource: str(chips)},
                    "conditions": [{"type": "Ready", "status": "True", "lastTransitionTime": timestamp(self.now)}],
                },
            }
        )

    def change_node(self, name: str, change: Callable[[Object], None]) -> None:
        node = self.objects.get(("Node", "", name))
        if node is not None:
            change(node)
            self.put(node)

    def cordon(self, name: str, cordoned: bool = True) -> None:
        self.change_node(name, lambda node: node["spec"].update(unschedulable=cordoned))

    def set_ready(self, name: str, ready: bool) -> None:
        condition = {"type": "Ready", "status": str(ready), "lastTransitionTime": timestamp(self.now)}
        self.change_node(name, lambda node: node["status"].update(conditions=[condition]))

    def relabel(self, name: str, region: str) -> None:
        self.change_node(name, lambda node: node["metadata"]["labels"].update({REGION: region}))

    def remove_node(self, name: str) -> None:
        if self.objects.pop(("Node", "", name), None) is not None:
            self.world.forget_node(NodeName(name))
            for key, pod in list(self._of_kind("Pod")):  # the pod collector
                if pod["spec"].get("nodeName") == name:
                    self._drop(key)

    def add_pool(self, name: str, **spec: Any) -> None:
        self.put({"kind": "ChipPool", "metadata": {"name": name, "generation": 1}, "spec": {"territory": "HK", **spec}})

    def add_model(self, name: str, namespace: str = NAMESPACE, **spec: Any) -> ObjectKey:
        model = {
            "model": {"source": {"persistentVolumeClaim": {"claimName": "weights", "path": name}}, "config": CONFIG},
            "workload": {"concurrency": 4, "contextTokens": 2048},
            "territory": "HK",
            **spec,
        }
        metadata = {"name": name, "namespace": namespace, "generation": 1}
        self.put({"kind": "ModelDeployment", "metadata": metadata, "spec": model})
        return ObjectKey(namespace, name)

    def add_tenant(self, body: Object, namespace: str = NAMESPACE) -> ObjectKey:
        key = ObjectKey(namespace, body["metadata"]["name"])
        found = self.objects.get(("Tenant", *key), {"metadata": {}})
        generation = found["metadata"].get("generation", 0) + 1
        metadata = {**found["metadata"], "name": key.name, "namespace": namespace, "generation": generation}
        self.put({**found, **copy.deepcopy(body), "metadata": metadata})
        return key

    def change_model(self, key: ObjectKey, change: Callable[[Object], None]) -> None:
        model = self.objects.get(("ModelDeployment", *key))
        if model is not None and "deletionTimestamp" not in model["metadata"]:
            change(model["spec"])
            model["metadata"]["generation"] += 1
            self.put(model)

    def add_foreign_pod(self, name: str, node: str, chips: int, resource: str = "huawei.com/Ascend910") -> None:
        asked = {"limits": {resource: str(chips)}}
        self.put(
            {
                "kind": "Pod",
                "metadata": {"name": name, "namespace": "others"},
                "spec": {"nodeName": node, "containers": [{"name": "theirs", "resources": asked}]},
                "status": {"phase": "Running"},
            }
        )

    def delete(self, kind: str, namespace: str, name: str, *, grace_s: int | None = None) -> None:
        """Delete as the API server does: at once, or when finalizers and kubelet agree."""
        found = self.objects.get((kind, namespace, name))
        if found is None:
            return
        waits = bool(found["metadata"].get("finalizers")) or (kind == "Pod" and found["spec"].get("nodeName") and grace_s != 0)
        if waits:
            if "deletionTimestamp" not in found["metadata"]:
                found["metadata"]["deletionTimestamp"] = timestamp(self.now)
                self.put(found)
        else:
            self._drop((kind, namespace, name))

    def pass_time(self, seconds: float) -> None:
        self.now += timedelta(seconds=seconds)

    # ---- the operator ------------------------------------------------------------------------------------------------------

    def all_keys(self) -> list[Key]:
        models = sorted(self.world.models)
        tenants = sorted(self.world.tenants)
        named = {name for kind, name, _ in self.objects if kind == "ConfigMap"}
        namespaces = sorted({key.namespace for key in (*models, *tenants)} | named)
        found = [DISCOVERY, *(pool_key(name) for name in sorted(self.world.pools)), *(model_key(*key) for key in models)]
        found += [tenant_key(*key) for key in tenants]
        return found + [namespace_key(name) for name in namespaces]

    def decide(self, key: Key) -> Decision:
        return decide(self.world, key, self.now, self.settings, self.reports)

    def reconcile(self, key: Key) -> bool:
        """Decide once and carry it out. Returns whether anything was written."""
        decision = self.decide(key)
        if not decision.quiet:
            self.carry_out(key, decision)
        self.events += decision.events
        return not decision.quiet

    def carry_out(self, key: Key, decision: Decision) -> None:
        """Write everything, in the order that `Decision` states."""
        self.writes += 1
        if decision.status is not None:
            kind = {Kind.MODEL: "ModelDeployment", Kind.POOL: "ChipPool", Kind.TENANT: "Tenant"}[key.kind]
            found = self.objects[kind, key.namespace, key.name]
            self.history.append(f"{key} status")
            self.put({**found, "status": json.loads(json.dumps(decision.status))})
        for secret in decision.secrets:
            self._apply({**secret.manifest, "data": {secret.key: "c2VjcmV0"}})
        for manifest in decision.apply:
            self._apply(manifest)
        for deletion in decision.delete:
            ref = deletion.ref
            found = self.objects.get((ref.kind, ref.namespace, ref.name))
            if found is not None and (not ref.uid or found["metadata"]["uid"] == ref.uid):
                self.history.append(f"{key} delete {ref}: {deletion.why}")
                self.delete(ref.kind, ref.namespace, ref.name, grace_s=deletion.grace_s)
        for patch in decision.pod_patches:
            ref = patch.ref
            found = self.objects.get((ref.kind, ref.namespace, ref.name))
            if found is not None:
                self.history.append(f"{key} patch {ref}: {patch.why}")
                self.put(patched(found, patch.operations))

    def settle(self, *, rounds: int = 60, wait: bool = True, horizon_s: float = 6 * 3600) -> None:
        """Let everybody act until nobody has anything to do. wait: also for times that decisions name, up to the horizon."""
        until, idle_s = self.now + timedelta(seconds=horizon_s), 0.0
        for _ in range(rounds):
            before = self.writes
            self.act()
            dues = [after_s for key in self.all_keys() if (after_s := self.decide(key).requeue_after_s) is not None]
            if not wait or not dues:
                return
            # Who only looks again now and then is waited for longer and longer, yet no other time is passed over.
            idle_s = max(60.0, 2 * idle_s) if self.writes == before and min(dues) <= LOOK_S else 0.0
            pause_s = min([max(LOOK_S, idle_s), *(due_s for due_s in dues if due_s > LOOK_S)]) if idle_s else max(1.0, min(dues))
            if self.now + timedelta(seconds=pause_s) > until:
                return
            self.pass_time(pause_s)

    def act(self, *, rounds: int = 80) -> None:
        """Let everybody act, at this time, until nothing changes."""
        for _ in range(rounds):
            wrote = False
            keys = self.all_keys()
            self._random.shuffle(keys)
            for key in keys:
                wrote |= self.reconcile(key)
                self.on_change()
            if not self.others() and not wrote:
                return
        raise AssertionError("the cluster does not come to rest:\n" + "\n".join(self.history[-40:]))

    # ---- everybody else ----------------------------------------------------------------------------------------------------

    def others(self) -> bool:
        """Let everybody else act once. Returns whether anything changed."""
        changed = self._collect_garbage()
        changed |= self._kuberay()
        changed |= self._deployments()
        self.on_change()
        changed |= self._schedule()
        self.on_change()
        return self._kubelets() | changed

    def _collect_garbage(self) -> bool:
        uids = {each["metadata"]["uid"] for each in self.objects.values()}
        gone = [
            key
            for key, each in self.objects.items()
            if (owners := each["metadata"].get("ownerReferences")) and not any(owner["uid"] in uids for owner in owners)
        ]
        for key in gone:
            self.delete(*key)
        return any(key not in self.objects for key in gone)

    def _kuberay(self) -> bool:
        changed = False
        for _, service in list(self._of_kind("RayService")):
            changed |= self._ray_service(service)
        for _, cluster in list(self._of_kind("RayCluster")):
            changed |= self._ray_cluster(cluster)
        return changed

    def _ray_service(self, service: Object) -> bool:
        meta = service["metadata"]
        owned = [each for _, each in self._of_kind("RayCluster") if _owned_by(each, service)]
        if not owned:
            self._serial += 1
            name = f"{meta['name']}-{self._serial:05d}"
            self.put(
                {
                    "apiVersion": "ray.io/v1",
                    "kind": "RayCluster",
                    "metadata": {
                        "name": name,
                        "namespace": meta["namespace"],
                        "labels": dict(meta["labels"]),
                        "ownerReferences": [{"uid": meta["uid"], "kind": "RayService", "name": meta["name"]}],
                    },
                    "spec": copy.deepcopy(service["spec"]["rayClusterConfig"]),
                }
            )
            return True
        (cluster,) = owned
        status = self._serve_status(service, cluster)
        if service.get("status") == status:
            return False
        self.put({**service, "status": status})
        return True

    def _serve_status(self, service: Object, cluster: Object) -> Object:
        pods = [pod for _, pod in self._of_kind("Pod") if _owned_by(pod, cluster)]
        ready = [pod for pod in pods if _is_ready(pod) and "deletionTimestamp" not in pod["metadata"]]
        head = any(pod["metadata"]["labels"]["lionrock.io/role"] == "head" for pod in ready)
        workers = sum(pod["metadata"]["labels"]["lionrock.io/role"] == "worker" for pod in ready)
        config = json.loads(service["spec"]["serveConfigV2"])["applications"][0]
        model = config["args"]["model"]
        chips = int(next(iter(_chips_of(service["spec"]["rayClusterConfig"]["workerGroupSpecs"][0]["template"]["spec"]).values())))
        pods_each = model["tensor_parallel"] * model["pipeline_parallel"] // chips
        image = service["spec"]["rayClusterConfig"]["headGroupSpec"]["template"]["spec"]["containers"][0]["image"]
        wanted = config["deployments"][0]["num_replicas"]
        up = head and workers >= wanted * pods_each and image not in self.broken_images
        before = service.get("status", {}).get("conditions", [{}])[0].get("status") == "True"
        seen = up or (before and head and workers > 0)
        return {
            "activeServiceStatus": {
                "rayClusterName": cluster["metadata"]["name"],
                "applicationStatuses": {config["name"]: {"status": "RUNNING" if up else "DEPLOYING"}} if head else {},
            },
            "conditions": [{"type": "Ready", "status": str(seen), "reason": "Simulated", "message": ""}],
        }

    def _ray_cluster(self, cluster: Object) -> bool:
        pods = [pod for _, pod in self._of_kind("Pod") if _owned_by(pod, cluster)]
        changed = False
        if not any(pod["metadata"]["labels"]["lionrock.io/role"] == "head" for pod in pods):
            self._make_pod(cluster, cluster["spec"]["headGroupSpec"]["template"], "head")
            changed = True
        (group,) = cluster["spec"]["workerGroupSpecs"]
        workers = [pod for pod in pods if pod["metadata"]["labels"]["lionrock.io/role"] == "worker"]
        named = set((group.get("scaleStrategy") or {}).get("workersToDelete") or ())
        for pod in [pod for pod in workers if pod["metadata"]["name"] in named]:
            changed |= "deletionTimestamp" not in pod["metadata"]
            self.delete("Pod", pod["metadata"]["namespace"], pod["metadata"]["name"])
            workers.remove(pod)
        count = min(max(group["replicas"], group["minReplicas"]), group["maxReplicas"])
        for _ in range(count - len(workers)):
            self._make_pod(cluster, group["template"], "worker")
            changed = True
        for pod in workers[: max(0, len(workers) - count)]:
            self.history.append(f"kuberay deletes {pod['metadata']['name']}, whichever it is")
            changed |= "deletionTimestamp" not in pod["metadata"]
            self.delete("Pod", pod["metadata"]["namespace"], pod["metadata"]["name"])
        return changed

    def _deployments(self) -> bool:
        """Make pods of Deployments, and replace those of an earlier template once a new one is ready."""
        changed = False
        for _, deployment in list(self._of_kind("Deployment")):
            spec, pods = deployment["spec"], [pod for _, pod in self._of_kind("Pod") if _owned_by(pod, deployment)]
            stay = [pod for pod in pods if "deletionTimestamp" not in pod["metadata"] and not _has_ended(pod)]
            new = [pod for pod in stay if pod["metadata"].get("annotations") == spec["template"]["metadata"].get("annotations")]
            for _ in range(spec["replicas"] - len(new)):
                self._make_pod(deployment, spec["template"], "pod")
                changed = True
            ready = sum(map(_is_ready, new)) >= spec["replicas"]
            for pod in [pod for pod in stay if ready and pod not in new] + new[spec["replicas"] :]:
                self.delete("Pod", pod["metadata"]["namespace"], pod["metadata"]["name"])
                changed = True
        return changed

    def _make_pod(self, owner: Object, template: Object, role: str) -> None:
        self._serial += 1
        meta = owner["metadata"]
        self.put(
            {
                "kind": "Pod",
                "metadata": {
                    "name": f"{meta['name']}-{role}-{self._serial:05d}",
                    "namespace": meta["namespace"],
                    "labels": dict(template["metadata"]["labels"]),
                    "annotations": dict(template["metadata"].get("annotations", {})),
                    "ownerReferences": [{"uid": meta["uid"], "kind": owner["kind"], "name": meta["name"]}],
                },
                "spec": copy.deepcopy(template["spec"]),
                "status": {"phase": "Pending"},
            }
        )

    def _schedule(self) -> bool:
        changed = False
        for _, pod in list(self._of_kind("Pod")):
            spec = pod["spec"]
            if spec.get("nodeName") or spec.get("schedulingGates") or "deletionTimestamp" in pod["metadata"] or _has_ended(pod):
                continue
            node = next((name for name in self._nodes() if self._fits(pod, self.objects["Node", "", name])), None)
            if node is not None:
                spec["nodeName"] = node
                self._set_conditions(pod, [{"type": "PodScheduled", "status": "True"}])
            elif _condition(pod, "PodScheduled").get("reason") == "Unschedulable":
                continue
            else:
                refused = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "0 nodes are available"}
                self._set_conditions(pod, [{**refused, "lastTransitionTime": timestamp(self.now)}])
            changed = True
        return changed

    def _fits(self, pod: Object, node: Object) -> bool:
        labels, spec = node["metadata"]["labels"], pod["spec"]
        if (
            node["spec"].get("unschedulable")
            or not _is_ready(node)
            or (_chips_of(spec) and node["metadata"]["name"] in self.refusing_nodes)
        ):
            return False
        required = spec.get("affinity", {}).get("nodeAffinity", {}).get("requiredDuringSchedulingIgnoredDuringExecution")
        if required and not any(
            all(each["operator"] == "In" and labels.get(each["key"]) in each["values"] for each in term["matchExpressions"])
            for term in required["nodeSelectorTerms"]
        ):
            return False
        tolerated = {each.get("key") for each in spec.get("tolerations", [])}
        if any(taint["key"] not in tolerated for taint in node["spec"].get("taints", [])):
            return False
        free = {name: int(count) for name, count in node["status"]["allocatable"].items() if "/" in name}
        for _, other in self._of_kind("Pod"):
            if other["spec"].get("nodeName") == node["metadata"]["name"] and not _has_ended(other):
                for name, count in _chips_of(other["spec"]).items():
                    free[name] = free.get(name, 0) - count
        return all(free.get(name, 0) >= count for name, count in _chips_of(spec).items())

    def _kubelets(self) -> bool:
        changed = False
        for key, pod in list(self._of_kind("Pod")):
            name = pod["spec"].get("nodeName")
            node = self.objects.get(("Node", "", name)) if name else None
            if pod["metadata"]["namespace"] == "others" or (_has_ended(pod) and "deletionTimestamp" not in pod["metadata"]):
                continue
            if "deletionTimestamp" in pod["metadata"] and (name is None or (node is not None and _is_ready(node))):
                self._drop(key)
                changed = True
            elif pod["metadata"].get("labels", {}).get("lionrock.io/role") in self.silent_roles:
                continue
            elif node is not None and _is_ready(node) and not _is_ready(pod):
                pod["status"]["phase"] = "Running"
                self._set_conditions(pod, [{"type": "PodScheduled", "status": "True"}, {"type": "Ready", "status": "True"}])
                changed = True
        return changed

    # ---- the API server ----------------------------------------------------------------------------------------------------

    def put(self, body: Object) -> None:
        """Store an object and show it to the operator."""
        meta = body["metadata"]
        key = (body["kind"], meta.get("namespace", ""), meta["name"])
        if not meta.get("uid"):
            self._serial += 1
            meta["uid"] = f"uid-{self._serial}"
            meta.setdefault("creationTimestamp", timestamp(self.now))
        self._serial += 1
        meta["resourceVersion"] = str(self._serial)
        self.objects[key] = body
        if "deletionTimestamp" in meta and not meta.get("finalizers") and body["kind"] not in ("Pod",):
            self._drop(key)
            return
        seen = copy.deepcopy(body)
        match body["kind"]:
            case "Node":
                self.world.apply_node(parse_node(seen))
            case "Pod":
                self.world.apply_pod(parse_pod(seen))
            case "ChipPool":
                self.world.apply_pool(parse_chip_pool(seen))
            case "ModelDeployment":
                self.world.apply_model(parse_model_deployment(seen))
            case "Tenant":
                self.world.apply_tenant(parse_tenant(seen))
            case kind:
                self.world.apply_child(parse_child(kind, seen))

    def _drop(self, key: Id) -> None:
        self.objects.pop(key, None)
        kind, namespace, name = key
        match kind:
            case "Node":
                self.world.forget_node(NodeName(name))
            case "Pod":
                self.world.forget_pod(ObjectKey(namespace, name))
            case "ChipPool":
                self.world.forget_pool(PoolName(name))
            case "ModelDeployment":
                self.world.forget_model(ObjectKey(namespace, name))
            case "Tenant":
                self.world.forget_tenant(ObjectKey(namespace, name))
            case _:
                self.world.forget_child(ChildKey(*key))

    def _apply(self, manifest: Mapping[str, Any]) -> None:
        """Apply as the one field manager: what it states replaces what it stated, the rest stays."""
        wanted = json.loads(json.dumps(manifest))
        meta = wanted["metadata"]
        key = (wanted["kind"], meta.get("namespace", ""), meta["name"])
        found = self.objects.get(key)
        self.history.append(f"apply {'/'.join(key)}")
        stated, self._stated[key] = self._stated.get(key, set()), set(wanted.get("data", ()))
        if meta.get("uid") and (found is None or found["metadata"]["uid"] != meta["uid"]):
            return  # a conflict: it is another object by now
        if found is None:
            if wanted["kind"] == "ChipPool":
                meta["generation"] = 1
            if wanted["kind"] == "Pod":
                wanted["status"] = {"phase": "Pending"}
            self.put(wanted)
            return
        others = [name for name in found["metadata"].get("finalizers", []) if name != FINALIZER]
        merged = {**found, **{name: value for name, value in wanted.items() if name != "metadata"}}
        merged["metadata"] = {**found["metadata"], **meta, "finalizers": [*others, *meta.get("finalizers", [])]}
        if wanted["kind"] == "ConfigMap":
            merged["data"] = {name: text for name, text in found.get("data", {}).items() if name not in stated} | wanted["data"]
        self.put(merged)

    def _of_kind(self, kind: str) -> Iterable[tuple[Id, Object]]:
        return (
            sorted((key, body) for key, body in self.objects.items() if key[0] == kind)
            if kind != "Pod"
            else [(key, body) for key, body in self.objects.items() if key[0] == kind]
        )

    def _nodes(self) -> list[str]:
        return sorted(key[2] for key in self.objects if key[0] == "Node")

    def _set_conditions(self, pod: Object, conditions: list[Object]) -> None:
        pod["status"]["conditions"] = conditions
        self.put(pod)

    # ---- looking at it -----------------------------------------------------------------------------------------------------

    def model(self, name: str, namespace: str = NAMESPACE) -> Object:
        return self.objects["ModelDeployment", namespace, name]

    def condition(self, name: str, kind: str) -> Object:
        return _condition(self.model(name), kind)

    def pods(self, model: str | None = None, role: str | None = None) -> list[Object]:
        return [
            pod
            for _, pod in self._of_kind("Pod")
            if (labels := pod["metadata"].get("labels", {})).get("lionrock.io/model")
            and (model is None or labels["lionrock.io/model"] == model)
            and (role is None or labels.get("lionrock.io/role") == role)
        ]

    def of_kind(self, kind: str) -> list[Object]:
        return [body for _, body in self._of_kind(kind)]


def patched(body: Object, operations: Iterable[Mapping[str, Any]]) -> Object:
    """Apply a JSON Patch (RFC 6902: test, add, replace, remove of a field). Raises Conflict where a test does not hold."""
    changed: Object = copy.deepcopy(body)
    for operation in operations:
        *path, last = [part.replace("~1", "/").replace("~0", "~") for part in operation["path"].split("/")[1:]]
        at: Any = changed
        for part in path:
            at = at[int(part)] if isinstance(at, list) else at[part]
        value = copy.deepcopy(operation.get("value"))
        if operation["op"] == "test":
            if (at[int(last)] if isinstance(at, list) else at.get(last)) != value:
                raise Conflict(operation["path"])
        elif operation["op"] == "remove":
            del at[last]
        elif isinstance(at, list):
            at.append(value) if last == "-" else at.__setitem__(int(last), value)
        else:
            if operation["op"] == "replace" and last not in at:
                raise Conflict(operation["path"])
            at[last] = value
    return changed


def _owned_by(body: Object, owner: Object) -> bool:
    return any(each["uid"] == owner["metadata"]["uid"] for each in body["metadata"].get("ownerReferences", []))


def _condition(body: Object, kind: str) -> Object:
    return next((each for each in body.get("status", {}).get("conditions", []) if each["type"] == kind), {})


def _is_ready(body: Object) -> bool:
    return bool(_condition(body, "Ready").get("status") == "True")


def _has_ended(pod: Object) -> bool:
    return pod.get("status", {}).get("phase") in ("Succeeded", "Failed")


def _chips_of(spec: Object) -> dict[str, int]:
    found: dict[str, int] = {}
    for container in spec.get("containers", []):
        for name, count in container.get("resources", {}).get("limits", {}).items():
            if "/" in name:
                found[name] = found.get(name, 0) + int(count)
    return found
