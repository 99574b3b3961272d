"""Who makes the current RPC: what the chassis verified and what the call's metadata say, taken to the Authenticator.

Knows the current call and its `authorization` metadata (RFC 6750, section 2.1, as gRPC carries it). Decides nothing.
"""

from __future__ import annotations

from lionrock.chassis.calls import Call, current_call
from lionrock.gateway.identity.authenticator import Authenticator, Presented
from lionrock.gateway.identity.failures import TokenInvalidError, Why
from lionrock.gateway.identity.refusing import refusing
from lionrock.gateway.peers import Deadline
from lionrock.gateway.tenants import Principal

_HEADER = "authorization"
_SCHEME = "bearer "


async def caller_of_rpc(authenticator: Authenticator) -> tuple[Principal, Deadline]:
    """Return who calls and until when. Raises CredentialMissing, TokenInvalid, TokenExpired, UnknownPrincipal, Overloaded."""
    call = current_call()
    assert call is not None, "the chassis admits every call"
    with refusing():
        principal = await authenticator.authenticate(Presented(None if call.caller is None else str(call.caller), _bearer(call)))
    return principal, Deadline(call.deadline)


def _bearer(call: Call) -> str | None:
    """Return the token of the metadata. Raises TokenInvalidError for another scheme and for more than one."""
    assert call.context is not None, "this call came over gRPC"
    assert call.context is not None, "an RPC has a context"
    values = [value for key, value in call.context.invocation_metadata() or () if key == _HEADER]
    if not values:
        return None
    value = values[0]
    if len(values) > 1 or not isinstance(value, str) or value[: len(_SCHEME)].lower() != _SCHEME:
        raise TokenInvalidError(Why.MALFORMED)
    return value[len(_SCHEME) :].strip(" ")
