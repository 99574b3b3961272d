"""What every TileSink does. A new sink joins `SINKS` and has to pass as it is."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path

import pytest
from tile_harness import Bucket, start_bucket

from lionrock.audit import tile_sinks
from lionrock.audit.failures import SinkFailed, TileConflict
from lionrock.audit.tile_bucket import BucketSink
from lionrock.audit.tile_sinks import DirectorySink, TileSink
from models import Unavailable

OpenSink = Callable[[], TileSink]


@pytest.fixture(scope="module")
def bucket(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bucket]:
    with ExitStack() as stack:
        try:
            yield stack.enter_context(start_bucket(tmp_path_factory.mktemp("s3")))
        except Unavailable as error:
            pytest.skip(str(error))


@pytest.fixture(params=["directory", "bucket"])
def open_sink(request: pytest.FixtureRequest, tmp_path: Path) -> OpenSink:
    if request.param == "directory":
        return lambda: DirectorySink(tmp_path / "tiles")
    site: Bucket = request.getfixturevalue("bucket")
    return lambda: BucketSink(site.store(), tmp_path.name)


@pytest.fixture
def sink(open_sink: OpenSink) -> Iterator[TileSink]:
    with closing(open_sink()) as opened:
        yield opened


def test_what_was_added_is_there_for_the_next_one(open_sink: OpenSink) -> None:
    files = {
        "log/tile/0/000": b"\x00" * 8192,
        "log/tile/entries/000": b"",
        "log/tile/0/001.p/7": b"seven",
        "log/checkpoint": b"one",
    }
    with closing(open_sink()) as sink:
        assert sink.read("log/tile/0/000") is None
        sink.add(files)
    with closing(open_sink()) as sink:
        assert {name: sink.read(name) for name in files} == files


def test_a_file_is_added_again_with_the_same_bytes_and_never_with_others(sink: TileSink) -> None:
    sink.add({"log/tile/0/000": b"one"})
    sink.add({"log/tile/0/000": b"one", "log/tile/0/001": b"two"})
    with pytest.raises(TileConflict, match=r"log/tile/0/001"):
        sink.add({"log/tile/0/000": b"one", "log/tile/0/001": b"other"})
    assert sink.read("log/tile/0/001") == b"two"


def test_a_checkpoint_is_swapped_only_over_the_one_that_was_read(sink: TileSink) -> None:
    sink.replace("log/checkpoint", b"one", None)
    sink.replace("log/checkpoint", b"two", b"one")
    for expected in (None, b"one"):
        with pytest.raises(TileConflict):
            sink.replace("log/checkpoint", b"three", expected)
    assert sink.read("log/checkpoint") == b"two"
    with pytest.raises(TileConflict):
        sink.replace("other/checkpoint", b"one", b"something")
    assert sink.read("other/checkpoint") is None


def test_removing_partial_tiles_leaves_the_full_one_and_its_neighbours(sink: TileSink) -> None:
    kept = {"log/tile/0/000": b"full", "log/tile/0/001.p/1": b"neighbour"}
    sink.add({**kept, "log/tile/0/000.p/1": b"1", "log/tile/0/000.p/255": b"255"})
    sink.remove_below("log/tile/0/000.p/")
    sink.remove_below("log/tile/0/000.p/")
    assert sink.read("log/tile/0/000.p/1") is None
    assert sink.read("log/tile/0/000.p/255") is None
    assert {name: sink.read(name) for name in kept} == kept


@pytest.mark.parametrize("name", ["", "/log", "log/", "log//tile", "../log", "log/../../x", "log/.", ".lock", "log/.hidden"])
def test_a_name_cannot_lead_out_of_the_sink(sink: TileSink, name: str) -> None:
    for use in (lambda: sink.read(name), lambda: sink.add({name: b""}), lambda: sink.replace(name, b"", None)):
        with pytest.raises(ValueError, match="tile sink"):
            use()


def test_a_directory_has_one_publisher(tmp_path: Path) -> None:
    with closing(DirectorySink(tmp_path)), pytest.raises(SinkFailed, match="another process publishes"):
        DirectorySink(tmp_path)
    DirectorySink(tmp_path).close()


@pytest.mark.parametrize(
    ("readers", "directory_mode", "file_mode"), [("owner", 0o700, 0o400), ("group", 0o750, 0o440), ("all", 0o755, 0o444)]
)
def test_others_may_read_as_settings_say_and_nobody_may_write(
    tmp_path: Path, readers: tile_sinks.Readers, directory_mode: int, file_mode: int
) -> None:
    with closing(DirectorySink(tmp_path / "tiles", readers=readers)) as sink:
        sink.add({"log/tile/0/000": b"one"})
        sink.replace("log/checkpoint", b"one", None)
        sink.replace("log/checkpoint", b"two", b"one")
    for directory in ("", "log", "log/tile", "log/tile/0"):
        assert (tmp_path / "tiles" / directory).stat().st_mode & 0o777 == directory_mode
    for file in ("log/tile/0/000", "log/checkpoint"):
        assert (tmp_path / "tiles" / file).stat().st_mode & 0o777 == file_mode


def test_drafts_of_a_killed_publisher_are_removed_at_the_next_start(tmp_path: Path) -> None:
    program = f"""
