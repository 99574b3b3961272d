"""API keys: what one looks like, what it may do, and how it is recognised without being kept.

Knows the text of a key, its scope and its mark. Does not know where marks are kept (api_key_rows.py), or who may make keys
(api_key_servicer.py). Pure.

    lrk_<key id>_<secret>      key id: 16 hexadecimal digits; secret: 32 random bytes, base64url without padding

What is kept is a mark: HMAC-SHA-256 (RFC 2104) under a secret of the gateways over the key's secret and everything that the key may
do. Whoever reads the rows can make no key of them; whoever can write them can neither make a key nor widen one, move it to another
tenant or let it live beyond the end that it was made with. The secret has 256 random bits: a slow hash would defend nothing here.
"""

from __future__ import annotations

import base64
import hmac
import json
import re
import secrets
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from hashlib import sha256
from typing import Final, NewType

from lionrock.gateway.tenants import ANY_MODEL, AuthMethod, Grant, Principal, Tenant

KeyId = NewType("KeyId", str)

PREFIX: Final = "lrk_"
MIN_SERVER_SECRET_BYTES: Final = 32
_TEXT: Final = re.compile(r"lrk_([0-9a-f]{16})_([A-Za-z0-9_-]{43})")
_KEY_ID_BYTES: Final = 8
_SECRET_BYTES: Final = 32
_MARK_CONTEXT: Final = b"lionrock/api-key/v1\x00"


@dataclass(frozen=True, slots=True)
class ApiKey:
    """A key without its secret. `grant.not_after` is None: a key's end is `expires_at_us`, microseconds since 1970.

    `retires_at_us`: from when its successor has taken its place; `revoked_at_us`: from when it is refused. `created_by`: the actor.
    """

    key_id: KeyId
    tenant: str
    description: str
    grant: Grant
    created_by: str
    created_at_us: int
    expires_at_us: int
    retires_at_us: int | None = None
    revoked_at_us: int | None = None

    @property
    def ends_at_us(self) -> int:
        """From when it is not accepted, unless it is revoked before."""
        return self.expires_at_us if self.retires_at_us is None else min(self.expires_at_us, self.retires_at_us)

    @property
    def actor(self) -> str:
        """Its holder, as the audit log names them."""
        return f"api-key:{self.key_id}"


def make_secret() -> str:
    """Draw the secret of a key."""
    return base64.urlsafe_b64encode(secrets.token_bytes(_SECRET_BYTES)).rstrip(b"=").decode()


def make_key_id() -> KeyId:
    """Draw the id of a key."""
    return KeyId(secrets.token_hex(_KEY_ID_BYTES))


def written(key_id: KeyId, secret: str) -> str:
    """Return the key as its holder sends it."""
    return f"{PREFIX}{key_id}_{secret}"


def read(text: str) -> tuple[KeyId, str] | None:
    """Return key id and secret of a bearer token; None for what has not the form of a key."""
    found = _TEXT.fullmatch(text)
    return None if found is None else (KeyId(found[1]), found[2])


class Marks:
    """Makes and checks marks."""

    def __init__(self, server_secret: bytes) -> None:
        """`server_secret`: the same in all gateways. Raises ValueError."""
        if len(server_secret) < MIN_SERVER_SECRET_BYTES:
            raise ValueError(f"the secret of the API keys has fewer than {MIN_SERVER_SECRET_BYTES} bytes")
        self._secret = server_secret

    def of(self, key: ApiKey, secret: str) -> bytes:
        """Return the mark of a key, 32 bytes."""
        grant = key.grant
        marked = [
            key.key_id, key.tenant, key.created_by, key.created_at_us, key.expires_at_us, secret,
            list(grant.roles), list(grant.purposes), sorted(grant.models), sorted(grant.data_classes),
            grant.profile, grant.max_streams, grant.batch,
        ]  # fmt: skip
        return hmac.digest(self._secret, _MARK_CONTEXT + json.dumps(marked, separators=(",", ":")).encode(), sha256)

    def fits(self, key: ApiKey, mark: bytes, secret: str) -> bool:
        """Whether this secret is the key's, compared in constant time."""
        return hmac.compare_digest(self.of(key, secret), mark)


def not_held(principal: Principal, asked: Grant) -> tuple[str, ...]:
    """Return the fields in which a grant goes beyond the principal's own, sorted; empty when it does not."""
    held = principal.grant
    models = ANY_MODEL in held.models or (ANY_MODEL not in asked.models and asked.models <= held.models)
    fields = {
        "roles": set(asked.roles) <= set(held.roles),
        "purposes": set(asked.purposes) <= set(held.purposes),
        "data_classes": asked.data_classes <= held.data_classes,
        "models": models,
    }
    return tuple(sorted(name for name, within in fields.items() if not within))


def holder(key: ApiKey, tenant: Tenant) -> Principal | None:
    """Return the principal of a key, within what its tenant grants to anybody at all now; None when nothing is left of it."""
    granted = (*tenant.grants.values(), *(grant for issuer in tenant.issuers for _, grant in issuer.bindings))
    models = frozenset[str]().union(*(grant.models for grant in granted))
    has, stated = key.grant, key.grant.models
    left = stated if ANY_MODEL in models else models if ANY_MODEL in stated else stated & models
    grant = replace(
        has,
        roles=tuple(role for role in has.roles if any(role in other.roles for other in granted)),
        purposes=tuple(purpose for purpose in has.purposes if any(purpose in other.purposes for other in granted)),
        models=left,
        data_classes=has.data_classes & frozenset[str]().union(*(other.data_classes for other in granted)),
        not_after=datetime.fromtimestamp(key.ends_at_us / 1e6, UTC),
    )
    if not (grant.roles and grant.purposes and grant.models and grant.data_classes):
        return None
    return Principal(key.actor, tenant, grant, AuthMethod.API_KEY, other_names=frozenset({key.created_by}))
