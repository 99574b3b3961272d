"""A JSON Web Key Set, as the public keys that signatures of tokens are checked with.

Knows RFC 7517 and RFC 7518 as far as signatures go. A key is filed under its id and the one algorithm that it is used for, so that
no token can have a key used in another way than its owner meant. What cannot be used is left out: keys for encryption, symmetric
keys, RSA below 2048 bits, curves that do not fit. Two keys of one id and algorithm are both left out: nothing says which is meant.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from jwt import PyJWK
from jwt.exceptions import PyJWTError

MAX_KEYS: Final = 64
MAX_KEY_ID_CHARS: Final = 256
_MIN_RSA_BITS: Final = 2048
_MAX_RSA_BITS: Final = 8192
_RSA = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512")
_CURVE_ALGORITHMS: Final = {"P-256": "ES256", "P-384": "ES384", "P-521": "ES512", "Ed25519": "EdDSA"}
_PUBLIC_MEMBERS: Final = ("kty", "n", "e", "crv", "x", "y")
ALGORITHMS: Final = frozenset({*_RSA, *_CURVE_ALGORITHMS.values()})
"""What a token may be signed with. All of them asymmetric: with the others, whoever can check a token can make one."""

KeySet = Mapping[tuple[str, str], PyJWK]
"""By key id and algorithm."""


class KeySetInvalid(Exception):
    """The document is no JSON Web Key Set, or one that is too large. The text quotes nothing of it."""


def parse_key_set(document: Mapping[str, Any]) -> KeySet:
    """Return the keys that can be used; an empty set is one. Raises KeySetInvalid."""
    keys = document.get("keys")
    if not isinstance(keys, list):
        raise KeySetInvalid("the key set has no list of keys")
    if len(keys) > MAX_KEYS:
        raise KeySetInvalid(f"the key set has more than {MAX_KEYS} keys")
    usable: dict[tuple[str, str], PyJWK] = {}
    ambiguous: set[tuple[str, str]] = set()
    for key in keys:
        for name, parsed in _usable(key):
            if name in usable:
                ambiguous.add(name)
            usable[name] = parsed
    return {name: key for name, key in usable.items() if name not in ambiguous}


def _usable(key: object) -> list[tuple[tuple[str, str], PyJWK]]:
    """Return a key once for each algorithm that it is good for."""
    if not isinstance(key, dict):
        return []
    key_id = key.get("kid")
    operations = key.get("key_ops", ["verify"])
    if not isinstance(key_id, str) or not 0 < len(key_id) <= MAX_KEY_ID_CHARS:
        return []
    if key.get("use", "sig") != "sig" or not isinstance(operations, list) or "verify" not in operations:
        return []
    public = {member: key[member] for member in _PUBLIC_MEMBERS if member in key}  # a private key has no business here
    found = []
    for algorithm in _algorithms(key):
        try:
            parsed = PyJWK(public, algorithm)
        except (PyJWTError, ValueError, TypeError):
            continue
        if isinstance(parsed.key, RSAPublicKey) and not _MIN_RSA_BITS <= parsed.key.key_size <= _MAX_RSA_BITS:
            continue
        found.append(((key_id, algorithm), parsed))
    return found


def _algorithms(key: Mapping[str, Any]) -> tuple[str, ...]:
    """Return what the key's type allows, and of that the one algorithm that it states, if it does."""
    curve = key.get("crv")
    match key.get("kty"):
        case "RSA":
            allowed: tuple[str, ...] = _RSA
        case "EC" if curve in ("P-256", "P-384", "P-521"):
            allowed = (_CURVE_ALGORITHMS[curve],)
        case "OKP" if curve == "Ed25519":
            allowed = (_CURVE_ALGORITHMS[curve],)
        case _:
            return ()
    stated = key.get("alg")
    return allowed if stated is None else tuple(algorithm for algorithm in allowed if algorithm == stated)
