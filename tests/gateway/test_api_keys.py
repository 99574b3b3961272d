"""API keys: made, used, replaced and ended at a real gateway over a real store."""

from __future__ import annotations

import asyncio
import hashlib
import json
import sqlite3
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf import duration_pb2
from hypothesis import given
from hypothesis import strategies as st

from lionrock.chassis.channel import open_channel
from lionrock.chassis.errors import remote_error
from lionrock.chassis.settings import PeerSettings
from lionrock.common.v1 import context_pb2 as ctx
from lionrock.gateway.identity import api_keys, live_keys
from lionrock.gateway.identity.api_key_rows import KeyRow, insert
from lionrock.gateway.identity.api_keys import ApiKey, KeyId, Marks
from lionrock.gateway.identity.failures import KeysUnavailableError, TokenExpiredError, TokenInvalidError
from lionrock.gateway.identity.live_keys import LiveKeys
from lionrock.gateway.identity.settings import ApiKeySettings
from lionrock.gateway.state.opening import StateSettings, open_state
from lionrock.gateway.tenants import Grant, Principal, Tenant, TenantName
from lionrock.gateway.v1 import api_key_pb2 as pb
from lionrock.gateway.v1 import gateway_pb2 as gw
from lionrock.gateway.v1.api_key_pb2_grpc import ApiKeyServiceStub
from lionrock.gateway.v1.gateway_pb2_grpc import GatewayServiceStub
from mesh_ca import TRUST_DOMAIN
from scripted_mesh import MODEL, ScriptedMesh, Trouble, raising, tenant

DAY_S = 24 * 3600
SERVER_SECRET = "s" * 40


def administered(name: str) -> dict[str, Any]:
    """A tenant with an administrator, who may also ask, and somebody for security."""
    settings = tenant(name)
    for who, roles in (("admin", ["tenant_admin", "user"]), ("guard", ["security"])):
        granted = {"spiffe_id": f"spiffe://{TRUST_DOMAIN}/tenant/{name}/workload/{who}", "roles": roles}
        settings["principals"].append({**granted, "purposes": ["testing", "drafting"]})
    return settings


@pytest.fixture
async def mesh(tmp_path: Path) -> AsyncIterator[ScriptedMesh]:
    """A gateway that issues API keys and has a port for them."""
    secret_file = tmp_path / "api-keys"
    secret_file.write_text(SERVER_SECRET)
    secret_file.chmod(0o600)
    mesh = KeyMesh(tmp_path / "mesh")
    mesh.tenants = [administered("bank"), administered("broker")]
    mesh.gateway_changes = {
        "state": StateSettings(sqlite_file=tmp_path / "state" / "gateway.db"),
        "api_keys": ApiKeySettings(secret_file=secret_file, max_lifetime_days=30),
    }
    async with mesh.running():
        yield mesh


class KeyMesh(ScriptedMesh):
    """Its gateway listens for callers without a certificate too."""

    def server_settings(self, service: str, **server: Any) -> dict[str, Any]:
        return super().server_settings(service, **(server | ({"token_listen": "127.0.0.1:0"} if service == "gateway" else {})))

    @asynccontextmanager
    async def as_(self, who: str, name: str = "bank") -> AsyncIterator[grpc.aio.Channel]:
        """A channel with the certificate of a workload."""
        peer = PeerSettings(target=self.targets["gateway"], service="gateway", timeout_s=20)
        async with open_channel(peer, self.identity(name, who, "workload"), name="test") as channel:
            yield channel

    @asynccontextmanager
    async def with_key(self) -> AsyncIterator[grpc.aio.Channel]:
        """A channel without a certificate."""
        credentials = grpc.ssl_channel_credentials(self.ca.authority.certificate_pem)
        options = [("grpc.ssl_target_name_override", "gateway.lionrock.internal")]
        target = f"127.0.0.1:{self.servers['gateway'].token_port}"
        async with grpc.aio.secure_channel(target, credentials, options=options) as channel:
            yield channel


def wanted(lifetime_s: int = DAY_S, **changes: Any) -> pb.CreateApiKeyRequest:
    usual: dict[str, Any] = {"description": "nightly batch", "roles": ["user"], "purposes": ["testing"], "models": [MODEL]}
    return pb.CreateApiKeyRequest(lifetime=duration_pb2.Duration(seconds=lifetime_s), **{**usual, **changes})


