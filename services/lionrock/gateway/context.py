"""The envelope of a request: who asks and why, the conversation as it is committed to, and the tenant's cache salt.

Knows how the gateway's own messages are built from a principal and a request. Does no I/O.
"""

from __future__ import annotations

import hmac
import json
import secrets
from collections.abc import Sequence
from hashlib import sha256

from lionrock.common.v1 import chat_pb2 as chat
from lionrock.common.v1 import context_pb2 as ctx
from lionrock.common.v1 import sampling_pb2 as sampling
from lionrock.gateway.tenants import AuthMethod, Principal, TenantName

_SEED_BITS = 53  # survives JSON readers that keep numbers as IEEE 754 doubles

_AUTH_METHODS = {
    AuthMethod.MTLS: ctx.AUTH_METHOD_MTLS,
    AuthMethod.OIDC: ctx.AUTH_METHOD_OIDC,
    AuthMethod.API_KEY: ctx.AUTH_METHOD_API_KEY,
}


def data_class_of(name: str) -> ctx.DataClass.ValueType:
    """Return the class of data of this name, as `data_class_name` writes it."""
    return ctx.DataClass.Value(f"DATA_CLASS_{name.upper()}")


def data_class_name(value: ctx.DataClass.ValueType) -> str:
    """Name in settings and grants of a declared data class; the undeclared is personal."""
    return ctx.DataClass.Name(value or ctx.DATA_CLASS_PERSONAL).removeprefix("DATA_CLASS_").lower()


def request_context(
    principal: Principal,
    request_id: str,
    *,
    purpose: str = "",
    case_id: str = "",
    conversation_id: str = "",
    data_class: ctx.DataClass.ValueType = ctx.DATA_CLASS_PERSONAL,
    access_policy_digest: str,
) -> ctx.RequestContext:
    """Return the envelope of every inner call. An empty purpose is the grant's default, an undeclared data class is personal.

    `access_policy_digest`: of the set of policies that decides on the request.
    """
    return ctx.RequestContext(
        request_id=request_id,
        tenant=principal.tenant.name,
        actor=principal.actor,
        auth_method=_AUTH_METHODS[principal.auth_method],
        roles=sorted(principal.grant.roles),
        purpose=purpose or principal.grant.purposes[0],
        case_id=case_id,
        conversation_id=conversation_id,
        data_class=data_class or ctx.DATA_CLASS_PERSONAL,
        territory=principal.tenant.territory,
        profile=principal.grant.profile,
        access_policy_digest=access_policy_digest,
    )


def committed_prompt(messages: Sequence[chat.ChatMessage], constraint: sampling.OutputConstraint | None) -> bytes:
    """Return the conversation that the model saw, as canonical JSON (RFC 8785): what the INTENT leaf commits to.

    {"messages": [{"content", "role", "tool_call_id"?}], "constraint"?: {"regex": "…"}}; roles as in "user".
    """
    conversation: dict[str, object] = {"messages": [_turn(message) for message in messages]}
    if constraint is not None and (kind := constraint.WhichOneof("constraint")):
        conversation["constraint"] = {kind: list(constraint.choice.values) if kind == "choice" else getattr(constraint, kind)}
    # Keys are ASCII and values are strings: sorted keys without white space or escapes of our own are already canonical.
    return json.dumps(conversation, ensure_ascii=False, separators=(",", ":"), sort_keys=True).encode()


def effective_sampling(asked: sampling.SamplingParams) -> sampling.SamplingParams:
    """Return what is asked for, with a seed wherever one counts."""
    params = sampling.SamplingParams()
    params.CopyFrom(asked)
    if params.temperature > 0 and not params.HasField("seed"):
        params.seed = secrets.randbits(_SEED_BITS)
    return params


def engine_sampling(params: sampling.SamplingParams, *, stops: bool) -> sampling.SamplingParams:
    """Return what the engine is told. stops: whether it knows stop strings.

    Their text is cut by the gateway in any case, where text is first seen; an engine that knows them ends by itself.
    """
    told = sampling.SamplingParams()
    told.CopyFrom(params)
    if not stops:
        del told.stop[:]
    return told


class CacheSalts:
    """Prefix-cache salts: a keyed hash of the tenant's name, so that nobody outside can compute or choose one (CVE-2025-46570)."""

    def __init__(self, secret: bytes) -> None:
        """`secret`: at least 32 bytes, the same in all gateways that share a pool."""
        if len(secret) < 32:
            raise ValueError("the secret of the cache salts has fewer than 32 bytes")
        self._secret = secret

    def of(self, tenant: TenantName) -> bytes:
        """Return the tenant's salt, 32 bytes."""
        return hmac.digest(self._secret, b"lionrock/cache-salt/v1\x00" + tenant.encode(), sha256)


def _turn(message: chat.ChatMessage) -> dict[str, str]:
    turn = {"content": message.content, "role": chat.ChatRole.Name(message.role).removeprefix("CHAT_ROLE_").lower()}
    if message.tool_call_id:
        turn["tool_call_id"] = message.tool_call_id
    return turn
