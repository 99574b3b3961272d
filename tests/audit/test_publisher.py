"""Publishing: what is in the sink is a correct log at every moment, whatever happens on the way."""

from __future__ import annotations

import asyncio
import random
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import closing
from pathlib import Path

import pytest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from tile_harness import ORIGIN, GrowingLog, files_of, strict_walk

from lionrock.audit.failures import SinkFailed, StoreFailed, TileConflict
from lionrock.audit.publisher import LogPublisher
from lionrock.audit.publishing import TilePublishing
from lionrock.audit.store.sqlite import SqliteLogStore
from lionrock.audit.tile_sinks import DirectorySink
from lionrock.tlog.merkle import leaf_hash
from lionrock.tlog.tiles import Tile


@pytest.fixture
def store(tmp_path: Path) -> Iterator[SqliteLogStore]:
    with closing(SqliteLogStore(tmp_path / "audit.db")) as opened:
        yield opened


@pytest.fixture
def log(store: SqliteLogStore) -> GrowingLog:
    return GrowingLog(store)


@pytest.fixture
def sink(tmp_path: Path) -> Iterator[DirectorySink]:
    with closing(DirectorySink(tmp_path / "tiles")) as opened:
        yield opened


@pytest.fixture
def tiles(tmp_path: Path) -> Path:
    return tmp_path / "tiles" / ORIGIN


def publish_on(publisher: LogPublisher) -> None:
    while publisher.step():
        pass


def publish(log: GrowingLog, sink: DirectorySink) -> None:
    publisher = LogPublisher(log.published(), log.store, sink)
    publish_on(publisher)
    assert publisher.behind == 0


