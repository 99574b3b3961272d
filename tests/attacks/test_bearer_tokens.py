"""Callers who show a token instead of a certificate, or beside one: the same walls between tenants, at every RPC and in every role.

What tokens are good at all is tested in tests/gateway/test_oidc.py and test_tokens.py. Here every token is good, at its own tenant.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf import duration_pb2

from attacks.answers import answer
from attacks.rpcs import ACTIONS, Kind, methods_of, name_of, sensible, ways_of
from attacks.tenants import BANK, BROKER, STRANGER, AttackedMesh, belongings_of, spiffe_id
from attacks.test_other_tenants import NO_STATUS_OF_OURS, compare, expected, unharmed
from audit_process import AuditProcess
from lionrock.gateway.v1 import api_key_pb2 as keys
from lionrock.gateway.v1 import gateway_pb2 as gw
from lionrock.gateway.v1.api_key_pb2_grpc import ApiKeyServiceStub
from lionrock.gateway.v1.gateway_pb2_grpc import GatewayServiceStub
from lionrock.tenancy.vocabulary import ROLES
from oidc_issuer import OidcIssuer

UNTIL = "2100-01-01T00:00:00Z"
KEY_ROLES = tuple(role for role in ROLES if role not in ("regulator", "platform_operator"))
"""A regulator's grant has an end that a key would have to keep, and an operator's caller makes nothing but lists of models."""
REFUSED = ("UNAUTHENTICATED", "TOKEN_INVALID")


class TokenMesh(AttackedMesh):
    """Its tenants have one issuer between them, which signs for each by an audience of its own."""

    def __init__(self, directory: Path, state: Path, audit_target: str, issuer: OidcIssuer) -> None:
        super().__init__(directory, state, audit_target)
        self._issuer = issuer
        granted: dict[str, Any] = {"purposes": ["testing"], "data_classes": ["personal", "suspicion"], "not_after": UNTIL}
        bindings = [{"value": role, "roles": [role], **granted} for role in ROLES]
        for settings in self.tenants:
            name = settings["name"]
            settings["issuers"] = [issuer.spec(audiences=[name], bindings=bindings)]
            settings["principals"].append({"spiffe_id": spiffe_id(name, "maker"), "roles": list(KEY_ROLES), **granted})

    def token(self, role: str, name: str = BROKER) -> str:
        """A token of somebody in a role of a tenant."""
        return self._issuer.token(sub=f"{name}-{role}", aud=name, groups=[role])

    @asynccontextmanager
    async def bearing(self, token: str) -> AsyncIterator[grpc.aio.Channel]:
        """A channel to the port for tokens, all of whose calls carry one."""
        trusting = grpc.ssl_channel_credentials(self.ca.authority.certificate_pem)
        credentials = grpc.composite_channel_credentials(trusting, grpc.access_token_call_credentials(token))
        options = [("grpc.ssl_target_name_override", "gateway.lionrock.internal")]
        target = f"127.0.0.1:{self.servers['gateway'].token_port}"
        async with grpc.aio.secure_channel(target, credentials, options=options) as channel:
            yield channel

    @asynccontextmanager
    async def all_bearing(self, tokens: Mapping[str, str]) -> AsyncIterator[Mapping[str, grpc.aio.Channel]]:
        """A channel for each token."""
        async with AsyncExitStack() as stack:
            yield {role: await stack.enter_async_context(self.bearing(token)) for role, token in tokens.items()}

    async def keys_known(self) -> None:
        """Wait until the gateway has the issuer's keys, and what a new API key needs."""
        async with asyncio.timeout(20), self.bearing(self.token("user")) as channel:
            await known(channel)

    async def api_keys(self) -> Mapping[str, str]:
        """Make a key of the broker's for each role, and wait until all are accepted."""
        made: dict[str, str] = {}
        async with self.by(self.ca.issue(spiffe_id=spiffe_id(BROKER, "maker"))) as maker:
            for role in KEY_ROLES:
                wanted = keys.CreateApiKeyRequest(
                    description=f"of {role}",
                    roles=[role],
                    purposes=["testing"],
                    models=["*"],
                    lifetime=duration_pb2.Duration(seconds=3600),
                )
                made[role] = (await ApiKeyServiceStub(maker).CreateApiKey(wanted)).secret
        for secret in made.values():
            async with asyncio.timeout(20), self.bearing(secret) as channel:
                await known(channel)
        return made


