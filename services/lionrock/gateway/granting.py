"""From what a Tenant states to what the gateway grants: defaults filled in, and nobody given more than their tenant has.

Knows lionrock.tenancy's schema and the directory's types. Pure.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from lionrock.gateway.consents.purposes import USUAL_DISCLOSURE, Notice, PurposeRule, notice_digest
from lionrock.gateway.quotas.limits import NO_QUOTAS, Quotas
from lionrock.gateway.reviews.rules import Notify, ReviewRules
from lionrock.gateway.tenants import ANY_MODEL, Grant, IssuerConfig, KeyLocation, Tenant, TenantName
from lionrock.tenancy.grants import GrantSpec, QuotasSpec
from lionrock.tenancy.issuers import IssuerSpec
from lionrock.tenancy.notices import PurposeRuleSpec
from lionrock.tenancy.reviewing import ReviewSpec
from lionrock.tenancy.spec import TenantSpec
from lionrock.tenancy.vocabulary import ORDINARY_DATA_CLASSES


class ForeignTrustDomain(ValueError):
    """A principal is of a trust domain whose certificates this gateway does not accept."""


class GatewayLacksState(ValueError):
    """A tenant has something that gateways keep together, and this one keeps nothing of the kind."""


class QuotasUncounted(GatewayLacksState):
    """A tenant has quotas, and the gateway has no state to count them in."""


class ReviewsUnkept(GatewayLacksState):
    """A tenant has answers reviewed, and the gateway has no state to keep a queue in."""


class ConsentsUnkept(GatewayLacksState):
    """A tenant has purposes that need consent, and the gateway keeps no consents."""


class EngineUndivided(ValueError):
    """A tenant shares no engines, and the gateway has one for everybody."""


def refuse_undivided_engine(tenants: Iterable[Tenant]) -> None:
    """Refuse tenants that share no engines, for a gateway without routes: it has none for them. Raises EngineUndivided."""
    for tenant in tenants:
        if tenant.dedicated:
            raise EngineUndivided(f"tenant {tenant.name} shares no engines, and this gateway has one for all: set routes_file")


def refuse_uncounted_quotas(tenants: Iterable[Tenant]) -> None:
    """Refuse tenants with quotas, for a gateway without state: it could answer none of their requests. Raises QuotasUncounted."""
    for tenant in tenants:
        if tenant.has_quotas:
            raise QuotasUncounted(f"tenant {tenant.name} has quotas, and this gateway has nothing to count them in: set state")


def refuse_unkept_reviews(tenants: Iterable[Tenant]) -> None:
    """Refuse tenants whose answers are reviewed, for a gateway without state. Raises ReviewsUnkept."""
    for tenant in tenants:
        if tenant.review is not None:
            raise ReviewsUnkept(f"tenant {tenant.name} has answers reviewed, and this gateway keeps no queue: set state")


def refuse_unkept_consents(tenants: Iterable[Tenant]) -> None:
    """Refuse tenants with purposes that need consent, for a gateway that keeps none. Raises ConsentsUnkept."""
    for tenant in tenants:
        if tenant.asks_for_consent:
            raise ConsentsUnkept(f"tenant {tenant.name} has purposes that need consent, and this gateway keeps none: set consents")


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
        dedicated=spec.tenancy.type == "Dedicated",
        pools=None if spec.tenancy.pools is None else frozenset(spec.tenancy.pools),
        display_name=spec.display_name or "",
        purpose_rules={rule.purpose: _purpose_rule(rule) for rule in spec.purpose_rules},
        disclosure={**USUAL_DISCLOSURE, **{each.language: each.text for each in spec.disclosure}},
        review=None if spec.review is None else _review(spec.review),
    )


def _review(stated: ReviewSpec) -> ReviewRules:
    told = stated.notify
    notify = None
    if told is not None:
        notify = Notify(told.url, Path(told.secret_file), None if told.ca_file is None else Path(told.ca_file))
    return ReviewRules(frozenset(stated.purposes or ()), frozenset(stated.profiles or ()), stated.ttl_minutes * 60, notify)


def _purpose_rule(stated: PurposeRuleSpec) -> PurposeRule:
    if stated.notice is None:
        return PurposeRule(stated.requires_consent, stated.exempt_from_opt_out)
    version, texts = stated.notice.version, {each.language: each.text for each in stated.notice.texts}
    since = version if stated.notice.consent_since is None else stated.notice.consent_since
    notice = Notice(version, since, texts, notice_digest(stated.purpose, version, texts))
    return PurposeRule(stated.requires_consent, stated.exempt_from_opt_out, notice)


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
        batch=stated.priority == "batch",
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