def bearer(token: str) -> list[tuple[str, str]]:
    return [("authorization", f"Bearer {token}")]


async def known(stub: Any, secret: str) -> None:
    """Wait until the gateway has followed the state: until a key is accepted."""
    async with asyncio.timeout(10):
        while True:
            try:
                await stub.ListModels(gw.ListModelsRequest(), metadata=bearer(secret))
            except grpc.aio.AioRpcError as error:
                if error.code() is not grpc.StatusCode.UNAUTHENTICATED:
                    raise
            else:
                return


async def ended(stub: Any, secret: str) -> str:
    """Wait until a key is no longer accepted; return the reason."""
    async with asyncio.timeout(live_keys.REVOKED_WITHIN_S):
        while True:
            try:
                await stub.ListModels(gw.ListModelsRequest(), metadata=bearer(secret))
            except grpc.aio.AioRpcError as error:
                return remote_error(error).reason or ""


async def test_a_key_asks_within_its_scope_and_is_named_in_the_log(mesh: Any, ask: Any, hear: Any, failure: Any) -> None:
    async with mesh.as_("admin") as admin, mesh.with_key() as holder:
        made = await ApiKeyServiceStub(admin).CreateApiKey(wanted())
        stub = GatewayServiceStub(holder)
        await known(stub, made.secret)
        await hear(stub.Chat(ask(), metadata=bearer(made.secret)))
        context = mesh.guardrails.requests[0].context
        assert (context.tenant, context.actor, list(context.roles)) == ("bank", f"api-key:{made.key.key_id}", ["user"])
        assert (context.auth_method, context.purpose) == (ctx.AUTH_METHOD_API_KEY, "testing")
        error = await failure(stub.Chat(ask(purpose="drafting"), metadata=bearer(made.secret)))
        assert error.reason == "PURPOSE_NOT_PERMITTED"
    assert made.key.created_by == f"spiffe://{TRUST_DOMAIN}/tenant/bank/workload/admin"
    assert list(made.key.data_classes) == ["internal", "personal", "public"]


async def test_a_key_reaches_no_further_than_who_makes_it(mesh: Any, failure: Any) -> None:
    async with mesh.as_("admin") as admin:
        stub = ApiKeyServiceStub(admin)
        for change, field in (
            ({"roles": ["user", "auditor"]}, "roles"),
            ({"purposes": ["marketing"]}, "purposes"),
            ({"data_classes": ["suspicion"]}, "data_classes"),
        ):
            error = await failure(stub.CreateApiKey(wanted(**change)))
            assert (error.status.name, error.reason) == ("PERMISSION_DENIED", "SCOPE_NOT_HELD")
            assert [violation[0] for violation in error.field_violations] == [field]
        error = await failure(stub.CreateApiKey(wanted(31 * DAY_S)))
        assert (error.reason, error.field_violations[0][0]) == ("INVALID_FIELD", "lifetime")


async def test_only_an_administrator_makes_keys_and_no_key_manages_keys(mesh: Any, failure: Any) -> None:
    async with mesh.as_("admin") as admin, mesh.as_("guard") as guard, mesh.with_key() as holder:
        made = await ApiKeyServiceStub(admin).CreateApiKey(wanted(roles=["tenant_admin", "user"]))
        await known(GatewayServiceStub(holder), made.secret)
        for stub, metadata in ((ApiKeyServiceStub(guard), []), (ApiKeyServiceStub(holder), bearer(made.secret))):
            assert (await failure(stub.CreateApiKey(wanted(), metadata=metadata))).reason == "ROLE_NOT_PERMITTED"
        listing = pb.ListApiKeysRequest(page_size=10)
        assert (await failure(ApiKeyServiceStub(holder).ListApiKeys(listing, metadata=bearer(made.secret)))).reason == (
            "ROLE_NOT_PERMITTED"
        )
        assert [key.key_id for key in (await ApiKeyServiceStub(guard).ListApiKeys(listing)).keys] == [made.key.key_id]