import os
from pathlib import Path
from lionrock.audit.tile_sinks import DirectorySink
sink = DirectorySink(Path({str(tmp_path)!r}))
os.link = lambda *_: os.kill(os.getpid(), 9)
sink.add({{"log/tile/0/000": b"never named"}})
"""
    assert subprocess.run([sys.executable, "-c", program], check=False, timeout=60).returncode == -9
    assert list((tmp_path / ".drafts").iterdir())
    with closing(DirectorySink(tmp_path)) as sink:
        assert not list((tmp_path / ".drafts").iterdir())
        assert sink.read("log/tile/0/000") is None


def test_after_a_failed_fsync_nothing_is_written_until_restart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.fsync
    with closing(DirectorySink(tmp_path)) as sink:

        def fails(descriptor: int) -> None:
            raise OSError(5, "Input/output error")

        monkeypatch.setattr(os, "fsync", fails)
        with pytest.raises(SinkFailed, match="until restart"):
            sink.add({"log/tile/0/000": b"one"})
        monkeypatch.setattr(os, "fsync", real)
        for use in (lambda: sink.add({"log/tile/0/001": b"two"}), lambda: sink.replace("log/checkpoint", b"", None)):
            with pytest.raises(SinkFailed, match="until restart"):
                use()
        assert sink.read("log/tile/0/000") is None
    with closing(DirectorySink(tmp_path)) as sink:
        sink.add({"log/tile/0/000": b"one"})


def test_a_full_disk_is_named_and_tried_again_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.open
    with closing(DirectorySink(tmp_path)) as sink:

        def full(path: os.PathLike[str], flags: int, mode: int = 0o777) -> int:
            if flags & os.O_CREAT:
                raise OSError(28, "No space left on device")
            return real(path, flags, mode)

        monkeypatch.setattr(os, "open", full)
        with pytest.raises(SinkFailed, match="No space left"):
            sink.add({"log/tile/0/000": b"one"})
        monkeypatch.setattr(os, "open", real)
        sink.add({"log/tile/0/000": b"one"})
        assert sink.read("log/tile/0/000") == b"one"


def test_objects_carry_the_types_and_cache_headers_of_the_specification(bucket: Bucket, tmp_path: Path) -> None:
    with closing(BucketSink(bucket.store(), tmp_path.name)) as sink:
        sink.add({"log/tile/0/000.p/1": b"one"})
        sink.replace("log/checkpoint", b"two", None)
    tile, checkpoint = bucket.headers(f"{tmp_path.name}/log/tile/0/000.p/1"), bucket.headers(f"{tmp_path.name}/log/checkpoint")
    assert (tile["Content-Type"], checkpoint["Content-Type"]) == ("application/octet-stream", "text/plain; charset=utf-8")
    assert "immutable" in tile["Cache-Control"]
    assert checkpoint["Cache-Control"] == "no-cache"


def test_a_store_that_cannot_be_reached_or_does_not_know_the_key_is_named_without_its_secret(bucket: Bucket) -> None:
    with pytest.raises(SinkFailed) as failure:
        BucketSink(bucket.store("wrong-secret"))
    assert "wrong-secret" not in str(failure.value)
