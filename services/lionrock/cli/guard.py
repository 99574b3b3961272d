"""No process outlives `lionrock up`, however it ends.

`guarded(body)` forks once, before any thread exists. The parent, whose pid the user knows, only waits; the child runs `body`:

    shell ── parent (waits, holds the lock) ── child (supervisor) ── services ── Ray's daemons and workers

- Both are sub-reapers (prctl(2), PR_SET_CHILD_SUBREAPER): a daemon that loses its parent becomes theirs and not init's.
- SIGKILL of the parent: the kernel sends the child SIGTERM (PR_SET_PDEATHSIG) and it drains as on Ctrl-C.
- SIGKILL of the child: its descendants become the parent's, which kills them and says so.

Needs Linux. Elsewhere orderly ends are covered, kills of `up` itself are not.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from collections.abc import Callable, Collection
from types import FrameType

import psutil

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
_KILL_GRACE_S = 3.0


def _prctl(option: int, value: int) -> None:
    if sys.platform != "linux":
        return
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(option, value, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl")


def die_with_parent(signum: signal.Signals = signal.SIGTERM) -> None:
    """Have the kernel send this process `signum` when the process that started it ends."""
    _prctl(_PR_SET_PDEATHSIG, signum)


def adopt_orphans() -> None:
    """Become the parent of every descendant that loses its own."""
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)


def kill_descendants(*, spare: Collection[int] = (), grace_s: float = _KILL_GRACE_S) -> int:
    """End every descendant of this process but the direct children in `spare` and theirs; return how many there were.

    SIGTERM first, SIGKILL after `grace_s` seconds. Repeats, because a dying process may have started another. Reaps what it ends.
    """
    found: set[int] = set()
    for attempt in range(5):
        doomed: list[psutil.Process] = []
        for child in psutil.Process().children():
            if child.pid in spare:
                continue
            try:
                doomed += [child, *child.children(recursive=True)]
            except psutil.NoSuchProcess:
                doomed.append(child)
        if not doomed:
            break
        found.update(process.pid for process in doomed)
        for process in doomed:
            try:
                process.send_signal(signal.SIGKILL if attempt else signal.SIGTERM)
            except psutil.NoSuchProcess:
                continue
        _, alive = psutil.wait_procs(doomed, timeout=grace_s)
        for process in alive:
            try:
                process.kill()
            except psutil.NoSuchProcess:
                continue
        psutil.wait_procs(alive, timeout=grace_s)
    return len(found)


def guarded(body: Callable[[], int]) -> int:
    """Run `body` in a child process that cannot outlive this one; return its exit status, 128 + n when signal n ended it.

    SIGTERM, SIGINT and SIGHUP to this process are passed on as SIGTERM and waited for.
    """
    adopt_orphans()
    parent = os.getpid()
    sys.stdout.flush()
    sys.stderr.flush()
    # A signal that comes between fork and handler waits instead of killing this process and leaving the child alone.
    signals = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP}
    signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    child = os.fork()
    if child == 0:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, signals)
        _run_child(body, parent)

    def forward(_signum: int, _frame: FrameType | None) -> None:
        os.kill(child, signal.SIGTERM)

    for signum in signals:
        signal.signal(signum, forward)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, signals)
    _, status = os.waitpid(child, 0)
    for signum in signals:
        signal.signal(signum, signal.SIG_IGN)
    leftovers = kill_descendants()
    code = os.waitstatus_to_exitcode(status)
    if code < 0:
        print(f"lionrock: the supervisor was killed by signal {-code}; ended {leftovers} processes that it left", file=sys.stderr)
        return 128 - code
    return code


def _run_child(body: Callable[[], int], parent: int) -> None:
    """Never returns: the forked copy must not run what comes after `guarded` in its caller."""
    status = 1
    try:
        die_with_parent()
        adopt_orphans()
        if os.getppid() != parent:  # it died before the request to the kernel
            os._exit(status)
        # Its own process group: a terminal's Ctrl-C reaches the parent alone, which passes it on once.
        os.setpgid(0, 0)
        status = body()
    except SystemExit as stop:
        status = stop.code if isinstance(stop.code, int) else 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
