"""Keeps a fixed set of child processes running: starts, probes, restarts with back-off, drains.

    STARTING ──ready──▶ READY ──exit──▶ BACKING_OFF ──delay──▶ STARTING
        │ exit before the set was ever ready: ChildFailed, the caller ends
        └── drain() from any state ──▶ STOPPED

Knows processes, probes and time. Does not know gRPC, certificates, or what the children are; those come in with `ChildSpec`.
Every child gets a session of its own: signals of the terminal reach only the supervisor, and a child can end its own daemons.
"""

from __future__ import annotations

import asyncio
import contextlib
import enum
import os
import signal
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field

from lionrock.cli.guard import kill_descendants
from lionrock.cli.logs import BoundedLog

_READ_BYTES = 64 * 1024


class Health(enum.Enum):
    """What a probe found."""

    SERVING = "serving"
    NOT_SERVING = "not serving"
    UNREACHABLE = "unreachable"


class State(enum.Enum):
    """Of one child."""

    STARTING = "starting"
    READY = "ready"
    BACKING_OFF = "backing off"
    STOPPED = "stopped"


class ChildFailed(Exception):
    """A child ended, or was not ready in time, before the set was ready once."""

    def __init__(self, name: str, what: str) -> None:
        super().__init__(f"{name} {what}")
        self.name = name


@dataclass(frozen=True, slots=True)
class Backoff:
    """Delay before the n-th restart in a row: `first_s` doubled each time, at most `max_s`; forgotten `reset_s` after a start."""

    first_s: float = 0.5
    max_s: float = 30.0
    reset_s: float = 60.0

    def delay_s(self, failures: int) -> float:
        """Seconds to wait after `failures` ends in a row (1 or more)."""
        return float(min(self.max_s, self.first_s * 2 ** min(failures - 1, 32)))


@dataclass(frozen=True, slots=True)
class ChildSpec:
    """One process to keep running. `probe` must return within its own time limit and never raise."""

    name: str
    argv: Sequence[str]
    env: Mapping[str, str]
    log: BoundedLog
    probe: Callable[[], Awaitable[Health]]
    ready_timeout_s: float = 60.0
    drain_grace_s: float = 25.0
    probe_interval_s: float = 5.0
    unreachable_s: float = 30.0
    """A child that no probe has reached for so long is killed and restarted. One that answers NOT_SERVING is left alone."""


@dataclass(frozen=True, slots=True)
class Event:
    """A change worth telling: `what` completes a sentence that starts with the child's name."""

    name: str
    state: State
    what: str
    pid: int | None = None
    problem: bool = False


@dataclass(slots=True)
class _Child:
    spec: ChildSpec
    state: State = State.STARTING
    process: asyncio.subprocess.Process | None = None
    failures: int = 0
    ready: asyncio.Event = field(default_factory=asyncio.Event)
    task: asyncio.Task[None] | None = None


