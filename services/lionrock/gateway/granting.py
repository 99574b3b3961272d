"""From what a Tenant states to what the gateway grants: defaults filled in, and nobody given more than their tenant has.

Knows lionrock.tenancy's schema and the directory's types. Pure.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from lionrock.gateway.quotas.limits import NO_QUOTAS, Quotas
from lionrock.gateway.tenants import ANY_MODEL, Grant, IssuerConfig, KeyLocation, Tenant, TenantName
from lionrock.tenancy.grants import GrantSpec, QuotasSpec
from lionrock.tenancy.issuers import IssuerSpec
from lionrock.tenancy.spec import TenantSpec
from lionrock.tenancy.vocabulary import ORDINARY_DATA_CLASSES


class ForeignTrustDomain(ValueError):
    """A principal is of a trust domain whose certificates this gateway does not accept."""


class QuotasUncounted(ValueError):
    """A tenant has quotas, and the gateway has no state to count them in."""


def refuse_uncounted_quotas(tenants: Iterable[Tenant]) -> None:
    """Refuse tenants with quotas, for a gateway without state: it could answer none of their requests. Raises QuotasUncounted."""
    for tenant in tenants:
        if tenant.has_quotas:
            raise QuotasUncounted(f"tenant {tenant.name} has quotas, and this gateway has nothing to count them in: set state")


def tenant_of(name: str, spec: TenantSpec, *, trust_domain: str) -> Tenant:
    """Return the tenant as the directory knows it. Raises ForeignTrustDomain."""
    for principal in spec.principals:
        if not principal.spiffe_id.startswith(f"spiffe://{trust_domain}/"):
            raise ForeignTrustDomain(f"principal {principal.spiffe_id} is not of the trust domain {trust_domain}")
    return Tenant(
        TenantName(name),
        spec.territory,
        spec.max_streams,
        {principal.spiffe_id: _grant(principal, spec) for principal in spec.principals},
        tuple(_issuer(issuer, spec) for issuer in spec.issuers),
        _quotas(spec.quotas),
        1 if spec.quotas is None else spec.quotas.weight,
    )


def _grant(stated: GrantSpec, spec: TenantSpec) -> Grant:
    classes = stated.data_classes or ORDINARY_DATA_CLASSES
    models = frozenset(stated.models)
    if spec.models is not None and ANY_MODEL in models:
        models = frozenset(spec.models)
    return Grant(
        roles=stated.roles,
        purposes=stated.purposes,
        models=models,
        data_classes=frozenset(classes) if spec.data_classes is None else frozenset(classes).intersection(spec.data_classes),
        profile=stated.profile or spec.profile,
        max_streams=stated.max_streams,
        not_after=stated.not_after,
        quotas=_quotas(stated.quotas),
    )


def _quotas(stated: QuotasSpec | None) -> Quotas:
    if stated is None:
        return NO_QUOTAS
    return Quotas(stated.requests_per_minute, stated.tokens_per_minute, stated.daily_tokens, stated.concurrent_streams)


def _issuer(stated: IssuerSpec, spec: TenantSpec) -> IssuerConfig:
    return IssuerConfig(
        keys=KeyLocation(stated.issuer, stated.jwks_uri, None if stated.ca_file is None else Path(stated.ca_file)),
        audiences=frozenset(stated.audiences),
        roles_claim=tuple(stated.roles_claim.split(".")),
        bindings=tuple((binding.value, _grant(binding, spec)) for binding in stated.bindings),
        algorithms=frozenset(stated.algorithms),
        authorized_parties=None if stated.authorized_parties is None else frozenset(stated.authorized_parties),
        clock_skew_s=stated.clock_skew_seconds,
        max_token_age_s=stated.max_token_age_seconds,
    )
