"""Clients and commands that show a token: at the port for callers without a certificate, and beside one."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import duration_pb2

import lionrock.client as lionrock
from lionrock.chassis.channel import open_channel
from lionrock.chassis.settings import PeerSettings
from lionrock.client import AsyncClient, Client, ServerTls, Tls, Token, TokenFile, TokenUnusable
from lionrock.gateway.identity.settings import ApiKeySettings
from lionrock.gateway.state.opening import StateSettings
from lionrock.gateway.v1 import api_key_pb2 as pb
from lionrock.gateway.v1.api_key_pb2_grpc import ApiKeyServiceStub
from mesh_ca import TRUST_DOMAIN
from scripted_mesh import ScriptedMesh, tenant


class TokenMesh(ScriptedMesh):
    """Its gateway has a port for tokens, and API keys."""

    def server_settings(self, service: str, **server: Any) -> dict[str, Any]:
        return super().server_settings(service, **(server | ({"token_listen": "127.0.0.1:0"} if service == "gateway" else {})))

    @property
    def token_target(self) -> str:
        return f"127.0.0.1:{self.servers['gateway'].token_port}"

    async def key(self) -> pb.CreateApiKeyResponse:
        """Make an API key of the bank, and wait until the gateway has followed its state."""
        peer = PeerSettings(target=self.targets["gateway"], service="gateway", timeout_s=20)
        request = pb.CreateApiKeyRequest(
            description="test", roles=["user"], purposes=["testing"], models=["*"], lifetime=duration_pb2.Duration(seconds=3600)
        )
        async with open_channel(peer, self.identity("bank", "admin", "workload"), name="test") as channel:
            made = await ApiKeyServiceStub(channel).CreateApiKey(request)
        async with asyncio.timeout(10), self.holding(made.secret) as client:
            while True:
                with suppress(lionrock.NotAuthenticated):
                    await client.list_models()
                    return made

    def holding(self, secret: str) -> AsyncClient:
        """A client at the port for tokens."""
        return AsyncClient(self.token_target, tls=ServerTls(self.identity().ca_file), token=Token(secret), deadline_s=20)

    def actor(self) -> str:
        """Who asked last."""
        return self.log.outcomes[-1].context.actor


@pytest.fixture
async def mesh(tmp_path: Path) -> AsyncIterator[TokenMesh]:
    secret = tmp_path / "secret"
    secret.write_text("s" * 40)
    secret.chmod(0o600)
    mesh = TokenMesh(tmp_path / "mesh")
    bank = tenant("bank")
    admin = {"spiffe_id": f"spiffe://{TRUST_DOMAIN}/tenant/bank/workload/admin", "roles": ["tenant_admin", "user"]}
    bank["principals"].append({**admin, "purposes": ["testing"]})
    mesh.tenants = [bank]
    mesh.gateway_changes = {
        "state": StateSettings(sqlite_file=tmp_path / "state" / "gateway.db"),
        "api_keys": ApiKeySettings(secret_file=secret, max_lifetime_days=30),
    }
    async with mesh.running():
        yield mesh


@pytest.fixture
def trust(mesh: TokenMesh) -> ServerTls:
    return ServerTls(mesh.identity().ca_file)


async def test_a_token_is_enough_and_the_file_is_followed(mesh: TokenMesh, trust: ServerTls, tmp_path: Path) -> None:
    first, second = await mesh.key(), await mesh.key()
    file = tmp_path / "token"
    file.write_text(first.secret + "\n")
    async with AsyncClient(mesh.token_target, tls=trust, token=TokenFile(file), deadline_s=20) as client:
        assert (await client.chat("hi").complete()).text == mesh.engine.text
        assert mesh.actor() == f"api-key:{first.key.key_id}"
        file.write_text(second.secret)
        await client.chat("hi").complete()
        assert mesh.actor() == f"api-key:{second.key.key_id}"
        assert await client.list_models()


async def test_the_blocking_client_shows_a_token_too(mesh: TokenMesh, trust: ServerTls) -> None:
    made = await mesh.key()

    def ask() -> str:
        with Client(mesh.token_target, tls=trust, token=Token(made.secret), deadline_s=20) as client:
            client.list_models()
            return client.chat("hi").complete().text

    assert await asyncio.to_thread(ask) == mesh.engine.text
    assert mesh.actor() == f"api-key:{made.key.key_id}"


async def test_beside_a_certificate_the_token_says_who_asks(mesh: TokenMesh) -> None:
    made, files = await mesh.key(), mesh.identity()
    tls = Tls(files.cert_file, files.key_file, files.ca_file)
    async with AsyncClient(mesh.targets["gateway"], tls=tls, token=Token(made.secret), deadline_s=20) as client:
        await client.chat("hi").complete()
    assert mesh.actor() == f"api-key:{made.key.key_id}"


async def test_a_token_that_the_gateway_does_not_know_is_not_authenticated(mesh: TokenMesh) -> None:
    stranger = "lrk_0123456789abcdef_" + "a" * 43
    async with mesh.holding(stranger) as client:
        with pytest.raises(lionrock.NotAuthenticated):
            await client.list_models()


async def test_a_server_of_another_authority_gets_no_token(mesh: TokenMesh, tmp_path: Path) -> None:
    other = ScriptedMesh(tmp_path / "other").identity()
    async with AsyncClient(mesh.token_target, tls=ServerTls(other.ca_file), token=Token("x"), deadline_s=5) as client:
        with pytest.raises(lionrock.Unreachable):
            await client.list_models()


async def test_without_certificate_and_token_there_is_no_client(mesh: TokenMesh, trust: ServerTls) -> None:
    with pytest.raises(ValueError, match="a token is needed"):
        Client(mesh.token_target, tls=trust)
    with pytest.raises(ValueError, match="a token is needed"):
        async with AsyncClient(mesh.token_target, tls=trust):
            pass


@pytest.mark.parametrize("content", [b"", b"two words", b"x\r\ny", b"\xff\xfe", b"a" * 9000, "schlüssel".encode()])
def test_what_is_no_token_is_refused_and_not_quoted(content: bytes, tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_bytes(content)
    with pytest.raises(TokenUnusable) as caught:
        TokenFile(file).read()
    assert str(caught.value) == f"{file} holds no token"
    assert "secret" not in repr(Token("secret"))
    with pytest.raises(TokenUnusable, match="cannot be read"):
        TokenFile(tmp_path / "absent").read()


async def command(*arguments: str, **variables: str) -> tuple[int, str, str]:
    ran = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "lionrock.cli", *arguments),
        env={**os.environ, **variables},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, notes = await asyncio.wait_for(ran.communicate(), 60)
    assert ran.returncode is not None
    return ran.returncode, out.decode(), notes.decode()


async def test_commands_take_a_token_from_a_file_or_the_environment(mesh: TokenMesh, tmp_path: Path) -> None:
    made = await mesh.key()
    certificates = tmp_path / "trusted"
    certificates.mkdir()
    (certificates / "ca.crt").write_bytes(mesh.identity().ca_file.read_bytes())
    file = tmp_path / "token"
    file.write_text(made.secret)
    where = ("--gateway", mesh.token_target, "--certificates", str(certificates), "--state-dir", str(tmp_path / "state"))
    for options, variables in (
        (("--token-file", str(file)), {}),
        ((), {"LIONROCK_TOKEN_FILE": str(file)}),
        ((), {"LIONROCK_TOKEN": made.secret}),
    ):
        status, answer, notes = await command("chat", *where, *options, "hi", **variables)
        assert answer.strip() == mesh.engine.text, notes
        assert made.secret not in answer + notes
        assert mesh.actor() == f"api-key:{made.key.key_id}"
    status, _, notes = await command("keys", "list", *where, LIONROCK_TOKEN=made.secret)
    assert status == 3, notes  # known, and an API key manages no keys
    status, _, notes = await command("chat", *where, "hi", LIONROCK_TOKEN=made.secret, LIONROCK_TOKEN_FILE=str(file))
    assert (status, "both" in notes) == (2, True)
    status, _, notes = await command("chat", *where, "hi", LIONROCK_TOKEN="no token")
    assert (status, "no token" in notes) == (2, False)
    status, _, notes = await command("chat", *where, "hi")
    assert (status, "tls.crt, tls.key" in notes) == (2, True)
