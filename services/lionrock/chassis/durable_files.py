"""Files that are there after a power cut: written through, named durably, private to their owner.

Knows: write, fsync, fsync of the directory. Does not know: what the content means. After an error nobody knows what the disk
holds, so a caller never takes a second try for success.
"""

from __future__ import annotations

import os
from pathlib import Path


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


def sync_directory(directory: Path) -> None:
    """Make names in a directory durable. Raises OSError."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
