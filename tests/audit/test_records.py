"""Reading, searching, erasing, correcting and holding records, from append to the end."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator

import pytest
from audit_harness import Place, check_store
from records_harness import Clock, Opened, RecordsPlace, who

from lionrock.audit import failures
from lionrock.audit.leaf import commitment
from lionrock.audit.records.holds import RecordScope


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
