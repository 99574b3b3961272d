"""What a client gets for a question, and what the audit log says of it."""

from __future__ import annotations

import asyncio
from typing import Any

from lionrock.audit.v1 import audit_pb2 as audit
from lionrock.common.v1 import sampling_pb2 as sampling
from lionrock.gateway.errors import InvalidConstraint
from lionrock.inference.v1 import inference_pb2 as inf
from scripted_mesh import (
    BLOCKED_WORD,
    MASK,
    MASKED_WORD,
    MODEL,
    REVIEWED_WORD,
    SAFE_MESSAGE,
    ScriptedMesh,
    ShardGroupLost,
)


async def test_an_answer_is_started_then_text_then_finished_with_its_receipt(
    mesh: ScriptedMesh, stub: Any, ask: Any, hear: Any
) -> None:
    heard = await hear(stub.Chat(ask("Hi")))

    assert heard.kinds[0] == "started"
    assert heard.kinds[-1] == "finished"
    assert set(heard.kinds[1:-1]) == {"delta"}
    assert heard.text == mesh.engine.text
    assert heard.started.model.model == MODEL
    assert heard.finished.reason == sampling.FINISH_REASON_STOP
    assert heard.finished.usage.prompt_tokens == 3
    assert heard.finished.usage.completion_tokens == len(mesh.engine.text) == sum(delta.tokens for delta in heard.deltas)
    assert heard.finished.receipt.tlog_proof == f"proof of {heard.started.request_id}"
    assert heard.finished.time_to_first_token.ToNanoseconds() > 0


async def test_the_engine_learns_that_a_caller_can_wait(idle_mesh: ScriptedMesh, ask: Any, hear: Any) -> None:
    idle_mesh.tenants[1]["principals"][0]["priority"] = "batch"
    async with idle_mesh.running():
        async with idle_mesh.calling() as stub:
            await hear(stub.Chat(ask()))
        async with idle_mesh.calling(idle_mesh.identity("broker")) as other:
            await hear(other.Chat(ask()))
    assert idle_mesh.tenants[1]["name"] == "broker"
    asked = [request for request in idle_mesh.engine.requests if isinstance(request, inf.GenerateRequest)]
    interactive, batch = [request.priority for request in asked]
    assert batch < interactive == 0


async def test_the_log_holds_the_intent_and_then_the_outcome_that_names_it(
    mesh: ScriptedMesh, stub: Any, ask: Any, hear: Any
) -> None:
    heard = await hear(stub.Chat(ask("Hi", purpose="drafting", case_id="CASE-1")))

    intent, outcome = mesh.log.leaves
    assert intent.intent.action == "chat"
    assert intent.intent.model == MODEL
    assert intent.intent.prompt_tokens == 3
    assert intent.intent.prompt_verdict.action == "allow"
    assert outcome.outcome.intent_index == 0
    assert outcome.outcome.HasField("intent_index")
    assert outcome.outcome.status == audit.OUTCOME_STATUS_ANSWERED
    assert outcome.outcome.answer.decode() == heard.text
    assert outcome.outcome.answer_verdict.policy_version == "1"
    assert outcome.outcome.model.tokenizer_digest == mesh.tokenizer.digest == heard.started.model.tokenizer_digest
    assert outcome.event_id == heard.started.request_id
    for leaf in mesh.log.leaves:
        assert leaf.trace_id == heard.started.trace_id
        assert (leaf.context.tenant, leaf.context.purpose, leaf.context.case_id) == ("bank", "drafting", "CASE-1")
        assert leaf.context.actor == "spiffe://lionrock.local/tenant/bank/user/ada"


async def test_salts_open_the_commitments_to_prompt_and_answer(mesh: ScriptedMesh, stub: Any, ask: Any, hear: Any) -> None:
    heard = await hear(stub.Chat(ask("你好")))

    assert mesh.log.opens(heard.finished.answer_salt, heard.text.encode())
    prompt = '{"messages":[{"content":"你好","role":"user"}]}'
    assert mesh.log.opens(heard.finished.prompt_salt, prompt.encode())


