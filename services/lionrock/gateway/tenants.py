"""Who may come in: tenants, and the principals that belong to them.

Knows which SPIFFE id belongs to which tenant and what was granted to it, and which issuers speak for a tenant's people. Does not
know certificates (the chassis verifies them) and tokens (identity/), what a grant permits (authorization.py) or how much is in use
(admission.py). Imports neither grpc nor stubs.

A principal's id is exact (`spiffe://td/tenant/bank/workload/desk`) or names a kind (`spiffe://td/tenant/bank/user/*`). An exact
id wins over a kind, and nothing else matches: there is no default principal. An issuer and an audience together belong to one
tenant, so that no token can be taken for another tenant's.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from pathlib import Path
from typing import Final, NewType

from lionrock.gateway.consents.purposes import USUAL_DISCLOSURE, PurposeRule
from lionrock.gateway.quotas.limits import NO_QUOTAS, Quotas
from lionrock.gateway.reviews.rules import ReviewRules
from lionrock.gateway.routes import Share

TenantName = NewType("TenantName", str)

ANY_MODEL = "*"
MAX_ACTOR_CHARS = 512  # RequestContext.actor
_WORKLOAD: Final = re.compile(r"spiffe://[^/]+/tenant/[^/]+/workload/")


class CredentialError(Exception):
    """What a caller presents makes nobody of them. Subclasses say why, in words that tell a stranger nothing."""


class UnknownPrincipalError(CredentialError):
    """The credential is good, but no tenant gives anything to whom it names."""


class AuthMethod(StrEnum):
    """How a principal proved who they are."""

    MTLS = "mtls"
    OIDC = "oidc"
    API_KEY = "api_key"


@dataclass(frozen=True, slots=True)
class Grant:
    """What one principal, or one kind of principal, was given.

    `purposes[0]` is the purpose of a request that states none. `models` holds names, or "*" for every served model. `max_streams`
    bounds the answers that one caller may have open at a time; None leaves only the tenant's bound.
    `not_after` (aware) ends the grant; None: it has no end, which a regulator's must have. `quotas` are each caller's own, within
    the tenant's, and counted by all gateways together. `batch`: engines serve it when nothing interactive waits.
    """

    roles: tuple[str, ...]
    purposes: tuple[str, ...]
    models: frozenset[str]
    data_classes: frozenset[str]
    profile: str
    max_streams: int | None = None
    not_after: datetime | None = None
    quotas: Quotas = NO_QUOTAS
    batch: bool = False


@dataclass(frozen=True, slots=True)
class KeyLocation:
    """Where the keys of an issuer are: `jwks_uri`, or what discovery says for None. `ca_file`: PEM; None trusts the system's."""

    issuer: str
    jwks_uri: str | None
    ca_file: Path | None


@dataclass(frozen=True, slots=True)
class IssuerConfig:
    """An OpenID Connect issuer of a tenant, and what its tokens are worth here.

    `issuer` is an https URL without query and fragment, exactly as in `iss`. `audiences`: a token needs one of them.
    `authorized_parties`: values of `azp`, or of `client_id` where there is none (RFC 9068), that are accepted; None accepts all.
    `roles_claim`: path of the claim whose values `bindings` are about, in the order in which they decide: the first that a token
    has is its grant. Grants are not added up, since the sum of two would permit what neither does.
    """

    keys: KeyLocation
    audiences: frozenset[str]
    roles_claim: tuple[str, ...]
    bindings: tuple[tuple[str, Grant], ...]
    algorithms: frozenset[str] = frozenset({"RS256", "ES256"})
    authorized_parties: frozenset[str] | None = None
    clock_skew_s: float = 30
    max_token_age_s: float = 3600

    @property
    def issuer(self) -> str:
        """The issuer's URL."""
        return self.keys.issuer


@dataclass(frozen=True, slots=True)
class Tenant:
    """A tenant.

    `territory` is an ISO 3166-1 alpha-2 code; `grants` maps an exact SPIFFE id, or a kind ending in "/*", to its grant; `issuers`
    speak for its people; `quotas` bound all its callers together, at all gateways. `weight` (1 to 1000) is its part of an
    engine that several tenants want more of than there is. `dedicated`: no engine that others share answers it; `pools`: of its
    own those on these chip pools, all of them where it is None.
    """

    name: TenantName
    territory: str
    max_streams: int
    grants: Mapping[str, Grant]
    issuers: tuple[IssuerConfig, ...] = ()
    quotas: Quotas = NO_QUOTAS
    weight: int = 1
    dedicated: bool = False
    pools: frozenset[str] | None = None
    display_name: str = ""
    purpose_rules: Mapping[str, PurposeRule] = field(default_factory=dict)
    """By purpose; one that is not here needs no consent and has no notice."""
    disclosure: Mapping[str, str] = field(default_factory=lambda: USUAL_DISCLOSURE)
    """By language: what answers carry to say that a machine wrote them."""
    review: ReviewRules | None = None
    """Which answers wait for a reviewer; None: there is no queue."""

    @property
    def asks_for_consent(self) -> bool:
        """Whether some purpose of the tenant needs the consent of data subjects."""
        return any(rule.requires_consent for rule in self.purpose_rules.values())

    @property
    def share(self) -> Share:
        """Which engines answer it."""
        return Share(self.name, self.dedicated, self.pools)

    @property
    def has_quotas(self) -> bool:
        """Whether the tenant, or any grant of it, has a quota that gateways count."""
        bound = [grant.quotas for issuer in self.issuers for _, grant in issuer.bindings]
        return any(quotas.count_anything for quotas in (self.quotas, *(grant.quotas for grant in self.grants.values()), *bound))


