"""`lionrock review`, from the command line to a real gateway, the real audit service and back."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest

from audit_process import AuditProcess
from lionrock.cli.errors import EXIT_PENDING, EXIT_REFUSED, CommandError, report
from lionrock.cli.main import app
from lionrock.gateway.state.opening import StateSettings
from mesh_ca import TRUST_DOMAIN, DevCa
from scripted_mesh import ScriptedMesh, tenant

Run = Callable[..., Awaitable[tuple[int, str, str]]]


def _call(arguments: tuple[str, ...]) -> int:
    try:
        app(list(arguments), prog_name="lionrock", standalone_mode=False)
    except CommandError as error:
        return report(error)
    except SystemExit as end:
        return int(end.code or 0)
    return 0


@pytest.fixture
async def run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> AsyncIterator[Run]:
    """Run a command as somebody of the bank, whose drafts wait for a reviewer."""
    directory = tmp_path / "mesh"
    directory.mkdir()
    process = await asyncio.to_thread(AuditProcess, directory, DevCa(directory))
    mesh = ScriptedMesh(directory)
    mesh.targets = {"audit": process.target}
    bank = {**tenant("bank"), "review": {"purposes": ["drafting"]}}
    rita = {"spiffe_id": f"spiffe://{TRUST_DOMAIN}/tenant/bank/user/rita", "roles": ["reviewer"], "purposes": ["drafting"]}
    bank["principals"].append(rita)
    mesh.tenants = [bank]
    mesh.gateway_changes = {"state": StateSettings(sqlite_file=tmp_path / "state.db")}
    try:
        async with mesh.running():

            async def command(who: str, *arguments: str) -> tuple[int, str, str]:
                certificates = mesh.identity("bank", who).cert_file.parent
                door = ("--gateway", mesh.targets["gateway"], "--certificates", str(certificates), "--state-dir", str(tmp_path))
                capsys.readouterr()
                status = await asyncio.to_thread(_call, (*arguments, *(() if arguments[0] == "verify" else door)))
                out, err = capsys.readouterr()
                return status, out, err

            yield command
    finally:
        await asyncio.to_thread(process.stop)


async def waiting(run: Run) -> str:
    status, said, notes = await run("ada", "chat", "--purpose", "drafting", "A draft.")
    assert (status, said.strip()) == (EXIT_PENDING, "")
    assert "NOT VERIFIED" not in notes
    return notes.partition("lionrock review answer ")[2].split()[0]


async def test_who_asked_has_the_answer_once_somebody_released_it(run: Run, tmp_path: Path) -> None:
    request_id = await waiting(run)
    assert (await run("ada", "review", "answer", request_id))[0] == EXIT_PENDING
    _, listed, _ = await run("rita", "review", "list")
    assert listed.startswith(request_id)
    assert "waiting until" in listed
    _, shown, _ = await run("rita", "review", "show", request_id)
    assert "user:\nA draft." in shown
    assert "answer:\nHello, world." in shown
    status, told, _ = await run("rita", "review", "release", request_id, "--reason", "checked")
    assert (status, told.startswith(f"released {request_id}: leaf ")) == (0, True)
    assert (await run("ada", "review", "answer", request_id))[:2] == (0, "Hello, world.\n")
    receipt = tmp_path / "receipts" / f"{request_id}.tlog-proof"
    status, told, _ = await run("ada", "verify", str(receipt), "--state-dir", str(tmp_path))
    assert (status, "the stored text is the one that this leaf commits to" in told) == (0, True)
    assert "no answer waits" in (await run("rita", "review", "list"))[2]
    _, listed, _ = await run("rita", "review", "list", "--all", "--json")
    assert json.loads(listed)["decision"] == "REVIEW_DECISION_RELEASE"


async def test_a_refusal_says_what_to_do(run: Run) -> None:
    request_id = await waiting(run)
    status, _, said = await run("ada", "review", "release", request_id, "--reason", "mine")
    assert (status, "ROLE_NOT_PERMITTED" in said) == (EXIT_REFUSED, True)
    assert (await run("rita", "review", "refuse", request_id, "--reason", "no"))[0] == 0
    status, said, notes = await run("ada", "review", "answer", request_id)
    assert (status, said) == (EXIT_REFUSED, "")
    assert "A reviewer has not released" in notes
    status, _, said = await run("rita", "review", "release", request_id, "--reason", "changed my mind")
    assert status != 0
    assert "lionrock review list --all" in said