async def test_a_revoked_key_is_refused_within_five_seconds_and_as_if_it_had_never_been(mesh: Any, failure: Any) -> None:
    async with mesh.as_("admin") as admin, mesh.as_("guard") as guard, mesh.with_key() as holder:
        made = await ApiKeyServiceStub(admin).CreateApiKey(wanted())
        stub = GatewayServiceStub(holder)
        await known(stub, made.secret)
        await ApiKeyServiceStub(guard).RevokeApiKey(pb.RevokeApiKeyRequest(key_id=made.key.key_id))
        assert await ended(stub, made.secret) == "TOKEN_INVALID"

        revoked = await failure(stub.ListModels(gw.ListModelsRequest(), metadata=bearer(made.secret)))
        never = await failure(stub.ListModels(gw.ListModelsRequest(), metadata=bearer(f"lrk_{'0' * 16}_{'A' * 43}")))
        assert (revoked.message, revoked.metadata) == (never.message, never.metadata)
        (listed,) = (await ApiKeyServiceStub(admin).ListApiKeys(pb.ListApiKeysRequest(page_size=1))).keys
        assert listed.HasField("revoked_at")


async def test_another_tenants_keys_are_not_there(mesh: Any, failure: Any) -> None:
    async with mesh.as_("admin") as admin, mesh.as_("admin", "broker") as other, mesh.with_key() as holder:
        made = await ApiKeyServiceStub(admin).CreateApiKey(wanted())
        await known(GatewayServiceStub(holder), made.secret)
        stub = ApiKeyServiceStub(other)
        overlap = duration_pb2.Duration(seconds=60)
        for key_id in (made.key.key_id, "0" * 16, "' OR 1=1"):
            rotate = stub.RotateApiKey(pb.RotateApiKeyRequest(key_id=key_id, overlap=overlap))
            assert (await failure(rotate)).reason == "API_KEY_NOT_FOUND"
            assert (await failure(stub.RevokeApiKey(pb.RevokeApiKeyRequest(key_id=key_id)))).reason == "API_KEY_NOT_FOUND"
        assert not (await stub.ListApiKeys(pb.ListApiKeysRequest(page_size=10))).keys
        # Nor is the bank's key good beside the broker's certificate.
        listing = GatewayServiceStub(other).ListModels(gw.ListModelsRequest(), metadata=bearer(made.secret))
        assert (await failure(listing)).reason == "TOKEN_INVALID"
        beside = GatewayServiceStub(admin).ListModels(gw.ListModelsRequest(), metadata=bearer(made.secret))
        await beside


async def test_a_key_is_rotated_with_an_overlap_and_once(mesh: Any, failure: Any) -> None:
    async with mesh.as_("admin") as admin, mesh.with_key() as holder:
        keys, stub = ApiKeyServiceStub(admin), GatewayServiceStub(holder)
        old = await keys.CreateApiKey(wanted())
        rotation = pb.RotateApiKeyRequest(key_id=old.key.key_id, overlap=duration_pb2.Duration(seconds=600))
        new = await keys.RotateApiKey(rotation)
        await known(stub, new.secret)
        await stub.ListModels(gw.ListModelsRequest(), metadata=bearer(old.secret))
        assert (await failure(keys.RotateApiKey(rotation))).reason == "API_KEY_NOT_FOUND"
        for field in ("roles", "purposes", "models", "data_classes"):
            assert list(getattr(new.key, field)) == list(getattr(old.key, field))

        at_once = pb.RotateApiKeyRequest(key_id=new.key.key_id, overlap=duration_pb2.Duration())
        await keys.RotateApiKey(at_once)
        assert await ended(stub, new.secret) == "TOKEN_EXPIRED"


