"""A log in a bucket: published by one service at a time, followed by a monitor that has nothing but the bucket and the key."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path

import obstore
import pytest
from tile_harness import ORIGIN, Bucket, GrowingLog, files_of, start_bucket

from lionrock.audit.failures import TileConflict
from lionrock.audit.monitor import Alarm, LogMonitor
from lionrock.audit.monitor_settings import WatchedLogSettings
from lionrock.audit.publisher import LogPublisher
from lionrock.audit.store.sqlite import SqliteLogStore
from lionrock.audit.tile_bucket import BucketSink
from lionrock.audit.tile_settings import TileSettings, open_sink
from models import Unavailable


@pytest.fixture(scope="module")
def bucket(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bucket]:
    with ExitStack() as stack:
        try:
            yield stack.enter_context(start_bucket(tmp_path_factory.mktemp("s3")))
        except Unavailable as error:
            pytest.skip(str(error))


def settings_of(bucket: Bucket, directory: Path) -> dict[str, str]:
    """Settings of a bucket, with its key in files as secrets are mounted."""
    (directory / "id").write_text(f"{bucket.server.access_key_id}\n", encoding="ascii")
    (directory / "secret").write_text(bucket.server.secret_access_key, encoding="ascii")
    return {
        "endpoint": bucket.server.endpoint,
        "bucket": bucket.name,
        "prefix": directory.name,
        "access_key_id_file": str(directory / "id"),
        "secret_access_key_file": str(directory / "secret"),
        "ca_file": str(bucket.ca_file),
    }


def publish(publisher: LogPublisher) -> None:
    while publisher.step():
        pass


def test_a_log_is_published_into_a_bucket_and_followed_from_there(bucket: Bucket, tmp_path: Path) -> None:
    values = settings_of(bucket, tmp_path)
    with (
        closing(SqliteLogStore(tmp_path / "audit.db")) as store,
        closing(open_sink(TileSettings.model_validate({"bucket": values}))) as sink,
    ):
        log = GrowingLog(store)
        watched = WatchedLogSettings.model_validate({"keys": [str(log.key)], "bucket": values}).watched()
        publisher = LogPublisher(log.published(), store, sink)
        for growth in (0, 1, 299, 400):
            log.grow(growth)
            publish(publisher)
            look = LogMonitor(watched, tmp_path / "seen").look(everything=True)
            assert (look.size, look.findings) == (log.head.size, [])
        listed = [each["path"] for batch in obstore.list(bucket.store(), f"{tmp_path.name}/{ORIGIN}") for each in batch]
        leaves = [log.leaf(index) for index in range(700)]
        assert {path.removeprefix(f"{tmp_path.name}/{ORIGIN}/") for path in listed} == {
            "checkpoint",
            *files_of(700, leaves),
            "tile/1/000.p/1",  # of 300 leaves; the place is not full yet
        }
        name = f"{ORIGIN}/tile/entries/001"
        obstore.put(bucket.store(), f"{tmp_path.name}/{name}", b"other")
        look = LogMonitor(watched, tmp_path / "seen").look(everything=True)
        assert [finding.alarm for finding in look.findings] == [Alarm.CORRUPT]
        with pytest.raises(TileConflict, match="tile/entries/001"):
            sink.add({name: b"the right one"})


def test_of_two_services_that_publish_one_log_the_overtaken_one_stops(bucket: Bucket, tmp_path: Path) -> None:
    with (
        closing(SqliteLogStore(tmp_path / "audit.db")) as store,
        closing(BucketSink(bucket.store(), tmp_path.name)) as first_sink,
        closing(BucketSink(bucket.store(), tmp_path.name)) as second_sink,
    ):
        log = GrowingLog(store)
        first, second = LogPublisher(log.published(), store, first_sink), LogPublisher(log.published(), store, second_sink)
        log.grow(10)
        publish(first)
        log.grow(10)
        publish(second)
        log.grow(10)
        with pytest.raises(TileConflict, match="somebody else"):
            publish(first)
        publish(second)
        assert second_sink.read(f"{ORIGIN}/checkpoint") == log.head.checkpoint.encode()
