"""ApiKeyService on the wire: who may make, see, replace and end the API keys of a tenant.

Knows messages, and that a key never reaches beyond who makes it: its roles, purposes, classes of data and models are among theirs,
its bound on open answers and its guardrail profile are theirs, and it ends no later than their own grant. Does not know how a key
is recognised (api_keys.py) or kept (api_key_rows.py). What it logs names keys by their ids.

A key is made, replaced and ended after a leaf in the tenant's audit log says so ("api_key.created", "api_key.rotated",
"api_key.revoked"). Where the state fails in between, the caller gets its error, and the list of keys says what became of it: a leaf
alone makes no key. The description, which a person wrote, goes to the vault.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from hashlib import sha256
from typing import Any, Final

import grpc
from google.protobuf.timestamp_pb2 import Timestamp

from lionrock.audit.v1 import audit_pb2 as audit
from lionrock.chassis.errors import InvalidField
from lionrock.gateway import errors
from lionrock.gateway.authorization import AccessRequest, Action, Authorizer
from lionrock.gateway.governance import context_of, fits_detail, governance_leaf
from lionrock.gateway.identity import api_key_rows as rows
from lionrock.gateway.identity.api_keys import ApiKey, KeyId, Marks, make_key_id, make_secret, not_held, written
from lionrock.gateway.identity.authenticator import Authenticator
from lionrock.gateway.identity.grpc_caller import caller_of_rpc
from lionrock.gateway.identity.live_keys import REVOKED_WITHIN_S
from lionrock.gateway.peers import AuditLog, Deadline
from lionrock.gateway.refusals import permit
from lionrock.gateway.state.store import StateConflict, StateStore, StateUnavailable
from lionrock.gateway.tenants import ANY_MODEL, AuthMethod, Grant, Principal
from lionrock.gateway.v1 import api_key_pb2 as pb
from lionrock.gateway.v1.api_key_pb2_grpc import ApiKeyServiceServicer

log = logging.getLogger("lionrock.gateway")

SERVICE_NAME: Final = "lionrock.gateway.v1.ApiKeyService"
_ORDINARY_DATA_CLASSES: Final = frozenset({"public", "internal", "personal"})
_MIN_LIFETIME_US: Final = 60 * 1_000_000

Context = grpc.aio.ServicerContext[Any, Any]


class ApiKeyServicer(ApiKeyServiceServicer):
    """The RPCs of api_key.proto."""

    def __init__(
        self,
        authenticator: Authenticator,
        authorizer: Authorizer,
        store: StateStore,
        marks: Marks,
        audit_log: AuditLog,
        *,
        max_lifetime_s: float,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        """`max_lifetime_s`: of a key. `wall_clock`: seconds since 1970."""
        self._authenticator = authenticator
        self._authorizer = authorizer
        self._store = store
        self._marks = marks
        self._audit_log = audit_log
        self._max_lifetime_us = round(max_lifetime_s * 1e6)
        self._wall_clock = wall_clock

    async def CreateApiKey(self, request: pb.CreateApiKeyRequest, context: Context) -> pb.CreateApiKeyResponse:  # noqa: N802
        """Make a key within the caller's own grant."""
        del context
        principal, deadline = await self._manager(Action.ISSUE_API_KEYS)
        held = principal.grant
        grant = Grant(
            roles=tuple(request.roles),
            purposes=tuple(request.purposes),
            models=frozenset(request.models),
            data_classes=frozenset(request.data_classes) or _ORDINARY_DATA_CLASSES & held.data_classes,
            profile=held.profile,
            max_streams=held.max_streams,
            batch=held.batch,
        )
        lifetime_us = request.lifetime.ToMicroseconds()
        if lifetime_us > self._max_lifetime_us:
            rule = f"at most {self._max_lifetime_us // 1_000_000} s"
            raise InvalidField("the key would live too long", field_violations=[("lifetime", rule)])
        key, secret = self._new(principal, request.description, grant, lifetime_us)
        with _explained():
            await rows.check_room(self._store, key.tenant)
        position = await self._record(principal, deadline, "created", key.key_id, _facts(key), request.description)
        with _explained():
            await rows.insert(self._store, rows.KeyRow(key, self._marks.of(key, secret)))
        log.info("API key made", extra={"api_key": key.key_id, "tenant": key.tenant, "by": principal.actor})
        return pb.CreateApiKeyResponse(key=_message(key), secret=written(key.key_id, secret), position=position)

    async def ListApiKeys(self, request: pb.ListApiKeysRequest, context: Context) -> pb.ListApiKeysResponse:  # noqa: N802
        """List the tenant's keys, those that have ended too, in the order of their ids."""
        del context
        principal, _ = await self._manager(Action.LIST_API_KEYS)
        with _explained():
            found = await rows.page(self._store, principal.tenant.name, request.page_token, request.page_size + 1)
        shown = found[: request.page_size]
        token = shown[-1].key_id if len(found) > len(shown) else ""
        return pb.ListApiKeysResponse(keys=[_message(key) for key in shown], next_page_token=token)

    async def RotateApiKey(self, request: pb.RotateApiKeyRequest, context: Context) -> pb.RotateApiKeyResponse:  # noqa: N802
        """Make a successor within the caller's own grant, as if they made the key."""
        del context
        principal, deadline = await self._manager(Action.ISSUE_API_KEYS)
        old_id = KeyId(request.key_id)
        with _explained():
            old = await rows.without_successor(self._store, principal.tenant.name, old_id)
        lifetime_us = min(old.expires_at_us - old.created_at_us, self._max_lifetime_us)
        key, secret = self._new(principal, old.description, old.grant, lifetime_us)
        retires_at_us = min(key.created_at_us + request.overlap.ToMicroseconds(), old.expires_at_us)
        facts = {**_facts(key), "successor": key.key_id, "retires_at": _time(retires_at_us)}
        with _explained():
            await rows.check_room(self._store, key.tenant)
        position = await self._record(principal, deadline, "rotated", old_id, facts, old.description)
        with _explained():
            await rows.rotate(self._store, old_id, retires_at_us, rows.KeyRow(key, self._marks.of(key, secret)))
        log.info("API key rotated", extra={"api_key": old_id, "successor": key.key_id, "tenant": key.tenant, "by": principal.actor})
        return pb.RotateApiKeyResponse(key=_message(key), secret=written(key.key_id, secret), position=position)

    async def RevokeApiKey(self, request: pb.RevokeApiKeyRequest, context: Context) -> pb.RevokeApiKeyResponse:  # noqa: N802
        """End a key of the tenant."""
        del context
        principal, deadline = await self._manager(Action.REVOKE_API_KEYS)
        with _explained():
            ending = await rows.one(self._store, principal.tenant.name, KeyId(request.key_id))
        facts = {"expires_at": _time(ending.expires_at_us)}
        position = await self._record(principal, deadline, "revoked", ending.key_id, facts)
        with _explained():
            await rows.revoke(self._store, principal.tenant.name, ending.key_id)
        log.info("API key revoked", extra={"api_key": ending.key_id, "tenant": principal.tenant.name, "by": principal.actor})
        effective_at = _timestamp(self._now_us() + round(REVOKED_WITHIN_S * 1e6))
        return pb.RevokeApiKeyResponse(effective_at=effective_at, position=position)

    async def _record(
        self, principal: Principal, deadline: Deadline, what: str, key_id: KeyId, details: Mapping[str, str], description: str = ""
    ) -> audit.LeafPosition:
        """Write down what is about to be done to a key. Raises AuditUnavailable, Overloaded."""
        leaf = governance_leaf(
            context_of(principal, self._authorizer.digest), f"api_key.{what}", key_id, details=details, statement=description
        )
        return (await self._audit_log.append(leaf, deadline)).position

    async def _manager(self, action: Action) -> tuple[Principal, Deadline]:
        """Return the caller, if they may do this to keys. Raises RoleNotPermitted for an API key."""
        principal, deadline = await caller_of_rpc(self._authenticator)
        permit(self._authorizer, principal, AccessRequest(action))
        if principal.auth_method is AuthMethod.API_KEY:
            raise errors.RoleNotPermitted("an API key manages no API keys")
        return principal, deadline

    def _new(self, principal: Principal, description: str, grant: Grant, lifetime_us: int) -> tuple[ApiKey, str]:
        """Make a key and its secret. Raises ScopeNotHeld, InvalidField."""
        beyond = not_held(principal, grant)
        if beyond:
            violations = [(name, "more than the caller holds") for name in beyond]
            raise errors.ScopeNotHeld("a key may do no more than who makes it", field_violations=violations)
        now_us = self._now_us()
        expires_at_us = now_us + lifetime_us
        if principal.grant.not_after is not None:
            expires_at_us = min(expires_at_us, round(principal.grant.not_after.timestamp() * 1e6))
        if expires_at_us < now_us + _MIN_LIFETIME_US:
            raise InvalidField("the key would live too short", field_violations=[("lifetime", "a minute at least")])
        held = principal.grant
        grant = replace(grant, profile=held.profile, max_streams=held.max_streams, batch=held.batch)
        key = ApiKey(make_key_id(), principal.tenant.name, description, grant, principal.actor, now_us, expires_at_us)
        return key, make_secret()

    def _now_us(self) -> int:
        return round(self._wall_clock() * 1e6)


