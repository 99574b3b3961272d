"""A log changes its key, and whoever trusted the old one has reason to trust the new one."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager, closing
from dataclasses import dataclass
from pathlib import Path

import pytest
from audit_harness import PLATFORM, Place, check_leaves, intent

from lionrock.audit.failures import KeyUnusable, StoreFailed
from lionrock.audit.keys import KeyDirectory
from lionrock.audit.log import AuditLogs, Limits, open_logs
from lionrock.audit.platform_log import KEY_NAME, PlatformLog, open_platform_log
from lionrock.audit.rotation import Rotation
from lionrock.audit.signed_checkpoints import SignedCheckpoints, read_batches
from lionrock.audit.store import LogStore
from lionrock.audit.store.postgres import PostgresLogStore
from lionrock.audit.store.sqlite import SqliteLogStore
from lionrock.audit.store.sqlite_reader import SqliteLogReader
from lionrock.audit.store_check import check_store
from lionrock.audit.verify import Reason, VerificationFailed, follow_links, main, verify_platform_proof, verify_receipt
from lionrock.tlog.keys import SignatureType, VerifierKey
from lionrock.tlog.note import open_note

ORIGIN = f"{PLATFORM}/audit/bank"
OpenStore = Callable[[], LogStore]


@dataclass(frozen=True, slots=True)
class Running:
    logs: AuditLogs
    platform_log: PlatformLog
    keys: KeyDirectory
    rotation: Rotation
    store: LogStore

    async def append(self) -> str:
        """Append a leaf. Returns its receipt."""
        appended = await self.logs.append(intent(), want_receipt=True)
        assert appended.proof is not None
        return appended.proof

    async def change(self) -> str:
        """Change the key of bank's log. Returns the new one."""
        following = self.keys.create_next("bank", ORIGIN)
        assert await self.rotation.look(self.logs.opened("bank"))
        return str(following.verifier_key)

    async def links(self) -> list[str]:
        return [link.tlog_proof for link in await self.logs.key_links(self.logs.opened("bank"))]


class CutOff(SignedCheckpoints):
    """A second place that fails once it is told to."""

    failing = False

    def record(self, checkpoints: Mapping[str, str]) -> None:
        if self.failing:
            raise StoreFailed("the disk is full")
        super().record(checkpoints)


class CannotPromote(KeyDirectory):
    """A key directory in which no file takes another's place."""

    def promote(self, tenant: str) -> None:
        raise PermissionError(13, "Permission denied")


@asynccontextmanager
async def running(
    place: Place,
    open_store: OpenStore,
    *,
    signature: SignatureType = SignatureType.ED25519,
    keys: type[KeyDirectory] = KeyDirectory,
    signed: type[SignedCheckpoints] = SignedCheckpoints,
) -> AsyncIterator[Running]:
    with closing(open_store()) as store, closing(signed(place.signed_file)) as second_place:
        directory = keys(place.key_dir, signature)
        limits = Limits(4096, 1024, 60)
        logs = open_logs(store, directory, second_place, ("bank",), platform=PLATFORM, region="HK", limits=limits)
        platform = open_platform_log(PLATFORM, store, directory, second_place)
        async with logs:
            platform_log = PlatformLog(platform, logs, store, second_place)
            await platform_log.begin(None)
            rotation = Rotation(logs, platform, directory, second_place, "HK")
            if isinstance(second_place, CutOff):
                second_place.failing = True
            yield Running(logs, platform_log, directory, rotation, store)


@pytest.fixture(params=["sqlite", "postgres"])
def open_store(request: pytest.FixtureRequest, place: Place) -> OpenStore:
    if request.param == "sqlite":
        return lambda: SqliteLogStore(place.store_file)
    database = request.getfixturevalue("database")
    return lambda: PostgresLogStore(database)


@pytest.fixture
def sqlite(place: Place) -> OpenStore:
    return lambda: SqliteLogStore(place.store_file)


