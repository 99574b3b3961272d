"""Where tiles go. Two implementations, one suite (tests/audit/test_tile_sinks.py).

Duties
- `add` writes files that never change. A name that is taken by the same bytes is fine (a crash came between), by others it is
  a TileConflict. When it returns, contents and names are durable.
- `replace` swaps one small file (the checkpoint) if it still is what the caller read, and is durable when it returns.
- Whatever fails raises SinkFailed; nothing is taken for written that may not be.
- A sink has one writer at a time: a directory is locked, a bucket compares ETags.
- Names are relative, "/" between their parts, no part empty, "." or "..": `check_name`.

Knows: files and their durability. Does not know: tiles (tlog/tiles.py), logs, what to publish (publisher.py).
"""

import fcntl
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Literal, Protocol

from lionrock.audit.failures import SinkFailed, TileConflict
from lionrock.chassis.durable_files import sync_directory

Readers = Literal["owner", "group", "all"]
_MODES: Mapping[Readers, tuple[int, int]] = {"owner": (0o700, 0o400), "group": (0o750, 0o440), "all": (0o755, 0o444)}
_DRAFTS = ".drafts"
_LOCK = ".lock"


class TileSink(Protocol):
    """A place for the files of many logs."""

    def read(self, name: str) -> bytes | None:
        """Content of a file, None when there is none. Raises SinkFailed."""

    def add(self, files: Mapping[str, bytes]) -> None:
        """Write files that must not be there with other contents, durably. Raises TileConflict, SinkFailed."""

    def replace(self, name: str, content: bytes, expected: bytes | None) -> None:
        """Write a file that now has the content `expected` (None: is not there), atomically and durably.

        Raises TileConflict when it has another, SinkFailed.
        """

    def remove_below(self, prefix: str) -> None:
        """Remove all files whose names begin with `prefix`, which ends in "/". There need not be any. Raises SinkFailed."""

    def close(self) -> None:
        """Let another writer in."""


def check_name(name: str) -> None:
    """Raise ValueError for a name that could lead out of the sink or be written in two ways."""
    if any(part in {"", ".", ".."} or part.startswith(".") for part in name.split("/")):
        raise ValueError("a name in a tile sink has no empty part and none that begins with a dot")


class DirectorySink:
    """Files below a directory. Drafts are written beside it, fsynced, and linked under their names, so a name has all its bytes."""

    def __init__(self, root: Path, *, readers: Readers = "owner") -> None:
        """Take `root`, made when it is not there. `readers`: who else may read; nobody else may write. Raises SinkFailed."""
        self._root = root
        self._directory_mode, self._file_mode = _MODES[readers]
        self._broken: str | None = None
        try:
            root.mkdir(parents=True, exist_ok=True)
            root.chmod(self._directory_mode)
            self._lock = os.open(root / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                drafts = root / _DRAFTS
                shutil.rmtree(drafts, ignore_errors=True)
                drafts.mkdir(mode=0o700)
                sync_directory(root)
            except BlockingIOError:
                os.close(self._lock)
                raise SinkFailed(f"another process publishes to {root}") from None
            except BaseException:
                os.close(self._lock)
                raise
        except OSError as error:
            raise SinkFailed(f"{root}: {error.strerror}") from error
        self._drafts = drafts
        self._written = 0
        self._durable: set[Path] = set()

    def read(self, name: str) -> bytes | None:
        """Content of a file."""
        check_name(name)
        try:
            return (self._root / name).read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise SinkFailed(f"reading {name}: {error.strerror}") from error

    def add(self, files: Mapping[str, bytes]) -> None:
        """Write new files: every content is fsynced before it gets its name, then every directory."""
        self._refuse_if_broken()
        touched: set[Path] = set()
        for name, content in files.items():
            check_name(name)
            target = self._root / name
            try:
                self._make_directory(target.parent)
                draft = self._draft(content)
                try:
                    os.link(draft, target)  # unlike a rename, fails when the name is taken
                except FileExistsError:
                    if target.read_bytes() != content:
                        raise TileConflict(f"{name} is published with other bytes") from None
                finally:
                    draft.unlink()
            except OSError as error:
                raise SinkFailed(f"writing {name}: {error.strerror}") from error
            touched.add(target.parent)
        for directory in touched:
            self._sync(directory)

    def replace(self, name: str, content: bytes, expected: bytes | None) -> None:
        """Swap a file: the lock keeps other writers out between the comparison and the rename."""
        self._refuse_if_broken()
        if self.read(name) != expected:
            raise TileConflict(f"{name} was changed by somebody else")
        target = self._root / name
        try:
            self._make_directory(target.parent)
            self._draft(content).rename(target)
        except OSError as error:
            raise SinkFailed(f"writing {name}: {error.strerror}") from error
        self._sync(target.parent)

    def remove_below(self, prefix: str) -> None:
        """Remove a directory."""
        check_name(prefix.rstrip("/"))
        self._durable.discard(self._root / prefix)
        try:
            shutil.rmtree(self._root / prefix)
        except FileNotFoundError:
            return
        except OSError as error:
            raise SinkFailed(f"removing {prefix}: {error.strerror}") from error

    def close(self) -> None:
        """Let another process in."""
        os.close(self._lock)

    def _draft(self, content: bytes) -> Path:
        self._written += 1
        draft = self._drafts / str(self._written)
        descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with open(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fchmod(descriptor, self._file_mode)
            try:
                os.fsync(descriptor)
            except OSError as error:
                self._break(error)
        return draft

    def _make_directory(self, directory: Path) -> None:
        """Make a directory and those above it, each durable in its parent; a process before this one may have died in between."""
        if directory in self._durable or directory == self._root:
            return
        self._make_directory(directory.parent)
        if not directory.is_dir():
            directory.mkdir()
            directory.chmod(self._directory_mode)
        self._sync(directory.parent)
        self._durable.add(directory)

    def _sync(self, directory: Path) -> None:
        try:
            sync_directory(directory)
        except OSError as error:
            self._break(error)

    def _break(self, error: OSError) -> None:
        # After a failed fsync nobody knows what the disk holds, and a second one that succeeds proves nothing.
        self._broken = f"an fsync below {self._root} failed ({error.strerror}): nothing more is published until restart"
        raise SinkFailed(self._broken) from error

    def _refuse_if_broken(self) -> None:
        if self._broken is not None:
            raise SinkFailed(self._broken)
