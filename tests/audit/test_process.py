"""The real process: killed at random moments, started twice on one store, idle."""

from __future__ import annotations

import asyncio
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
from audit_harness import Place
from kill_rounds import audit_process, kill_rounds, write_config

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


async def test_an_idle_service_is_small(place: Place) -> None:
    config = write_config(place, DevCa(place.root / "mesh").issue("audit"))
    async with audit_process(place, config) as (process, _):
        memory = await asyncio.to_thread(Path(f"/proc/{process.pid}/smaps_rollup").read_text, encoding="ascii")
    # Proportional: a library that several services map counts once among them.
    found = re.search(r"^Pss:\s+(\d+) kB", memory, re.MULTILINE)
    assert found is not None
    assert int(found[1]) <= IDLE_MAX_KIB
