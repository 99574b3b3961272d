"""Secrets in files: read only when nobody else can."""

from __future__ import annotations

import os
import stat
from pathlib import Path

_OTHERS_OR_GROUP_WRITE = stat.S_IRWXO | stat.S_IWGRP
"""Group read is allowed: a mounted secret often comes with it."""


class PrivateFileUnusable(Exception):
    """The file is open to others, too long, not text, or cannot be read; the message names it."""


def read_private(path: Path, max_bytes: int) -> str:
    """Read a secret, without the white space around it. Raises FileNotFoundError, PrivateFileUnusable."""
    try:
        with path.open("rb") as file:
            if os.fstat(file.fileno()).st_mode & _OTHERS_OR_GROUP_WRITE:
                raise PrivateFileUnusable(
                    f"{path} is open to others: chmod 600 it, and replace the secret if it may have been read"
                )
            content = file.read(max_bytes + 1)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise PrivateFileUnusable(f"{path} cannot be read: {error.strerror}") from error
    if len(content) > max_bytes:
        raise PrivateFileUnusable(f"{path} has more than {max_bytes} bytes")
    try:
        return content.decode("utf-8").strip()
    except UnicodeDecodeError:
        raise PrivateFileUnusable(f"{path} is not text") from None
