"""The one way in: a certificate's id, a bearer token, or both, become a principal, or nothing does.

Knows which kind of credential is which and that two of them must belong to one tenant. Does not know wires: the listener says what
its transport verified (`spiffe_id`) and what the caller wrote (`bearer`, which nobody has checked yet).
"""

from __future__ import annotations

from dataclasses import dataclass

from lionrock.gateway.identity.failures import CredentialMissingError, TokenInvalidError, Why
from lionrock.gateway.tenants import Principal, TenantDirectory


@dataclass(frozen=True, slots=True)
class Presented:
    """What a caller presents.

    `spiffe_id`: of the certificate that TLS verified, None without one. `bearer`: what follows "Bearer " in the authorization
    header, None without one; an empty one is presented and wrong.
    """

    spiffe_id: str | None = None
    bearer: str | None = None


class Authenticator:
    """Authenticates callers. One instance a gateway; safe for any number of concurrent calls of one event loop."""

    def __init__(self, directory: TenantDirectory) -> None:
        self._directory = directory

    async def authenticate(self, presented: Presented) -> Principal:
        """Return who calls.

        Raises CredentialMissingError, TokenInvalidError, TokenExpiredError, UnknownPrincipalError: all of them CredentialError.
        """
        if presented.bearer is not None:
            raise TokenInvalidError(Why.NOT_ACCEPTED)  # no tenant can name an issuer yet
        if presented.spiffe_id is None:
            raise CredentialMissingError("neither a certificate nor a bearer token was presented")
        return self._directory.principal(presented.spiffe_id)
