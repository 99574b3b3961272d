"""`lionrock quota` against a real gateway."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from pathlib import Path

from scripted_mesh import ScriptedMesh, tenant


async def lionrock(mesh: ScriptedMesh, tmp_path: Path, *arguments: str, who: str = "bank") -> tuple[int, str, str]:
    door = ("--gateway", mesh.targets["gateway"], "--certificates", str(mesh.identity(who).cert_file.parent))
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "lionrock.cli", *arguments, *door, "--state-dir", str(tmp_path / "mine")),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    out, notes = await asyncio.wait_for(process.communicate(), 60)
    assert process.returncode is not None
    return process.returncode, out.decode(), notes.decode()


async def test_use_is_shown_and_an_exhausted_quota_says_when_to_come_back(tmp_path: Path) -> None:
    mesh = ScriptedMesh(tmp_path / "mesh")
    mesh.tenants = [{**tenant("bank"), "quotas": {"dailyTokens": 300, "concurrentStreams": 4}}, tenant("broker")]
    mesh.gateway_changes = {"state": {"sqlite_file": tmp_path / "state.sqlite"}}
    async with mesh.running():
        status, text, _ = await lionrock(mesh, tmp_path, "quota")
        assert (status, text.splitlines()[0].split()) == (0, ["QUOTA", "OF", "TAKEN", "LIMIT", "FREE", "AGAIN"])
        status, text, _ = await lionrock(mesh, tmp_path, "quota", "--json")
        lines = [json.loads(line) for line in text.splitlines()]
        assert [(line["quota"], line["limit"], line["taken"]) for line in lines] == [
            ("daily_tokens", 300, 0),
            ("concurrent_streams", 4, 0),
        ]
        assert lines[0]["resets_at"].endswith("T16:00:00Z")
        _, _, notes = await lionrock(mesh, tmp_path, "chat", "--max-tokens", "200", "hello")
        assert "6 + 13 tokens" in notes
        status, _, notes = await lionrock(mesh, tmp_path, "chat", "--max-tokens", "290", "hello")
        assert "tenant bank: daily_tokens: 300 tokens at most" in " ".join(notes.split())
        assert "try again in" in notes
        assert status != 0
        assert (await lionrock(mesh, tmp_path, "quota", who="broker"))[1] == "no quota bounds you\n"
