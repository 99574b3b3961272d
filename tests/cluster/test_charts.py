"""The charts on a real API server: installed, upgraded, rolled back, gone; what it refuses, and what the issuer may do there.

No kubelet runs, so pods are made by controllers and stay pending: what is seen is that every one of them is admitted.
"""

from __future__ import annotations

import base64
import copy
import json
import os
import secrets
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from testcluster.commands import Command, CommandFailed
from testcluster.control_plane import ControlPlane
from testcluster.objects import Manifest, Objects, Refused
from testcluster.processes import Program
from testcluster.waiting import wait_for

ROOT = Path(__file__).resolve().parents[2]
CHART = ROOT / "charts" / "lionrock"
VALUES = CHART / "ci" / "minimal.yaml"
RELEASE = "lionrock"
CALLER = 'certificates.builtin.callers=[{"tenant":"retail","kind":"user","name":"ada"}]'
BACKGROUND = {"events", "leases", "endpoints", "endpointslices", "componentstatuses", "bindings", "controllerrevisions"}
KEPT = {"configmaps/kube-root-ca.crt", "serviceaccounts/default"}


@pytest.fixture(scope="module")
def mesh_namespace(objects: Objects, controller_manager: Program | None) -> Iterator[str]:
    """A namespace that enforces the restricted standard, as the chart's README says."""
    name = f"mesh-{secrets.token_hex(3)}"
    labels = {"pod-security.kubernetes.io/enforce": "restricted", "pod-security.kubernetes.io/enforce-version": "latest"}
    manifest: Manifest = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}}
    objects.create(manifest)
    wait_for(lambda: objects.read("v1", "ServiceAccount", "default", name), "the default service account")
    yield name
    objects.delete(manifest)


@pytest.fixture(scope="module")
def installed(helm: Command, mesh_namespace: str, lionrock_crds: list[str]) -> Iterator[str]:
    """The chart with its smallest values, and a caller. Returns its namespace."""
    helm("install", RELEASE, CHART, "--namespace", mesh_namespace, "--values", VALUES, "--set-json", CALLER)
    yield mesh_namespace
    with_nothing = helm("list", "--namespace", mesh_namespace, "--short").split()
    if RELEASE in with_nothing:
        helm("uninstall", RELEASE, "--namespace", mesh_namespace)


def inventory(objects: Objects, namespace: str) -> set[str]:
    """Everything of a namespace, and what has no namespace but its name in front."""
    found = set()
    groups = [f"/apis/{group['preferredVersion']['groupVersion']}" for group in objects.call("GET", "/apis")["groups"]]
    for root in ("/api/v1", *groups):
        for resource in objects.call("GET", root)["resources"]:
            name = resource["name"]
            if "list" not in resource["verbs"] or name in BACKGROUND:
                continue
            scope = f"/namespaces/{namespace}" if resource["namespaced"] else ""
            for item in objects.call("GET", f"{root}{scope}/{name}")["items"]:
                own = resource["namespaced"] or item["metadata"]["name"].startswith(f"{namespace}-")
                found |= {f"{name}/{item['metadata']['name']}"} if own else set()
    return found - KEPT


def pods_of(manifest: str) -> list[Manifest]:
    """The pods that a manifest's workloads would make."""
    pods = []
    for each in yaml.safe_load_all(manifest):
        match each and each["kind"]:
            case "Deployment" | "StatefulSet" | "Job":
                template = each["spec"]["template"]
            case "CronJob":
                template = each["spec"]["jobTemplate"]["spec"]["template"]
            case "Pod":
                template = each
            case _:
                continue
        metadata = {"name": f"tried-{each['metadata']['name']}", "labels": template["metadata"]["labels"]}
        claims = [claim["metadata"]["name"] for claim in each["spec"].get("volumeClaimTemplates", [])]
        volumes = [{"name": name, "persistentVolumeClaim": {"claimName": name}} for name in claims]
        spec = {**template["spec"], "volumes": [*template["spec"]["volumes"], *volumes]}
        pods.append({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec})
    return pods


@pytest.mark.parametrize("case", ["minimal", "everything", "spire", "postgresql"])
def test_every_pod_is_admitted_where_the_restricted_standard_is_enforced(
    helm: Command, objects: Objects, mesh_namespace: str, case: str
) -> None:
    manifest = helm("template", RELEASE, CHART, "--namespace", mesh_namespace, "--values", CHART / "ci" / f"{case}.yaml")
    pods = pods_of(manifest)
    assert pods
    for pod in pods:
        pod["metadata"]["namespace"] = mesh_namespace
        pod["spec"] |= {"serviceAccountName": "default", "priorityClassName": ""}
        objects.create(pod, dry_run=True)


