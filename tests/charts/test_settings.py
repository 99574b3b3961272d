"""Each settings file that the chart writes is loaded by the service's own class, as its container would."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lionrock.audit.monitor_settings import MonitorSettings, read_settings
from lionrock.audit.settings import AuditSettings
from lionrock.audit.tile_server import ReaderPolicy
from lionrock.chassis.identity import SpiffeId
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
CASES = ("minimal", "everything", "postgresql", "spire")
COMPONENTS = [(case, name) for case in CASES for name in SETTINGS if (case, name) != ("spire", "operator")]
PLATFORM_KEY = "bank.example/audit+f4abeaae+AYqI4910CfGV/VLbLTy6XXLKZwm/HZQSG/N0iAG0D29c"


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


@pytest.fixture
def load_monitor(render: Callable[..., Any], tmp_path: Path) -> Callable[..., MonitorSettings]:
    """Loads the monitor's settings as its container does."""

    def loaded(*sets: str) -> MonitorSettings:
        rendered = render("everything", *sets)
        pod = rendered.one("Deployment", "lionrock-audit-monitor")["spec"]["template"]["spec"]
        (container,) = pod["containers"]
        assert container["command"] == ["python3", "-m", "lionrock.audit.monitoring"]
        assert container["args"] == ["--config", "/etc/lionrock/settings/settings.yaml"]
        assert {"name": "settings", "configMap": {"name": "lionrock-audit-monitor"}} in pod["volumes"]
        file = tmp_path / "settings.yaml"
        file.write_text(json.dumps(rendered.settings("audit-monitor")))
        return read_settings(file)

    return loaded


@pytest.mark.parametrize(("case", "component"), [*COMPONENTS, ("everything", "audit-monitor")])
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


def test_tiles_go_where_the_values_say(load: Callable[..., Any]) -> None:
    assert not load("audit").tiles.wanted
    assert str(load("audit", "minimal", 'audit.tiles.sink="store"').tiles.directory) == "/var/lib/lionrock/store/tiles"
    own = load("audit", "everything").tiles
    assert (str(own.directory), own.interval_s) == ("/var/lib/lionrock/tiles/tiles", 30)
    bucket = load("audit", "postgresql").tiles.bucket
    assert (bucket.endpoint, bucket.bucket) == ("https://objects.bank.example:9000", "audit-tiles")
    assert str(bucket.secret_access_key_file) == "/etc/lionrock/tiles-bucket/secret-access-key"
    assert str(bucket.ca_file) == "/etc/lionrock/tiles-bucket-authorities/ca.crt"
    assert load("audit", "postgresql").tiles.http is None


def test_tiles_are_served_to_certificates_at_the_port_of_their_service(
    load: Callable[..., Any], render: Callable[..., Any]
) -> None:
    http = load("audit", "everything").tiles.http
    assert (http.client_certificates, http.listen) == ("required", "[::]:7470")
    (port,) = render("everything").one("Service", "lionrock-audit-tiles")["spec"]["ports"]
    assert port == {"name": "tiles", "port": 8443, "targetPort": "tiles"}
    (container,) = render("everything").one("StatefulSet", "lionrock-audit")["spec"]["template"]["spec"]["containers"]
    assert {"name": "tiles", "containerPort": 7470} in container["ports"]


def test_the_monitor_may_read_the_logs_whose_keys_it_has_and_no_others(load: Callable[..., Any]) -> None:
    audit = load("audit", "everything")
    policy = ReaderPolicy(audit.platform, audit.server.trust_domain, audit.tiles.http_readers)
    monitor = SpiffeId.parse("spiffe://mesh.bank.example/service/audit-monitor")
    read = {tenant for tenant in audit.tenants if policy.may_read(monitor, f"bank.example/audit/{tenant}")}
    assert read == {"retail"}
    assert policy.may_read(monitor, "bank.example/audit")
    assert policy.may_read(
        SpiffeId.parse("spiffe://mesh.bank.example/tenant/regulator/workload/crawler"), "bank.example/audit/retail"
    )
    assert load("audit", "everything", "audit.monitor.enabled=false").tiles.http_readers.keys() == {"retail"}


