"""What is wrong with a credential, as plain exceptions.

    CredentialError
    ├── CredentialMissingError    nothing was presented
    ├── TokenInvalidError         a bearer token that is not accepted; `why` is one of a closed list
    ├── TokenExpiredError         a token that was good until its time ran out
    ├── RefusalsFullError         a token that is not accepted, one of too many at a time
    ├── KeysUnavailableError      an API key, at a time when nobody can tell whether it was revoked
    └── UnknownPrincipalError     the credential is good, and no tenant gives its holder anything (tenants.py)

Only the holder of a token that an issuer of a tenant signed for us learns more than NOT_ACCEPTED. To everybody else an issuer that
nobody configured, a key that does not fit, a token for somebody else and a key that never existed are one and the same.
"""

from __future__ import annotations

from enum import StrEnum

from lionrock.gateway.tenants import CredentialError


class Why(StrEnum):
    """Why a token is not valid, as its bearer may know it."""

    MALFORMED = "MALFORMED"
    """It is no credential of a kind that is accepted here. Follows from its text alone."""
    NOT_ACCEPTED = "NOT_ACCEPTED"
    """Nobody here vouches for it."""
    NOT_YET_VALID = "NOT_YET_VALID"
    """It is good, from a time on that is still to come."""
    TOO_OLD = "TOO_OLD"
    """It is good, but was issued longer ago than the tenant allows."""


class CredentialMissingError(CredentialError):
    """Neither a certificate nor a token was presented."""


class TokenInvalidError(CredentialError):
    """The bearer token is not accepted."""

    def __init__(self, why: Why) -> None:
        super().__init__(f"the bearer token is not accepted: {why}")
        self.why = why


class TokenExpiredError(CredentialError):
    """The bearer token was good until its time ran out."""


class RefusalsFullError(CredentialError):
    """The bearer token is not accepted, as those of so many others at the moment that its bearer has to come back to hear so."""


class KeysUnavailableError(CredentialError):
    """API keys cannot be checked at the moment, this one or any other."""