async def test_what_is_done_to_a_key_is_in_the_log_without_its_secret_and_its_description(mesh: Any) -> None:
    async with mesh.as_("admin") as admin:
        keys = ApiKeyServiceStub(admin)
        made = await keys.CreateApiKey(wanted(description="for Ms Chan"))
        overlap = duration_pb2.Duration(seconds=60)
        new = await keys.RotateApiKey(pb.RotateApiKeyRequest(key_id=made.key.key_id, overlap=overlap))
        ended = await keys.RevokeApiKey(pb.RevokeApiKeyRequest(key_id=new.key.key_id))
    created, rotated, revoked = mesh.log.decisions
    assert [each.governance.operation for each in mesh.log.decisions] == ["api_key.created", "api_key.rotated", "api_key.revoked"]
    assert [each.governance.object_id for each in mesh.log.decisions] == [made.key.key_id, made.key.key_id, new.key.key_id]
    assert [made.position.leaf_index, new.position.leaf_index, ended.position.leaf_index] == [0, 1, 2]
    details = dict(created.governance.details)
    assert (details["roles"], details["models"], details["purposes"]) == ("user", MODEL, "testing")
    scope = {"data_classes": ["internal", "personal", "public"], "models": [MODEL], "purposes": ["testing"], "roles": ["user"]}
    canonical = json.dumps(scope, separators=(",", ":")).encode()
    assert details["scope_digest"] == f"sha256:{hashlib.sha256(canonical).hexdigest()}"
    assert rotated.governance.details["successor"] == new.key.key_id
    assert created.context.actor == f"spiffe://{TRUST_DOMAIN}/tenant/bank/workload/admin"
    assert created.context.request_id != rotated.context.request_id != revoked.context.request_id
    assert created.governance.statement == b"for Ms Chan"
    for leaf in mesh.log.decisions:
        text = leaf.SerializeToString()
        assert made.secret.split("_", 2)[2].encode() not in text
        assert new.secret.split("_", 2)[2].encode() not in text
        assert "for Ms Chan" not in str(dict(leaf.governance.details))


async def test_a_key_for_any_model_is_written_down_too(mesh: Any) -> None:
    async with mesh.as_("admin") as admin:
        await ApiKeyServiceStub(admin).CreateApiKey(wanted(models=["*"]))
        await ApiKeyServiceStub(admin).CreateApiKey(wanted(models=["a model\nthat nobody serves"]))
    any_model, odd = (dict(leaf.governance.details) for leaf in mesh.log.decisions)
    assert any_model["models"] == "any"
    assert "models" not in odd


async def test_nothing_is_done_to_a_key_that_cannot_be_written_down(mesh: Any, failure: Any) -> None:
    async with mesh.as_("admin") as admin, mesh.with_key() as holder:
        keys = ApiKeyServiceStub(admin)
        made = await keys.CreateApiKey(wanted())
        await known(GatewayServiceStub(holder), made.secret)
        mesh.log.faults["Append.governance"] = raising(Trouble("the log is down"))
        overlap = duration_pb2.Duration(seconds=60)
        for call in (
            keys.CreateApiKey(wanted()),
            keys.RotateApiKey(pb.RotateApiKeyRequest(key_id=made.key.key_id, overlap=overlap)),
            keys.RevokeApiKey(pb.RevokeApiKeyRequest(key_id=made.key.key_id)),
        ):
            assert (await failure(call)).reason == "AUDIT_UNAVAILABLE"
        (left,) = (await keys.ListApiKeys(pb.ListApiKeysRequest(page_size=10))).keys
        assert left == made.key


async def test_what_is_refused_leaves_no_leaf(mesh: Any, failure: Any) -> None:
    async with mesh.as_("admin") as admin, mesh.as_("guard") as guard:
        keys = ApiKeyServiceStub(admin)
        await failure(keys.CreateApiKey(wanted(purposes=["marketing"])))
        await failure(ApiKeyServiceStub(guard).CreateApiKey(wanted()))
        for key_id in ("0" * 16, "' OR 1=1"):
            await failure(keys.RevokeApiKey(pb.RevokeApiKeyRequest(key_id=key_id)))
            rotation = pb.RotateApiKeyRequest(key_id=key_id, overlap=duration_pb2.Duration(seconds=1))
            await failure(keys.RotateApiKey(rotation))
    assert mesh.log.leaves == []


async def test_keys_are_listed_in_pages(mesh: Any) -> None:
    async with mesh.as_("admin") as admin:
        stub = ApiKeyServiceStub(admin)
        made = {(await stub.CreateApiKey(wanted())).key.key_id for _ in range(5)}
        seen: list[str] = []
        token = ""
        while True:
            page = await stub.ListApiKeys(pb.ListApiKeysRequest(page_size=2, page_token=token))
            seen += [key.key_id for key in page.keys]
            token = page.next_page_token
            if not token:
                break
    assert seen == sorted(made)


async def test_the_file_of_the_state_holds_no_secret(mesh: Any, tmp_path: Path) -> None:
    async with mesh.as_("admin") as admin:
        made = await ApiKeyServiceStub(admin).CreateApiKey(wanted())
    secret = made.secret.split("_", 2)[2].encode()
    for file in (tmp_path / "state").iterdir():
        content = file.read_bytes()
        assert secret not in content
        assert SERVER_SECRET.encode() not in content


