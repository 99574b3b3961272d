"""Is this directory the bundle that its manifest describes? Every missing, changed and extra file is named.

The directory is hostile: nothing outside of it is read, whatever is in it. Paths are walked one part at a time without following
symbolic links, only regular files are read, and never more of one than the manifest says. What is not regular is named, not read.
"""

from __future__ import annotations

import errno
import hashlib
import os
import stat
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from lionrock.cli.bundles.manifest import (
    MANIFEST_MAX_BYTES,
    MANIFEST_NAME,
    NOTE_NAME,
    SUMS_MAX_BYTES,
    SUMS_NAME,
    File,
    Manifest,
    ManifestInvalid,
    note_text,
    parents,
    parse_manifest,
    sums,
)
from lionrock.tlog.note import NOTE_MAX_BYTES, MalformedNote, UntrustedNote, VerifierKey, open_note

READ_BYTES: Final = 1 << 20
EXTRA_MAX: Final = 1000
"""Extra files that are named; there may be any number of them."""
DEPTH_MAX: Final = 64
_OPEN: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC  # NONBLOCK: opening a pipe must not wait for its writer

Problem = Literal["missing", "changed", "extra", "refused", "unsigned"]
OnBytes = Callable[[int], None]


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is wrong. path: within the bundle, as it is on disk: not fit to be printed as it is."""

    problem: Problem
    path: str
    detail: str


@dataclass(frozen=True, slots=True)
class Checked:
    """What was found. manifest: None where there is none that can be read; signed_by: names of the given keys that signed it."""

    manifest: Manifest | None
    manifest_sha256: str | None
    findings: tuple[Finding, ...]
    signed_by: tuple[str, ...]

    @property
    def good(self) -> bool:
        """Whether the directory is the bundle, the whole of it, and nothing else."""
        return self.manifest is not None and not self.findings


class NotReadable(Exception):
    """The directory itself cannot be opened."""


def check_bundle(directory: Path, keys: Sequence[VerifierKey], on_start: OnBytes, on_bytes: OnBytes) -> Checked:
    """Check everything. keys: with any, one of them must have signed the manifest. Raises NotReadable.

    on_start is told the bytes that will be read at most, on_bytes those that were.
    """
    try:
        root = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise NotReadable(f"{directory} cannot be opened: {error.strerror}") from None
    try:
        try:
            raw = _read(root, MANIFEST_NAME, MANIFEST_MAX_BYTES)
            manifest = parse_manifest(raw)
        except ManifestInvalid as error:
            return Checked(None, None, (Finding("refused", MANIFEST_NAME, str(error)),), ())
        except _Unusable as error:
            return Checked(None, None, (error.finding,), ())
        sha256 = hashlib.sha256(raw).hexdigest()
        signed_by, unsigned = _check_signature(root, sha256, keys)
        on_start(sum(file.size for file in manifest.files))
        findings = [*unsigned, *_check_sums(root, manifest, sha256)]
        for file in manifest.files:
            findings.extend(_check_file(root, file, on_bytes))
        findings.extend(_extra(root, manifest))
        return Checked(manifest, sha256, tuple(findings), signed_by)
    finally:
        os.close(root)


def read_claims(directory: Path) -> tuple[Manifest, str]:
    """Return what a bundle says of itself, unchecked, and the SHA-256 of that. Raises NotReadable, ManifestInvalid."""
    try:
        root = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise NotReadable(f"{directory} cannot be opened: {error.strerror}") from None
    try:
        raw = _read(root, MANIFEST_NAME, MANIFEST_MAX_BYTES)
    except _Unusable as error:
        raise NotReadable(f"{MANIFEST_NAME}: {error.finding.detail}") from None
    finally:
        os.close(root)
    return parse_manifest(raw), hashlib.sha256(raw).hexdigest()


class _Unusable(Exception):
    """A file is not there or not a regular one."""

    def __init__(self, finding: Finding) -> None:
        super().__init__(finding.detail)
        self.finding = finding


def _check_signature(root: int, sha256: str, keys: Sequence[VerifierKey]) -> tuple[tuple[str, ...], list[Finding]]:
    if not keys:
        return (), []
    try:
        note = _read(root, NOTE_NAME, NOTE_MAX_BYTES).decode("utf-8")
        if open_note(note, keys).text != note_text(sha256):
            return (), [Finding("unsigned", NOTE_NAME, "the signature is for another manifest")]
        return tuple(key.name for key in keys if _signed(note, key)), []
    except _Unusable as error:
        return (), [Finding("unsigned", NOTE_NAME, error.finding.detail)]
    except (MalformedNote, UntrustedNote, UnicodeDecodeError) as error:
        detail = str(error) if isinstance(error, UntrustedNote) else "it is not a signed note"
        return (), [Finding("unsigned", NOTE_NAME, detail)]


def _signed(note: str, key: VerifierKey) -> bool:
    try:
        open_note(note, [key])
    except UntrustedNote:
        return False
    return True


def _check_sums(root: int, manifest: Manifest, sha256: str) -> Iterator[Finding]:
    try:
        if _read(root, SUMS_NAME, SUMS_MAX_BYTES) != sums(manifest, sha256):
            yield Finding("changed", SUMS_NAME, "it does not say what the manifest says")
    except _Unusable as error:
        yield error.finding


def _check_file(root: int, file: File, on_bytes: OnBytes) -> Iterator[Finding]:
    try:
        with _opened(root, file.path) as descriptor:
            size = os.fstat(descriptor).st_size
            if size != file.size:
                yield Finding("changed", file.path, f"{size} bytes, {file.size} expected")
                return
            digest, left = hashlib.sha256(), file.size
            while left and (piece := os.read(descriptor, min(READ_BYTES, left))):
                digest.update(piece)
                left -= len(piece)
                on_bytes(len(piece))
            if left or digest.hexdigest() != file.sha256:
                yield Finding("changed", file.path, f"sha256 {digest.hexdigest()}, {file.sha256} expected")
    except _Unusable as error:
        yield error.finding
    except OSError as error:
        yield Finding("refused", file.path, f"it cannot be read: {error.strerror}")


def _extra(root: int, manifest: Manifest) -> list[Finding]:
    """Everything that the manifest does not name, directories without a named file included; at most EXTRA_MAX."""
    known = {file.path for file in manifest.files} | {MANIFEST_NAME, SUMS_NAME, NOTE_NAME}
    directories = {parent for path in known for parent in parents(path)}
    found: list[Finding] = []
    open_directories = [""]
    while open_directories and len(found) < EXTRA_MAX:
        prefix = open_directories.pop()
        try:
            with _opened(root, prefix or ".", directory=True) as descriptor, os.scandir(descriptor) as entries:
                for entry in entries:
                    path = f"{prefix}/{entry.name}" if prefix else entry.name
                    if entry.is_dir(follow_symlinks=False) and path in directories and path.count("/") < DEPTH_MAX:
                        open_directories.append(path)
                    elif path not in known:
                        found.append(Finding("extra", path, "the manifest does not name it"))
                    if len(found) == EXTRA_MAX:
                        found.append(Finding("extra", prefix, "there is more that the manifest does not name"))
                        break
        except _Unusable as error:
            found.append(error.finding)
    return sorted(found, key=lambda finding: finding.path)


def _read(root: int, name: str, limit: int) -> bytes:
    """Read a small file of the bundle. Raises _Unusable."""
    with _opened(root, name) as descriptor:
        pieces, left = [], limit + 1
        while left and (piece := os.read(descriptor, min(READ_BYTES, left))):
            pieces.append(piece)
            left -= len(piece)
    if not left:
        raise _Unusable(Finding("refused", name, f"it is larger than {limit} bytes"))
    return b"".join(pieces)


@contextmanager
def _opened(root: int, path: str, *, directory: bool = False) -> Iterator[int]:
    """Open a regular file (or a directory) below `root`, following no link on the way. Raises _Unusable."""
    descriptor = _descend(root, path, directory=directory)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _descend(root: int, path: str, *, directory: bool) -> int:
    parts = path.split("/")
    current = os.dup(root)
    try:
        for depth, part in enumerate(parts, start=1):
            flags = _OPEN if depth == len(parts) and not directory else _OPEN | os.O_DIRECTORY
            below = os.open(part, flags, dir_fd=current)
            os.close(current)
            current = below
        if stat.S_IFMT(os.fstat(current).st_mode) != (stat.S_IFDIR if directory else stat.S_IFREG):
            raise _Unusable(Finding("refused", path, "it is not a regular file"))
    except FileNotFoundError:
        os.close(current)
        raise _Unusable(Finding("missing", path, "it is not there")) from None
    except OSError as error:
        os.close(current)
        # ELOOP: a link, found by O_NOFOLLOW. ENOTDIR: a link or file where a directory should be. ENXIO: a socket.
        if error.errno in (errno.ELOOP, errno.ENOTDIR, errno.ENXIO):
            raise _Unusable(Finding("refused", path, "it, or a directory above it, is a link or not a regular file")) from None
        raise _Unusable(Finding("refused", path, f"it cannot be opened: {error.strerror}")) from None
    except _Unusable:
        os.close(current)
        raise
    return current
