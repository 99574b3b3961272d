"""The real process publishes its tiles, and a reader outside believes them by the log's key alone."""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import subprocess
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import grpc
import pytest
from audit_harness import PLATFORM, Place
from grpc_health.v1 import health_pb2, health_pb2_grpc
from kill_rounds import audit_process, context, write_config
from pydantic import ValidationError

from lionrock.audit.monitor import LogMonitor, WatchedLog
from lionrock.audit.settings import AuditSettings
from lionrock.audit.store.sqlite import SqliteLogStore
from lionrock.audit.tile_sources import DirectorySource
from lionrock.audit.v1 import audit_pb2 as pb
from lionrock.audit.v1.audit_pb2_grpc import AuditServiceStub
from lionrock.chassis.channel import open_channel
from lionrock.chassis.ids import uuid7
from lionrock.chassis.settings import PeerSettings
from lionrock.tlog.merkle import Subtree
from lionrock.tlog.note import VerifierKey
from lionrock.tlog.tile_client import TreeReader, open_checkpoint, read_checkpoint
from mesh_ca import DevCa

BANK = f"{PLATFORM}/audit/bank"


async def test_what_the_service_appends_is_published_within_seconds(place: Place) -> None:
    ca = DevCa(place.root / "mesh")
    config = write_config(place, ca.issue("audit"))
    tiles = {"directory": str(place.root / "tiles"), "interval_s": 0.05, "readers": "group"}
    config.write_text(json.dumps(json.loads(config.read_text()) | {"tiles": tiles}), encoding="utf-8")
    source = DirectorySource(place.root / "tiles" / BANK)
    size = 0
    for _ in range(2):  # also after a restart
        async with audit_process(place, config) as (process, port):
            peer = PeerSettings(target=f"127.0.0.1:{port}", service="audit")
            async with open_channel(peer, ca.issue("gateway"), name="gateway") as channel:
                stub: Any = AuditServiceStub(channel)
                auditor = context()
                auditor.roles.append("auditor")
                (key,) = (await stub.ListKeys(pb.ListKeysRequest(context=auditor))).verifier_keys
                body = pb.Intent(action="chat", model="smollm2", prompt=b"prompt")
                appends = [pb.AppendRequest(context=context(), event_id=uuid7(), intent=body) for _ in range(300)]
                size += len(appends)
                calls = [stub.Append(append) for append in appends[:50]]
                hashes = {(await each).position.leaf_hash for each in calls}
                hashes |= {(await stub.Append(append)).position.leaf_hash for append in appends[50:]}
            log_key = VerifierKey.parse(key)
            async with asyncio.timeout(20):
                while True:
                    published = open_checkpoint(read_checkpoint(source), BANK, [log_key]).checkpoint
                    if published.size == size:
                        break
                    await asyncio.sleep(0.02)
            process.terminate()
            assert await process.wait() == 0
        tree = TreeReader(source, published)
        tree.verify_tiles()
        assert sum(len(leaves) for _, leaves in tree.entries(0, size)) == size
        assert hashes <= {each for index in range(size) for each in tree.subtree_hashes([Subtree(0, index)])}
    assert (place.root / "tiles" / BANK / "checkpoint").stat().st_mode & 0o777 == 0o440


def settings_with_tiles(place: Place, ca: DevCa) -> Path:
    config = write_config(place, ca.issue("audit"))
    tiles = {"directory": str(place.root / "tiles"), "interval_s": 0.05}
    changes = {"tiles": tiles, "platform_interval_s": 0.1}
    config.write_text(json.dumps(json.loads(config.read_text()) | changes), encoding="utf-8")
    return config


def watched(place: Place, name: str) -> WatchedLog:
    """The log of a tenant, or with no name the platform's, by the key that its directory holds."""
    origin = f"{PLATFORM}/audit{name and '/'}{name}"
    stored = SqliteLogStore(place.store_file)
    with closing(stored):
        found = stored.find_log(origin)
    assert found is not None
    return WatchedLog(origin, DirectorySource(place.root / "tiles" / origin), [VerifierKey.parse(found.verifier_key)])


def append(stub: Any) -> Any:
    body = pb.Intent(action="chat", model="smollm2")
    return stub.Append(pb.AppendRequest(context=context(), event_id=uuid7(), intent=body))


async def test_a_service_that_is_killed_under_load_leaves_tiles_that_a_monitor_passes(place: Place) -> None:
    ca = DevCa(place.root / "mesh")
    config = settings_with_tiles(place, ca)
    chance = random.Random(3)
    for _ in range(4):
        async with audit_process(place, config) as (process, port):
            peer = PeerSettings(target=f"127.0.0.1:{port}", service="audit")
            async with open_channel(peer, ca.issue("gateway"), name="gateway") as channel:
                stub: Any = AuditServiceStub(channel)

                async def write(stub: Any = stub) -> None:
                    with suppress(grpc.aio.AioRpcError):
                        while True:
                            await append(stub)

                writing = [asyncio.ensure_future(write()) for _ in range(16)]
                await asyncio.sleep(chance.uniform(0.1, 0.5))  # the moment of the crash, not a wait for something
                os.kill(process.pid, signal.SIGKILL)
                await asyncio.gather(*writing)
        for name in ("", "bank"):
            log = watched(place, name)
            if log.source.read("checkpoint", 10_000) is not None:  # the first kill may come before the first look for leaves
                look = LogMonitor(log, place.root / "seen").look(everything=True)
                assert look.findings == []


