"""People's tokens on the wire: a real issuer, a real gateway, and what neither may be talked into."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import json
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import jwt
import pytest
from cryptography.hazmat.primitives import serialization

from lionrock.audit.v1 import records_pb2 as rec
from lionrock.audit.v1.records_pb2_grpc import RecordsServiceStub
from lionrock.common.v1 import context_pb2 as ctx
from lionrock.gateway.identity.authenticator import MAX_REFUSALS_WAITING, Presented, authenticating
from lionrock.gateway.identity.failures import RefusalsFullError, TokenInvalidError
from lionrock.gateway.tenants import Grant, IssuerConfig, KeyLocation, Tenant, TenantDirectory, TenantName
from lionrock.gateway.v1 import gateway_pb2 as gw
from lionrock.gateway.v1.gateway_pb2_grpc import GatewayServiceStub
from oidc_issuer import AUDIENCE, OidcIssuer, SigningKey
from scripted_mesh import ScriptedMesh, tenant


def bearer(token: str) -> list[tuple[str, str]]:
    return [("authorization", f"Bearer {token}")]


@pytest.fixture
async def issuer(tmp_path: Path) -> AsyncIterator[OidcIssuer]:
    async with OidcIssuer(tmp_path).serving() as serving:
        yield serving


@asynccontextmanager
async def bank(mesh: ScriptedMesh, issuer: OidcIssuer, **changes: Any) -> AsyncIterator[Any]:
    """A gateway whose bank has this issuer; calls come with the certificate of the bank's front end."""
    mesh.tenants = [{**tenant("bank"), "issuers": [issuer.spec(**changes)]}, tenant("broker")]
    async with mesh.running(), mesh.calling() as stub:
        yield stub


async def test_a_token_beside_a_certificate_makes_its_person_the_principal(
    idle_mesh: ScriptedMesh, issuer: OidcIssuer, ask: Any, hear: Any
) -> None:
    async with bank(idle_mesh, issuer) as stub:
        await hear(stub.Chat(ask(), metadata=bearer(issuer.token())))
    context = idle_mesh.guardrails.requests[0].context
    assert (context.tenant, context.actor) == ("bank", f"{issuer.url}#ada")
    assert (context.auth_method, context.purpose) == (ctx.AUTH_METHOD_OIDC, "customer_service")


async def refused(stub: Any, failure: Any, token: str) -> tuple[str, str | None, str]:
    error = await failure(stub.ListModels(gw.ListModelsRequest(), metadata=bearer(token)))
    return error.status.name, error.reason, error.metadata.get("why", "")


async def accepted(stub: Any, token: str) -> None:
    """Wait until a token is accepted: until the keys of its issuer have been fetched, which no answer waits for."""
    async with asyncio.timeout(10):
        while True:
            try:
                await stub.ListModels(gw.ListModelsRequest(), metadata=bearer(token))
            except grpc.aio.AioRpcError as error:
                if error.code() is not grpc.StatusCode.UNAUTHENTICATED:
                    raise
            else:
                return


NOT_ACCEPTED = ("UNAUTHENTICATED", "TOKEN_INVALID", "NOT_ACCEPTED")
MALFORMED = ("UNAUTHENTICATED", "TOKEN_INVALID", "MALFORMED")


def forged(header: dict[str, Any], claims: dict[str, Any], signature: bytes = b"") -> str:
    def encoded(value: bytes) -> str:
        return base64.urlsafe_b64encode(value).rstrip(b"=").decode()

    return ".".join([encoded(json.dumps(header).encode()), encoded(json.dumps(claims).encode()), encoded(signature)])


