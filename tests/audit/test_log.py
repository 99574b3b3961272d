from __future__ import annotations

import asyncio
import json
import os
import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
from audit_harness import PLATFORM, Place, check_store, context_of, copy_files, intent, outcome

from lionrock.audit.failures import (
    EventAlreadyRecorded,
    IntentClosed,
    IntentNotFound,
    LeafNotFound,
    LeafTooLarge,
    LogNotFound,
    LogReadOnly,
    QueueFull,
    StoreFailed,
    TreeSizeOutOfRange,
)
from lionrock.audit.leaf import Event
from lionrock.audit.log import AuditLogs
from lionrock.audit.store import Transaction
from lionrock.audit.store.sqlite import SqliteLogStore
from lionrock.audit.verify import check_opening, verify_receipt
from lionrock.tlog.merkle import verify_consistency

ORIGIN = f"{PLATFORM}/audit/bank"


async def append_many(logs: AuditLogs, count: int, tenant: str = "bank") -> list[Event]:
    events = [intent(tenant) for _ in range(count)]
    await asyncio.gather(*(logs.append(event, want_receipt=False) for event in events))
    return events


async def test_an_appended_event_comes_with_a_receipt_that_verifies(logs: AuditLogs) -> None:
    (key,) = logs.verifier_keys("bank")
    for number in range(20):
        event = intent(prompt=b"What is the base rate?")
        appended = await logs.append(event, want_receipt=True)
        assert appended.leaf_index == number
        assert appended.proof is not None
        leaf = verify_receipt(appended.proof, [key])
        assert leaf.fields["event_id"] == event.event_id
        assert (leaf.leaf_hash, leaf.tree_size) == (appended.leaf_hash, number + 1)
        check_opening(leaf, "prompt", appended.salt, b"What is the base rate?")


async def test_a_crowd_shares_batches_and_everyone_gets_a_true_receipt(logs: AuditLogs) -> None:
    (key,) = logs.verifier_keys("bank")
    events = [intent(prompt=str(number).encode()) for number in range(300)]
    appended = await asyncio.gather(*(logs.append(event, want_receipt=True) for event in events))
    assert sorted(one.leaf_index for one in appended) == list(range(300))
    sizes = set()
    for event, one in zip(events, appended, strict=True):
        assert one.proof is not None
        leaf = verify_receipt(one.proof, [key])
        assert leaf.fields["event_id"] == event.event_id
        sizes.add(leaf.tree_size)
    assert len(sizes) < 150


async def test_reading_proves_old_leaves_at_the_latest_checkpoint(logs: AuditLogs) -> None:
    events = await append_many(logs, 77)
    (key,) = logs.verifier_keys("bank")
    for index in range(0, 77, 7):
        receipt = await logs.receipt("bank", index)
        assert receipt.proof is not None
        leaf = verify_receipt(receipt.proof, [key])
        assert leaf.tree_size == 77
        assert (await logs.receipt("bank", leaf.fields["event_id"])).leaf_index == index
    assert {json.loads(leaf.data)["event_id"] async for page in logs.leaves("bank", 0, 100) for leaf in page} == {
        event.event_id for event in events
    }
    for missing in (77, 2**63, 2**64 - 1, "unknown-event"):
        with pytest.raises(LeafNotFound):
            await logs.receipt("bank", missing)


async def test_consistency_proofs_join_any_two_signed_sizes(logs: AuditLogs) -> None:
    roots = {}
    (key,) = logs.verifier_keys("bank")
    for _ in range(12):
        appended = await logs.append(intent(), want_receipt=True)
        assert appended.proof is not None
        leaf = verify_receipt(appended.proof, [key])
        roots[leaf.tree_size] = leaf.root
    for first in roots:
        for second in range(first, 13):
            hashes, checkpoint = await logs.consistency_proof("bank", first, second)
            verify_consistency(first, second, roots[first], roots[second], hashes)
            assert checkpoint == (logs.checkpoint("bank") if second == 12 else "")
    assert await logs.consistency_proof("bank", 5, 0) == await logs.consistency_proof("bank", 5, 12)
    for first, second in [(13, 0), (5, 13), (7, 5), (2**64 - 1, 0)]:
        with pytest.raises(TreeSizeOutOfRange):
            await logs.consistency_proof("bank", first, second)