def test_the_monitor_follows_the_logs_of_its_keys_over_https(load_monitor: Callable[..., MonitorSettings]) -> None:
    settings = load_monitor()
    platform, retail = settings.logs
    assert (platform.origin, platform.source) == (
        "bank.example/audit",
        "https://lionrock-audit-tiles.bank.svc:8443/bank.example/audit",
    )
    assert (retail.origin, len(retail.keys), retail.stall_after_s) == ("bank.example/audit/retail", 2, None)
    assert {str(log.tls.cert_file) for log in settings.logs if log.tls} == {"/etc/lionrock/tls/tls.crt"}
    assert {log.server_name for log in settings.logs} == {"audit.lionrock.internal"}
    assert (platform.stall_after_s, settings.interval_s, settings.probe_listen) == (7200, 60, "[::]:8081")
    assert (settings.telemetry.otlp_endpoint, platform.witnesses) == ("https://collector.telemetry.svc:4318", None)


def test_the_monitor_wants_the_cosignatures_that_the_service_asks_for(load_monitor: Callable[..., MonitorSettings]) -> None:
    key = "witness.regulator.example+73290c3d+BP0XJDhaoMdbZPt4zWAvodmR/ev3axPFjtcC6sg16fYY"
    servers = f'audit.witnesses.servers=[{{"url":"https://w.example","verifier_key":"{key}"}}]'
    platform, retail = load_monitor(servers, 'audit.witnesses.peers=[{"ipBlock":{"cidr":"203.0.113.0/24"}}]').logs
    assert platform.witnesses is not None
    assert (platform.witnesses.keys, platform.witnesses.needed) == ((key,), 1)
    assert retail.witnesses is None


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ('audit.tiles.sink=""', "audit.tiles.http: tiles of what"),
        ("audit.tiles.http.enabled=false", "audit.tiles.http.enabled"),
        ("audit.monitor.keys=[]", "lionrock audit keys"),
        (f'audit.monitor.keys=["{PLATFORM_KEY.replace("bank", "other")}"]', "is no log of this mesh"),
        ('audit.tiles.http.readers={"unheard":[]}', "no tenant with a log"),
        ('audit.tiles.sink="bucket"', "audit.tiles.bucket.credentialsSecret"),
    ],
)
def test_tiles_and_a_monitor_that_do_not_fit_together_are_refused(render: Callable[..., Any], wrong: str, words: str) -> None:
    with pytest.raises(Exception, match="execution error") as refused:
        render("everything", wrong)
    assert words in str(refused.value)


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


def test_callers_without_a_certificate_have_one_port_from_the_service_to_the_gateway_or_none(
    load: Callable[..., Any], render: Callable[..., Any]
) -> None:
    assert load("gateway").server.token_listen is None
    assert load("gateway", "everything").server.token_listen == "[::]:50056"
    off, on = render("minimal"), render("everything")
    for release, said in ((off, False), (on, True)):
        (container,) = release.one("Deployment", "lionrock-gateway")["spec"]["template"]["spec"]["containers"]
        service = release.one("Service", "lionrock-gateway")["spec"]["ports"]
        clients = release.one("NetworkPolicy", "lionrock-gateway")["spec"]["ingress"][0]
        assert ({"name": "grpc-tokens", "containerPort": 50056} in container["ports"]) is said
        assert ({"name": "grpc-tokens", "port": 9443, "targetPort": "grpc-tokens"} in service) is said
        assert (50056 in [each["port"] for each in clients["ports"]]) is said


SQLITE = ("gateway.state.sqlite.enabled=true", "gateway.replicas=1")
QUOTAS = '{"requests_per_minute":5}'


