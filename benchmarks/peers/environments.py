"""The peers' own environments, made once and kept in the cache; the versions here are what is measured."""

from __future__ import annotations

import shutil
import subprocess
import sys
import venv
from collections.abc import Sequence
from pathlib import Path

from benchmarks.peers.process import ROOT

CACHE = ROOT / ".cache" / "bench"
VLLM = ROOT / ".venv-vllm"
_INSTALL_TIMEOUT_S = 1200


class NotInstalled(Exception):
    """A peer could not be installed on this machine; the message says why."""


def vllm() -> Path:
    """Return the interpreter of the environment that has vLLM, which `tools/install_vllm.py` makes."""
    python = VLLM / "bin" / "python"
    if not python.exists() or _run([str(python), "-c", "import vllm"], 120) is not None:
        print(f"installing vLLM into {VLLM.name}", flush=True)
        _must([sys.executable, str(ROOT / "tools" / "install_vllm.py"), str(VLLM)])
    return python


def own(name: str, packages: Sequence[str]) -> Path:
    """Return the interpreter of an environment of its own with exactly these packages."""
    directory = CACHE / f"{name}-venv"
    python = directory / "bin" / "python"
    stamp, pins = directory / ".installed", "\n".join(packages)
    if not stamp.exists() or stamp.read_text() != pins:
        print(f"installing {' '.join(packages)} into {directory.relative_to(ROOT)}", flush=True)
        shutil.rmtree(directory, ignore_errors=True)
        venv.create(directory, with_pip=True, symlinks=True)
        _must([str(python), "-m", "pip", "--disable-pip-version-check", "install", "--quiet", "--only-binary=:all:", *packages])
        stamp.write_text(pins)
    return python


def _must(command: Sequence[str]) -> None:
    if (failure := _run(command, _INSTALL_TIMEOUT_S)) is not None:
        raise NotInstalled(failure)


def _run(command: Sequence[str], timeout_s: float) -> str | None:
    """Run a command; returns what it said when it failed, None when it did not."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=timeout_s, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"{type(error).__name__}: {error}"
    return None if done.returncode == 0 else (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]
