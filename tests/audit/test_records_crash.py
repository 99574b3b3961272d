"""kill −9 after every durable step of erasure and of expiry ends in one state, and so does being killed again at its end."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from audit_harness import Place, check_store
from records_crash import RECORDS
from records_harness import Clock, RecordsPlace, who

from lionrock.audit import failures
from lionrock.audit.records.destruction import STEPS
from lionrock.audit.records.holds import RecordScope

PROGRAM = Path(__file__).with_name("records_crash.py")


def run_until_killed(directory: Path, what: str, step: str, nth: int) -> list[str]:
    """Run the program; return the request ids that it recorded."""
    command = [sys.executable, str(PROGRAM), str(directory), what, step, str(nth)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == -9, done.stderr
    lines = done.stdout.split()
    assert len(lines) == RECORDS + 1
    return lines


@pytest.mark.parametrize("what", ["erase", "expire"])
@pytest.mark.parametrize("step", STEPS)
async def test_a_destruction_that_was_killed_is_finished_after_a_restart(tmp_path: Path, what: str, step: str) -> None:
    *doomed, kept = run_until_killed(tmp_path, what, step, nth=1)
    place = Place(tmp_path)
    clock = Clock()
    async with RecordsPlace(place).open(clock=clock, batch=3) as opened:
        if what == "expire":
            clock.advance(31)
            await opened.upkeep.expire("bank")  # batches that were not begun
        for request_id in doomed:
            with pytest.raises(failures.RecordErased):
                await opened.records.read(who("reviewer"), request_id)
            assert opened.key_store.record_key("bank", request_id) is None
        assert (await opened.records.read(who("reviewer"), kept)).payloads[0].payload == b"kept question"
        assert await opened.records.search(who("auditor"), RecordScope("subject", "c-1"), 10) == []
        (_, counts) = await opened.records.stats(who("auditor"))
        assert counts.records == {"kept": 1, "erased" if what == "erase" else "expired": RECORDS}
        assert await opened.logs.read_records("bank", lambda reader, log_id: reader.destructions(log_id)) == []
    leaves = [json.loads(leaf) for leaf in check_store(place.store_file)]
    counted = [leaf["record_count"] for leaf in leaves if leaf["type"] in ("erasure", "expiry")]
    assert counted == ([RECORDS] if what == "erase" else [3, 2])


async def test_the_end_of_a_destruction_may_be_killed_too(tmp_path: Path) -> None:
    *doomed, _ = run_until_killed(tmp_path, "erase", "listed", nth=1)
    for step in STEPS[1:]:
        finish_until_killed(tmp_path, step)
    async with RecordsPlace(Place(tmp_path)).open() as opened:
        for request_id in doomed:
            assert opened.key_store.record_key("bank", request_id) is None
    leaves = [json.loads(leaf) for leaf in check_store(Place(tmp_path).store_file)]
    assert [leaf["record_count"] for leaf in leaves if leaf["type"] == "erasure"] == [RECORDS]


FINISH = """
import asyncio, os, signal, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from audit_harness import Place
from records_harness import RecordsPlace

def at(step):
    if step == sys.argv[3]:
        os.kill(os.getpid(), signal.SIGKILL)

async def main():
    async with RecordsPlace(Place(Path(sys.argv[2]))).open(at=at):
        pass

asyncio.run(main())
"""


def finish_until_killed(directory: Path, step: str) -> None:
    """Open what a crash left, which finishes it, and kill that after a step."""
    command = [sys.executable, "-c", FINISH, str(PROGRAM.parent), str(directory), step]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == -9, done.stderr


async def test_what_was_acknowledged_before_a_kill_is_in_log_and_vault(tmp_path: Path) -> None:
    acknowledged: dict[str, str] = {}
    for at_least in (40, 25, 60):  # one history, killed three times
        acknowledged |= run_appender(tmp_path, at_least)
    async with RecordsPlace(Place(tmp_path)).open() as opened:
        for request_id, question in acknowledged.items():
            read = await opened.records.read(who("reviewer"), request_id)
            assert [part.payload.decode() for part in read.payloads] == [question]
        # And what is in the log is in the vault, acknowledged or not.
        leaves = [json.loads(leaf.data) async for page in opened.logs.leaves("bank", 0, 100_000) for leaf in page]
        intents = [leaf["request_id"] for leaf in leaves if leaf["type"] == "intent"]
        assert set(acknowledged) <= set(intents)
        for request_id in intents:
            assert (await opened.records.read(who("reviewer"), request_id)).payloads
    assert check_store(Place(tmp_path).store_file)


def run_appender(directory: Path, at_least: int) -> dict[str, str]:
    """Let it record, kill it in the middle, and return what it was told to be recorded."""
    program = Path(__file__).with_name("records_appender.py")
    process = subprocess.Popen([sys.executable, str(program), str(directory)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    lines = [process.stdout.readline() for _ in range(at_least)]
    process.kill()
    lines += process.stdout.readlines()
    process.wait(30)
    process.stdout.close()
    return dict(line.rstrip("\n").split("\t") for line in lines if line.endswith("\n") and "\t" in line)  # type: ignore[misc]
