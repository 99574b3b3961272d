"""The service as a process: ready soon, small when idle, and clear about what is wrong with a model."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from time import monotonic

import pytest

from mesh_ca import TRUST_DOMAIN, DevCa
from models import smollm2_path

ROOT = Path(__file__).resolve().parents[2]


def command(tmp_path: Path, model: Path) -> tuple[list[str], Path]:
    tls = DevCa(tmp_path).issue("tokenization").model_dump(mode="json")
    ready = tmp_path / "ready"
    server = {"listen": "127.0.0.1:0", "tls": tls, "trust_domain": TRUST_DOMAIN, "ready_file": str(ready)}
    config = tmp_path / "tokenization.yaml"
    config.write_text(json.dumps({"server": server, "models": {"m": str(model)}}))
    return [sys.executable, "-m", "lionrock.tokenization", "--config", str(config)], ready


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT / "services"), str(ROOT / "operators")])}


def memory_kib(pid: int, name: str) -> int:
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))


@pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="needs Linux's smaps_rollup")
def test_idle_service_is_ready_soon_and_small_and_ends_when_told(tmp_path: Path) -> None:
    argv, ready = command(tmp_path, smollm2_path())
    began = monotonic()
    process = subprocess.Popen(argv, env=environment(), stderr=subprocess.PIPE, text=True)
    try:
        assert process.stderr is not None
        assert any('"serving"' in line for line in iter(process.stderr.readline, ""))
        assert monotonic() - began < 15
        assert ready.exists()
        own = memory_kib(process.pid, "Private_Clean") + memory_kib(process.pid, "Private_Dirty")
        assert own < 80 * 1024, f"{own} KiB of its own when idle"
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=30) == 0
    finally:
        process.kill()
        process.communicate()


def test_model_that_cannot_be_served_ends_the_program_by_name(tmp_path: Path) -> None:
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(smollm2_path().read_bytes()[:10_000])
    argv, ready = command(tmp_path, broken)
    ended = subprocess.run(argv, env=environment(), capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode == 1
    assert "broken.gguf" in ended.stderr
    assert "Traceback" not in ended.stderr
    assert not ready.exists()
