"""The harness itself: what the other tests of this directory stand on."""

from __future__ import annotations

import cluster_tools
import pytest
from testcluster.audit import AuditLog
from testcluster.commands import Command, CommandFailed
from testcluster.control_plane import ControlPlane
from testcluster.nodes import Nodes
from testcluster.objects import Manifest, Objects, Refused
from testcluster.processes import Program
from testcluster.waiting import wait_for

CHIP = "huawei.com/Ascend910"


def pod(name: str, namespace: str, *, chips: int, selector: dict[str, str] | None = None) -> Manifest:
    resources = {"limits": {CHIP: str(chips)}} if chips else {}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {"containers": [{"name": "main", "image": "none", "resources": resources}], "nodeSelector": selector or {}},
    }


def test_api_server_says_the_version_that_it_was_built_from(kubectl: Command) -> None:
    version = cluster_tools.required_version("kubernetes", "k8s.io/kubernetes")
    assert f"Server Version: {version}" in kubectl("version")


def test_a_user_without_a_role_is_refused_and_the_audit_log_says_so(
    own_control_plane: ControlPlane, namespace: str, audit_log: AuditLog
) -> None:
    before = audit_log.position()
    stranger = Objects(own_control_plane.client(own_control_plane.user_kubeconfig("stranger")))
    with pytest.raises(Refused, match='User "stranger" cannot list resource "pods"'):
        stranger.list("v1", "Pod", namespace)
    [asked] = audit_log.since(before, user="stranger")
    assert (asked.verb, asked.resource, asked.namespace, asked.status) == ("list", "pods", namespace, 403)
    assert asked.refused_by_rbac


def test_objects_survive_a_crash_of_the_api_server(own_control_plane: ControlPlane, objects: Objects, namespace: str) -> None:
    kept = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "kept", "namespace": namespace}, "data": {"a": "b"}}
    objects.create(kept)
    own_control_plane.kill_api_server()
    own_control_plane.start_api_server()
    own_control_plane.restart_api_server()
    found = objects.read("v1", "ConfigMap", "kept", namespace)
    assert found is not None
    assert found["data"] == {"a": "b"}


def test_restricted_pod_security_is_enforced(objects: Objects, namespace: str) -> None:
    labels = {"metadata": {"labels": {"pod-security.kubernetes.io/enforce": "restricted"}}}
    objects.merge({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace}}, labels)
    with pytest.raises(Refused, match='violates PodSecurity "restricted:latest": allowPrivilegeEscalation'):
        objects.create(pod("root", namespace, chips=0), dry_run=True)


def test_pods_with_chips_run_on_the_right_nodes_and_wait_where_there_are_none(
    objects: Objects, namespace: str, nodes: Nodes, scheduler: Program
) -> None:
    nodes.add([f"{namespace}-cpu-{index}" for index in range(3)])
    chips = nodes.add([f"{namespace}-npu-{index}" for index in range(2)], resources={CHIP: 8}, labels={"rack": namespace})
    for name, asked in {"first": 8, "second": 8, "third": 8}.items():
        objects.create(pod(name, namespace, chips=asked, selector={"rack": namespace}))

    def running() -> list[Manifest]:
        return [found for found in objects.list("v1", "Pod", namespace) if found["status"]["phase"] == "Running"]

    def refused() -> list[Manifest]:
        conditions = [found["status"].get("conditions", ()) for found in objects.list("v1", "Pod", namespace)]
        return [one for each in conditions for one in each if (one["type"], one["status"]) == ("PodScheduled", "False")]

    wait_for(lambda: len(running()) == 2, "two pods run", seen=lambda: objects.list("v1", "Pod", namespace))
    assert {found["spec"]["nodeName"] for found in running()} == set(chips)
    wait_for(refused, "the scheduler has looked at the third", seen=lambda: objects.list("v1", "Pod", namespace))
    [scheduled] = refused()
    assert scheduled["reason"] == "Unschedulable"
    assert f"2 Insufficient {CHIP}" in scheduled["message"]


def test_a_lost_node_is_tainted_and_takes_pods_again_when_it_is_back(objects: Objects, namespace: str, nodes: Nodes) -> None:
    [node] = nodes.add([f"{namespace}-npu"])
    nodes.lose(node)

    def taints() -> set[str]:
        found = objects.read("v1", "Node", node)
        assert found is not None
        return {taint["key"] for taint in found["spec"].get("taints", ())}

    wait_for(lambda: "node.kubernetes.io/unreachable" in taints(), "the lost node is tainted", seen=taints)
    nodes.recover(node)
    wait_for(lambda: not taints(), "the node that is back has no taint", seen=taints)


def test_a_gated_pod_is_scheduled_where_it_was_narrowed_to(
    objects: Objects, namespace: str, nodes: Nodes, scheduler: Program
) -> None:
    """What the operator's gangs stand on: a gated pod may be narrowed to a node while its gate is taken away, in one patch."""
    first, second = nodes.add([f"{namespace}-{index}" for index in range(2)], resources={CHIP: 8})
    gated = pod("gated", namespace, chips=8)
    gated["spec"]["schedulingGates"] = [{"name": "lionrock.io/gang"}]
    objects.create(gated)
    term = {"matchExpressions": [{"key": "kubernetes.io/hostname", "operator": "In", "values": [second]}]}
    affinity = {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [term]}}}
    objects.merge(gated, {"spec": {"schedulingGates": None, "affinity": affinity}})

    def node_of() -> str | None:
        found = objects.read("v1", "Pod", "gated", namespace)
        assert found is not None
        return found["spec"].get("nodeName") if found["status"]["phase"] == "Running" else None

    assert wait_for(node_of, "the pod runs") == second
    assert first != second


def test_kuberay_makes_a_head_pod_for_a_ray_cluster(objects: Objects, namespace: str, kuberay: Program) -> None:
    template = {"spec": {"containers": [{"name": "ray-head", "image": "none"}]}}
    objects.create(
        {
            "apiVersion": "ray.io/v1",
            "kind": "RayCluster",
            "metadata": {"name": "small", "namespace": namespace},
            "spec": {"rayVersion": "2.60.0", "headGroupSpec": {"rayStartParams": {}, "template": template}},
        }
    )
    wait_for(lambda: objects.list("v1", "Pod", namespace, labels="ray.io/cluster=small,ray.io/node-type=head"), "the head pod")


def test_kubectl_fails_with_what_the_server_said(kubectl: Command) -> None:
    with pytest.raises(CommandFailed, match="the server doesn't have a resource type"):
        kubectl("get", "lions")


def test_control_plane_leaves_no_process_behind(own_control_plane: ControlPlane, tmp_path_factory: pytest.TempPathFactory) -> None:
    second = ControlPlane(tmp_path_factory.mktemp("second"), audit=False)
    programs = [second.etcd, second.api_server]
    assert all(program.running for program in programs)
    second.stop()
    assert not any(program.running for program in programs)
