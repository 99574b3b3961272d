"""What a caller hears whose credential is refused.

Knows the exceptions of failures.py and the errors that go over wires. Says the same on gRPC and on HTTP.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from lionrock.chassis.errors import MeshError, Overloaded
from lionrock.gateway import errors
from lionrock.gateway.identity.failures import (
    CredentialMissingError,
    KeysUnavailableError,
    RefusalsFullError,
    TokenExpiredError,
    TokenInvalidError,
)
from lionrock.gateway.tenants import CredentialError

_RETRY_AFTER_S = 1.0


def refusal(error: CredentialError) -> MeshError:
    """Return the error that the caller gets."""
    match error:
        case CredentialMissingError():
            return errors.CredentialMissing("a client certificate or a bearer token is needed")
        case TokenInvalidError():
            return errors.TokenInvalid("the bearer token is not accepted", metadata={"why": error.why})
        case TokenExpiredError():
            return errors.TokenExpired("the bearer token has expired")
        case RefusalsFullError():
            return Overloaded("the gateway is busy with credentials that it does not accept", retry_after_s=_RETRY_AFTER_S)
        case KeysUnavailableError():
            return errors.ApiKeysUnavailable("API keys cannot be checked at the moment", retry_after_s=_RETRY_AFTER_S)
    return errors.UnknownPrincipal("no tenant lists this identity")


@contextmanager
def refusing() -> Iterator[None]:
    """Raise a MeshError for a credential that is refused within."""
    try:
        yield
    except CredentialError as error:
        raise refusal(error) from error
