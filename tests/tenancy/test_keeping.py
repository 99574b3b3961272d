"""What a Tenant says of retention and keys: what is taken, what is refused, and where it may stand."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from pydantic import ValidationError

from lionrock.audit.vault.settings import RetentionSettings
from lionrock.tenancy.documents import TenantsInvalid, parse_resource
from lionrock.tenancy.keeping import LOG_BOOK
from lionrock.tenancy.spec import NamedTenant, TenantResource

RETENTION: dict[str, Any] = {
    "classes": [
        {"name": "advice", "keepDays": 2557, "purposes": ["investment_advice", "complaints"]},
        {"name": "standard", "keepDays": 30, "expireDays": 400},
    ],
    "default": "standard",
}
KEYS: dict[str, Any] = {"transit": {"name": "bank-master", "mount": "transit/bank"}}


def document(**changes: Any) -> dict[str, Any]:
    principal = {"spiffeId": "spiffe://lionrock.local/tenant/bank/user/*", "purposes": ["complaints"]}
    spec: dict[str, Any] = {"territory": "HK", "principals": [principal], "retention": RETENTION, "keys": KEYS}
    whole = {"apiVersion": "lionrock.io/v1alpha1", "kind": "Tenant", "metadata": {"name": "bank"}, "spec": spec | changes}
    return copy.deepcopy(whole)


def read(**changes: Any) -> TenantResource:
    return parse_resource(document(**changes))


def test_a_tenant_states_classes_their_purposes_and_a_key() -> None:
    spec = read().spec
    assert spec.retention is not None
    assert spec.keys is not None
    assert [(each.name, each.keep_days, each.expire_days) for each in spec.retention.classes] == [
        ("advice", 2557, None),
        ("standard", 30, 400),
    ]
    assert (spec.keys.transit.mount, spec.keys.transit.name) == ("transit/bank", "bank-master")


def test_a_tenant_need_state_neither() -> None:
    whole = document()
    del whole["spec"]["retention"], whole["spec"]["keys"]
    spec = parse_resource(whole).spec
    assert (spec.retention, spec.keys) == (None, None)


@pytest.mark.parametrize(
    ("where", "value"),
    [
        ("retention", {}),
        ("retention", {"classes": [], "default": "standard"}),
        ("retention", {**RETENTION, "default": "other"}),
        ("retention", {**RETENTION, "classes": RETENTION["classes"] * 2}),
        ("retention", {**RETENTION, "classes": [*RETENTION["classes"], {"name": "more", "purposes": ["complaints"]}]}),
        ("retention", {"classes": [{"name": "standard", "keepDays": 31, "expireDays": 30}], "default": "standard"}),
        ("retention", {"classes": [{"name": "standard", "keepDays": -1}], "default": "standard"}),
        ("retention", {"classes": [{"name": "standard", "expireDays": 0}], "default": "standard"}),
        ("retention", {"classes": [{"name": "standard", "keepDays": 36_501}], "default": "standard"}),
        ("retention", {"classes": [{"name": "Standard"}], "default": "Standard"}),
        ("retention", {"classes": [{"name": LOG_BOOK}], "default": LOG_BOOK}),
        ("retention", {"classes": [{"name": f"c{number}"} for number in range(9)], "default": "c0"}),
        ("retention", {"classes": [{"name": "standard", "forever": True}], "default": "standard"}),
        ("keys", {}),
        ("keys", {"transit": {}}),
        ("keys", {"transit": {"name": "../sys"}}),
        ("keys", {"transit": {"name": "key", "mount": "/transit"}}),
        ("keys", {"transit": {"name": "key", "mount": "a/../b"}}),
        ("keys", {"local": {"file": "/etc/key"}}),
    ],
)
def test_what_cannot_be_obeyed_is_refused(where: str, value: Any) -> None:
    with pytest.raises(TenantsInvalid):
        read(**{where: value})


@pytest.mark.parametrize(("field", "value"), [("retention", RETENTION), ("keys", KEYS)])
def test_the_gateways_own_settings_take_neither_for_nobody_would_obey(field: str, value: Any) -> None:
    spec = document()["spec"]
    del spec["retention"], spec["keys"]
    assert NamedTenant.model_validate({"name": "bank", **spec}).name == "bank"
    with pytest.raises(ValidationError):
        NamedTenant.model_validate({"name": "bank", **spec, field: value})


def test_the_same_class_is_reserved_here_and_in_the_audit_services_settings() -> None:
    with pytest.raises(ValidationError):
        RetentionSettings.model_validate({"classes": {LOG_BOOK: {"keep_days": 1}}, "default": LOG_BOOK})
