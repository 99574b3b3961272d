"""The Tenant's definition on the real API server accepts and refuses what the gateways' own code accepts and refuses."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from test_resource_definitions import DEFINITIONS, fields_of
from testcluster.commands import Command
from testcluster.objects import Manifest, Objects, Refused
from testcluster.waiting import wait_for

from lionrock.tenancy.documents import TenantsInvalid, parse_resource
from tenant_files import document
from tenant_seeds import FULL, MINIMAL, broken

GROUP_VERSION = "lionrock.io/v1alpha1"
NOW = "2026-11-23T00:00:00Z"
(DEFINITION,) = [each for each in DEFINITIONS if each["spec"]["names"]["kind"] == "Tenant"]
SPEC = DEFINITION["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]


@pytest.fixture(scope="module")
def place(objects: Objects, lionrock_crds: list[str]) -> Iterator[str]:
    """A namespace in which nothing runs."""
    manifest: Manifest = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "tenants-tried"}}
    objects.create(manifest)
    yield "tenants-tried"
    objects.delete(manifest)


def refusal(objects: Objects, place: str, tenant: Manifest) -> str | None:
    """Why the API server does not take it; None: it does."""
    try:
        objects.create({**tenant, "metadata": {**tenant["metadata"], "namespace": place}}, dry_run=True)
    except Refused as refused:
        if refused.status not in (400, 422):
            raise
        return str(refused)
    return None


def good(tenant: Manifest) -> bool:
    try:
        parse_resource(tenant)
    except TenantsInvalid:
        return False
    return True


def test_what_is_good_is_taken_and_stored_as_it_was_written(objects: Objects, place: str) -> None:
    for whole in (MINIMAL, FULL):
        assert good(whole)
        assert refusal(objects, place, whole) is None
        created = objects.create({**whole, "metadata": {**whole["metadata"], "namespace": place}})
        objects.delete(created)
        assert created["spec"] == whole["spec"]
        assert parse_resource(created) == parse_resource(whole)


def test_broken_field_by_field_both_refuse_the_same(objects: Objects, place: str) -> None:
    tried, differ = 0, []
    for label, tenant in broken(SPEC, FULL):
        told = refusal(objects, place, tenant)
        tried += 1
        if (told is None) != good(tenant):
            differ.append(f"{label}: {'the API server alone takes it' if told is None else told}")
    assert tried > 500
    assert differ == []


def test_a_name_is_that_of_a_tenant(objects: Objects, place: str) -> None:
    for name in ("retail", "a", "0", "x" * 63, "x" * 64, "a.b", "-a", "user", "tenant"):
        tenant = document(name)
        assert (refusal(objects, place, tenant) is None) == good(tenant), name
    # Whoever is called like a part of an id is not let in by it.
    foreign = document("user")
    foreign["spec"]["principals"][0]["spiffeId"] = "spiffe://bank.example/tenant/tenant/user/x"
    assert not good(foreign)
    assert refusal(objects, place, foreign) is not None


def often(usual: Any, other: Any) -> st.SearchStrategy[Any]:
    """Take what is good by itself nine times of ten: a document has many fields."""
    return st.integers(0, 9).flatmap(lambda draw: st.just(usual) if draw else other)


SOME = st.sampled_from(["a", "b", "c"])
LISTS = often(["a", "b"], st.lists(SOME, min_size=1, max_size=3))
MODELS = often(["a"], st.lists(st.sampled_from(["*", "a", "b"]), min_size=1, max_size=2))
CLASSES = often(["public"], st.lists(st.sampled_from(["public", "personal", "suspicion"]), min_size=1, max_size=3))
GRANTS = st.fixed_dictionaries(
    {"purposes": LISTS},
    optional={
        "models": MODELS,
        "dataClasses": CLASSES,
        "roles": often(["user"], st.lists(st.sampled_from(["user", "regulator"]), min_size=1, max_size=2)),
        "notAfter": st.just("2027-01-31T18:00:00Z"),
    },
)
PRINCIPALS = st.builds(
    lambda tenant, name, grant: {"spiffeId": f"spiffe://bank.example/tenant/{tenant}/user/{name}", **grant},
    often("retail", st.just("user")),
    st.sampled_from(["*", "u", "v", "w", "x", "y"]),
    GRANTS,
)
ISSUERS = st.builds(
    lambda issuer, audiences, bindings: {"issuer": issuer, "audiences": audiences, "bindings": bindings},
    st.sampled_from(["https://a.example", "https://b.example", "https://c.example"]),
    LISTS,
    st.lists(st.builds(lambda value, grant: {"value": value, **grant}, SOME, GRANTS), min_size=1, max_size=2),
)
POOLS = st.fixed_dictionaries({"pools": LISTS}, optional={"type": st.sampled_from(["Shared", "Dedicated"])})
TENANCY = often({"type": "Dedicated"}, POOLS)
SPECS = st.fixed_dictionaries(
    {"territory": st.just("HK"), "principals": st.lists(PRINCIPALS, max_size=3)},
    optional={
        "purposes": often(["a", "b", "c"], LISTS),
        "models": often(["*"], MODELS),
        "dataClasses": CLASSES,
        "issuers": st.lists(ISSUERS, max_size=2),
        "tenancy": TENANCY,
    },
)


def test_whatever_fields_say_together_both_refuse_the_same(objects: Objects, place: str) -> None:
    verdicts = {True: 0, False: 0}

    @hypothesis_settings(
        max_examples=200,
        deadline=None,
        derandomize=True,
        phases=(Phase.generate, Phase.shrink),
        suppress_health_check=[HealthCheck.too_slow],
    )
    @given(SPECS)
    def agree(spec: dict[str, Any]) -> None:
        tenant = {**MINIMAL, "spec": spec}
        told = refusal(objects, place, tenant)
        verdicts[told is None] += 1
        assert (told is None) == good(tenant), told

    agree()
    assert min(verdicts.values()) > 20, "both verdicts are tried"


def test_null_is_left_out_by_the_api_server_and_refused_in_a_file(objects: Objects, place: str) -> None:
    """What is stored has no null, so that nothing that gateways refuse comes of it."""
    tenant = document("retail", displayName=None)
    assert not good(tenant)
    created = objects.create({**tenant, "metadata": {**tenant["metadata"], "namespace": place}})
    objects.delete(created)
    assert "displayName" not in created["spec"]
    assert good(created)


def test_two_people_who_apply_the_same_tenant_get_a_conflict_and_no_union(objects: Objects, place: str) -> None:
    def written(purpose: str) -> Manifest:
        tenant = document("retail")
        tenant["spec"]["principals"][0]["purposes"] = [purpose]
        return {**tenant, "metadata": {**tenant["metadata"], "namespace": place}}

    objects.apply(written("a"), manager="one")
    try:
        with pytest.raises(Refused, match="conflict"):
            objects.apply(written("b"), manager="other", force=False)
    finally:
        objects.delete(written("a"))


def test_kubectl_explains_every_field(objects: Objects, kubectl: Command, lionrock_crds: list[str]) -> None:
    own = "io.lionrock.v1alpha1.Tenant"

    def published() -> dict[str, Any]:
        paths = objects.call("GET", "/openapi/v3")["paths"]
        if f"apis/{GROUP_VERSION}" not in paths:
            return {}
        schemas: dict[str, Any] = objects.call("GET", f"/openapi/v3/apis/{GROUP_VERSION}")["components"]["schemas"]
        return schemas if own in schemas else {}

    schemas = wait_for(published, "the API server publishes Tenant")
    fields = dict(fields_of(schemas[own], schemas, "Tenant"))
    assert sorted(field for field, description in fields.items() if not description) == []
    assert "Requests in a minute" in kubectl("explain", "tenant.spec.quotas.requestsPerMinute", "--api-version", GROUP_VERSION)


def test_kubectl_lists_tenants_with_what_became_of_them(objects: Objects, kubectl: Command, place: str) -> None:
    tenant = objects.create({**FULL, "metadata": {**FULL["metadata"], "namespace": place}})
    try:
        conditions = [
            {"type": "Accepted", "status": "False", "reason": "Claimed", "message": "taken", "lastTransitionTime": NOW},
            {"type": "Ready", "status": "True", "reason": "FormerPublished", "message": "m", "lastTransitionTime": NOW},
        ]
        objects.merge(tenant, {"status": {"conditions": conditions}}, subresource="status")
        header, row = kubectl("get", "tenants", "retail", "--namespace", place, "-o", "wide").splitlines()
        columns = ["NAME", "CALLED", "TERRITORY", "TENANCY", "ACCEPTED", "READY", "REASON", "WHY", "AGE"]
        assert header.split() == columns
        assert row.split()[3:-1] == ["HK", "Dedicated", "False", "True", "FormerPublished", "taken"]
    finally:
        objects.delete(tenant)


def test_rules_say_what_the_gateways_say(objects: Objects, place: str) -> None:
    told = refusal(objects, place, document("retail", principals=[])) or ""
    assert "nobody could come in: state principals or issuers" in told
    with pytest.raises(TenantsInvalid, match="nobody could come in: state principals or issuers"):
        parse_resource(document("retail", principals=[]))
    assert json.dumps(SPEC).count("x-kubernetes-validations") > 10
