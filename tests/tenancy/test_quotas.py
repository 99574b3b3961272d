"""What a Tenant may say of quotas, and what the gateway makes of it."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from lionrock.gateway.granting import tenant_of
from lionrock.gateway.quotas.limits import NO_QUOTAS, Quotas
from lionrock.tenancy.spec import TenantSpec

USER = "spiffe://td.example/tenant/bank/user/*"


def spec(quotas: Any = None, own: Any = None, bound: Any = None) -> TenantSpec:
    issuer = {
        "issuer": "https://login.example",
        "audiences": ["lionrock"],
        "rolesClaim": "roles",
        "bindings": [{"value": "teller", "purposes": ["service"], "quotas": bound}],
    }
    principal = {"spiffeId": USER, "purposes": ["service"], "quotas": own}
    return TenantSpec.model_validate({"quotas": quotas, "principals": [principal], "issuers": [issuer]})


def test_quotas_of_tenant_principal_and_claim_reach_the_gateway() -> None:
    stated = spec(
        {"requestsPerMinute": 1, "tokensPerMinute": 2, "dailyTokens": 3, "concurrentStreams": 4},
        {"requests_per_minute": 5},
        {"concurrentStreams": 6},
    )
    tenant = tenant_of("bank", stated, trust_domain="td.example")
    assert tenant.quotas == Quotas(requests_per_minute=1, tokens_per_minute=2, daily_tokens=3, concurrent_streams=4)
    assert tenant.grants[USER].quotas == Quotas(requests_per_minute=5)
    assert tenant.issuers[0].bindings[0][1].quotas == Quotas(concurrent_streams=6)


def test_a_tenants_weight_reaches_the_gateway_and_its_callers_have_none() -> None:
    assert tenant_of("bank", spec({"weight": 1000}), trust_domain="td.example").weight == 1000
    for unset in (None, {}, {"dailyTokens": 3}):
        assert tenant_of("bank", spec(unset), trust_domain="td.example").weight == 1
    assert not tenant_of("bank", spec({"weight": 3}), trust_domain="td.example").has_quotas
    for wrong in (0, 1001, -1, 1.5, "heavy", None):
        with pytest.raises(ValidationError):
            spec({"weight": wrong})
    for place in ("own", "bound"):
        with pytest.raises(ValidationError):
            spec(**{place: {"weight": 2}})


def test_what_is_not_stated_is_not_bounded() -> None:
    tenant = tenant_of("bank", spec(), trust_domain="td.example")
    assert tenant.quotas == tenant.grants[USER].quotas == NO_QUOTAS
    assert spec({}).quotas is not None


@pytest.mark.parametrize(
    "quotas",
    [{"requestsPerMinute": 0}, {"dailyTokens": -1}, {"tokensPerMinute": 1.5}, {"concurrentStreams": 1 << 40}, {"tokens": 1}, 7],
)
def test_a_quota_that_makes_no_sense_is_refused(quotas: object) -> None:
    for place in range(3):
        with pytest.raises(ValidationError):
            spec(*[quotas if place == number else None for number in range(3)])
