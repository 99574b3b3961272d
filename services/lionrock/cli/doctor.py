"""`lionrock doctor`: what this machine has and lacks for Lionrock, and how to get it.

Each check is a function that looks and returns a `Finding`; nothing is changed and nothing is contacted.
"""

from __future__ import annotations

import importlib.util
import json
import os
import platform
import re
import shutil
import socket
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Literal

import psutil
from rich.console import Console
from rich.table import Table

from lionrock.cli.state import StateDir
from lionrock.modelstore.errors import ModelStoreError
from lionrock.modelstore.store import ModelStore

GIB = 2**30
NEEDED_MEMORY_BYTES = 3 * GIB
NEEDED_DISK_BYTES = 2 * GIB
DEFAULT_PORT = 7450
_MARKS = {"ok": "[green]ok[/]", "note": "[yellow]note[/]", "missing": "[bold red]missing[/]"}


@dataclass(frozen=True, slots=True)
class Finding:
    """Result of one check. "missing" is needed, "note" only helps."""

    check: str
    level: Literal["ok", "note", "missing"]
    found: str
    fix: str | None = None


def run(state_dir: Path | None, *, as_json: bool) -> int:
    """Check and print. Returns 1 when something that is needed is missing."""
    state = StateDir.at(state_dir)
    findings = examine(state)
    if as_json:
        for finding in findings:
            print(json.dumps(asdict(finding)))
    else:
        _print(findings)
    return int(any(finding.level == "missing" for finding in findings))


def examine(state: StateDir) -> list[Finding]:
    """All checks, in the order in which one would repair."""
    checks: list[Callable[[], Finding]] = [
        _python,
        _system,
        _cores,
        _memory,
        lambda: _disk(state.root),
        *(lambda extra=extra: _extra(extra) for extra in ("cli", "tokenization", "inference", "guardrails")),
        _ray,
        lambda: _ports(state),
        lambda: _model(state),
        lambda: _mesh(state),
        _grpcurl,
    ]
    return [check() for check in checks]


def _python() -> Finding:
    return Finding("python", "ok", f"{platform.python_version()} at {sys.executable}")


def _system() -> Finding:
    found = f"{platform.system()} {platform.machine()}"
    if sys.platform != "linux":
        return Finding(
            "system", "note", found, "tested on Linux; elsewhere killing `lionrock up` itself may leave processes behind"
        )
    return Finding("system", "ok", found)


def _cores() -> Finding:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if cores < 2:
        return Finding("cores", "note", str(cores), "it runs on one core, but slowly: two or more are better")
    return Finding("cores", "ok", str(cores))


def _memory() -> Finding:
    available = psutil.virtual_memory().available
    found = f"{available / GIB:.1f} GiB available"
    if available < NEEDED_MEMORY_BYTES:
        return Finding("memory", "missing", found, f"free some: the demo needs about {NEEDED_MEMORY_BYTES / GIB:.0f} GiB")
    return Finding("memory", "ok", found)


def _disk(directory: Path) -> Finding:
    place = next(parent for parent in (directory, *directory.parents) if parent.exists())
    free = shutil.disk_usage(place).free
    found = f"{free / GIB:.1f} GiB free at {place}"
    if not os.access(place, os.W_OK):
        return Finding("disk", "missing", f"{place} cannot be written", "give a directory of your own with --state-dir")
    if free < NEEDED_DISK_BYTES:
        return Finding("disk", "missing", found, f"free {NEEDED_DISK_BYTES / GIB:.0f} GiB, or give another --state-dir")
    return Finding("disk", "ok", found)


def _extra(extra: str) -> Finding:
    """Whether every package of an extra is there, by its metadata: nothing is imported."""
    absent = []
    try:
        requirements = metadata.requires("lionrock") or []
    except metadata.PackageNotFoundError:
        return Finding(f"extra {extra}", "missing", "lionrock itself is not installed", "pip install -e '.[all]' in the repository")
    for requirement in requirements:
        if not re.search(rf"extra == ['\"]{extra}['\"]", requirement):
            continue
        name = re.split(r"[^A-Za-z0-9._-]", requirement, maxsplit=1)[0]
        try:
            metadata.version(name)
        except metadata.PackageNotFoundError:
            absent.append(name)
    if absent:
        return Finding(f"extra {extra}", "missing", f"without {', '.join(absent)}", f"pip install 'lionrock[{extra}]'")
    return Finding(f"extra {extra}", "ok", "all packages present")


def _ray() -> Finding:
    if importlib.util.find_spec("ray") is None:
        return Finding("ray", "missing", "not installed", "pip install 'lionrock[inference]'")
    shared = Path("/dev/shm")  # noqa: S108 - Ray's object store lies there
    if sys.platform == "linux" and (not shared.exists() or shutil.disk_usage(shared).free < GIB // 2):
        return Finding(
            "ray",
            "note",
            f"{metadata.version('ray')}, /dev/shm is small",
            "give the container more, e.g. --shm-size=1g; Ray uses /tmp until then",
        )
    return Finding("ray", "ok", metadata.version("ray"))


def _ports(state: StateDir) -> Finding:
    taken = []
    for port in range(DEFAULT_PORT, DEFAULT_PORT + 5):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                taken.append(str(port))
    if taken and state.is_locked():
        return Finding("ports", "ok", f"{', '.join(taken)} in use, a mesh runs here")
    if taken:
        return Finding("ports", "note", f"{', '.join(taken)} in use", "lionrock up --port 0 takes free ones")
    return Finding("ports", "ok", f"{DEFAULT_PORT} to {DEFAULT_PORT + 4} are free")


def _model(state: StateDir) -> Finding:
    try:
        names = [entry.name for entry in ModelStore(state.models).list()]
    except ModelStoreError as error:
        return Finding("model", "missing", str(error), "pull it again: lionrock models pull NAME")
    if not names:
        return Finding(
            "model",
            "note",
            f"none in {state.models}",
            "lionrock models pull smollm2-135m-instruct (`up` and `demo` do it by themselves)",
        )
    return Finding("model", "ok", ", ".join(names))


def _mesh(state: StateDir) -> Finding:
    return Finding("mesh", "ok", f"running on {state.root}" if state.is_locked() else f"none running on {state.root}")


def _grpcurl() -> Finding:
    path = shutil.which("grpcurl")
    if path is None:
        return Finding("grpcurl", "note", "not on the PATH", "optional: any gRPC client can use the certificates in certs/client")
    return Finding("grpcurl", "ok", path)


def _print(findings: list[Finding]) -> None:
    table = Table(box=None, pad_edge=False, show_header=False)
    for finding in findings:
        fix = f"\n[dim]fix:[/] {finding.fix}" if finding.fix else ""
        table.add_row(finding.check, _MARKS[finding.level], f"{finding.found}{fix}")
    Console(highlight=False).print(table)
