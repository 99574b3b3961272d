"""A tenant's privacy statement: for which purposes which kinds of data are used, under which notice, as its grants and rules say.

Pure: it is computed from what is enforced, so it cannot say anything else. Source: PDPO Data Protection Principle 5.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from lionrock.gateway.consents.purposes import NO_RULE, PurposeRule
from lionrock.gateway.tenants import Grant, Tenant
from lionrock.gateway.v1 import consent_pb2 as pb


def privacy_statement(tenant: Tenant) -> pb.ListNoticesResponse:
    """Return all purposes that some caller may state, by code, without texts."""
    notices = [_notice(purpose, tenant, classes) for purpose, classes in sorted(_kinds_of_data(tenant).items())]
    return pb.ListNoticesResponse(
        tenant=tenant.display_name or tenant.name,
        territory=tenant.territory,
        notices=notices,
        ai_disclosure=dict(tenant.disclosure),
    )


def notice(tenant: Tenant, purpose: str) -> pb.Notice | None:
    """Return what is said of one purpose, with texts; None: nobody may state it."""
    classes = _kinds_of_data(tenant).get(purpose)
    if classes is None:
        return None
    told = _notice(purpose, tenant, classes)
    rule = _rule(tenant, purpose)
    if rule.notice is not None:
        told.texts.update(rule.notice.texts)
    return told


def _notice(purpose: str, tenant: Tenant, classes: frozenset[str]) -> pb.Notice:
    rule = _rule(tenant, purpose)
    told = pb.Notice(
        purpose=purpose,
        data_classes=sorted(classes),
        requires_consent=rule.requires_consent,
        exempt_from_opt_out=rule.exempt_from_opt_out,
    )
    if rule.notice is not None:
        told.version, told.digest, told.consent_since = rule.notice.version, rule.notice.digest, rule.notice.consent_since
        told.languages.extend(sorted(rule.notice.texts))
    return told


def _rule(tenant: Tenant, purpose: str) -> PurposeRule:
    return tenant.purpose_rules.get(purpose, NO_RULE)


def _kinds_of_data(tenant: Tenant) -> Mapping[str, frozenset[str]]:
    found: dict[str, frozenset[str]] = {}
    for grant in _grants(tenant):
        for purpose in grant.purposes:
            found[purpose] = found.get(purpose, frozenset()) | grant.data_classes
    return found


def _grants(tenant: Tenant) -> Iterable[Grant]:
    yield from tenant.grants.values()
    for issuer in tenant.issuers:
        for _, grant in issuer.bindings:
            yield grant
