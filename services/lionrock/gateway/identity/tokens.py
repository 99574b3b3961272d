"""A person's token, checked: signature, issuer, audience, party, times, and what its roles claim is worth.

Knows JWTs (RFC 7519) as OpenID Connect Core 1.0, section 3.1.3.7, and RFC 9068, section 4, have them checked, with the advice of
RFC 8725. The signature is PyJWT's to check; the claims are checked here, because their order is a matter of security: nothing that
a token says about its time is answered before it is known to be signed for us. Does no I/O: a key that is not there is not fetched
here (issuer_keys.py), but named in `KeyMissing`.

A token says itself who issued it and with which key and algorithm; that is believed only as far as the tenant's own settings say
the same. `jku`, `jwk`, `x5u` and `x5c` would let a token bring its own key, and `crit` asks for what is not understood: refused.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from jwt import PyJWK
from jwt.api_jws import PyJWS
from jwt.exceptions import PyJWTError

from lionrock.gateway.identity.failures import TokenExpiredError, TokenInvalidError, Why
from lionrock.gateway.identity.key_set import ALGORITHMS, MAX_KEY_ID_CHARS
from lionrock.gateway.tenants import (
    MAX_ACTOR_CHARS,
    AuthMethod,
    Grant,
    IssuerConfig,
    KeyLocation,
    Principal,
    Tenant,
    TenantDirectory,
    TenantName,
    UnknownPrincipalError,
)

MAX_TOKEN_CHARS: Final = 8192
MAX_AUDIENCES: Final = 32
MAX_ROLE_VALUES: Final = 1024
_MAX_TIME_S: Final = 2**48
_MAX_SUBJECT_CHARS: Final = 255  # OpenID Connect Core 1.0, section 2
_FOREIGN_KEYS: Final = ("jku", "jwk", "x5u", "x5c", "crit", "b64")
_TYPES: Final = frozenset({"jwt", "at+jwt", "application/at+jwt"})
"""Others are for something else: a logout token or a proof of possession is signed by the same keys."""

_JWS = PyJWS(algorithms=sorted(ALGORITHMS))

FindKey = Callable[[KeyLocation, str, str], PyJWK | None]
"""Location, key id, algorithm → key."""


class KeyMissing(TokenInvalidError):
    """Not accepted, for want of a key that may be newer than those that are known. `location`: whose."""

    def __init__(self, location: KeyLocation) -> None:
        super().__init__(Why.NOT_ACCEPTED)
        self.location = location


@dataclass(frozen=True, slots=True)
class _Unverified:
    """What a token says."""

    header: Mapping[str, Any]
    claims: Mapping[str, Any]


def person(token: str, directory: TenantDirectory, find_key: FindKey, now_s: float, within: TenantName | None = None) -> Principal:
    """Return who bears a token. `now_s`: seconds since 1970. `within`: the only tenant that may be meant, None for any.

    Raises TokenInvalidError, among them KeyMissing, TokenExpiredError, UnknownPrincipalError.
    """
    said = _read(token)
    tenant, issuer = _meant(said.claims, directory, within)
    algorithm, key_id = said.header.get("alg"), said.header["kid"]
    if algorithm not in issuer.algorithms or algorithm not in ALGORITHMS:
        raise TokenInvalidError(Why.NOT_ACCEPTED)
    key = find_key(issuer.keys, key_id, algorithm)
    if key is None:
        raise KeyMissing(issuer.keys)
    try:
        _JWS.decode_complete(token, key, algorithms=[algorithm])
    except PyJWTError:
        raise TokenInvalidError(Why.NOT_ACCEPTED) from None
    _for_a_party(said.claims, issuer)
    _in_time(said.claims, issuer, now_s)
    return Principal(_actor(said.claims, issuer), tenant, _grant(said.claims, issuer), AuthMethod.OIDC)


def _read(token: str) -> _Unverified:
    """Take a token apart. Raises TokenInvalidError(MALFORMED), which follows from its text alone."""
    malformed = TokenInvalidError(Why.MALFORMED)
    if len(token) > MAX_TOKEN_CHARS or not token.isascii() or token.count(".") != 2:
        raise malformed
    try:
        taken = _JWS.decode_complete(token, options={"verify_signature": False})
        claims = json.loads(taken["payload"])
    except (PyJWTError, ValueError, RecursionError):
        raise malformed from None
    header, key_id = taken["header"], taken["header"].get("kid")
    if not isinstance(claims, dict) or any(name in header for name in _FOREIGN_KEYS):
        raise malformed
    if not isinstance(key_id, str) or not 0 < len(key_id) <= MAX_KEY_ID_CHARS:
        raise malformed
    kind = header.get("typ", "JWT")
    if not isinstance(kind, str) or kind.lower() not in _TYPES:
        raise malformed
    return _Unverified(header, claims)


def _meant(claims: Mapping[str, Any], directory: TenantDirectory, within: TenantName | None) -> tuple[Tenant, IssuerConfig]:
    """Return the tenant and issuer that a token is for: exactly one, or it is not accepted."""
    issuer, audiences = claims.get("iss"), claims.get("aud")
    if isinstance(audiences, str):
        audiences = [audiences]
    if not isinstance(issuer, str) or not isinstance(audiences, list) or len(audiences) > MAX_AUDIENCES:
        raise TokenInvalidError(Why.NOT_ACCEPTED)
    known = directory.issuers(issuer)
    # By identity: two audiences may lead to one configuration, and two configurations are never one.
    found = {id(known[audience][1]): known[audience] for audience in audiences if isinstance(audience, str) and audience in known}
    if len(found) != 1:
        raise TokenInvalidError(Why.NOT_ACCEPTED)
    ((tenant, config),) = found.values()
    if within is not None and tenant.name != within:
        raise TokenInvalidError(Why.NOT_ACCEPTED)
    return tenant, config


def _for_a_party(claims: Mapping[str, Any], issuer: IssuerConfig) -> None:
    """Raise TokenInvalidError for a token that was issued to a client that the tenant does not name."""
    if issuer.authorized_parties is None:
        return
    party = claims.get("azp", claims.get("client_id"))
    if not isinstance(party, str) or party not in issuer.authorized_parties:
        raise TokenInvalidError(Why.NOT_ACCEPTED)


def _in_time(claims: Mapping[str, Any], issuer: IssuerConfig, now_s: float) -> None:
    """Raise TokenExpiredError or TokenInvalidError for a token whose time is not now."""
    expires, issued = _time(claims, "exp"), _time(claims, "iat")
    not_before = _time(claims, "nbf") if "nbf" in claims else issued
    if now_s >= expires + issuer.clock_skew_s:
        raise TokenExpiredError("the token has expired")
    if now_s < max(not_before, issued) - issuer.clock_skew_s:
        raise TokenInvalidError(Why.NOT_YET_VALID)
    if now_s - issued > issuer.max_token_age_s + issuer.clock_skew_s:
        raise TokenInvalidError(Why.TOO_OLD)


def _time(claims: Mapping[str, Any], name: str) -> float:
    value = claims.get(name)
    # A comparison that a NaN fails as well, and that no number of digits makes overflow.
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= _MAX_TIME_S:
        raise TokenInvalidError(Why.NOT_ACCEPTED)
    return float(value)


def _actor(claims: Mapping[str, Any], issuer: IssuerConfig) -> str:
    """Return "<issuer>#<sub>": no issuer has a fragment, so this names one person. Raises TokenInvalidError."""
    subject = claims.get("sub")
    if not isinstance(subject, str) or not 0 < len(subject) <= _MAX_SUBJECT_CHARS or not subject.isprintable():
        raise TokenInvalidError(Why.NOT_ACCEPTED)
    actor = f"{issuer.issuer}#{subject}"
    if len(actor) > MAX_ACTOR_CHARS:
        raise TokenInvalidError(Why.NOT_ACCEPTED)
    return actor


def _grant(claims: Mapping[str, Any], issuer: IssuerConfig) -> Grant:
    """Return what the first binding gives whose value the token has. Raises UnknownPrincipalError."""
    values = _claim(claims, issuer.roles_claim)
    values = [values] if isinstance(values, str) else values
    if isinstance(values, list) and len(values) <= MAX_ROLE_VALUES:
        has = {value for value in values if isinstance(value, str)}
        for value, grant in issuer.bindings:
            if value in has:
                return grant
    raise UnknownPrincipalError("no binding of the tenant is about this token")


def _claim(claims: Mapping[str, Any], path: tuple[str, ...]) -> Any:
    """Return the claim at a path, or the one whose name is the whole path with its dots, as names that are URLs have."""
    whole = ".".join(path)
    if whole in claims:
        return claims[whole]
    found: Any = claims
    for name in path:
        found = found.get(name) if isinstance(found, Mapping) else None
    return found
