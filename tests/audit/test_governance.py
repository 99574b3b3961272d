"""Decisions about access in the log: what their leaves say, and what becomes of the text that people wrote about them."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
from audit_harness import Place, intent
from hypothesis import given
from hypothesis import strategies as st
from records_harness import Clock, Opened, RecordsPlace, concerning, decision, who

from lionrock.audit import failures
from lionrock.audit.leaf import Event, build_leaf, commitment, new_salt
from lionrock.audit.records.holds import RecordScope
from lionrock.audit.records.permissions import is_withheld
from lionrock.audit.v1 import audit_pb2 as pb
from lionrock.audit.wire import event_of
from lionrock.chassis.ids import uuid7
from lionrock.common.v1 import context_pb2

STATEMENT = b"The customer asked by telephone; checked with Ms Chan."


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
async def opened(place: Place, clock: Clock) -> AsyncIterator[Opened]:
    async with RecordsPlace(place).open(clock=clock) as opened:
        yield opened


def subject(value: str) -> RecordScope:
    return RecordScope("subject", value)


async def leaf_of(opened: Opened, event: Event) -> dict[str, Any]:
    appended = await opened.logs.append(event, want_receipt=False)
    said: dict[str, Any] = json.loads((await opened.logs.leaf_at("bank", appended.leaf_index)).data)
    return said


def asked(**changes: Any) -> pb.AppendRequest:
    values: dict[str, Any] = {"operation": "consent.recorded", "object_id": "consent-1", "details": {"purpose": "marketing"}}
    context = context_pb2.RequestContext(
        request_id=uuid7(),
        tenant="bank",
        actor="ada",
        auth_method=context_pb2.AUTH_METHOD_OIDC,
        purpose="oversight",
        territory="HK",
        profile="default",
        **changes.pop("context", {}),
    )
    return pb.AppendRequest(context=context, event_id=uuid7(), governance=pb.Governance(**values | changes))


def written(request: pb.AppendRequest) -> dict[str, Any]:
    event = event_of(request)
    leaf: dict[str, Any] = json.loads(build_leaf(event, recorded_at_us=0, salt=new_salt(event)))
    return leaf


def test_a_decision_is_a_leaf_with_what_was_done_to_what() -> None:
    leaf = written(asked())
    assert (leaf["type"], leaf["operation"], leaf["object_id"]) == ("governance", "consent.recorded", "consent-1")
    assert leaf["details"] == {"purpose": "marketing"}
    assert leaf["actor"] == "ada"
    assert {"commitments", "retention_class", "break_glass_id"}.isdisjoint(leaf)
    assert "details" not in written(asked(details={}))


@given(statement=st.text(min_size=1, max_size=200), subject_id=st.from_regex(r"[A-Za-z0-9._:/-]{8,128}", fullmatch=True))
def test_neither_statement_nor_data_subjects_stand_in_a_leaf(statement: str, subject_id: str) -> None:
    event = event_of(asked(statement=statement.encode(), subject_ids=[subject_id]))
    salt = new_salt(event)
    data = build_leaf(event, recorded_at_us=0, salt=salt)
    leaf = json.loads(data)
    assert leaf["commitments"] == {"statement": commitment(salt, statement.encode()).hex()}
    assert subject_id.encode() not in data
    assert event.subject_ids == (subject_id,)


def test_every_kind_of_leaf_names_the_emergency_access_under_which_it_was_made() -> None:
    under = uuid7()
    assert written(asked(context={"break_glass_id": under}))["break_glass_id"] == under
    event = event_of(pb.AppendRequest(context=asked(context={"break_glass_id": under}).context, intent=pb.Intent(model="m")))
    assert json.loads(build_leaf(event, recorded_at_us=0, salt=b""))["break_glass_id"] == under


def test_a_statement_that_is_no_text_is_refused() -> None:
    with pytest.raises(ValueError, match="utf-8"):
        event_of(asked(statement=b"\xff\xfe"))


def test_details_that_do_not_fit_a_leaf_are_refused() -> None:
    details = {f"{'name' * 15}_{number}": "v" * 128 for number in range(10, 22)}
    with pytest.raises(failures.LeafTooLarge):
        written(asked(details=details))


async def test_a_statement_is_read_back_and_opens_its_commitment(opened: Opened) -> None:
    event = decision(statement=STATEMENT, case_id="CASE-1")
    leaf = await leaf_of(opened, event)
    (part,) = (await opened.records.read(who("reviewer"), event.context.request_id)).payloads
    assert (part.kind, part.payload) == ("statement", STATEMENT)
    assert leaf["commitments"]["statement"] == commitment(part.salt, part.payload).hex()
    (found,) = await opened.records.search(who("auditor"), RecordScope("case", "CASE-1"), 10)
    assert found.record.request_id == event.context.request_id


async def test_a_decision_about_a_person_is_found_and_erased_with_them(opened: Opened) -> None:
    silent, told = decision(subjects=("c-1",)), decision(statement=STATEMENT, subjects=("c-1", "c-2"))
    for event in (silent, told):
        await opened.logs.append(event, want_receipt=False)
    found = await opened.records.search(who("auditor"), subject("c-1"), 10)
    assert {one.record.request_id for one in found} == {silent.context.request_id, told.context.request_id}
    erased = await opened.records.erase(who("privacy_officer"), subject("c-1"), basis="PDPO s.26", allow_partial=False)
    assert erased.records == 2
    with pytest.raises(failures.RecordErased):
        await opened.records.read(who("reviewer"), told.context.request_id)


async def test_the_class_of_retention_stands_in_the_leaf_where_something_is_kept(opened: Opened, clock: Clock) -> None:
    assert (await leaf_of(opened, decision(statement=STATEMENT, purpose="advice")))["retention_class"] == "long"
    assert (await leaf_of(opened, decision(subjects=("c-1",), purpose="chit_chat")))["retention_class"] == "short"
    assert "retention_class" not in await leaf_of(opened, decision(purpose="advice"))
    clock.advance(31)
    assert await opened.upkeep.expire("bank") == 1


async def test_a_decision_of_which_nothing_is_kept_leaves_nothing_beside_its_leaf(opened: Opened) -> None:
    event = decision()
    await opened.logs.append(event, want_receipt=False)
    with pytest.raises(failures.RecordNotFound):
        await opened.records.read(who("reviewer"), event.context.request_id)


async def test_a_decision_about_a_request_joins_its_record_and_goes_with_it(opened: Opened) -> None:
    said = await opened.say(subjects=("c-1",))
    told = decision(statement=STATEMENT, request_id=said.request_id)
    await opened.logs.append(told, want_receipt=False)
    read = await opened.records.read(who("reviewer"), said.request_id)
    assert [part.kind for part in read.payloads] == ["prompt", "answer", "statement"]
    await opened.records.erase(who("privacy_officer"), subject("c-1"), basis="PDPO s.26", allow_partial=False)
    with pytest.raises(failures.RecordErased):
        await opened.logs.append(decision(statement=b"later", request_id=said.request_id), want_receipt=False)


async def test_a_decision_about_other_people_does_not_join_a_record(opened: Opened) -> None:
    said = await opened.say(subjects=("c-1",))
    with pytest.raises(failures.EventAlreadyRecorded):
        await opened.logs.append(decision(statement=STATEMENT, subjects=("c-2",), request_id=said.request_id), want_receipt=False)


async def test_two_decisions_of_one_call_share_a_record(opened: Opened) -> None:
    request_id = uuid7()
    for text in (b"first", b"second"):
        await opened.logs.append(decision(statement=text, request_id=request_id), want_receipt=False)
    read = await opened.records.read(who("reviewer"), request_id)
    assert [part.payload for part in read.payloads] == [b"first", b"second"]


async def test_a_decision_that_is_repeated_has_one_leaf(opened: Opened) -> None:
    event = decision(statement=STATEMENT, subjects=("c-1",))
    first = await opened.logs.append(event, want_receipt=True)
    again = await opened.logs.append(event, want_receipt=True)
    assert (first.leaf_index, first.salt) == (again.leaf_index, again.salt)
    other = Event(event.event_id, "", event.context, event.body, {"statement": b"another"}, ("c-1",))
    with pytest.raises(failures.EventAlreadyRecorded):
        await opened.logs.append(other, want_receipt=False)


async def test_a_decision_about_suspicion_exists_for_those_cleared_alone(opened: Opened) -> None:
    event = decision(statement=STATEMENT, data_class="suspicion", case_id="CASE-9")
    appended = await opened.logs.append(event, want_receipt=False)
    leaf = (await opened.logs.leaf_at("bank", appended.leaf_index)).data
    assert is_withheld(leaf, ("auditor",))
    assert not is_withheld(leaf, ("mlro",))
    with pytest.raises(failures.RecordNotFound):
        await opened.records.read(who("auditor"), event.context.request_id)
    assert len((await opened.records.read(who("mlro"), event.context.request_id)).payloads) == 1


async def test_where_nothing_is_kept_a_statement_is_committed_to_all_the_same(place: Place) -> None:
    async with RecordsPlace(place).open(vaulted=("broker",)) as opened:
        event = decision(statement=STATEMENT, subjects=("c-1",))
        appended = await opened.logs.append(event, want_receipt=False)
        leaf = json.loads((await opened.logs.leaf_at("bank", appended.leaf_index)).data)
        assert leaf["commitments"]["statement"] == commitment(appended.salt, STATEMENT).hex()
        assert "retention_class" not in leaf


async def test_an_intent_after_a_decision_of_its_request_keeps_its_own_people(opened: Opened) -> None:
    event = intent(prompt=b"a question")
    await opened.logs.append(decision(request_id=event.context.request_id), want_receipt=False)
    await opened.logs.append(concerning(event, ("c-1",)), want_receipt=False)
    (found,) = await opened.records.search(who("auditor"), subject("c-1"), 10)
    assert found.record.request_id == event.context.request_id


@pytest.mark.parametrize("texts", [(b"yes", b"no"), (b"yes", b""), (b"", b"no"), (b"", b"")])
async def test_of_two_who_decide_at_once_under_one_event_exactly_one_does(opened: Opened, texts: tuple[bytes, bytes]) -> None:
    one, other = (decision(statement=text, actor=actor) for text, actor in zip(texts, ("ada", "bob"), strict=True))
    both = [one, Event(one.event_id, "", other.context, other.body, other.payloads)]
    answers = await asyncio.gather(*(opened.logs.append(each, want_receipt=True) for each in both), return_exceptions=True)
    (lost,) = (number for number, answer in enumerate(answers) if isinstance(answer, failures.EventAlreadyRecorded))
    won = answers[1 - lost]
    assert not isinstance(won, BaseException)
    assert (await opened.logs.append(both[1 - lost], want_receipt=True)).leaf_index == won.leaf_index
    with pytest.raises(failures.EventAlreadyRecorded):
        await opened.logs.append(both[lost], want_receipt=False)
    with pytest.raises(failures.RecordNotFound):
        await opened.records.read(who("reviewer"), both[lost].context.request_id)