async def test_receipts_before_and_after_verify_and_a_link_leads_from_key_to_key(place: Place, open_store: OpenStore) -> None:
    async with running(place, open_store) as log:
        (old,) = log.logs.verifier_keys("bank")
        before = await log.append()
        new = await log.change()
        at_change = log.logs.checkpoint("bank")
        after = await log.append()
        assert log.logs.verifier_keys("bank") == (new, old)
        (link,) = await log.links()
    both = [VerifierKey.parse(old), VerifierKey.parse(new)]
    assert [signature.key for signature in open_note(at_change, both).signatures] == both
    verify_receipt(before, [old])
    with pytest.raises(VerificationFailed) as refused:
        verify_receipt(after, [old])
    assert refused.value.reason is Reason.SIGNER_UNKNOWN
    assert follow_links([old], [new], [link]) == [old, new]
    assert verify_receipt(after, follow_links([old], [new], [link])).tree_size == 3
    assert not place.key_dir.joinpath("bank.next.key").exists()
    with closing(open_store()) as store:
        change = json.loads(check_leaves(store)[1])
    assert (change["type"], change["origin"], change["tenant"]) == ("key_change", ORIGIN, "bank")


async def test_a_restart_goes_on_with_the_new_key_and_knows_the_old_ones(place: Place, open_store: OpenStore) -> None:
    async with running(place, open_store) as log:
        keys = [*log.logs.verifier_keys("bank"), await log.change(), await log.change()]
    async with running(place, open_store) as log:
        assert log.logs.read_only_reasons() == {}
        assert list(log.logs.verifier_keys("bank")) == keys[::-1]
        receipt = await log.append()
        links = await log.links()
    verify_receipt(receipt, [keys[2]])
    assert follow_links(keys[:1], keys[1:], links) == keys
    with pytest.raises(VerificationFailed) as refused:
        follow_links(keys[:1], keys[2:], links[:1])  # the way over the key between is missing
    assert refused.value.reason is Reason.KEY_NOT_LINKED


async def test_a_log_changes_to_another_algorithm(place: Place, sqlite: OpenStore) -> None:
    async with running(place, sqlite) as log:
        (old,) = log.logs.verifier_keys("bank")
    async with running(place, sqlite, signature=SignatureType.ML_DSA_44_COSIGNATURE) as log:
        new = await log.change()
        receipt = await log.append()
        links = await log.links()
    assert VerifierKey.parse(new).type is SignatureType.ML_DSA_44_COSIGNATURE
    verify_receipt(receipt, follow_links([old], [new], links))


@pytest.mark.parametrize("end", ["second place", "key directory"])
async def test_a_change_that_a_crash_cut_off_after_it_was_signed_is_finished_at_the_next_start(
    place: Place, open_store: OpenStore, end: str
) -> None:
    signed, keys = (CutOff, KeyDirectory) if end == "second place" else (SignedCheckpoints, CannotPromote)
    async with running(place, open_store) as log:
        (old,) = log.logs.verifier_keys("bank")
        await log.append()
    async with running(place, open_store, signed=signed, keys=keys) as log:
        with pytest.raises(StoreFailed):
            await log.change()
        with pytest.raises(StoreFailed):  # nothing more is signed by either key
            await log.append()
        new = str(log.keys.load_next("bank", ORIGIN).verifier_key)  # type: ignore[union-attr]
    async with running(place, open_store) as log:
        assert log.logs.read_only_reasons() == {}
        assert log.logs.verifier_keys("bank") == (new, old)
        assert log.keys.load_next("bank", ORIGIN) is None
        receipt = await log.append()
        assert verify_receipt(receipt, follow_links([old], [new], await log.links())).tree_size == 3


async def test_a_key_that_waits_changes_nothing_until_the_service_has_signed_for_it(place: Place, sqlite: OpenStore) -> None:
    async with running(place, sqlite) as log:
        (old,) = log.logs.verifier_keys("bank")
        log.keys.create_next("bank", ORIGIN)
        with pytest.raises(FileExistsError):
            log.keys.create_next("bank", ORIGIN)
    async with running(place, sqlite) as log:
        assert log.logs.verifier_keys("bank") == (old,)
        verify_receipt(await log.append(), [old])
        assert await log.rotation.look(log.logs.opened("bank"))
        assert not await log.rotation.look(log.logs.opened("bank"))
        assert len(log.logs.verifier_keys("bank")) == 2


async def test_a_file_that_is_no_key_of_this_log_is_refused_and_the_log_goes_on(place: Place, sqlite: OpenStore) -> None:
    async with running(place, sqlite) as log:
        bank = log.logs.opened("bank")
        for content in (
            place.key_dir.joinpath("_platform.key").read_bytes(),
            place.key_dir.joinpath("bank.key").read_bytes(),
            b"x",
        ):
            waiting = log.keys.next_path("bank")
            waiting.touch(0o600)
            waiting.write_bytes(content)
            with pytest.raises(KeyUnusable):
                await log.rotation.look(bank)
        verify_receipt(await log.append(), log.logs.verifier_keys("bank"))


