"""A tenant joins a gateway and the real audit service, which follow the same directory, and keeps its log when it leaves."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from audit_process import AuditProcess
from lionrock.audit.verify import verify_receipt
from lionrock.chassis.errors import remote_error
from lionrock.gateway.v1 import gateway_pb2 as gw
from scripted_mesh import ScriptedMesh
from tenant_files import write


@pytest.fixture
async def mesh(idle_mesh: ScriptedMesh, tmp_path: Path) -> AsyncIterator[ScriptedMesh]:
    directory = tmp_path / "tenants"
    directory.mkdir()
    more = {"tenants": [], "tenants_dir": str(directory), "tenants_poll_s": 0.05}
    vault = {"key_store_file": str(tmp_path / "vault" / "keys.sqlite"), "local_key_dir": str(tmp_path / "tenant-keys")}
    audit = AuditProcess(tmp_path, idle_mesh.ca, **more, vault=vault)
    idle_mesh.tenants, idle_mesh.tenants_directory = [], directory
    idle_mesh.limits = {"tenants_poll_s": 0.05}
    idle_mesh.targets["audit"] = audit.target
    try:
        async with idle_mesh.running():
            yield idle_mesh
    finally:
        audit.stop()


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
