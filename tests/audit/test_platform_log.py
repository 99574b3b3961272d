"""The log of logs: what becomes a leaf of it, and how a tenant's leaf is proven through it."""

from __future__ import annotations

import sqlite3
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing

import pytest
from audit_harness import PLATFORM, TENANTS, Place, intent

from lionrock.audit.failures import LeafNotCovered, LeafNotFound, LogNotFound, LogReadOnly
from lionrock.audit.keys import KeyDirectory
from lionrock.audit.log import AuditLogs, Limits, open_logs
from lionrock.audit.platform_log import PlatformLog, open_platform_log
from lionrock.audit.signed_checkpoints import SignedCheckpoints
from lionrock.audit.store.sqlite import SqliteLogStore
from lionrock.audit.tenant_log import TAIL_LEAVES
from lionrock.tlog.checkpoint import Checkpoint
from lionrock.tlog.keys import SignatureType, VerifierKey
from lionrock.tlog.merkle import leaf_hash, verify_consistency, verify_inclusion
from lionrock.tlog.note import open_note
from lionrock.tlog.proof import TlogProof

ORIGIN = f"{PLATFORM}/audit"


@asynccontextmanager
async def platform(
    place: Place, signature: SignatureType = SignatureType.ED25519, *, begin: bool = True
) -> AsyncIterator[tuple[AuditLogs, PlatformLog]]:
    with closing(SqliteLogStore(place.store_file)) as store, closing(SignedCheckpoints(place.signed_file)) as signed:
        keys = KeyDirectory(place.key_dir, signature)
        opened = open_platform_log(PLATFORM, store, keys, signed)
        logs = open_logs(store, keys, signed, TENANTS, platform=PLATFORM, region="", limits=Limits(64, 64, 60))
        async with logs:
            platform_log = PlatformLog(opened, logs, store, signed)
            if begin:
                await platform_log.begin(None)
            yield logs, platform_log


def opened(note: str, key: str) -> Checkpoint:
    return Checkpoint.parse(open_note(note, [VerifierKey.parse(key)]).text)


def check_pair(receipt: str, platform_proof: str, tenant_key: str, platform_key: str) -> tuple[bytes, Checkpoint, Checkpoint]:
    """Verify both steps literally. Returns the leaf, the tenant's and the platform's checkpoint."""
    below, above = TlogProof.parse(receipt), TlogProof.parse(platform_proof)
    assert below.leaf is not None
    tenant, whole = opened(below.checkpoint, tenant_key), opened(above.checkpoint, platform_key)
    verify_inclusion(below.leaf_index, tenant.size, leaf_hash(below.leaf), below.path, tenant.root)
    assert above.leaf == below.checkpoint.encode()
    verify_inclusion(above.leaf_index, whole.size, leaf_hash(above.leaf), above.path, whole.root)
    return below.leaf, tenant, whole


async def test_each_tenant_that_grew_becomes_one_leaf_of_the_platform(place: Place) -> None:
    async with platform(place) as (logs, platform_log):
        assert platform_log.origin == ORIGIN
        head, recorded = await platform_log.advance()
        assert (head.size, recorded) == (0, {})
        for _ in range(3):
            await logs.append(intent("bank"), want_receipt=False)
        await logs.append(intent("broker"), want_receipt=False)
        head, recorded = await platform_log.advance()
        assert head.size == 2
        assert {tenant: entry.tenant_size for tenant, entry in recorded.items()} == {"bank": 3, "broker": 1}
        assert (await platform_log.advance())[0] == head
        await logs.append(intent("broker"), want_receipt=False)
        assert (await platform_log.advance())[0].size == 3
        assert opened(platform_log.head.checkpoint, platform_log.verifier_key) == Checkpoint(ORIGIN, 3, platform_log.head.root)


async def test_a_leaf_is_proven_in_its_tenant_and_its_tenant_in_the_platform(place: Place) -> None:
    async with platform(place) as (logs, platform_log):
        events = [intent("bank") for _ in range(7)]
        for number, event in enumerate(events):
            await logs.append(event, want_receipt=False)
            await logs.append(intent("broker"), want_receipt=False)
            if number % 2:
                platform_log.attest(*await platform_log.advance())
        platform_log.attest(*await platform_log.advance())
        tenant_key = logs.verifier_keys("bank")[0]
        for number, event in enumerate(events):
            for wanted in (number, event.event_id):
                proven = await platform_log.prove("bank", wanted)
                leaf, tenant, whole = check_pair(proven.receipt, proven.platform_proof, tenant_key, platform_log.verifier_key)
                assert event.event_id.encode() in leaf
                assert tenant == Checkpoint(f"{ORIGIN}/bank", 7, tenant.root)
                assert whole.size == platform_log.head.size


async def test_what_is_not_attested_yet_is_not_proven(place: Place) -> None:
    async with platform(place) as (logs, platform_log):
        await logs.append(intent("bank"), want_receipt=False)
        with pytest.raises(LeafNotCovered):
            await platform_log.prove("bank", 0)
        head, recorded = await platform_log.advance()
        with pytest.raises(LeafNotCovered):
            await platform_log.prove("bank", 0)
        await logs.append(intent("bank"), want_receipt=False)
        platform_log.attest(head, recorded)
        assert await platform_log.prove("bank", 0)
        with pytest.raises(LeafNotCovered):
            await platform_log.prove("bank", 1)
        with pytest.raises(LeafNotFound):
            await platform_log.prove("bank", 2)
        with pytest.raises(LogNotFound):
            await platform_log.prove("stranger", 0)


