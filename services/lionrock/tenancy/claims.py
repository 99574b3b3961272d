"""What a tenant has to itself among the tenants of one gateway: no other may state the same.

Gateways refuse tenants that claim the same thing (lionrock.gateway.tenants); whoever publishes tenants for them looks here first,
so that one tenant's mistake is that tenant's alone. Knows claims. Does not know who came first.
"""

from __future__ import annotations

from lionrock.tenancy.spec import TenantResource

Claim = tuple[str, ...]


def claims_of(tenant: TenantResource) -> dict[Claim, str]:
    """Return everything that the tenant claims, with words for people."""
    found: dict[Claim, str] = {("name", tenant.name): f"the name {tenant.name}"}
    for principal in tenant.spec.principals:
        found["principal", principal.spiffe_id] = f"the principal {principal.spiffe_id}"
    for issuer in tenant.spec.issuers:
        for audience in issuer.audiences:
            found["tokens", issuer.issuer, audience] = f"tokens of {issuer.issuer} for {audience}"
    if tenant.spec.keys is not None:
        transit = tenant.spec.keys.transit
        found["key", transit.mount or "", transit.name] = f"the key {transit.name}"
    for pool in tenant.spec.tenancy.pools or ():
        found["pool", pool] = f"the chip pool {pool}"
    return found
