"""When the client goes away or its time is up: the engine stops at once, and the log says how it ended."""

from __future__ import annotations

import asyncio
from statistics import median
from typing import Any

import grpc
import pytest

from lionrock.audit.v1 import audit_pb2 as audit
from scripted_mesh import ScriptedMesh, hang


async def test_the_engine_stops_within_100_ms_of_a_cancelled_answer(mesh: ScriptedMesh, stub: Any, ask: Any) -> None:
    loop, delays_s = asyncio.get_running_loop(), []
    for number in range(5):
        mesh.engine.pace = asyncio.Semaphore(3)
        mesh.engine.cancelled.clear()
        call = stub.Chat(ask())
        assert (await anext(aiter(call))).HasField("started")
        assert (await anext(aiter(call))).HasField("delta")

        cancelled_at = loop.time()
        call.cancel()
        await mesh.engine.cancelled.wait()
        delays_s.append(mesh.engine.cancelled_at[-1] - cancelled_at)

        outcome = (await mesh.log.outcome(number)).outcome
        assert (outcome.status, outcome.reason) == (audit.OUTCOME_STATUS_ABORTED, "CLIENT_CANCELLED")
        assert outcome.HasField("intent_index")
        assert outcome.answer
        assert mesh.engine.text.startswith(outcome.answer.decode())
    assert median(delays_s) < 0.1, delays_s


async def test_the_engine_stops_when_the_client_goes_during_prefill(mesh: ScriptedMesh, stub: Any, ask: Any) -> None:
    prefilling = asyncio.Event()

    async def prefill() -> None:
        prefilling.set()
        await hang()

    mesh.engine.faults["Generate"] = prefill
    call = stub.Chat(ask())
    reading = asyncio.ensure_future(anext(aiter(call)))
    await prefilling.wait()
    reading.cancel()
    await mesh.engine.cancelled.wait()
    outcome = (await mesh.log.outcome()).outcome
    assert outcome.status == audit.OUTCOME_STATUS_ABORTED
    assert not outcome.answer


async def test_an_intent_under_way_is_named_by_the_outcome_of_a_client_that_went(mesh: ScriptedMesh, stub: Any, ask: Any) -> None:
    durable, asked = asyncio.Event(), asyncio.Event()

    async def slow() -> None:
        asked.set()
        await durable.wait()

    mesh.engine.pace = asyncio.Semaphore(1)
    mesh.log.faults["Append.intent"] = slow
    call = stub.Chat(ask())
    reading = asyncio.ensure_future(anext(aiter(call)))
    await asked.wait()
    reading.cancel()
    await mesh.engine.cancelled.wait()
    durable.set()
    outcome = (await mesh.log.outcome()).outcome
    assert outcome.HasField("intent_index")
    assert [leaf.WhichOneof("event") for leaf in mesh.log.leaves] == ["intent", "outcome"]


async def test_a_client_that_goes_while_the_outcome_is_written_leaves_an_answered_request(
    mesh: ScriptedMesh, stub: Any, ask: Any
) -> None:
    durable, asked = asyncio.Event(), asyncio.Event()

    async def slow() -> None:
        asked.set()
        await durable.wait()

    mesh.log.faults["Append.outcome"] = slow
    call = stub.Chat(ask())
    reading = asyncio.ensure_future(drain(call))
    await asked.wait()
    reading.cancel()
    durable.set()
    assert (await mesh.log.outcome()).outcome.status == audit.OUTCOME_STATUS_ANSWERED
    assert len(mesh.log.outcomes) == 1


async def drain(call: Any) -> None:
    async for _ in call:
        pass


async def test_a_passed_deadline_ends_the_answer_and_is_recorded_as_such(mesh: ScriptedMesh, stub: Any, ask: Any) -> None:
    mesh.engine.pace = asyncio.Semaphore(3)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await drain(stub.Chat(ask(), timeout=2))
    assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    await mesh.engine.cancelled.wait()
    outcome = (await mesh.log.outcome()).outcome
    assert (outcome.status, outcome.reason) == (audit.OUTCOME_STATUS_FAILED, "DEADLINE_EXCEEDED")


async def test_a_deadline_that_leaves_no_time_is_refused_before_any_work(idle_mesh: ScriptedMesh, ask: Any, failure: Any) -> None:
    idle_mesh.limits["min_deadline_s"] = 5
    async with idle_mesh.running(), idle_mesh.calling() as stub:
        error = await failure(stub.Chat(ask(), timeout=4))
    assert (error.status.name, error.reason) == ("DEADLINE_EXCEEDED", "DEADLINE_TOO_SHORT")
    assert not idle_mesh.guardrails.requests
    assert not idle_mesh.log.leaves


async def test_a_stopping_gateway_writes_the_outcomes_of_what_it_cut_off(idle_mesh: ScriptedMesh, ask: Any) -> None:
    idle_mesh.engine.pace = asyncio.Semaphore(2)
    async with idle_mesh.running(), idle_mesh.calling() as stub:
        call = stub.Chat(ask())
        await anext(aiter(call))
        await anext(aiter(call))
        await idle_mesh.servers["gateway"].stop()
    assert [leaf.outcome.status for leaf in idle_mesh.log.outcomes] == [audit.OUTCOME_STATUS_ABORTED]


async def test_a_client_that_does_not_read_holds_up_nobody_else(idle_mesh: ScriptedMesh, ask: Any, hear: Any) -> None:
    idle_mesh.limits["max_delta_tokens"] = 65_536
    idle_mesh.engine.text, idle_mesh.engine.chunk = "x" * 500_000, 50_000
    async with idle_mesh.running(), idle_mesh.calling() as stub, idle_mesh.calling(idle_mesh.identity(who="bob")) as other:
        unread = stub.Chat(ask())
        await anext(aiter(unread))
        heard = await hear(other.Chat(ask()))
        assert len(heard.text) == 500_000
        unread.cancel()
