"""Two real audit services on one PostgreSQL: one writes, the other waits and takes over."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import psycopg
import pytest
from audit_harness import PLATFORM, Place
from grpc_health.v1 import health_pb2, health_pb2_grpc
from kill_rounds import context, write_config

from lionrock.audit.__main__ import SERVICE_NAME
from lionrock.audit.v1 import audit_pb2 as pb
from lionrock.audit.v1.audit_pb2_grpc import AuditServiceStub
from lionrock.audit.verify import verify_receipt
from lionrock.chassis.channel import open_channel
from lionrock.chassis.ids import uuid7
from lionrock.chassis.settings import PeerSettings, TlsSettings
from mesh_ca import DevCa

START_TIMEOUT_S = 60.0
LEASE_S = 5.0


@dataclass(frozen=True, slots=True)
class Pod:
    """An audit service, by its place (keys, file of signed checkpoints, ready file) and process."""

    place: Place
    process: asyncio.subprocess.Process
    gateway: TlsSettings

    @property
    def said(self) -> str:
        return (self.place.root / "audit.log").read_text(encoding="utf-8")

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(START_TIMEOUT_S):
            while not condition():
                assert self.process.returncode is None, self.said
                await asyncio.sleep(0.02)

    async def serves(self) -> None:
        await self.until((self.place.root / "ready").exists)

    async def waits(self) -> None:
        await self.until(lambda: "standing by" in self.said)

    async def append(self, timeout_s: float = 20) -> pb.AppendResponse:
        port = int((self.place.root / "ready").read_text(encoding="ascii"))
        peer = PeerSettings(target=f"127.0.0.1:{port}", service="audit", timeout_s=timeout_s)
        async with open_channel(peer, self.gateway, name="gateway") as channel:
            stub: Any = AuditServiceStub(channel)
            event = pb.Intent(action="chat", model="m")
            response: pb.AppendResponse = await stub.Append(
                pb.AppendRequest(context=context(), event_id=uuid7(), intent=event, want_receipt=True), wait_for_ready=True
            )
            return response


@dataclass(frozen=True, slots=True)
class Cluster:
    """A database and a certificate authority for pods."""

    root: Path
    dsn_file: Path

    @asynccontextmanager
    async def pod(self, name: str, **settings: object) -> AsyncIterator[Pod]:
        place = Place(self.root / name)
        place.root.mkdir(exist_ok=True)
        (place.root / "ready").unlink(missing_ok=True)
        ca = DevCa(self.root / "mesh")
        own = {
            "store_file": None,
            "store_dsn_file": str(self.dsn_file),
            "store_lease_s": LEASE_S,
            "key_dir": str(self.root / "keys"),
        }
        config = write_config(place, ca.issue("audit"), **own | settings)
        with (place.root / "audit.log").open("wb") as log:
            process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "lionrock.audit", "--config", str(config), stderr=log
            )
        try:
            yield Pod(place, process, ca.issue("gateway"))
        finally:
            with suppress(ProcessLookupError):
                os.kill(process.pid, signal.SIGKILL)
            await process.wait()


@pytest.fixture
def cluster(tmp_path: Path, database: str) -> Cluster:
    dsn_file = tmp_path / "dsn"
    dsn_file.write_text(database + "\n", encoding="utf-8")
    dsn_file.chmod(0o600)
    return Cluster(tmp_path, dsn_file)


def index_in(response: pb.AppendResponse) -> int:
    return response.position.leaf_index


async def test_the_second_service_waits_and_takes_over_when_the_first_is_killed(cluster: Cluster) -> None:
    async with cluster.pod("first") as first:
        await first.serves()
        assert index_in(await first.append()) == 0
        async with cluster.pod("second") as second:
            await second.waits()
            assert f'"pid": {first.process.pid}' in second.said
            assert index_in(await first.append()) == 1
            os.kill(first.process.pid, signal.SIGKILL)
            await second.serves()
            assert index_in(await second.append()) == 2


async def test_a_service_that_stood_still_longer_than_its_lease_signs_nothing_when_it_goes_on(cluster: Cluster) -> None:
    async with cluster.pod("first") as first:
        await first.serves()
        await first.append()
        async with cluster.pod("second") as second:
            await second.waits()
            os.kill(first.process.pid, signal.SIGSTOP)
            await second.serves()
            taken_over = await second.append()
            frozen = asyncio.ensure_future(first.append(timeout_s=3))
            os.kill(first.process.pid, signal.SIGCONT)
            with pytest.raises(grpc.aio.AioRpcError):
                await frozen
            assert await first.process.wait() == 1
            assert "timeout" in first.said.splitlines()[-1]
            following = await second.append()
            assert (index_in(taken_over), index_in(following)) == (1, 2)


async def test_a_service_that_waits_is_alive_and_not_ready(cluster: Cluster, unused_tcp_port: int) -> None:
    server = {"probe_listen": f"127.0.0.1:{unused_tcp_port}"}
    async with cluster.pod("first") as first:
        await first.serves()
        config = json.loads((first.place.root / "audit.yaml").read_text(encoding="utf-8"))
        ready = str(cluster.root / "second" / "ready")
        async with cluster.pod("second", server=config["server"] | server | {"ready_file": ready}) as second:
            await second.waits()
            async with grpc.aio.insecure_channel(f"127.0.0.1:{unused_tcp_port}") as channel:
                health = health_pb2_grpc.HealthStub(channel)
                for service, status in (("liveness", "SERVING"), ("", "NOT_SERVING"), (SERVICE_NAME, "NOT_SERVING")):
                    request = health_pb2.HealthCheckRequest(service=service)
                    answer = await health.Check(request, wait_for_ready=True, timeout=20)
                    assert answer.status == health_pb2.HealthCheckResponse.ServingStatus.Value(status)
                first.process.send_signal(signal.SIGTERM)
                await second.serves()


async def test_a_service_whose_sessions_are_ended_exits_and_can_be_started_again(cluster: Cluster, database: str) -> None:
    async with cluster.pod("only") as pod:
        await pod.serves()
        receipt = (await pod.append()).receipt.tlog_proof
        with psycopg.connect(database, autocommit=True) as connection:
            connection.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'lionrock-audit'")
        assert await pod.process.wait() == 1
        assert "Traceback" not in pod.said
    async with cluster.pod("only") as pod:
        await pod.serves()
        assert index_in(await pod.append()) == 1
    assert verify_receipt(receipt, [key_of(cluster)]).leaf_index == 0


def key_of(cluster: Cluster) -> str:
    question = "SELECT verifier_key FROM lionrock_audit.logs WHERE origin = %s"
    with psycopg.connect(cluster.dsn_file.read_text(encoding="utf-8")) as connection:
        row = connection.execute(question, (f"{PLATFORM}/audit/bank",)).fetchone()
    assert row is not None
    return str(row[0])