# Without a gateway

GRANT = Grant(("user",), ("testing",), frozenset({"*"}), frozenset({"public"}), "default", 4)


def made_key(**changes: Any) -> tuple[ApiKey, str]:
    fields: dict[str, Any] = {
        "key_id": api_keys.make_key_id(),
        "tenant": "bank",
        "description": "d",
        "grant": GRANT,
        "created_by": "somebody",
        "created_at_us": 0,
        "expires_at_us": 4_000_000_000_000_000,
    }
    return ApiKey(**{**fields, **changes}), api_keys.make_secret()


@given(st.text() | st.from_regex(r"\Alrk_[0-9a-f]{15,17}_[A-Za-z0-9_-]{42,44}\Z"))
def test_a_text_is_a_key_or_it_is_not(text: str) -> None:
    found = api_keys.read(text)
    assert found is None or api_keys.written(*found) == text


def test_every_change_of_a_key_in_the_store_makes_its_mark_wrong() -> None:
    marks = Marks(b"x" * 32)
    key, secret = made_key()
    mark = marks.of(key, secret)
    assert marks.fits(key, mark, secret)
    wider = Grant(("user", "mlro"), ("testing",), frozenset({"*"}), frozenset({"public"}), "default", 4)
    for change in ({"grant": wider}, {"tenant": "broker"}, {"expires_at_us": key.expires_at_us + 1}, {"created_by": "else"}):
        changed, _ = made_key(**{"key_id": key.key_id, **change})
        assert not marks.fits(changed, mark, secret)
    assert not marks.fits(key, mark, api_keys.make_secret())
    assert not Marks(b"y" * 32).fits(key, mark, secret)


def test_a_key_shrinks_with_its_tenant() -> None:
    def granting(grant: Grant) -> Tenant:
        return Tenant(TenantName("bank"), "HK", 1, {"spiffe://td/tenant/bank/user/*": grant})

    key, _ = made_key()
    less = Grant(("user",), ("testing", "other"), frozenset({"m"}), frozenset({"public", "personal"}), "default")
    held = api_keys.holder(key, granting(less))
    assert isinstance(held, Principal)
    assert (held.grant.models, held.grant.data_classes, held.grant.purposes) == ({"m"}, {"public"}, ("testing",))
    assert held.grant.not_after is not None
    nothing = Grant(("user",), ("other",), frozenset({"m"}), frozenset({"public"}), "default")
    assert api_keys.holder(key, granting(nothing)) is None


async def test_keys_are_refused_when_the_state_was_not_seen_for_too_long(tmp_path: Path) -> None:
    now = [0.0]
    async with AsyncExitStack() as stack:
        store = await stack.enter_async_context(open_state(StateSettings(sqlite_file=tmp_path / "s.db")))
        marks = Marks(b"x" * 32)
        key, secret = made_key()
        await insert(store, KeyRow(key, marks.of(key, secret)))
        live = LiveKeys(store, marks, clock=lambda: now[0])
        with pytest.raises(KeysUnavailableError):
            live.key(key.key_id, secret, 1.0)
        await live.look()
        assert live.key(key.key_id, secret, 1.0) == key
        with pytest.raises(TokenExpiredError):
            live.key(key.key_id, secret, key.expires_at_us / 1e6)
        for key_id, text in ((KeyId("0" * 16), secret), (key.key_id, api_keys.make_secret())):
            with pytest.raises(TokenInvalidError):
                live.key(key_id, text, 1.0)
        now[0] = live_keys.MAX_STALE_S + 0.1
        with pytest.raises(KeysUnavailableError):
            live.key(key.key_id, secret, 1.0)


async def test_a_row_that_somebody_changed_is_not_accepted(tmp_path: Path) -> None:
    path = tmp_path / "s.db"
    async with open_state(StateSettings(sqlite_file=path)) as store:
        marks = Marks(b"x" * 32)
        key, secret = made_key()
        await insert(store, KeyRow(key, marks.of(key, secret)))
        with sqlite3.connect(path) as other:
            other.execute("""UPDATE api_keys SET scope = replace(scope, '"user"', '"mlro"')""")
        other.close()
        live = LiveKeys(store, marks)
        await live.look()
        with pytest.raises(TokenInvalidError):
            live.key(key.key_id, secret, 1.0)