@dataclass(frozen=True, slots=True)
class Principal:
    """A caller whom the directory knows.

    `actor` names whoever it is by the credential: the certificate's full SPIFFE id, never the pattern that matched it; issuer and
    subject of a person's token, "<issuer>#<sub>"; or an API key, "api-key:<key id>".
    """

    actor: str
    tenant: Tenant
    grant: Grant
    auth_method: AuthMethod = AuthMethod.MTLS
    other_names: frozenset[str] = frozenset()
    """Actors who are the same person: who made an API key, and the user whose certificate came beside a token."""

    @property
    def known_as(self) -> frozenset[str]:
        """Every actor that this caller is known to be."""
        return self.other_names | {self.actor}

    @property
    def counts_tokens(self) -> bool:
        """Whether a quota bounds the tokens of this caller's requests."""
        return self.tenant.quotas.count_tokens or self.grant.quotas.count_tokens

    def may_use(self, model: str) -> bool:
        """Whether the grant names this model."""
        return ANY_MODEL in self.grant.models or model in self.grant.models


def is_person(actor: str) -> bool:
    """Whether an actor is a person: whom an issuer's token names, or a certificate that is not a workload's."""
    return not actor.startswith("api-key:") and not _WORKLOAD.match(actor)


class TenantDirectory:
    """All tenants of a gateway, looked up by SPIFFE id, or by issuer and audience, in constant time."""

    def __init__(self, tenants: Iterable[Tenant]) -> None:
        """Index the tenants. Raises ValueError when two of them, or two principals, claim the same id, or the same tokens."""
        self._grants: dict[str, tuple[Tenant, Grant]] = {}
        self._tenants: dict[TenantName, Tenant] = {}
        self._issuers: dict[str, dict[str, tuple[Tenant, IssuerConfig]]] = {}
        for tenant in tenants:
            if tenant.name in self._tenants:
                raise ValueError(f"tenant {tenant.name!r} is defined twice")
            self._tenants[tenant.name] = tenant
            for pattern, grant in tenant.grants.items():
                if pattern in self._grants:
                    raise ValueError(f"principal {pattern!r} is defined twice")
                self._grants[pattern] = (tenant, grant)
            for issuer in tenant.issuers:
                by_audience = self._issuers.setdefault(issuer.issuer, {})
                for audience in issuer.audiences:
                    if audience in by_audience:
                        raise ValueError(f"tokens of {issuer.issuer!r} for {audience!r} are claimed twice")
                    by_audience[audience] = (tenant, issuer)

    def follow(self, tenants: Iterable[Tenant]) -> None:
        """Know these tenants and no others, from the next look-up on. Raises ValueError as at first; nothing has changed then."""
        other = TenantDirectory(tenants)
        self._grants, self._tenants, self._issuers = other._grants, other._tenants, other._issuers

    def issuers(self, issuer: str) -> Mapping[str, tuple[Tenant, IssuerConfig]]:
        """Return whose tokens of an issuer are, by audience; empty for an issuer that nobody has."""
        return self._issuers.get(issuer, {})

    def tenant(self, name: str) -> Tenant | None:
        """Return the tenant of this name, if there is one."""
        return self._tenants.get(TenantName(name))

    @property
    def key_locations(self) -> frozenset[KeyLocation]:
        """Where the keys of all issuers are."""
        return frozenset(issuer.keys for tenant in self._tenants.values() for issuer in tenant.issuers)

    def principal(self, spiffe_id: str) -> Principal:
        """Return the principal of a verified SPIFFE id. Raises UnknownPrincipalError."""
        kind = spiffe_id.rpartition("/")[0] + "/*"
        found = self._grants.get(spiffe_id) or self._grants.get(kind)
        if found is None or spiffe_id.endswith("/*") or len(spiffe_id) > MAX_ACTOR_CHARS:
            raise UnknownPrincipalError("no tenant lists this identity")
        tenant, grant = found
        return Principal(actor=spiffe_id, tenant=tenant, grant=grant)
