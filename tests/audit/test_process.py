"""The real process: killed at random moments, started twice on one store, idle."""

from __future__ import annotations

import asyncio
import json
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
from audit_harness import PLATFORM, Place
from grpc_health.v1 import health_pb2, health_pb2_grpc
from kill_rounds import audit_process, kill_rounds, write_config

from lionrock.audit.__main__ import SERVICE_NAME
from lionrock.chassis.channel import open_channel
from lionrock.chassis.settings import PeerSettings
from mesh_ca import DevCa

IDLE_MAX_KIB = 80 * 1024


@pytest.mark.slow
@pytest.mark.timeout(300)
async def test_kill_minus_nine_at_any_moment_loses_no_acknowledged_leaf(place: Place) -> None:
    seed = time.time_ns() % 10**9
    print(f"seed {seed}")
    history = await kill_rounds(place, rounds=20, writers=16, seed=seed)
    assert len(history.acknowledged) > 100


async def test_a_second_process_on_the_same_store_is_refused_by_name(place: Place) -> None:
    config = write_config(place, DevCa(place.root / "mesh").issue("audit"))
    async with audit_process(place, config) as (process, _):
        arguments = [sys.executable, "-m", "lionrock.audit", "--config", str(config)]
        second = await asyncio.to_thread(subprocess.run, arguments, capture_output=True, text=True, check=False, timeout=60)
        assert second.returncode == 1
        assert f'"pid": {process.pid}' in second.stderr
        assert "Traceback" not in second.stderr


async def test_health_says_whether_anything_can_be_recorded(place: Place) -> None:
    ca = DevCa(place.root / "mesh")
    config = write_config(place, ca.issue("audit"))

    async def becomes(port: int, status: int) -> None:
        peer = PeerSettings(target=f"127.0.0.1:{port}", service="audit")
        async with open_channel(peer, ca.issue("gateway"), name="test") as channel, asyncio.timeout(20):
            watched = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest(service=SERVICE_NAME), timeout=20)
            async for seen in watched:
                if seen.status == status:
                    return

    async with audit_process(place, config) as (_, port):
        await becomes(port, health_pb2.HealthCheckResponse.SERVING)
    (place.key_dir / "bank.key").unlink()
    async with audit_process(place, config) as (_, port):
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(2):
                await becomes(port, health_pb2.HealthCheckResponse.SERVING)
        await becomes(port, health_pb2.HealthCheckResponse.NOT_SERVING)


async def test_what_is_said_before_anything_is_served_is_in_the_log_with_its_fields(place: Place) -> None:
    vault = {"key_store_file": str(place.root / "vault" / "keys.db"), "local_key_dir": str(place.root / "kek")}
    config = write_config(place, DevCa(place.root / "mesh").issue("audit"), telemetry={"log_level": "INFO"}, vault=vault)
    async with audit_process(place, config):
        pass
    (place.root / "kek" / "bank.kek").write_text("no key", encoding="utf-8")
    (place.root / "audit.log").unlink()
    async with audit_process(place, config):
        pass
    lines = (place.root / "audit.log").read_text(encoding="utf-8").splitlines()
    events = {event["message"]: event for event in map(json.loads, lines)}
    assert events["a tenant's keys are unavailable; its requests are refused"]["tenant"] == "bank"
    assert events["the platform's log"]["verifier_key"].startswith(f"{PLATFORM}/audit+")
    assert len(events) == len(lines), "each once"


async def test_an_idle_service_is_small(place: Place) -> None:
    config = write_config(place, DevCa(place.root / "mesh").issue("audit"))
    async with audit_process(place, config) as (process, _):
        memory = await asyncio.to_thread(Path(f"/proc/{process.pid}/smaps_rollup").read_text, encoding="ascii")
    # Proportional: a library that several services map counts once among them.
    found = re.search(r"^Pss:\s+(\d+) kB", memory, re.MULTILINE)
    assert found is not None
    assert int(found[1]) <= IDLE_MAX_KIB