async def test_tokens_that_nobody_signed_for_us_are_not_accepted(idle_mesh: ScriptedMesh, issuer: OidcIssuer, failure: Any) -> None:
    issuer.keys = [SigningKey("first", "RS256")]
    key, stranger = issuer.keys[0], SigningKey("first", "RS256")
    public = key.private.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    hs256 = forged({"alg": "HS256", "kid": key.kid}, issuer.claims())
    signing_input = hs256.rpartition(".")[0].encode()
    confused = hs256 + base64.urlsafe_b64encode(hmac.digest(public, signing_input, hashlib.sha256)).rstrip(b"=").decode()
    good = issuer.token()
    attacks = {
        "no algorithm": forged({"alg": "none", "kid": key.kid}, issuer.claims()),
        "no algorithm, in capitals": forged({"alg": "NONE", "kid": key.kid}, issuer.claims()),
        "an HMAC under the public key": confused,
        "another's key under the same id": issuer.token(stranger),
        "another key's id": issuer.token(headers={"kid": "second"}),
        "a path as key id": issuer.token(headers={"kid": "../../../../dev/null"}),
        "an algorithm that is not pinned": jwt.encode(issuer.claims(), key.private, "RS512", {"kid": key.kid}),
        "another audience": issuer.token(aud="another-service"),
        "no audience": issuer.token(aud=None),
        "another issuer": issuer.token(iss="https://login.example.com"),
        "the issuer with a slash": issuer.token(iss=issuer.url + "/"),
        "no subject": issuer.token(sub=None),
        "a subject with a line end": issuer.token(sub="ada\nbob"),
        "no end": issuer.token(exp=None),
        "no beginning": issuer.token(iat=None),
        "an end that is no number": issuer.token(exp=float("nan")),
        "other claims under the signature": ".".join(
            [good.split(".")[0], forged({}, issuer.claims(sub="eve")).split(".")[1], good.split(".")[2]]
        ),
    }
    async with bank(idle_mesh, issuer) as stub:
        for name, token in attacks.items():
            assert await refused(stub, failure, token) == NOT_ACCEPTED, name
        await stub.ListModels(gw.ListModelsRequest(), metadata=bearer(good))
    assert not idle_mesh.log.leaves


async def test_what_is_no_token_of_an_accepted_kind_is_malformed(idle_mesh: ScriptedMesh, issuer: OidcIssuer, failure: Any) -> None:
    key = issuer.keys[0]
    async with bank(idle_mesh, issuer) as stub:
        for name, token in {
            "empty": "",
            "no token": "secret",
            "too large": issuer.token(padding="x" * 9000),
            "a key of its own": issuer.token(headers={"jwk": key.jwk()}),
            "keys from elsewhere": issuer.token(headers={"jku": "https://evil.example/keys"}),
            "a certificate from elsewhere": issuer.token(headers={"x5u": "https://evil.example/cert"}),
            "a certificate of its own": issuer.token(headers={"x5c": ["MIIB"]}),
            "something critical": issuer.token(headers={"crit": ["exp"]}),
            "a logout token": issuer.token(headers={"typ": "logout+jwt"}),
            "no key id": jwt.encode(issuer.claims(), key.private, key.algorithm),
            "claims that are a list": forged({"alg": "ES256", "kid": "first"}, []),  # type: ignore[arg-type]
            "five parts": issuer.token() + ".a.b",
        }.items():
            assert await refused(stub, failure, token) == MALFORMED, name
        for metadata in (
            [("authorization", "Basic YTpi")],
            [("authorization", "Bearer")],
            [*bearer(issuer.token()), *bearer(issuer.token())],
        ):
            error = await failure(stub.ListModels(gw.ListModelsRequest(), metadata=metadata))
            assert (error.reason, error.metadata["why"]) == ("TOKEN_INVALID", "MALFORMED")


async def test_the_bearer_of_a_good_token_learns_what_is_wrong_with_its_time(
    idle_mesh: ScriptedMesh, issuer: OidcIssuer, failure: Any
) -> None:
    now = int(time.time())
    async with bank(idle_mesh, issuer, clock_skew_seconds=5, max_token_age_seconds=600) as stub:

        async def said(**changes: Any) -> tuple[str | None, str]:
            return (await refused(stub, failure, issuer.token(**changes)))[1:]

        assert await said(exp=now - 60) == ("TOKEN_EXPIRED", "")
        assert await said(nbf=now + 60) == ("TOKEN_INVALID", "NOT_YET_VALID")
        assert await said(iat=now + 60) == ("TOKEN_INVALID", "NOT_YET_VALID")
        assert await said(iat=now - 700) == ("TOKEN_INVALID", "TOO_OLD")
        assert await said(groups=["strangers"]) == ("UNKNOWN_PRINCIPAL", "")
        assert await said(groups=None) == ("UNKNOWN_PRINCIPAL", "")
        # An expired token for somebody else says no more than any other token for somebody else.
        assert await said(exp=now - 60, aud="another-service") == ("TOKEN_INVALID", "NOT_ACCEPTED")
        skewed = issuer.token(exp=now - 2, iat=now + 2, nbf=now + 2)
        await stub.ListModels(gw.ListModelsRequest(), metadata=bearer(skewed))


