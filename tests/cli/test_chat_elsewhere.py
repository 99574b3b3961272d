"""`lionrock chat` against a gateway that this machine's state directory does not know."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from pathlib import Path

from scripted_mesh import ScriptedMesh


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "lionrock.cli", "chat", *arguments]


async def test_a_gateway_and_a_certificate_are_enough_to_ask(tmp_path: Path) -> None:
    mesh = ScriptedMesh(tmp_path / "mesh")
    async with mesh.running() as running:
        certificates = running.identity().cert_file.parent
        asked = await asyncio.create_subprocess_exec(
            *command(
                "--gateway",
                running.targets["gateway"],
                "--certificates",
                str(certificates),
                "--state-dir",
                str(tmp_path / "mine"),
                "hi",
            ),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        answer, notes = await asyncio.wait_for(asked.communicate(), 60)
    assert answer.strip(), notes.decode()
    assert list((tmp_path / "mine" / "receipts").glob("*.tlog-proof"))


def test_missing_certificate_files_are_named(tmp_path: Path) -> None:
    asked = subprocess.run(
        command("--gateway", "127.0.0.1:1", "--certificates", str(tmp_path), "hi"), capture_output=True, text=True, check=False
    )
    assert asked.returncode == 2
    assert "tls.crt, tls.key, ca.crt" in asked.stderr
    assert "--certificates" in asked.stderr
