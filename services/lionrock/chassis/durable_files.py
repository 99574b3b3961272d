"""Files that are there after a power cut: written through, named durably, private to their owner.

Knows: write, fsync, fsync of the directory. Does not know: what the content means. After an error nobody knows what the disk
holds, so a caller never takes a second try for success.
"""

from __future__ import annotations

import os
from pathlib import Path

_CHUNK_BYTES = 2**20


def write_through(path: Path, content: bytes) -> None:
    """Write a private file and fsync it. Raises OSError."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    with open(descriptor, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def replace_through(path: Path, content: bytes) -> None:
    """Give a private file new content: whole and on the disk, or, after a crash, the old one. Raises OSError."""
    draft = path.with_name(f".{path.name}.new")
    write_through(draft, content)
    draft.rename(path)
    sync_directory(path.parent)


def create_through(path: Path, content: bytes) -> None:
    """Make a private file that is not there yet. Raises FileExistsError, OSError."""
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    write_through(draft, content)
    try:
        os.link(draft, path)  # unlike a rename, fails when the name is taken
    finally:
        draft.unlink()
    sync_directory(path.parent)


def write_again(path: Path) -> None:
    """Write what is read from a file over itself and fsync it, so that what is read is on the disk. Raises OSError.

    After an fsync that failed the kernel may hold pages for clean that never reached the disk, also for the next process, whose
    fsync then succeeds and proves nothing. Written anew they are dirty again. Bytes that were on the disk stay what they are
    meanwhile, so a power cut in the middle does no harm.
    """
    with path.open("r+b", buffering=0) as file:
        position = 0
        while chunk := os.pread(file.fileno(), _CHUNK_BYTES, position):
            while chunk:
                written = os.pwrite(file.fileno(), chunk, position)
                chunk = chunk[written:]
                position += written
        os.fsync(file.fileno())


def remove_through(path: Path) -> None:
    """Overwrite a file, if it is there, and remove its name, durably. Raises OSError."""
    try:
        with path.open("r+b", buffering=0) as file:
            file.write(bytes(os.fstat(file.fileno()).st_size))
            os.fsync(file.fileno())
    except FileNotFoundError:
        pass
    path.unlink(missing_ok=True)
    if path.parent.is_dir():
        sync_directory(path.parent)


def make_directory_through(path: Path, mode: int = 0o700) -> None:
    """Make a directory and what it lies in, each durable in the one above. Raises OSError.

    `mode`: of those that are made. An existing directory's own name is synced too, for an earlier process may have made it and
    died before it could; not so a mount point, and not in a parent where this process could not have made it.
    """
    missing = []
    while not path.is_dir():
        missing.append(path)
        path = path.parent
    parent = path.parent
    if path.stat().st_dev == parent.stat().st_dev and os.access(parent, os.W_OK | os.R_OK):
        sync_directory(parent)
    for directory in reversed(missing):
        directory.mkdir(mode=mode, exist_ok=True)
        sync_directory(directory.parent)


def sync_directory(directory: Path) -> None:
    """Make names in a directory durable. Raises OSError."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
