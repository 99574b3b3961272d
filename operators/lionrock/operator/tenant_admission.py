"""Which Tenants of a namespace are published, and why the others are not.

What is in force keeps what it has: a tenant that changes, or comes, gets nothing that another one has, the older of two that want
the same before the younger. What a tenant said before stays when what it says now is not accepted. All of that is read from the
ConfigMap itself, so that a new operator decides as the one before; keys there that somebody else writes are tenants like others,
and are never changed. Pure.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from lionrock.operator.conditions import Reason
from lionrock.operator.tenant import Tenant, read_text
from lionrock.tenancy.claims import Claim, claims_of
from lionrock.tenancy.spec import TenantResource

TENANTS_NAME: Final = "lionrock-tenants"
KEY_SUFFIX: Final = ".tenant.json"
"""Of the operator's keys. A tenant's name has no dot, so that no hand-written `<name>.yaml` is one of them."""
MAX_BYTES: Final = 900_000
"""Of all keys and texts: what the API server takes is 1 MiB, and some of it is room for those who write by hand."""
_FOLLOWED: Final = (".yaml", ".yml", ".json")


@dataclass(frozen=True, slots=True)
class TenantRules:
    """What gateways refuse beside what is wrong with a Tenant by itself.

    trust_domain: of the mesh; None: not known, and not asked. named: tenants of the gateways' settings. has_state: whether the
    gateways keep anything together; keeps_consents: consents too. No gateway starts while a tenant wants what it cannot keep.
    """

    trust_domain: str | None = None
    named: frozenset[str] = frozenset()
    has_state: bool = True
    keeps_consents: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What becomes of one Tenant."""

    accepted: bool
    reason: Reason
    message: str
    text: str | None
    """What is to be published of it; None: nothing."""
    resource: TenantResource | None
    """What that says; None: nothing, or what gateways refuse."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Admission:
    """All Tenants of a namespace together."""

    verdicts: Mapping[str, Verdict]
    """By name; of those that are not going."""
    pools: Mapping[str, str]
    """Chip pools that a tenant has to itself, with the tenant's name."""

    @property
    def wanted(self) -> dict[str, str]:
        """Keys and texts that are to be published."""
        return {key_of(name): verdict.text for name, verdict in sorted(self.verdicts.items()) if verdict.text is not None}


def key_of(name: str) -> str:
    """Return the tenant's key in the ConfigMap."""
    return f"{name}{KEY_SUFFIX}"


def admit(tenants: Iterable[Tenant], published: Mapping[str, str], rules: TenantRules) -> Admission:
    """Judge all Tenants of a namespace. published: the ConfigMap's data as it is."""
    ordered = sorted(
        (tenant for tenant in tenants if not tenant.meta.is_deleting),
        key=lambda tenant: (tenant.meta.created_at is None, tenant.meta.created_at or 0, tenant.meta.name),
    )
    book = _Book({key: text for key, text in published.items() if not key.endswith(KEY_SUFFIX)}, rules)
    former = {tenant.meta.name: published.get(key_of(tenant.meta.name)) for tenant in ordered}
    # What is in force as it is comes first, then what is in force and will change, then the rest.
    verdicts: dict[str, Verdict] = {}
    for tenant in ordered:
        if former[tenant.meta.name] == tenant.text and tenant.resource is not None:
            verdicts[tenant.meta.name] = book.judge(tenant, None)
    for tenant in ordered:
        name, text = tenant.meta.name, former[tenant.meta.name]
        if name not in verdicts and text is not None and not book.keep(name, text):
            former[name] = None
    for tenant in ordered:
        if tenant.meta.name not in verdicts:
            verdicts[tenant.meta.name] = book.judge(tenant, former[tenant.meta.name])
    pools = {
        pool: name
        for name, verdict in verdicts.items()
        if verdict.resource is not None
        for pool in verdict.resource.spec.tenancy.pools or ()
    }
    return Admission(verdicts=verdicts, pools=pools)


