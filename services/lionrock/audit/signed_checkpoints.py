"""The second durable place of what was signed: a file beside the keys, away from the store.

Knows: the last signed checkpoint of each log: a line a batch, a JSON object of origins and checkpoints, appended and fsynced;
the first line is written with the file. Does not know: whether they are right. The store commits first, this file follows, and
only then does anyone hear of the checkpoint. So after any crash the file names a tree that the store contains; when it does not,
the store was rolled back or damaged, and signing on would fork the log (tenant_log.py). What a power cut tears, in whichever of
its sectors, is the last line: it was never answered to anybody and is dropped. A damaged line with a good one after it, or a
damaged first line, is no crash. Rolling back both places at once stays invisible here; that takes a witness.
"""

import json
import os
from collections.abc import Mapping
from pathlib import Path

from lionrock.audit.failures import StoreFailed
from lionrock.chassis.durable_files import make_directory_through, replace_through

_COMPACT_BYTES = 4 * 2**20


class SignedCheckpoints:
    """The file. One writer; `record` belongs to the sequencer's thread once it runs."""

    def __init__(self, path: Path) -> None:
        """Read `path`, or begin with nothing. Raises StoreFailed for a file that is damaged elsewhere than in its last line."""
        self._path = path
        make_directory_through(path.parent)
        self._last: dict[str, str] = {}
        for batch in read_batches(path):
            self._last.update(batch)
        self._file = -1
        self._compact()

    def last(self) -> Mapping[str, str]:
        """Last signed checkpoint by origin."""
        return dict(self._last)

    def record(self, checkpoints: Mapping[str, str]) -> None:
        """Write checkpoints (by origin) through to the disk. Raises StoreFailed; nothing may be signed after that until restart."""
        self._last.update(checkpoints)
        content = _line(checkpoints)
        try:
            written = os.write(self._file, content)
            if written != len(content):
                raise StoreFailed(f"writing {self._path}: only {written} of {len(content)} bytes fit")
            os.fdatasync(self._file)
            replaced = not os.path.samestat(os.stat(self._path), os.fstat(self._file))
        except OSError as error:
            raise StoreFailed(f"writing {self._path}: {error.strerror}") from error
        if replaced:  # what was written here, nobody will read
            raise StoreFailed(f"{self._path} was replaced: another audit service has taken over")
        self._bytes += written
        if self._bytes > _COMPACT_BYTES:
            self._compact()

    def close(self) -> None:
        """Close the file."""
        os.close(self._file)

    def _compact(self) -> None:
        """Replace the file by its newest lines, atomically, and open it for appending."""
        content = _line(self._last)
        try:
            replace_through(self._path, content)
            if self._file >= 0:
                os.close(self._file)
            self._file = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)
        except OSError as error:
            raise StoreFailed(f"writing {self._path}: {error.strerror}") from error
        self._bytes = len(content)


def read_batches(path: Path) -> list[dict[str, str]]:
    """Read every batch of checkpoints by origin that `path` still has, oldest first; none when there is no file.

    Raises StoreFailed for a file that is damaged elsewhere than in its last line.
    """
    try:
        lines = path.read_bytes().split(b"\n") if path.exists() else [b""]
    except OSError as error:
        raise StoreFailed(f"reading {path}: {error.strerror}") from error
    lines.pop()  # empty unless the last write was cut off
    batches: list[dict[str, str]] = []
    for number, line in enumerate(lines):
        batch = _parse(line)
        if batch is None:
            if number == 0 or any(_parse(later) is not None for later in lines[number:]):
                raise StoreFailed(f"{path} is damaged in line {number + 1}: restore it from a backup of this file")
            break
        batches.append(batch)
    return batches


def _line(checkpoints: Mapping[str, str]) -> bytes:
    return json.dumps(dict(checkpoints), ensure_ascii=False).encode() + b"\n"


def _parse(line: bytes) -> dict[str, str] | None:
    try:
        batch = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(batch, dict) or not all(isinstance(checkpoint, str) for checkpoint in batch.values()):
        return None
    if batch.keys() == {"origin", "checkpoint"}:  # one log a line, as this file was written at first
        return {batch["origin"]: batch["checkpoint"]}
    return batch