async def test_the_platforms_log_changes_its_key_too(place: Place, sqlite: OpenStore) -> None:
    async with running(place, sqlite) as log:
        await log.append()
        head, recorded = await log.platform_log.advance()
        log.platform_log.attest(head, recorded)
        (old,) = log.platform_log.verifier_keys
        log.keys.create_next(KEY_NAME, f"{PLATFORM}/audit")
        assert await log.rotation.look(log.platform_log.opened)
        new = log.platform_log.verifier_key
        await log.append()
        head, recorded = await log.platform_log.advance()
        log.platform_log.attest(head, recorded)
        proven = await log.platform_log.prove("bank", 1)
        leaf = verify_receipt(proven.receipt, log.logs.verifier_keys("bank"))
        links = [link.tlog_proof for link in await log.logs.key_links(log.platform_log.opened)]
        above = verify_platform_proof(proven.platform_proof, leaf, follow_links([old], [new], links), [], 0)
        assert (above.leaf_index, above.tree_size) == (2, 3)
    async with running(place, sqlite) as log:
        assert log.platform_log.read_only is None
        await log.append()
        assert (await log.platform_log.advance())[0].size == 4


async def test_a_store_whose_logs_changed_their_keys_passes_an_auditors_check(place: Place, sqlite: OpenStore) -> None:
    async with running(place, sqlite) as log:
        await log.append()
        await log.platform_log.advance()
        await log.change()
        log.keys.create_next(KEY_NAME, f"{PLATFORM}/audit")
        assert await log.rotation.look(log.platform_log.opened)
        await log.append()
        await log.platform_log.advance()
        keys = [VerifierKey.parse(key) for key in (*log.logs.verifier_keys("bank"), *log.platform_log.verifier_keys)]
    with closing(SqliteLogReader.open(place.store_file)) as reader:
        second_place = [pair for batch in read_batches(place.signed_file) for pair in batch.items()]
        check = check_store(reader, keys, lambda: second_place)
    assert (check.findings, check.leaves) == ([], 6)


async def test_links_of_other_logs_and_other_leaves_lead_nowhere(place: Place, sqlite: OpenStore, tmp_path: Path) -> None:
    async with running(place, sqlite) as log:
        (old,) = log.logs.verifier_keys("bank")
        ordinary = await log.append()
        new = await log.change()
        (link,) = await log.links()
    other = Place(tmp_path / "other")
    async with running(other, lambda: SqliteLogStore(other.store_file)) as log:
        (stranger,) = log.logs.verifier_keys("bank")
        elsewhere = await log.change()
        (foreign,) = await log.links()
    for trusted, wanted, links in (
        ([old], new, []),
        ([old], new, [ordinary]),
        ([old], new, [foreign]),
        ([stranger], new, [link]),
        ([stranger], new, [foreign]),
        ([old], elsewhere, [link, foreign]),
    ):
        with pytest.raises(VerificationFailed) as refused:
            follow_links(trusted, [wanted], links)
        assert refused.value.reason is Reason.KEY_NOT_LINKED
    with pytest.raises(VerificationFailed) as broken:
        follow_links([old], [new], [link.replace("index 1", "index 0")])
    assert broken.value.reason is Reason.INCLUSION_INVALID


async def test_the_verifier_follows_links_that_it_is_given(
    place: Place, sqlite: OpenStore, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    async with running(place, sqlite) as log:
        (old,) = log.logs.verifier_keys("bank")
        new = await log.change()
        (tmp_path / "receipt").write_text(await log.append())
        (link,) = await log.links()
    (tmp_path / "link").write_text(link)
    receipt = str(tmp_path / "receipt")
    assert main([receipt, old]) == 1
    assert main([receipt, "--key", old, "--linked-key", new]) == 1
    assert "KEY_NOT_LINKED" in capsys.readouterr().err
    assert main([receipt, "--key", old, "--linked-key", new, "--link", str(tmp_path / "link")]) == 0
    assert "PROVEN leaf 1 of 2" in capsys.readouterr().out
