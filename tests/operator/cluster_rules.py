"""What must hold of a simulated cluster: at every moment, and at rest."""

from __future__ import annotations

from collections import Counter
from typing import Any

from simulated_cluster import REGION, SimulatedCluster

from lionrock.operator.conditions import ConditionType, Reason
from lionrock.operator.gang import PART_LABEL, REPLICA_LABEL
from lionrock.operator.metadata import MODEL_LABEL, POOL_LABEL, REVISION_LABEL, ROLE_LABEL
from lionrock.operator.pools import ResolvedPool, belongs
from lionrock.operator.resources import NodeName, PoolName, parse_node

_REASONS = {reason.word for reason in Reason}


def always(cluster: SimulatedCluster) -> None:
    """No node has more chips taken than it has, and no chips are kept twice on it that nobody gives back."""
    taken: Counter[tuple[str, str]] = Counter()
    for pod in cluster.of_kind("Pod"):
        if pod["spec"].get("nodeName") and pod.get("status", {}).get("phase") not in ("Succeeded", "Failed"):
            for container in pod["spec"]["containers"]:
                for name, count in container.get("resources", {}).get("limits", {}).items():
                    if "/" in name:
                        taken[pod["spec"]["nodeName"], name] += int(count)
    for (node, name), count in taken.items():
        found = cluster.objects.get(("Node", "", node))
        assert found is None or count <= int(found["status"]["allocatable"].get(name, 0)), f"{node} has {count} {name} taken"


def at_rest(cluster: SimulatedCluster) -> None:
    """Everything that deciding promises when nothing changes any more."""
    for key in cluster.all_keys():
        decision = cluster.decide(key)
        assert decision.quiet, f"{key} wants to write {decision}"
    for key in list(cluster.world.models):
        _model_at_rest(cluster, cluster.objects["ModelDeployment", *key])
    for pod in cluster.pods():
        node = cluster.objects.get(("Node", "", pod["spec"].get("nodeName") or ""))
        if node is not None and node["metadata"]["name"] in _answering(cluster):
            assert node["metadata"]["labels"][REGION] in ("hk-1", "hk-2"), f"{pod['metadata']['name']} is out of its territory"


def _answering(cluster: SimulatedCluster) -> set[str]:
    return {each["metadata"]["name"] for each in cluster.of_kind("Node") if each["status"]["conditions"][0]["status"] == "True"}


def _model_at_rest(cluster: SimulatedCluster, model: dict[str, Any]) -> None:
    name, status = model["metadata"]["name"], model["status"]
    revisions = {each["name"]: each for each in status["revisions"]}
    conditions = {each["type"]: each for each in status["conditions"]}
    placement = status["placement"]["pods"]
    assert list(conditions) == [kind.value for kind in ConditionType if kind is not ConditionType.ACCEPTED]
    unsaid = [each for each in conditions.values() if each["reason"] not in _REASONS or not each["message"]]
    assert not unsaid, f"{name} does not say why: {unsaid}"

    services = [each for each in cluster.of_kind("RayService") if each["metadata"]["labels"][MODEL_LABEL] == name]
    running = {slot["revision"] for slot in placement}
    assert sorted(each["metadata"]["labels"][REVISION_LABEL] for each in services) == sorted(running), (
        "one child a revision with chips"
    )
    assert running <= revisions.keys()
    tokenizations = [each for each in cluster.of_kind("Deployment") if each["metadata"]["labels"][MODEL_LABEL] == name]
    assert {each["metadata"]["labels"][REVISION_LABEL] for each in tokenizations} == running
    assert len(tokenizations) == len(services)
    clusters = [each for each in cluster.of_kind("RayCluster") if each["metadata"]["labels"][MODEL_LABEL] == name]
    assert len(clusters) == len(services)

    _gangs(cluster, name, placement)
    for slot in placement:
        node = cluster.objects.get(("Node", "", slot["node"]))
        pool = cluster.world.resolved(PoolName(slot["pool"]))
        assert node is not None, "chips are kept on a node that is gone"
        if isinstance(pool, ResolvedPool):
            taken = any(pod["spec"].get("nodeName") == slot["node"] for pod in cluster.pods(name, "worker"))
            assert taken or belongs(parse_node(node), pool)

    wanted = model["spec"].get("replicas", 1)
    if status["replicas"]["ready"] < wanted:
        told = [conditions[kind] for kind in ("Planned", "Scheduled", "Ready", "Degraded")]
        complaint = any(each["status"] == "False" and each["type"] != "Degraded" for each in told) or told[3]["status"] == "True"
        assert complaint, f"{name} lacks replicas and does not say why: {told}"
    assert sum(each["weightPercent"] for each in revisions.values()) in (0, 100)


def _gangs(cluster: SimulatedCluster, name: str, placement: list[dict[str, Any]]) -> None:
    """Each replica has a pod in each of its slots, or none that was let go."""
    slots: dict[tuple[str, int], set[tuple[int, str]]] = {}
    for slot in placement:
        slots.setdefault((slot["revision"], slot["replica"]), set()).add((slot["part"], slot["node"]))
    let_go: dict[tuple[str, int], set[tuple[int, str]]] = {}
    for pod in cluster.pods(name, "worker"):
        labels, node = pod["metadata"]["labels"], pod["spec"].get("nodeName")
        assert labels[POOL_LABEL]
        assert labels[ROLE_LABEL] == "worker"
        if "deletionTimestamp" in pod["metadata"] or pod["spec"].get("schedulingGates"):
            continue
        assert node is not None, f"{pod['metadata']['name']} was let go and has no node"
        gang = (labels[REVISION_LABEL], int(labels[REPLICA_LABEL]))
        assert gang in slots, f"{pod['metadata']['name']} has no slot"
        assert (int(labels[PART_LABEL]), node) not in let_go.setdefault(gang, set())
        let_go[gang].add((int(labels[PART_LABEL]), NodeName(node)))
    for gang, found in let_go.items():
        assert found == slots[gang], f"half of {gang} holds chips: {found} of {slots[gang]}"