async def test_the_first_token_goes_at_once_and_later_ones_gather(mesh: ScriptedMesh, stub: Any, ask: Any) -> None:
    mesh.engine.pace = asyncio.Semaphore(1)
    call = stub.Chat(ask())
    assert (await anext(aiter(call))).HasField("started")
    assert (await anext(aiter(call))).delta.text == mesh.engine.text[0]

    gate = asyncio.Event()
    mesh.guardrails.faults["InspectStream.chunk"] = gate.wait
    for _ in mesh.engine.text:
        mesh.engine.pace.release()
    await mesh.engine.spoken.wait()
    gate.set()
    rest = [response.delta.text async for response in call if response.HasField("delta")]

    assert "".join(rest) == mesh.engine.text[1:]
    assert len(rest) <= 3


async def test_nothing_is_sent_before_the_intent_is_durable(mesh: ScriptedMesh, stub: Any, ask: Any, hear: Any) -> None:
    durable = asyncio.Event()
    mesh.log.faults["Append.intent"] = durable.wait
    call = stub.Chat(ask())
    first = asyncio.ensure_future(anext(aiter(call)))

    await mesh.engine.spoken.wait()  # the engine ran beside the append, to its end
    assert not first.done()
    assert not mesh.log.leaves

    durable.set()
    assert (await first).HasField("started")
    assert (await hear(call)).text == mesh.engine.text


async def test_finished_waits_for_the_outcome(mesh: ScriptedMesh, stub: Any, ask: Any) -> None:
    durable, asked = asyncio.Event(), asyncio.Event()

    async def slow() -> None:
        asked.set()
        await durable.wait()

    mesh.log.faults["Append.outcome"] = slow
    call = stub.Chat(ask())
    heard = ""
    while heard != mesh.engine.text:
        heard += (await anext(aiter(call))).delta.text
    last = asyncio.ensure_future(anext(aiter(call)))
    await asked.wait()
    assert not last.done()
    durable.set()
    assert (await last).HasField("finished")


async def test_a_blocked_prompt_is_refused_with_its_rules_and_never_reaches_the_engine(
    mesh: ScriptedMesh, stub: Any, ask: Any, failure: Any
) -> None:
    error = await failure(stub.Chat(ask(f"a {BLOCKED_WORD} thing")))

    assert (error.status.name, error.reason) == ("PERMISSION_DENIED", "PROMPT_BLOCKED")
    assert error.message == SAFE_MESSAGE
    assert error.metadata["rules"] == f"word.{BLOCKED_WORD}"
    assert not any(hasattr(request, "token_ids") for request in mesh.engine.requests)
    (leaf,) = mesh.log.leaves
    assert leaf.outcome.status == audit.OUTCOME_STATUS_BLOCKED
    assert leaf.outcome.reason == "PROMPT_BLOCKED"
    assert leaf.outcome.prompt_verdict.action == "block"
    assert dict(leaf.outcome.prompt_verdict.findings) == {f"word.{BLOCKED_WORD}": 1}
    assert not leaf.outcome.HasField("intent_index")
    assert leaf.event_id == error.metadata["request_id"]


async def test_a_prompt_that_needs_review_is_refused(stub: Any, ask: Any, failure: Any) -> None:
    error = await failure(stub.Chat(ask(f"a {REVIEWED_WORD} thing")))
    assert (error.status.name, error.reason) == ("PERMISSION_DENIED", "REVIEW_REQUIRED")


