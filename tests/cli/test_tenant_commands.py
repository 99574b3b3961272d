"""`lionrock tenant`, from files to a receipt: through a real gateway to a real audit service that follow the same directory."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from audit_process import AuditProcess
from lionrock.cli import tenant_files, tenant_onboarding
from lionrock.cli.errors import CommandError, MeshNotRunning
from lionrock.cli.state import Endpoint, MeshInfo, StateDir
from lionrock.cli.tenant_onboarding import changed
from mesh_ca import TRUST_DOMAIN
from scripted_mesh import ScriptedMesh, tenant
from tenant_files import document


@dataclass(frozen=True, slots=True)
class Desk:
    """The command line of a machine on which a mesh runs."""

    state: StateDir
    files: Path

    def write(self, name: str, **spec: Any) -> Path:
        path = self.files / f"{name}.yaml"
        path.write_text(yaml.safe_dump(document(name, **spec)))
        return path

    async def onboard(self, *files: Path, dry_run: bool = False, chat: bool = True) -> int:
        return await asyncio.to_thread(tenant_onboarding.run, self.state.root, files, dry_run=dry_run, chat=chat, timeout_s=30.0)

    @property
    def followed(self) -> dict[str, Any]:
        return {path.name: json.loads(path.read_text()) for path in self.state.tenants.glob("*.json")}


@pytest.fixture
async def desk(tmp_path: Path) -> AsyncIterator[Desk]:
    state, files = StateDir(tmp_path / "state"), tmp_path / "files"
    state.create()
    files.mkdir()
    mesh = ScriptedMesh(state.root)  # whose authority is that of the state directory
    vault = {"key_store_file": str(tmp_path / "vault" / "keys.sqlite"), "local_key_dir": str(tmp_path / "tenant-keys")}
    (tmp_path / "audit").mkdir()
    audit = AuditProcess(
        tmp_path / "audit", mesh.ca, tenants=["demo"], tenants_dir=str(state.tenants), tenants_poll_s=0.05, vault=vault
    )
    mesh.tenants, mesh.tenants_directory = [tenant("demo")], state.tenants
    mesh.limits = {"tenants_poll_s": 0.05}
    secret_file = tmp_path / "consents.secret"
    secret_file.write_text("c" * 40)
    secret_file.chmod(0o600)
    mesh.gateway_changes = {"state": {"sqlite_file": tmp_path / "state.db"}, "consents": {"secret_file": secret_file}}
    mesh.targets["audit"] = audit.target
    try:
        async with mesh.running():
            settings = {"server": {"trust_domain": TRUST_DOMAIN}, "tenants": mesh.tenants, "tenants_dir": str(state.tenants)}
            state.config("gateway").write_text(json.dumps(settings))
            with state.locked():
                state.write_mesh(MeshInfo(1, "now", TRUST_DOMAIN, {"gateway": Endpoint(mesh.targets["gateway"], 1)}))
                yield Desk(state, files)
    finally:
        audit.stop()


async def test_onboarding_ends_with_a_chat_whose_receipt_verifies_and_can_be_repeated(
    desk: Desk, capsys: pytest.CaptureFixture[str]
) -> None:
    file = desk.write("retail", displayName="Retail banking")
    assert await desk.onboard(file, dry_run=True) == 0
    assert desk.followed == {}
    assert await desk.onboard(file) == 0
    said = capsys.readouterr().out
    assert "tenant retail: new: called Retail banking" in said
    assert "receipt verified under test/audit/retail" in said
    assert desk.followed["retail.json"] == document("retail", displayName="Retail banking")

    written = (desk.state.tenants / "retail.json").stat()
    assert await desk.onboard(file) == 0
    assert "tenant retail: as it was" in capsys.readouterr().out
    assert (desk.state.tenants / "retail.json").stat() == written

    assert await desk.onboard(desk.write("retail", displayName="Retail", maxStreams=8), chat=False) == 0
    said = capsys.readouterr().out
    assert '~ spec.displayName: "Retail banking" → "Retail"' in said
    assert "+ spec.maxStreams: 8" in said


async def test_nothing_is_changed_while_one_of_the_files_is_not_good(desk: Desk) -> None:
    good, bad = desk.write("retail"), desk.write("broker", territory="hk")
    taken = desk.write("demo")
    foreign = desk.write("fund", trust_domain="elsewhere")
    with pytest.raises(CommandError) as refused:
        await desk.onboard(good, bad, taken, foreign, desk.files / "missing.yaml")
    message = str(refused.value)
    for words in ("nothing was changed", "tenant broker: spec.territory", "tenant demo: ", "trust domain", "missing.yaml: No such"):
        assert words in message
    assert desk.followed == {}


async def test_a_key_that_this_machine_cannot_use_is_refused_before_anything_changes(desk: Desk) -> None:
    with pytest.raises(CommandError, match=r"spec\.keys: this machine has tenants' keys in files"):
        await desk.onboard(desk.write("retail", keys={"transit": {"name": "retail-master"}}))
    assert not list(desk.state.tenants.glob("retail*"))


async def test_a_chat_that_fails_is_said_with_its_reason(desk: Desk, capsys: pytest.CaptureFixture[str]) -> None:
    assert await desk.onboard(desk.write("retail", models=["unknown"])) == 1
    assert "the chat failed: no model that the tenant may use is ready" in capsys.readouterr().out


async def test_a_tenant_without_people_who_may_ask_is_onboarded_without_a_chat(
    desk: Desk, capsys: pytest.CaptureFixture[str]
) -> None:
    auditor = {"spiffeId": f"spiffe://{TRUST_DOMAIN}/tenant/watch/user/*", "purposes": ["oversight"], "roles": ["auditor"]}
    assert await desk.onboard(desk.write("watch", principals=[auditor])) == 0
    assert "no chat: none of its principals may ask" in capsys.readouterr().out


async def test_the_chat_is_for_a_purpose_that_needs_nobodys_consent(desk: Desk, capsys: pytest.CaptureFixture[str]) -> None:
    who = {"spiffeId": f"spiffe://{TRUST_DOMAIN}/tenant/retail/user/*", "purposes": ["marketing", "testing"]}
    for asking, said in ((["marketing"], "receipt verified under"), (["marketing", "testing"], "needs somebody's consent")):
        rules = [
            {
                "purpose": each,
                "requiresConsent": True,
                "notice": {"version": 1, "texts": [{"language": "en", "text": "What we do."}]},
            }
            for each in asking
        ]
        file = desk.write("retail", principals=[who], purposes=["marketing", "testing"], purposeRules=rules)
        assert await desk.onboard(file) == 0
        assert said in capsys.readouterr().out


async def test_tenants_are_listed_with_where_they_are_stated_and_bad_files_with_why(
    desk: Desk, capsys: pytest.CaptureFixture[str]
) -> None:
    await desk.onboard(desk.write("retail"), chat=False)
    capsys.readouterr()
    assert tenant_files.show(desk.state.root, as_json=True) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(row["tenant"], row["stated_in"]) for row in rows] == [("demo", "settings"), ("retail", "retail.json")]
    (desk.state.tenants / "worse.yaml").write_text("kind: Tenant")
    assert tenant_files.show(desk.state.root, as_json=True) == 1
    assert "worse.yaml" in capsys.readouterr().out


def test_onboarding_needs_a_mesh(tmp_path: Path) -> None:
    with pytest.raises(MeshNotRunning):
        tenant_onboarding.run(tmp_path, [], dry_run=False, chat=True, timeout_s=1)


def test_files_are_checked_without_a_mesh(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good, bad = tmp_path / "good.yaml", tmp_path / "bad.yaml"
    good.write_text(yaml.safe_dump(document("retail")))
    bad.write_text(yaml.safe_dump(document("broker", territory="hk")))
    assert tenant_files.check([good], None, as_json=False) == 0
    assert "tenant retail: territory HK" in capsys.readouterr().out
    assert tenant_files.check([good], "elsewhere.example", as_json=False) == 1
    assert "not of the trust domain elsewhere.example" in capsys.readouterr().out
    assert tenant_files.check([good, good], None, as_json=False) == 1
    assert tenant_files.check([good, bad], None, as_json=True) == 1
    told = [json.loads(line) for line in capsys.readouterr().out.splitlines() if line.startswith("{")]
    assert "spec.territory" in told[-1]["error"]


def test_what_changes_is_told_value_by_value() -> None:
    before = {"spec": {"a": 1, "b": [1, {"c": 2}], "gone": "x"}}
    after = {"spec": {"a": 1, "b": [1, {"c": 3}, 4], "new": True}}
    assert list(changed(before, after)) == ["~ spec.b[1].c: 2 → 3", "+ spec.b[2]: 4", '- spec.gone: "x"', "+ spec.new: true"]
