"""What a disk holds after the power was cut while tiles were published: a correct log, whatever of the unsynced it kept.

The model is pessimistic: of a file there is what was fsynced, of a directory the names at its last fsync. Then the checkpoint is
put over it as if the disk had kept that one rename on its own, which a disk may.
"""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from tile_harness import ORIGIN, GrowingLog, strict_walk

from lionrock.audit.publisher import LogPublisher
from lionrock.audit.store.sqlite import SqliteLogStore
from lionrock.audit.tile_sinks import DirectorySink


@dataclass
class Disk:
    """What is surely on the disk below `root`. `names`: by directory, names with their content; None is a directory."""

    root: Path
    contents: dict[int, bytes] = field(default_factory=dict)
    names: dict[Path, dict[str, bytes | None]] = field(default_factory=dict)

    def synced(self, descriptor: int) -> None:
        """Take note of an fsync."""
        path = Path(os.readlink(f"/proc/self/fd/{descriptor}"))
        if not path.is_relative_to(self.root):
            return
        if path.is_dir():
            self.names[path] = {
                entry.name: None if entry.is_dir() else self.contents.get(entry.inode(), b"torn") for entry in os.scandir(path)
            }
        else:
            self.contents[os.fstat(descriptor).st_ino] = path.read_bytes()

    def restore(self, target: Path) -> None:
        """Write what is there after a cut."""
        shutil.rmtree(target, ignore_errors=True)
        target.mkdir()
        waiting = [(self.root, target)]
        while waiting:
            source, copy = waiting.pop()
            for name, content in self.names.get(source, {}).items():
                if content is not None:
                    (copy / name).write_bytes(content)
                else:
                    (copy / name).mkdir()
                    waiting.append((source / name, copy / name))


@pytest.fixture
def disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Disk, list[Callable[[], None]]]]:
    """A disk under tmp_path/tiles, and what is to happen after every fsync."""
    made = Disk(tmp_path / "tiles")
    after: list[Callable[[], None]] = []
    real = os.fsync

    def fsync(descriptor: int) -> None:
        real(descriptor)
        made.synced(descriptor)
        for each in after:
            each()

    monkeypatch.setattr(os, "fsync", fsync)
    return made, after


def test_a_power_cut_after_any_fsync_leaves_a_correct_log_that_is_gone_on_with(
    disk: tuple[Disk, list[Callable[[], None]]], tmp_path: Path
) -> None:
    made, after = disk
    chance = random.Random(4)
    sizes: list[int] = []
    with closing(SqliteLogStore(tmp_path / "audit.db")) as store, closing(DirectorySink(tmp_path / "tiles")) as sink:
        log = GrowingLog(store)
        publisher = LogPublisher(log.published(), store, sink)

        def cut() -> None:
            if chance.random() > 0.3:
                return
            leaves = [log.leaf(index) for index in range(log.head.size)]
            made.restore(tmp_path / "cut")
            sizes.append(strict_walk(tmp_path / "cut" / ORIGIN, log.key, leaves))
            checkpoint = tmp_path / "tiles" / ORIGIN / "checkpoint"
            if checkpoint.exists():
                (tmp_path / "cut" / ORIGIN).mkdir(parents=True, exist_ok=True)
                shutil.copy(checkpoint, tmp_path / "cut" / ORIGIN / "checkpoint")
                strict_walk(tmp_path / "cut" / ORIGIN, log.key, leaves)

        after.append(cut)
        for growth in (1, 30, 300, 1, 700, 2000, 10):
            log.grow(growth)
            while publisher.step():
                pass
        after.clear()
        assert len(sizes) > 20
        assert sizes == sorted(sizes)
        assert len(set(sizes)) > 4
        # Whatever is there after the last cut, a service goes on from it.
        with closing(DirectorySink(tmp_path / "cut")) as rest:
            publisher = LogPublisher(log.published(), store, rest)
            while publisher.step():
                pass
        leaves = [log.leaf(index) for index in range(log.head.size)]
        assert strict_walk(tmp_path / "cut" / ORIGIN, log.key, leaves) == log.head.size


def test_the_model_finds_a_publisher_that_does_not_sync_its_directories(
    disk: tuple[Disk, list[Callable[[], None]]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, _ = disk
    with closing(SqliteLogStore(tmp_path / "audit.db")) as store, closing(DirectorySink(tmp_path / "tiles")) as sink:
        log = GrowingLog(store)
        log.grow(300)
        synced = sink._sync
        monkeypatch.setattr(sink, "_sync", lambda path: None if "tile" in path.relative_to(tmp_path).parts else synced(path))
        publisher = LogPublisher(log.published(), store, sink)
        while publisher.step():
            pass
        made.restore(tmp_path / "cut")
        with pytest.raises(AssertionError, match="missing"):
            strict_walk(tmp_path / "cut" / ORIGIN, log.key, [log.leaf(index) for index in range(300)])