class _Book:
    """Who has what, and how much room is left."""

    def __init__(self, by_hand: Mapping[str, str], rules: TenantRules) -> None:
        self._rules = rules
        self._bytes = sum(map(_size, by_hand.keys(), by_hand.values()))
        self._held: dict[Claim, str] = {("name", name): "the gateways' own settings" for name in rules.named}
        for key, text in sorted(by_hand.items()):
            if key.endswith(_FOLLOWED):
                for resource in read_text(text):
                    for claim in claims_of(resource):
                        self._held.setdefault(claim, f"key {key} of ConfigMap {TENANTS_NAME}")

    def keep(self, name: str, text: str) -> bool:
        """Count what is in force of a tenant that will change. Returns whether it still may be."""
        resource = _of(name, text)
        if resource is not None and self._taken(resource) is not None:
            return False
        self._take(name, text, resource)
        return True

    def judge(self, tenant: Tenant, former: str | None) -> Verdict:
        """Judge what a tenant says now. former: what is in force of it and was counted."""
        name, resource = tenant.meta.name, tenant.resource
        before = None if former is None else _of(name, former)
        self._give_back(name, former, before)
        refusal = self._refusal(tenant)
        if refusal is None:
            self._take(name, tenant.text, resource)
            return Verdict(accepted=True, reason=Reason.ACCEPTED, message=_TOLD, text=tenant.text, resource=resource)
        if former is not None:
            self._take(name, former, before)
        reason, message = refusal
        return Verdict(accepted=False, reason=reason, message=message, text=former, resource=before)

    def _refusal(self, tenant: Tenant) -> tuple[Reason, str] | None:
        resource, rules = tenant.resource, self._rules
        if resource is None:
            return Reason.SPEC_INVALID, tenant.problem or "it is no Tenant"
        domain = None if rules.trust_domain is None else f"spiffe://{rules.trust_domain}/"
        for principal in resource.spec.principals:
            if domain is not None and not principal.spiffe_id.startswith(domain):
                return Reason.SPEC_INVALID, f"principal {principal.spiffe_id} is not of the trust domain {rules.trust_domain}"
        if not rules.has_state and (has_quotas(resource) or resource.spec.review is not None):
            return Reason.NO_STATE, "it states quotas or review, and the gateways have nothing to keep them in: set gateway.state"
        if not rules.keeps_consents and any(rule.requires_consent for rule in resource.spec.purpose_rules):
            return Reason.NO_STATE, "it has purposes that need consent, and the gateways keep none: set gateway.consents"
        if (taken := self._taken(resource)) is not None:
            return Reason.CLAIMED, taken
        if self._bytes + _size(key_of(resource.name), tenant.text) > MAX_BYTES:
            return Reason.TENANTS_FULL, f"ConfigMap {TENANTS_NAME} would hold more than {MAX_BYTES} bytes"
        return None

    def _taken(self, resource: TenantResource) -> str | None:
        for claim, words in claims_of(resource).items():
            if (holder := self._held.get(claim)) is not None:
                return f"{words}: {holder} has it"
        return None

    def _take(self, name: str, text: str, resource: TenantResource | None) -> None:
        self._bytes += _size(key_of(name), text)
        for claim in {} if resource is None else claims_of(resource):
            self._held[claim] = f"tenant {name}"

    def _give_back(self, name: str, text: str | None, resource: TenantResource | None) -> None:
        if text is None:
            return
        self._bytes -= _size(key_of(name), text)
        for claim in {} if resource is None else claims_of(resource):
            del self._held[claim]


_TOLD: Final = "gateways and the audit service are told of it"


def has_quotas(resource: TenantResource) -> bool:
    """Whether the tenant, or any grant of it, has a quota that gateways count."""
    spec = resource.spec
    grants = [*spec.principals, *(binding for issuer in spec.issuers for binding in issuer.bindings)]
    return any(
        quotas is not None and bool(quotas.model_dump(exclude={"weight"}, exclude_none=True))
        for quotas in (spec.quotas, *(grant.quotas for grant in grants))
    )


def _of(name: str, text: str) -> TenantResource | None:
    """Return the tenant that a key of the operator holds; None: gateways refuse it, or it is not what the key says."""
    found = read_text(text)
    return found[0] if len(found) == 1 and found[0].name == name else None


def _size(key: str, text: str) -> int:
    return len(key) + len(text.encode("utf-8", "surrogatepass"))
