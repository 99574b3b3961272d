"""Answers that wait for a reviewer: a real gateway and the real audit service, from the question to the decision in the log."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf import duration_pb2

from audit_process import AuditProcess
from http_calls import body, raw
from lionrock.audit.v1 import records_pb2 as rec
from lionrock.audit.v1.records_pb2_grpc import RecordsServiceStub
from lionrock.audit.verify import check_opening, verify_receipt
from lionrock.chassis.channel import open_channel
from lionrock.chassis.errors import remote_error
from lionrock.chassis.ids import uuid7
from lionrock.chassis.settings import PeerSettings
from lionrock.common.v1 import context_pb2 as ctx
from lionrock.common.v1 import sampling_pb2 as sampling
from lionrock.gateway.identity.settings import ApiKeySettings
from lionrock.gateway.reviews import rows, upkeep
from lionrock.gateway.state.opening import StateSettings
from lionrock.gateway.v1 import api_key_pb2 as keys
from lionrock.gateway.v1 import gateway_pb2 as gw
from lionrock.gateway.v1 import gateway_pb2_grpc as gateway_rpc
from lionrock.gateway.v1 import review_pb2 as pb
from lionrock.gateway.v1.api_key_pb2_grpc import ApiKeyServiceStub
from lionrock.gateway.v1.review_pb2_grpc import ReviewServiceStub
from mesh_ca import TRUST_DOMAIN, DevCa
from scripted_mesh import BLOCKED_WORD, MASK, MASKED_WORD, MODEL, REVIEWED_WORD, ScriptedMesh, tenant

RELEASE, REFUSE = pb.REVIEW_DECISION_RELEASE, pb.REVIEW_DECISION_REFUSE
WAITING, EXPIRED = pb.REVIEW_DECISION_UNSPECIFIED, pb.REVIEW_DECISION_EXPIRED
GRANTS = {
    "asker": ["user"],
    "both": ["user", "reviewer"],
    "reviewer": ["reviewer"],
    "second": ["reviewer"],
    "admin": ["user", "reviewer", "tenant_admin"],
    "mlro": ["mlro"],
    "auditor": ["auditor"],
}


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, AuditProcess]]:
    directory = tmp_path_factory.mktemp("reviews")
    process = AuditProcess(directory, DevCa(directory))
    yield directory, process
    process.stop()


def reviewed(name: str, **review: Any) -> dict[str, Any]:
    """A tenant whose drafts wait for a reviewer."""
    settings = tenant(name)
    settings["review"] = {"purposes": ["drafting"], **review}
    for who, roles in GRANTS.items():
        principal = {
            "spiffe_id": spiffe_id(name, who),
            "roles": roles,
            "purposes": ["testing", "drafting"],
            "data_classes": ["public", "personal", "suspicion"],
        }
        settings["principals"].append(principal)
    return settings


def spiffe_id(name: str, who: str) -> str:
    return f"spiffe://{TRUST_DOMAIN}/tenant/{name}/user/{who}"


@pytest.fixture
def waiting_mesh(service: tuple[Path, AuditProcess], tmp_path: Path) -> ScriptedMesh:
    """Not started, so that a test can change it first."""
    directory, process = service
    mesh = ScriptedMesh(directory)
    mesh.targets = {"audit": process.target}
    mesh.tenants = [reviewed("bank"), reviewed("broker")]
    secret_file = tmp_path / "api-keys"
    secret_file.write_text("s" * 40)
    secret_file.chmod(0o600)
    mesh.gateway_changes = {
        "state": StateSettings(sqlite_file=tmp_path / "state.db"),
        "api_keys": ApiKeySettings(secret_file=secret_file, max_lifetime_days=30),
    }
    return mesh


@pytest.fixture
async def mesh(waiting_mesh: ScriptedMesh) -> AsyncIterator[ScriptedMesh]:
    async with waiting_mesh.running():
        yield waiting_mesh


@asynccontextmanager
async def channel_of(mesh: ScriptedMesh, who: str, name: str = "bank") -> AsyncIterator[grpc.aio.Channel]:
    peer = PeerSettings(target=mesh.targets["gateway"], service="gateway", timeout_s=20)
    async with open_channel(peer, mesh.ca.issue(spiffe_id=spiffe_id(name, who)), name="test") as channel:
        yield channel


@asynccontextmanager
async def queue(mesh: ScriptedMesh, who: str = "reviewer", name: str = "bank") -> AsyncIterator[Any]:
    async with channel_of(mesh, who, name) as channel:
        yield ReviewServiceStub(channel)


async def said(mesh: ScriptedMesh, request: gw.ChatRequest, who: str = "asker") -> list[gw.ChatResponse]:
    async with channel_of(mesh, who) as channel:
        return [response async for response in gateway_rpc.GatewayServiceStub(channel).Chat(request)]


async def held(mesh: ScriptedMesh, request: gw.ChatRequest, who: str = "asker") -> str:
    """Ask, expect that the answer waits, and return the request's id."""
    responses = await said(mesh, request, who)
    assert [response.WhichOneof("message") for response in responses] == ["started", "finished"]
    assert responses[-1].finished.reason == sampling.FINISH_REASON_HELD
    return responses[0].started.request_id


