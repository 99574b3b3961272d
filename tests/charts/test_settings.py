"""Each settings file that the chart writes is loaded by the service's own class, as its container would."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lionrock.audit.settings import AuditSettings
from lionrock.chassis.settings import load_settings
from lionrock.gateway.settings import GatewaySettings
from lionrock.guardrails.settings import GuardrailsSettings
from lionrock.operator.settings import OperatorSettings
from lionrock.tokenization.settings import TokenizationSettings

SETTINGS: dict[str, Any] = {
    "gateway": GatewaySettings,
    "tokenization": TokenizationSettings,
    "guardrails": GuardrailsSettings,
    "audit": AuditSettings,
    "operator": OperatorSettings,
}
CASES = ("minimal", "everything", "spire")
COMPONENTS = [(case, name) for case in CASES for name in SETTINGS if (case, name) != ("spire", "operator")]


@pytest.fixture
def load(render: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Loads a component's settings as its container does."""

    def loaded(component: str, case: str = "minimal", *sets: str) -> Any:
        rendered = render(case, *sets)
        prefix = "mesh" if case == "spire" else "lionrock"
        kind = "StatefulSet" if component == "audit" else "Deployment"
        pod = rendered.one(kind, f"{prefix}-{component}")["spec"]["template"]["spec"]
        (container,) = pod["containers"]
        for variable in container.get("env", []):
            monkeypatch.setenv(variable["name"], variable.get("value", "lionrock-operator-0"))
        file = tmp_path / "settings.yaml"
        file.write_text(json.dumps(rendered.settings(component, prefix)))
        (option, path) = container["args"]
        mounts = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
        volumes = {volume["name"]: volume for volume in pod["volumes"]}
        assert volumes[mounts[str(Path(path).parent)]]["configMap"]["name"] == f"{prefix}-{component}"
        return load_settings(SETTINGS[component], [option, str(file)])

    return loaded


@pytest.mark.parametrize(("case", "component"), COMPONENTS)
def test_every_service_accepts_what_the_chart_tells_it(load: Callable[..., Any], case: str, component: str) -> None:
    assert load(component, case).telemetry is not None


@pytest.mark.parametrize(("case", "component"), COMPONENTS)
def test_every_path_in_settings_is_mounted(render: Callable[..., Any], case: str, component: str) -> None:
    rendered = render(case)
    prefix = "mesh" if case == "spire" else "lionrock"
    kind = "StatefulSet" if component == "audit" else "Deployment"
    workload = rendered.one(kind, f"{prefix}-{component}")["spec"]
    pod = workload["template"]["spec"]
    mounted = [mount["mountPath"] for mount in pod["containers"][0]["volumeMounts"]]

    def paths(node: Any) -> list[str]:
        if isinstance(node, dict):
            return [path for below in node.values() for path in paths(below)]
        if isinstance(node, list):
            return [path for below in node for path in paths(below)]
        return [node] if isinstance(node, str) and node.startswith("/") else []

    for path in paths(rendered.settings(component, prefix)):
        assert any(path == root or path.startswith(f"{root}/") for root in mounted), path
    volumes = {volume["name"] for volume in pod["volumes"]} | {
        c["metadata"]["name"] for c in workload.get("volumeClaimTemplates", [])
    }
    assert {mount["name"] for mount in pod["containers"][0]["volumeMounts"]} <= volumes


def test_gateways_find_their_peers_where_these_listen(load: Callable[..., Any], render: Callable[..., Any]) -> None:
    gateway, rendered = load("gateway"), render()
    for peer in ("tokenization", "guardrails", "audit"):
        target = getattr(gateway, peer).target
        service = rendered.one("Service", f"lionrock-{peer}")
        assert target == f"dns:///lionrock-{peer}.bank.svc:{service['spec']['ports'][0]['port']}"
        assert load(peer).server.listen == f"[::]:{service['spec']['ports'][0]['port']}"
        assert getattr(gateway, peer).service == peer


def test_the_operator_asks_every_gateway_for_its_figures(load: Callable[..., Any], render: Callable[..., Any]) -> None:
    operator, rendered = load("operator"), render()
    service = rendered.one("Service", "lionrock-gateway-pods")["spec"]
    assert service["clusterIP"] == "None", "one address would stand for one gateway"
    assert service["selector"] == rendered.one("Deployment", "lionrock-gateway")["spec"]["selector"]["matchLabels"]
    assert operator.gateways.target == f"lionrock-gateway-pods.bank.svc:{service['ports'][0]['port']}"
    assert load("gateway").server.listen == f"[::]:{service['ports'][0]['port']}"
    assert operator.decisions().figures_of == "bank"
    assert load("operator", "minimal", "operator.settings.gateways.interval_s=30").gateways.interval_s == 30
    without = render("minimal", "operator.enabled=false").of("Service")
    assert "lionrock-gateway-pods" not in {each["metadata"]["name"] for each in without}


def test_the_audit_service_has_a_file_or_a_database(load: Callable[..., Any]) -> None:
    assert load("audit").store_dsn_file is None
    on_database = load("audit", "postgresql")
    assert (on_database.store_file, str(on_database.store_dsn_file)) == (None, "/etc/lionrock/postgresql/uri")