def test_the_admission_is_not_for_want_of_a_standard(objects: Objects, mesh_namespace: str) -> None:
    spec = {"containers": [{"name": "any", "image": "any"}]}
    pod: Manifest = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "any", "namespace": mesh_namespace}, "spec": spec}
    with pytest.raises(Refused, match='violates PodSecurity "restricted'):
        objects.create(pod, dry_run=True)


def test_every_object_is_accepted_as_it_is(helm: Command, objects: Objects, mesh_namespace: str, lionrock_crds: list[str]) -> None:
    manifest = helm("template", RELEASE, CHART, "--namespace", mesh_namespace, "--values", VALUES, "--no-hooks")
    applied = [objects.apply(each, dry_run=True) for each in yaml.safe_load_all(manifest) if each]
    assert len(applied) > 40


def test_controllers_get_every_pod_through(installed: str, objects: Objects) -> None:
    def all_made() -> bool:
        workloads = [*objects.list("apps/v1", "Deployment", installed), *objects.list("apps/v1", "StatefulSet", installed)]
        return len(workloads) == 5 and all(each["status"].get("replicas", 0) == each["spec"]["replicas"] for each in workloads)

    def refusals() -> list[str]:
        return [each["message"] for each in objects.list("v1", "Event", installed) if "Failed" in each["reason"]]

    wait_for(all_made, "every workload has its pods", seen=refusals, timeout_s=60)
    pods = objects.list("v1", "Pod", installed, labels="app.kubernetes.io/part-of=lionrock")
    assert all("nodeName" not in pod["spec"] for pod in pods)


# ---- The admission policies ----------------------------------------------------------------------------------------------------


def mesh_pod(namespace: str, **spec: Any) -> Manifest:
    """A pod that the policies let through."""
    term = {"matchExpressions": [{"key": "topology.kubernetes.io/region", "operator": "In", "values": ["hk-1"]}]}
    affinity = {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [term]}}}
    labels = {"app.kubernetes.io/part-of": "lionrock", "lionrock.io/territory": "HK"}
    security = {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": f"forged-{secrets.token_hex(3)}", "namespace": namespace, "labels": labels},
        "spec": {
            "securityContext": {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}},
            "affinity": affinity,
            "containers": [{"name": "any", "image": "any", "securityContext": security}],
            **spec,
        },
    }


def terms(pod: Manifest) -> list[Any]:
    found: list[Any] = pod["spec"]["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"][
        "nodeSelectorTerms"
    ]
    return found


@pytest.fixture(scope="module")
def policed(installed: str, objects: Objects) -> str:
    """The namespace, once the API server enforces the policies."""
    stranger = mesh_pod(installed)
    del stranger["metadata"]["labels"]

    def refused() -> bool:
        try:
            objects.create(stranger, dry_run=True)
        except Refused as refusal:
            return "this namespace is the mesh's own" in str(refusal)
        return False

    wait_for(refused, "the policies are enforced")
    return installed


def no_label(pod: Manifest) -> None:
    del pod["metadata"]["labels"]["app.kubernetes.io/part-of"]


def no_territory(pod: Manifest) -> None:
    del pod["metadata"]["labels"]["lionrock.io/territory"]


def unknown_territory(pod: Manifest) -> None:
    pod["metadata"]["labels"]["lionrock.io/territory"] = "SG"


def no_affinity(pod: Manifest) -> None:
    del pod["spec"]["affinity"]


def preferred_only(pod: Manifest) -> None:
    pod["spec"]["affinity"] = {
        "nodeAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": [{"weight": 1, "preference": terms(pod)[0]}]}
    }


def another_region(pod: Manifest) -> None:
    terms(pod)[0]["matchExpressions"][0]["values"].append("sg-1")


def another_key(pod: Manifest) -> None:
    terms(pod)[0]["matchExpressions"][0]["key"] = "region"


def by_exclusion(pod: Manifest) -> None:
    terms(pod)[0]["matchExpressions"][0] |= {"operator": "NotIn", "values": ["sg-1"]}


def a_second_way_out(pod: Manifest) -> None:
    terms(pod).append({"matchExpressions": [{"key": "kubernetes.io/os", "operator": "In", "values": ["linux"]}]})


def by_field(pod: Manifest) -> None:
    terms(pod).append({"matchFields": [{"key": "metadata.name", "operator": "In", "values": ["node-in-sg"]}]})


def its_own_node(pod: Manifest) -> None:
    pod["spec"]["nodeName"] = "node-in-sg"


