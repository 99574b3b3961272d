"""Tenants as text: what is accepted, and what is refused by line and name."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lionrock.audit.records.permissions import ROLE_ACTIONS
from lionrock.common.v1 import context_pb2 as ctx
from lionrock.tenancy import vocabulary
from lionrock.tenancy.documents import MAX_BYTES, TenantsInvalid, parse_tenants

RETAIL = """\
apiVersion: lionrock.io/v1alpha1
kind: Tenant
metadata: {name: retail, labels: {team: cards}}
spec:
  territory: HK
  purposes: [customer_service, complaints]
  principals:
    - spiffeId: spiffe://bank.example/tenant/retail/user/*
      purposes: [customer_service]
"""
BROKER = RETAIL.replace("retail", "broker")


def refused(text: str) -> list[str]:
    with pytest.raises(TenantsInvalid) as caught:
        parse_tenants(text.encode())
    return [str(problem) for problem in caught.value.problems]


def document(**spec: Any) -> str:
    principal = {"spiffeId": "spiffe://bank.example/tenant/retail/user/*", "purposes": ["testing"]}
    whole = {"territory": "HK", "principals": [principal], **spec}
    return json.dumps({"apiVersion": vocabulary.API_VERSION, "kind": "Tenant", "metadata": {"name": "retail"}, "spec": whole})


def test_a_text_holds_several_tenants_and_empty_documents_are_none() -> None:
    tenants = parse_tenants(f"---\n{RETAIL}---\n# nothing\n---\n{BROKER}".encode())
    assert [tenant.name for tenant in tenants] == ["retail", "broker"]
    assert tenants[0].spec.principals[0].spiffe_id == "spiffe://bank.example/tenant/retail/user/*"
    assert parse_tenants(b"") == ()


def test_an_object_as_the_cluster_gives_it_is_the_tenant_that_was_applied() -> None:
    plain = json.loads(document())
    stored = {**plain, "metadata": {**plain["metadata"], "uid": "1", "managedFields": [{}]}, "status": {"conditions": []}}
    assert parse_tenants(json.dumps(stored).encode()) == parse_tenants(json.dumps(plain).encode())


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("territory: HK", "territory: hk", "line 5: tenant retail: spec.territory: "),
        ("territory: HK", "teritory: HK", "line 5: tenant retail: spec.teritory: there is no such field"),
        ("  territory: HK\n", "", "line 4: tenant retail: spec.territory: is missing"),
        ("territory: HK", "territory: null", "line 5: tenant retail: spec.territory: has no value"),
        ("territory: HK", "territory: NO", "line 5: tenant retail: spec.territory: "),
        ("territory: HK", "territory: HK\n  maxStreams: '4'", "line 6: tenant retail: spec.maxStreams: "),
        ("territory: HK", "territory: HK\n  max_streams: 4", "line 6: tenant retail: spec.max_streams: there is no such field"),
        ("territory: HK", "territory: HK\n  territory: SG", "line 6: key 'territory' is there twice"),
        ("territory: HK", "territory: &a HK", "line 5: anchors"),
        ("tenant/retail", "tenant/broker", "line 1: tenant retail: principal spiffe://bank.example/tenant/broker/user/*"),
        ("user/*", "admin/*", "line 8: tenant retail: spec.principals[0].spiffeId: "),
        ("[customer_service]", "[marketing]", "is granted the purpose marketing, which the tenant does not have"),
        (
            "[customer_service]",
            "[customer_service, customer_service]",
            "line 9: tenant retail: spec.principals[0].purposes: states something twice",
        ),
        ("[customer_service]", "[customer_service]\n      roles: [regulator]", "state notAfter"),
        ("lionrock.io/v1alpha1", "lionrock.io/v1", "line 1: tenant retail: apiVersion: "),
        ("name: retail", "name: Retail", "line 3: tenant Retail: metadata.name: "),
    ],
)
def test_what_is_wrong_is_told_by_line_tenant_and_field(old: str, new: str, told: str) -> None:
    assert RETAIL.count(old) >= 1
    problems = refused(RETAIL.replace(old, new, 1))
    assert any(told in problem for problem in problems), problems


def test_everything_that_is_wrong_is_told_at_once() -> None:
    problems = refused(f"{RETAIL.replace('HK', 'hk')}---\n{BROKER.replace('user/*', 'x')}")
    assert [problem.split(": ")[1] for problem in problems] == ["tenant retail", "tenant broker"]


def test_one_name_is_one_tenant() -> None:
    assert refused(f"{RETAIL}---\n{RETAIL}") == ["line 11: tenant retail: metadata.name: the tenant of line 1 is called so"]


def test_a_value_that_is_refused_is_not_repeated() -> None:
    secret = "correct horse battery staple"
    assert secret not in " ".join(refused(document(displayName=[secret])) + refused(document(profile=secret)))


def test_bindings_stay_within_the_tenant_as_principals_do() -> None:
    issuer = {"issuer": "https://id.bank.example", "audiences": ["lionrock"], "bindings": [{"value": "staff", "purposes": ["x"]}]}
    assert parse_tenants(document(principals=[], issuers=[issuer]).encode())[0].spec.issuers[0].max_token_age_seconds == 3600
    assert "staff is granted the purpose x" in refused(document(purposes=["testing"], issuers=[issuer]))[0]
    assert "state principals or issuers" in refused(document(principals=[]))[0]
    assert "issuer and audience twice" in refused(document(issuers=[issuer, issuer]))[0]


def test_a_grant_ends_at_a_moment_of_a_file() -> None:
    def ending(at: str) -> str:
        principal = {"spiffeId": "spiffe://bank.example/tenant/retail/user/*", "purposes": ["testing"], "roles": ["regulator"]}
        return document(principals=[{**principal, "notAfter": at}])

    (tenant,) = parse_tenants(ending("2027-01-31T18:00:00+08:00").encode())
    assert tenant.spec.principals[0].not_after == datetime(2027, 1, 31, 10, tzinfo=UTC)
    assert "is not a time such as" in refused(ending("2027-02-30T18:00:00Z"))[0]


def test_a_text_that_is_too_long_is_not_read() -> None:
    assert "bytes" in refused("#" * (MAX_BYTES + 1))[0]


@given(st.text() | st.binary())
def test_a_hostile_text_is_refused_and_nothing_else_happens(text: str | bytes) -> None:
    try:
        assert parse_tenants(text.encode("utf-8", "surrogatepass") if isinstance(text, str) else text) == ()
    except TenantsInvalid as invalid:
        assert invalid.problems  # noqa: PT017


@pytest.mark.parametrize("opening", ["[", "{a: ", "- "])
def test_a_deeply_nested_text_is_refused(opening: str) -> None:
    assert "deep" in refused(opening * (MAX_BYTES // len(opening)))[0]


def test_the_words_are_those_of_the_contracts() -> None:
    classes = [name.removeprefix("DATA_CLASS_").lower() for name in ctx.DataClass.DESCRIPTOR.values_by_name]
    assert ["unspecified", *vocabulary.DATA_CLASSES] == classes
    assert set(ROLE_ACTIONS) <= set(vocabulary.ROLES)
