"""From a decision about a model to the objects that are written: children of its revisions, pods let go, pods and children deleted.

Compares what is wanted with what stands and names the difference alone. Does not decide which revisions run, nor where.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime

from lionrock.operator.actions import Delete, Manifest, ObjectRef, Patch
from lionrock.operator.decision_settings import DecisionSettings
from lionrock.operator.desired_state import children, differs, record
from lionrock.operator.gang import let_go, muster, pod_ref, silence_left_s, surplus
from lionrock.operator.model_picture import Objects, Picture, replicas_of
from lionrock.operator.ray_service import RAY_API_VERSION, worker_count_patch
from lionrock.operator.resources import Child, ChildKey, NodeName, ObjectKey, Pod, Revision
from lionrock.operator.running_revisions import ray_service_of
from lionrock.operator.world import World

_RECORD = "ConfigMap"
_POLICY = "NetworkPolicy"
_CLUSTER = "RayCluster"


def objects_of(world: World, picture: Picture, settings: DecisionSettings) -> Objects:
    """Name everything that is to be written for the picture."""
    model = picture.model
    apply: list[Manifest] = []
    patches: list[Patch] = []
    pods: dict[ObjectKey, Delete] = {}
    waits = ""
    stays: dict[Revision, bool] = {} if picture.record.kept is None else {picture.record.kept: False}
    for revision in picture.step.weights:
        slots, template = picture.slots(revision), picture.templates.get(revision)
        stays[revision] = template is None or bool(slots)
        if template is None:
            continue
        replicas = replicas_of(slots)
        wanted = children(template, model.meta, replicas, settings) if slots else [record(template, model.meta, 0, settings)]
        apply += [manifest for manifest in wanted if _is_missing(world, manifest)]
        crew = muster(world, world.pods_of(model.key), revision, slots)
        going = surplus(crew, slots)
        cluster = _cluster_of(world, picture, revision)
        if cluster is not None:
            counted = worker_count_patch(_ref(cluster), cluster.body.get("spec") or {}, len(slots), [pod.key.name for pod in going])
            patches += [counted] if counted is not None else []
        if settings.gang.by != "operator":
            continue
        letting = let_go(world, crew, slots)
        patches += letting.patches
        taken = {pod.key for pod in going} if cluster is not None else set()
        pods |= {
            pod.key: _gone(world, pod, "no chips are kept for it there", settings, picture.now)
            for pod in crew.strays
            if pod.key not in taken
        }
        if revision == picture.step.target:
            waits = letting.waits
    strangers = _strangers(world, picture)
    for pod in world.pods_of(model.key):
        if pod.node is None or pod.has_ended:
            continue
        if pod.node in strangers:
            why = f"node {pod.node} is not labelled as standing in {model.spec.territory}"
            pods[pod.key] = _gone(world, pod, why, settings, picture.now)
        elif silence_left_s(world, pod.node, settings.lost_node_after_s, picture.now) == 0:
            pods[pod.key] = _gone(world, pod, f"node {pod.node} does not answer", settings, picture.now)
    deleted = [
        pods[pod.key]
        for pod in world.pods_of(model.key)
        if pod.key in pods and (pod.deleted_at is None or pods[pod.key].grace_s == 0)
    ]
    delete = [*_ended(world, model.key, stays), *deleted]
    return Objects(
        apply=tuple(apply),
        delete=tuple(delete),
        patches=tuple(patches),
        waits=waits,
        strangers=tuple(sorted(strangers)),
        recheck_after_s=_recheck(world, model.key, settings, picture.now),
    )


def _is_missing(world: World, manifest: Manifest) -> bool:
    """Whether a child is not there as it is wanted."""
    metadata = manifest["metadata"]
    child = world.child(ChildKey(str(manifest["kind"]), metadata["namespace"], metadata["name"]))
    return child is None or (not child.meta.is_deleting and differs(manifest, child.body))


def _ended(world: World, model: ObjectKey, stays: Mapping[Revision, bool]) -> list[Delete]:
    """Delete children of revisions that have ended; of those in stays with False all but the record.

    What a revision's pods may reach stays denied as long as there are any.
    """
    populated = {pod.revision for pod in world.pods_of(model)}
    return [
        Delete(ref=_ref(child), why=f"revision {child.revision} has ended")
        for child in world.children_of(model)
        if not child.meta.is_deleting
        and child.kind != _CLUSTER  # KubeRay's
        and child.revision is not None
        and not stays.get(child.revision, False)
        and not (child.kind == _RECORD and child.revision in stays)
        and not (child.kind == _POLICY and child.revision in populated)
    ]


def _strangers(world: World, picture: Picture) -> frozenset[NodeName]:
    """Nodes outside the model's territory on which pods of it are."""
    rule = world.rules.territories.get(picture.model.spec.territory)
    if rule is None:
        return frozenset()
    found = (
        pod.node
        for pod in world.pods_of(picture.model.key)
        if pod.node is not None and pod.deleted_at is None and not pod.has_ended
    )
    return frozenset(name for name in found if name in world.nodes and not rule.holds(world.nodes[name].labels))


def _recheck(world: World, model: ObjectKey, settings: DecisionSettings, now: datetime) -> float | None:
    """When a node with pods of the model, which is silent now, will count as lost."""
    nodes = {pod.node for pod in world.pods_of(model) if pod.node is not None and not pod.has_ended}
    left = (silence_left_s(world, node, settings.lost_node_after_s, now) for node in nodes)
    return min((left_s for left_s in left if left_s), default=None)


def _gone(world: World, pod: Pod, why: str, settings: DecisionSettings, now: datetime) -> Delete:
    """Delete a pod; at once where no kubelet would confirm its end, since KubeRay counts it until it is gone."""
    lost = pod.node is not None and silence_left_s(world, pod.node, settings.lost_node_after_s, now) == 0
    return Delete(ref=pod_ref(pod), why=why, grace_s=0 if lost else None)


def _cluster_of(world: World, picture: Picture, revision: Revision) -> Child | None:
    """Ray cluster that KubeRay made of a revision's RayService."""
    service = ray_service_of(world, picture.model, revision)
    if service is None or service.ray_service is None or service.ray_service.cluster_name is None:
        return None
    found = world.child(ChildKey(_CLUSTER, service.meta.namespace, service.ray_service.cluster_name))
    return found if found is not None and found.revision == revision and not found.meta.is_deleting else None


def _ref(child: Child) -> ObjectRef:
    versions = {"RayService": RAY_API_VERSION, _CLUSTER: RAY_API_VERSION}
    version = str(child.body.get("apiVersion") or versions.get(child.kind, "v1"))
    return ObjectRef(api_version=version, kind=child.kind, namespace=child.meta.namespace, name=child.meta.name, uid=child.meta.uid)