async def test_repeating_an_event_gives_its_first_leaf_and_salt(logs: AuditLogs) -> None:
    event = intent(prompt=b"once")
    first = await logs.append(event, want_receipt=False)
    await append_many(logs, 3)
    again = await logs.append(event, want_receipt=True)
    assert (again.leaf_index, again.salt, again.recorded_at_us) == (first.leaf_index, first.salt, first.recorded_at_us)
    assert again.proof is not None
    assert verify_receipt(again.proof, logs.verifier_keys("bank")).tree_size == 4
    both = await asyncio.gather(*(logs.append(twice, want_receipt=False) for twice in [intent(prompt=b"twice")] * 5))
    assert {one.leaf_index for one in both} == {4}
    assert len({one.salt for one in both}) == 1


async def test_an_event_id_with_another_content_is_refused(logs: AuditLogs) -> None:
    event = intent(prompt=b"this")
    await logs.append(event, want_receipt=False)
    for other in (
        intent(prompt=b"that", event_id=event.event_id, request_id=event.context.request_id),
        intent(event_id=event.event_id, request_id=event.context.request_id),
        intent(prompt=b"this", event_id=event.event_id, request_id=event.context.request_id, purpose="marketing"),
    ):
        with pytest.raises(EventAlreadyRecorded):
            await logs.append(other, want_receipt=False)
    assert logs.size("bank") == 1


async def test_an_event_is_recognised_after_a_restart(place: Place) -> None:
    event = intent(prompt=b"once")
    async with place.open() as logs:
        first = await logs.append(event, want_receipt=False)
    async with place.open() as logs:
        again = await logs.append(event, want_receipt=False)
    assert (again.leaf_index, again.salt) == (first.leaf_index, first.salt)
    assert len(check_store(place.store_file)) == 1


async def test_without_a_retry_window_no_salt_is_ever_stored(place: Place) -> None:
    event = intent(prompt=b"secret")
    async with place.open(retry_window_s=0) as logs:
        appended = await logs.append(event, want_receipt=False)
        with pytest.raises(EventAlreadyRecorded):
            await logs.append(event, want_receipt=False)
        bare = intent()
        await logs.append(bare, want_receipt=False)
        assert (await logs.append(bare, want_receipt=False)).leaf_index == 1
        content = b"".join(file.read_bytes() for file in place.store_file.parent.iterdir())
    assert len(appended.salt) == 32
    assert appended.salt not in content


async def test_an_intent_is_closed_by_one_outcome(logs: AuditLogs) -> None:
    asked = intent()
    index = (await logs.append(asked, want_receipt=False)).leaf_index
    with pytest.raises(IntentNotFound):
        await logs.append(outcome(intent(), index), want_receipt=False)
    with pytest.raises(IntentNotFound):
        await logs.append(outcome(asked, index + 5), want_receipt=False)
    done = outcome(asked, index, answer=b"42")
    await logs.append(done, want_receipt=False)
    with pytest.raises(IntentClosed):
        await logs.append(outcome(asked, index), want_receipt=False)
    with pytest.raises(IntentClosed):
        await logs.append(outcome(asked, 1), want_receipt=False)  # an outcome, not an intent
    assert (await logs.append(done, want_receipt=False)).leaf_index == 1
    assert await logs.open_intents("bank", 99, 99) == []


async def test_of_two_outcomes_in_one_batch_one_is_refused(logs: AuditLogs) -> None:
    asked = intent()
    index = (await logs.append(asked, want_receipt=False)).leaf_index
    ends = [logs.append(outcome(asked, index), want_receipt=False) for _ in range(8)]
    results = await asyncio.gather(*ends, return_exceptions=True)
    assert sum(isinstance(result, IntentClosed) for result in results) == 7


async def test_an_outcome_whose_caller_never_learnt_the_index_closes_the_intents_of_its_request(logs: AuditLogs) -> None:
    asked, other = intent(), intent()
    waiting = [logs.append(event, want_receipt=False) for event in (asked, other, outcome(asked, None, status="failed"))]
    await asyncio.gather(*waiting)
    ((open_intent, _),) = await logs.open_intents("bank", 99, 99)
    assert open_intent.request_id == other.context.request_id


async def test_tenants_have_logs_of_their_own(logs: AuditLogs) -> None:
    await asyncio.gather(append_many(logs, 5, "bank"), append_many(logs, 3, "broker"))
    assert (logs.size("bank"), logs.size("broker")) == (5, 3)
    assert logs.verifier_keys("bank") != logs.verifier_keys("broker")
    with pytest.raises(LeafNotFound):
        await logs.receipt("broker", 4)