async def test_a_token_is_good_at_its_own_tenant_alone(
    idle_mesh: ScriptedMesh, issuer: OidcIssuer, tmp_path: Path, failure: Any
) -> None:
    async with OidcIssuer(tmp_path / "other").serving() as other:
        idle_mesh.tenants = [
            {**tenant("bank"), "issuers": [issuer.spec()]},
            {**tenant("broker"), "issuers": [other.spec(), issuer.spec(audiences=["broker-desk"])]},
        ]
        async with idle_mesh.running():
            async with idle_mesh.calling(idle_mesh.identity("broker")) as broker:
                await broker.ListModels(gw.ListModelsRequest(), metadata=bearer(other.token()))
                await broker.ListModels(gw.ListModelsRequest(), metadata=bearer(issuer.token(aud="broker-desk")))
                # The bank's token, replayed; and one that is for both.
                assert await refused(broker, failure, issuer.token()) == NOT_ACCEPTED
                assert await refused(broker, failure, issuer.token(aud=[AUDIENCE, "broker-desk"])) == NOT_ACCEPTED
                # The broker's issuer, or its key, speaking for the bank's.
                assert await refused(broker, failure, issuer.token(other.keys[0])) == NOT_ACCEPTED
            async with idle_mesh.calling() as bank_stub:
                assert await refused(bank_stub, failure, other.token()) == NOT_ACCEPTED
            async with idle_mesh.calling(idle_mesh.identity("stranger")) as stranger:
                assert (await refused(stranger, failure, issuer.token()))[1] == "UNKNOWN_PRINCIPAL"


async def test_a_token_that_was_issued_to_another_client_is_not_accepted(
    idle_mesh: ScriptedMesh, issuer: OidcIssuer, failure: Any
) -> None:
    async with bank(idle_mesh, issuer, authorized_parties=["teller-desk"]) as stub:
        await stub.ListModels(gw.ListModelsRequest(), metadata=bearer(issuer.token(azp="teller-desk")))
        await stub.ListModels(gw.ListModelsRequest(), metadata=bearer(issuer.token(client_id="teller-desk")))
        for party in ({"azp": "payroll"}, {}, {"azp": "payroll", "client_id": "teller-desk"}, {"azp": ["teller-desk"]}):
            assert await refused(stub, failure, issuer.token(**party)) == NOT_ACCEPTED


async def test_the_first_binding_that_a_token_has_is_its_grant(
    idle_mesh: ScriptedMesh, issuer: OidcIssuer, ask: Any, hear: Any
) -> None:
    bindings = [
        {"value": "auditors", "roles": ["auditor"], "purposes": ["oversight"]},
        {"value": "tellers", "purposes": ["customer_service"]},
    ]
    async with bank(idle_mesh, issuer, bindings=bindings, roles_claim="realm_access.roles") as stub:
        both = {"groups": None, "realm_access": {"roles": ["tellers", "auditors"]}}
        assert (await stub.ListAuditKeys(gw.ListAuditKeysRequest(), metadata=bearer(issuer.token(**both)))).verifier_keys
        one = {"groups": None, "realm_access": {"roles": ["tellers", 7, None]}}
        await hear(stub.Chat(ask(), metadata=bearer(issuer.token(**one))))
        named = {"realm_access.roles": "tellers"}
        await hear(stub.Chat(ask(), metadata=bearer(issuer.token(**named))))
    assert {tuple(request.context.roles) for request in idle_mesh.guardrails.requests} == {("user",)}


@pytest.mark.parametrize("algorithm", ["RS256", "PS256", "ES256", "ES384", "EdDSA"])
async def test_every_kind_of_key_that_a_tenant_may_pin_works(idle_mesh: ScriptedMesh, issuer: OidcIssuer, algorithm: str) -> None:
    issuer.keys = [SigningKey("k", algorithm)]
    async with bank(idle_mesh, issuer, algorithms=[algorithm]) as stub:
        await stub.ListModels(gw.ListModelsRequest(), metadata=bearer(issuer.token()))


