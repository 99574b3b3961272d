"""`lionrock consent`, `lionrock opt-out` and `lionrock notice`, from the command line to a real gateway over a real store."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest

from lionrock.cli.errors import EXIT_REFUSED, CommandError, report
from lionrock.cli.main import app
from lionrock.gateway.state.opening import StateSettings
from mesh_ca import TRUST_DOMAIN
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
    """Run a command as an administrator of the bank, or as somebody else of it."""
    secret_file = tmp_path / "secret"
    secret_file.write_text("s" * 32)
    secret_file.chmod(0o600)
    mesh = ScriptedMesh(tmp_path / "mesh")
    bank = tenant("bank", purposes=["testing", "marketing"])
    admin = {"spiffe_id": f"spiffe://{TRUST_DOMAIN}/tenant/bank/user/root", "roles": ["tenant_admin", "user"]}
    bank["principals"].append({**admin, "purposes": ["testing", "marketing"]})
    notice = {"version": 3, "texts": [{"language": "en", "text": "We show you offers."}]}
    bank |= {"purposes": ["testing", "marketing"], "display_name": "Harbour Bank"}
    bank["purpose_rules"] = [{"purpose": "marketing", "requires_consent": True, "notice": notice}]
    mesh.tenants = [bank]
    mesh.gateway_changes = {
        "state": StateSettings(sqlite_file=tmp_path / "state.db"),
        "consents": {"secret_file": secret_file},
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


ASK = ("chat", "Offer something.", "--purpose", "marketing")


async def test_a_consent_is_recorded_shown_used_and_withdrawn(run: Run) -> None:
    status, _, said = await run(*ASK, "--subject", "customer-17")
    assert (status, "CONSENT_MISSING" in said) == (EXIT_REFUSED, True)

    record = ("consent", "record", "customer-17", "--purpose", "marketing", "--notice-version", "3", "--statement", "form 88")
    status, out, _ = await run(*record, "--days", "30", "--language", "en", "--json")
    made = json.loads(out)
    assert (status, made["purpose"], made["notice_version"], made["holds"]) == (0, "marketing", 3, True)
    assert {"consent_id", "expires_at", "leaf_index", "origin"} <= made.keys()
    _, _, said = await run(*ASK, "--subject", "customer-17")
    assert "This answer was written by an AI system." in said

    status, out, _ = await run("consent", "list", "customer-17")
    assert (status, "marketing, notice version 3" in out, out.rstrip().endswith(": holds")) == (0, True, True)
    status, out, _ = await run("consent", "withdraw", "customer-17", "--purpose", "marketing")
    assert (status, out.startswith("withdrawn: ")) == (0, True)
    status, _, said = await run("consent", "withdraw", "customer-17", "--purpose", "marketing")
    assert (status != 0, "lionrock consent list" in said) == (True, True)


async def test_an_opt_out_is_set_listed_and_cleared(run: Run) -> None:
    status, out, _ = await run("opt-out", "set", "customer-17")
    assert (status, "customer-17" in out) == (0, False)
    status, _, said = await run("chat", "Hello.", "--subject", "customer-17")
    assert (status, "OPTED_OUT" in said) == (EXIT_REFUSED, True)
    status, out, _ = await run("opt-out", "list", "--json")
    assert (status, set(json.loads(out))) == (0, {"opt_out_id", "set_at", "leaf_index"})
    assert (await run("opt-out", "clear", "customer-17", "--statement", "letter"))[0] == 0
    status, out, said = await run("opt-out", "list")
    assert (status, out, said.strip()) == (0, "", "nobody opted out")
    status, _, said = await run("opt-out", "clear", "customer-17", "--statement", "letter", who="ada")
    assert (status, "ROLE_NOT_PERMITTED" in said) == (EXIT_REFUSED, True)


async def test_everybody_may_read_what_people_are_told(run: Run) -> None:
    status, out, _ = await run("notice", who="ada")
    lines = out.splitlines()
    assert (status, lines[0]) == (0, "Harbour Bank, territory HK")
    assert lines[1].startswith("marketing: data internal, personal, public; needs consent to notice version 3 or later")
    status, out, _ = await run("notice", "marketing", who="ada")
    assert (status, "We show you offers." in out) == (0, True)
    status, out, _ = await run("notice", "--json")
    assert [notice["purpose"] for notice in json.loads(out)["notices"]] == ["marketing", "testing"]
    assert (await run("notice", "unheard_of"))[0] != 0