async def test_a_tenant_that_settings_do_not_name_has_no_log(logs: AuditLogs) -> None:
    with pytest.raises(LogNotFound):
        await logs.append(intent("stranger"), want_receipt=False)
    with pytest.raises(LogNotFound):
        logs.checkpoint("stranger")


async def test_an_oversized_event_is_refused_and_others_go_on(logs: AuditLogs) -> None:
    with pytest.raises(LeafTooLarge):
        await logs.append(intent(case_id="C" * 3000), want_receipt=False)
    assert (await logs.append(intent(), want_receipt=False)).leaf_index == 0


async def test_a_payload_of_megabytes_is_committed_to(logs: AuditLogs) -> None:
    payload = "香".encode() * 2_000_000
    appended = await logs.append(intent(prompt=payload), want_receipt=True)
    assert appended.proof is not None
    check_opening(verify_receipt(appended.proof, logs.verifier_keys("bank")), "prompt", appended.salt, payload)


async def test_more_appends_than_may_wait_are_refused_at_once(place: Place) -> None:
    store = SqliteLogStore(place.store_file)
    async with place.open(store, max_pending=4) as logs:
        with closing(sqlite3.connect(place.store_file, isolation_level=None)) as blocker:
            blocker.execute("BEGIN IMMEDIATE")  # the writer waits for this lock
            waiting = [asyncio.ensure_future(logs.append(intent(), want_receipt=False)) for _ in range(30)]
            done, pending = await asyncio.wait(waiting, timeout=0.5)
            assert len(done) >= 20
            assert all(isinstance(task.exception(), QueueFull) for task in done)
            blocker.execute("ROLLBACK")
        await asyncio.gather(*pending)
        assert logs.size("bank") == len(pending) >= 4


async def test_a_caller_that_goes_away_does_not_disturb_the_others(logs: AuditLogs) -> None:
    tasks = [asyncio.ensure_future(logs.append(intent(), want_receipt=False)) for _ in range(20)]
    await asyncio.sleep(0)
    for task in tasks[::2]:
        task.cancel()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert all(isinstance(result, asyncio.CancelledError) for result in results[::2])
    assert not any(isinstance(result, BaseException) for result in results[1::2])


async def test_closing_writes_what_waits(place: Place) -> None:
    async with place.open() as logs:
        tasks = [asyncio.ensure_future(logs.append(intent(), want_receipt=False)) for _ in range(50)]
        await asyncio.sleep(0)
    await asyncio.gather(*tasks)
    assert len(check_store(place.store_file)) == 50
    with pytest.raises(StoreFailed):
        await logs.append(intent(), want_receipt=False)


class CommitFails(SqliteLogStore):
    """Reports failure for one commit, as a failed fsync does: before or after the data reached the disk."""

    def __init__(self, path: Path, *, after: bool) -> None:
        super().__init__(path)
        self.fail, self._after = False, after

    @contextmanager
    def transaction(self) -> Iterator[Transaction]:
        with super().transaction() as transaction:
            yield transaction
            if self.fail and not self._after:
                raise StoreFailed("committing: SQLITE_IOERR_FSYNC: disk I/O error")
        if self.fail:
            raise StoreFailed("committing: SQLITE_IOERR_FSYNC: disk I/O error")


@pytest.mark.parametrize("after", [False, True])
async def test_after_a_failed_commit_nothing_is_written_until_restart(place: Place, after: bool) -> None:
    store = CommitFails(place.store_file, after=after)
    event = intent()
    async with place.open(store) as logs:
        await append_many(logs, 5)
        store.fail = True
        with pytest.raises(StoreFailed):
            await logs.append(event, want_receipt=False)
        store.fail = False
        for _ in range(3):
            with pytest.raises(StoreFailed, match="SQLITE_IOERR_FSYNC"):
                await logs.append(intent(), want_receipt=False)
        assert logs.size("bank") == 5
        assert (await logs.receipt("bank", 3)).proof is not None
    async with place.open() as logs:
        assert logs.read_only_reasons() == {}
        assert (await logs.append(event, want_receipt=False)).leaf_index == 5
    assert len(check_store(place.store_file)) == 6