def test_the_audit_service_asks_the_witnesses_of_the_values(load: Callable[..., Any]) -> None:
    assert load("audit").witnesses == ()
    settings = load("audit", "postgresql")
    assert [each.url for each in settings.witnesses] == [
        "https://witness.regulator.example",
        "https://witness.auditor.example:8443/lionrock",
    ]
    assert {str(each.ca_file) for each in settings.witnesses} == {"/etc/lionrock/witnesses/ca.crt"}
    assert (settings.witness_policy.threshold, settings.witness_policy.require_within_s) == (1, 3600)


def test_a_tenant_of_the_values_has_a_log_and_so_has_one_that_left(load: Callable[..., Any]) -> None:
    assert load("audit", "everything").tenants == ("markets", "private", "probe", "retail")
    directory = [tenant.name for tenant in load("gateway", "everything").tenants]
    assert directory == ["retail", "markets", "probe"]


def test_the_test_has_a_tenant_only_while_it_is_enabled(load: Callable[..., Any]) -> None:
    assert [tenant.name for tenant in load("gateway").tenants] == ["retail", "helm-test"]
    assert [tenant.name for tenant in load("gateway", "minimal", "test.enabled=false").tenants] == ["retail"]


def test_settings_of_ones_own_go_over_the_charts(load: Callable[..., Any]) -> None:
    gateway = load("gateway", "everything")
    assert gateway.limits.max_streams == 1000
    assert gateway.server.max_concurrent_rpcs == 2048
    assert gateway.server.max_message_bytes == 16777216
    assert gateway.server.drain_grace_s == 900


def test_models_are_found_below_the_volume(load: Callable[..., Any]) -> None:
    assert load("tokenization", "everything").models == {
        "smollm2": Path("/models/smollm2-135m-instruct"),
        "deepseek-v3": Path("/models/deepseek/v3"),
    }


def test_the_operator_knows_the_territories_the_authority_and_who_may_call_models(load: Callable[..., Any]) -> None:
    operator = load("operator")
    assert operator.territories["HK"].values == {"hk-1", "hk-2"}
    assert operator.certificates.authority_secret == "lionrock-ca"
    assert operator.namespaces == {"bank"}
    assert operator.openings.gateways.peers[0]["podSelector"]["matchLabels"]["app.kubernetes.io/component"] == "gateway"
    assert operator.openings.api_server.peers == ({"ipBlock": {"cidr": "10.96.0.1/32"}},)
    outside = load("operator", "everything")
    assert outside.certificates.signer_name == "clusterissuers.cert-manager.io/mesh"
    assert outside.engine_images == {"ascend-910b": "registry.bank.example/lionrock/inference-ascend:v1.2.3"}
    assert outside.gang.by == "volcano"


def test_services_outlive_the_longest_answer(load: Callable[..., Any]) -> None:
    for component in ("gateway", "tokenization", "guardrails", "audit"):
        server = load(component).server
        assert server.drain_grace_s >= server.max_deadline_s
        assert server.leave_on_drain is (component != "audit")


def test_payloads_are_kept_where_values_say_so(load: Callable[..., Any]) -> None:
    assert load("audit").vault is None
    vault = load("audit", "postgresql").vault
    assert (str(vault.key_store_file), vault.tenants) == ("/var/lib/lionrock/keys/vault/keys.sqlite", ("retail",))
    assert (vault.transit.address, vault.local_key_dir) == ("https://vault.example:8200", None)
    assert (str(vault.transit.token_file), str(vault.transit.ca_file)) == (
        "/etc/lionrock/transit/token",
        "/etc/lionrock/transit-authorities/ca.crt",
    )
    assert vault.retention.retention().class_of("customer_service") == "advice"
    assert str(load("audit", "minimal", "audit.vault.enabled=true").vault.local_key_dir) == "/var/lib/lionrock/keys/tenant-keys"
    mounted = load("audit", "minimal", "audit.vault.enabled=true", 'audit.vault.tenantKeys.existingSecret="tenant-keys"')
    assert str(mounted.vault.local_key_dir) == "/etc/lionrock/tenant-keys"


def test_the_http_api_has_one_port_from_the_service_to_the_gateway_or_none(render: Callable[..., Any]) -> None:
    off, on = render("minimal"), render("minimal", "gateway.http.enabled=true")
    assert "http" not in off.settings("gateway")
    port = int(on.settings("gateway")["http"]["listen"].rpartition(":")[2])
    ports = {
        "pod": on.one("Deployment", "lionrock-gateway")["spec"]["template"]["spec"]["containers"][0]["ports"],
        "service": on.one("Service", "lionrock-gateway")["spec"]["ports"],
    }
    assert {"name": "http", "containerPort": port} in ports["pod"]
    assert {"name": "http", "port": 8443, "targetPort": "http"} in ports["service"]
    clients = on.one("NetworkPolicy", "lionrock-gateway")["spec"]["ingress"][0]
    assert port in [each["port"] for each in clients["ports"]]