def decision(request_id: str, wanted: pb.ReviewDecision.ValueType = RELEASE, reason: str = "checked") -> pb.DecideReviewRequest:
    return pb.DecideReviewRequest(request_id=request_id, decision=wanted, reason=reason)


async def reason_of(call: Any) -> str | None:
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await call
    return remote_error(error.value).reason


async def answer(mesh: ScriptedMesh, request_id: str, who: str = "asker") -> pb.GetHeldAnswerResponse:
    async with queue(mesh, who) as reviews:
        response: pb.GetHeldAnswerResponse = await reviews.GetHeldAnswer(pb.GetHeldAnswerRequest(request_id=request_id))
        return response


async def verifier_keys(mesh: ScriptedMesh) -> Sequence[str]:
    async with mesh.calling() as gateway:
        return list((await gateway.ListAuditKeys(gw.ListAuditKeysRequest())).verifier_keys)


async def leaves(mesh: ScriptedMesh) -> list[dict[str, Any]]:
    from lionrock.audit.v1 import audit_pb2 as audit
    from lionrock.audit.v1.audit_pb2_grpc import AuditServiceStub

    async with channel_of(mesh, "auditor") as channel:
        pages = AuditServiceStub(channel).ListLeaves(audit.ListLeavesRequest(limit=10000))
        return [json.loads(leaf.data) for page in [page async for page in pages] for leaf in page.leaves if leaf.data]


