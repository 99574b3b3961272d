"""Tenants: what is published of them, what is kept when a change is no good, and who has what two of them want."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from simulated_cluster import NAMESPACE, SimulatedCluster, settings

from lionrock.operator.actions import namespace_key
from lionrock.operator.resources import ObjectKey, PoolName
from lionrock.operator.tenant import parse_tenant, text_of
from lionrock.operator.tenant_admission import MAX_BYTES, TENANTS_NAME, TenantRules
from lionrock.tenancy.documents import parse_resource, parse_tenants
from tenant_files import document
from tenant_seeds import FULL

ISSUER = {
    "issuer": "https://id.bank.example",
    "audiences": ["lionrock"],
    "bindings": [{"value": "staff", "purposes": ["testing"]}],
}
DOMAIN = document("any")["spec"]["principals"][0]["spiffeId"].split("/")[2]


def a_cluster(**rules: Any) -> SimulatedCluster:
    return SimulatedCluster(settings(tenants=TenantRules(DOMAIN, **rules)))


def published(cluster: SimulatedCluster) -> dict[str, str]:
    found = cluster.objects.get(("ConfigMap", NAMESPACE, TENANTS_NAME), {})
    return dict(found.get("data") or {})


def told(cluster: SimulatedCluster, name: str) -> dict[str, tuple[str, str]]:
    status = cluster.objects["Tenant", NAMESPACE, name].get("status", {})
    return {each["type"]: (each["status"], each["reason"]) for each in status.get("conditions", ())}


def message(cluster: SimulatedCluster, name: str, kind: str) -> str:
    conditions = cluster.objects["Tenant", NAMESPACE, name]["status"]["conditions"]
    return next(str(each["message"]) for each in conditions if each["type"] == kind)


PURPOSES = ["testing", *FULL["spec"]["purposes"]]
GOOD = {"Accepted": ("True", "Accepted"), "Ready": ("True", "Published")}


def test_a_tenant_is_published_as_it_is_and_says_so() -> None:
    cluster = a_cluster()
    stated = document("retail", displayName="零售\u2028\x85 a", issuers=[ISSUER])
    cluster.add_tenant(stated)
    cluster.settle()
    ((key, text),) = published(cluster).items()
    assert key == "retail.tenant.json"
    assert parse_tenants(text.encode()) == (parse_resource(stated),)
    assert told(cluster, "retail") == GOOD
    status = cluster.objects["Tenant", NAMESPACE, "retail"]["status"]
    assert status["observedGeneration"] == 1
    assert status["published"]["digest"].startswith("sha256:")


def test_a_tenant_that_is_no_good_any_more_keeps_what_it_said_before() -> None:
    cluster = a_cluster()
    cluster.add_tenant(document("retail"))
    cluster.settle()
    before = published(cluster)
    cluster.add_tenant(document("retail", territory="nowhere"))
    cluster.settle()
    assert published(cluster) == before
    assert told(cluster, "retail") == {"Accepted": ("False", "SpecInvalid"), "Ready": ("True", "FormerPublished")}
    assert "spec.territory" in message(cluster, "retail", "Accepted")
    cluster.add_tenant(document("retail", maxStreams=7))
    cluster.settle()
    assert told(cluster, "retail") == GOOD
    assert published(cluster) != before


def test_a_tenant_that_never_was_good_is_not_published() -> None:
    cluster = a_cluster()
    cluster.add_tenant(document("retail", maxStreams=0))
    cluster.add_tenant(document("broker"))
    cluster.settle()
    assert list(published(cluster)) == ["broker.tenant.json"]
    assert told(cluster, "retail") == {"Accepted": ("False", "SpecInvalid"), "Ready": ("False", "NotPublished")}


@pytest.mark.parametrize(
    ("rules", "spec", "reason"),
    [
        ({}, {"principals": [{"spiffeId": "spiffe://other.example/tenant/retail/user/*", "purposes": ["x"]}]}, "SpecInvalid"),
        ({"named": frozenset({"retail"})}, {}, "Claimed"),
        ({"has_state": False}, {"quotas": {"dailyTokens": 5}}, "NoState"),
        ({"has_state": False}, {"review": {"purposes": ["testing"]}}, "NoState"),
        ({"keeps_consents": False}, {"purposeRules": FULL["spec"]["purposeRules"], "purposes": PURPOSES}, "NoState"),
    ],
)
def test_what_the_gateways_of_the_namespace_would_refuse_is_not_published(rules: Any, spec: Any, reason: str) -> None:
    cluster = a_cluster(**rules)
    cluster.add_tenant(document("retail", **spec))
    cluster.settle()
    assert published(cluster) == {}
    assert told(cluster, "retail")["Accepted"] == ("False", reason)


def test_a_weight_alone_needs_no_state() -> None:
    cluster = a_cluster(has_state=False)
    cluster.add_tenant(document("retail", quotas={"weight": 3}))
    cluster.settle()
    assert told(cluster, "retail") == GOOD


def test_a_deleted_tenant_is_taken_away_and_others_stay() -> None:
    cluster = a_cluster()
    for name in ("retail", "broker"):
        cluster.add_tenant(document(name))
    cluster.settle()
    cluster.delete("Tenant", NAMESPACE, "retail")
    cluster.settle()
    assert list(published(cluster)) == ["broker.tenant.json"]
    cluster.delete("Tenant", NAMESPACE, "broker")
    cluster.settle()
    assert published(cluster) == {}


def test_a_tenant_that_somebody_holds_up_in_its_deletion_is_refused_all_the_same() -> None:
    cluster = a_cluster()
    cluster.add_tenant(document("retail"))
    cluster.settle()
    cluster.objects["Tenant", NAMESPACE, "retail"]["metadata"]["finalizers"] = ["others.example/wait"]
    cluster.delete("Tenant", NAMESPACE, "retail")
    cluster.settle()
    assert published(cluster) == {}


def test_keys_that_others_write_count_and_stay() -> None:
    cluster = a_cluster()
    by_hand = {"partners.yaml": json.dumps(document("partners", issuers=[ISSUER])), "notes.txt": "x"}
    metadata = {"name": TENANTS_NAME, "namespace": NAMESPACE}
    cluster.put({"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": dict(by_hand)})
    cluster.add_tenant(document("retail", issuers=[ISSUER]))
    cluster.add_tenant(document("partners"))
    cluster.add_tenant(document("broker"))
    cluster.settle()
    assert published(cluster).keys() == {*by_hand, "broker.tenant.json"}
    assert "tokens of https://id.bank.example for lionrock: key partners.yaml" in message(cluster, "retail", "Accepted")
    assert "the name partners" in message(cluster, "partners", "Accepted")
    cluster.delete("Tenant", NAMESPACE, "broker")
    cluster.settle()
    assert published(cluster) == by_hand


def test_a_key_that_was_changed_or_forged_is_set_right() -> None:
    cluster = a_cluster()
    cluster.add_tenant(document("retail"))
    cluster.settle()
    before = published(cluster)
    found = copy.deepcopy(cluster.objects["ConfigMap", NAMESPACE, TENANTS_NAME])
    forged = text_of("ghost", document("ghost")["spec"])
    cluster.put({**found, "data": {"retail.tenant.json": "{}", "ghost.tenant.json": forged}})
    cluster.settle()
    assert published(cluster) == before
    cluster.delete("ConfigMap", NAMESPACE, TENANTS_NAME)
    cluster.settle()
    assert published(cluster) == before
    assert told(cluster, "retail") == GOOD


def test_of_two_that_want_the_same_the_one_that_has_it_keeps_it() -> None:
    cluster = a_cluster()
    cluster.add_tenant(document("older"))
    cluster.settle()
    cluster.pass_time(60)
    cluster.add_tenant(document("younger", issuers=[ISSUER]))
    cluster.settle()
    cluster.add_tenant(document("older", issuers=[ISSUER], maxStreams=3))
    cluster.settle()
    assert told(cluster, "younger") == GOOD
    assert told(cluster, "older") == {"Accepted": ("False", "Claimed"), "Ready": ("True", "FormerPublished")}
    assert "tenant younger has it" in message(cluster, "older", "Accepted")
    cluster.add_tenant(document("younger"))
    cluster.settle()
    assert told(cluster, "older") == told(cluster, "younger") == GOOD


def test_of_two_that_come_with_the_same_the_older_one_gets_it() -> None:
    cluster = a_cluster()
    cluster.add_tenant(document("zebra", issuers=[ISSUER]))
    cluster.pass_time(60)
    cluster.add_tenant(document("antelope", issuers=[ISSUER]))
    cluster.settle()
    assert told(cluster, "zebra") == GOOD
    assert told(cluster, "antelope")["Accepted"] == ("False", "Claimed")


def test_a_tenant_for_which_there_is_no_room_says_so_and_keeps_nobody_else_out() -> None:
    cluster = a_cluster()
    by_hand = {"notes.txt": "x" * (MAX_BYTES - 1500)}
    metadata = {"name": TENANTS_NAME, "namespace": NAMESPACE}
    cluster.put({"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": by_hand})
    cluster.add_tenant(document("first"))
    cluster.pass_time(1)
    large = {**ISSUER, "audiences": [f"{number}{'x' * 250}" for number in range(8)]}
    cluster.add_tenant(document("large", issuers=[large]))
    cluster.settle()
    assert told(cluster, "first") == GOOD
    assert told(cluster, "large") == {"Accepted": ("False", "TenantsFull"), "Ready": ("False", "NotPublished")}
    assert sum(len(key) + len(text) for key, text in published(cluster).items()) <= MAX_BYTES


# ---- chip pools --------------------------------------------------------------------------------------------------------------


def on_two_pools(**rules: Any) -> SimulatedCluster:
    cluster = a_cluster(**rules)
    for index in range(2):
        cluster.add_node(f"npu-{index}", kind=f"k{index}")
        cluster.add_pool(f"pool-{index}", chip="ascend-910b", nodeSelector={"kind": f"k{index}"})
    return cluster


def keeping(name: str, *pools: str, **spec: Any) -> dict[str, Any]:
    made: dict[str, Any] = document(name, tenancy={"type": "Dedicated", **({"pools": list(pools)} if pools else {})}, **spec)
    return made


def pool_of(cluster: SimulatedCluster, model: str) -> str | None:
    placement = cluster.model(model)["status"].get("placement") or {}
    return None if not placement.get("pods") else placement["pool"]


def test_a_tenants_pools_take_its_own_models_and_no_others() -> None:
    cluster = on_two_pools()
    cluster.add_tenant(keeping("bank", "pool-0"))
    cluster.settle()
    cluster.add_model("common")
    cluster.add_model("own", tenancy={"type": "Dedicated", "tenant": "bank"})
    cluster.add_model("strange", tenancy={"type": "Dedicated", "tenant": "broker"}, pools=[{"name": "pool-0"}])
    cluster.settle()
    assert (pool_of(cluster, "common"), pool_of(cluster, "own"), pool_of(cluster, "strange")) == ("pool-1", "pool-0", None)
    assert f"kept for tenant {NAMESPACE}/bank" in cluster.condition("strange", "Planned")["message"]
    assert told(cluster, "bank")["Degraded"] == ("False", "AsAsked")
    routed = json.loads(cluster.objects["ConfigMap", NAMESPACE, "lionrock-routes"]["data"]["routes.json"])["models"]
    assert [(each["pool"], routed["own"]["tenant"]) for each in routed["own"]["endpoints"]] == [("pool-0", "bank")]


def test_a_model_of_a_tenant_that_keeps_to_pools_stands_on_no_other() -> None:
    cluster = on_two_pools()
    cluster.add_tenant(keeping("bank", "pool-0"))
    cluster.add_model("own", tenancy={"type": "Dedicated", "tenant": "bank"}, pools=[{"name": "pool-1"}])
    cluster.settle()
    assert pool_of(cluster, "own") is None
    assert "tenant bank keeps to pool-0" in cluster.condition("own", "Planned")["message"]


def test_models_leave_a_pool_that_becomes_a_tenants_own_and_the_tenant_hears_of_those_that_cannot() -> None:
    cluster = on_two_pools()
    cluster.add_model("moves")
    cluster.add_model("stays", pools=[{"name": "pool-0"}])
    cluster.settle()
    assert pool_of(cluster, "moves") == pool_of(cluster, "stays") == "pool-0"
    cluster.add_tenant(keeping("bank", "pool-0"))
    cluster.settle()
    assert pool_of(cluster, "moves") == "pool-1"
    assert pool_of(cluster, "stays") == "pool-0"
    assert told(cluster, "bank")["Degraded"] == ("True", "PoolShared")
    assert f"{NAMESPACE}/stays" in message(cluster, "bank", "Degraded")
    cluster.delete("ModelDeployment", NAMESPACE, "stays")
    cluster.settle()
    assert told(cluster, "bank")["Degraded"] == ("True", "NoDedicatedModel")
    cluster.delete("Tenant", NAMESPACE, "bank")
    cluster.settle()
    assert cluster.world.keepers_of(PoolName("pool-0")) == []


def test_a_pool_is_one_tenants() -> None:
    cluster = on_two_pools()
    cluster.add_tenant(keeping("bank", "pool-0"))
    cluster.settle()
    cluster.add_tenant(keeping("broker", "pool-0"))
    cluster.settle()
    assert told(cluster, "broker")["Accepted"] == ("False", "Claimed")
    assert cluster.world.keepers_of(PoolName("pool-0")) == [ObjectKey(NAMESPACE, "bank")]


# ---- all at once -------------------------------------------------------------------------------------------------------------

NAMES = ("a", "b", "c")
SPECS: tuple[dict[str, Any], ...] = (
    {},
    {"issuers": [ISSUER]},
    {"issuers": [{**ISSUER, "audiences": ["other"]}]},
    {"territory": "nowhere"},
    {"tenancy": {"type": "Dedicated", "pools": ["pool-0"]}},
)
STEPS = st.lists(
    st.one_of(
        st.tuples(st.sampled_from(NAMES), st.sampled_from(SPECS)),
        st.tuples(st.sampled_from(NAMES), st.none()),
        st.tuples(st.just(""), st.just({})),
    ),
    max_size=12,
)


@given(STEPS)
@hypothesis_settings(deadline=None, max_examples=60)
def test_whatever_happens_what_is_published_fits_together_and_comes_to_rest(steps: list[tuple[str, dict[str, Any] | None]]) -> None:
    cluster = a_cluster()
    for name, spec in steps:
        if not name:
            cluster.settle()
        elif spec is None:
            cluster.delete("Tenant", NAMESPACE, name)
        else:
            cluster.pass_time(1)
            cluster.add_tenant(document(name, **spec))
    cluster.settle()
    tenants = [parse_tenants(text.encode())[0] for text in published(cluster).values()]
    claims = [
        *((issuer.issuer, audience) for each in tenants for issuer in each.spec.issuers for audience in issuer.audiences),
        *(pool for each in tenants for pool in each.spec.tenancy.pools or ()),
    ]
    assert len(set(claims)) == len(claims)
    there = {key[2] for key in cluster.objects if key[0] == "Tenant"}
    assert {tenant.name for tenant in tenants} <= there
    for name in there:
        (accepted, reason), (ready, _) = told(cluster, name)["Accepted"], told(cluster, name)["Ready"]
        assert (ready == "True") == (f"{name}.tenant.json" in published(cluster))
        assert (accepted == "True") == (reason == "Accepted")
    again = SimulatedCluster(replace(cluster.settings))
    for body in copy.deepcopy(list(cluster.objects.values())):
        again.put(body)
    assert all(again.decide(key).quiet for key in again.all_keys()), "a new operator decides as the one before"
    assert cluster.decide(namespace_key(NAMESPACE)).quiet


def test_a_text_is_the_same_for_the_same_tenant() -> None:
    body = {**FULL, "metadata": {"name": "retail", "resourceVersion": "5"}, "status": {"conditions": [{"bad": 1}]}}
    one, other = parse_tenant(body), parse_tenant({**FULL, "spec": dict(reversed(FULL["spec"].items()))})
    assert one.text == other.text
    assert one.resource == parse_resource(FULL)
