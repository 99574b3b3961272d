"""A disk that forgets: runs a process over fault_disk.c and computes what a power cut may leave of what the process wrote.

The model, from weakest promise to strongest
- A write that was not followed by an fsync of its file may be there or not, sector by sector of 512 bytes; of several writes to one
  sector any version may be the one that is there. A sector itself is never torn, and bytes of a sector that were not written keep
  their value (SQLite calls that powersafe overwrite).
- The length of a file is a fact of its own: it may be any that it had since the last fsync. Where it grew and the sector is
  missing, zeros are read, or what lay on the disk before (noise).
- A name is there only once its directory was fsynced. Of the changes of names since then any prefix, or any subset, may be there; a
  rename is atomic. An fsync of a file makes none of its names durable.
- An fsync that fails loses: every sector that it should have written gets one of its versions there and then, and counts as clean.
  A later fsync that succeeds says nothing about it. The process goes on to see what it wrote, as it would in the page cache.

Not generated: sectors torn within, writes to the wrong place, damage to what was fsynced (test_tamper.py does that), reordering
across an fsync that succeeded, other file systems' stricter or stranger ways. Modes and times of files are not kept.
"""

from __future__ import annotations

import mmap
import os
import random
import shutil
import struct
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from enum import IntEnum, IntFlag
from pathlib import Path
from typing import Literal

SECTOR_BYTES = 512
SOURCE = Path(__file__).with_name("fault_disk.c")
_CONTROL = struct.Struct("<qQIIiiiII32s")
_RECORD = struct.Struct("<BBHHHQqQ")

Survival = Literal["everything", "nothing", "prefix", "subset", "noise"]
"""Which unsynced writes survive: all, none, the first ones and a torn last one, any sectors, any sectors with noise in the gaps."""
SURVIVALS: tuple[Survival, ...] = ("nothing", "prefix", "subset", "noise")


def compiler() -> str | None:
    """The machine's C compiler, if it has one."""
    return next((found for name in ("cc", "gcc", "clang") if (found := shutil.which(name))), None)


