"""The ready file: the port as text, once a server listens; whole or not there."""

from __future__ import annotations

from pathlib import Path


def write_ready_file(path: Path, port: int) -> None:
    """Write the file. Raises OSError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.new")
    temporary.write_text(f"{port}\n", encoding="ascii")
    temporary.replace(path)
