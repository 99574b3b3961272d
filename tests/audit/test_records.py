"""Reading, searching, erasing, correcting and holding records, from append to the end."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator

import pytest
from audit_harness import Place, check_store, intent, outcome
from records_harness import Clock, Opened, RecordsPlace, concerning, who

from lionrock.audit import failures
from lionrock.audit.leaf import build_leaf, commitment
from lionrock.audit.records.holds import RecordScope
from lionrock.audit.v1 import audit_pb2 as pb
from lionrock.audit.wire import event_of
from lionrock.chassis.ids import uuid7
from lionrock.common.v1 import context_pb2


@pytest.fixture
def at(place: Place) -> RecordsPlace:
    return RecordsPlace(place)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
async def opened(at: RecordsPlace, clock: Clock) -> AsyncIterator[Opened]:
    async with at.open(clock=clock) as opened:
        yield opened


def subject(value: str) -> RecordScope:
    return RecordScope("subject", value)


async def test_what_was_said_is_read_back_and_opens_its_commitments(opened: Opened) -> None:
    said = await opened.say("食咗飯未？".encode(), b"Not yet.", subjects=("c-1", "c-2"))
    read = await opened.records.read(who("reviewer"), said.request_id)
    assert [(part.kind, part.payload) for part in read.payloads] == [("prompt", said.prompt), ("answer", said.answer)]
    for part in read.payloads:
        leaf = json.loads((await opened.logs.leaf_at("bank", part.leaf_index)).data)
        assert leaf["commitments"][part.kind] == commitment(part.salt, part.payload).hex()


async def test_an_erased_record_is_gone_and_its_leaves_stay(opened: Opened, at: RecordsPlace) -> None:
    said = await opened.say(subjects=("c-1",))
    erased = await opened.records.erase(who("privacy_officer"), subject("c-1"), basis="PDPO s.26", allow_partial=False)
    assert (erased.records, erased.kept) == (1, {})
    with pytest.raises(failures.RecordErased):
        await opened.records.read(who("reviewer"), said.request_id)
    with pytest.raises(failures.RecordNotFound):
        await opened.records.erase(who("privacy_officer"), subject("c-1"), basis="PDPO s.26", allow_partial=False)
    assert await opened.records.search(who("auditor"), subject("c-1"), 10) == []
    leaf = json.loads((await opened.logs.leaf_at("bank", erased.leaf.leaf_index)).data)
    assert leaf["type"] == "erasure"
    assert leaf["scope_commitment"] == subject("c-1").commitment(erased.scope_salt)
    assert "c-1" not in json.dumps(leaf)


async def test_a_person_and_a_case_have_their_records_newest_first(opened: Opened) -> None:
    first = await opened.say(subjects=("c-1",), case_id="CASE-1")
    second = await opened.say(subjects=("c-1", "c-2"), case_id="CASE-1")
    other = await opened.say(subjects=("c-2",))
    auditor = who("auditor")

    async def found(scope: RecordScope, limit: int = 10) -> list[str]:
        return [one.record.request_id for one in await opened.records.search(auditor, scope, limit)]

    assert await found(subject("c-1")) == [second.request_id, first.request_id]
    assert await found(subject("c-2")) == [other.request_id, second.request_id]
    assert await found(RecordScope("case", "CASE-1"), 1) == [second.request_id]
    assert await found(RecordScope("request", other.request_id)) == [other.request_id]
    assert await found(subject("CASE-1")) == await found(RecordScope("case", "c-1")) == await found(RecordScope("case", "\0")) == []
    (summary,) = await opened.records.search(auditor, RecordScope("request", first.request_id), 1)
    assert summary.outcome is not None
    assert (summary.other_leaves, summary.outcome.leaf_index) == ([first.leaves[0]], first.leaves[1])
    assert await opened.records.search(who("auditor", tenant="broker"), subject("c-1"), 10) == []


async def test_one_persons_erasure_takes_shared_records_and_leaves_the_others(opened: Opened) -> None:
    shared = await opened.say(subjects=("c-1", "c-2"))
    own = await opened.say(subjects=("c-2",))
    await opened.records.erase(who("privacy_officer"), subject("c-1"), basis="asked", allow_partial=False)
    with pytest.raises(failures.RecordErased):
        await opened.records.read(who("reviewer"), shared.request_id)
    read = await opened.records.read(who("reviewer"), own.request_id)
    assert read.payloads[0].payload == own.prompt


async def test_retention_refuses_erasure_until_its_day(opened: Opened, clock: Clock) -> None:
    kept = await opened.say(subjects=("c-1",), purpose="advice")
    free = await opened.say(subjects=("c-1",))
    officer = who("privacy_officer")
    with pytest.raises(failures.RetentionApplies) as refused:
        await opened.records.erase(officer, subject("c-1"), basis="asked", allow_partial=False)
    assert refused.value.records == 1
    recorded_at_us = (await opened.logs.leaf_at("bank", kept.leaves[0])).recorded_at_us
    assert refused.value.until_us == recorded_at_us + 365 * 86_400_000_000
    erased = await opened.records.erase(officer, subject("c-1"), basis="asked", allow_partial=True)
    assert (erased.records, erased.kept) == (1, {"RETENTION_APPLIES": 1})
    with pytest.raises(failures.RecordErased):
        await opened.records.read(officer, free.request_id)
    clock.advance(366)
    assert (await opened.records.erase(officer, subject("c-1"), basis="asked", allow_partial=False)).records == 1


@pytest.mark.parametrize("kind", ["subject", "case", "request"])
async def test_a_hold_keeps_records_from_erasure_and_expiry_until_it_is_released(opened: Opened, clock: Clock, kind: str) -> None:
    said = await opened.say(subjects=("c-1",), case_id="CASE-1", purpose="chit_chat")
    officer = who("privacy_officer")
    values = {"subject": "c-1", "case": "CASE-1", "request": said.request_id}
    hold_id, placed = await opened.records.place_hold(officer, RecordScope(kind, values[kind]), "litigation")  # type: ignore[arg-type]
    (hold,) = await opened.records.holds(officer)
    assert (hold.hold_id, hold.scope.value, hold.reason, hold.leaf_index) == (
        hold_id,
        values[kind],
        "litigation",
        placed.leaf_index,
    )
    with pytest.raises(failures.LegalHoldApplies):
        await opened.records.erase(officer, subject("c-1"), basis="asked", allow_partial=False)
    clock.advance(31)
    assert await opened.upkeep.expire("bank") == 0
    assert (await opened.records.search(officer, subject("c-1"), 10))[0].held
    await opened.records.release_hold(officer, hold_id)
    with pytest.raises(failures.HoldNotFound):
        await opened.records.release_hold(officer, hold_id)
    assert await opened.records.holds(officer) == []
    assert await opened.upkeep.expire("bank") == 1
    with pytest.raises(failures.RecordErased):
        await opened.records.read(officer, said.request_id)


async def test_a_hold_on_a_person_keeps_what_comes_later(opened: Opened) -> None:
    await opened.records.place_hold(who("regulator"), subject("c-9"), "inquiry")
    await opened.say(subjects=("c-9",))
    with pytest.raises(failures.LegalHoldApplies):
        await opened.records.erase(who("privacy_officer"), subject("c-9"), basis="asked", allow_partial=False)


async def test_holds_are_there_after_a_restart_and_do_not_say_whom_in_the_log(at: RecordsPlace) -> None:
    async with at.open() as opened:
        said = await opened.say(subjects=("c-secret",))
        _, placed = await opened.records.place_hold(who("mlro"), subject("c-secret"), "inquiry")
        leaf = (await opened.logs.leaf_at("bank", placed.leaf_index)).data
        assert b"c-secret" not in leaf
    async with at.open() as opened:
        assert [hold.scope.value for hold in await opened.records.holds(who("mlro"))] == ["c-secret"]
        with pytest.raises(failures.LegalHoldApplies):
            await opened.records.erase(
                who("privacy_officer"), RecordScope("request", said.request_id), basis="asked", allow_partial=False
            )


async def test_a_request_that_has_not_ended_is_not_erased(opened: Opened) -> None:
    asked = concerning(intent(prompt=b"still thinking"), ("c-1",))
    appended = await opened.logs.append(asked, want_receipt=False)
    with pytest.raises(failures.RequestOpen):
        await opened.records.erase(who("privacy_officer"), subject("c-1"), basis="asked", allow_partial=False)
    await opened.logs.append(outcome(asked, appended.leaf_index, answer=b"done"), want_receipt=False)
    assert (await opened.records.erase(who("privacy_officer"), subject("c-1"), basis="asked", allow_partial=False)).records == 1


async def test_nothing_is_added_to_an_erased_record(opened: Opened) -> None:
    said = await opened.say(subjects=("c-1",))
    await opened.records.erase(who("privacy_officer"), subject("c-1"), basis="asked", allow_partial=False)
    again = intent(prompt=b"once more", request_id=said.request_id)
    with pytest.raises(failures.RecordErased):
        await opened.logs.append(again, want_receipt=False)
    with pytest.raises(failures.RecordErased):
        await opened.records.correct(who("privacy_officer"), said.request_id, "it was not so")
    with pytest.raises(failures.EventAlreadyRecorded):  # its salt is gone: nobody can tell whether it is the same
        await opened.logs.append(said.events[0], want_receipt=False)


async def test_corrections_are_read_with_what_they_correct(opened: Opened) -> None:
    said = await opened.say()
    appended = await opened.records.correct(who("privacy_officer"), said.request_id, "我唔係咁講")
    read = await opened.records.read(who("reviewer"), said.request_id)
    assert [(part.kind, part.leaf_index) for part in read.payloads][-1] == ("correction", appended.leaf_index)
    assert read.payloads[-1].payload.decode() == "我唔係咁講"
    assert read.payloads[0].payload == said.prompt


async def test_the_log_book_is_kept_for_four_years_and_outside_erasure(opened: Opened, clock: Clock) -> None:
    officer = who("privacy_officer")
    for number in range(3):
        await opened.records.log_refusal(
            officer, request="access", subject_id="c-1", ground=f"PDPO s.20({number})", particulars="because"
        )
    entries = await opened.records.refusals(who("auditor"), 2)
    assert [(entry.ground, entry.subject_id, entry.particulars) for entry in entries] == [
        ("PDPO s.20(2)", "c-1", "because"),
        ("PDPO s.20(1)", "c-1", "because"),
    ]
    with pytest.raises(failures.RecordNotFound):
        await opened.records.erase(officer, subject("c-1"), basis="asked", allow_partial=True)
    clock.advance(5000)
    assert await opened.upkeep.expire("bank") == 0


async def test_expiry_takes_what_is_due_in_batches_each_with_its_leaf(at: RecordsPlace, clock: Clock) -> None:
    async with at.open(clock=clock, batch=2) as opened:
        due = [await opened.say(purpose="chit_chat") for _ in range(5)]
        stays = await opened.say(purpose="advice")
        clock.advance(29)
        assert await opened.upkeep.expire("bank") == 0
        clock.advance(2)
        assert await opened.upkeep.expire("bank") == 5
        assert await opened.upkeep.expire("bank") == 0
        leaves = [json.loads(data) for data in await all_leaves(opened)]
        expiries = [leaf for leaf in leaves if leaf["type"] == "expiry"]
        assert [leaf["record_count"] for leaf in expiries] == [2, 2, 1]
        assert {leaf["retention_class"] for leaf in expiries} == {"short"}
        found = await opened.records.search(who("auditor"), RecordScope("request", due[0].request_id), 1)
        assert [one.record.state for one in found] == ["expired"]
        assert (await opened.records.read(who("auditor"), stays.request_id)).payloads
        clock.advance(365 * 2)
        assert await opened.upkeep.expire("bank") == 1


async def test_suspicion_exists_for_those_who_are_cleared_alone(opened: Opened) -> None:
    plain = await opened.say(subjects=("c-1",), case_id="CASE-1")
    hidden = await opened.say(b"STR filed", subjects=("c-1",), case_id="CASE-1", data_class="suspicion")
    for role in ("privacy_officer", "auditor"):
        for scope in (subject("c-1"), RecordScope("case", "CASE-1"), RecordScope("request", hidden.request_id)):
            found = await opened.records.search(who(role), scope, 10)
            assert [one.record.request_id for one in found] == ([] if scope.kind == "request" else [plain.request_id])
        with pytest.raises(failures.RecordNotFound):
            await opened.records.read(who(role), hidden.request_id)
        _, counts = await opened.records.stats(who(role))
        assert counts.records == {"kept": 1}
    with pytest.raises(failures.RecordNotFound):
        await opened.records.place_hold(who("privacy_officer"), RecordScope("request", hidden.request_id), "why")
    with pytest.raises(failures.RecordNotFound):
        await opened.records.correct(who("privacy_officer"), hidden.request_id, "no")
    erased = await opened.records.erase(who("privacy_officer"), subject("c-1"), basis="asked", allow_partial=False)
    assert (erased.records, erased.kept) == (1, {})
    with pytest.raises(failures.RecordNotFound):
        await opened.records.erase(who("privacy_officer"), subject("c-1"), basis="asked", allow_partial=False)
    for role in ("mlro", "regulator"):
        read = await opened.records.read(who(role), hidden.request_id)
        assert read.payloads[0].payload == b"STR filed"
        assert json.loads((await opened.logs.leaf_at("bank", read.access.leaf_index)).data)["data_class"] == "suspicion"
    hold_id, _ = await opened.records.place_hold(who("mlro"), RecordScope("request", hidden.request_id), "tell nobody")
    assert await opened.records.holds(who("privacy_officer")) == []
    with pytest.raises(failures.HoldNotFound):
        await opened.records.release_hold(who("privacy_officer"), hold_id)
    assert (await opened.records.stats(who("privacy_officer")))[1].holds == 0
    assert (await opened.records.stats(who("regulator")))[1].holds == 1


async def test_what_is_due_of_suspicion_expires_under_a_leaf_of_its_own_class(opened: Opened, clock: Clock) -> None:
    await opened.say(purpose="chit_chat")
    await opened.say(purpose="chit_chat", data_class="suspicion")
    clock.advance(31)
    assert await opened.upkeep.expire("bank") == 2
    expiries = [leaf for leaf in map(json.loads, await all_leaves(opened)) if leaf["type"] == "expiry"]
    assert [(leaf["record_count"], leaf.get("data_class")) for leaf in expiries] == [(1, None), (1, "suspicion")]


async def test_a_tenant_without_a_vault_has_no_records_and_its_log_goes_on(at: RecordsPlace) -> None:
    async with at.open(vaulted=("bank",)) as opened:
        said = await opened.say(tenant="broker")
        asker = who("auditor", "privacy_officer", tenant="broker")
        with pytest.raises(failures.VaultDisabled):
            await opened.records.read(asker, said.request_id)
        with pytest.raises(failures.VaultDisabled):
            await opened.records.erase(asker, subject("c-1"), basis="asked", allow_partial=False)
        leaves, counts = await opened.records.stats(asker)
        assert (leaves, counts.records, counts.payload_bytes) == (2, {}, 0)
        with pytest.raises(failures.LogNotFound):
            await opened.records.read(who("auditor", tenant="nobody"), said.request_id)


async def test_a_repeated_append_gets_its_first_salt_also_after_a_restart(at: RecordsPlace) -> None:
    async with at.open() as opened:
        said = await opened.say(subjects=("c-1",))
        again = await opened.logs.append(said.events[0], want_receipt=False)
        assert (again.leaf_index, again.salt) == (said.leaves[0], said.salts[0])
    async with at.open() as opened:
        again = await opened.logs.append(said.events[1], want_receipt=False)
        assert (again.leaf_index, again.salt) == (said.leaves[1], said.salts[1])
        other = concerning(said.events[0], ("c-2",))
        with pytest.raises(failures.EventAlreadyRecorded):
            await opened.logs.append(other, want_receipt=False)
        assert len((await opened.records.read(who("reviewer"), said.request_id)).payloads) == 2


async def test_keys_whose_leaf_never_came_are_swept_and_others_are_not(opened: Opened, clock: Clock) -> None:
    said = await opened.say(subjects=("c-1",))
    hold_id, _ = await opened.records.place_hold(who("mlro"), subject("c-1"), "inquiry")
    await opened.keys.key_for("bank", "never-written", [])
    assert await opened.upkeep.sweep_keys("bank") == 0
    clock.advance(1)
    assert await opened.upkeep.sweep_keys("bank") == 1
    assert opened.key_store.record_key("bank", "never-written") is None
    assert opened.key_store.record_key("bank", said.request_id) is not None
    assert opened.key_store.record_key("bank", hold_id) is not None


async def test_every_leaf_of_records_is_small_whatever_is_asked(opened: Opened) -> None:
    long = "限" * 256
    said = await opened.say(subjects=tuple(f"{number:0128}" for number in range(16)), case_id="C" * 128)
    officer = who("privacy_officer")
    await opened.records.correct(officer, said.request_id, "x" * 65536)
    await opened.records.log_refusal(officer, request="erasure", subject_id="s" * 128, ground=long, particulars="y" * 65536)
    hold_id, _ = await opened.records.place_hold(officer, RecordScope("case", "C" * 128), long)
    await opened.records.release_hold(officer, hold_id)
    await opened.records.erase(officer, RecordScope("case", "C" * 128), basis=long, allow_partial=True)
    assert max(map(len, await all_leaves(opened))) < 2048


async def test_the_log_with_records_still_verifies_leaf_by_leaf(at: RecordsPlace) -> None:
    async with at.open() as opened:
        await opened.say(subjects=("c-1",))
        await opened.records.erase(who("privacy_officer"), subject("c-1"), basis="asked", allow_partial=False)
    types = [json.loads(leaf)["type"] for leaf in check_store(at.place.store_file)]
    assert types == ["intent", "outcome", "erasure"]


async def all_leaves(opened: Opened) -> list[bytes]:
    return [leaf.data async for page in opened.logs.leaves("bank", 0, 10_000) for leaf in page]


async def test_an_intent_names_its_class_of_retention_where_payloads_are_kept(at: RecordsPlace) -> None:
    async with at.open(vaulted=("bank",)) as opened:
        await opened.say(purpose="advice")
        await opened.say(tenant="broker", purpose="advice")
        kept, not_kept = [
            json.loads((await anext(aiter(opened.logs.leaves(tenant, 0, 1))))[0].data) for tenant in ("bank", "broker")
        ]
    assert kept["retention_class"] == "long"
    assert "retention_class" not in not_kept


def test_the_snapshots_of_screening_lists_are_in_the_leaf() -> None:
    digests = {"un_consolidated": "sha256:" + "a" * 64}
    verdict = pb.GuardrailSummary(action="allow", list_snapshot_digests=digests)
    context = context_pb2.RequestContext(request_id=uuid7(), tenant="bank", actor="a", auth_method=context_pb2.AUTH_METHOD_MTLS)
    intent_of = pb.Intent(action="chat", model="m", prompt_verdict=verdict, subject_ids=["c-1"])
    event = event_of(pb.AppendRequest(context=context, event_id=uuid7(), intent=intent_of))
    leaf = json.loads(build_leaf(event, recorded_at_us=0, salt=b""))
    assert leaf["prompt_verdict"]["list_snapshot_digests"] == digests
    assert event.subject_ids == ("c-1",)
    assert "c-1" not in json.dumps(leaf)
