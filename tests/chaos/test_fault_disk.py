"""The fault disk itself: what its power cuts may take and what they may not."""

from __future__ import annotations

import errno
import os
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from fault_disk import SURVIVALS, Action, FaultDisk, OperationClass, Survival, build_layer, compiler

pytestmark = pytest.mark.skipif(compiler() is None, reason="no C compiler on this machine: the fault disk cannot be built")

HELPERS = """
import os, sys
def put(name, data, sync=True, mode="wb"):
    with open(name, mode, buffering=0) as file:
        file.write(data)
        if sync:
            os.fsync(file.fileno())
def sync_names(directory="."):
    descriptor = os.open(directory, os.O_RDONLY)
    os.fsync(descriptor)
    os.close(descriptor)
"""


@pytest.fixture(scope="module")
def layer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_layer(tmp_path_factory.mktemp("layer"))


@pytest.fixture
def disk(layer: Path, tmp_path: Path) -> Iterator[FaultDisk]:
    (tmp_path / "disk").mkdir()
    with closing(FaultDisk(tmp_path / "disk", layer, tmp_path)) as opened:
        yield opened


def run(disk: FaultDisk, program: str) -> subprocess.CompletedProcess[str]:
    return start(disk, program, dict(disk.begin()))


def start(disk: FaultDisk, program: str, environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", HELPERS + program]
    return subprocess.run(
        command, cwd=disk.root, env=os.environ | environment, capture_output=True, text=True, check=False, timeout=60
    )


@pytest.mark.parametrize("survival", SURVIVALS)
def test_what_was_synced_with_its_name_survives_every_power_cut(disk: FaultDisk, survival: Survival) -> None:
    data = bytes(range(256)) * 10
    run(disk, f"put('a', {data!r}); sync_names(); os.rename('a', 'b'); sync_names(); put('b', b'more' * 500, False, 'ab')")
    for seed in range(5):
        disk.cut_power(survival, random.Random(seed))
        assert (disk.root / "b").read_bytes()[: len(data)] == data
        assert not (disk.root / "a").exists()
        run(disk, "put('b', b'more' * 500, False, 'ab')")


def test_unsynced_bytes_and_names_are_lost(disk: FaultDisk) -> None:
    run(disk, "put('kept', b'old'); sync_names(); put('kept', b'new', False, 'r+b'); put('nameless', b'synced')")
    assert (disk.root / "kept").read_bytes() == b"new"
    disk.cut_power("nothing", random.Random(0))
    assert {path.name: path.read_bytes() for path in disk.root.iterdir()} == {"kept": b"old"}


def test_a_rename_is_all_or_nothing(disk: FaultDisk) -> None:
    seen = set()
    for seed in range(8):
        run(disk, "put('target', b'old'); sync_names(); put('draft', b'new'); os.rename('draft', 'target')")
        disk.cut_power("subset", random.Random(seed))
        seen.add((disk.root / "target").read_bytes())
    assert seen == {b"old", b"new"}


def test_a_write_tears_between_sectors_only(disk: FaultDisk) -> None:
    seen = set()
    for seed in range(8):
        run(disk, "put('file', b'.' * 2048); sync_names(); put('file', b'x' * 2048, False, 'r+b')")
        disk.cut_power("subset", random.Random(seed))
        content = (disk.root / "file").read_bytes()
        sectors = [content[start : start + 512] for start in range(0, 2048, 512)]
        assert set(sectors) <= {b"." * 512, b"x" * 512}
        seen.add(tuple(sector[:1] for sector in sectors))
    assert len(seen) > 3


def test_a_failed_fsync_loses_what_a_later_one_cannot_bring_back(disk: FaultDisk) -> None:
    program = """
put('file', b'.' * 4096); sync_names()
with open('file', 'r+b', buffering=0) as file:
    file.write(b'x' * 4096)
    try:
        os.fsync(file.fileno())
    except OSError as error:
        print(error.errno)
    os.fsync(file.fileno())
"""
    lost = 0
    for seed in range(5):
        environment = dict(disk.begin())
        disk.control.arm(Action.FAIL, OperationClass.SYNC, 2, error=errno.EIO)
        done = start(disk, program, environment)
        assert (done.stdout, done.stderr) == (f"{errno.EIO}\n", "")
        assert (disk.root / "file").read_bytes() == b"x" * 4096
        assert start(disk, "put('file', b'', mode='r+b')", dict(disk.go_on())).stderr == ""  # a new process fsyncs, too
        disk.cut_power("everything", random.Random(seed))
        lost += b"." in (disk.root / "file").read_bytes()
    assert lost > 0


def test_the_process_is_killed_at_the_operation_that_was_asked_for(disk: FaultDisk) -> None:
    environment = dict(disk.begin())
    disk.control.arm(Action.KILL, OperationClass.WRITE, 3)
    done = start(disk, "[put(str(number), b'x') for number in range(9)]", environment)
    assert done.returncode == -9
    assert sorted(path.name for path in disk.root.iterdir()) == ["0", "1", "2", "3"]
    assert (disk.root / "3").read_bytes() == b""


def test_a_full_disk_and_a_short_write_are_seen_by_the_process(disk: FaultDisk) -> None:
    environment = dict(disk.begin())
    disk.control.arm(Action.FAIL, OperationClass.WRITE, 0, error=errno.ENOSPC, repeat=-1, suffix=".full")
    assert "No space left on device" in start(disk, "put('a.full', b'x')", environment).stderr
    disk.control.arm(Action.SHORT, OperationClass.WRITE, 0)
    assert start(disk, "print(os.write(os.open('b', os.O_WRONLY | os.O_CREAT), b'12345678'))", environment).stdout == "4\n"


def test_the_clock_stands_where_it_was_put(disk: FaultDisk) -> None:
    environment = dict(disk.begin())
    disk.control.step_clock(86400 * 10**9 * 100)
    ahead_s = float(start(disk, "import time; print(time.time())", environment).stdout) - time.time()
    assert 86400 * 100 - 60 < ahead_s <= 86400 * 100


def test_what_the_layer_does_not_model_ends_the_process(disk: FaultDisk) -> None:
    done = run(disk, "import mmap; put('a', b'x' * 4096); file = open('a', 'r+b'); mmap.mmap(file.fileno(), 0)")
    assert done.returncode == -6
    assert "not modelled" in done.stderr
