"""A tenant joins a gateway and the real audit service, which follow the same directory, and keeps its log when it leaves."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from audit_process import AuditProcess
from lionrock.audit.v1 import audit_pb2 as audit
from lionrock.audit.v1.audit_pb2_grpc import AuditServiceStub
from lionrock.audit.verify import verify_receipt
from lionrock.chassis.channel import open_channel
from lionrock.chassis.errors import remote_error
from lionrock.chassis.settings import PeerSettings
from lionrock.gateway.v1 import gateway_pb2 as gw
from mesh_ca import TRUST_DOMAIN
from scripted_mesh import ScriptedMesh
from tenant_files import write


@pytest.fixture
async def mesh(idle_mesh: ScriptedMesh, tmp_path: Path) -> AsyncIterator[ScriptedMesh]:
    directory = tmp_path / "tenants"
    directory.mkdir()
    more = {"tenants": [], "tenants_dir": str(directory), "tenants_poll_s": 0.05}
    vault = {"key_store_file": str(tmp_path / "vault" / "keys.sqlite"), "local_key_dir": str(tmp_path / "tenant-keys")}
    process = AuditProcess(tmp_path, idle_mesh.ca, **more, vault=vault)
    idle_mesh.tenants, idle_mesh.tenants_directory = [], directory
    idle_mesh.limits = {"tenants_poll_s": 0.05}
    idle_mesh.targets["audit"] = process.target
    try:
        async with idle_mesh.running():
            yield idle_mesh
    finally:
        process.stop()


async def answered(stub: Any, ask: Any, hear: Any) -> Any:
    """Ask until gateway and audit service have seen the tenant: before, each refuses for its own reason."""
    refused = {"UNKNOWN_PRINCIPAL", "AUDIT_UNAVAILABLE"}
    async with asyncio.timeout(20):
        while True:
            try:
                return await hear(stub.Chat(ask()))
            except grpc.aio.AioRpcError as error:
                if remote_error(error).reason not in refused:
                    raise


async def test_a_tenant_that_joins_is_answered_and_its_receipt_verifies(
    mesh: ScriptedMesh, ask: Any, hear: Any, tmp_path: Path
) -> None:
    for name in ("fund", "trust"):
        write(tmp_path / "tenants", name)
    for name in ("fund", "trust"):
        async with mesh.calling(mesh.identity(name)) as stub:
            heard = await answered(stub, ask, hear)
            assert heard.text == mesh.engine.text
            keys = await stub.ListAuditKeys(gw.ListAuditKeysRequest())
            assert keys.origin == f"test/audit/{name}"
            leaf = verify_receipt(heard.finished.receipt.tlog_proof, keys.verifier_keys)
        assert leaf.fields["request_id"] == heard.started.request_id
    kept = " ".join(path.name for path in (tmp_path / "tenant-keys").iterdir())
    assert "fund" in kept
    assert "trust" in kept


async def test_records_that_begin_after_a_change_of_retention_have_the_new_days(
    mesh: ScriptedMesh, ask: Any, hear: Any, tmp_path: Path
) -> None:
    def state(**days: int) -> None:
        principal = {
            "spiffeId": f"spiffe://{TRUST_DOMAIN}/tenant/fund/user/*",
            "roles": ["auditor", "user"],
            "purposes": ["testing"],
        }
        retention = {"classes": [{"name": "own", **days}], "default": "own"}
        write(tmp_path / "tenants", "fund", principals=[principal], retention=retention)

    async def classes() -> list[str]:
        request = audit.ListLeavesRequest(start=0, limit=1000)
        leaves = [json.loads(leaf.data) async for page in log.ListLeaves(request) for leaf in page.leaves]
        return [leaf["retention_class"] for leaf in leaves if leaf["type"] == "intent"]

    state(keepDays=20)
    identity = mesh.identity("fund")
    peer = PeerSettings(target=mesh.targets["gateway"], service="gateway", timeout_s=20)
    async with mesh.calling(identity) as stub, open_channel(peer, identity, name="test") as channel:
        log: Any = AuditServiceStub(channel)
        await answered(stub, ask, hear)
        assert await classes() == ["own/20/never"]
        state(expireDays=5)
        async with asyncio.timeout(20):
            while (await classes())[-1] == "own/20/never":
                await hear(stub.Chat(ask()))
        assert set(await classes()) == {"own/20/never", "own/0/5"}