async def test_the_model_sees_and_the_log_commits_to_the_masked_prompt(mesh: ScriptedMesh, stub: Any, ask: Any, hear: Any) -> None:
    heard = await hear(stub.Chat(ask(f"my {MASKED_WORD} is")))

    (generate,) = [request for request in mesh.engine.requests if hasattr(request, "token_ids")]
    assert "".join(map(chr, generate.token_ids[1:])) == f"my {MASK} is"
    assert [finding.rule for finding in heard.started.prompt_findings] == [f"word.{MASKED_WORD}"]
    assert mesh.log.intents[0].intent.prompt_verdict.action == "mask"
    assert MASKED_WORD.encode() not in mesh.log.intents[0].intent.prompt


async def test_an_answer_that_is_blocked_ends_with_the_safe_message_and_stops_the_engine(
    mesh: ScriptedMesh, stub: Any, ask: Any, hear: Any
) -> None:
    mesh.engine.text = f"This is {BLOCKED_WORD} and more"
    mesh.engine.chunk = 20
    mesh.engine.faults["Generate.finish"] = asyncio.Event().wait

    heard = await hear(stub.Chat(ask()))

    assert heard.text == "This is "
    assert heard.finished.reason == sampling.FINISH_REASON_BLOCKED
    assert heard.finished.blocked.safe_message == SAFE_MESSAGE
    assert mesh.engine.cancelled_at
    outcome = mesh.log.outcomes[0].outcome
    assert (outcome.status, outcome.reason) == (audit.OUTCOME_STATUS_BLOCKED, "ANSWER_BLOCKED")
    assert outcome.answer_verdict.action == "block"
    assert outcome.answer.decode() == heard.text


async def test_an_answer_that_needs_review_ends_unreleased(mesh: ScriptedMesh, stub: Any, ask: Any, hear: Any) -> None:
    mesh.engine.text, mesh.engine.chunk = f"so {REVIEWED_WORD}", 20
    heard = await hear(stub.Chat(ask()))
    assert heard.text == ""
    assert heard.finished.blocked.rule == f"word.{REVIEWED_WORD}"


async def test_masked_spans_of_the_answer_are_reported(mesh: ScriptedMesh, stub: Any, ask: Any, hear: Any) -> None:
    mesh.engine.text, mesh.engine.chunk = f"the {MASKED_WORD}!", 20
    heard = await hear(stub.Chat(ask()))
    assert heard.text == f"the {MASK}!"
    assert [finding.rule for finding in heard.finished.answer_findings] == [f"word.{MASKED_WORD}"]


async def test_a_stop_string_across_tokens_ends_the_answer_and_the_engine(
    mesh: ScriptedMesh, stub: Any, ask: Any, hear: Any
) -> None:
    mesh.engine.text = "one two three"
    mesh.engine.faults["Generate.finish"] = asyncio.Event().wait
    heard = await hear(stub.Chat(ask(sampling=sampling.SamplingParams(stop=["two", "thr"]))))

    assert heard.text == "one "
    assert heard.finished.reason == sampling.FINISH_REASON_STOP
    (generate,) = [request for request in mesh.engine.requests if hasattr(request, "token_ids")]
    assert not generate.sampling.stop
    assert list(mesh.log.intents[0].intent.sampling.stop) == ["two", "thr"]


async def test_an_engine_that_knows_stop_strings_is_told_them_and_the_text_is_cut_all_the_same(
    mesh: ScriptedMesh, stub: Any, ask: Any, hear: Any
) -> None:
    mesh.engine.text, mesh.engine.sampling_options = "one two", ["stop"]
    mesh.engine.losses = [(2, ShardGroupLost("gone", retry_after_s=0.01))]
    heard = await hear(stub.Chat(ask(sampling=sampling.SamplingParams(stop=["wo"]))))

    assert heard.text == "one t"
    assert heard.finished.reason == sampling.FINISH_REASON_STOP
    first, resumed = [request for request in mesh.engine.requests if hasattr(request, "token_ids")]
    assert list(first.sampling.stop) == ["wo"]
    assert (resumed.resumed_tokens, list(resumed.sampling.stop)) == (2, [])


