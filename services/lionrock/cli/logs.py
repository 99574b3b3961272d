"""A log file that never grows past a bound: two generations, `NAME.jsonl` and the older `NAME.jsonl.1`.

Takes bytes as a child process wrote them and cuts only at line ends, so that each file holds whole lines.
"""

from __future__ import annotations

import os
from pathlib import Path

_MAX_LINE_BYTES = 256 * 1024
_TAIL_BYTES = 64 * 1024


class BoundedLog:
    """Appends to `path`. Both generations together take at most `max_bytes` and one line."""

    def __init__(self, path: Path, *, max_bytes: int = 32 * 1024 * 1024) -> None:
        self.path = path
        self._limit = max_bytes // 2
        self._descriptor = self._open()
        self._size = os.fstat(self._descriptor).st_size
        self._partial = b""

    def _open(self) -> int:
        return os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)

    def write(self, data: bytes) -> None:
        """Append the whole lines of `data`, keep the rest for the next call. A line without end is cut at 256 KiB."""
        lines, newline, rest = (self._partial + data).rpartition(b"\n")
        if len(rest) > _MAX_LINE_BYTES:
            lines, newline, rest = lines + newline + rest, b"\n", b""
        self._partial = rest
        if newline:
            self._append(lines + newline)

    def _append(self, data: bytes) -> None:
        if self._size and self._size + len(data) > self._limit:
            os.close(self._descriptor)
            self.path.replace(self.path.with_name(f"{self.path.name}.1"))
            self._descriptor = self._open()
            self._size = 0
        self._size += os.write(self._descriptor, data)

    def close(self) -> None:
        """Write what is left of the last line."""
        if self._partial:
            self._append(self._partial + b"\n")
            self._partial = b""
        os.close(self._descriptor)


def last_lines(path: Path, count: int) -> list[str]:
    """Return the last `count` lines of a log, oldest first; none when there is no log."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - _TAIL_BYTES))
            return file.read().decode("utf-8", "replace").splitlines()[-count:]
    except FileNotFoundError:
        return []


def prune_traces(directory: Path, max_bytes: int) -> None:
    """Remove span files of earlier runs: empty ones, and the oldest until the others take at most `max_bytes` together."""
    kept = 0
    for path in sorted(directory.glob("*.jsonl*"), key=lambda path: path.stat().st_mtime, reverse=True):
        size = path.stat().st_size
        if size == 0 or kept + size > max_bytes:
            path.unlink()
        else:
            kept += size
