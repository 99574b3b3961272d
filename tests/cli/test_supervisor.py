"""The supervisor with real child processes, each a few lines of Python that announce themselves in a file."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import psutil
import pytest

from lionrock.cli.logs import BoundedLog, last_lines
from lionrock.cli.supervisor import Backoff, ChildFailed, ChildSpec, Event, Health, State, Supervisor

READY = "import os, pathlib, signal, sys, time; here = pathlib.Path(sys.argv[1]); name = sys.argv[2]\n"
ANNOUNCE = "(here / f'{name}.pid').write_text(str(os.getpid()))\n"
WAIT = "while True: signal.pause()\n"
SERVE = READY + "signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))\n" + ANNOUNCE + WAIT
FAST = Backoff(first_s=0.02, max_s=0.1, reset_s=60)


class Mesh:
    """A supervisor over scripts, and the events that it told."""

    def __init__(self, directory: Path, scripts: dict[str, str], **options: float) -> None:
        self.directory = directory
        self.events: list[Event] = []
        self.changed = asyncio.Event()
        self.probed = asyncio.Event()
        self.healths: dict[str, Health] = {}
        self.supervisor = Supervisor(
            [self._spec(name, script, options) for name, script in scripts.items()],
            drain_order=[[name] for name in scripts],
            on_event=self._record,
            backoff=FAST,
        )

    def _spec(self, name: str, script: str, options: dict[str, float]) -> ChildSpec:
        return ChildSpec(
            name=name,
            argv=[sys.executable, "-S", "-c", script, str(self.directory), name],
            env=dict(os.environ),
            log=BoundedLog(self.directory / f"{name}.jsonl"),
            probe=lambda: self._probe(name),
            **{"ready_timeout_s": 20, "drain_grace_s": 10, "probe_interval_s": 0.02, **options},
        )

    async def _probe(self, name: str) -> Health:
        self.probed.set()
        if name in self.healths:
            return self.healths[name]
        announced = self.directory / f"{name}.pid"
        pid = self.supervisor.pids.get(name)
        return Health.SERVING if announced.exists() and announced.read_text() == str(pid) else Health.UNREACHABLE

    def _record(self, event: Event) -> None:
        self.events.append(event)
        self.changed.set()

    async def told(self, name: str, words: str, *, after: int = 0) -> Event:
        """The first event of `name` with these words, waiting for it."""
        async with asyncio.timeout(20):
            while True:
                for event in self.events[after:]:
                    if event.name == name and words in event.what:
                        return event
                self.changed.clear()
                await self.changed.wait()


@contextlib.asynccontextmanager
async def running(directory: Path, scripts: dict[str, str], **options: float) -> AsyncIterator[Mesh]:
    mesh = Mesh(directory, scripts, **options)
    try:
        await mesh.supervisor.start()
        yield mesh
    finally:
        await mesh.supervisor.drain()


def alive(pids: Sequence[int]) -> list[int]:
    return [pid for pid in pids if psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE]


async def test_start_returns_when_every_child_is_ready(tmp_path: Path) -> None:
    async with running(tmp_path, {"a": SERVE, "b": SERVE}) as mesh:
        assert {event.name for event in mesh.events if event.state is State.READY} == {"a", "b"}
        assert len(alive(list(mesh.supervisor.pids.values()))) == 2


async def test_drain_stops_groups_in_order_and_leaves_no_process(tmp_path: Path) -> None:
    async with running(tmp_path, {"first": SERVE, "second": SERVE}) as mesh:
        pids = list(mesh.supervisor.pids.values())
    assert [event.name for event in mesh.events if event.state is State.STOPPED] == ["first", "second"]
    assert alive(pids) == []


async def test_child_that_is_killed_is_restarted_and_said_so(tmp_path: Path) -> None:
    async with running(tmp_path, {"a": SERVE, "b": SERVE}) as mesh:
        first, other = mesh.supervisor.pids["a"], mesh.supervisor.pids["b"]
        before = len(mesh.events)
        os.kill(first, signal.SIGKILL)
        told = await mesh.told("a", "was killed by SIGKILL; restarting in 0.02 s", after=before)
        await mesh.told("a", "ready after", after=before)
        assert told.problem
        assert mesh.supervisor.pids["a"] != first
        assert mesh.supervisor.pids["b"] == other


async def test_back_off_doubles_while_a_child_keeps_dying(tmp_path: Path) -> None:
    crash_again = READY + "if (here / 'broken').exists(): sys.exit(7)\n" + ANNOUNCE + WAIT
    async with running(tmp_path, {"a": crash_again}) as mesh:
        (tmp_path / "broken").touch()
        os.kill(mesh.supervisor.pids["a"], signal.SIGKILL)
        for delay in ("0.02", "0.04", "0.08", "0.1"):
            await mesh.told("a", f"restarting in {delay} s")
        (tmp_path / "broken").unlink()
        before = len(mesh.events)
        await mesh.told("a", "ready after", after=before)
        assert any("ended with status 7" in event.what for event in mesh.events)


def test_back_off_is_bounded() -> None:
    backoff = Backoff(first_s=0.5, max_s=30)
    assert [backoff.delay_s(n) for n in (1, 2, 3, 7, 1000)] == [0.5, 1, 2, 30, 30]


async def test_child_that_ends_before_the_set_was_ready_fails_the_start(tmp_path: Path) -> None:
    with pytest.raises(ChildFailed, match="b ended with status 2"):
        async with running(tmp_path, {"a": SERVE, "b": "import sys; print('bad setting: x'); sys.exit(2)"}):
            pytest.fail("the set was never ready")
    assert last_lines(tmp_path / "b.jsonl", 1) == ["bad setting: x"]


async def test_child_that_is_never_ready_fails_the_start_in_time(tmp_path: Path) -> None:
    with pytest.raises(ChildFailed, match="was not ready within"):
        async with running(tmp_path, {"a": READY + WAIT}, ready_timeout_s=0.3):
            pytest.fail("the set was never ready")


async def test_child_that_ignores_sigterm_is_killed_after_its_grace(tmp_path: Path) -> None:
    stubborn = READY + "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n" + ANNOUNCE + WAIT
    async with running(tmp_path, {"a": stubborn}, drain_grace_s=0.2) as mesh:
        pids = list(mesh.supervisor.pids.values())
    assert alive(pids) == []
    assert any("did not end within 0.2 s and was killed" in event.what for event in mesh.events)


async def test_drain_can_be_cut_short(tmp_path: Path) -> None:
    stubborn = READY + "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n" + ANNOUNCE + WAIT
    async with running(tmp_path, {"a": stubborn, "b": stubborn}, drain_grace_s=100) as mesh:
        pids = list(mesh.supervisor.pids.values())
        drain = asyncio.create_task(mesh.supervisor.drain())
        mesh.supervisor.hurry()
        await asyncio.wait_for(drain, 20)
        assert alive(pids) == []


async def test_frozen_child_is_killed_and_restarted(tmp_path: Path) -> None:
    async with running(tmp_path, {"a": SERVE}, unreachable_s=0.2) as mesh:
        before = len(mesh.events)
        mesh.healths["a"] = Health.UNREACHABLE
        await mesh.told("a", "did not answer for 0.2 s and was killed", after=before)
        del mesh.healths["a"]
        await mesh.told("a", "ready after", after=before)


async def test_child_that_says_not_serving_is_left_alone(tmp_path: Path) -> None:
    async with running(tmp_path, {"a": SERVE}, unreachable_s=0.1) as mesh:
        pid = mesh.supervisor.pids["a"]
        mesh.healths["a"] = Health.NOT_SERVING
        for _ in range(20):  # twice the time after which an unreachable child would have been killed
            mesh.probed.clear()
            await asyncio.wait_for(mesh.probed.wait(), 20)
        assert mesh.supervisor.pids["a"] == pid


GUARDED = """
import asyncio, os, pathlib, sys, time
from lionrock.cli.guard import guarded
from lionrock.cli.logs import BoundedLog
from lionrock.cli.supervisor import ChildSpec, Health, Supervisor
import signal
here = pathlib.Path(sys.argv[1])
daemon = (
    "import os, pathlib, signal, sys\\n"
    "if os.fork() == 0:\\n"
    " os.setsid(); signal.signal(signal.SIGTERM, signal.SIG_IGN)\\n"
    " pathlib.Path(sys.argv[1], 'daemon.pid').write_text(str(os.getpid()))\\n"
    "signal.pause()\\n"
)
async def probe():
    return Health.SERVING if (here / "daemon.pid").exists() and (here / "daemon.pid").read_text() else Health.UNREACHABLE
