"""Who may come in: tenants, and the principals that belong to them.

Knows which SPIFFE id belongs to which tenant and what was granted to it. Does not know certificates (the chassis verifies them),
what a grant permits (authorization.py) or how much is in use (admission.py). Imports neither grpc nor stubs.

A principal's id is exact (`spiffe://td/tenant/bank/workload/desk`) or names a kind (`spiffe://td/tenant/bank/user/*`). An exact
id wins over a kind, and nothing else matches: there is no default principal.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import NewType

TenantName = NewType("TenantName", str)

ANY_MODEL = "*"
MAX_ACTOR_CHARS = 512  # RequestContext.actor


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
    """

    roles: tuple[str, ...]
    purposes: tuple[str, ...]
    models: frozenset[str]
    data_classes: frozenset[str]
    profile: str
    max_streams: int | None = None


@dataclass(frozen=True, slots=True)
class Tenant:
    """A tenant.

    `territory` is an ISO 3166-1 alpha-2 code; `grants` maps an exact SPIFFE id, or a kind ending in "/*", to its grant.
    """

    name: TenantName
    territory: str
    max_streams: int
    grants: Mapping[str, Grant]


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

    def may_use(self, model: str) -> bool:
        """Whether the grant names this model."""
        return ANY_MODEL in self.grant.models or model in self.grant.models


class TenantDirectory:
    """All tenants of a gateway, looked up by SPIFFE id in constant time."""

    def __init__(self, tenants: Iterable[Tenant]) -> None:
        """Index the tenants. Raises ValueError when two of them, or two principals, claim the same id."""
        self._grants: dict[str, tuple[Tenant, Grant]] = {}
        names: set[TenantName] = set()
        for tenant in tenants:
            if tenant.name in names:
                raise ValueError(f"tenant {tenant.name!r} is defined twice")
            names.add(tenant.name)
            for pattern, grant in tenant.grants.items():
                if pattern in self._grants:
                    raise ValueError(f"principal {pattern!r} is defined twice")
                self._grants[pattern] = (tenant, grant)

    def principal(self, spiffe_id: str) -> Principal:
        """Return the principal of a verified SPIFFE id. Raises UnknownPrincipalError."""
        kind = spiffe_id.rpartition("/")[0] + "/*"
        found = self._grants.get(spiffe_id) or self._grants.get(kind)
        if found is None or spiffe_id.endswith("/*") or len(spiffe_id) > MAX_ACTOR_CHARS:
            raise UnknownPrincipalError("no tenant lists this identity")
        tenant, grant = found
        return Principal(actor=spiffe_id, tenant=tenant, grant=grant)