async def test_an_answer_for_a_reviewed_purpose_reaches_nobody_before_it_is_released(mesh: ScriptedMesh, ask: Any) -> None:
    responses = await said(mesh, ask("A draft, please.", purpose="drafting", case_id="case-7"))
    assert [response.WhichOneof("message") for response in responses] == ["started", "finished"]
    request_id, finished = responses[0].started.request_id, responses[-1].finished
    assert finished.reason == sampling.FINISH_REASON_HELD
    assert not finished.answer_salt
    assert not finished.answer_findings
    outcome = verify_receipt(finished.receipt.tlog_proof, await verifier_keys(mesh)).fields
    assert (outcome["status"], outcome["request_id"]) == ("held", request_id)
    before = await answer(mesh, request_id)
    assert (before.decision, before.answer, before.answer_salt) == (WAITING, "", b"")
    async with queue(mesh) as reviews:
        (listed,) = (await reviews.ListReviews(pb.ListReviewsRequest(page_size=10))).reviews
        assert (listed.request_id, listed.purpose, listed.case_id) == (request_id, "drafting", "case-7")
        assert (listed.author, listed.cause) == (spiffe_id("bank", "asker"), pb.HOLD_CAUSE_PURPOSE)
        shown = await reviews.GetReview(pb.GetReviewRequest(request_id=request_id))
        assert json.loads(shown.prompt)["messages"][0]["content"] == "A draft, please."
        assert shown.answer == mesh.engine.text
        decided = await reviews.DecideReview(decision(request_id))
        assert not (await reviews.ListReviews(pb.ListReviewsRequest(page_size=10))).reviews
    leaf = verify_receipt(decided.receipt.tlog_proof, await verifier_keys(mesh))
    assert (leaf.fields["type"], leaf.fields["operation"], leaf.fields["object_id"]) == (
        "governance",
        "review.released",
        request_id,
    )
    assert leaf.fields["actor"] == spiffe_id("bank", "reviewer")
    after = await answer(mesh, request_id)
    assert (after.decision, after.answer) == (RELEASE, mesh.engine.text)
    check_opening(
        verify_receipt(finished.receipt.tlog_proof, await verifier_keys(mesh)), "answer", after.answer_salt, after.answer.encode()
    )


async def test_a_refused_answer_is_never_shown_to_who_asked(mesh: ScriptedMesh, ask: Any) -> None:
    request_id = await held(mesh, ask(purpose="drafting"))
    async with queue(mesh) as reviews:
        await reviews.DecideReview(decision(request_id, REFUSE, "not sound"))
    told = await answer(mesh, request_id)
    assert (told.decision, told.answer, told.answer_salt) == (REFUSE, "", b"")
    assert told.safe_message


async def test_other_purposes_are_answered_at_once(mesh: ScriptedMesh, ask: Any) -> None:
    responses = await said(mesh, ask(purpose="testing"))
    assert "".join(response.delta.text for response in responses) == mesh.engine.text
    assert responses[-1].finished.reason == sampling.FINISH_REASON_STOP


async def test_an_answer_of_which_a_rule_wants_a_person_is_held_whole(mesh: ScriptedMesh, ask: Any) -> None:
    mesh.engine.text, mesh.engine.chunk = f"This is {REVIEWED_WORD}, and {MASKED_WORD}, and long.", 100
    request_id = await held(mesh, ask(purpose="testing"))
    async with queue(mesh) as reviews:
        shown = await reviews.GetReview(pb.GetReviewRequest(request_id=request_id))
    assert shown.answer == f"This is {REVIEWED_WORD}, and {MASK}, and long."
    assert shown.review.cause == pb.HOLD_CAUSE_ANSWER


async def test_a_prompt_of_which_a_rule_wants_a_person_is_answered_and_held_as_masked(mesh: ScriptedMesh, ask: Any) -> None:
    request_id = await held(mesh, ask(f"{REVIEWED_WORD} {MASKED_WORD}", purpose="testing"))
    async with queue(mesh) as reviews:
        shown = await reviews.GetReview(pb.GetReviewRequest(request_id=request_id))
    assert json.loads(shown.prompt)["messages"][0]["content"] == f"{REVIEWED_WORD} {MASK}"
    assert shown.review.cause == pb.HOLD_CAUSE_PROMPT


async def test_without_a_queue_such_an_answer_is_refused(waiting_mesh: ScriptedMesh, ask: Any) -> None:
    del waiting_mesh.tenants[0]["review"]
    waiting_mesh.engine.text, waiting_mesh.engine.chunk = f"This is {REVIEWED_WORD}.", 100
    async with waiting_mesh.running():
        responses = await said(waiting_mesh, ask(purpose="testing"))
        assert responses[-1].finished.reason == sampling.FINISH_REASON_BLOCKED
        assert REVIEWED_WORD not in "".join(response.delta.text for response in responses)


