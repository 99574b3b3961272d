"""Network policies: nothing goes in or out but what is named, and what is named can pass on both sides."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest


def selects(selector: dict[str, Any], labels: dict[str, str]) -> bool:
    assert set(selector) <= {"matchLabels"}
    return selector.get("matchLabels", {}).items() <= labels.items()


def passes(release: Any, direction: str, own: dict[str, str], other: dict[str, str] | None, port: int) -> bool:
    """Whether the policies of a pod let it speak with another pod of the namespace; None is anybody on the internet."""
    side = {"Ingress": "from", "Egress": "to"}[direction]
    policies = [each["spec"] for each in release.of("NetworkPolicy") if selects(each["spec"]["podSelector"], own)]
    if not any(direction in policy["policyTypes"] for policy in policies):
        return True
    for policy in policies:
        for rule in policy.get(direction.lower()) or []:
            if port not in [each["port"] for each in rule["ports"]]:
                continue
            for peer in rule[side]:
                if "ipBlock" in peer or other is None:
                    continue
                foreign = "namespaceSelector" in peer and peer["namespaceSelector"] != {}
                if not foreign and selects(peer.get("podSelector", {}), other):
                    return True
    return False


def labels(release: Any) -> dict[str, dict[str, str]]:
    return {pod["metadata"]["labels"]["app.kubernetes.io/component"]: pod["metadata"]["labels"] for _, pod in release.pods()}


HEAD = {"app.kubernetes.io/part-of": "lionrock", "lionrock.io/role": "head"}
TOKENIZATION = {"app.kubernetes.io/part-of": "lionrock", "lionrock.io/role": "tokenization"}
CALLS = {
    ("gateway", "tokenization", 50052),
    ("gateway", "guardrails", 50054),
    ("gateway", "audit", 50055),
    ("gateway", "head", 50053),
    ("gateway", "models-tokenization", 50052),
    ("operator", "gateway", 50051),
    ("operator", "head", 50054),
    ("test", "gateway", 50051),
}
MORE_CALLS = {"minimal": set(), "everything": {("audit-monitor", "audit", 7470)}}


@pytest.mark.parametrize("case", ["minimal", "everything"])
def test_exactly_the_calls_of_the_mesh_pass(render: Callable[..., Any], case: str) -> None:
    release = render(case)
    pods = {**labels(release), "head": HEAD, "models-tokenization": TOKENIZATION}
    by_operator = ("head", "models-tokenization")
    found = set()
    for caller, own in pods.items():
        for called, other in pods.items():
            for port in (50051, 50052, 50053, 50054, 50055, 7470, 8081, 8080, 8265):
                if caller in by_operator or not passes(release, "Egress", own, other, port):
                    continue
                if called in by_operator or passes(release, "Ingress", other, own, port):
                    found.add((caller, called, port))
    assert found == CALLS | MORE_CALLS[case]


def test_the_namespace_denies_both_ways_by_default(render: Callable[..., Any]) -> None:
    policy = render().one("NetworkPolicy", "lionrock-deny-all")["spec"]
    assert policy == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}


def test_every_pod_has_a_policy_of_its_own(render: Callable[..., Any]) -> None:
    release = render()
    own = {
        each["spec"]["podSelector"]["matchLabels"]["app.kubernetes.io/component"]
        for each in release.of("NetworkPolicy")
        if each["spec"]["podSelector"]
    }
    assert own == set(labels(release))


def test_no_opening_is_as_wide_as_the_world(release: Any) -> None:
    for each in release.of("NetworkPolicy"):
        for rule in [*(each["spec"].get("ingress") or []), *(each["spec"].get("egress") or [])]:
            assert rule.get("from", rule.get("to")), "an empty list of peers means everybody"
            assert rule["ports"], "an empty list of ports means all"
            for peer in rule.get("to", []):
                assert peer.get("ipBlock", {}).get("cidr") not in ("0.0.0.0/0", "::/0")


def test_services_without_a_collector_reach_nobody(render: Callable[..., Any]) -> None:
    for name in ("tokenization", "guardrails", "audit"):
        assert "egress" not in render().one("NetworkPolicy", f"lionrock-{name}")["spec"]
        (names, collector) = render("everything").one("NetworkPolicy", f"lionrock-{name}")["spec"]["egress"]
        assert {each["port"] for each in names["ports"]} == {53}
        assert collector["ports"] == [{"protocol": "TCP", "port": 4318}]


def test_clients_are_whom_the_values_name(render: Callable[..., Any]) -> None:
    first = render("everything").one("NetworkPolicy", "lionrock-gateway")["spec"]["ingress"][0]
    assert first["from"] == [{"ipBlock": {"cidr": "10.0.0.0/8"}}]


def test_the_operators_metrics_are_open_only_to_who_reads_them(render: Callable[..., Any]) -> None:
    assert "ingress" not in render().one("NetworkPolicy", "lionrock-operator")["spec"]
    (scrape,) = render("everything").one("NetworkPolicy", "lionrock-operator")["spec"]["ingress"]
    assert scrape["from"] == [{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "monitoring"}}}]


def test_the_audit_service_alone_reaches_its_database(render: Callable[..., Any]) -> None:
    release = render("postgresql")
    database = {"cnpg.io/cluster": "audit"}
    reach = {name for name, own in labels(release).items() if passes(release, "Egress", own, database, 6432)}
    assert reach == {"audit"}
    assert not passes(release, "Egress", labels(release)["audit"], database, 5432)


def test_gateways_alone_reach_their_database(render: Callable[..., Any]) -> None:
    database = {"to": [{"podSelector": {"matchLabels": {"cnpg.io/cluster": "gateways"}}}]}
    database["ports"] = [{"protocol": "TCP", "port": 6432}]
    policies = render("everything").of("NetworkPolicy")
    assert {each["metadata"]["name"] for each in policies if database in (each["spec"].get("egress") or [])} == {"lionrock-gateway"}


def test_gateways_alone_reach_the_issuers_of_tokens_and_none_that_is_not_named(render: Callable[..., Any]) -> None:
    issuers: dict[str, Any] = {"to": [{"ipBlock": {"cidr": "10.6.0.0/16"}}]}
    issuers["ports"] = [{"protocol": "TCP", "port": 443}, {"protocol": "TCP", "port": 8443}]
    policies = render("everything").of("NetworkPolicy")
    assert {each["metadata"]["name"] for each in policies if issuers in (each["spec"].get("egress") or [])} == {"lionrock-gateway"}
    named = render("minimal", 'networkPolicy.tokenIssuers.peers=[{"ipBlock":{"cidr":"10.6.0.0/16"}}]')
    egress = named.one("NetworkPolicy", "lionrock-gateway")["spec"]["egress"]
    assert {**issuers, "ports": issuers["ports"][:1]} in egress
    assert len(egress) == 1 + len(render().one("NetworkPolicy", "lionrock-gateway")["spec"]["egress"])


def test_gateways_alone_reach_the_receivers_of_notices(render: Callable[..., Any]) -> None:
    receivers = {"to": [{"ipBlock": {"cidr": "10.7.0.0/16"}}], "ports": [{"protocol": "TCP", "port": 8443}]}
    policies = render("everything").of("NetworkPolicy")
    assert {each["metadata"]["name"] for each in policies if receivers in (each["spec"].get("egress") or [])} == {
        "lionrock-gateway"
    }


def test_the_audit_service_alone_reaches_its_witnesses(render: Callable[..., Any]) -> None:
    rules = {
        name: render("postgresql").one("NetworkPolicy", f"lionrock-{name}")["spec"].get("egress", [])
        for name in ("tokenization", "guardrails", "audit")
    }
    outside = [{"ipBlock": {"cidr": "203.0.113.0/24"}}]
    reach = {name: rule["ports"] for name, each in rules.items() for rule in each if rule["to"] == outside}
    assert reach == {"audit": [{"protocol": "TCP", "port": 443}, {"protocol": "TCP", "port": 8443}]}


def test_the_audit_service_alone_reaches_the_engine_with_tenants_keys(render: Callable[..., Any]) -> None:
    engine = {"to": [{"ipBlock": {"cidr": "203.0.113.8/32"}}], "ports": [{"protocol": "TCP", "port": 8200}]}
    release = render("postgresql")
    reach = {
        name
        for name in ("tokenization", "guardrails", "audit")
        if engine in release.one("NetworkPolicy", f"lionrock-{name}")["spec"].get("egress", [])
    }
    assert reach == {"audit"}
    with pytest.raises(Exception, match=r"audit\.vault\.transit\.peers"):
        render("postgresql", "audit.vault.transit.peers=[]")


def test_witnesses_that_nobody_may_reach_are_refused(render: Callable[..., Any]) -> None:
    with pytest.raises(Exception, match=r"audit\.witnesses\.peers"):
        render("minimal", 'audit.witnesses.servers=[{"url":"https://w.example","verifier_key":"k"}]')


def test_a_database_that_nobody_may_reach_is_refused(render: Callable[..., Any]) -> None:
    with pytest.raises(Exception, match=r"audit\.postgresql\.peers"):
        render("minimal", 'audit.postgresql.existingSecret="audit-database"')


def test_tiles_are_read_by_the_monitor_and_by_whom_the_values_name(render: Callable[..., Any]) -> None:
    readers = render("everything").one("NetworkPolicy", "lionrock-audit")["spec"]["ingress"][1]
    monitor = {"app.kubernetes.io/name": "lionrock", "app.kubernetes.io/instance": "lionrock"}
    monitor |= {"app.kubernetes.io/component": "audit-monitor"}
    assert readers["from"] == [{"ipBlock": {"cidr": "10.8.0.0/16"}}, {"podSelector": {"matchLabels": monitor}}]
    assert readers["ports"] == [{"protocol": "TCP", "port": 7470}]
    assert len(render().one("NetworkPolicy", "lionrock-audit")["spec"]["ingress"]) == 1
    with pytest.raises(Exception, match=r"audit\.tiles\.http\.peers"):
        render("minimal", 'audit.tiles={"sink":"volume","http":{"enabled":true}}')


def test_the_audit_service_alone_reaches_the_bucket_with_its_tiles(render: Callable[..., Any]) -> None:
    store = {"to": [{"ipBlock": {"cidr": "10.7.0.0/16"}}], "ports": [{"protocol": "TCP", "port": 9000}]}
    release = render("postgresql")
    reach = {each["metadata"]["name"] for each in release.of("NetworkPolicy") if store in (each["spec"].get("egress") or [])}
    assert reach == {"lionrock-audit"}
    with pytest.raises(Exception, match=r"audit\.tiles\.bucket\.peers"):
        render("postgresql", "audit.tiles.bucket.peers=[]")
