"""Every pod that the chart makes, hooks too: its territory, its rights, its probes, its end, and how many may be missing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

WITH_TOKEN = {"operator", "certificates"}
WITHOUT_PROBES = {"Job", "CronJob", "Pod"}


def component(pod: dict[str, Any]) -> str:
    return str(pod["metadata"]["labels"]["app.kubernetes.io/component"])


def containers(pod: dict[str, Any]) -> list[dict[str, Any]]:
    return [*pod["spec"].get("initContainers", []), *pod["spec"]["containers"]]


def test_every_pod_is_bound_to_the_territorys_nodes(release: Any) -> None:
    for name, pod in release.pods():
        labels = pod["metadata"]["labels"]
        assert labels["app.kubernetes.io/part-of"] == "lionrock", name
        required = pod["spec"]["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
        (term,) = required["nodeSelectorTerms"]
        (expression,) = term["matchExpressions"]
        assert expression["operator"] == "In", name
        values = {"HK": ({"hk-1"}, {"hk-1", "hk-2"}), "SG": ({"sg"},)}[labels["lionrock.io/territory"]]
        assert set(expression["values"]) in values, name


def test_every_pod_obeys_the_restricted_standard_and_has_a_root_that_cannot_be_written(release: Any) -> None:
    for name, pod in release.pods():
        spec = pod["spec"]
        assert spec["securityContext"]["runAsNonRoot"] is True, name
        assert spec["securityContext"]["runAsUser"] > 0, name
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}, name
        assert not any(spec.get(field) for field in ("hostNetwork", "hostPID", "hostIPC")), name
        assert not any("hostPath" in volume for volume in spec["volumes"]), name
        for container in containers(pod):
            security = container["securityContext"]
            assert security["allowPrivilegeEscalation"] is False, name
            assert security["readOnlyRootFilesystem"] is True, name
            assert security["capabilities"] == {"drop": ["ALL"]}, name


def test_only_who_talks_to_the_api_server_has_a_token(release: Any) -> None:
    for name, pod in release.pods():
        assert pod["spec"]["automountServiceAccountToken"] is (component(pod) in WITH_TOKEN), name
    for account in release.of("ServiceAccount"):
        assert account["automountServiceAccountToken"] is False


def test_no_pod_gets_variables_that_would_be_taken_for_settings(release: Any) -> None:
    assert all(pod["spec"]["enableServiceLinks"] is False for _, pod in release.pods())


def test_every_container_says_what_it_needs_and_what_it_may_take(release: Any) -> None:
    for name, pod in release.pods():
        for container in containers(pod):
            assert {"cpu", "memory"} <= container["resources"]["requests"].keys(), name
            assert "memory" in container["resources"]["limits"], name


def test_every_writable_directory_is_bounded(release: Any) -> None:
    for name, pod in release.pods():
        for volume in pod["spec"]["volumes"]:
            assert "emptyDir" not in volume or "sizeLimit" in volume["emptyDir"], name


def test_every_server_is_probed_where_a_kubelet_can_ask(release: Any) -> None:
    for name, pod in release.pods():
        if name.partition("/")[0] in WITHOUT_PROBES:
            continue
        (container,) = pod["spec"]["containers"]
        ports = {port["name"]: port["containerPort"] for port in container["ports"]}
        for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
            asked = container[probe].get("grpc", container[probe].get("httpGet"))
            assert asked["port"] in (ports.get("probes"), "http"), f"{name} {probe}"
        if "grpc" in container["livenessProbe"]:
            assert container["livenessProbe"]["grpc"]["service"] == container["startupProbe"]["grpc"]["service"] == "liveness"
            assert "service" not in container["readinessProbe"]["grpc"], name


def test_a_pod_lives_longer_than_its_drain(release: Any) -> None:
    for each in release.of("Deployment", "StatefulSet"):
        spec = each["spec"]["template"]["spec"]
        (container,) = spec["containers"]
        settings_name = spec["volumes"][0]["configMap"]["name"]
        if component(each["spec"]["template"]) in ("operator", "audit-monitor"):  # which answer nobody
            continue
        server = release.settings(settings_name.rpartition("-")[2], settings_name.rpartition("-")[0])["server"]
        before = container["lifecycle"]["preStop"]["sleep"]["seconds"]
        assert before >= 5
        assert spec["terminationGracePeriodSeconds"] >= before + server["drain_grace_s"] + 15


def test_every_workload_has_a_budget_and_is_spread(release: Any) -> None:
    budgets = [budget["spec"] for budget in release.of("PodDisruptionBudget")]
    workloads = release.of("Deployment", "StatefulSet")
    assert len(budgets) == len(workloads)
    for each in workloads:
        selector = each["spec"]["selector"]
        assert any(budget["selector"] == selector for budget in budgets), each["metadata"]["name"]
        spread = each["spec"]["template"]["spec"]["topologySpreadConstraints"]
        assert {constraint["topologyKey"] for constraint in spread} == {"kubernetes.io/hostname", "topology.kubernetes.io/zone"}
        assert all(constraint["labelSelector"] == selector for constraint in spread)
        assert selector["matchLabels"].items() <= each["spec"]["template"]["metadata"]["labels"].items()


def test_selectors_are_disjoint(release: Any) -> None:
    pods = [(name, pod["metadata"]["labels"]) for name, pod in release.pods()]
    for each in release.of("Deployment", "StatefulSet"):
        wanted = each["spec"]["selector"]["matchLabels"].items()
        matched = {name for name, labels in pods if wanted <= labels.items()}
        assert matched == {f"{each['kind']}/{each['metadata']['name']}"}


def test_every_object_is_named_in_the_releases_namespace_and_labelled(release: Any) -> None:
    for each in release.objects:
        assert each["metadata"]["labels"]["app.kubernetes.io/part-of"] == "lionrock", each["metadata"]["name"]
        assert each["kind"] == "Pod" or each["metadata"]["labels"]["helm.sh/chart"] == "lionrock-0.1.0"
        cluster_wide = each["kind"].startswith(("Cluster", "ValidatingAdmissionPolicy"))
        assert cluster_wide != (each["metadata"].get("namespace") == "bank"), each["metadata"]["name"]
        assert not cluster_wide or each["metadata"]["name"].startswith("bank-")


def test_replicas_are_the_autoscalers_where_there_is_one(render: Callable[..., Any]) -> None:
    scaled = render("everything")
    for name in ("gateway", "tokenization", "guardrails"):
        assert "replicas" not in scaled.one("Deployment", f"lionrock-{name}")["spec"]
        target = scaled.one("HorizontalPodAutoscaler", f"lionrock-{name}")["spec"]["scaleTargetRef"]
        assert target == {"apiVersion": "apps/v1", "kind": "Deployment", "name": f"lionrock-{name}"}
    assert scaled.one("StatefulSet", "lionrock-audit")["spec"]["replicas"] == 1


def test_changed_settings_replace_the_pods_that_read_them_and_no_others(render: Callable[..., Any]) -> None:
    before, after = render(), render("minimal", "guardrails.settings.work.threads=3")

    def digests(rendered: Any) -> dict[str, Any]:
        return {each["metadata"]["name"]: each["spec"]["template"] for each in rendered.of("Deployment", "StatefulSet")}

    changed = {name for name, template in digests(after).items() if template != digests(before)[name]}
    assert changed == {"lionrock-guardrails"}


def test_a_new_version_of_the_chart_alone_replaces_no_pod(render: Callable[..., Any]) -> None:
    for _, pod in render().pods():
        text = str(pod["metadata"].get("labels", {})) + str(pod["metadata"].get("annotations", {}))
        assert "helm.sh/chart" not in text
        assert "app.kubernetes.io/version" not in text


@pytest.mark.parametrize(
    ("sets", "image"),
    [
        ((), "ghcr.io/lionrock/audit:0.1.0"),
        (('image.tag="v9"',), "ghcr.io/lionrock/audit:v9"),
        (('image.registry=""', 'image.prefix="lionrock-"'), "lionrock-audit:0.1.0"),
        (('image.references={"audit":"built/audit:1"}', f'image.digests={{"audit":"sha256:{"a" * 64}"}}'), "built/audit:1"),
        ((f'image.digests={{"audit":"sha256:{"a" * 64}"}}', 'image.tag="v9"'), f"ghcr.io/lionrock/audit@sha256:{'a' * 64}"),
    ],
)
def test_images_come_from_one_registry_by_tag_or_digest(render: Callable[..., Any], sets: tuple[str, ...], image: str) -> None:
    audit = render("minimal", *sets).one("StatefulSet", "lionrock-audit")
    assert audit["spec"]["template"]["spec"]["containers"][0]["image"] == image