async def test_what_a_guardrail_blocks_is_blocked_and_not_held(mesh: ScriptedMesh, ask: Any) -> None:
    mesh.engine.text, mesh.engine.chunk = f"well {BLOCKED_WORD}", 100
    responses = await said(mesh, ask(purpose="drafting"))
    assert [response.WhichOneof("message") for response in responses] == ["started", "finished"]
    assert responses[-1].finished.reason == sampling.FINISH_REASON_BLOCKED
    async with channel_of(mesh, "auditor") as channel:
        request = rec.ReadRecordRequest(request_id=responses[0].started.request_id)
        assert not (await RecordsServiceStub(channel).ReadRecord(request)).answer


async def test_nobody_decides_on_or_reads_what_they_asked_for(mesh: ScriptedMesh, ask: Any) -> None:
    request_id = await held(mesh, ask(purpose="drafting"), "both")
    async with queue(mesh, "both") as reviews:
        assert await reason_of(reviews.DecideReview(decision(request_id))) == "AUTHOR_MAY_NOT_REVIEW"
        assert await reason_of(reviews.GetReview(pb.GetReviewRequest(request_id=request_id))) == "AUTHOR_MAY_NOT_REVIEW"
    async with channel_of(mesh, "both") as channel:
        record = rec.ReadRecordRequest(request_id=request_id)
        assert await reason_of(RecordsServiceStub(channel).ReadRecord(record)) == "ROLE_NOT_PERMITTED"
    async with queue(mesh) as reviews:
        await reviews.DecideReview(decision(request_id))
    assert (await answer(mesh, request_id, "both")).answer == mesh.engine.text


async def test_who_made_an_api_key_does_not_review_what_it_asked(mesh: ScriptedMesh, ask: Any) -> None:
    async with channel_of(mesh, "admin") as channel:
        wanted = keys.CreateApiKeyRequest(
            description="drafts",
            roles=["user", "reviewer"],
            purposes=["drafting"],
            models=[MODEL],
            lifetime=duration_pb2.Duration(seconds=3600),
        )
        made = await ApiKeyServiceStub(channel).CreateApiKey(wanted)
    bearer = [("authorization", f"Bearer {made.secret}")]

    async def by_key(call: Any) -> Any:
        async with asyncio.timeout(10):  # gateways look at the keys every second
            while True:
                try:
                    return await call()
                except grpc.aio.AioRpcError as error:
                    if remote_error(error).reason != "TOKEN_INVALID":
                        raise

    async with channel_of(mesh, "reviewer") as channel:
        stub = gateway_rpc.GatewayServiceStub(channel)

        async def chat() -> list[gw.ChatResponse]:
            return [response async for response in stub.Chat(ask(purpose="drafting"), metadata=bearer)]

        responses = await by_key(chat)
        request_id = responses[0].started.request_id
        reviews = ReviewServiceStub(channel)
        # An API key decides nothing, and the person whose certificate came beside it was known as the one who asked.
        assert await reason_of(reviews.DecideReview(decision(request_id), metadata=bearer)) == "ROLE_NOT_PERMITTED"
        assert await reason_of(reviews.DecideReview(decision(request_id))) == "AUTHOR_MAY_NOT_REVIEW"
    async with queue(mesh, "admin") as reviews:
        assert await reason_of(reviews.DecideReview(decision(request_id))) == "AUTHOR_MAY_NOT_REVIEW"
        assert await reason_of(reviews.GetHeldAnswer(pb.GetHeldAnswerRequest(request_id=request_id))) == "REVIEW_NOT_FOUND"
    async with queue(mesh, "second") as reviews:
        await reviews.DecideReview(decision(request_id))


