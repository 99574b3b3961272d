"""What becomes of a token's text and claims: those that known issuers write, and whatever a stranger sends."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from jwt import PyJWK

from lionrock.gateway.identity.failures import TokenInvalidError
from lionrock.gateway.identity.key_set import KeySetInvalid, parse_key_set
from lionrock.gateway.identity.tokens import person
from lionrock.gateway.tenants import (
    AuthMethod,
    CredentialError,
    Grant,
    IssuerConfig,
    KeyLocation,
    Tenant,
    TenantDirectory,
    TenantName,
)
from oidc_issuer import SigningKey, sign

KEY = SigningKey("k1", "ES256")
RSA_KEY = SigningKey("k2", "RS256")
KEYS = parse_key_set({"keys": [KEY.jwk(), RSA_KEY.jwk()]})
NOW = 1_795_000_000
TELLER = Grant(("user",), ("customer_service",), frozenset({"*"}), frozenset({"public"}), "default")

# As Keycloak 26 writes an access token of a realm "staff", with names and ids exchanged.
KEYCLOAK: dict[str, Any] = {
    "exp": NOW + 300,
    "iat": NOW - 1,
    "auth_time": NOW - 60,
    "jti": "onrtac:5b0c1f0e-6c2f-4c61-9d57-9b0f5b9a8f11",
    "iss": "https://login.harbour.example/realms/staff",
    "aud": ["lionrock", "account"],
    "sub": "0f0a6f7e-3a54-4a35-8f3e-7cde0a0c2a11",
    "typ": "Bearer",
    "azp": "teller-desk",
    "sid": "9f3a1c1e-90c7-4c55-a9b5-3e9a5b1f7a22",
    "acr": "1",
    "allowed-origins": ["https://desk.harbour.example"],
    "realm_access": {"roles": ["offline_access", "uma_authorization", "teller"]},
    "resource_access": {"account": {"roles": ["manage-account", "view-profile"]}},
    "scope": "openid email profile",
    "email_verified": True,
    "preferred_username": "ada",
}
# As Dex 2.41 writes an ID token for a client "lionrock".
DEX: dict[str, Any] = {
    "iss": "https://dex.harbour.example/dex",
    "sub": "CiQwOGE4Njg0Yi1kYjg4LTRiNzMtOTBhOS0zY2QxNjYxZjU0NjYSBWxvY2Fs",
    "aud": "lionrock",
    "exp": NOW + 86400,
    "iat": NOW - 1,
    "nonce": "n-0S6_WzA2Mj",
    "at_hash": "X5Rq1dxBWrm8GqCxWpzcXA",
    "c_hash": "mOG7ALcv3ZCs0zLHiH3sPw",
    "email": "ada@harbour.example",
    "email_verified": True,
    "groups": ["harbour:teller", "harbour:branch-12"],
    "name": "ada",
}


def config(issuer: str, path: str, value: str, **changes: Any) -> IssuerConfig:
    location = KeyLocation(issuer, None, None)
    return IssuerConfig(location, frozenset({"lionrock"}), tuple(path.split(".")), ((value, TELLER),), **changes)


DIRECTORY = TenantDirectory(
    [
        Tenant(
            TenantName("bank"),
            "HK",
            4,
            {},
            (
                config(KEYCLOAK["iss"], "realm_access.roles", "teller", authorized_parties=frozenset({"teller-desk"})),
                config(DEX["iss"], "groups", "harbour:teller"),
            ),
        )
    ]
)


def find(location: KeyLocation, key_id: str, algorithm: str) -> PyJWK | None:
    return KEYS.get((key_id, algorithm))


@pytest.mark.parametrize(
    ("claims", "key"), [(KEYCLOAK, RSA_KEY), (KEYCLOAK, KEY), (DEX, RSA_KEY)], ids=["keycloak", "keycloak-es256", "dex"]
)
def test_tokens_as_known_issuers_write_them_name_their_person(claims: dict[str, Any], key: SigningKey) -> None:
    found = person(sign(claims, key), DIRECTORY, find, NOW)
    assert (found.actor, found.tenant.name) == (f"{claims['iss']}#{claims['sub']}", "bank")
    assert (found.grant, found.auth_method) == (TELLER, AuthMethod.OIDC)


def test_a_refresh_token_of_the_same_realm_is_none_of_ours() -> None:
    """Keycloak's is signed with a secret, for the issuer itself."""
    refresh = {**KEYCLOAK, "typ": "Refresh", "aud": KEYCLOAK["iss"]}
    with pytest.raises(TokenInvalidError):
        person(sign(refresh, KEY), DIRECTORY, find, NOW)


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)
_NAMES = ("iss", "aud", "azp", "client_id", "exp", "iat", "nbf", "sub", "realm_access", "typ")


