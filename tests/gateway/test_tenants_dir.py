"""Tenants come, change and go while the gateway serves: no request is dropped, and no file that is no good is followed."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import grpc
import pytest

from lionrock.chassis.errors import remote_error
from lionrock.gateway.granting import ForeignTrustDomain, tenant_of
from lionrock.gateway.v1 import gateway_pb2 as gw
from lionrock.tenancy.spec import NamedTenant
from mesh_ca import TRUST_DOMAIN
from scripted_mesh import ScriptedMesh
from tenant_files import write


@pytest.fixture
async def mesh(idle_mesh: ScriptedMesh, tmp_path: Path) -> AsyncIterator[ScriptedMesh]:
    idle_mesh.tenants_directory = tmp_path / "tenants"
    idle_mesh.tenants_directory.mkdir()
    idle_mesh.limits = {"tenants_poll_s": 0.02}
    async with idle_mesh.running():
        yield idle_mesh


def directory(mesh: ScriptedMesh) -> Path:
    assert mesh.tenants_directory is not None
    return mesh.tenants_directory


async def until(call: Callable[[], Awaitable[Any]], reason: str | None) -> None:
    """Ask until the answer is as wanted: a refusal for this reason, or, for None, none."""
    async with asyncio.timeout(10):
        while True:
            found = None
            try:
                await call()
            except grpc.aio.AioRpcError as error:
                found = remote_error(error).reason
            if found == reason:
                return


async def test_a_tenant_comes_changes_and_goes_while_another_is_answered(mesh: ScriptedMesh, ask: Any, hear: Any) -> None:
    mesh.engine.pace = asyncio.Semaphore(0)
    async with mesh.calling() as bank, mesh.calling(mesh.identity("fund")) as fund:
        call = bank.Chat(ask())
        assert (await anext(aiter(call))).HasField("started")

        async def list_models() -> None:
            await fund.ListModels(gw.ListModelsRequest())

        await until(list_models, "UNKNOWN_PRINCIPAL")
        write(directory(mesh), "fund")
        await until(list_models, None)
        write(
            directory(mesh),
            "fund",
            principals=[
                {"spiffeId": f"spiffe://{TRUST_DOMAIN}/tenant/fund/user/*", "purposes": ["testing"], "roles": ["privacy_officer"]}
            ],
        )
        await until(list_models, "ROLE_NOT_PERMITTED")
        (directory(mesh) / "fund.json").unlink()
        await until(list_models, "UNKNOWN_PRINCIPAL")

        for _ in mesh.engine.text:
            mesh.engine.pace.release()
        rest = [response async for response in call]
    assert "".join(response.delta.text for response in rest) == mesh.engine.text
    assert rest[-1].HasField("finished")


async def test_an_answer_of_a_tenant_that_leaves_is_finished(mesh: ScriptedMesh, ask: Any) -> None:
    mesh.engine.pace = asyncio.Semaphore(0)
    write(directory(mesh), "fund")
    async with mesh.calling(mesh.identity("fund")) as fund:

        async def list_models() -> None:
            await fund.ListModels(gw.ListModelsRequest())

        await until(list_models, None)
        call = fund.Chat(ask())
        assert (await anext(aiter(call))).HasField("started")
        (directory(mesh) / "fund.json").unlink()
        await until(list_models, "UNKNOWN_PRINCIPAL")
        for _ in mesh.engine.text:
            mesh.engine.pace.release()
        assert [response async for response in call][-1].HasField("finished")


async def test_a_file_that_is_no_good_is_named_and_what_it_said_stays(
    mesh: ScriptedMesh, failure: Any, caplog: pytest.LogCaptureFixture
) -> None:
    write(directory(mesh), "fund")
    async with mesh.calling(mesh.identity("fund")) as fund, mesh.calling(mesh.identity("trust")) as trust:

        async def fund_lists() -> None:
            await fund.ListModels(gw.ListModelsRequest())

        async def trust_lists() -> None:
            await trust.ListModels(gw.ListModelsRequest())

        await until(fund_lists, None)
        write(directory(mesh), "fund", territory="nowhere")
        write(directory(mesh), "alien", trust_domain="elsewhere")
        write(directory(mesh), "bank")  # the settings name it
        write(directory(mesh), "trust")
        await until(trust_lists, None)
        await fund_lists()
    told = {Path(record.file).name: record.why for record in caplog.records if hasattr(record, "why")}  # type: ignore[attr-defined]
    assert told.keys() == {"fund.json", "alien.json", "bank.json"}
    assert "spec.territory" in told["fund.json"]
    assert "trust domain" in told["alien.json"]
    assert "defined twice" in told["bank.json"]


def test_nobody_is_granted_more_than_their_tenant_has() -> None:
    plain = {"spiffe_id": "spiffe://td/tenant/bank/user/*", "purposes": ["testing"]}

    def grant(principal: dict[str, Any], **spec: Any) -> Any:
        named = NamedTenant.model_validate({"name": "bank", "principals": [plain | principal], **spec})
        [granted] = tenant_of("bank", named, trust_domain="td").grants.values()
        return granted

    assert grant({}).models == {"*"}
    assert grant({}, models=["a", "b"]).models == {"a", "b"}
    assert grant({"models": ["a"]}, models=["a", "b"]).models == {"a"}
    assert grant({}).data_classes == {"public", "internal", "personal"}
    assert grant({}, data_classes=["public", "suspicion"]).data_classes == {"public"}
    assert grant({}, profile="strict").profile == "strict"
    assert grant({"profile": "lenient"}, profile="strict").profile == "lenient"
    for principal, spec in (({"models": ["c"]}, {"models": ["a"]}), ({"data_classes": ["identity"]}, {"data_classes": ["public"]})):
        with pytest.raises(ValueError, match="which the tenant does not have"):
            grant(principal, **spec)
    with pytest.raises(ForeignTrustDomain):
        tenant_of("bank", NamedTenant.model_validate({"name": "bank", "principals": [plain]}), trust_domain="other")