async def test_a_restart_goes_on_where_the_last_life_ended(place: Place) -> None:
    async with platform(place) as (logs, platform_log):
        for _ in range(20):
            await logs.append(intent("bank"), want_receipt=False)
            await platform_log.advance()
        await logs.append(intent("broker"), want_receipt=False)
        first, _ = await platform_log.advance()
    async with platform(place) as (logs, platform_log):
        assert platform_log.head == first
        assert (await platform_log.prove("bank", 19)).leaf.index == 19
        assert (await platform_log.advance())[0] == first  # what is recorded is not recorded again
        await logs.append(intent("bank"), want_receipt=False)
        second, _ = await platform_log.advance()
        assert second.size == first.size + 1
        proof = await platform_log.consistency_proof(first.size, second.size)
        verify_consistency(first.size, second.size, first.root, second.root, proof)


async def test_proofs_after_a_restart_lead_to_the_head_that_was_attested_then(place: Place) -> None:
    async with platform(place) as (logs, platform_log):
        await logs.append(intent("bank"), want_receipt=False)
        attested, _ = await platform_log.advance()
        await logs.append(intent("bank"), want_receipt=False)
        await platform_log.advance()
    async with platform(place, begin=False) as (logs, platform_log):
        await platform_log.begin(attested)
        proven = await platform_log.prove("bank", 0)
        _, tenant, whole = check_pair(
            proven.receipt, proven.platform_proof, logs.verifier_keys("bank")[0], platform_log.verifier_key
        )
        assert (tenant.size, whole.size) == (1, attested.size)
        with pytest.raises(LeafNotCovered):
            await platform_log.prove("bank", 1)


async def test_a_tenant_that_was_quiet_for_long_is_proven_after_a_restart(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    quiet, busy = TENANTS[:2]
    async with platform(place) as (logs, platform_log):
        await logs.append(intent(quiet), want_receipt=False)
        for _ in range(4):
            await logs.append(intent(busy), want_receipt=False)
            await platform_log.advance()
    monkeypatch.setattr("lionrock.audit.platform_log._SEARCH_LEAVES", 2)
    async with platform(place) as (logs, platform_log):
        proven = await platform_log.prove(quiet, 0)
        check_pair(proven.receipt, proven.platform_proof, logs.verifier_keys(quiet)[0], platform_log.verifier_key)


@pytest.mark.parametrize("leaves", [2, TAIL_LEAVES + 2])
async def test_a_platform_log_that_lacks_leaves_records_nothing_and_tenants_go_on(place: Place, leaves: int) -> None:
    async with platform(place) as (logs, platform_log):
        while platform_log.head.size < leaves:
            for tenant in TENANTS:
                await logs.append(intent(tenant), want_receipt=False)
            await platform_log.advance()
        for tenant in TENANTS:  # so that the next start has to look for what was recorded of them
            await logs.append(intent(tenant), want_receipt=False)
        log_id = platform_log.published[1]
    with closing(sqlite3.connect(place.store_file)) as store:
        store.execute("DELETE FROM leaves WHERE log_id = ? AND leaf_index = 0", (log_id,))
        store.commit()
    async with platform(place) as (logs, platform_log):
        assert platform_log.read_only is not None
        with pytest.raises(LogReadOnly):
            await platform_log.advance()
        appended = await logs.append(intent(TENANTS[0]), want_receipt=False)
        with pytest.raises(LeafNotCovered):
            await platform_log.prove(TENANTS[0], appended.leaf_index)


async def test_a_platform_may_sign_with_ml_dsa(place: Place) -> None:
    async with platform(place, SignatureType.ML_DSA_44_COSIGNATURE) as (logs, platform_log):
        await logs.append(intent("bank"), want_receipt=False)
        platform_log.attest(*await platform_log.advance())
        proven = await platform_log.prove("bank", 0)
        check_pair(proven.receipt, proven.platform_proof, logs.verifier_keys("bank")[0], platform_log.verifier_key)
        assert VerifierKey.parse(platform_log.verifier_key).type is SignatureType.ML_DSA_44_COSIGNATURE
    async with platform(place) as (logs, platform_log):
        assert (await platform_log.prove("bank", 0)).receipt


async def test_while_appends_are_refused_outcomes_and_proofs_go_on(place: Place) -> None:
    from audit_harness import outcome

    from lionrock.audit.failures import WitnessPolicyUnmet

    async with platform(place) as (logs, platform_log):
        begun = intent("bank")
        await logs.append(begun, want_receipt=False)
        logs.refuse_appends(lambda: "no witness answers")
        with pytest.raises(WitnessPolicyUnmet, match="no witness answers"):
            await logs.append(intent("bank"), want_receipt=False)
        await logs.append(outcome(begun, 0), want_receipt=False)
        platform_log.attest(*await platform_log.advance())
        assert await platform_log.prove("bank", 1)
        logs.refuse_appends(lambda: None)
        await logs.append(intent("bank"), want_receipt=False)
