"""Each inner service down, dying, late or wrong: a precise reason, an engine that stops, a log that says what happened."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc
import pytest

from lionrock.audit.v1 import audit_pb2 as audit
from lionrock.common.v1 import sampling_pb2 as sampling
from lionrock.guardrails.v1 import guardrails_pb2 as guard
from lionrock.inference.v1 import inference_pb2 as inf
from scripted_mesh import BLOCKED_WORD, MASKED_WORD, EngineFull, ScriptedMesh, ShardGroupLost, Trouble, hang, raising

REASONS = {
    "audit": "AUDIT_UNAVAILABLE",
    "guardrails": "GUARDRAILS_UNAVAILABLE",
    "tokenization": "TOKENIZATION_UNAVAILABLE",
    "inference": "INFERENCE_UNAVAILABLE",
}


def faulty(mesh: ScriptedMesh, service: str) -> Any:
    return {"audit": mesh.log, "guardrails": mesh.guardrails, "tokenization": mesh.tokenizer, "inference": mesh.engine}[service]


@pytest.mark.parametrize("service", REASONS)
async def test_without_a_peer_there_is_no_answer_and_the_reason_names_it(
    mesh: ScriptedMesh, ask: Any, failure: Any, service: str
) -> None:
    await mesh.kill_peer(service)
    async with mesh.calling() as stub:
        error = await failure(stub.Chat(ask(model="parrot")))

    assert (error.status.name, error.reason) == ("UNAVAILABLE", REASONS[service])
    assert error.retry_after_s is not None
    assert error.metadata["peer_status"] == "UNAVAILABLE"
    await idle(mesh)


async def idle(mesh: ScriptedMesh) -> None:
    """Wait until the engine has nothing to do."""
    async with asyncio.timeout(5):
        while mesh.engine.running:
            mesh.engine.cancelled.clear()
            await mesh.engine.cancelled.wait()


@pytest.mark.parametrize("service", ["guardrails", "tokenization"])
async def test_a_peer_that_comes_back_is_used_again(
    mesh: ScriptedMesh, stub: Any, ask: Any, hear: Any, failure: Any, service: str
) -> None:
    port = mesh.servers[service].port
    await mesh.kill_peer(service)
    await failure(stub.Chat(ask()))
    await mesh.start_peer(service, port)
    async with asyncio.timeout(10):
        while True:
            try:
                heard = await hear(stub.Chat(ask()))
                break
            except grpc.aio.AioRpcError:  # until the channel has connected again
                continue
    assert heard.text == mesh.engine.text


@pytest.mark.parametrize(
    ("service", "point"),
    [
        ("guardrails", "Inspect"),
        ("guardrails", "InspectStream.open"),
        ("guardrails", "InspectStream.chunk"),
        ("guardrails", "InspectStream.end"),
        ("tokenization", "Encode"),
        ("tokenization", "SpellTokens"),
        ("audit", "Append.intent"),
        ("audit", "Append.outcome"),
    ],
)
@pytest.mark.parametrize("how", ["fails", "hangs"])
async def test_a_peer_that_fails_or_hangs_at_any_point_ends_the_answer_with_its_reason(
    idle_mesh: ScriptedMesh, ask: Any, failure: Any, service: str, point: str, how: str
) -> None:
    if how == "hangs":
        idle_mesh.peer_timeout_s = idle_mesh.limits["outcome_timeout_s"] = 1.0
    faulty(idle_mesh, service).faults[point] = raising(Trouble("down")) if how == "fails" else hang
    async with idle_mesh.running(), idle_mesh.calling() as stub:
        error = await failure(stub.Chat(ask()))
        await idle(idle_mesh)

    assert (error.status.name, error.reason) == ("UNAVAILABLE", REASONS[service])
    if service != "audit":
        (outcome,) = idle_mesh.log.outcomes
        assert outcome.outcome.status == audit.OUTCOME_STATUS_FAILED
        assert outcome.outcome.reason == REASONS[service]


async def test_guardrails_that_die_in_mid_stream_end_the_answer_and_the_engine(
    mesh: ScriptedMesh, stub: Any, ask: Any, failure: Any
) -> None:
    mesh.engine.pace = asyncio.Semaphore(1)
    call = stub.Chat(ask())
    assert (await anext(aiter(call))).HasField("started")
    assert (await anext(aiter(call))).HasField("delta")

    await mesh.kill_peer("guardrails")
    mesh.engine.pace.release()
    error = await failure(call)

    assert error.reason == REASONS["guardrails"]
    await mesh.engine.cancelled.wait()
    outcome = (await mesh.log.outcome()).outcome
    assert outcome.answer.decode() == mesh.engine.text[0]
    assert outcome.HasField("intent_index")


async def test_an_answer_goes_on_without_the_tokenizer_whose_tokens_are_known(
    mesh: ScriptedMesh, stub: Any, ask: Any, hear: Any
) -> None:
    mesh.engine.pace = asyncio.Semaphore(1)
    call = stub.Chat(ask())
    assert (await anext(aiter(call))).HasField("started")
    assert (await anext(aiter(call))).HasField("delta")

    await mesh.kill_peer("tokenization")
    for _ in mesh.engine.text:
        mesh.engine.pace.release()

    assert (await hear(call)).text == mesh.engine.text[1:]


async def test_a_failed_intent_stops_the_engine_and_releases_nothing(mesh: ScriptedMesh, stub: Any, ask: Any) -> None:
    mesh.engine.pace = asyncio.Semaphore(3)
    mesh.log.faults["Append.intent"] = raising(Trouble("disk"))
    with pytest.raises(grpc.aio.AioRpcError):
        await anext(aiter(stub.Chat(ask())))
    await mesh.engine.cancelled.wait()
    assert mesh.engine.running == 0


async def test_an_outcome_that_cannot_be_written_takes_the_place_of_finished(
    mesh: ScriptedMesh, stub: Any, ask: Any, failure: Any
) -> None:
    mesh.log.faults["Append.outcome"] = raising(Trouble("disk"))
    assert (await failure(stub.Chat(ask()))).reason == "AUDIT_UNAVAILABLE"


WRONG_STREAMS = {
    "tokens_first": [inf.GenerateResponse(tokens=inf.GenerateResponse.Tokens(token_ids=[72]))],
    "nothing": [],
    "empty_message": [inf.GenerateResponse()],
    "ends_early": [inf.GenerateResponse(started=inf.GenerateResponse.Started())],
    "started_twice": [inf.GenerateResponse(started=inf.GenerateResponse.Started())] * 2,
    "unknown_reason": [
        inf.GenerateResponse(started=inf.GenerateResponse.Started()),
        inf.GenerateResponse(finished=inf.GenerateResponse.Finished(reason=sampling.FINISH_REASON_BLOCKED)),
    ],
}


@pytest.mark.parametrize("wrong", WRONG_STREAMS)
async def test_an_engine_that_breaks_the_contract_is_unavailable(
    mesh: ScriptedMesh, stub: Any, ask: Any, failure: Any, wrong: str
) -> None:
    mesh.engine.responses = WRONG_STREAMS[wrong]
    assert (await failure(stub.Chat(ask()))).reason == "INFERENCE_UNAVAILABLE"
    assert mesh.log.outcomes[0].outcome.status == audit.OUTCOME_STATUS_FAILED


async def test_ids_that_the_model_does_not_have_end_the_answer(mesh: ScriptedMesh, stub: Any, ask: Any, failure: Any) -> None:
    started = inf.GenerateResponse(started=inf.GenerateResponse.Started())
    mesh.engine.responses = [started, inf.GenerateResponse(tokens=inf.GenerateResponse.Tokens(token_ids=[2**31]))]
    error = await failure(stub.Chat(ask()))
    assert error.reason == "INFERENCE_UNAVAILABLE"
    assert error.metadata["peer_reason"] == "UNKNOWN_TOKEN_ID"


@pytest.mark.parametrize("action", [guard.ACTION_UNSPECIFIED, 99])
async def test_a_verdict_that_nobody_knows_is_no_permission(
    mesh: ScriptedMesh, stub: Any, ask: Any, failure: Any, action: Any
) -> None:
    async def inspect(request: Any, context: Any) -> guard.InspectResponse:
        return guard.InspectResponse(action=action)

    mesh.guardrails.Inspect = inspect  # type: ignore[method-assign]
    await mesh.kill_peer("guardrails")
    await mesh.start_peer("guardrails", int(mesh.targets["guardrails"].rpartition(":")[2]))
    async with asyncio.timeout(10):
        while (error := await failure(stub.Chat(ask()))).metadata["peer_status"] == "UNAVAILABLE":
            pass
    assert (error.reason, error.metadata["peer_reason"]) == ("GUARDRAILS_UNAVAILABLE", "UNKNOWN_ACTION")


async def test_an_engine_without_room_is_overloaded_and_says_when_to_come_back(
    mesh: ScriptedMesh, stub: Any, ask: Any, failure: Any
) -> None:
    mesh.engine.faults["Generate"] = raising(EngineFull("full", retry_after_s=2.5))
    error = await failure(stub.Chat(ask()))
    assert (error.status.name, error.reason, error.retry_after_s) == ("RESOURCE_EXHAUSTED", "OVERLOADED", 2.5)


class TooLong(Trouble):
    """As the engine refuses a long prompt."""

    status, reason = grpc.StatusCode.INVALID_ARGUMENT, "PROMPT_TOO_LONG"


class BadOption(Trouble):
    """As the engine refuses an option."""

    status, reason = grpc.StatusCode.UNIMPLEMENTED, "UNSUPPORTED_SAMPLING_OPTION"


class BadTurns(Trouble):
    """As the tokenizer refuses a conversation."""

    status, reason = grpc.StatusCode.INVALID_ARGUMENT, "CHAT_TEMPLATE_REFUSED"


class NoModel(Trouble):
    """As everybody says that a model is not served."""

    status, reason = grpc.StatusCode.NOT_FOUND, "MODEL_NOT_FOUND"


@pytest.mark.parametrize(
    ("service", "point", "theirs", "status", "reason", "fields"),
    [
        (
            "inference",
            "Generate",
            TooLong("long", field_violations=[("token_ids", "long")]),
            "INVALID_ARGUMENT",
            "PROMPT_TOO_LONG",
            ["messages"],
        ),
        (
            "inference",
            "Generate",
            BadOption("no", field_violations=[("sampling.min_p", "not offered")]),
            "UNIMPLEMENTED",
            "UNSUPPORTED_SAMPLING_OPTION",
            ["sampling.min_p"],
        ),
        (
            "tokenization",
            "Encode",
            BadTurns("no", field_violations=[("conversation.messages[1].role", "twice")]),
            "INVALID_ARGUMENT",
            "CHAT_TEMPLATE_REFUSED",
            ["messages[1].role"],
        ),
        ("tokenization", "Encode", NoModel("no"), "NOT_FOUND", "MODEL_NOT_FOUND", []),
        ("inference", "Generate", NoModel("no"), "NOT_FOUND", "MODEL_NOT_FOUND", []),
    ],
)
async def test_what_the_caller_can_mend_comes_through_in_the_callers_own_fields(
    mesh: ScriptedMesh,
    stub: Any,
    ask: Any,
    failure: Any,
    service: str,
    point: str,
    theirs: Any,
    status: str,
    reason: str,
    fields: list[str],
) -> None:
    faulty(mesh, service).faults[point] = raising(theirs)
    error = await failure(stub.Chat(ask()))
    assert (error.status.name, error.reason) == (status, reason)
    assert [path for path, _ in error.field_violations] == fields


async def test_a_masked_text_that_is_missing_is_a_failure_of_the_guardrails(
    mesh: ScriptedMesh, stub: Any, ask: Any, failure: Any
) -> None:
    from scripted_mesh import ThreeWordGuardrails

    class Forgetful(ThreeWordGuardrails):
        async def Inspect(self, request: Any, context: Any) -> guard.InspectResponse:
            response = await super().Inspect(request, context)
            del response.masked_texts[:]
            return response

    mesh.guardrails.__class__ = Forgetful
    port = mesh.servers["guardrails"].port
    await mesh.kill_peer("guardrails")
    await mesh.start_peer("guardrails", port)
    async with asyncio.timeout(10):
        while (error := await failure(stub.Chat(ask(MASKED_WORD)))).metadata["peer_status"] == "UNAVAILABLE":
            pass
    assert error.metadata["peer_reason"] == "MASKED_TEXTS_MISSING"


async def test_a_refusal_is_told_even_when_the_log_is_down(mesh: ScriptedMesh, stub: Any, ask: Any, failure: Any) -> None:
    mesh.log.faults["Append.outcome"] = raising(Trouble("disk"))
    assert (await failure(stub.Chat(ask(BLOCKED_WORD)))).reason == "PROMPT_BLOCKED"


# Loss of a shard group


async def test_a_lost_answer_goes_on_where_it_was(mesh: ScriptedMesh, stub: Any, ask: Any, hear: Any) -> None:
    mesh.engine.losses = [(4, ShardGroupLost("gone", retry_after_s=0.05)), (6, Trouble("gone"))]
    heard = await hear(stub.Chat(ask("Hi", sampling=sampling.SamplingParams(temperature=1, max_tokens=12))))

    assert heard.text == mesh.engine.text[:12]
    assert heard.finished.reason == sampling.FINISH_REASON_LENGTH
    assert heard.finished.usage.prompt_tokens == 3
    assert heard.finished.usage.completion_tokens == 12
    first, second, third = [request for request in mesh.engine.requests if hasattr(request, "token_ids")]
    assert (first.resumed_tokens, second.resumed_tokens, third.resumed_tokens) == (0, 4, 10)
    assert list(third.token_ids) == [*first.token_ids, *map(ord, mesh.engine.text[:10])]
    assert first.sampling == second.sampling == third.sampling
    assert mesh.log.outcomes[0].outcome.resumptions == 2


async def test_an_answer_lost_after_its_last_token_is_finished_without_the_engine(
    mesh: ScriptedMesh, stub: Any, ask: Any, hear: Any
) -> None:
    mesh.engine.losses = [(13, ShardGroupLost("gone", retry_after_s=0.05))]
    heard = await hear(stub.Chat(ask(sampling=sampling.SamplingParams(max_tokens=13))))
    assert heard.text == mesh.engine.text
    assert len([request for request in mesh.engine.requests if hasattr(request, "token_ids")]) == 1


async def test_an_engine_that_is_full_during_a_resumption_is_waited_for(mesh: ScriptedMesh, stub: Any, ask: Any, hear: Any) -> None:
    mesh.engine.losses = [(4, ShardGroupLost("gone")), (0, EngineFull("full", retry_after_s=0.05))]
    heard = await hear(stub.Chat(ask()))
    assert heard.text == mesh.engine.text


async def test_losses_are_bounded(idle_mesh: ScriptedMesh, ask: Any, failure: Any) -> None:
    idle_mesh.limits["max_resumptions"] = 2
    idle_mesh.engine.losses = [(1, ShardGroupLost("gone", retry_after_s=0.01)) for _ in range(20)]
    async with idle_mesh.running(), idle_mesh.calling() as stub:
        error = await failure(stub.Chat(ask()))
    assert error.reason == "INFERENCE_UNAVAILABLE"
    assert len([request for request in idle_mesh.engine.requests if hasattr(request, "token_ids")]) == 3
    outcome = idle_mesh.log.outcomes[0].outcome
    assert outcome.answer.decode() == idle_mesh.engine.text[:3]
    assert outcome.resumptions == 2


async def test_the_search_for_another_group_is_bounded_in_time(idle_mesh: ScriptedMesh, ask: Any, failure: Any) -> None:
    idle_mesh.limits["resume_window_s"] = 0.5
    idle_mesh.engine.losses = [(1, ShardGroupLost("gone"))] + [(0, ShardGroupLost("gone")) for _ in range(100)]
    async with idle_mesh.running(), idle_mesh.calling() as stub:
        assert (await failure(stub.Chat(ask()))).reason == "INFERENCE_UNAVAILABLE"
    assert 2 <= len(idle_mesh.engine.requests) < 10


async def test_an_engine_of_another_tokenizer_is_not_believed(mesh: ScriptedMesh, stub: Any, ask: Any, failure: Any) -> None:
    mesh.engine.tokenizer_digest = "sha256:" + "9" * 64
    error = await failure(stub.Chat(ask()))
    assert (error.reason, error.metadata["peer_reason"]) == ("INFERENCE_UNAVAILABLE", "TOKENIZER_MISMATCH")


async def test_an_answer_is_not_continued_by_another_model(mesh: ScriptedMesh, stub: Any, ask: Any, failure: Any) -> None:
    mesh.engine.weights = ["sha256:" + "3" * 64, "sha256:" + "3" * 64, "sha256:" + "4" * 64]
    mesh.engine.losses = [(4, ShardGroupLost("gone", retry_after_s=0.01))]
    error = await failure(stub.Chat(ask()))
    assert (error.reason, error.metadata["peer_reason"]) == ("INFERENCE_UNAVAILABLE", "MODEL_CHANGED")
