"""`lionrock keys`, from the command line to a real gateway over a real store."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest

from lionrock.cli.errors import EXIT_REFUSED, CommandError, report
from lionrock.cli.keys_commands import app
from lionrock.gateway.identity.settings import ApiKeySettings
from lionrock.gateway.state.opening import StateSettings
from mesh_ca import TRUST_DOMAIN
from scripted_mesh import ScriptedMesh, tenant

Run = Callable[..., Awaitable[tuple[int, str, str]]]


def _call(arguments: tuple[str, ...]) -> int:
    try:
        app(list(arguments), prog_name="lionrock keys", standalone_mode=False)
    except CommandError as error:
        return report(error)
    except SystemExit as end:
        return int(end.code or 0)
    return 0


@pytest.fixture
async def run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> AsyncIterator[Run]:
    """Run a command as an administrator of the bank, or as somebody else of it."""
    secret_file = tmp_path / "secret"
    secret_file.write_text("s" * 32)
    secret_file.chmod(0o600)
    mesh = ScriptedMesh(tmp_path / "mesh")
    bank = tenant("bank")
    admin = {"spiffe_id": f"spiffe://{TRUST_DOMAIN}/tenant/bank/user/root", "roles": ["tenant_admin", "user"]}
    bank["principals"].append({**admin, "purposes": ["testing"]})
    mesh.tenants = [bank]
    mesh.gateway_changes = {
        "state": StateSettings(sqlite_file=tmp_path / "state.db"),
        "api_keys": ApiKeySettings(secret_file=secret_file),
    }
    async with mesh.running():

        async def command(*arguments: str, who: str = "root") -> tuple[int, str, str]:
            certificates = mesh.identity("bank", who).cert_file.parent
            door = ("--gateway", mesh.targets["gateway"], "--certificates", str(certificates), "--state-dir", str(tmp_path))
            capsys.readouterr()
            status = await asyncio.to_thread(_call, (*arguments, *door))
            out, err = capsys.readouterr()
            return status, out, err

        yield command


async def test_a_key_is_made_listed_rotated_and_revoked(run: Run) -> None:
    status, secret, said = await run("create", "nightly", "--purpose", "testing")
    assert (status, secret.count("\n")) == (0, 1)
    key_id = secret.split("_")[1]
    assert key_id in said
    assert secret.strip() not in said

    status, listed, _ = await run("list", "--json")
    (row,) = [json.loads(line) for line in listed.splitlines()]
    assert (status, row["key_id"], row["models"], "secret" in row) == (0, key_id, ["*"], False)

    status, successor, _ = await run("rotate", key_id, "--overlap-hours", "0.5", "--json")
    assert (status, json.loads(successor)["purposes"]) == (0, ["testing"])
    status, told, _ = await run("revoke", key_id)
    assert (status, f"revoked {key_id}" in told) == (0, True)
    _, shown, _ = await run("list")
    assert sorted(line.split()[1] for line in shown.splitlines()) == ["expires", "revoked"]


async def test_who_may_not_is_told_what_to_do(run: Run) -> None:
    status, out, said = await run("create", "x", "--purpose", "testing", who="ada")
    assert (status, out) == (EXIT_REFUSED, "")
    assert "ROLE_NOT_PERMITTED" in said
    status, out, said = await run("create", "x", "--purpose", "marketing")
    assert (status, out) == (EXIT_REFUSED, "")
    assert "purposes: more than the caller holds" in said
    status, _, said = await run("revoke", "0" * 16)
    assert status != 0
    assert "lionrock keys list" in said