async def test_of_two_reviewers_at_once_exactly_one_decides(mesh: ScriptedMesh, ask: Any) -> None:
    request_id = await held(mesh, ask(purpose="drafting"))
    async with queue(mesh, "reviewer") as first, queue(mesh, "second") as second:
        calls = [first.DecideReview(decision(request_id, RELEASE)), second.DecideReview(decision(request_id, REFUSE))]
        ended = await asyncio.gather(*calls, return_exceptions=True)
    failures = [remote_error(one).reason for one in ended if isinstance(one, grpc.aio.AioRpcError)]
    assert failures == ["ALREADY_DECIDED"]
    decided = [leaf["operation"] for leaf in await leaves(mesh) if leaf.get("object_id") == request_id]
    assert len(decided) == 1
    told = await answer(mesh, request_id)
    assert (told.decision == RELEASE) is (decided == ["review.released"])


async def test_a_decision_can_be_repeated_by_who_made_it(mesh: ScriptedMesh, ask: Any) -> None:
    request_id = await held(mesh, ask(purpose="drafting"))
    async with queue(mesh) as reviews:
        once = await reviews.DecideReview(decision(request_id))
        again = await reviews.DecideReview(decision(request_id, reason="asked again"))
        assert once.receipt.position.leaf_index == again.receipt.position.leaf_index
        assert await reason_of(reviews.DecideReview(decision(request_id, REFUSE))) == "ALREADY_DECIDED"