def build_layer(directory: Path) -> Path:
    """Compile fault_disk.c into `directory`. Raises CalledProcessError with the compiler's words on stderr."""
    found = compiler()
    assert found is not None, "there is no C compiler"
    library = directory / "fault_disk.so"
    flags = ["-std=gnu11", "-O2", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC", "-fvisibility=hidden"]
    subprocess.run([found, *flags, "-o", str(library), str(SOURCE), "-lpthread"], check=True)
    return library


class Operation(IntEnum):
    """What a record says (enum operation in fault_disk.c)."""

    CREATE = 1
    WRITE = 2
    TRUNCATE = 3
    SYNC = 4
    SYNC_FAILED = 5
    RENAME = 6
    LINK = 7
    UNLINK = 8
    MKDIR = 9
    RMDIR = 10
    SYNC_DIRECTORY = 11


class OperationClass(IntFlag):
    """What a fault hits."""

    WRITE = 1
    SYNC = 2
    NAME = 4
    READ = 8


class Action(IntEnum):
    """What happens to an operation that is hit. KILL: it may have been carried out in part; STOP: the process died before it."""

    NONE = 0
    KILL = 1
    FAIL = 2
    SHORT = 3
    STOP = 4


class Control:
    """The page through which a running process's faults are armed."""

    def __init__(self, path: Path) -> None:
        path.write_bytes(b"\x00" * _CONTROL.size)
        self.path = path
        with path.open("r+b") as file:
            self._page = mmap.mmap(file.fileno(), _CONTROL.size)

    def arm(
        self, action: Action, classes: OperationClass, countdown: int, *, error: int = 0, repeat: int = 1, suffix: str = ""
    ) -> None:
        """Hit the operation after the next `countdown` that match, and `repeat` in all (-1: every one from then on)."""
        struct.pack_into("<I", self._page, 16, Action.NONE)
        struct.pack_into("<IiiiI", self._page, 20, classes, countdown, error, repeat, 0)
        struct.pack_into("<32s", self._page, 44, suffix.encode())
        struct.pack_into("<I", self._page, 16, action)

    def disarm(self) -> None:
        """Let everything through."""
        struct.pack_into("<I", self._page, 16, Action.NONE)

    def reset(self) -> None:
        """Forget what the last process left here, armed faults included; the clock stays."""
        struct.pack_into("<IIiiiII32s", self._page, 16, Action.NONE, 0, 0, 0, 0, 0, 0, b"")

    def step_clock(self, offset_ns: int) -> None:
        """Set the wall clock this far from the real one."""
        struct.pack_into("<q", self._page, 0, offset_ns)

    @property
    def fired(self) -> int:
        """How many operations were hit since the last `arm`."""
        return int(struct.unpack_from("<I", self._page, 36)[0])

    @property
    def busy(self) -> bool:
        """Whether the process is in the middle of an operation."""
        return bool(struct.unpack_from("<I", self._page, 40)[0])

    def close(self) -> None:
        self._page.close()


@dataclass(slots=True)
class _File:
    """What is on the disk, what the process sees, and every version that sectors and length had since the last fsync."""

    durable: bytearray
    current: bytearray
    sizes: list[int] = field(default_factory=list)
    versions: dict[int, list[bytes]] = field(default_factory=dict)
    """By sector number, each SECTOR_BYTES long."""
    order: list[int] = field(default_factory=list)
    """Sector numbers in the order in which they were written."""

    def write(self, offset: int, data: bytes) -> None:
        end = offset + len(data)
        if len(self.current) < offset:
            self.current.extend(bytes(offset - len(self.current)))
        self.current[offset:end] = data
        self._note(offset, end)

    def truncate(self, size: int) -> None:
        before = len(self.current)
        del self.current[size:]
        self.current.extend(bytes(size - len(self.current)))
        self._note(min(size, before), max(size, before))

    def _note(self, begin: int, end: int) -> None:
        self.sizes.append(len(self.current))
        for sector in range(begin // SECTOR_BYTES, (end + SECTOR_BYTES - 1) // SECTOR_BYTES):
            now = bytes(self.current[sector * SECTOR_BYTES : (sector + 1) * SECTOR_BYTES])
            self.versions.setdefault(sector, []).append(now.ljust(SECTOR_BYTES, b"\x00"))
            self.order.append(sector)

    def left(self, survival: Survival, chance: random.Random) -> bytearray:
        """What a power cut leaves."""
        if survival == "nothing" or not self.sizes:
            return bytearray(self.durable)
        taken: dict[int, bytes] = {}
        if survival == "everything":
            size = self.sizes[-1]
            taken = {sector: contents[-1] for sector, contents in self.versions.items()}
        elif survival == "prefix":
            reached = chance.randint(0, len(self.order))
            seen: dict[int, int] = {}
            for sector in self.order[:reached]:
                seen[sector] = seen.get(sector, -1) + 1
                taken[sector] = self.versions[sector][seen[sector]]
            size = chance.choice([len(self.durable), *self.sizes])
        else:
            share = chance.choice((0.1, 0.5, 0.9))
            taken = {sector: chance.choice(contents) for sector, contents in self.versions.items() if chance.random() < share}
            size = chance.choice([len(self.durable), self.sizes[-1], chance.choice(self.sizes)])
        content = bytearray(self.durable[:size].ljust(size, b"\x00"))
        for sector in range(len(self.durable) // SECTOR_BYTES, (size + SECTOR_BYTES - 1) // SECTOR_BYTES):
            if survival == "noise" and sector not in taken and chance.random() < 0.5:
                begin = max(sector * SECTOR_BYTES, len(self.durable))
                content[begin : (sector + 1) * SECTOR_BYTES] = chance.randbytes((sector + 1) * SECTOR_BYTES - begin)
        for sector, data in taken.items():
            begin = sector * SECTOR_BYTES
            content[begin : begin + SECTOR_BYTES] = data[: max(0, size - begin)]
        del content[size:]
        return content

    def sync(self, survival: Survival, chance: random.Random) -> None:
        self.durable = self.left(survival, chance)
        self.sizes.clear()
        self.versions.clear()
        self.order.clear()


@dataclass(slots=True)
class _Directory:
    durable: dict[str, _File | _Directory] = field(default_factory=dict)
    now: dict[str, _File | _Directory] = field(default_factory=dict)
    changes: list[tuple[str | None, str, _File | _Directory | None]] = field(default_factory=list)
    """(name that goes, name that changes, what it stands for from then on)."""

    def change(self, gone: str | None, name: str, to: _File | _Directory | None) -> None:
        self.changes.append((gone, name, to))
        _apply(self.now, gone, name, to)

    def left(self, survival: Survival, chance: random.Random) -> dict[str, _File | _Directory]:
        names = dict(self.durable)
        if survival == "nothing":
            return names
        kept = self.changes
        if survival == "prefix":
            kept = kept[: chance.randint(0, len(kept))]
        elif survival != "everything":
            kept = [change for change in kept if chance.random() < 0.5]
        for change in kept:
            _apply(names, *change)
        return names


def _apply(names: dict[str, _File | _Directory], gone: str | None, name: str, to: _File | _Directory | None) -> None:
    if gone is not None and names.get(gone) is to:
        del names[gone]
    if to is None:
        names.pop(name, None)
    else:
        names[name] = to


@dataclass(frozen=True, slots=True)
class Record:
    """One operation of the process."""

    operation: Operation
    in_flight: bool
    inode: int
    path: Path
    other: Path
    offset: int
    data: bytes


def read_journal(path: Path) -> Iterator[Record]:
    """Operations in order. A record that the end of the process cut off did not happen."""
    content = path.read_bytes() if path.exists() else b""
    position = 0
    while position + _RECORD.size <= len(content):
        operation, in_flight, path_bytes, other_bytes, _, inode, offset, data_bytes = _RECORD.unpack_from(content, position)
        position += _RECORD.size
        end = position + path_bytes + other_bytes + data_bytes
        if end > len(content):
            return
        first, second = position + path_bytes, position + path_bytes + other_bytes
        name, other = os.fsdecode(content[position:first]), os.fsdecode(content[first:second])
        yield Record(Operation(operation), bool(in_flight), inode, Path(name), Path(other), offset, content[second:end])
        position = end


class FaultDisk:
    """A directory whose every file is durable when the layer's process starts, and what that process then did to it."""

    def __init__(self, root: Path, layer: Path, scratch: Path) -> None:
        """Watch `root`. `scratch` gets journal and control page; it belongs on a file system in memory."""
        self.root = root.resolve()
        self._layer = layer
        self._journal = scratch / "journal"
        self.control = Control(scratch / "control")
        self._before: _Directory | None = None
        self._inodes: dict[int, _File] = {}
        self._in_flight = False

    def begin(self) -> Mapping[str, str]:
        """Take what is on the disk for durable. Returns what the process needs in its environment."""
        self._journal.unlink(missing_ok=True)
        self.control.disarm()
        self._inodes = {}
        self._before = self._scan(self.root)
        return self.go_on()

    def go_on(self) -> Mapping[str, str]:
        """Watch one more process without a power cut before it: what the last one left unsynced still is."""
        self.control.reset()
        return {
            "LD_PRELOAD": str(self._layer),
            "FAULT_DISK_WATCH": str(self.root),
            "FAULT_DISK_JOURNAL": str(self._journal),
            "FAULT_DISK_CONTROL": str(self.control.path),
        }

    def operations(self) -> int:
        """How many operations the process has had recorded."""
        return sum(1 for _ in read_journal(self._journal))

    def cut_power(self, survival: Survival, chance: random.Random) -> None:
        """Put what a power cut leaves in the place of what is there. The process must be gone.

        Raises AssertionError when the files are not what the journal says: the process found a way around the layer.
        """
        tree = self._replay(chance)
        if not self._in_flight:
            differences = list(self._compare(tree, self.root))
            assert not differences, differences
        shutil.rmtree(self.root)
        self._write(tree, self.root, survival, chance)

    def close(self) -> None:
        self.control.close()

    def _scan(self, path: Path) -> _Directory:
        directory = _Directory()
        for child in sorted(path.iterdir()):
            if child.is_dir():
                directory.durable[child.name] = self._scan(child)
            elif not child.name.endswith("-shm"):
                content = child.read_bytes()
                directory.durable[child.name] = self._inodes[child.stat().st_ino] = _File(bytearray(content), bytearray(content))
        directory.now = dict(directory.durable)
        return directory

    def _replay(self, chance: random.Random) -> _Directory:
        """Run the journal over the state of `begin`."""
        assert self._before is not None
        root, self._before = self._before, None
        self._in_flight = False
        for record in read_journal(self._journal):
            self._in_flight |= record.in_flight
            if record.in_flight and chance.random() < 0.5:
                continue
            self._do(root, record, chance)
        return root

    def _do(self, root: _Directory, record: Record, chance: random.Random) -> None:
        match record.operation:
            case Operation.CREATE:
                file = self._inodes[record.inode] = _File(bytearray(), bytearray())
                self._parent(root, record.path).change(None, record.path.name, file)
            case Operation.WRITE:
                self._inodes[record.inode].write(record.offset, record.data)
            case Operation.TRUNCATE:
                self._inodes[record.inode].truncate(record.offset)
            case Operation.SYNC:
                self._inodes[record.inode].sync("everything", chance)
            case Operation.SYNC_FAILED if record.offset == 1:
                self._inodes[record.inode].sync(chance.choice(SURVIVALS), chance)
            case Operation.SYNC_FAILED:
                directory = self._directory(root, record.path)
                directory.durable, directory.changes = directory.left(chance.choice(SURVIVALS), chance), []
            case Operation.SYNC_DIRECTORY:
                directory = self._directory(root, record.path)
                directory.durable, directory.changes = dict(directory.now), []
            case Operation.RENAME:
                source, target = self._parent(root, record.path), self._parent(root, record.other)
                assert source is target, "a rename across directories is not modelled"
                target.change(record.path.name, record.other.name, source.now[record.path.name])
            case Operation.LINK:
                named = self._parent(root, record.path).now[record.path.name]
                self._parent(root, record.other).change(None, record.other.name, named)
            case Operation.UNLINK | Operation.RMDIR:
                self._parent(root, record.path).change(None, record.path.name, None)
            case Operation.MKDIR:
                self._parent(root, record.path).change(None, record.path.name, _Directory())

    def _parent(self, root: _Directory, path: Path) -> _Directory:
        return self._directory(root, path.parent)

    def _directory(self, root: _Directory, path: Path) -> _Directory:
        directory = root
        for part in path.relative_to(self.root).parts:
            child = directory.now[part]
            assert isinstance(child, _Directory)
            directory = child
        return directory

    def _write(self, directory: _Directory, path: Path, survival: Survival, chance: random.Random) -> None:
        path.mkdir(mode=0o700)
        for name, child in directory.left(survival, chance).items():
            if isinstance(child, _Directory):
                self._write(child, path / name, survival, chance)
            else:
                with open(os.open(path / name, os.O_WRONLY | os.O_CREAT, 0o600), "wb") as file:
                    file.write(child.left(survival, chance))
                if name.endswith(".db") and survival == "noise" and chance.random() < 0.5:
                    (path / f"{name}-shm").write_bytes(chance.randbytes(32768))

    def _compare(self, directory: _Directory, path: Path) -> Iterator[str]:
        present = {child.name for child in path.iterdir() if not child.name.endswith("-shm")}
        yield from (f"{path / name} is not what the journal says" for name in present ^ set(directory.now))
        for name in present & set(directory.now):
            child = directory.now[name]
            if isinstance(child, _Directory):
                yield from self._compare(child, path / name)
            elif child.current != (path / name).read_bytes():
                yield f"{path / name} has not the bytes that the journal says"