async def test_the_platform_log_is_published_with_the_tenants_checkpoints_in_it(place: Place, log_verifier: Path) -> None:
    ca = DevCa(place.root / "mesh")
    config = settings_with_tiles(place, ca)
    source = DirectorySource(place.root / "tiles" / f"{PLATFORM}/audit")
    async with audit_process(place, config) as (process, port):
        peer = PeerSettings(target=f"127.0.0.1:{port}", service="audit")
        async with open_channel(peer, ca.issue("gateway"), name="gateway") as channel, asyncio.timeout(20):
            stub: Any = AuditServiceStub(channel)
            for size in (1, 2):
                await append(stub)
                while f"{PLATFORM}/audit\n{size}\n" not in (source.read("checkpoint", 10_000) or b"").decode():  # noqa: ASYNC110
                    await asyncio.sleep(0.02)
        process.terminate()
        assert await process.wait() == 0
    platform, bank = watched(place, ""), watched(place, "bank")
    for log in (platform, bank):
        assert LogMonitor(log, place.root / "seen").look().findings == []
        directory = str(place.root / "tiles" / log.origin)
        command = [str(log_verifier), "-dir", directory, "-origin", log.origin, "-key", str(log.keys[0])]
        done = await asyncio.to_thread(subprocess.run, command, check=False, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr
    tree = TreeReader(source, open_checkpoint(read_checkpoint(source), platform.origin, platform.keys).checkpoint)
    leaves = [leaf.decode() for _, page in tree.entries(0, 2) for leaf in page]
    assert [open_checkpoint(leaf, bank.origin, bank.keys).checkpoint.size for leaf in leaves] == [1, 2]


async def told(channel: grpc.aio.Channel, name: str, *, able: bool) -> None:
    """Wait until health says it of a name."""
    wanted = health_pb2.HealthCheckResponse.SERVING if able else health_pb2.HealthCheckResponse.NOT_SERVING
    async for answer in health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest(service=name)):
        if answer.status == wanted:
            return


async def test_tiles_that_contradict_the_store_are_told_by_health_and_log_and_stop_no_append(place: Place) -> None:
    ca = DevCa(place.root / "mesh")
    config = settings_with_tiles(place, ca)
    wrong = place.root / "tiles" / BANK / "checkpoint"
    wrong.parent.mkdir(parents=True)
    wrong.write_text("of somebody else", encoding="utf-8")
    async with audit_process(place, config) as (process, port):
        peer = PeerSettings(target=f"127.0.0.1:{port}", service="audit")
        async with open_channel(peer, ca.issue("gateway"), name="gateway") as channel, asyncio.timeout(20):
            while not (said := alarms_told(place)):  # noqa: ASYNC110
                await asyncio.sleep(0.05)
            assert (said[0]["log"], "checkpoint" in said[0]["why"]) == (BANK, True)
            await append(AuditServiceStub(channel))
            await told(channel, "lionrock.audit.tiles", able=False)
            await told(channel, "", able=True)
        process.terminate()
        assert await process.wait() == 0
    assert wrong.read_text(encoding="utf-8") == "of somebody else"


def alarms_told(place: Place) -> list[dict[str, Any]]:
    lines = (place.root / "audit.log").read_text(encoding="utf-8").splitlines()
    events = [json.loads(line) for line in lines if line.startswith("{") and line.endswith("}")]
    return [event for event in events if "contradict the store" in event["message"]]


async def test_tiles_that_are_published_are_told_by_health(place: Place) -> None:
    ca = DevCa(place.root / "mesh")
    async with audit_process(place, settings_with_tiles(place, ca)) as (process, port):
        peer = PeerSettings(target=f"127.0.0.1:{port}", service="audit")
        async with open_channel(peer, ca.issue("gateway"), name="gateway") as channel, asyncio.timeout(20):
            await told(channel, "lionrock.audit.tiles", able=True)
        process.terminate()
        assert await process.wait() == 0


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"tenants": ["bank", "tile"]}, "tile or checkpoint"),
        ({"tenants": ["checkpoint"]}, "tile or checkpoint"),
        ({"platform": "../outside"}, "begins with a dot"),
        ({"platform": "a//b"}, "empty"),
        ({"tiles": {"directory": "/t", "bucket": {}}}, "access_key_id_file"),
        ({"tiles": {"interval_s": 0}}, "interval_s"),
    ],
)
def test_settings_that_cannot_be_published_die_by_name(changes: dict[str, Any], said: str, tmp_path: Path) -> None:
    tls = {"cert_file": "c", "key_file": "k", "ca_file": "a"}
    values: dict[str, Any] = {
        "server": {"tls": tls, "trust_domain": "t"},
        "platform": "p",
        "tenants": ["bank"],
        "store_file": "s",
        "key_dir": "k",
        "tiles": {"directory": str(tmp_path)},
    }
    AuditSettings(**values)
    with pytest.raises(ValidationError, match=said):
        AuditSettings(**(values | changes))
