"""`python -m lionrock.gateway` as a process: starts from a file, finishes what it has begun, names what is wrong."""

from __future__ import annotations

import asyncio
import json
import signal
import sys
from pathlib import Path
from typing import Any

import httpx
import yaml

from lionrock.chassis.telemetry import product_version
from mesh_ca import TRUST_DOMAIN
from scripted_mesh import ScriptedMesh


def config(mesh: ScriptedMesh, directory: Path, **changes: Any) -> Path:
    """Settings of a gateway before the mesh's inner services."""
    tls = {key: str(value) for key, value in mesh.ca.issue("gateway").model_dump().items()}
    settings = {
        "server": {"tls": tls, "trust_domain": TRUST_DOMAIN, "ready_file": str(directory / "port")},
        "tenants": mesh.tenants,
        **{name: {"target": target, "service": name} for name, target in mesh.targets.items() if name != "gateway"},
        **changes,
    }
    path = directory / "gateway.yaml"
    path.write_text(yaml.safe_dump(settings))
    return path


async def start(path: Path) -> asyncio.subprocess.Process:
    command = [sys.executable, "-m", "lionrock.gateway", "--config", str(path)]
    return await asyncio.create_subprocess_exec(*command, stderr=asyncio.subprocess.PIPE)


async def test_a_gateway_that_is_told_to_stop_finishes_the_answer_it_is_giving(
    mesh: ScriptedMesh, ask: Any, hear: Any, tmp_path: Path
) -> None:
    (tmp_path / "salt").write_bytes(b"s" * 32)
    process = await start(config(mesh, tmp_path, cache_salt_file=str(tmp_path / "salt")))
    assert process.stderr is not None
    lines: list[bytes] = []
    async for line in process.stderr:
        lines.append(line)
        if b'"serving"' in line:
            break
    mesh.targets["gateway"] = f"127.0.0.1:{int((tmp_path / 'port').read_text())}"
    mesh.engine.pace = asyncio.Semaphore(2)
    async with mesh.calling() as stub:
        call = stub.Chat(ask())
        assert (await anext(aiter(call))).HasField("started")
        process.send_signal(signal.SIGTERM)
        async for line in process.stderr:
            lines.append(line)
            if b'"draining"' in line:
                break
        for _ in mesh.engine.text:
            mesh.engine.pace.release()
        rest = [response async for response in call]
    assert "".join(response.delta.text for response in rest) == mesh.engine.text
    assert rest[-1].HasField("finished")
    lines.extend([line async for line in process.stderr])
    assert await process.wait() == 0
    assert mesh.engine.text.encode() not in b"".join(lines)


async def test_wrong_settings_are_named_and_end_the_program(mesh: ScriptedMesh, tmp_path: Path) -> None:
    foreign = {"name": "bank", "principals": [{"spiffe_id": "spiffe://elsewhere/tenant/bank/user/*", "purposes": ["testing"]}]}
    process = await start(config(mesh, tmp_path, tenants=[foreign]))
    _, said = await process.communicate()
    assert process.returncode == 2
    assert b"not of the trust domain" in said
    assert b"Traceback" not in said


async def test_a_secret_that_is_too_short_or_missing_ends_the_program(mesh: ScriptedMesh, tmp_path: Path) -> None:
    for content in (b"short", None):
        if content is not None:
            (tmp_path / "salt").write_bytes(content)
        else:
            (tmp_path / "salt").unlink()
        process = await start(config(mesh, tmp_path, cache_salt_file=str(tmp_path / "salt")))
        _, said = await process.communicate()
        assert process.returncode == 1
        assert said.startswith(b"lionrock gateway: ")
        assert b"Traceback" not in said


async def test_metrics_readiness_and_version_have_a_port_of_their_own(
    mesh: ScriptedMesh, ask: Any, hear: Any, tmp_path: Path
) -> None:
    path = config(mesh, tmp_path)
    settings = yaml.safe_load(path.read_text())
    settings["server"]["metrics_listen"] = "127.0.0.1:0"
    path.write_text(yaml.safe_dump(settings))
    process = await start(path)
    assert process.stderr is not None
    async for line in process.stderr:
        if b'"serving"' in line:
            break
    told = json.loads(line)
    mesh.targets["gateway"] = f"127.0.0.1:{told['port']}"
    async with (
        httpx.AsyncClient(base_url=f"http://127.0.0.1:{told['metrics_port']}", trust_env=False) as client,
        mesh.calling() as stub,
    ):
        await hear(stub.Chat(ask("a secret word")))
        metrics = await client.get("/metrics")
        assert metrics.headers["content-type"].startswith("text/plain")
        assert "lionrock_gateway_" in metrics.text
        assert "process_resident_memory_bytes" in metrics.text
        assert 'service_name="gateway"' in metrics.text
        assert "secret word" not in metrics.text
        assert (await client.get("/version")).json() == {"version": product_version()}
        assert [(await client.get(path)).status_code for path in ("/healthz", "/readyz", "/v1/models")] == [200, 200, 404]

        mesh.engine.pace = asyncio.Semaphore(2)
        call = stub.Chat(ask())
        assert (await anext(aiter(call))).HasField("started")
        process.send_signal(signal.SIGTERM)
        async for line in process.stderr:
            if b'"draining"' in line:
                break
        assert [(await client.get(path)).status_code for path in ("/healthz", "/readyz")] == [200, 503]
        for _ in mesh.engine.text:
            mesh.engine.pace.release()
        await hear(call)
    assert await process.wait() == 0


async def test_a_metrics_port_that_is_taken_ends_the_gateway_by_name(mesh: ScriptedMesh, tmp_path: Path) -> None:
    path = config(mesh, tmp_path)
    settings = yaml.safe_load(path.read_text())
    settings["server"]["metrics_listen"] = mesh.targets["audit"]
    path.write_text(yaml.safe_dump(settings))
    process = await start(path)
    _, said = await process.communicate()
    assert process.returncode == 1
    assert f"cannot listen on {mesh.targets['audit']}" in said.decode()