async def test_a_new_key_is_fetched_when_a_token_names_it_and_an_old_one_is_forgotten(
    idle_mesh: ScriptedMesh, issuer: OidcIssuer, failure: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lionrock.gateway.identity.issuer_keys.MIN_REFETCH_S", 0.0)
    async with bank(idle_mesh, issuer) as stub:
        first = issuer.token()
        await stub.ListModels(gw.ListModelsRequest(), metadata=bearer(first))
        issuer.keys = [SigningKey("second")]
        await accepted(stub, issuer.token())
        assert await refused(stub, failure, first) == NOT_ACCEPTED


async def test_unknown_keys_make_nobody_ask_the_issuer_more_than_once(
    idle_mesh: ScriptedMesh, issuer: OidcIssuer, failure: Any
) -> None:
    async with bank(idle_mesh, issuer) as stub:
        attempts = [refused(stub, failure, issuer.token(headers={"kid": f"k{number}"})) for number in range(32)]
        assert set(await asyncio.gather(*attempts)) == {NOT_ACCEPTED}
        await stub.ListModels(gw.ListModelsRequest(), metadata=bearer(issuer.token()))
    assert issuer.asked[issuer.jwks_path] == 1


async def test_a_refusal_takes_as_long_whatever_is_wrong(idle_mesh: ScriptedMesh, issuer: OidcIssuer, failure: Any) -> None:
    loop = asyncio.get_running_loop()
    tokens = (
        issuer.token(SigningKey("first")),
        issuer.token(iss="https://login.example.com"),
        issuer.token(headers={"kid": "unknown"}),
    )
    async with bank(idle_mesh, issuer) as stub:
        for token in tokens:
            began = loop.time()
            assert await refused(stub, failure, token) == NOT_ACCEPTED
            assert loop.time() - began >= 0.1


async def test_an_issuer_that_is_silent_at_the_start_is_asked_again(
    idle_mesh: ScriptedMesh, issuer: OidcIssuer, failure: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lionrock.gateway.identity.issuer_keys.FETCH_TIMEOUT_S", 0.2)
    monkeypatch.setattr("lionrock.gateway.identity.issuer_keys.MIN_REFETCH_S", 0.0)
    issuer.silent = True
    async with bank(idle_mesh, issuer) as stub:
        assert await refused(stub, failure, issuer.token()) == NOT_ACCEPTED
        issuer.silent = False
        await accepted(stub, issuer.token())


class MeshWithTokenPort(ScriptedMesh):
    """Its gateway listens for callers without a certificate too."""

    def server_settings(self, service: str, **server: Any) -> dict[str, Any]:
        return super().server_settings(service, **(server | ({"token_listen": "127.0.0.1:0"} if service == "gateway" else {})))


async def test_a_person_without_a_certificate_comes_in_by_the_port_for_tokens(
    tmp_path: Path, issuer: OidcIssuer, ask: Any, hear: Any, failure: Any
) -> None:
    mesh = MeshWithTokenPort(tmp_path / "mesh")
    mesh.tenants = [{**tenant("bank"), "issuers": [issuer.spec()]}]
    async with mesh.running():
        credentials = grpc.ssl_channel_credentials(mesh.ca.authority.certificate_pem)
        options = [("grpc.ssl_target_name_override", "gateway.lionrock.internal")]
        target = f"127.0.0.1:{mesh.servers['gateway'].token_port}"
        async with grpc.aio.secure_channel(target, credentials, options=options) as channel:
            stub = GatewayServiceStub(channel)
            answer = await hear(stub.Chat(ask(), metadata=bearer(issuer.token())))
            assert answer.text == mesh.engine.text
            assert (await failure(stub.Chat(ask()))).reason == "CREDENTIAL_MISSING"
            assert await refused(stub, failure, issuer.token(SigningKey("first"))) == NOT_ACCEPTED
            records = RecordsServiceStub(channel)
            holds = rec.ListHoldsRequest()
            error = await failure(records.ListHolds(holds, metadata=bearer(issuer.token())))
            assert error.reason == "ROLE_NOT_PERMITTED"
    assert mesh.guardrails.requests[0].context.actor == f"{issuer.url}#ada"


async def test_a_flood_of_bad_tokens_is_turned_away_and_good_ones_are_let_in(issuer: OidcIssuer) -> None:
    grant = Grant(("user",), ("testing",), frozenset({"*"}), frozenset({"public"}), "default")
    config = IssuerConfig(KeyLocation(issuer.url, None, issuer.ca_file), frozenset({AUDIENCE}), ("groups",), (("tellers", grant),))
    directory = TenantDirectory([Tenant(TenantName("bank"), "HK", 1, {}, (config,))])
    async with authenticating(directory, lambda: None) as authenticator:
        stranger = Presented(bearer=issuer.token(SigningKey("first")))
        bad = [asyncio.ensure_future(authenticator.authenticate(stranger)) for _ in range(MAX_REFUSALS_WAITING + 10)]
        good = await authenticator.authenticate(Presented(bearer=issuer.token()))
        refusals = await asyncio.gather(*bad, return_exceptions=True)
    assert good.grant is grant
    assert Counter(type(refusal) for refusal in refusals) == {TokenInvalidError: MAX_REFUSALS_WAITING, RefusalsFullError: 10}


async def test_nothing_of_a_token_is_logged(
    idle_mesh: ScriptedMesh, issuer: OidcIssuer, failure: Any, caplog: pytest.LogCaptureFixture
) -> None:
    token = issuer.token(sub="canary-17", groups=["strangers"])
    async with bank(idle_mesh, issuer) as stub:
        with caplog.at_level("DEBUG"):
            await refused(stub, failure, token)
            await refused(stub, failure, token[:-8])
    assert "canary-17" not in caplog.text
    assert token.split(".")[1] not in caplog.text