async def test_what_the_log_has_decided_is_done_after_a_crash(
    mesh: ScriptedMesh, ask: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    request_id = await held(mesh, ask(purpose="drafting"))
    kept = rows.decide

    async def dies(*_: Any) -> None:
        raise RuntimeError("the gateway dies after the leaf and before the row")

    monkeypatch.setattr(rows, "decide", dies)
    async with queue(mesh) as reviews:
        assert await reason_of(reviews.DecideReview(decision(request_id))) == "INTERNAL_ERROR"
    monkeypatch.setattr(rows, "decide", kept)
    async with queue(mesh, "second") as reviews:
        assert await reason_of(reviews.DecideReview(decision(request_id, REFUSE))) == "ALREADY_DECIDED"
    told = await answer(mesh, request_id)
    assert (told.decision, told.answer) == (RELEASE, mesh.engine.text)
    decided = [leaf["operation"] for leaf in await leaves(mesh) if leaf.get("object_id") == request_id]
    assert decided == ["review.released"]


async def test_an_answer_on_which_nobody_decides_is_refused_by_the_log(
    mesh: ScriptedMesh, ask: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = rows.hold

    async def short(store: Any, review: Any, ttl_us: int, *, notify: bool) -> Any:
        return await kept(store, review, ttl_us // 4320 // 60, notify=notify)  # a second

    monkeypatch.setattr(rows, "hold", short)
    request_id = await held(mesh, ask(purpose="drafting"))
    async with asyncio.timeout(15), queue(mesh, "asker") as reviews:
        while True:
            told = await reviews.GetHeldAnswer(pb.GetHeldAnswerRequest(request_id=request_id))
            if told.decision != WAITING:
                break
    assert (told.decision, told.answer) == (EXPIRED, "")
    async with queue(mesh) as reviews:
        assert await reason_of(reviews.DecideReview(decision(request_id))) == "ALREADY_DECIDED"
    (leaf,) = [leaf for leaf in await leaves(mesh) if leaf.get("object_id") == request_id]
    assert (leaf["operation"], leaf["actor"]) == ("review.expired", f"spiffe://{TRUST_DOMAIN}/service/gateway")


async def test_nobody_else_learns_of_a_held_answer(mesh: ScriptedMesh, ask: Any) -> None:
    request_id = await held(mesh, ask(purpose="drafting"))
    nobodys = request_id[:-1] + ("0" if request_id[-1] != "0" else "1")
    async with queue(mesh, "reviewer", "broker") as reviews, queue(mesh, "second") as own:
        for call in (
            lambda stub, which: stub.GetReview(pb.GetReviewRequest(request_id=which)),
            lambda stub, which: stub.DecideReview(decision(which)),
            lambda stub, which: stub.GetHeldAnswer(pb.GetHeldAnswerRequest(request_id=which)),
        ):
            assert await reason_of(call(reviews, request_id)) == "REVIEW_NOT_FOUND"
            assert await reason_of(call(reviews, nobodys)) == "REVIEW_NOT_FOUND"
        assert await reason_of(own.GetHeldAnswer(pb.GetHeldAnswerRequest(request_id=request_id))) == "REVIEW_NOT_FOUND"
        assert not (await reviews.ListReviews(pb.ListReviewsRequest(page_size=10))).reviews
    async with queue(mesh, "asker") as reviews:
        assert await reason_of(reviews.ListReviews(pb.ListReviewsRequest(page_size=10))) == "ROLE_NOT_PERMITTED"
        assert await reason_of(reviews.GetReview(pb.GetReviewRequest(request_id=request_id))) == "ROLE_NOT_PERMITTED"


async def test_answers_about_suspicion_exist_for_the_officer_alone(mesh: ScriptedMesh, ask: Any) -> None:
    asked = ask(purpose="drafting", data_class=ctx.DATA_CLASS_SUSPICION)
    request_id = await held(mesh, asked, "mlro")
    async with queue(mesh, "reviewer") as reviews:
        assert not (await reviews.ListReviews(pb.ListReviewsRequest(page_size=10, include_decided=True))).reviews
        assert await reason_of(reviews.GetReview(pb.GetReviewRequest(request_id=request_id))) == "REVIEW_NOT_FOUND"
        assert await reason_of(reviews.DecideReview(decision(request_id))) == "REVIEW_NOT_FOUND"
    async with queue(mesh, "mlro") as reviews:
        assert len((await reviews.ListReviews(pb.ListReviewsRequest(page_size=10))).reviews) == 1
        assert await reason_of(reviews.DecideReview(decision(request_id))) == "AUTHOR_MAY_NOT_REVIEW"


async def test_the_state_holds_no_word_of_a_held_answer(mesh: ScriptedMesh, ask: Any, tmp_path: Path) -> None:
    mesh.engine.text = "xylophone-marmalade"
    request_id = await held(mesh, ask("quintessence-paragon", purpose="drafting"))
    async with queue(mesh) as reviews:
        await reviews.DecideReview(decision(request_id, REFUSE, "balderdash-verdict"))
    kept = await asyncio.to_thread(lambda: b"".join(path.read_bytes() for path in tmp_path.glob("state.db*")))
    assert request_id.encode() in kept
    for word in (b"xylophone", b"quintessence", b"balderdash"):
        assert word not in kept


async def test_a_queue_is_paged_oldest_first(mesh: ScriptedMesh, ask: Any) -> None:
    ids = [await held(mesh, ask(purpose="drafting")) for _ in range(5)]
    found, token = [], ""
    async with queue(mesh) as reviews:
        while True:
            page = await reviews.ListReviews(pb.ListReviewsRequest(page_size=2, page_token=token))
            found += [review.request_id for review in page.reviews]
            token = page.next_page_token
            if not token:
                break
        assert found == ids
        for forged in ("x", "1", "99999999999999999999.x"):
            request = pb.ListReviewsRequest(page_size=2, page_token=forged)
            assert await reason_of(reviews.ListReviews(request)) == "INVALID_FIELD"


async def test_a_queue_that_is_full_fails_the_request_and_keeps_nothing(
    mesh: ScriptedMesh, ask: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rows, "MAX_WAITING", 1)
    await held(mesh, ask(purpose="drafting"))
    assert await reason_of(said(mesh, ask(purpose="drafting"))) == "REVIEW_QUEUE_FULL"
    last = [leaf for leaf in await leaves(mesh) if leaf["type"] == "outcome"][-1]
    assert (last["status"], last["reason"], "commitments" in last) == ("failed", "REVIEW_QUEUE_FULL", False)


async def test_over_http_a_held_answer_is_filtered_and_fetched_when_it_is_released(waiting_mesh: ScriptedMesh) -> None:
    waiting_mesh.http = {}
    identity = waiting_mesh.ca.issue(spiffe_id=spiffe_id("bank", "asker"))
    async with waiting_mesh.running(), raw(waiting_mesh, identity) as client:
        asked = body(lionrock={"purpose": "drafting"})
        whole = (await client.post("chat/completions", json=asked)).json()
        streamed = (await client.post("chat/completions", json={**asked, "stream": True})).text
        assert waiting_mesh.engine.text not in json.dumps(whole) + streamed
        (choice,) = whole["choices"]
        assert (choice["finish_reason"], choice["message"]["content"]) == ("content_filter", "")
        assert choice["message"]["refusal"]
        (proof,) = whole["lionrock"]["answers"]
        assert "answer_salt" not in proof
        assert proof["review"]["state"] == "pending"
        assert '"finish_reason":"content_filter"' in streamed
        path = proof["review"]["path"].removeprefix("/v1/")
        before = await client.get(path)
        assert before.status_code == 200
        assert before.json()["lionrock"]["review"]["state"] == "pending"
        async with queue(waiting_mesh) as reviews:
            await reviews.DecideReview(decision(proof["request_id"]))
        after = (await client.get(path)).json()
        assert (after["lionrock"]["review"]["state"], after["content"]) == ("released", waiting_mesh.engine.text)
        nobodys = (await client.get(f"lionrock/held-answers/{uuid7()}")).json()
        assert nobodys["error"]["code"] == "REVIEW_NOT_FOUND"
        assert (await client.get("lionrock/held-answers/short")).json()["error"]["code"] == "INVALID_FIELD"


async def test_a_notice_goes_out_when_an_answer_is_held_and_none_about_suspicion(
    waiting_mesh: ScriptedMesh, ask: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: asyncio.Queue[str] = asyncio.Queue()

    async def tell(notify: Any, review: Any, now_s: int) -> None:
        told.put_nowait(review.request_id)

    monkeypatch.setattr(upkeep, "tell", tell)
    notify = {"url": "https://localhost/hook", "secret_file": "/nowhere"}
    waiting_mesh.tenants = [reviewed("bank", notify=notify), reviewed("broker")]
    async with waiting_mesh.running():
        await held(waiting_mesh, ask(purpose="drafting", data_class=ctx.DATA_CLASS_SUSPICION), "mlro")
        request_id = await held(waiting_mesh, ask(purpose="drafting"))
        async with asyncio.timeout(10):
            assert await told.get() == request_id
    assert told.empty()


async def test_a_gateway_without_state_does_not_start_for_a_tenant_with_a_queue(waiting_mesh: ScriptedMesh) -> None:
    waiting_mesh.gateway_changes = {}
    with pytest.raises(ValueError, match="set state"):
        async with waiting_mesh.running():
            pass


async def test_what_no_vault_would_keep_is_refused_and_not_held(mesh: ScriptedMesh, ask: Any) -> None:
    mesh.engine.text, mesh.engine.chunk = f"This is {REVIEWED_WORD}.", 100
    async with channel_of(mesh, "asker", "broker") as channel:  # the audit service keeps payloads of the bank alone
        stub = gateway_rpc.GatewayServiceStub(channel)
        kinds: list[str | None] = []

        async def listen(purpose: str) -> None:
            async for response in stub.Chat(ask(purpose=purpose)):
                kinds.append(response.WhichOneof("message"))  # noqa: PERF401  kept also when the answer ends by an error

        for purpose in ("drafting", "testing"):
            assert await reason_of(listen(purpose)) == "REVIEW_REQUIRED"
        assert "delta" not in kinds
    async with queue(mesh, "reviewer", "broker") as reviews:
        assert not (await reviews.ListReviews(pb.ListReviewsRequest(page_size=10))).reviews
