"""Access policies that change under a running gateway."""

from __future__ import annotations

import asyncio
import secrets
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import grpc
import pytest

from lionrock.chassis.errors import remote_error
from lionrock.chassis.server import start_server
from lionrock.gateway.__main__ import gateway
from lionrock.gateway.access_policies import AccessPolicies, PoliciesInvalid, packaged_roles
from lionrock.gateway.authorization import AccessRequest, Action
from lionrock.gateway.policy_directory import PolicyDirectory
from lionrock.gateway.tenants import Grant, Principal, Tenant, TenantName
from lionrock.gateway.v1 import gateway_pb2 as gw
from scripted_mesh import ScriptedMesh

LISTING = '@id("listing") permit (principal in Role::"user", action == Action::"list_models", resource);'
CHATTING = '@id("chatting") permit (principal in Role::"user", action in Action::"ask", resource);'
USER = Principal(
    "spiffe://td/tenant/bank/user/ada",
    Tenant(TenantName("bank"), "HK", 1, {}),
    Grant(("user",), ("testing",), frozenset({"*"}), frozenset({"public"}), "default"),
)
CHAT = AccessRequest(Action.CHAT, "testing", "public")


class Site:
    """A directory of policies, and how often a change of it was refused."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.path.mkdir()
        self.refusals = 0
        self.directory = PolicyDirectory(self.path, served_in=None, refused=self._refused)

    def _refused(self) -> None:
        self.refusals += 1

    def write(self, text: str, name: str = "site.cedar") -> None:
        """Change a file as people do who care: whole or not at all."""
        fresh = self.path / f".{secrets.token_hex(4)}"
        fresh.write_text(text)
        fresh.replace(self.path / name)


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path / "policies")


async def test_a_sound_change_is_in_force_and_an_unsound_one_changes_nothing(site: Site, caplog: pytest.LogCaptureFixture) -> None:
    site.write(LISTING)
    authorizer = site.directory.start()
    assert not await site.directory.look()
    assert not authorizer.decide(USER, CHAT).allowed

    site.write(CHATTING, "more.cedar")
    assert await site.directory.look()
    assert authorizer.decide(USER, CHAT).policies == ("chatting",)
    good = authorizer.digest

    site.write("permit (principal, action, resource", "more.cedar")
    for _ in range(3):
        assert not await site.directory.look()
    assert (site.refusals, authorizer.digest) == (1, good)
    assert "more.cedar" in str([getattr(record, "why", "") for record in caplog.records])

    (site.path / "more.cedar").unlink()
    assert await site.directory.look()
    assert not authorizer.decide(USER, CHAT).allowed
    assert authorizer.digest == AccessPolicies({"site.cedar": LISTING}).digest


async def test_a_directory_that_is_emptied_or_goes_away_leaves_the_former_policies(site: Site) -> None:
    site.write(CHATTING)
    authorizer = site.directory.start()
    (site.path / "site.cedar").unlink()
    assert not await site.directory.look()
    site.path.rmdir()
    for _ in range(2):
        assert not await site.directory.look()
    assert site.refusals == 2
    assert authorizer.decide(USER, CHAT).allowed
    site.path.mkdir()
    site.write(LISTING)
    assert await site.directory.look()
    assert not authorizer.decide(USER, CHAT).allowed


async def test_a_mounted_config_map_is_followed_and_what_is_no_policy_is_not_read(site: Site) -> None:
    def mount(text: str) -> None:
        generation = site.path / f"..{secrets.token_hex(4)}"
        generation.mkdir()
        (generation / "site.cedar").write_text(text)
        fresh = site.path / "..data_tmp"
        fresh.symlink_to(generation.name)
        fresh.replace(site.path / "..data")

    mount(LISTING)
    (site.path / "site.cedar").symlink_to("..data/site.cedar")
    (site.path / "README.md").write_text("not a policy")
    authorizer = site.directory.start()
    mount(CHATTING)
    assert await site.directory.look()
    assert authorizer.decide(USER, CHAT).allowed
    assert site.refusals == 0


def test_a_gateway_does_not_start_without_sound_policies(site: Site) -> None:
    with pytest.raises(PoliciesInvalid, match=r"no file \*\.cedar"):
        site.directory.start()
    site.write("nonsense")
    with pytest.raises(PoliciesInvalid, match=r"site\.cedar"):
        site.directory.start()
    with pytest.raises(OSError, match="nowhere"):
        PolicyDirectory(site.path / "nowhere", served_in=None, refused=list).start()


async def test_a_change_reaches_a_running_gateway_within_five_seconds_and_drops_no_request(
    idle_mesh: ScriptedMesh, site: Site, ask: Any, hear: Any
) -> None:
    site.write(packaged_roles()["roles.cedar"])
    idle_mesh.gateway_changes = {"policy_dir": site.path}
    idle_mesh.engine.pace = asyncio.Semaphore(1)
    before = AccessPolicies({"site.cedar": packaged_roles()["roles.cedar"]}).digest
    after = AccessPolicies({"site.cedar": CHATTING}).digest
    async with idle_mesh.running(), idle_mesh.calling() as stub:
        began_before = stub.Chat(ask())
        await anext(aiter(began_before))
        idle_mesh.engine.pace = None
        changed = asyncio.Event()

        async def keep_asking() -> int:
            answers = 0
            while not changed.is_set():
                assert (await hear(stub.Chat(ask()))).text == idle_mesh.engine.text
                answers += 1
            return answers

        async with asyncio.timeout(5), asyncio.TaskGroup() as crowd:
            askers = [crowd.create_task(keep_asking()) for _ in range(4)]
            site.write(CHATTING)
            while (await listing(stub)) is None:
                pass
            assert await listing(stub) == "ROLE_NOT_PERMITTED"
            changed.set()
        assert all(asker.result() for asker in askers)
        assert (await hear(stub.Chat(ask()))).text == idle_mesh.engine.text
        began_before.cancel()
        asked = len(idle_mesh.log.intents)
        await idle_mesh.log.outcome(asked - 1)
    digests = [leaf.context.access_policy_digest for leaf in idle_mesh.log.intents]
    assert (digests[0], digests[-1], set(digests)) == (before, after, {before, after})
    by_request = {leaf.context.request_id: leaf.context.access_policy_digest for leaf in idle_mesh.log.intents}
    assert all(by_request[leaf.context.request_id] == leaf.context.access_policy_digest for leaf in idle_mesh.log.outcomes)


async def test_a_change_reaches_every_gateway_within_five_seconds_and_drops_no_request(
    idle_mesh: ScriptedMesh, site: Site, ask: Any, hear: Any
) -> None:
    """Three gateways over one directory, as replicas over one ConfigMap, each with requests all the time."""
    site.write(packaged_roles()["roles.cedar"])
    idle_mesh.gateway_changes = {"policy_dir": site.path}
    async with idle_mesh.running(), AsyncExitStack() as stack:
        stubs = [await stack.enter_async_context(idle_mesh.calling())]
        for _ in range(2):
            settings = idle_mesh.gateway_settings()
            served = await stack.enter_async_context(gateway(settings))
            front = await start_server(settings, "gateway", served.registrations)
            stack.push_async_callback(front.stop)
            idle_mesh.targets["gateway"] = f"127.0.0.1:{front.port}"
            stubs.append(await stack.enter_async_context(idle_mesh.calling()))
        changed = asyncio.Event()

        async def keep_asking(stub: Any) -> int:
            answers = 0
            while not changed.is_set():
                assert (await hear(stub.Chat(ask()))).text == idle_mesh.engine.text
                answers += 1
            return answers

        async def follows(stub: Any) -> None:
            while await listing(stub) is None:
                pass

        async with asyncio.TaskGroup() as crowd:
            askers = [crowd.create_task(keep_asking(stub)) for stub in stubs for _ in range(2)]
            assert [await listing(stub) for stub in stubs] == [None] * 3
            site.write(CHATTING)
            async with asyncio.timeout(5):
                await asyncio.gather(*map(follows, stubs))
            changed.set()
        assert all(asker.result() for asker in askers)
        assert [await listing(stub) for stub in stubs] == ["ROLE_NOT_PERMITTED"] * 3


async def listing(stub: Any) -> str | None:
    """Ask for the models; return the reason of a refusal."""
    try:
        await stub.ListModels(gw.ListModelsRequest())
    except grpc.aio.AioRpcError as error:
        return remote_error(error).reason
    return None