async def test_when_the_second_place_cannot_be_written_nothing_is_answered(place: Place) -> None:
    async with place.open() as logs:
        await append_many(logs, 3)
        signed = logs._sequencer._signed
        signed.close()
        signed._file = os.open("/dev/full", os.O_WRONLY)
        with pytest.raises(StoreFailed, match="No space left"):
            await logs.append(intent(), want_receipt=False)
        assert logs.size("bank") == 3
    async with place.open() as logs:
        assert logs.read_only_reasons() == {}
        assert logs.size("bank") == 4  # durable in the store, answered to nobody


def restore(backup: Path, place: Place) -> None:
    shutil.rmtree(place.store_file.parent)
    copy_files(backup, place.store_file.parent)


async def test_a_store_that_was_rolled_back_is_not_signed_for(place: Place) -> None:
    async with place.open() as logs:
        await append_many(logs, 4)
        copy_files(place.store_file.parent, place.root / "backup")
        await append_many(logs, 4)
    restore(place.root / "backup", place)
    async with place.open() as logs:
        assert "rolled back" in logs.read_only_reasons()["bank"]
        with pytest.raises(LogReadOnly, match="would fork the log"):
            await logs.append(intent(), want_receipt=False)
        assert (await logs.receipt("bank", 2)).proof is not None
        assert (await logs.append(intent("broker"), want_receipt=False)).leaf_index == 0


async def test_a_store_with_another_history_is_not_signed_for(place: Place, tmp_path: Path) -> None:
    async with place.open() as logs:
        copy_files(place.store_file.parent, tmp_path / "backup")
        copy_files(place.key_dir, tmp_path / "fork" / "keys")
        await append_many(logs, 3)
    fork = Place(tmp_path / "fork")
    copy_files(tmp_path / "backup", fork.store_file.parent)
    async with fork.open() as logs:
        await append_many(logs, 5)
    restore(fork.store_file.parent, place)
    async with place.open() as logs:
        assert "another history" in logs.read_only_reasons()["bank"]


async def test_a_lost_store_is_not_begun_anew(place: Place) -> None:
    async with place.open() as logs:
        await append_many(logs, 2)
    shutil.rmtree(place.store_file.parent)
    async with place.open() as logs:
        assert set(logs.read_only_reasons()) == {"bank"}
        for call in (logs.append(intent(), want_receipt=False), logs.receipt("bank", 0)):
            with pytest.raises(LogReadOnly, match="restore the store"):
                await call


async def test_a_lost_file_of_signed_checkpoints_stops_signing(place: Place) -> None:
    async with place.open() as logs:
        await append_many(logs, 2)
    place.signed_file.unlink()
    async with place.open() as logs:
        assert "does not know" in logs.read_only_reasons()["bank"]