async def known(channel: grpc.aio.Channel) -> None:
    """Wait until a token is accepted, whatever it may do."""
    while True:
        try:
            await GatewayServiceStub(channel).ListModels(gw.ListModelsRequest(), timeout=20)
        except grpc.aio.AioRpcError as error:
            if error.code() is not grpc.StatusCode.UNAUTHENTICATED:
                return
        else:
            return


@pytest.fixture
async def mesh(audit_service: tuple[Path, AuditProcess], tmp_path: Path) -> AsyncIterator[TokenMesh]:
    """A gateway whose callers may have tokens."""
    directory, process = audit_service
    async with OidcIssuer(tmp_path / "issuer").serving() as issuer:
        made = TokenMesh(directory, tmp_path, process.target, issuer)
        async with made.running():
            await made.keys_known()
            yield made


async def test_a_person_in_a_role_is_refused_what_a_certificate_of_the_role_is_refused(mesh: TokenMesh) -> None:
    async with mesh.all_bearing({role: mesh.token(role) for role in (*ROLES, STRANGER)}) as channels:
        for method in methods_of(mesh.registrations):
            for role, channel in channels.items():
                got = await answer(channel, method, sensible(method))
                wanted, where = expected(method, role), f"{role}: {name_of(method)}: {got}"
                assert got.status not in NO_STATUS_OF_OURS, where
                if wanted is not None:
                    assert (got.status, got.reason) == wanted, where
                else:
                    assert got.reason not in ("ROLE_NOT_PERMITTED", "CALLER_NOT_PERMITTED", "UNKNOWN_PRINCIPAL"), where


async def test_what_another_tenant_has_is_as_what_nobody_has_for_the_bearer_of_a_token(mesh: TokenMesh) -> None:
    theirs = await belongings_of(mesh)
    ways = [way for method in methods_of(mesh.registrations) for way in ways_of(method) if way.kind is not Kind.LEAF]
    async with mesh.all_bearing({role: mesh.token(role) for role in ROLES}) as people:
        for way in ways:
            for role, channel in people.items():
                await compare(channel, way, theirs, role)
    async with mesh.all_bearing(await mesh.api_keys()) as workloads:
        for way in ways:
            for role, channel in workloads.items():
                await compare(channel, way, theirs, role, allowed_less=True)
    await unharmed(mesh, theirs)


async def test_a_token_of_one_tenant_is_nothing_beside_a_certificate_of_another(mesh: TokenMesh) -> None:
    """At every RPC, with every role's token, and as no token at all that is good is."""
    made = await mesh.api_keys()
    good = [mesh.token(role, BANK) for role in ("user", "tenant_admin", "privacy_officer", "regulator")]
    async with mesh.as_("tenant_admin", BROKER) as broker, mesh.as_("tenant_admin", BANK) as bank:
        asked = [
            answer(channel, method, sensible(method), metadata=[("authorization", f"Bearer {token}")])
            for method in methods_of(mesh.registrations)
            if ACTIONS[name_of(method)] is not None
            for channel, tokens in ((broker, good), (bank, [made["user"], made["tenant_admin"]]))
            for token in tokens
        ]
        # Refusals take a while each, and so many may wait at once.
        answers = [got for start in range(0, len(asked), 32) for got in await asyncio.gather(*asked[start : start + 32])]
    assert {(got.status, got.reason) for got in answers} == {REFUSED}
    assert len({got.told for got in answers}) == 1
