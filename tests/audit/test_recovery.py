from __future__ import annotations

import asyncio
import json

import pytest
from audit_harness import Place, check_store, intent, outcome

from lionrock.audit.failures import IntentClosed
from lionrock.audit.log import AuditLogs
from lionrock.audit.recovery import OrphanSweep


class Clock:
    """A monotonic clock that stands still until it is moved."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


async def test_an_intent_without_an_outcome_is_closed_once_it_is_old(logs: AuditLogs, place: Place) -> None:
    clock = Clock()
    sweep = OrphanSweep(logs, orphan_after_s=60, clock=clock)
    orphan, lively, later = intent(case_id="CASE-1", roles=("analyst",)), intent(), intent("broker")
    await logs.append(orphan, want_receipt=False)
    index = (await logs.append(lively, want_receipt=False)).leaf_index
    assert await sweep.sweep() == 0
    clock.now += 30
    await logs.append(later, want_receipt=False)
    assert await sweep.sweep() == 0
    await logs.append(outcome(lively, index), want_receipt=False)
    clock.now += 30
    assert await sweep.sweep() == 1
    assert await sweep.sweep() == 0
    closing = await logs.receipt("bank", orphan.context.request_id)
    assert closing.leaf_index == 3
    clock.now += 30
    assert await sweep.sweep() == 1
    with pytest.raises(IntentClosed):
        await logs.append(outcome(orphan, 0), want_receipt=False)


async def test_the_closing_leaf_carries_the_context_of_its_intent(place: Place) -> None:
    clock = Clock()
    orphan = intent(case_id="CASE-1", roles=("analyst",))
    async with place.open() as logs:
        sweep = OrphanSweep(logs, orphan_after_s=60, clock=clock)
        await logs.append(orphan, want_receipt=False)
        await sweep.sweep()
        clock.now += 60
        assert await sweep.sweep() == 1
    opened, closing = (json.loads(leaf) for leaf in check_store(place.store_file))
    assert {key: closing[key] for key in ("type", "intent_index", "status", "reason", "recorded_by")} == {
        "type": "outcome",
        "intent_index": 0,
        "status": "failed",
        "reason": "OUTCOME_MISSING",
        "recorded_by": "recovery",
    }
    own = {"type", "event_id", "ts", "action", "model", "prompt_tokens", "commitments"}
    assert {key: value for key, value in opened.items() if key not in own}.items() <= closing.items()


async def test_after_a_restart_the_full_time_runs_again(place: Place) -> None:
    clock = Clock()
    async with place.open() as logs:
        sweep = OrphanSweep(logs, orphan_after_s=60, clock=clock)
        await logs.append(intent(), want_receipt=False)
        await sweep.sweep()
        clock.now += 59
    async with place.open() as logs:
        sweep = OrphanSweep(logs, orphan_after_s=60, clock=clock)
        clock.now += 59
        assert await sweep.sweep() == 0
        clock.now += 59
        assert await sweep.sweep() == 0
        clock.now += 1
        assert await sweep.sweep() == 1


async def test_a_request_id_that_is_taken_does_not_keep_an_intent_open(logs: AuditLogs) -> None:
    clock = Clock()
    sweep = OrphanSweep(logs, orphan_after_s=60, clock=clock)
    orphan = intent()
    await logs.append(outcome(orphan, None, event_id=orphan.context.request_id), want_receipt=False)
    await logs.append(orphan, want_receipt=False)  # arrived after the outcome that could not know it
    await sweep.sweep()
    clock.now += 60
    assert await sweep.sweep() == 1
    assert await logs.open_intents("bank", 99, 99) == []


async def test_hundreds_of_orphans_are_closed_in_pages(logs: AuditLogs) -> None:
    clock = Clock()
    sweep = OrphanSweep(logs, orphan_after_s=60, clock=clock)
    await asyncio.gather(*(logs.append(intent(), want_receipt=False) for _ in range(300)))
    await sweep.sweep()
    clock.now += 60
    assert await sweep.sweep() == 300


async def test_memory_of_the_sweep_is_bounded_by_its_age(logs: AuditLogs) -> None:
    clock = Clock()
    sweep = OrphanSweep(logs, orphan_after_s=60, clock=clock)
    for _ in range(200):
        await sweep.sweep()
        clock.now += 15
    assert len(sweep._seen) <= 6
