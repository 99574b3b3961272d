"""The real audit service with real witnesses beside it, each a process of its own."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest
from audit_harness import PLATFORM, Place
from kill_rounds import audit_process, context, write_config

from lionrock.audit.keys import KeyDirectory
from lionrock.audit.platform_log import KEY_NAME
from lionrock.audit.v1 import audit_pb2 as pb
from lionrock.audit.v1.audit_pb2_grpc import AuditServiceStub
from lionrock.audit.v1.records_pb2 import GetLogStatsRequest
from lionrock.audit.v1.records_pb2_grpc import RecordsServiceStub
from lionrock.audit.verify import verify_platform_proof, verify_receipt
from lionrock.chassis.channel import open_channel
from lionrock.chassis.errors import remote_error
from lionrock.chassis.ids import uuid7
from lionrock.chassis.settings import PeerSettings
from lionrock.witness.keys import new_keys
from mesh_ca import DevCa

ORIGIN = f"{PLATFORM}/audit"


@dataclass(frozen=True, slots=True)
class WitnessProcess:
    """A witness's directory; `run` is one life of it on the same port."""

    root: Path
    name: str
    port: int
    verifier_key: str

    @classmethod
    def make(cls, root: Path, name: str, port: int, algorithm: str, platform_key: str) -> WitnessProcess:
        [signer] = new_keys(name, [algorithm], root / "key", root / "state.db")
        settings = {
            "name": name,
            "key_file": str(root / "key"),
            "state_file": str(root / "state.db"),
            "logs": {ORIGIN: [platform_key]},
            "http": {"listen": f"127.0.0.1:{port}", "ready_file": str(root / "ready")},
        }
        (root / "witness.yaml").write_text(json.dumps(settings), encoding="utf-8")
        return cls(root, name, port, str(signer.verifier_key))

    @asynccontextmanager
    async def run(self) -> AsyncIterator[None]:
        ready = self.root / "ready"
        ready.unlink(missing_ok=True)
        with (self.root / "log").open("ab") as log:
            process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "lionrock.witness", "--config", str(self.root / "witness.yaml"), stderr=log
            )
        try:
            async with asyncio.timeout(30):
                while not ready.exists():
                    assert process.returncode is None, (self.root / "log").read_text()
                    await asyncio.sleep(0.02)
            yield
        finally:
            process.kill()
            await process.wait()


def intent() -> pb.AppendRequest:
    asked = context()
    asked.roles[:] = ["auditor"]
    return pb.AppendRequest(context=asked, event_id=uuid7(), intent=pb.Intent(action="chat", model="smollm2", prompt_tokens=1))


async def proven(stub: Any, request: pb.AppendRequest) -> pb.ProveLeafResponse:
    """Ask until a cosigned checkpoint covers the leaf."""
    async with asyncio.timeout(30):
        while True:
            try:
                return await stub.ProveLeaf(pb.ProveLeafRequest(context=request.context, event_id=request.event_id))
            except grpc.aio.AioRpcError as error:
                if remote_error(error).reason != "LEAF_NOT_COVERED":
                    raise
                await asyncio.sleep(0.1)


async def reason_of_append(stub: Any) -> str | None:
    try:
        await stub.Append(intent())
    except grpc.aio.AioRpcError as error:
        return remote_error(error).reason
    return None


async def until_append_gives(stub: Any, reason: str | None) -> None:
    async with asyncio.timeout(30):
        while await reason_of_append(stub) != reason:  # noqa: ASYNC110 - nothing tells us
            await asyncio.sleep(0.1)


@pytest.mark.slow
async def test_an_answer_is_proven_up_to_witnesses_and_stops_where_settings_want_them(place: Place) -> None:
    platform_key = str(KeyDirectory(place.key_dir).create(KEY_NAME, ORIGIN).verifier_key)
    ports = await free_ports(2)
    witnesses = [
        WitnessProcess.make(place.root / name, name, port, algorithm, platform_key)
        for name, port, algorithm in zip(("w1.example", "w2.example"), ports, ("ed25519", "ml-dsa-44"), strict=True)
    ]
    ca = DevCa(place.root / "mesh")
    config = write_config(
        place,
        ca.issue("audit"),
        platform_interval_s=0.2,
        witnesses=[{"url": f"http://127.0.0.1:{each.port}", "verifier_key": each.verifier_key} for each in witnesses],
        witness_policy={"threshold": 2, "refresh_s": 1, "require_within_s": 4, "timeout_s": 2},
    )
    async with AsyncExitStack() as stack:
        lives = await stack.enter_async_context(AsyncExitStack())
        for each in witnesses:
            await lives.enter_async_context(each.run())
        _, port = await stack.enter_async_context(audit_process(place, config))
        peer = PeerSettings(target=f"127.0.0.1:{port}", service="audit", timeout_s=10)
        channel = await stack.enter_async_context(open_channel(peer, ca.issue("gateway"), name="test"))
        stub: Any = AuditServiceStub(channel)
        await until_append_gives(stub, None)
        request = intent()
        await stub.Append(request)
        pair = await proven(stub, request)
        keys = await stub.ListKeys(pb.ListKeysRequest(context=request.context))
        assert list(keys.platform_verifier_keys) == [platform_key]
        leaf = verify_receipt(pair.receipt.tlog_proof, list(keys.verifier_keys))
        assert leaf.fields["event_id"] == request.event_id
        above = verify_platform_proof(pair.platform_proof, leaf, [platform_key], [each.verifier_key for each in witnesses], 2)
        assert set(above.cosigned) == {"w1.example", "w2.example"}
        stats = await RecordsServiceStub(channel).GetLogStats(GetLogStatsRequest(context=request.context))
        assert stats.witnessed_at.seconds >= max(above.cosigned.values())

        await lives.aclose()
        await until_append_gives(stub, "WITNESS_POLICY_UNMET")
        assert (await proven(stub, request)).platform_proof  # what was proven stays so
        for each in witnesses:
            await stack.enter_async_context(each.run())
        await until_append_gives(stub, None)


async def free_ports(count: int) -> list[int]:
    servers = [await asyncio.start_server(lambda reader, writer: None, "127.0.0.1", 0) for _ in range(count)]
    ports = [server.sockets[0].getsockname()[1] for server in servers]
    for server in servers:
        server.close()
        await server.wait_closed()
    return ports