@given(st.dictionaries(st.sampled_from(_NAMES), _JSON, min_size=1, max_size=3))
def test_a_signed_token_with_any_claims_is_somebody_or_refused(changes: dict[str, Any]) -> None:
    try:
        found = person(sign({**KEYCLOAK, **changes}, KEY), DIRECTORY, find, NOW)
    except CredentialError:
        return
    assert found.actor.startswith(KEYCLOAK["iss"] + "#")
    assert found.grant is TELLER


def encoded(value: bytes) -> str:
    return base64.urlsafe_b64encode(value).rstrip(b"=").decode()


@given(
    st.one_of(
        st.text(max_size=200),
        st.builds(lambda *parts: ".".join(map(encoded, parts)), st.binary(), st.binary(), st.binary()),
        st.builds(lambda *parts: ".".join(encoded(json.dumps(part).encode()) for part in parts), _JSON, _JSON, _JSON),
    )
)
def test_a_text_that_nobody_signed_is_refused(text: str) -> None:
    with pytest.raises(TokenInvalidError):
        person(text, DIRECTORY, find, NOW)


def test_deep_nesting_is_refused() -> None:
    deep = encoded(b"[" * 5000)
    for text in (f"{deep}..", f"{encoded(b'{}')}.{deep}.", f"{sign(KEYCLOAK, KEY).split('.')[0]}.{deep}."):
        with pytest.raises(TokenInvalidError):
            person(text, DIRECTORY, find, NOW)


@given(st.integers(0, 400), st.integers(0, 7))
def test_a_token_with_one_bit_changed_is_refused(place: int, bit: int) -> None:
    token = bytearray(sign(KEYCLOAK, KEY).encode())
    token[place % len(token)] ^= 1 << bit
    with pytest.raises(TokenInvalidError):
        person(token.decode("latin-1"), DIRECTORY, find, NOW)


def test_of_a_key_set_only_keys_for_signatures_are_used_and_each_in_one_way() -> None:
    es256 = KEY.jwk()
    rsa = {name: value for name, value in RSA_KEY.jwk().items() if name != "alg"}
    encryption = {**RSA_KEY.jwk(), "kid": "enc", "use": "enc", "alg": "RSA-OAEP"}
    symmetric = {"kty": "oct", "kid": "hmac", "k": encoded(b"x" * 32), "alg": "HS256"}
    short = {"kty": "RSA", "kid": "short", "e": "AQAB", "n": encoded((2**1023 + 1).to_bytes(128, "big"))}
    wrong_curve = {**es256, "kid": "curve", "alg": "ES384"}
    nameless = {name: value for name, value in es256.items() if name != "kid"}
    keys = parse_key_set({"keys": [es256, rsa, encryption, symmetric, short, wrong_curve, nameless, None, "key", {}]})
    assert {name for name in keys if name[0] == "k1"} == {("k1", "ES256")}
    assert {name[0] for name in keys} == {"k1", "k2"}
    assert {algorithm for key_id, algorithm in keys if key_id == "k2"} == {"RS256", "RS384", "RS512", "PS256", "PS384", "PS512"}


def test_two_keys_of_one_id_are_both_left_out() -> None:
    assert not parse_key_set({"keys": [SigningKey("same").jwk(), SigningKey("same").jwk()]})


@given(_JSON)
def test_any_document_is_a_key_set_or_is_not(document: Any) -> None:
    try:
        parse_key_set({"keys": document})
    except KeySetInvalid:
        assert not isinstance(document, list)


def test_a_private_key_that_an_issuer_publishes_is_used_as_a_public_one() -> None:
    numbers = KEY.private.private_numbers()
    leaked = {**KEY.jwk(), "d": encoded(numbers.private_value.to_bytes(32, "big"))}
    ((_, key),) = parse_key_set({"keys": [leaked]}).items()
    assert not hasattr(key.key, "private_numbers")


def test_an_issuer_and_an_audience_belong_to_one_tenant() -> None:
    one = config(DEX["iss"], "groups", "a")
    with pytest.raises(ValueError, match="claimed twice"):
        TenantDirectory([Tenant(TenantName(name), "HK", 1, {}, (one,)) for name in ("bank", "broker")])
    with pytest.raises(ValueError, match="claimed twice"):
        TenantDirectory([Tenant(TenantName("bank"), "HK", 1, {}, (one, config(DEX["iss"], "groups", "b")))])
