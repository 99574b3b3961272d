"""Both clients against a real gateway: answers, errors, cancellation, repetition."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any, TypeVar

import pytest

import lionrock.client as lionrock
from lionrock.client import AsyncClient, Client, Message, Tls
from mesh_ca import DevCa
from scripted_mesh import BLOCKED_WORD, MODEL, SAFE_MESSAGE, EngineFull, ScriptedMesh, ShardGroupLost, Trouble, raising

Result = TypeVar("Result")


async def in_thread(work: Callable[[], Result]) -> Result:
    """Run blocking work beside the event loop that serves it."""
    return await asyncio.to_thread(work)


@pytest.fixture
async def client(mesh: ScriptedMesh, tls: Tls) -> AsyncIterator[AsyncClient]:
    async with AsyncClient(mesh.targets["gateway"], tls=tls, deadline_s=20) as opened:
        yield opened


@pytest.fixture
async def blocking(mesh: ScriptedMesh, tls: Tls) -> AsyncIterator[Client]:
    with Client(mesh.targets["gateway"], tls=tls, deadline_s=20) as opened:
        yield opened


@pytest.fixture(params=["async", "blocking"])
def complete(request: pytest.FixtureRequest, client: AsyncClient, blocking: Client) -> Callable[..., Awaitable[Any]]:
    """Ask either client for a whole answer."""

    async def ask(*messages: Any, **options: Any) -> Any:
        if request.param == "async":
            return await client.chat(*messages, **options).complete()
        return await in_thread(lambda: blocking.chat(*messages, **options).complete())

    return ask


# Answers


async def test_a_chat_is_iterated_and_then_has_its_receipt(mesh: ScriptedMesh, client: AsyncClient) -> None:
    chat = client.chat("Hi")
    assert (chat.started, chat.finished, chat.receipt) == (None, None, None)
    texts = [delta.text async for delta in chat]
    assert "".join(texts) == mesh.engine.text
    assert chat.started is not None
    assert chat.started.model.model == MODEL
    assert chat.finished is not None
    assert chat.receipt is not None
    assert chat.receipt.tlog_proof == f"proof of {chat.started.request_id}"


async def test_a_blocking_chat_is_iterated_and_then_has_its_receipt(mesh: ScriptedMesh, blocking: Client) -> None:
    def work() -> lionrock.Chat:
        chat = blocking.chat("Hi")
        assert "".join(delta.text for delta in chat) == mesh.engine.text
        return chat

    chat = await in_thread(work)
    assert chat.started is not None
    assert chat.receipt is not None


async def test_options_arrive_as_they_were_given(mesh: ScriptedMesh, complete: Any) -> None:
    turns = [{"role": "system", "content": "Be brief."}, Message("user", "你好")]
    sampling = lionrock.SamplingParams(top_k=5, temperature=1)
    said = {"purpose": "drafting", "case_id": "C-1", "subject_ids": ["customer-17"]}
    answer = await complete(turns, model=MODEL, temperature=0.5, seed=7, max_tokens=4, stop=["!"], sampling=sampling, **said)

    assert answer.text == mesh.engine.text[:4]
    assert answer.finished.reason == lionrock.FinishReason.FINISH_REASON_LENGTH
    asked = mesh.engine.requests[-1].sampling
    assert (asked.temperature, asked.seed, asked.max_tokens, asked.top_k) == (0.5, 7, 4, 5)
    assert [part.text for part in mesh.guardrails.requests[0].parts] == ["Be brief.", "你好"]
    assert (mesh.log.intents[0].context.purpose, mesh.log.intents[0].context.case_id) == ("drafting", "C-1")
    assert list(mesh.log.intents[0].intent.subject_ids) == ["customer-17"]


async def test_the_other_calls_answer_in_both_clients(mesh: ScriptedMesh, client: AsyncClient, blocking: Client) -> None:
    answer = await client.chat("Hi").complete()
    receipt = await client.get_receipt(answer.started.request_id)
    assert receipt == answer.finished.receipt == await in_thread(lambda: blocking.get_receipt(answer.started.request_id))
    assert [model.identity.model for model in await client.list_models()] == [MODEL]
    assert [model.identity.model for model in await in_thread(blocking.list_models)] == [MODEL]
    assert await client.count_tokens("four") == await in_thread(lambda: blocking.count_tokens("four")) == 5
    assert (await client.list_audit_keys()).origin == (await in_thread(blocking.list_audit_keys)).origin == "test/audit/bank"


async def test_one_blocking_client_serves_many_threads(mesh: ScriptedMesh, blocking: Client) -> None:
    answers = await asyncio.gather(*(in_thread(lambda: blocking.chat("Hi").complete().text) for _ in range(8)))
    assert set(answers) == {mesh.engine.text}


def test_messages_that_cannot_be_sent_are_refused_before_anything_is_sent(idle_mesh: ScriptedMesh, tls: Tls) -> None:
    with Client("127.0.0.1:1", tls=tls) as client:
        for messages, complaint in [
            ([{"role": "king", "content": "x"}], "role must be one of"),
            ([{"role": "user"}], "expected the keys"),
            ([{"role": "user", "content": "x", "name": "y"}], "expected the keys"),
            ("\ud800", "surrogates"),
        ]:
            with pytest.raises(ValueError, match=complaint):
                client.chat(messages)  # type: ignore[arg-type]


# Errors


async def test_a_blocked_prompt_has_its_own_error_with_what_to_show(complete: Any) -> None:
    with pytest.raises(lionrock.PromptBlocked) as caught:
        await complete(f"a {BLOCKED_WORD} thing")
    assert caught.value.safe_message == SAFE_MESSAGE
    assert caught.value.rules == (f"word.{BLOCKED_WORD}",)
    assert caught.value.request_id
    assert isinstance(caught.value, lionrock.NotPermitted)


async def test_a_blocked_answer_is_an_answer_that_says_so(mesh: ScriptedMesh, complete: Any) -> None:
    mesh.engine.text, mesh.engine.chunk = f"so {BLOCKED_WORD}", 20
    answer = await complete("Hi")
    assert answer.text == "so "
    assert answer.finished.reason == lionrock.FinishReason.FINISH_REASON_BLOCKED


@pytest.mark.parametrize(
    ("options", "error"),
    [({"purpose": "marketing"}, lionrock.NotPermitted), ({"purpose": "Not A Code"}, lionrock.InvalidRequest)],
)
async def test_refusals_are_typed(complete: Any, options: dict[str, Any], error: type[lionrock.CallError]) -> None:
    with pytest.raises(error) as caught:
        await complete("Hi", **options)
    assert caught.value.reason


async def test_an_unlisted_identity_is_not_authenticated(mesh: ScriptedMesh) -> None:
    files = mesh.identity("stranger")
    async with AsyncClient(mesh.targets["gateway"], tls=Tls(files.cert_file, files.key_file, files.ca_file)) as client:
        with pytest.raises(lionrock.NotAuthenticated):
            await client.list_models()


async def test_a_missing_receipt_and_a_lost_engine_have_their_own_errors(mesh: ScriptedMesh, client: AsyncClient) -> None:
    with pytest.raises(lionrock.ReceiptNotFound):
        await client.get_receipt("01900000-0000-7000-8000-000000000000")
    mesh.engine.faults["Generate"] = raising(Trouble("gone", retry_after_s=100))
    with pytest.raises(lionrock.InferenceUnavailable):
        await client.chat("Hi").complete()


async def test_no_gateway_and_a_gateway_of_another_authority_are_unreachable(mesh: ScriptedMesh, tls: Tls, tmp_path: Path) -> None:
    async with AsyncClient("127.0.0.1:1", tls=tls, deadline_s=5) as client:
        with pytest.raises(lionrock.Unreachable):
            await client.list_models()
    other = DevCa(tmp_path / "other").issue_tenant("bank")
    foreign = Tls(other.cert_file, other.key_file, other.ca_file)
    async with AsyncClient(mesh.targets["gateway"], tls=foreign, deadline_s=5) as client:
        with pytest.raises(lionrock.Unreachable):
            await client.list_models()
    with Client(mesh.targets["gateway"], tls=foreign, deadline_s=5) as client, pytest.raises(lionrock.Unreachable):
        await in_thread(client.list_models)


async def test_another_service_is_not_taken_for_the_gateway(mesh: ScriptedMesh, tls: Tls) -> None:
    async with AsyncClient(mesh.targets["audit"], tls=tls, deadline_s=5) as client:
        with pytest.raises(lionrock.Unreachable):
            await client.list_models()


async def test_a_passed_deadline_is_typed(mesh: ScriptedMesh, complete: Any) -> None:
    mesh.engine.pace = asyncio.Semaphore(1)
    with pytest.raises(lionrock.DeadlineExceeded):
        await complete("Hi", deadline_s=0.4)


# Cancellation


async def test_leaving_the_context_stops_the_engine(mesh: ScriptedMesh, client: AsyncClient) -> None:
    mesh.engine.pace = asyncio.Semaphore(2)
    async with client.chat("Hi") as chat:
        async for _ in chat:
            break
    await asyncio.wait_for(mesh.engine.cancelled.wait(), 5)


async def test_cancelling_the_task_that_reads_stops_the_engine(mesh: ScriptedMesh, client: AsyncClient) -> None:
    mesh.engine.pace = asyncio.Semaphore(2)
    chat = client.chat("Hi")
    await anext(chat)
    reading = asyncio.ensure_future(chat.complete())
    await asyncio.sleep(0)
    reading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reading
    await asyncio.wait_for(mesh.engine.cancelled.wait(), 5)


async def test_a_blocking_chat_that_is_left_stops_the_engine(mesh: ScriptedMesh, blocking: Client) -> None:
    mesh.engine.pace = asyncio.Semaphore(2)

    def work() -> None:
        with blocking.chat("Hi") as chat:
            next(chat)

    await in_thread(work)
    await asyncio.wait_for(mesh.engine.cancelled.wait(), 5)


async def test_closing_from_another_thread_ends_a_blocking_iteration(mesh: ScriptedMesh, blocking: Client) -> None:
    mesh.engine.pace = asyncio.Semaphore(1)
    chat = blocking.chat("Hi")
    begun = threading.Event()

    def work() -> None:
        next(chat)
        begun.set()
        with pytest.raises(lionrock.CallCancelled):
            chat.complete()

    reading = asyncio.ensure_future(in_thread(work))
    await in_thread(begun.wait)
    await in_thread(chat.close)
    await reading
    await asyncio.wait_for(mesh.engine.cancelled.wait(), 5)


# Repetition


async def test_a_refusal_with_a_time_to_come_back_is_repeated(mesh: ScriptedMesh, complete: Any) -> None:
    refusals = iter([EngineFull("full", retry_after_s=0.02), EngineFull("full", retry_after_s=0.02)])

    async def full_twice() -> None:
        for refusal in refusals:
            raise refusal

    mesh.engine.faults["Generate"] = full_twice
    assert (await complete("Hi")).text == mesh.engine.text
    assert len(mesh.log.outcomes) == 3


async def test_attempts_are_bounded(mesh: ScriptedMesh, complete: Any) -> None:
    mesh.engine.faults["Generate"] = raising(EngineFull("full", retry_after_s=0.01))
    with pytest.raises(lionrock.Overloaded):
        await complete("Hi")
    assert len(mesh.log.outcomes) == 3


async def test_what_has_begun_to_answer_is_not_repeated(idle_mesh: ScriptedMesh, tls: Tls) -> None:
    idle_mesh.limits["max_resumptions"] = 0
    idle_mesh.engine.losses = [(3, ShardGroupLost("gone", retry_after_s=0.01))]
    async with idle_mesh.running(), AsyncClient(idle_mesh.targets["gateway"], tls=tls) as client:
        chat = client.chat("Hi")
        with pytest.raises(lionrock.InferenceUnavailable):
            await chat.complete()
    assert len(idle_mesh.log.outcomes) == 1
    assert "".join(chat.progress.texts) == idle_mesh.engine.text[:3]


# Finding the mesh of this machine


async def test_the_local_mesh_is_found_by_its_state_directory(mesh: ScriptedMesh, tmp_path: Path) -> None:
    state = tmp_path / "state"
    (state / "certs").mkdir(parents=True)
    mesh.ca.issue(spiffe_id="spiffe://lionrock.local/tenant/bank/user/dev", directory=state / "certs" / "client")
    with pytest.raises(lionrock.MeshNotRunning):
        lionrock.connect_local(state)
    (state / "mesh.json").write_text(json.dumps({"endpoints": {"gateway": {"target": mesh.targets["gateway"], "pid": 1}}}))
    async with lionrock.connect_local_async(state) as client:
        assert len(await client.list_models()) == 1
    with lionrock.connect_local(state) as blocking:
        assert len(await in_thread(blocking.list_models)) == 1
    (state / "mesh.json").write_text("[]")
    with pytest.raises(lionrock.MeshNotRunning):
        lionrock.connect_local_async(state)


def test_importing_the_client_pulls_neither_torch_nor_ray() -> None:
    import subprocess
    import sys

    code = "import sys, lionrock.client; sys.exit(bool({'torch', 'ray', 'tokenizers'} & {m.split('.')[0] for m in sys.modules}))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