@pytest.mark.parametrize(
    ("forge", "words"),
    [
        (no_label, "this namespace is the mesh's own"),
        (no_territory, "carries the label lionrock.io/territory"),
        (unknown_territory, "carries the label lionrock.io/territory"),
        (no_affinity, "nodes of the territory HK"),
        (preferred_only, "nodes of the territory HK"),
        (another_region, "nodes of the territory HK"),
        (another_key, "nodes of the territory HK"),
        (by_exclusion, "nodes of the territory HK"),
        (a_second_way_out, "nodes of the territory HK"),
        (by_field, "nodes of the territory HK"),
        (its_own_node, "placed by a scheduler"),
    ],
)
def test_a_forged_pod_is_refused(policed: str, objects: Objects, forge: Callable[[Manifest], None], words: str) -> None:
    pod = mesh_pod(policed)
    objects.create(pod, dry_run=True)
    forge(pod)
    with pytest.raises(Refused, match="denied request") as refused:
        objects.create(pod, dry_run=True)
    assert words in str(refused.value)


@pytest.mark.parametrize("field", ["hostNetwork", "hostPID", "hostIPC"])
def test_a_pod_of_the_mesh_in_any_namespace_stays_off_the_nodes_network(
    policed: str, objects: Objects, namespace: str, field: str
) -> None:
    pod = mesh_pod(namespace)
    objects.create(pod, dry_run=True)
    pod["spec"][field] = True
    with pytest.raises(Refused, match="network policies do not hold there"):
        objects.create(pod, dry_run=True)


def test_pods_of_others_are_not_the_policies_business(policed: str, objects: Objects, namespace: str) -> None:
    pod = mesh_pod(namespace, hostNetwork=True)
    del pod["metadata"]["labels"], pod["spec"]["affinity"]
    objects.create(pod, dry_run=True)


def test_a_pod_may_narrow_its_territory_but_neither_leave_it_nor_hide(policed: str, objects: Objects) -> None:
    gated = mesh_pod(policed, schedulingGates=[{"name": "lionrock.io/gang"}])
    made = objects.create(gated)
    try:
        narrower = {"key": "kubernetes.io/hostname", "operator": "In", "values": ["node-1"]}
        expressions = [*terms(gated)[0]["matchExpressions"], narrower]
        affinity = copy.deepcopy(gated["spec"]["affinity"])
        affinity["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]["nodeSelectorTerms"] = [
            {"matchExpressions": expressions}
        ]
        objects.merge(made, {"spec": {"affinity": affinity, "schedulingGates": []}})
        for labels in ({"lionrock.io/territory": None}, {"lionrock.io/territory": "SG"}, {"app.kubernetes.io/part-of": None}):
            with pytest.raises(Refused, match="denied request"):
                objects.merge(made, {"metadata": {"labels": labels}})
    finally:
        objects.delete(made, grace_s=0)


# ---- The built-in issuer -------------------------------------------------------------------------------------------------------


@pytest.fixture
def issue(
    installed: str, objects: Objects, own_control_plane: ControlPlane, tmp_path: Path
) -> Callable[[str], subprocess.CompletedProcess[str]]:
    """Runs the issuer as the chart's Job does: its arguments, its plan, its service account."""
    account = f"/api/v1/namespaces/{installed}/serviceaccounts/{RELEASE}-certificates/token"
    request = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {"expirationSeconds": 600}}
    (tmp_path / "token").write_text(objects.call("POST", account, request)["status"]["token"])
    (tmp_path / "ca.crt").write_bytes(own_control_plane.ca.ca_file.read_bytes())
    plans = objects.read("v1", "ConfigMap", f"{RELEASE}-certificates", installed)
    assert plans is not None
    for name, text in plans["data"].items():
        (tmp_path / name).write_text(text)

    def run(plan: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "lionrock.chassis.issuing", f"--plan={tmp_path / plan}", f"--namespace={installed}"]
        command += [f"--api-server={own_control_plane.api_url}", f"--service-account={tmp_path}"]
        return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60, env=dict(os.environ))

    return run


def test_the_issuer_makes_every_secret_that_pods_wait_for_with_no_more_rights_than_the_chart_gives(
    installed: str, objects: Objects, issue: Callable[[str], subprocess.CompletedProcess[str]]
) -> None:
    first = issue("mesh.yaml")
    assert first.returncode == 0, first.stderr
    made = {each["metadata"]["name"]: each for each in objects.list("v1", "Secret", installed)}
    wanted = {
        volume["secret"]["secretName"]
        for each in [*objects.list("apps/v1", "Deployment", installed), *objects.list("apps/v1", "StatefulSet", installed)]
        for volume in each["spec"]["template"]["spec"]["volumes"]
        if "secret" in volume
    }
    assert wanted <= set(made)
    assert f"{RELEASE}-caller-retail-ada-tls" in made
    assert f"{RELEASE}-test-tls" not in made
    authority = base64.b64decode(made[f"{RELEASE}-ca"]["data"]["ca.crt"])
    assert {base64.b64decode(each["data"]["ca.crt"]) for name, each in made.items() if name.endswith("-tls")} == {authority}
    versions = {name: each["metadata"]["resourceVersion"] for name, each in made.items()}
    second = issue("mesh.yaml")
    assert second.returncode == 0, second.stderr
    assert "0 of them new" in second.stdout
    again = {each["metadata"]["name"]: each["metadata"]["resourceVersion"] for each in objects.list("v1", "Secret", installed)}
    assert again == versions


