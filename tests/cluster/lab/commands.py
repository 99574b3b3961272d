"""Running other programs: quietly while all is well, with their last words when it is not."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path


class LabError(Exception):
    """The lab cannot do what it was asked; the message says what is missing or what a program said."""


def run(
    command: Sequence[str | Path],
    *,
    timeout_s: float,
    stdin: str | None = None,
    environment: Mapping[str, str] | None = None,
    directory: Path | None = None,
) -> str:
    """Run a program and return its standard output. Raises LabError with the end of what it said."""
    try:
        done = subprocess.run(
            [str(part) for part in command],
            check=False,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            input=stdin,
            env=dict(environment) if environment is not None else None,
            cwd=directory,
        )
    except FileNotFoundError:
        raise LabError(f"{command[0]} is not installed") from None
    except subprocess.TimeoutExpired as error:
        said = error.stderr or error.stdout or b""
        text = said.decode(errors="replace") if isinstance(said, bytes) else said
        raise LabError(f"{_short(command)} took more than {timeout_s:.0f} s\n{_tail(text)}") from None
    if done.returncode != 0:
        raise LabError(f"{_short(command)} failed ({done.returncode})\n{_tail(done.stderr or done.stdout)}")
    return done.stdout


def succeeds(command: Sequence[str | Path], *, timeout_s: float = 30) -> bool:
    """Whether a program ends with status 0."""
    return subprocess.run([str(part) for part in command], check=False, capture_output=True, timeout=timeout_s).returncode == 0


def require(*programs: str) -> None:
    """Raise LabError naming every program that is not installed."""
    missing = [program for program in programs if shutil.which(program, path=_PATH) is None]
    if missing:
        raise LabError(f"not installed: {', '.join(missing)}; on Debian: apt-get install {' '.join(sorted(PACKAGES))}")


_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
PACKAGES = {"buildah", "containerd", "containernetworking-plugins", "debootstrap", "iproute2", "iptables", "runc"}
"""Debian packages with everything that the lab runs and does not build."""


def _short(command: Sequence[str | Path]) -> str:
    return " ".join(str(part) for part in command[:3])


def _tail(text: str, lines: int = 30) -> str:
    return "\n".join(text.splitlines()[-lines:])
