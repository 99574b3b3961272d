"""`lionrock tenant offboard`, from a chat to a report that verifies: through a real gateway to a real audit service."""

from __future__ import annotations

import asyncio
import json
import sqlite3
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration

from audit_process import AuditProcess
from lionrock.audit.v1 import records_pb2 as rec
from lionrock.audit.v1.records_pb2_grpc import RecordsServiceStub
from lionrock.chassis.channel import open_channel
from lionrock.chassis.errors import remote_error
from lionrock.chassis.settings import PeerSettings
from lionrock.cli import tenant_offboarding, tenant_onboarding
from lionrock.cli.audit_door import Where
from lionrock.cli.chat import Door
from lionrock.cli.errors import CommandError
from lionrock.cli.state import Endpoint, MeshInfo, StateDir
from lionrock.cli.tenant_offboarding import Choices
from lionrock.common.v1 import chat_pb2 as chat
from lionrock.gateway.identity.settings import ApiKeySettings
from lionrock.gateway.state.departures import tenant_tables
from lionrock.gateway.state.opening import StateSettings
from lionrock.gateway.v1 import api_key_pb2 as keys
from lionrock.gateway.v1 import gateway_pb2 as gw
from lionrock.gateway.v1.api_key_pb2_grpc import ApiKeyServiceStub
from lionrock.gateway.v1.gateway_pb2_grpc import GatewayServiceStub
from mesh_ca import TRUST_DOMAIN
from scripted_mesh import MODEL, ScriptedMesh, tenant
from tenant_files import write

QUESTION = "what is the balance of customer 7f3a91, please"
PEOPLE = {"user": ["user"], "admin": ["tenant_admin", "user"], "officer": ["privacy_officer"]}


@dataclass(frozen=True, slots=True)
class Desk:
    """The command line of a machine on which a mesh with the tenant retail runs."""

    root: Path
    mesh: ScriptedMesh
    state: StateDir

    def where(self, who: str) -> Where:
        """As one of its people, who has a certificate."""
        return Where(self.state.root, Door(certificates=self.certificates(who)), 30.0)

    def certificates(self, who: str, name: str = "retail") -> Path:
        identity = f"spiffe://{TRUST_DOMAIN}/tenant/{name}/workload/{who}"
        return self.mesh.ca.issue(spiffe_id=identity).cert_file.parent

    async def offboard(self, who: str, **choices: Any) -> int:
        given = Choices(self.out, "contract ended", yes=True, wait_s=20, **choices)
        return await asyncio.to_thread(tenant_offboarding.run, self.where(who), "retail", given)

    @property
    def out(self) -> Path:
        return self.root / "out"

    @property
    def rows(self) -> dict[str, int]:
        """Rows of the tenant in what gateways share."""
        with closing(sqlite3.connect(self.root / "gateway.db")) as database:
            count = "SELECT count(*) FROM {} WHERE tenant = 'retail'"
            counts = {table: database.execute(count.format(table)).fetchone()[0] for table in tenant_tables()}
        return {table: number for table, number in counts.items() if number}

    async def calling(self, who: str) -> Any:
        identity = self.mesh.ca.issue(spiffe_id=f"spiffe://{TRUST_DOMAIN}/tenant/retail/workload/{who}")
        peer = PeerSettings(target=self.mesh.targets["gateway"], service="gateway", timeout_s=20)
        return open_channel(peer, identity, name="test")

    async def ask(self, text: str = QUESTION) -> str:
        """Chat as its user. Returns the reason of a refusal."""
        async with await self.calling("user") as channel:
            request = gw.ChatRequest(messages=[chat.ChatMessage(role=chat.CHAT_ROLE_USER, content=text)], subject_ids=["c-1"])
            try:
                return "".join([response.delta.text async for response in GatewayServiceStub(channel).Chat(request)])
            except grpc.aio.AioRpcError as error:
                return remote_error(error).reason or ""


@pytest.fixture
async def desk(tmp_path: Path) -> AsyncIterator[Desk]:
    state = StateDir(tmp_path / "state")
    state.create()
    mesh = ScriptedMesh(state.root)
    principals = [
        {"spiffeId": f"spiffe://{TRUST_DOMAIN}/tenant/retail/workload/{who}", "purposes": ["testing"], "roles": roles}
        for who, roles in PEOPLE.items()
    ]
    write(state.tenants, "retail", principals=principals, quotas={"requestsPerMinute": 100})
    vault = {"key_store_file": str(tmp_path / "vault" / "keys.sqlite"), "local_key_dir": str(tmp_path / "tenant-keys")}
    (tmp_path / "audit").mkdir()
    more = {"tenants": ["demo"], "tenants_dir": str(state.tenants), "tenants_poll_s": 0.05, "vault": vault}
    audit = AuditProcess(tmp_path / "audit", mesh.ca, **more)
    secret = tmp_path / "api-keys"
    secret.write_text("s" * 40)
    secret.chmod(0o600)
    mesh.gateway_changes = {
        "state": StateSettings(sqlite_file=tmp_path / "gateway.db"),
        "api_keys": ApiKeySettings(secret_file=secret, max_lifetime_days=30),
    }
    mesh.tenants, mesh.tenants_directory, mesh.limits = [tenant("demo")], state.tenants, {"tenants_poll_s": 0.05}
    mesh.targets["audit"] = audit.target
    try:
        async with mesh.running():
            settings = {"server": {"trust_domain": TRUST_DOMAIN}, "tenants": mesh.tenants, "tenants_dir": str(state.tenants)}
            state.config("gateway").write_text(json.dumps(settings))
            with state.locked():
                state.write_mesh(MeshInfo(1, "now", TRUST_DOMAIN, {"gateway": Endpoint(mesh.targets["gateway"], 1)}))
                yield Desk(tmp_path, mesh, state)
    finally:
        audit.stop()


