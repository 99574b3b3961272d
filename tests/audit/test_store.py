"""What every LogStore does. A new store joins `STORES` and has to pass as it is."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from lionrock.audit.failures import StoreConflict, StoreFailed, StoreHeld
from lionrock.audit.store import LogStore, OpenIntent, StoredLeaf, StoredLog
from lionrock.audit.store.sqlite import SqliteLogStore
from lionrock.tlog.merkle import Frontier, leaf_hash, root_at, subtrees_of

OpenStore = Callable[[], LogStore]


def leaves(count: int, start: int = 0) -> list[StoredLeaf]:
    frontier = Frontier(0, [])
    made = []
    for index in range(start + count):
        data = f"leaf {index}".encode()
        made.append(StoredLeaf(index, f"event-{index}", 1000 + index, frontier.append(leaf_hash(data)), data))
    return made[start:]


def add(store: LogStore, log: StoredLog, count: int) -> None:
    with store.transaction() as transaction:
        transaction.add_leaves(log.log_id, leaves(count))
        transaction.advance(log.log_id, 0, log.root, count, b"\x01" * 32, f"checkpoint {count}")


def test_a_log_is_created_once_and_found_again(open_store: OpenStore) -> None:
    with closing(open_store()) as store:
        assert store.find_log("platform/audit/bank") is None
        created = store.create_log("platform/audit/bank", "key", b"\x00" * 32, "checkpoint")
        with pytest.raises(StoreFailed):
            store.create_log("platform/audit/bank", "key", b"\x00" * 32, "checkpoint")
    with closing(open_store()) as store:
        assert store.find_log("platform/audit/bank") == created
        assert store.next_index(created.log_id) == 0


def test_leaves_come_back_as_they_went_in(store: LogStore, bank: StoredLog) -> None:
    add(store, bank, 20)
    assert store.next_index(bank.log_id) == 20
    assert store.leaf(bank.log_id, 7) == leaves(20)[7]
    assert store.leaf_of_event(bank.log_id, "event-15") == leaves(20)[15]
    assert store.leaf(bank.log_id, 20) is None
    assert store.leaf_of_event(bank.log_id, "event-20") is None
    assert store.leaves(bank.log_id, 5, 9, 1 << 20) == leaves(20)[5:9]
    assert store.leaves(bank.log_id, 18, 99, 1 << 20) == leaves(20)[18:]
    assert store.leaves(bank.log_id, 99, 100, 1 << 20) == []


@pytest.mark.parametrize("count", [1, 2, 16, 17, 31, 32, 33, 100, 128, 129, 300])
def test_a_batch_of_any_size_goes_in_whole_and_its_events_are_found(store: LogStore, bank: StoredLog, count: int) -> None:
    intents = [OpenIntent(index, f"request-{index}") for index in range(count)]
    with store.transaction() as transaction:
        transaction.add_open_intents(bank.log_id, intents)
        transaction.keep_retry_salts(bank.log_id, [(index, 1000 + index, b"%032d" % index) for index in range(count)])
    add(store, bank, count)
    assert store.leaves(bank.log_id, 0, count, 1 << 20) == leaves(count)
    assert store.open_intents(bank.log_id, count, count + 1) == intents
    with store.transaction() as transaction:
        recorded = transaction.leaves_of_events(bank.log_id, [f"event-{index}" for index in range(-3, count + 3)])
        assert recorded == {leaf.event_id: leaf for leaf in leaves(count)}
        assert transaction.leaves_of_events(bank.log_id, [f"event-{count}"] * count) == {}
        assert [transaction.retry_salt(bank.log_id, leaf) for leaf in leaves(count)] == [b"%032d" % index for index in range(count)]


def test_a_store_may_be_closed_twice_and_closes_nothing_of_others(open_store: OpenStore, tmp_path: Path) -> None:
    store = open_store()
    store.close()
    with closing(open_store()) as another, (tmp_path / "a file").open("w") as file:
        store.close()
        file.write("still open")
        with pytest.raises(StoreHeld):
            open_store()
        another.create_log("platform/audit/bank", "key", b"\x00" * 32, "checkpoint")


def test_a_page_ends_at_its_bytes_but_holds_at_least_one_leaf(store: LogStore, bank: StoredLog) -> None:
    add(store, bank, 5)
    assert [leaf.index for leaf in store.leaves(bank.log_id, 0, 5, 12)] == [0, 1]
    assert [leaf.index for leaf in store.leaves(bank.log_id, 3, 5, 1)] == [3]


def test_subtree_hashes_give_the_root_of_every_size(store: LogStore, bank: StoredLog) -> None:
    add(store, bank, 20)
    frontier = Frontier(0, [])
    for leaf in leaves(20):
        frontier.append(leaf_hash(leaf.data))
        assert root_at(frontier.size, lambda subtrees: store.subtree_hashes(bank.log_id, subtrees)) == frontier.root()
    with pytest.raises(StoreFailed):
        store.subtree_hashes(bank.log_id, subtrees_of(0, 21))


def test_logs_do_not_see_each_other(store: LogStore, bank: StoredLog) -> None:
    broker = store.create_log("platform/audit/broker", "key", b"\x00" * 32, "checkpoint 0")
    add(store, bank, 3)
    add(store, broker, 2)
    assert store.next_index(bank.log_id) == 3
    assert store.leaf(broker.log_id, 2) is None
    assert store.leaf_of_event(broker.log_id, "event-2") is None


def test_a_transaction_that_raises_leaves_nothing(store: LogStore, bank: StoredLog) -> None:
    def interrupted() -> None:
        with store.transaction() as transaction:
            transaction.add_leaves(bank.log_id, leaves(3))
            raise RuntimeError

    with pytest.raises(RuntimeError):
        interrupted()
    assert store.next_index(bank.log_id) == 0
    add(store, bank, 3)


def test_advance_compares_size_and_root(store: LogStore, bank: StoredLog) -> None:
    def forge(old_size: int, old_root: bytes) -> None:
        with store.transaction() as transaction:
            transaction.add_leaves(bank.log_id, leaves(1))
            transaction.advance(bank.log_id, old_size, old_root, 1, b"\x01" * 32, "forged")

    for old_size, old_root in [(1, bank.root), (0, b"\x09" * 32)]:
        with pytest.raises(StoreConflict):
            forge(old_size, old_root)
    assert store.find_log(bank.origin) == bank
    assert store.next_index(bank.log_id) == 0


@pytest.mark.parametrize("taken", ["index", "event"])
def test_an_index_and_an_event_id_are_taken_once(taken: str, store: LogStore, bank: StoredLog) -> None:
    add(store, bank, 3)
    fourth = leaves(1, start=3)[0]
    clash = (
        StoredLeaf(2, "new", 0, fourth.completed, b"x") if taken == "index" else StoredLeaf(3, "event-2", 0, fourth.completed, b"x")
    )
    with pytest.raises(StoreFailed), store.transaction() as transaction:
        transaction.add_leaves(bank.log_id, [clash])
    assert store.leaves(bank.log_id, 0, 9, 1 << 20) == leaves(3)


def test_open_intents_are_listed_until_closed(store: LogStore, bank: StoredLog) -> None:
    with store.transaction() as transaction:
        transaction.add_open_intents(bank.log_id, [OpenIntent(index, f"request-{index % 2}") for index in range(5)])
        assert transaction.open_intent(bank.log_id, 3) == OpenIntent(3, "request-1")
        assert [intent.index for intent in transaction.open_intents_of(bank.log_id, ["request-0", "none"])] == [0, 2, 4]
        assert len(transaction.open_intents_of(bank.log_id, ["request-1", "request-0"])) == 5
    assert [intent.index for intent in store.open_intents(bank.log_id, 4, 3)] == [0, 1, 2]
    with store.transaction() as transaction:
        transaction.close_intents(bank.log_id, [OpenIntent(0, "request-0"), OpenIntent(3, "request-1")])
        assert transaction.open_intent(bank.log_id, 3) is None
    assert [intent.index for intent in store.open_intents(bank.log_id, 99, 99)] == [1, 2, 4]


def test_forgotten_salts_are_gone(open_store: OpenStore, tmp_path: Path) -> None:
    salts = [(index, 1000 + index, bytes([65 + index]) * 32) for index in range(3)]
    kept = leaves(3)
    with closing(open_store()) as store:
        log = store.create_log("platform/audit/bank", "key", b"\x00" * 32, "checkpoint 0")
        with store.transaction() as transaction:
            transaction.keep_retry_salts(log.log_id, salts)
        with store.transaction() as transaction:
            assert transaction.retry_salt(log.log_id, kept[1]) == salts[1][2]
            assert transaction.forget_retry_salts(1002, 1) == 1
            assert transaction.forget_retry_salts(1002, 9) == 1
            assert transaction.retry_salt(log.log_id, kept[1]) is None
            assert transaction.retry_salt(log.log_id, kept[2]) == salts[2][2]
    if content := b"".join(file.read_bytes() for file in tmp_path.iterdir()):  # SQLite overwrites; PostgreSQL leaves that to VACUUM
        assert salts[0][2] not in content
        assert salts[1][2] not in content
        assert salts[2][2] in content


def test_a_second_holder_is_refused_and_told_who_holds_the_store(open_store: OpenStore, tmp_path: Path) -> None:
    with closing(open_store()), pytest.raises(StoreHeld, match=f'"pid": {os.getpid()}'):
        open_store()
    with closing(open_store()):
        pass


def test_the_lock_dies_with_its_process(tmp_path: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from lionrock.audit.store.sqlite import SqliteLogStore;"
        "store = SqliteLogStore(Path(sys.argv[1])); print('held', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path / "audit.db")], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(StoreHeld, match=f'"pid": {holder.pid}'):
            SqliteLogStore(tmp_path / "audit.db")
        holder.kill()
    SqliteLogStore(tmp_path / "audit.db").close()


def test_a_writer_that_was_fenced_off_commits_nothing(tmp_path: Path) -> None:
    with closing(SqliteLogStore(tmp_path / "audit.db")) as store:
        log = store.create_log("platform/audit/bank", "key", b"\x00" * 32, "checkpoint 0")
        (tmp_path / "audit.db.lock").unlink()  # as a careless operator might
        with closing(SqliteLogStore(tmp_path / "audit.db")) as usurper:
            with pytest.raises(StoreConflict, match="taken over"):
                add(store, log, 1)
            add(usurper, log, 1)
        assert store.next_index(log.log_id) == 1


def test_a_newer_schema_is_refused(tmp_path: Path) -> None:
    SqliteLogStore(tmp_path / "audit.db").close()
    with closing(sqlite3.connect(tmp_path / "audit.db")) as connection:
        connection.execute("INSERT INTO schema_versions VALUES (99, '')")
        connection.commit()
    with pytest.raises(StoreFailed, match="run the newer program"):
        SqliteLogStore(tmp_path / "audit.db")


def test_a_file_that_is_no_database_is_refused(tmp_path: Path) -> None:
    (tmp_path / "audit.db").write_bytes(b"not a database" * 100)
    with pytest.raises(StoreFailed):
        SqliteLogStore(tmp_path / "audit.db")


def test_every_commit_is_synced(tmp_path: Path) -> None:
    with closing(SqliteLogStore(tmp_path / "audit.db")) as store:
        assert store._writer.execute("PRAGMA synchronous").fetchone() == (2,)
        assert store._writer.execute("PRAGMA journal_mode").fetchone() == ("wal",)
        assert (tmp_path / "audit.db").stat().st_mode & 0o777 == 0o600