@pytest.mark.parametrize("loss", ["gone", "replaced", "open to others", "garbage"])
async def test_a_log_without_its_key_is_read_only(place: Place, loss: str) -> None:
    async with place.open() as logs:
        await append_many(logs, 2)
        keys = logs.verifier_keys("bank")
    key_file = place.key_dir / "bank.key"
    match loss:
        case "gone":
            key_file.unlink()
        case "replaced":
            key_file.write_bytes((place.key_dir / "broker.key").read_bytes())
        case "open to others":
            key_file.chmod(0o644)
        case _:
            key_file.write_bytes(b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n")
    async with place.open() as logs:
        assert set(logs.read_only_reasons()) == {"bank"}
        assert logs.verifier_keys("bank") == keys
        assert verify_receipt((await logs.receipt("bank", 1)).proof or "", keys).leaf_index == 1


async def test_a_key_file_belongs_to_its_owner_alone(place: Place) -> None:
    async with place.open():
        pass
    assert (place.key_dir / "bank.key").stat().st_mode & 0o777 == 0o600
    assert place.key_dir.stat().st_mode & 0o077 == 0


@pytest.mark.parametrize(
    "change",
    [
        "UPDATE leaves SET data = cast(replace(data, 'customer_support', 'customer_suppor7') AS BLOB) WHERE leaf_index = 9",
        "UPDATE leaves SET subtree_hashes = zeroblob(32) WHERE leaf_index = 8",
        "DELETE FROM leaves WHERE leaf_index = 9",
        "INSERT INTO leaves (log_id, leaf_index, event_id, recorded_at_us, subtree_hashes, data)"
        " SELECT log_id, 10, 'e', 0, subtree_hashes, data FROM leaves WHERE leaf_index = 8",
        "UPDATE logs SET size = 9 WHERE log_id = 1",
        "UPDATE logs SET root = zeroblob(32) WHERE log_id = 1",
        "UPDATE logs SET checkpoint = replace(checkpoint, char(10) || '10' || char(10), char(10) || '11' || char(10))"
        " WHERE log_id = 1",
        "UPDATE logs SET verifier_key = 'other' WHERE log_id = 1",
    ],
)
async def test_a_store_that_was_edited_is_not_signed_for(place: Place, change: str) -> None:
    async with place.open(tenants=("bank",)) as logs:
        await append_many(logs, 10)
    with closing(sqlite3.connect(place.store_file)) as connection:
        assert connection.execute(change).rowcount == 1
        connection.commit()
    async with place.open(tenants=("bank",)) as logs:
        assert "restore" in logs.read_only_reasons()["bank"]


async def test_a_leaf_that_was_edited_under_a_running_service_gets_no_receipt(place: Place) -> None:
    async with place.open() as logs:
        await append_many(logs, 10)
        with closing(sqlite3.connect(place.store_file)) as connection:
            connection.execute(
                "UPDATE leaves SET data = cast(replace(data, 'customer_support', 'customer_suppor7') AS BLOB) WHERE leaf_index = 4"
            )
            connection.commit()
        with pytest.raises(StoreFailed, match="not in the tree that was signed"):
            await logs.receipt("bank", 4)
        assert (await logs.receipt("bank", 5)).proof is not None


async def test_a_crash_between_the_two_places_is_healed(place: Place) -> None:
    async with place.open() as logs:
        await append_many(logs, 2)
        signed = place.signed_file.read_bytes()
        await append_many(logs, 2)
    for torn in (b"", b'{"origin": "audit.example.hk/audit/ba'):
        place.signed_file.write_bytes(signed + torn)
        async with place.open() as logs:
            assert logs.read_only_reasons() == {}
            assert logs.size("bank") == 4
        assert b"\\n4\\n" in place.signed_file.read_bytes()


async def test_a_damaged_file_of_signed_checkpoints_stops_the_service(place: Place) -> None:
    async with place.open() as logs:
        await append_many(logs, 2)
    place.signed_file.write_bytes(b"garbage\n" + place.signed_file.read_bytes())
    with pytest.raises(StoreFailed, match="line 1"):
        async with place.open():
            pass


async def test_the_file_of_signed_checkpoints_stays_small(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lionrock.audit.signed_checkpoints._COMPACT_BYTES", 4096)
    async with place.open() as logs:
        for _ in range(60):
            await logs.append(intent(), want_receipt=False)
        assert place.signed_file.stat().st_size < 8192
    async with place.open() as logs:
        assert logs.size("bank") == 60


async def test_a_write_ahead_log_cut_anywhere_loses_nothing_silently(place: Place, tmp_path: Path) -> None:
    async with place.open() as logs:
        for _ in range(25):
            await logs.append(intent(), want_receipt=False)
        copy_files(place.root / "store", tmp_path / "crash" / "store")
        copy_files(place.key_dir, tmp_path / "crash" / "keys")
    wal = tmp_path / "crash" / "store" / "audit.db-wal"
    whole = wal.stat().st_size
    outcomes = set()
    for kept in [*range(0, whole, whole // 23), whole]:
        cut = Place(tmp_path / f"cut-{kept}")
        copy_files(tmp_path / "crash" / "store", cut.root / "store")
        copy_files(tmp_path / "crash" / "keys", cut.key_dir)
        with (cut.root / "store" / "audit.db-wal").open("r+b") as file:
            file.truncate(kept)
        async with cut.open() as logs:
            refused = "bank" in logs.read_only_reasons()
            outcomes.add(refused)
            if not refused:
                assert logs.size("bank") == 25
                await logs.append(intent(), want_receipt=False)
    assert outcomes == {True, False}


async def test_a_tenant_added_later_gets_a_log(place: Place) -> None:
    async with place.open(tenants=("bank",)) as logs:
        await append_many(logs, 1)
    async with place.open(tenants=("bank", "broker", "insurer")) as logs:
        assert (await logs.append(intent("insurer"), want_receipt=False)).leaf_index == 0
        assert logs.size("bank") == 1


def test_contexts_of_the_harness_are_complete() -> None:
    assert context_of().tenant == "bank"