async def test_a_tenant_is_off_boarded_by_two_people_and_the_report_verifies_without_a_mesh(
    desk: Desk, capsys: pytest.CaptureFixture[str]
) -> None:
    answered = await desk.ask()
    assert answered
    assert answered not in ("TENANT_LEAVING", "AUDIT_UNAVAILABLE")
    async with await desk.calling("admin") as channel:
        wanted = keys.CreateApiKeyRequest(
            description="k", roles=["user"], purposes=["testing"], models=[MODEL], lifetime=Duration(seconds=3600)
        )
        await ApiKeyServiceStub(channel).CreateApiKey(wanted)
    assert {"api_keys", "quota_windows"} <= desk.rows.keys()

    with pytest.raises(CommandError, match="role"):
        await desk.offboard("officer")
    assert await desk.offboard("admin") == 0
    assert "somebody else, who is privacy_officer" in capsys.readouterr().out
    assert await desk.ask() == "TENANT_LEAVING"
    with pytest.raises(CommandError, match="role"):  # who began it does not decide
        await desk.offboard("admin")

    assert await desk.offboard("officer") == 0
    said = capsys.readouterr().out
    assert "everything" not in said
    assert "sealed       after" in said
    assert "is removed; nobody of it is let in any more" in said
    assert not (desk.state.tenants / "retail.json").exists()
    assert desk.rows == {}
    report = json.loads((desk.out / "report.json").read_text())
    assert (report["stage"], report["kept"], report["vault_key"]) == ("sealed", [], "destroyed")
    assert report["export"]["payload_records"] >= 1

    # The report proves itself, to our command and to the verifier that stands alone.
    trusted = (desk.out / "keys.txt").read_text().split()
    assert tenant_offboarding.check(desk.out, trusted, None) == 0
    proven = capsys.readouterr().out
    assert "the log that was exported is the beginning of the one that was sealed" in proven
    for name in ("erased.tlog-proof", "export.zip"):
        command = [sys.executable, str(desk.out / "verify.py"), str(desk.out / name), *trusted]
        alone = await asyncio.to_thread(subprocess.run, command, capture_output=True, text=True, check=False)
        assert alone.returncode == 0, alone.stdout + alone.stderr

    # And it notices.
    (desk.out / "erased.tlog-proof").write_text((desk.out / "begun.tlog-proof").read_text())
    assert tenant_offboarding.check(desk.out, trusted, None) == 1

    # No byte of what was said is left where the services keep things.
    kept = [path for place in ("audit", "vault", "tenant-keys", "gateway.db") for path in [desk.root / place]]
    for path in [file for place in kept for file in ([place] if place.is_file() else place.rglob("*")) if file.is_file()]:
        assert QUESTION.encode() not in path.read_bytes()
        assert answered.encode() not in path.read_bytes()
    assert not list((desk.root / "tenant-keys").glob("retail*"))
    assert not list((desk.root / "audit" / "keys").glob("retail*"))


async def test_the_command_can_be_repeated_and_the_name_is_not_given_again(desk: Desk, capsys: pytest.CaptureFixture[str]) -> None:
    await desk.ask()
    document = (desk.state.tenants / "retail.json").read_bytes()
    assert await desk.offboard("admin") == 0
    assert await desk.offboard("officer") == 0
    first = json.loads((desk.out / "report.json").read_text())
    fresh = desk.state.tenants / ".again"
    fresh.write_bytes(document)
    fresh.replace(desk.state.tenants / "retail.json")
    for _ in range(200):
        if (reason := await desk.ask()) != "UNKNOWN_PRINCIPAL":
            break
        await asyncio.sleep(0.02)
    assert reason == "TENANT_LEAVING"
    assert await desk.offboard("officer") == 0
    again = json.loads((desk.out / "report.json").read_text())
    assert (again["erased"], again["stage"]) == (first["erased"], "sealed")
    assert tenant_offboarding.check(desk.out, (desk.out / "keys.txt").read_text().split(), None) == 0
    capsys.readouterr()


async def test_who_began_it_may_cancel_and_another_tenant_s_name_is_as_good_as_nobody_s(desk: Desk) -> None:
    await desk.ask()
    assert await desk.offboard("admin") == 0
    assert await asyncio.to_thread(tenant_offboarding.cancel, desk.where("admin"), "retail") == 0
    assert await desk.ask() not in ("TENANT_LEAVING", "")
    async with await desk.calling("admin") as channel:
        told = set()
        for name in ("demo", "nobody"):
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await RecordsServiceStub(channel).BeginOffboarding(rec.BeginOffboardingRequest(tenant=name))
            told.add((refused.value.code(), refused.value.details()))
        assert len(told) == 1


async def test_certificates_are_issued_for_principals_of_tenants_and_nobody_else(desk: Desk, tmp_path: Path) -> None:
    listed = f"spiffe://{TRUST_DOMAIN}/tenant/retail/workload/officer"
    assert tenant_onboarding.certify(desk.state.root, listed, tmp_path / "officer") == 0
    assert {path.name for path in (tmp_path / "officer").iterdir()} == {"tls.crt", "tls.key", "ca.crt"}
    for nobody in (listed.replace("officer", "thief"), listed.replace("retail", "demo2"), listed.replace("officer", "*"), "x"):
        with pytest.raises(CommandError, match="no tenant lists"):
            tenant_onboarding.certify(desk.state.root, nobody, tmp_path / "nobody")
    assert not (tmp_path / "nobody").exists()
