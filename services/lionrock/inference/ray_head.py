"""`python -m lionrock.inference.ray_head`: a local Ray head that ends with its standard input, and all its processes with it.

A process of its own, because Ray forks while it starts, which a process with gRPC threads must not do; and because whoever adopts
orphans can end them: this one is a child subreaper, so that no process of Ray's outlives it, however its parent ended.
Takes ray.init's arguments as JSON in argv[1]; writes the cluster's address as one line on standard output.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Final

_PR_SET_CHILD_SUBREAPER: Final = 36
_END_S: Final = 5.0


def become_subreaper() -> None:
    """Adopt the orphans among our descendants (prctl(2)). Raises OSError."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_CHILD_SUBREAPER)")


def children() -> list[int]:
    """Process ids of our children, zombies left out."""
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            # pid (name) state ppid …; the name may hold spaces and brackets
            state, parent = (entry / "stat").read_text().rpartition(")")[2].split()[:2]
        except OSError:
            continue  # it has ended
        if int(parent) == os.getpid() and state != "Z":
            found.append(int(entry.name))
    return found


def end_children() -> None:
    """Kill our children until none is left: each one's children become ours."""
    deadline_s = time.monotonic() + _END_S
    while (left := children()) and time.monotonic() < deadline_s:
        for pid in left:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        while True:
            try:
                if os.waitpid(-1, os.WNOHANG)[0] == 0:
                    break
            except ChildProcessError:
                break
        time.sleep(0.01)


def main() -> None:
    """Start Ray, say where it is, end with standard input."""
    become_subreaper()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)  # the parent says when: by closing our standard input, or by ending
    import ray

    try:
        ray.init(**json.loads(sys.argv[1]))
        print(ray.get_runtime_context().gcs_address, flush=True)
        sys.stdin.buffer.read()
        ray.shutdown()
    finally:
        end_children()


if __name__ == "__main__":
    main()
