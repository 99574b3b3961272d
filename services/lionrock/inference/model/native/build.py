"""Compiles the kernels with the machine's C++ compiler, once for each level of processor, and finds them again.

A file's name has the digest of everything that it was made from, so that a new release never meets an old library; it appears under
that name whole or not at all, so that ranks may start together. Levels are named sets of instructions rather than "whatever this
machine has", so that an image can be built with libraries for machines that are not there. The compiler's version is not part of
the name: an image need not have a compiler to find what another one compiled.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import hashlib
import logging
import os
import platform
import shutil
import stat
import subprocess
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

log = logging.getLogger("lionrock.inference")

_SOURCES = Path(__file__).parent
_FLAGS = (
    "-std=c++17", "-O3", "-fPIC", "-shared", "-fopenmp", "-fvisibility=hidden", "-fno-math-errno", "-ffp-contract=fast",
    "-Wall", "-Wextra", "-Wno-psabi", "-Wno-ignored-attributes",
)  # fmt: skip
_COMPILERS = ("c++", "g++", "clang++")
_COMPILE_TIMEOUT_S = 300.0


NativeKernels = Literal["auto", "off", "required"]
"""Whether the native kernels are used: where they can be, never, or else the rank does not start."""


class KernelsUnavailable(Exception):
    """There are no native kernels on this machine; the message says why."""


@dataclass(frozen=True, slots=True)
class Level:
    """Instructions that a library may use."""

    name: str
    machine: str
    """As `platform.machine` says it."""
    needs: frozenset[str]
    """Flags of /proc/cpuinfo."""
    flags: tuple[str, ...]

    def runs_here(self) -> bool:
        """Whether this machine has the instructions."""
        return platform.machine() == self.machine and self.needs <= _processor_flags()


_V3 = frozenset({"avx2", "bmi1", "bmi2", "f16c", "fma", "movbe"})
_V4 = _V3 | {"avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"}

LEVELS = (
    Level(
        "avx512-bf16",
        "x86_64",
        _V4 | {"avx512_bf16", "avx512_vnni"},
        ("-march=x86-64-v4", "-mavx512bf16", "-mavx512vnni", "-mprefer-vector-width=512"),
    ),
    Level("avx512-vnni", "x86_64", _V4 | {"avx512_vnni"}, ("-march=x86-64-v4", "-mavx512vnni", "-mprefer-vector-width=512")),
    Level("avx512", "x86_64", _V4, ("-march=x86-64-v4", "-mprefer-vector-width=512")),
    Level("avx2", "x86_64", _V3, ("-march=x86-64-v3",)),
    Level("x86-64", "x86_64", frozenset(), ()),
    Level("aarch64", "aarch64", frozenset(), ()),
)
"""Best first. What is compiled for aarch64 ran in an emulator only."""


def level_of_this_machine() -> Level:
    """Choose the best level that this processor can run. Raises KernelsUnavailable."""
    for level in LEVELS:
        if level.runs_here():
            return level
    raise KernelsUnavailable(f"no level of instructions is known for {platform.machine()}")


def find_or_compile(directory: Path, level: Level | None = None) -> Path:
    """Return the library for a level (this machine's), compiling it into the directory if it is not there.

    Raises KernelsUnavailable: no compiler, no such directory, or one that others can write to.
    """
    level = level or level_of_this_machine()
    path = directory / _file_name(level)
    _prepare(directory)
    if not path.exists():
        with _alone(directory):
            if not path.exists():  # another rank may have compiled it meanwhile
                _compile(path, level)
    return path


def default_directory() -> Path:
    """Where libraries are kept when no directory is named: in the user's cache. Raises KernelsUnavailable."""
    try:
        return Path.home() / ".cache" / "lionrock" / "native"
    except RuntimeError as error:
        raise KernelsUnavailable("the user has no home directory, and no other directory was named") from error


def _file_name(level: Level) -> str:
    digest = hashlib.sha256(repr((_FLAGS, level.flags)).encode())
    for source in _sources():
        digest.update(source.name.encode() + b"\0" + source.read_bytes())
    return f"lionrock-kernels-{level.name}-{digest.hexdigest()[:16]}.so"


def _sources() -> Iterable[Path]:
    return sorted((*_SOURCES.glob("*.cpp"), *_SOURCES.glob("*.h")))


@functools.cache
def _processor_flags() -> frozenset[str]:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith(("flags", "Features")):
                return frozenset(line.partition(":")[2].split())
    except OSError:
        log.debug("the processor's flags cannot be read")
    return frozenset()


def _prepare(directory: Path) -> None:
    """Make the directory, and refuse one in which others could put code that this process would run."""
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = directory.stat()
    except OSError as error:
        raise KernelsUnavailable(f"the directory for compiled kernels cannot be used: {error.strerror}") from error
    if status.st_uid not in (os.geteuid(), 0) or status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise KernelsUnavailable("the directory for compiled kernels belongs to somebody else, or others may write to it")


@contextlib.contextmanager
def _alone(directory: Path) -> Iterator[None]:
    """Let one process after another compile: on a few cores they would only slow each other down."""
    try:
        descriptor = os.open(directory / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise KernelsUnavailable(f"the kernels were not compiled ahead, and cannot be now: {error.strerror}") from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _compile(path: Path, level: Level) -> None:
    compiler = next(filter(None, map(shutil.which, _COMPILERS)), None)
    if compiler is None:
        raise KernelsUnavailable("there is no C++ compiler, and the kernels were not compiled ahead")
    try:
        descriptor, name = tempfile.mkstemp(prefix=path.name, dir=path.parent)
    except OSError as error:
        raise KernelsUnavailable(f"the directory for compiled kernels cannot be written: {error.strerror}") from error
    os.close(descriptor)
    command = [compiler, *_FLAGS, *level.flags, str(_SOURCES / "kernels.cpp"), "-o", name]
    try:
        subprocess.run(command, check=True, capture_output=True, text=True, timeout=_COMPILE_TIMEOUT_S)  # noqa: S603
        os.chmod(name, 0o755)  # noqa: S103  # code that others may run, and only we may write
        os.replace(name, path)
    except subprocess.CalledProcessError as error:
        first = next((line for line in error.stderr.splitlines() if "error" in line), f"exit status {error.returncode}")
        raise KernelsUnavailable(f"the kernels did not compile: {first}") from error
    except (OSError, subprocess.TimeoutExpired) as error:
        raise KernelsUnavailable(f"the kernels did not compile: {type(error).__name__}") from error
    finally:
        Path(name).unlink(missing_ok=True)
    log.info("compiled the CPU kernels for %s", level.name)
