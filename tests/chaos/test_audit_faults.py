"""A few faults of each sort under a real audit process; audit_faults.py puts a thousand from one seed."""

from __future__ import annotations

import random
import subprocess
import sys
import time
from pathlib import Path

import audit_faults
import pytest
from audit_faults import Fault, faults_from, run_campaign
from fault_disk import compiler

pytestmark = [
    pytest.mark.skipif(compiler() is None, reason="no C compiler on this machine: the fault disk cannot be built"),
    pytest.mark.slow,
    pytest.mark.timeout(300),
]
FAULTS = 14
POSTGRES_FAULTS = 6
WITHOUT_FSYNC = """
import runpy, lionrock.audit.store.sqlite as sqlite
connect = sqlite._connect
def careless(path):
    connection = connect(path)
    connection.execute("PRAGMA synchronous=OFF")
    return connection
sqlite._connect = careless
runpy.run_module("lionrock.audit", run_name="__main__")
"""


async def test_faults_of_disk_process_and_clock_cost_no_acknowledged_leaf(tmp_path: Path) -> None:
    seed = time.time_ns() % 10**9
    print(f"seed {seed}")
    faults = faults_from(random.Random(seed), FAULTS)
    campaign = await run_campaign(tmp_path, faults, seed=seed, writers=16, life=FAULTS)
    assert campaign.verdicts.said == [], f"seed {seed}"
    assert campaign.leaves > 0


def test_faults_of_a_database_server_cost_no_acknowledged_leaf() -> None:
    seed = time.time_ns() % 10**9
    print(f"seed {seed}")
    # In a process of its own: gRPC's fork handlers, which it switches off, abort a child in which a server is to start.
    program = [sys.executable, str(Path(audit_faults.__file__)), "--store", "postgres", "--writers", "16", "--seed", str(seed)]
    counts = ["--faults", str(POSTGRES_FAULTS), "--life", str(POSTGRES_FAULTS)]
    told = subprocess.run([*program, *counts], capture_output=True, text=True, check=False, timeout=250)
    assert told.returncode == 0, told.stdout + told.stderr
    rows = [[cell.strip() for cell in line.split("|")[1:5]] for line in told.stdout.splitlines() if line.startswith("| ")][1:]
    assert sum(int(faults) for _, faults, _, _ in rows) == POSTGRES_FAULTS
    assert sum(int(acknowledged) for *_, acknowledged in rows) > 0
    assert " 0 lost, 0 duplicated, 0 forked, " in told.stdout


async def test_a_service_that_does_not_fsync_is_caught(tmp_path: Path) -> None:
    cuts = [Fault("power cut", 200, "", "power cut", "nothing", seed) for seed in range(3)]
    campaign = await run_campaign(tmp_path, cuts, seed=1, writers=16, life=3, program=("-c", WITHOUT_FSYNC))
    assert campaign.verdicts.total > 0  # the service itself sees that it signed for more than the store holds