async def run():
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    spec = ChildSpec("d", [sys.executable, "-S", "-c", daemon, str(here)], dict(os.environ), BoundedLog(here / "d.jsonl"), probe)
    supervisor = Supervisor([spec], drain_order=[["d"]], on_event=lambda e: None)
    await supervisor.start()
    print(os.getpid(), supervisor.pids["d"], (here / "daemon.pid").read_text(), flush=True)
    await stop.wait()
    await supervisor.drain()
    return 0
sys.exit(guarded(lambda: asyncio.run(run())))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="prctl(2) is Linux only")
@pytest.mark.parametrize("victim", ["outer", "supervisor", "orderly"])
def test_no_process_outlives_up_however_it_ends(tmp_path: Path, victim: str) -> None:
    with subprocess.Popen([sys.executable, "-c", GUARDED, str(tmp_path)], stdout=subprocess.PIPE, text=True) as outer:
        assert outer.stdout is not None
        supervisor, *children = (int(word) for word in outer.stdout.readline().split())
        processes = [psutil.Process(pid) for pid in (supervisor, *children)]
        assert len(processes) == 3
        if victim == "orderly":
            outer.terminate()
        else:
            os.kill(outer.pid if victim == "outer" else supervisor, signal.SIGKILL)
        _, left = psutil.wait_procs(processes, timeout=30)
        left = [process for process in left if process.is_running() and process.status() != psutil.STATUS_ZOMBIE]
        status = outer.wait(30)
    assert left == []
    assert status == {"orderly": 0, "outer": -signal.SIGKILL, "supervisor": 128 + signal.SIGKILL}[victim]
