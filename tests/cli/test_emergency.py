"""`lionrock emergency`, from the command line to a real gateway over a real store."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest

from lionrock.cli.emergency_commands import app
from lionrock.cli.errors import EXIT_REFUSED, CommandError, report
from lionrock.gateway.state.opening import StateSettings
from mesh_ca import TRUST_DOMAIN
from scripted_mesh import ScriptedMesh, tenant

Run = Callable[..., Awaitable[tuple[int, str, str]]]


def _call(arguments: tuple[str, ...]) -> int:
    try:
        app(list(arguments), prog_name="lionrock emergency", standalone_mode=False)
    except CommandError as error:
        return report(error)
    except SystemExit as end:
        return int(end.code or 0)
    return 0


@pytest.fixture
async def run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> AsyncIterator[Run]:
    """Run a command as somebody of the bank."""
    mesh = ScriptedMesh(tmp_path / "mesh")
    bank = tenant("bank")
    for who, roles in (("guard", ["security"]), ("officer", ["privacy_officer", "tenant_admin"])):
        person = {"spiffe_id": f"spiffe://{TRUST_DOMAIN}/tenant/bank/user/{who}", "roles": roles, "purposes": ["testing"]}
        bank["principals"].append(person)
    mesh.tenants = [bank]
    mesh.gateway_changes = {"state": StateSettings(sqlite_file=tmp_path / "state.db")}
    async with mesh.running():

        async def command(who: str, *arguments: str) -> tuple[int, str, str]:
            certificates = mesh.identity("bank", who).cert_file.parent
            door = ("--gateway", mesh.targets["gateway"], "--certificates", str(certificates), "--state-dir", str(tmp_path))
            capsys.readouterr()
            status = await asyncio.to_thread(_call, (*arguments, *door))
            out, err = capsys.readouterr()
            return status, out, err

        yield command


async def test_one_person_asks_another_approves_and_either_ends(run: Run) -> None:
    status, asked, said = await run("guard", "request", "incident 4711", "--minutes", "30")
    emergency_id = asked.strip()
    assert (status, asked.count("\n")) == (0, 1)
    assert f"lionrock emergency approve {emergency_id}" in said
    status, listed, _ = await run("officer", "list", "--json")
    (row,) = [json.loads(line) for line in listed.splitlines()]
    assert (status, row["emergency_id"], row["state"], row["duration"]) == (0, emergency_id, "requested", "1800s")
    assert "incident" not in listed

    status, told, said = await run("officer", "approve", emergency_id, "spoke to the desk")
    assert (status, f"approved {emergency_id} for spiffe://{TRUST_DOMAIN}/tenant/bank/user/guard: until " in told) == (0, True)
    assert "in force everywhere from" in said
    _, listed, _ = await run("guard", "list")
    assert listed.split()[:2] == [emergency_id, "approved"]
    status, told, _ = await run("guard", "end", emergency_id, "--json")
    assert (status, json.loads(told)["state"]) == (0, "ended")
    status, listed, said = await run("guard", "list")
    assert (status, listed, said.strip()) == (0, "", "no emergency is asked for or in force")
    _, listed, _ = await run("guard", "list", "--all")
    assert listed.split()[:2] == [emergency_id, "ended"]


async def test_a_refusal_says_what_to_do(run: Run) -> None:
    _, asked, _ = await run("officer", "request", "x")
    status, _, said = await run("officer", "approve", asked.strip(), "x")
    assert status == EXIT_REFUSED
    assert "REQUESTER_MAY_NOT_DECIDE" in said
    assert "somebody else decides" in said
    status, _, said = await run("guard", "deny", asked.strip(), "x")
    assert (status, "ROLE_NOT_PERMITTED" in said) == (EXIT_REFUSED, True)
    status, _, said = await run("officer", "request", "y")
    assert status != 0
    assert "lionrock emergency end" in said
    status, _, said = await run("officer", "deny", "01930000-0000-7000-8000-000000000000", "x")
    assert status != 0
    assert "lionrock emergency list --all" in said


async def test_somebody_who_denies_is_believed(run: Run) -> None:
    _, asked, _ = await run("guard", "request", "x")
    status, told, _ = await run("officer", "deny", asked.strip(), "no need")
    assert (status, told.startswith(f"denied {asked.strip()}: leaf ")) == (0, True)
    status, _, said = await run("officer", "approve", asked.strip(), "changed my mind")
    assert status != 0
    assert "EMERGENCY_DECIDED" in said