def test_gateways_share_a_database_or_one_has_a_file(load: Callable[..., Any], render: Callable[..., Any]) -> None:
    assert load("gateway").state is None
    shared = load("gateway", "everything").state
    assert (shared.sqlite_file, str(shared.postgres_dsn_file)) == (None, "/etc/lionrock/state/uri")
    alone = load("gateway", "minimal", *SQLITE).state
    assert (str(alone.sqlite_file), alone.postgres_dsn_file) == ("/var/lib/lionrock/state/gateway.sqlite", None)
    release = render("minimal", *SQLITE, 'gateway.state.sqlite.className="fast"', 'gateway.state.sqlite.size="3Gi"')
    claim = release.one("PersistentVolumeClaim", "lionrock-gateway-state")
    assert claim["spec"]["accessModes"] == ["ReadWriteOnce"]
    assert (claim["spec"]["storageClassName"], claim["spec"]["resources"]) == ("fast", {"requests": {"storage": "3Gi"}})
    assert claim["metadata"]["annotations"] == {"helm.sh/resource-policy": "keep"}
    deployment = release.one("Deployment", "lionrock-gateway")["spec"]
    assert {"name": "state", "persistentVolumeClaim": {"claimName": "lionrock-gateway-state"}} in deployment["template"]["spec"][
        "volumes"
    ]
    assert deployment["strategy"]["rollingUpdate"] == {"maxSurge": 0, "maxUnavailable": 1}, "two pods cannot have the volume"
    without = render("minimal").one("Deployment", "lionrock-gateway")["spec"]
    assert without["strategy"]["rollingUpdate"] == {"maxSurge": 1, "maxUnavailable": 0}
    assert "lionrock-gateway-state" not in {each["metadata"]["name"] for each in render("everything").objects}


def test_secrets_of_the_gateway_are_mounted_for_it_alone_to_read(render: Callable[..., Any]) -> None:
    pod = render("everything").one("Deployment", "lionrock-gateway")["spec"]["template"]["spec"]
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    assert volumes["state"]["secret"] == {"secretName": "gateway-database", "defaultMode": 0o440}
    assert volumes["api-keys"]["secret"] == {"secretName": "api-keys", "defaultMode": 0o440}
    assert volumes["consents"]["secret"] == {"secretName": "consents", "defaultMode": 0o440}
    mounts = {mount["name"]: mount for mount in pod["containers"][0]["volumeMounts"]}
    assert all(mounts[name]["readOnly"] for name in ("state", "api-keys", "consents", "policies"))


def test_api_keys_and_access_policies_come_from_what_the_values_name(load: Callable[..., Any], render: Callable[..., Any]) -> None:
    assert (load("gateway").api_keys, load("gateway").policy_dir) == (None, None)
    gateway = load("gateway", "everything")
    assert (str(gateway.api_keys.secret_file), gateway.api_keys.max_lifetime_days) == ("/etc/lionrock/api-keys/hmac", 30)
    assert str(gateway.consents.secret_file) == "/etc/lionrock/consents/hmac"
    assert str(gateway.policy_dir) == "/etc/lionrock/policies"
    pod = render("everything").one("Deployment", "lionrock-gateway")["spec"]["template"]["spec"]
    assert {"name": "policies", "configMap": {"name": "access-policies"}} in pod["volumes"]


def test_a_gateway_answers_the_tenants_of_its_territory(load: Callable[..., Any], render: Callable[..., Any]) -> None:
    assert (load("gateway").served_in, load("gateway", "spire").served_in) == ("HK", "SG")
    assert load("gateway", "minimal", 'gateway.servedIn=""').served_in is None
    abroad = 'tenants=[{"name":"far","territory":"SG","principals":[{"spiffe_id":"spiffe://lionrock.local/tenant/far/user/*","purposes":["a"]}]}]'
    with pytest.raises(Exception, match="far is of territory SG"):
        render("minimal", abroad)
    assert load("gateway", "minimal", abroad, 'gateway.servedIn="SG"').served_in == "SG"
    assert load("gateway", "minimal", abroad, 'gateway.servedIn=""').tenants[0].territory == "SG"