def all_leaves(log: GrowingLog) -> list[bytes]:
    return [log.leaf(index) for index in range(log.head.size)]


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with a log of 66,001 leaves: three levels of tiles."""
    path = tmp_path_factory.mktemp("large") / "audit.db"
    with closing(SqliteLogStore(path)) as store:
        GrowingLog(store).grow(66_001)
    return path


@pytest.fixture
def large_log(large: Path, tmp_path: Path) -> Iterator[GrowingLog]:
    shutil.copy(large, tmp_path / "large.db")
    with closing(SqliteLogStore(tmp_path / "large.db")) as opened:
        yield GrowingLog(opened)


def test_a_log_with_three_levels_of_tiles_is_published_whole(large_log: GrowingLog, sink: DirectorySink, tiles: Path) -> None:
    publish(large_log, sink)
    leaves = all_leaves(large_log)
    present = {str(path.relative_to(tiles)): path.read_bytes() for path in tiles.rglob("*") if path.is_file()}
    assert present.pop("checkpoint") == large_log.head.checkpoint.encode()
    assert present == files_of(66_001, leaves)


@pytest.mark.parametrize("size", [0, 1, 255, 256, 257, 600, 4096])
def test_a_log_that_exists_is_published_whole(log: GrowingLog, sink: DirectorySink, tiles: Path, size: int) -> None:
    log.grow(size)
    publish(log, sink)
    leaves = all_leaves(log)
    present = {str(path.relative_to(tiles)): path.read_bytes() for path in tiles.rglob("*") if path.is_file()}
    assert present.pop("checkpoint") == log.head.checkpoint.encode()
    assert present == files_of(size, leaves)
    assert strict_walk(tiles, log.key, leaves) == size


def test_growth_is_published_step_by_step_and_earlier_partial_tiles_stay_until_the_full_one_is_there(
    log: GrowingLog, sink: DirectorySink, tiles: Path
) -> None:
    publisher = LogPublisher(log.published(), log.store, sink)
    chance = random.Random(5)
    sizes: list[int] = []
    while log.head.size < 3000:
        log.grow(chance.choice([1, 2, 100, 255, 256, 257, 700]))
        publish_on(publisher)
        sizes.append(log.head.size)
        assert strict_walk(tiles, log.key, all_leaves(log)) == log.head.size
    for size in sizes:
        for name in files_of(size, all_leaves(log)):
            tile = Tile.parse(name)
            full = (tiles / tile.full_name).exists()
            assert full or (tiles / name).exists()
            assert tile.full or not full or not (tiles / tile.partial_prefix).exists()


def test_nothing_is_read_or_written_when_nothing_has_grown(log: GrowingLog, sink: DirectorySink, tiles: Path) -> None:
    log.grow(300)
    publish(log, sink)
    before = {path: path.stat().st_mtime_ns for path in tiles.rglob("*")}
    publish(log, sink)
    assert {path: path.stat().st_mtime_ns for path in tiles.rglob("*")} == before


def test_a_checkpoint_of_the_same_tree_with_more_signatures_replaces_the_published_one(
    log: GrowingLog, sink: DirectorySink, tiles: Path
) -> None:
    log.grow(3)
    publish(log, sink)
    cosigned = log.head.checkpoint + "— witness.example+w1 AAAAAAAA\n".replace("+w1", "/w1")
    log.head = type(log.head)(log.head.size, log.head.root, cosigned)
    publish(log, sink)
    assert (tiles / "checkpoint").read_text(encoding="utf-8") == cosigned


def test_the_checkpoint_comes_after_everything_under_it(log: GrowingLog, tmp_path: Path) -> None:
    order: list[str] = []

    class Watched(DirectorySink):
        def add(self, files: Mapping[str, bytes]) -> None:
            super().add(files)
            order.extend(files)

        def replace(self, name: str, content: bytes, expected: bytes | None) -> None:
            order.append(name)
            super().replace(name, content, expected)

    log.grow(600)
    with closing(Watched(tmp_path / "tiles")) as sink:
        publish(log, sink)
    assert order[-1] == f"{ORIGIN}/checkpoint"
    assert order.count(order[-1]) == 1


@pytest.mark.parametrize("name", ["tile/0/000", "tile/entries/001", "tile/1/000.p/2", "tile/entries/002.p/88"])
def test_a_published_file_with_other_bytes_stops_publishing_and_is_left_as_it_is(
    log: GrowingLog, sink: DirectorySink, tiles: Path, name: str
) -> None:
    log.grow(600)
    changed = tiles / name
    changed.parent.mkdir(parents=True)
    changed.write_bytes(b"other bytes")
    publisher = LogPublisher(log.published(), log.store, sink)
    with pytest.raises(TileConflict, match=name):
        publish_on(publisher)
    assert changed.read_bytes() == b"other bytes"
    assert not (tiles / "checkpoint").exists()


def test_a_store_that_was_rolled_back_publishes_nothing_over_the_longer_log(
    log: GrowingLog, sink: DirectorySink, tmp_path: Path, tiles: Path
) -> None:
    log.grow(40)
    publish(log, sink)
    with closing(SqliteLogStore(tmp_path / "older.db")) as store:
        older = GrowingLog(store)
        older.grow(20)
        with pytest.raises(TileConflict, match="rolled back"):
            publish(older, sink)
    assert strict_walk(tiles, log.key, all_leaves(log)) == 40


def test_while_the_world_may_have_less_than_is_published_nothing_is_done(log: GrowingLog, sink: DirectorySink, tiles: Path) -> None:
    publisher = LogPublisher(log.published(), log.store, sink)
    log.grow(20)
    attested = log.head
    log.grow(20)
    publish_on(publisher)
    later, log.head = log.head, attested
    publish_on(publisher)
    publish(log, sink)
    assert (tiles / "checkpoint").read_text(encoding="utf-8") == later.checkpoint
    log.head = later
    log.grow(300)
    publish_on(publisher)
    assert strict_walk(tiles, log.key, all_leaves(log)) == 340


def test_a_store_with_another_history_publishes_nothing(log: GrowingLog, sink: DirectorySink, tmp_path: Path, tiles: Path) -> None:
    log.grow(20)
    publish(log, sink)
    published = (tiles / "checkpoint").read_bytes()

    class Other(GrowingLog):
        def leaf(self, index: int) -> bytes:
            return b"another history"

    with closing(SqliteLogStore(tmp_path / "other.db")) as store:
        other = Other(store)
        other.grow(30)
        with pytest.raises(TileConflict, match="another history"):
            publish(other, sink)
    assert (tiles / "checkpoint").read_bytes() == published


@pytest.mark.parametrize("content", [b"", b"\xff\n\n", b"no checkpoint\n\n", b"audit.example.hk/audit/broker\n0\n%s\n\n"])
def test_a_published_checkpoint_that_is_none_of_this_log_stops_publishing(
    log: GrowingLog, sink: DirectorySink, tiles: Path, content: bytes
) -> None:
    tiles.mkdir(parents=True)
    (tiles / "checkpoint").write_bytes(content.replace(b"%s", b"47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU="))
    with pytest.raises(TileConflict, match=r"is not one|another log"):
        publish(log, sink)


@pytest.mark.parametrize("leaf", [0, 255, 256, 65_535, 66_000])
def test_a_leaf_that_was_changed_in_the_store_is_never_published(
    large_log: GrowingLog, sink: DirectorySink, tiles: Path, leaf: int
) -> None:
    assert isinstance(large_log.store, SqliteLogStore)
    large_log.store._writer.execute("UPDATE leaves SET data = ? WHERE leaf_index = ?", (b"changed", leaf))
    with pytest.raises(StoreFailed, match=f"leaf {leaf} "):
        publish(large_log, sink)
    assert not (tiles / Tile(None, leaf // 256, 256).name).exists()
    assert not (tiles / "checkpoint").exists()


def test_a_leaf_that_was_changed_with_its_hash_is_never_published(
    log: GrowingLog, sink: DirectorySink, store: SqliteLogStore, tiles: Path
) -> None:
    log.grow(1000)
    changed = b"changed with its hash"
    store._writer.execute("UPDATE leaves SET data = ?, subtree_hashes = ? WHERE leaf_index = 600", (changed, leaf_hash(changed)))
    with pytest.raises(StoreFailed, match="as stored"):
        publish(log, sink)
    assert not (tiles / "tile/0/002").exists()
    assert not (tiles / "checkpoint").exists()


class FailingSink(DirectorySink):
    """Refuses one of its calls, before or after it has worked, as a full disk or a cut connection does."""

    def __init__(self, root: Path, at: int, *, after: bool) -> None:
        super().__init__(root)
        self.calls, self._at, self._after = 0, at, after

    def _maybe(self, after: bool) -> None:
        self.calls += after
        if self.calls == self._at and after is self._after:
            self._at = -1
            raise SinkFailed("the connection was cut")

    def add(self, files: Mapping[str, bytes]) -> None:
        self._maybe(False)
        super().add(files)
        self._maybe(True)

    def replace(self, name: str, content: bytes, expected: bytes | None) -> None:
        self._maybe(False)
        super().replace(name, content, expected)
        self._maybe(True)


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("at", range(7))
def test_a_sink_that_fails_at_any_call_is_gone_on_with(log: GrowingLog, tmp_path: Path, tiles: Path, at: int, after: bool) -> None:
    with closing(FailingSink(tmp_path / "tiles", at, after=after)) as sink:
        publisher = LogPublisher(log.published(), log.store, sink)
        failures = 0
        for growth in (300, 4500, 10):
            log.grow(growth)
            while True:
                try:
                    if not publisher.step():
                        break
                except TileConflict:
                    raise
                except SinkFailed:
                    failures += 1
                strict_walk(tiles, log.key, all_leaves(log))
        assert failures <= 1
        assert strict_walk(tiles, log.key, all_leaves(log)) == log.head.size == 4810


async def test_all_logs_are_published_and_a_conflict_in_one_holds_no_other_up(store: SqliteLogStore, tmp_path: Path) -> None:
    logs = [GrowingLog(store, f"audit.example.hk/audit/{tenant}") for tenant in ("bank", "broker", "insurer")]
    platform = GrowingLog(store, "audit.example.hk/audit")
    for each in (*logs, platform):
        each.grow(5000)
    wrong = tmp_path / "tiles" / logs[1].origin / "tile/0/007"
    wrong.parent.mkdir(parents=True)
    wrong.write_bytes(b"other")
    published = [each.published() for each in (*logs, platform)]
    publishing = TilePublishing(published, store, lambda: DirectorySink(tmp_path / "tiles"), interval_s=0.01)
    await publishing.publish()
    assert list(publishing.alarms) == [logs[1].origin]
    assert "tile/0/007" in publishing.alarms[logs[1].origin]
    for each in (logs[0], logs[2]):
        assert strict_walk(tmp_path / "tiles" / each.origin, each.key, [each.leaf(i) for i in range(5000)]) == 5000
    assert (tmp_path / "tiles" / platform.origin / "checkpoint").read_text(encoding="utf-8") == platform.head.checkpoint
    assert not (tmp_path / "tiles" / logs[1].origin / "checkpoint").exists()
    await publishing.close()


def alarms_by_log(reader: InMemoryMetricReader) -> dict[str, float]:
    data = reader.get_metrics_data()
    assert data is not None
    (metric,) = [each for each in data.resource_metrics[0].scope_metrics[0].metrics if each.name == "lionrock.audit.tiles.alarms"]
    return {point.attributes["lionrock.log"]: point.value for point in metric.data.data_points}  # type: ignore[union-attr,index]


async def test_an_alarm_is_a_metric_and_an_event_that_is_repeated_every_hour(
    store: SqliteLogStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    reader = InMemoryMetricReader()
    provider = MeterProvider([reader])
    monkeypatch.setattr("lionrock.audit.publishing.meter", lambda: provider.get_meter("test"))
    good, bad = (GrowingLog(store, f"audit.example.hk/audit/{tenant}") for tenant in ("bank", "broker"))
    for each in (good, bad):
        each.grow(300)
    wrong = tmp_path / "tiles" / bad.origin / "tile/0/000"
    wrong.parent.mkdir(parents=True)
    wrong.write_bytes(b"other")
    now_s = 0.0
    publishing = TilePublishing(
        [good.published(), bad.published()],
        store,
        lambda: DirectorySink(tmp_path / "tiles"),
        interval_s=0.01,
        monotonic=lambda: now_s,
    )
    for at_s, told in ((0, 1), (3599, 1), (3601, 2), (3602, 2)):
        now_s = at_s
        await publishing.publish()
        events = [record for record in caplog.records if "contradict the store" in record.message]
        assert [(vars(event)["log"], event.levelname) for event in events] == [(bad.origin, "ERROR")] * told
        assert "tile/0/000" in vars(events[0])["why"]
    assert alarms_by_log(reader) == {good.origin: 0, bad.origin: 1}
    await publishing.close()
    provider.shutdown()


async def test_a_defect_does_not_end_publishing(log: GrowingLog, tmp_path: Path, tiles: Path) -> None:
    class Defective(DirectorySink):
        calls = 0

        def add(self, files: Mapping[str, bytes]) -> None:
            Defective.calls += 1
            if Defective.calls == 1:
                raise RuntimeError("a defect")
            super().add(files)

    log.grow(300)
    publishing = TilePublishing([log.published()], log.store, lambda: Defective(tmp_path / "tiles"), interval_s=60)
    await publishing.publish()
    assert publishing.failing == {ORIGIN: "publishing failed with RuntimeError"}
    await publishing.publish()
    assert not publishing.failing
    await publishing.close()
    assert strict_walk(tiles, log.key, all_leaves(log)) == 300


async def test_a_sink_that_another_process_holds_is_waited_for(log: GrowingLog, tmp_path: Path, tiles: Path) -> None:
    log.grow(3)
    publishing = TilePublishing([log.published()], log.store, lambda: DirectorySink(tmp_path / "tiles"), interval_s=0.01)
    with closing(DirectorySink(tmp_path / "tiles")):
        await publishing.publish()
        assert "another process" in publishing.failing[ORIGIN]
    async with publishing:
        for growth in (0, 300):
            log.grow(growth)
            async with asyncio.timeout(20):
                while not (tiles / "checkpoint").exists() or (tiles / "checkpoint").read_text() != log.head.checkpoint:  # noqa: ASYNC110
                    await asyncio.sleep(0.005)
    assert not publishing.failing
    assert strict_walk(tiles, log.key, all_leaves(log)) == 303
    DirectorySink(tmp_path / "tiles").close()


@pytest.mark.parametrize("seed", [11, 12])
def test_a_publisher_that_is_killed_at_any_moment_leaves_a_correct_log(tmp_path: Path, seed: int) -> None:
    program = Path(__file__).with_name("publisher_kills.py")
    arguments = [sys.executable, str(program), "--rounds", "25", "--seed", str(seed), "--directory", str(tmp_path)]
    done = subprocess.run(arguments, check=False, timeout=100, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_an_emptied_directory_is_filled_again_from_the_store(log: GrowingLog, tmp_path: Path, tiles: Path) -> None:
    log.grow(700)
    for _ in range(2):
        with closing(DirectorySink(tmp_path / "tiles")) as sink:
            publish(log, sink)
        assert strict_walk(tiles, log.key, all_leaves(log)) == 700
        shutil.rmtree(tmp_path / "tiles")