class Supervisor:
    """Runs `specs`. `drain_order` lists groups of names: each group is stopped together, after the one before it has ended."""

    def __init__(
        self,
        specs: Sequence[ChildSpec],
        *,
        drain_order: Sequence[Sequence[str]],
        on_event: Callable[[Event], None],
        backoff: Backoff | None = None,
    ) -> None:
        self._children = {spec.name: _Child(spec) for spec in specs}
        assert sorted(name for group in drain_order for name in group) == sorted(self._children)
        self._drain_order = drain_order
        self._on_event = on_event
        self._backoff = backoff or Backoff()
        self._was_ready = False
        self._hurry = asyncio.Event()
        # Held while a child is being started and while orphans are ended, so that a newborn is never taken for an orphan.
        self._births = asyncio.Lock()

    @property
    def pids(self) -> dict[str, int]:
        """Of the children that run now."""
        return {name: child.process.pid for name, child in self._children.items() if child.process is not None}

    async def start(self) -> None:
        """Start all children at once, in the order given; return when every one is ready.

        Raises ChildFailed when one ends or is late. The others still run then: call `drain`.
        """
        tasks = set()
        for child in self._children.values():
            child.task = asyncio.create_task(self._keep(child), name=f"keep {child.spec.name}")
            tasks.add(child.task)
        ready = asyncio.create_task(self._all_ready())
        try:
            await asyncio.wait({ready, *tasks}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            ready.cancel()
        for task in tasks:
            if task.done():
                task.result()  # raises ChildFailed
        self._was_ready = True

    async def _all_ready(self) -> None:
        for child in self._children.values():
            await child.ready.wait()

    async def drain(self) -> None:
        """Stop all children, group by group: SIGTERM, the child's grace, SIGKILL. Ends every descendant that is left."""
        for group in self._drain_order:
            await asyncio.gather(*(self._stop(self._children[name]) for name in group))
        await asyncio.to_thread(kill_descendants)

    def hurry(self) -> None:
        """Cut the grace of a drain short: what still runs is killed."""
        self._hurry.set()

    async def _keep(self, child: _Child) -> None:
        """One child's life. Ends only by cancellation, or by ChildFailed before the set was ready."""
        while True:
            started = time.monotonic()
            what = await self._run_once(child)
            await self._end_orphans()
            if not self._was_ready:
                raise ChildFailed(child.spec.name, what)
            if time.monotonic() - started > self._backoff.reset_s:
                child.failures = 0
            child.failures += 1
            child.state = State.BACKING_OFF
            delay_s = self._backoff.delay_s(child.failures)
            self._tell(child, f"{what}; restarting in {delay_s:g} s", problem=True)
            await asyncio.sleep(delay_s)

    async def _run_once(self, child: _Child) -> str:
        """Start the process and watch it until it has ended. Returns how it ended."""
        spec = child.spec
        child.state = State.STARTING
        child.ready.clear()
        try:
            process = await self._spawn(child)
        except OSError as error:
            return f"could not be started: {error.strerror}"
        self._tell(child, "starting" if child.failures == 0 else f"restarting (attempt {child.failures})")
        watch = asyncio.create_task(self._watch(child), name=f"watch {spec.name}")
        ended = asyncio.create_task(process.wait(), name=f"wait {spec.name}")
        try:
            await asyncio.wait({watch, ended}, return_when=asyncio.FIRST_COMPLETED)
            if ended.done():
                return _ending(ended.result())
            reason = watch.result()
            process.kill()
            await ended
            return reason
        finally:
            watch.cancel()
            ended.cancel()
            if process.returncode is not None:
                child.process = None

    async def _spawn(self, child: _Child) -> asyncio.subprocess.Process:
        """Start the process with its output going to the log.

        The pipe is ours and not asyncio's: a daemon that inherits it must not hold back the news that the child has ended.
        """
        loop = asyncio.get_running_loop()
        reader, writer = os.pipe()
        os.set_blocking(reader, False)

        def pump() -> None:
            try:
                data = os.read(reader, _READ_BYTES)
            except BlockingIOError:
                return
            if data:
                child.spec.log.write(data)
            else:
                loop.remove_reader(reader)
                os.close(reader)

        try:
            async with self._births:
                child.process = await asyncio.create_subprocess_exec(
                    *child.spec.argv,
                    stdin=asyncio.subprocess.DEVNULL,
                    stdout=writer,
                    stderr=writer,
                    env=dict(child.spec.env),
                    start_new_session=True,
                )
        except BaseException:
            os.close(reader)
            raise
        finally:
            os.close(writer)
        loop.add_reader(reader, pump)
        return child.process

    async def _watch(self, child: _Child) -> str:
        """Probe until the child must be killed; return why. Sets `ready` at the first SERVING."""
        spec = child.spec
        started = reached = time.monotonic()
        while True:
            health = await spec.probe()
            now = time.monotonic()
            if health is not Health.UNREACHABLE:
                reached = now
            if health is Health.SERVING and child.state is State.STARTING:
                child.state = State.READY
                child.ready.set()
                self._tell(child, f"ready after {now - started:.1f} s")
            if child.state is State.STARTING and now - started > spec.ready_timeout_s:
                return f"was not ready within {spec.ready_timeout_s:g} s ({health.value})"
            if child.state is State.READY and now - reached > spec.unreachable_s:
                return f"did not answer for {spec.unreachable_s:g} s and was killed"
            await asyncio.sleep(spec.probe_interval_s if child.state is State.READY else 0.1)

    async def _stop(self, child: _Child) -> None:
        """Stop one child for good."""
        if child.task is not None:
            child.task.cancel()
            await asyncio.gather(child.task, return_exceptions=True)
        process = child.process
        if process is not None and process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(signal.SIGTERM)
            ended, hurry = asyncio.create_task(process.wait()), asyncio.create_task(self._hurry.wait())
            await asyncio.wait({ended, hurry}, timeout=child.spec.drain_grace_s, return_when=asyncio.FIRST_COMPLETED)
            if not ended.done():
                grace = f"did not end within {child.spec.drain_grace_s:g} s and"
                self._tell(child, f"{'' if hurry.done() else grace + ' '}was killed", problem=True)
                with contextlib.suppress(ProcessLookupError):
                    process.kill()
            hurry.cancel()
            await ended
        child.process = None
        child.state = State.STOPPED
        self._tell(child, "stopped")

    async def _end_orphans(self) -> None:
        """End what a dead child has left behind: as sub-reaper this process is now its parent, and starts nothing else itself."""
        async with self._births:
            await asyncio.to_thread(kill_descendants, spare=list(self.pids.values()))

    def _tell(self, child: _Child, what: str, *, problem: bool = False) -> None:
        pid = child.process.pid if child.process is not None else None
        self._on_event(Event(child.spec.name, child.state, what, pid, problem))


def _ending(status: int) -> str:
    if status < 0:
        return f"was killed by {signal.Signals(-status).name}"
    return f"ended with status {status}"