def test_the_issuer_reads_no_secret_of_others(
    installed: str, objects: Objects, issue: Callable[[str], subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    plan = yaml.safe_load((tmp_path / "mesh.yaml").read_text())
    plan["certificates"][0]["secret"] = f"{RELEASE}-cache-salt"
    (tmp_path / "mesh.yaml").write_text(json.dumps(plan))
    refused = issue("mesh.yaml")
    assert refused.returncode == 1
    assert "403" in refused.stderr
    assert objects.read("v1", "Secret", f"{RELEASE}-cache-salt", installed)


# ---- The life of a release: last, because it takes the release away -------------------------------------------------------------


def test_upgrade_and_roll_back_keep_data_and_uninstalling_leaves_nothing(
    installed: str, helm: Command, objects: Objects, issue: Callable[[str], subprocess.CompletedProcess[str]]
) -> None:
    assert issue("mesh.yaml").returncode == 0
    release = ("--namespace", installed)

    def secret(name: str) -> Any:
        found = objects.read("v1", "Secret", f"{RELEASE}-{name}", installed)
        return found and found["data"]

    def claims() -> set[str]:
        return {each["metadata"]["uid"] for each in objects.list("v1", "PersistentVolumeClaim", installed)}

    wait_for(lambda: len(claims()) == 2, "the audit service's volumes are claimed")
    before, kept = claims(), {name: secret(name) for name in ("ca", "gateway-tls", "cache-salt")}
    assert all(kept.values())
    changes = ["--set=gateway.replicas=3", "--set=guardrails.autoscaling.enabled=true", "--set=telemetry.logLevel=DEBUG"]
    helm("upgrade", RELEASE, CHART, *release, "--values", VALUES, "--set-json", CALLER, *changes, "--set=audit.whenDeleted=Delete")
    assert objects.read("autoscaling/v2", "HorizontalPodAutoscaler", f"{RELEASE}-guardrails", installed)
    helm("rollback", RELEASE, "1", *release)
    gateway = objects.read("apps/v1", "Deployment", f"{RELEASE}-gateway", installed)
    assert gateway is not None
    assert gateway["spec"]["replicas"] == 2
    assert not objects.read("autoscaling/v2", "HorizontalPodAutoscaler", f"{RELEASE}-guardrails", installed)
    helm("rollback", RELEASE, "2", *release)
    assert claims() == before
    assert {name: secret(name) for name in kept} == kept
    helm("uninstall", RELEASE, *release)
    wait_for(
        lambda: not inventory(objects, installed),
        "nothing is left",
        timeout_s=60,
        interval_s=0.5,
        seen=lambda: inventory(objects, installed),
    )


def test_resources_stay_when_their_chart_goes_and_are_taken_over_by_the_next(helm: Command, objects: Objects) -> None:
    names = ("chippools.lionrock.io", "modeldeployments.lionrock.io", "tenants.lionrock.io")

    def uids() -> list[str]:
        found = [objects.read("apiextensions.k8s.io/v1", "CustomResourceDefinition", name) for name in names]
        return [each["metadata"]["uid"] for each in found if each is not None]

    chart, release = ROOT / "charts" / "lionrock-crds", ("lionrock-crds", "--namespace", "default")
    present = uids()
    helm("install", *release, chart, "--take-ownership")
    made = uids()
    assert len(made) == 3
    assert not present or made == present
    helm("uninstall", *release)
    assert uids() == made
    helm("install", *release, chart)
    assert uids() == made
    helm("uninstall", *release)


def test_a_second_installation_does_not_take_anothers_objects(installed: str, helm: Command) -> None:
    helm("install", RELEASE, CHART, "--namespace", installed, "--values", VALUES)
    try:
        with pytest.raises(CommandFailed, match="cannot be imported into the current release"):
            helm("install", "other", CHART, "--namespace", installed, "--values", VALUES, "--set=fullnameOverride=lionrock")
    finally:
        helm("uninstall", RELEASE, "--namespace", installed)
