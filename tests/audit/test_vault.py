"""Keys of records: made durably before they are used, wrapped by everybody whom they concern, gone when they are destroyed."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Iterator
from contextlib import closing
from pathlib import Path

import pytest
from audit_harness import Place, intent
from hypothesis import given
from hypothesis import strategies as st
from records_harness import RecordsPlace, Unreliable, concerning, who

from lionrock.audit import failures
from lionrock.audit.settings import AuditSettings
from lionrock.audit.vault.key_cache import KeyCache
from lionrock.audit.vault.key_management import LocalKeyManagement
from lionrock.audit.vault.key_store import TAG_BYTES, KeyStore, StoredKey, StoredScopeKey
from lionrock.audit.vault.record_keys import KeyScope, RecordKeys
from lionrock.audit.vault.sealing import Sealer
from lionrock.audit.vault.settings import RetentionSettings, VaultSettings

ONE, TWO = KeyScope("subject", "one"), KeyScope("subject", "two")


@pytest.fixture
def store(tmp_path: Path) -> Iterator[KeyStore]:
    with closing(KeyStore(tmp_path / "keys.db")) as opened:
        yield opened


def keys_of(store: KeyStore, tmp_path: Path, cached: int = 0) -> RecordKeys:
    return RecordKeys(store, LocalKeyManagement(tmp_path / "kek"), KeyCache(cached, 60))


@pytest.fixture
async def keys(store: KeyStore, tmp_path: Path) -> AsyncIterator[RecordKeys]:
    """Without a cache: every key is read and unwrapped again."""
    opened = keys_of(store, tmp_path)
    yield opened
    await opened.close()


# Keys


@pytest.mark.parametrize("scopes", [[], [KeyScope("case", "C")], [ONE], [ONE, TWO], [TWO, ONE]])
async def test_a_key_is_the_same_for_ever_and_for_all_who_ask_at_once(keys: RecordKeys, scopes: list[KeyScope]) -> None:
    asked = [keys.key_for("bank", "r", scopes, expect_new=bool(number % 2)) for number in range(8)]
    found = set(await asyncio.gather(*asked))
    assert len(found) == 1
    assert {await keys.key_of("bank", "r"), await keys.key_for("bank", "r", None)} == found
    assert await keys.key_for("broker", "r", scopes) not in found


async def test_records_of_one_scope_have_keys_of_their_own(keys: RecordKeys) -> None:
    made = await asyncio.gather(*(keys.key_for("bank", f"r{number}", [ONE]) for number in range(20)))
    assert len(set(made)) == 20
    assert await keys.members("bank", ONE, 100) == sorted((f"r{number}" for number in range(20)), reverse=True)
    assert await keys.members("bank", ONE, 3) == ["r9", "r8", "r7"]
    assert await keys.members("broker", ONE, 3) == []


async def test_a_record_keeps_its_scopes(keys: RecordKeys) -> None:
    await keys.key_for("bank", "r", [ONE])
    for other in ([], [TWO], [ONE, TWO], [KeyScope("case", "one")]):
        with pytest.raises(failures.EventAlreadyRecorded):
            await keys.key_for("bank", "r", other)


async def test_a_scopes_key_goes_with_its_last_record_and_is_made_anew(keys: RecordKeys, store: KeyStore) -> None:
    await keys.key_for("bank", "r1", [ONE, TWO])
    await keys.key_for("bank", "r2", [TWO])
    (tag_one,), (tag_two,) = await keys.tags("bank", [ONE]), await keys.tags("bank", [TWO])
    before = store.scope_key("bank", tag_one)
    await keys.destroy("bank", ["r1", "r1", "not there"])
    assert store.scope_key("bank", tag_one) is None
    assert store.scope_key("bank", tag_two) is not None
    with pytest.raises(failures.RecordErased):
        await keys.key_of("bank", "r1")
    assert len(await keys.key_of("bank", "r2")) == 32
    await keys.key_for("bank", "r3", [ONE])
    assert store.scope_key("bank", tag_one) not in (None, before)


async def test_a_scope_that_is_destroyed_while_a_key_is_being_wrapped_by_it_does_not_lose_that_key(
    store: KeyStore, tmp_path: Path
) -> None:
    keys = keys_of(store, tmp_path, cached=100)
    await keys.key_for("bank", "r1", [ONE])
    store.destroy("bank", ["r1"])  # behind the cache, as a race would have it
    made = await keys.key_for("bank", "r2", [ONE])
    await keys.close()
    again = keys_of(store, tmp_path)
    assert await again.key_of("bank", "r2") == made
    await again.close()


def test_a_batch_keeps_a_records_key_only_from_where_all_its_scopes_are_there(store: KeyStore) -> None:
    ada, bob = b"a" * TAG_BYTES, b"b" * TAG_BYTES

    def of(record_id: str, *tags: bytes, tenant: str = "bank") -> StoredKey:
        return StoredKey(tenant, record_id, b"wrapped", tags, 0)

    batch = [
        of("early", ada),
        StoredScopeKey("bank", ada, b"wrapped"),
        of("one", ada),
        of("two", ada, bob),
        of("three", ada),
        of("three", ada),
        of("elsewhere", ada, tenant="broker"),
        StoredScopeKey("bank", bob, b"wrapped"),
        of("both", ada, bob),
        of("none"),
    ]
    assert store.add_keys(batch) == [False, True, True, False, True, False, False, True, True, True]
    assert store.members("bank", ada, 9) == ["three", "one", "both"]
    assert store.add_keys([of("later", ada), of("later still", bob)]) == [True, True]


async def test_without_any_one_of_the_scopes_the_key_is_lost(keys: RecordKeys, store: KeyStore) -> None:
    await keys.key_for("bank", "r", [ONE, TWO])
    for scope in (ONE, TWO):
        (tag,) = await keys.tags("bank", [scope])
        with store._transaction() as connection:
            connection.execute("CREATE TEMP TABLE kept AS SELECT * FROM scope_keys")
            connection.execute("DELETE FROM scope_keys WHERE tag = ?", (tag,))
        with pytest.raises(failures.RecordErased):
            await keys.key_of("bank", "r")
        with store._transaction() as connection:
            connection.execute("DELETE FROM scope_keys")
            connection.execute("INSERT INTO scope_keys SELECT * FROM kept")
            connection.execute("DROP TABLE temp.kept")
    assert len(await keys.key_of("bank", "r")) == 32


async def test_tags_name_nobody_and_differ_by_tenant_and_kind(keys: RecordKeys) -> None:
    scopes = [ONE, TWO, KeyScope("case", "one")]
    tags = [await keys.tags(tenant, [scope]) for tenant in ("bank", "broker") for scope in scopes]
    assert len(set(tags)) == 6
    assert all(b"one" not in tag for (tag,) in tags)


async def test_a_tenants_key_that_was_exchanged_opens_nothing_and_makes_nothing(store: KeyStore, tmp_path: Path) -> None:
    keys = keys_of(store, tmp_path)
    await keys.key_for("bank", "r", [])
    (tmp_path / "kek" / "bank.kek").unlink()
    again = keys_of(store, tmp_path)
    for attempt in (again.key_of("bank", "r"), again.key_for("bank", "new", []), again.prepare("bank")):
        with pytest.raises(failures.KeysUnavailable):
            await attempt
    await again.prepare("broker")
    assert not (tmp_path / "kek" / "bank.kek").exists()
    await keys.close()
    await again.close()


def test_the_key_store_has_one_process_and_no_newer_schema(tmp_path: Path) -> None:
    path = tmp_path / "keys.db"
    with closing(KeyStore(path)), pytest.raises(failures.KeysUnavailable, match="held"):
        KeyStore(path)
    assert path.stat().st_mode & 0o777 == 0o600
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA user_version=99")
    with pytest.raises(failures.KeysUnavailable, match="99"):
        KeyStore(path)


# The cache


@given(st.lists(st.tuples(st.integers(0, 9), st.sampled_from(["put", "get", "forget", "wait"])), max_size=60), st.integers(0, 4))
def test_the_cache_is_bounded_fresh_and_overwrites_what_leaves(steps: list[tuple[int, str]], bound: int) -> None:
    now = 0.0
    cache = KeyCache(bound, ttl_s=5, clock=lambda: now)
    put_at: dict[int, float] = {}
    arrays: dict[int, bytearray] = {}
    for name, step in steps:
        if step == "put":
            cache.put(name, bytes([name + 1]) * 32)
            put_at[name] = now
            if name in cache._keys:
                arrays[name] = cache._keys[name][1]
        elif step == "get":
            found = cache.get(name)
            assert found in (None, bytes([name + 1]) * 32)
            assert found is None or now < put_at[name] + 5
        elif step == "forget":
            cache.forget(name)
        else:
            now += 2
            cache.forget_stale()
        assert len(cache) <= bound
        for known, array in arrays.items():
            if known not in cache._keys:
                assert array == bytes(32)
    cache.clear()
    assert all(array == bytes(32) for array in arrays.values())


# What is sealed


@given(st.binary(max_size=200), st.binary(min_size=32, max_size=32))
def test_what_is_sealed_opens_in_its_own_place_alone(payload: bytes, salt: bytes) -> None:
    sealer = Sealer(b"k" * 32, "platform/audit/bank", "r1")
    sealed = sealer.seal("prompt", "e1", salt, payload)
    assert sealer.open("prompt", "e1", sealed) == (salt, payload)
    others = [
        (Sealer(b"K" * 32, "platform/audit/bank", "r1"), "prompt", "e1"),
        (Sealer(b"k" * 32, "platform/audit/broker", "r1"), "prompt", "e1"),
        (Sealer(b"k" * 32, "platform/audit/bank", "r2"), "prompt", "e1"),
        (sealer, "answer", "e1"),
        (sealer, "prompt", "e2"),
    ]
    for other, kind, event_id in others:
        with pytest.raises(failures.StoreFailed):
            other.open(kind, event_id, sealed)
    for damaged in (sealed[:-1], sealed[:5], b"", bytes([sealed[0] ^ 1]) + sealed[1:]):
        with pytest.raises(failures.StoreFailed):
            sealer.open("prompt", "e1", damaged)


# When keys do not answer


async def test_without_keys_a_tenants_requests_are_refused_and_others_go_on(place: Place, tmp_path: Path) -> None:
    at = RecordsPlace(place)
    management = Unreliable(at.tenant_key_dir)
    async with at.open(management=management, cached_keys=0) as opened:
        said = await opened.say(subjects=("one",))
        management.down = frozenset({"bank"})
        size = opened.logs.size("bank")
        with pytest.raises(failures.KeysUnavailable):
            await opened.logs.append(intent(prompt=b"a question"), want_receipt=False)
        with pytest.raises(failures.KeysUnavailable):
            await opened.logs.append(concerning(intent(), ("one",)), want_receipt=False)
        with pytest.raises(failures.KeysUnavailable):
            await opened.records.read(who("auditor"), said.request_id)
        assert opened.logs.size("bank") == size
        await opened.say(tenant="broker")
        management.down = frozenset()
        assert len((await opened.records.read(who("auditor"), said.request_id)).payloads) == 2


async def test_what_was_acknowledged_is_in_log_and_vault_or_in_neither(place: Place) -> None:
    at = RecordsPlace(place)
    async with at.open(max_pending=3) as opened:
        asked = [concerning(intent(prompt=b"%d" % number), ("one",)) for number in range(40)]
        answers = await asyncio.gather(*(opened.logs.append(event, want_receipt=False) for event in asked), return_exceptions=True)
        refused = [answer for answer in answers if isinstance(answer, BaseException)]
        assert all(isinstance(answer, failures.QueueFull) for answer in refused)
        kept = [event for event, answer in zip(asked, answers, strict=True) if not isinstance(answer, BaseException)]
        assert kept
    async with at.open() as opened:
        for event, answer in zip(asked, answers, strict=True):
            if isinstance(answer, BaseException):
                with pytest.raises(failures.RecordNotFound):
                    await opened.records.read(who("auditor"), event.context.request_id)
            else:
                read = await opened.records.read(who("auditor"), event.context.request_id)
                assert [part.payload for part in read.payloads] == [event.payloads["prompt"]]


async def test_a_damaged_ciphertext_is_said_to_be_damaged(place: Place) -> None:
    at = RecordsPlace(place)
    async with at.open() as opened:
        said = await opened.say(subjects=("one",))
    with closing(sqlite3.connect(place.store_file)) as database, database:
        database.execute("UPDATE payloads SET sealed = zeroblob(80) WHERE kind = 'answer'")
    async with at.open() as opened:
        with pytest.raises(failures.StoreFailed, match="sealed"):
            await opened.records.read(who("auditor"), said.request_id)


# Settings


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"classes": {"a": {"keep_days": 10, "expire_days": 9}}, "default": "a"}, "smaller"),
        ({"default": "b"}, "no class"),
        ({"by_purpose": {"chat": "b"}}, "no class"),
        ({"classes": {"log_book": {"keep_days": 1460}, "standard": {}}}, "1461"),
        ({"classes": {"log_book": {"keep_days": 2000}}, "default": "log_book"}, "log book alone"),
    ],
)
def test_retention_that_cannot_be_meant_is_refused(change: dict[str, object], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        RetentionSettings.model_validate(change)


def test_a_vault_has_one_key_management_and_tenants_with_logs(tmp_path: Path) -> None:
    vault = {"key_store_file": tmp_path / "keys.db"}
    with pytest.raises(ValueError, match="exactly one"):
        VaultSettings.model_validate(vault)
    transit = {"address": "https://kms:8200", "token_file": tmp_path / "token"}
    with pytest.raises(ValueError, match="exactly one"):
        VaultSettings.model_validate(vault | {"local_key_dir": tmp_path, "transit": transit})
    tls = {"cert_file": "c", "key_file": "k", "ca_file": "a"}
    audit = {
        "server": {"tls": tls, "trust_domain": "lionrock.local"},
        "platform": "p",
        "tenants": ["bank"],
        "store_file": "s",
        "key_dir": "k",
    }
    with pytest.raises(ValueError, match="without a log: broker"):
        AuditSettings.model_validate(audit | {"vault": vault | {"local_key_dir": tmp_path, "tenants": ["broker"]}})


def test_the_log_book_is_kept_for_four_years_unless_for_longer() -> None:
    assert RetentionSettings().retention().classes["log_book"].keep_days == 1461
    longer = RetentionSettings.model_validate({"classes": {"log_book": {"keep_days": 3000}, "standard": {}}})
    assert longer.retention().classes["log_book"].keep_days == 3000