async def test_a_constraint_reaches_the_engine_and_the_log(mesh: ScriptedMesh, stub: Any, ask: Any, hear: Any) -> None:
    constraint = sampling.OutputConstraint(choice=sampling.OutputConstraint.Choice(values=["yes", "no"]))
    await hear(stub.Chat(ask(constraint=constraint)))
    (generate,) = [request for request in mesh.engine.requests if hasattr(request, "token_ids")]
    assert generate.constraint == constraint


async def test_a_refused_constraint_is_named_by_the_callers_field(mesh: ScriptedMesh, stub: Any, ask: Any, failure: Any) -> None:
    violation = ("constraint.regex", "unbalanced ( (at character 3)")
    mesh.engine.losses = [(0, InvalidConstraint("refused", field_violations=[violation]))]
    error = await failure(stub.Chat(ask(constraint=sampling.OutputConstraint(regex="ab("))))
    assert (error.reason, list(error.field_violations)) == ("INVALID_CONSTRAINT", [violation])


async def test_what_could_have_become_a_stop_string_is_released_at_the_end(
    mesh: ScriptedMesh, stub: Any, ask: Any, hear: Any
) -> None:
    mesh.engine.text = "one tw"
    heard = await hear(stub.Chat(ask(sampling=sampling.SamplingParams(stop=["two"]))))
    assert heard.text == "one tw"


async def test_a_seed_is_drawn_and_reported_where_one_counts(mesh: ScriptedMesh, stub: Any, ask: Any, hear: Any) -> None:
    drawn = await hear(stub.Chat(ask(sampling=sampling.SamplingParams(temperature=0.7))))
    given = await hear(stub.Chat(ask(sampling=sampling.SamplingParams(temperature=0.7, seed=5))))
    await hear(stub.Chat(ask()))

    asked = [request.sampling for request in mesh.engine.requests if hasattr(request, "token_ids")]
    assert drawn.started.seed == asked[0].seed != 0
    assert given.started.seed == asked[1].seed == 5
    assert not asked[2].HasField("seed")
    assert mesh.log.intents[0].intent.sampling.seed == drawn.started.seed


async def test_the_cache_salt_is_the_tenants_and_no_others(mesh: ScriptedMesh, stub: Any, ask: Any, hear: Any) -> None:
    await hear(stub.Chat(ask("same")))
    await hear(stub.Chat(ask("same")))
    async with mesh.calling(mesh.identity("broker")) as broker:
        await hear(broker.Chat(ask("same")))

    salts = [request.cache_salt for request in mesh.engine.requests if hasattr(request, "token_ids")]
    assert len(salts[0]) == 32
    assert salts[0] == salts[1] != salts[2]


async def test_a_receipt_is_found_again_by_its_own_tenant_only(
    mesh: ScriptedMesh, stub: Any, ask: Any, hear: Any, failure: Any
) -> None:
    from lionrock.gateway.v1 import gateway_pb2 as gw

    heard = await hear(stub.Chat(ask()))
    request = gw.GetReceiptRequest(request_id=heard.started.request_id)

    assert (await stub.GetReceipt(request)).receipt.tlog_proof == heard.finished.receipt.tlog_proof
    async with mesh.calling(mesh.identity("broker")) as broker:
        assert (await failure(broker.GetReceipt(request))).reason == "RECEIPT_NOT_FOUND"


async def test_models_tokens_and_keys_are_told(mesh: ScriptedMesh, stub: Any, ask: Any) -> None:
    from lionrock.gateway.v1 import gateway_pb2 as gw

    models = (await stub.ListModels(gw.ListModelsRequest())).models
    assert [(served.identity.model, served.ready, served.context_window) for served in models] == [(MODEL, True, 4096)]
    assert (await stub.CountTokens(gw.CountTokensRequest(messages=ask("four").messages))).tokens == 5
    keys = await stub.ListAuditKeys(gw.ListAuditKeysRequest())
    assert keys.origin == "test/audit/bank"
    assert list(keys.verifier_keys) == ["test/audit/bank+00000000+AAAA"]
