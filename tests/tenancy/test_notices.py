"""Rules of purposes, notices and the disclosure of a Tenant: what is accepted, and what is refused by name."""

from __future__ import annotations

import json
from typing import Any

import pytest

from lionrock.gateway.consents.purposes import USUAL_DISCLOSURE, notice_digest
from lionrock.gateway.granting import tenant_of
from lionrock.tenancy.documents import TenantsInvalid, parse_tenants
from mesh_ca import TRUST_DOMAIN
from tenant_files import document

TEXTS = [{"language": "en", "text": "First line.\nSecond line."}, {"language": "zh-Hant", "text": "你好。"}]
RULE = {"purpose": "testing", "requiresConsent": True, "notice": {"version": 3, "texts": TEXTS}}


def stated(*rules: dict[str, Any], **spec: Any) -> bytes:
    return json.dumps(document("bank", **{"purposes": ["testing"], "purposeRules": list(rules), **spec})).encode()


def test_a_rule_says_what_a_purpose_needs_and_what_people_are_told() -> None:
    (resource,) = parse_tenants(stated(RULE, disclosure=[{"language": "en", "text": "A machine says so."}]))
    tenant = tenant_of("bank", resource.spec, trust_domain=TRUST_DOMAIN)
    rule = tenant.purpose_rules["testing"]
    assert rule.notice is not None
    texts = {"en": "First line.\nSecond line.", "zh-Hant": "你好。"}
    assert (rule.requires_consent, rule.notice.version, rule.notice.consent_since, rule.notice.texts) == (True, 3, 3, texts)
    assert rule.notice.digest == notice_digest("testing", 3, texts)
    assert tenant.disclosure == {**USUAL_DISCLOSURE, "en": "A machine says so."}
    assert tenant.asks_for_consent


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"notice": None}, "has no value"),
        ({"purpose": "other"}, "purposeRules is about purposes that the tenant states, each once"),
        ({"notice": {"version": 3, "texts": []}}, "at least 1 item"),
        ({"notice": {"version": 0, "texts": TEXTS}}, "greater than or equal to 1"),
        ({"notice": {"version": 3, "consentSince": 4, "texts": TEXTS}}, "consentSince is a version of the notice"),
        ({"notice": {"version": 3, "texts": [TEXTS[0], TEXTS[0]]}}, "states a language twice"),
        ({"notice": {"version": 3, "texts": [{"language": "English", "text": "x"}]}}, "match pattern"),
        ({"notice": {"version": 3, "texts": [{"language": "en", "text": "bell\x07"}]}}, "match pattern"),
        ({"requiresConsents": True}, "there is no such field"),
    ],
)
def test_a_rule_that_cannot_be_obeyed_is_refused(change: dict[str, Any], told: str) -> None:
    with pytest.raises(TenantsInvalid, match=told):
        parse_tenants(stated({**RULE, **change}))


def test_consent_needs_a_notice_and_rules_need_purposes() -> None:
    with pytest.raises(TenantsInvalid, match="has a notice to consent to"):
        parse_tenants(stated({"purpose": "testing", "requiresConsent": True}))
    with pytest.raises(TenantsInvalid, match="each once"):
        parse_tenants(stated(RULE, RULE))
    without = document("bank", purposeRules=[RULE])
    with pytest.raises(TenantsInvalid, match="purposes that the tenant states"):
        parse_tenants(json.dumps(without).encode())


def test_another_text_another_version_and_another_purpose_have_another_digest() -> None:
    digests = {
        notice_digest("a", 1, {"en": "x"}),
        notice_digest("b", 1, {"en": "x"}),
        notice_digest("a", 2, {"en": "x"}),
        notice_digest("a", 1, {"en": "y"}),
        notice_digest("a", 1, {"pt": "x"}),
    }
    assert len(digests) == 5