@contextmanager
def _explained() -> Iterator[None]:
    """Turn what the rows raise into what the caller sees."""
    try:
        yield
    except rows.KeyNotFoundError as error:
        raise errors.ApiKeyNotFound("no such API key, or it has ended or has a successor") from error
    except rows.TooManyKeysError as error:
        raise errors.TooManyApiKeys(f"the tenant has {rows.MAX_KEYS_PER_TENANT} API keys") from error
    except (StateUnavailable, StateConflict) as error:
        raise errors.ApiKeysUnavailable("API keys cannot be changed or listed at the moment") from error


def _message(key: ApiKey) -> pb.ApiKey:
    message = pb.ApiKey(
        key_id=key.key_id,
        description=key.description,
        roles=key.grant.roles,
        purposes=key.grant.purposes,
        models=sorted(key.grant.models),
        data_classes=sorted(key.grant.data_classes),
        created_by=key.created_by,
        created_at=_timestamp(key.created_at_us),
        expires_at=_timestamp(key.expires_at_us),
    )
    if key.retires_at_us is not None:
        message.retires_at.CopyFrom(_timestamp(key.retires_at_us))
    if key.revoked_at_us is not None:
        message.revoked_at.CopyFrom(_timestamp(key.revoked_at_us))
    return message


def _facts(key: ApiKey) -> dict[str, str]:
    """Say what a key can do, as far as it fits a leaf; `scope_digest` is over all of it, as ListApiKeys shows it."""
    scope = {
        "data_classes": sorted(key.grant.data_classes),
        "models": sorted(key.grant.models),
        "purposes": list(key.grant.purposes),
        "roles": list(key.grant.roles),
    }
    canonical = json.dumps(scope, ensure_ascii=False, separators=(",", ":")).encode()  # names are sorted and ASCII
    shown = {name: "any" if ANY_MODEL in values else ", ".join(values) for name, values in scope.items()}
    return {
        **{name: text for name, text in shown.items() if fits_detail(text)},
        "scope_digest": f"sha256:{sha256(canonical).hexdigest()}",
        "expires_at": _time(key.expires_at_us),
    }


def _time(time_us: int) -> str:
    return datetime.fromtimestamp(time_us / 1e6, UTC).isoformat(timespec="seconds").replace("+00:00", "Z")


def _timestamp(time_us: int) -> Timestamp:
    value = Timestamp()
    value.FromMicroseconds(time_us)
    return value
