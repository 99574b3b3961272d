"""Certificates in each mode: the plan that the built-in issuer is given, its rights, and where pods find the files."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import yaml

from lionrock.chassis.identity import SpiffeId
from lionrock.chassis.issuing import IssuePlan

SERVICES = {"gateway", "tokenization", "guardrails", "audit"}
IDENTITIES = SERVICES | {"operator"}
WITH_OPERATOR = ("operator.enabled=true", 'networkPolicy.apiServer.cidrs=["10.0.0.1/32"]')
CALLER = 'certificates.builtin.callers=[{"tenant":"retail","kind":"user","name":"ada"}]'


@pytest.fixture
def plans(render: Callable[..., Any]) -> dict[str, IssuePlan]:
    """What the issuer is told: the mesh's plan and the test's."""
    data = render("minimal", CALLER).one("ConfigMap", "lionrock-certificates")["data"]
    return {name: IssuePlan.model_validate(yaml.safe_load(text)) for name, text in data.items()}


def test_every_service_and_caller_is_issued_a_certificate(plans: dict[str, IssuePlan]) -> None:
    issued = {certificate.secret: certificate for certificate in plans["mesh.yaml"].certificates}
    assert set(issued) == {f"lionrock-{name}-tls" for name in IDENTITIES} | {"lionrock-caller-retail-ada-tls"}
    for name in IDENTITIES:
        certificate = issued[f"lionrock-{name}-tls"]
        assert SpiffeId.parse(certificate.spiffe_id).service == name
        assert certificate.dns_names == (f"{name}.lionrock.internal",)
    assert SpiffeId.parse(issued["lionrock-caller-retail-ada-tls"].spiffe_id).tenant == "retail"
    assert not issued["lionrock-caller-retail-ada-tls"].dns_names


def test_the_tests_certificate_is_issued_by_the_test_alone_and_soon_over(plans: dict[str, IssuePlan]) -> None:
    (certificate,) = plans["test.yaml"].certificates
    assert SpiffeId.parse(certificate.spiffe_id).tenant == "helm-test"
    assert certificate.lifetime_s <= 900
    assert certificate.secret not in {each.secret for each in plans["mesh.yaml"].certificates}


def test_the_issuer_may_touch_its_own_secrets_and_no_others(render: Callable[..., Any], plans: dict[str, IssuePlan]) -> None:
    rules = render("minimal", CALLER).one("Role", "lionrock-certificates")["rules"]
    planned = {certificate.secret for plan in plans.values() for certificate in plan.certificates} | {"lionrock-ca"}
    for rule in rules:
        if rule["resources"] == ["secrets"] and rule["verbs"] != ["create"]:
            assert rule["verbs"] == ["get", "update"]
            assert set(rule["resourceNames"]) == planned
    assert not [each for each in render("minimal", CALLER).of("ClusterRole") if "certificates" in each["metadata"]["name"]]


def test_the_job_changes_its_name_with_its_plan_because_a_job_cannot_change(render: Callable[..., Any]) -> None:
    def job(*sets: str) -> str:
        jobs = [each["metadata"] for each in render("minimal", *sets).of("Job")]
        (name,) = [each["name"] for each in jobs if "helm.sh/hook" not in each.get("annotations", {})]
        return str(name)

    assert job() == job("gateway.replicas=5")
    assert job() != job(CALLER)
    assert job() != job('image.tag="v2"')


def test_installing_waits_for_no_hook(release: Any) -> None:
    hooks = {each["metadata"].get("annotations", {}).get("helm.sh/hook") for each in release.objects}
    assert hooks <= {None, "test"}


@pytest.mark.parametrize(("case", "prefix"), [("minimal", "lionrock"), ("everything", "lionrock")])
def test_pods_mount_the_secret_that_is_made_for_them(render: Callable[..., Any], case: str, prefix: str) -> None:
    release = render(case)
    if case == "everything":
        made = {each["metadata"]["name"]: each["spec"]["secretName"] for each in release.of("Certificate")}
        assert set(made.values()) == {f"{prefix}-{name}-tls" for name in IDENTITIES | {"audit-monitor", "test"}}
    for name, pod in release.pods():
        component = pod["metadata"]["labels"]["app.kubernetes.io/component"]
        tls = [volume["secret"] for volume in pod["spec"]["volumes"] if volume["name"] == "tls"]
        assert bool(tls) == (component in IDENTITIES | {"audit-monitor", "test"}), name
        for secret in tls:
            assert secret["secretName"] == f"{prefix}-{component}-tls"
            assert secret["defaultMode"] == 0o440
            assert secret.get("optional", False) is (component == "operator"), "models are placed before there is a certificate"


def test_cert_manager_is_asked_for_the_same_identities(render: Callable[..., Any], plans: dict[str, IssuePlan]) -> None:
    for each in render("everything").of("Certificate"):
        spec = each["spec"]
        assert spec["issuerRef"] == {"name": "mesh", "kind": "ClusterIssuer", "group": "cert-manager.io"}
        if spec["secretName"] in ("lionrock-test-tls", "lionrock-audit-monitor-tls"):
            continue
        planned = next(c for c in plans["mesh.yaml"].certificates if c.secret == spec["secretName"])
        assert tuple(spec["dnsNames"]) == planned.dns_names
        assert spec["uris"] == [planned.spiffe_id.replace("lionrock.local", "mesh.bank.example")]
        assert spec["duration"] == "12h0m0s"
        assert spec["renewBefore"] == "240m0s"
    assert not render("everything").of("CronJob")


def test_spire_identities_are_the_same_and_are_there_before_the_service(render: Callable[..., Any]) -> None:
    release = render("spire")
    entries = {each["spec"]["spiffeIDTemplate"]: each["spec"]["dnsNameTemplates"] for each in release.of("ClusterSPIFFEID")}
    assert entries == {f"spiffe://lionrock.local/service/{name}": [f"{name}.lionrock.internal"] for name in SERVICES}
    for name, pod in release.pods():
        first, second = pod["spec"]["initContainers"]
        assert "-daemon-mode=false" in first["args"], name
        assert "restartPolicy" not in first
        assert "-daemon-mode=true" in second["args"], name
        assert second["restartPolicy"] == "Always"
        assert any(volume.get("csi", {}).get("driver") == "csi.spiffe.io" for volume in pod["spec"]["volumes"])
    assert not release.of("Secret")[1:]


def test_the_operator_has_an_identity_where_there_is_one(render: Callable[..., Any]) -> None:
    entries = {each["spec"]["spiffeIDTemplate"] for each in render("spire", *WITH_OPERATOR).of("ClusterSPIFFEID")}
    assert entries == {f"spiffe://lionrock.local/service/{name}" for name in IDENTITIES}
    plan = yaml.safe_load(
        render("minimal", "operator.enabled=false").one("ConfigMap", "lionrock-certificates")["data"]["mesh.yaml"]
    )
    assert "lionrock-operator-tls" not in {each["secret"] for each in plan["certificates"]}


def test_the_monitor_has_an_identity_of_its_own_where_there_is_one(render: Callable[..., Any]) -> None:
    (monitor,) = [each for each in render("everything").of("Certificate") if each["metadata"]["name"] == "lionrock-audit-monitor"]
    assert monitor["spec"]["uris"] == ["spiffe://mesh.bank.example/service/audit-monitor"]
    assert monitor["spec"]["dnsNames"] == ["audit-monitor.lionrock.internal"]
    issued = render("everything", 'certificates.mode="builtin"').one("ConfigMap", "lionrock-certificates")["data"]["mesh.yaml"]
    assert "lionrock-audit-monitor-tls" in {each.secret for each in IssuePlan.model_validate(yaml.safe_load(issued)).certificates}