def test_a_tenant_with_a_review_queue_needs_the_state_and_the_vault(load: Callable[..., Any], render: Callable[..., Any]) -> None:
    principal = {"spiffe_id": "spiffe://lionrock.local/tenant/retail/user/*", "purposes": ["service"]}
    tenant = {"name": "retail", "review": {"purposes": ["service"]}, "principals": [principal]}
    stated, vault = f"tenants={json.dumps([tenant])}", "audit.vault.enabled=true"
    with pytest.raises(Exception, match="where are the answers of tenant retail kept"):
        render("minimal", stated, *SQLITE)
    with pytest.raises(Exception, match="where is the review queue of tenant retail kept"):
        render("minimal", stated, vault)
    assert load("gateway", "minimal", stated, vault, *SQLITE).tenants[0].review is not None


def test_a_tenant_that_asks_for_consent_needs_the_secret_of_consents(load: Callable[..., Any], render: Callable[..., Any]) -> None:
    principal = {"spiffe_id": "spiffe://lionrock.local/tenant/retail/user/*", "purposes": ["service"]}
    notice = {"version": 1, "texts": [{"language": "zh-Hant", "text": "我們這樣使用資料。"}]}
    rule = {"purpose": "service", "requires_consent": True, "notice": notice}
    tenant = {"name": "retail", "purposes": ["service"], "purpose_rules": [rule], "principals": [principal]}
    stated, secret = f"tenants={json.dumps([tenant])}", 'gateway.consents.existingSecret="consents"'
    with pytest.raises(Exception, match="where are consents to service of tenant retail kept"):
        render("minimal", stated, *SQLITE)
    with pytest.raises(Exception, match="where are consents kept"):
        render("minimal", stated, secret)
    loaded = load("gateway", "minimal", stated, secret, *SQLITE)
    assert (loaded.tenants[0].purpose_rules[0].requires_consent, loaded.consents is not None) == (True, True)


@pytest.mark.parametrize("whose", ["quotas", "principals.quotas", "issuers.bindings.quotas"])
def test_quotas_that_no_gateway_could_count_are_refused(load: Callable[..., Any], render: Callable[..., Any], whose: str) -> None:
    quotas = json.loads(QUOTAS)
    principal = {"spiffe_id": "spiffe://lionrock.local/tenant/retail/user/*", "purposes": ["service"]}
    tenant: dict[str, Any] = {"name": "retail", "quotas": {"weight": 3, "daily_tokens": None}, "principals": [principal]}
    assert load("gateway", "minimal", f"tenants={json.dumps([tenant])}").tenants[0].quotas.weight == 3
    if whose == "quotas":
        tenant["quotas"] = quotas
    elif whose == "principals.quotas":
        principal["quotas"] = quotas  # type: ignore[assignment]
    else:
        binding = {"value": "teller", "purposes": ["service"], "quotas": quotas}
        tenant["issuers"] = [{"issuer": "https://login.example", "audiences": ["a"], "roles_claim": "roles", "bindings": [binding]}]
    stated = f"tenants={json.dumps([tenant])}"
    with pytest.raises(Exception, match="where are the quotas of tenant retail counted"):
        render("minimal", stated)
    assert load("gateway", "minimal", stated, *SQLITE).state is not None
    assert load("gateway", "minimal", stated, 'gateway.settings.state={"sqlite_file":"/tmp/state"}').state is not None


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (("gateway.state.sqlite.enabled=true",), "gateway.replicas=1"),
        ((*SQLITE, "gateway.autoscaling.enabled=true"), "gateway.replicas=1"),
        ((*SQLITE, 'gateway.state.postgresql={"existingSecret":"s","peers":[{"podSelector":{}}]}'), "not in both"),
        (('gateway.apiKeys.existingSecret="keys"',), "gateway.apiKeys: where are API keys kept"),
        (('gateway.consents.existingSecret="keys"',), "gateway.consents: where are consents kept"),
        (('gateway.state.postgresql.existingSecret="s"',), "gateway.state.postgresql.peers"),
    ],
)
def test_what_gateways_cannot_share_is_refused(render: Callable[..., Any], wrong: tuple[str, ...], words: str) -> None:
    with pytest.raises(Exception, match="execution error") as refused:
        render("minimal", *wrong)
    assert words in str(refused.value)
