"""The door of the HTTP API: who comes in, the bounds that it shares with gRPC, and clients that go, stall, or mean ill."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator
from typing import Any

import grpc
import httpx
import pytest

from http_calls import body, official, raw, trusting
from lionrock.audit.v1 import audit_pb2 as audit
from lionrock.chassis.errors import remote_error
from scripted_mesh import ScriptedMesh, hang


@pytest.fixture
async def web(idle_mesh: ScriptedMesh) -> AsyncIterator[ScriptedMesh]:
    """A running mesh with an HTTP port."""
    idle_mesh.http = {}
    async with idle_mesh.running():
        yield idle_mesh


def code(response: Any) -> str:
    return str(response.json()["error"]["code"])


async def test_without_a_credential_nobody_comes_in(web: ScriptedMesh) -> None:
    async with raw(web, certificate=False) as client:
        for path in ("chat/completions", "completions", "embeddings"):
            response = await client.post(path, json=body())
            assert (response.status_code, code(response)) == (401, "CREDENTIAL_MISSING")
        assert (await client.get("models")).status_code == 401
        assert (
            await client.post("chat/completions", json=body(), headers={"Authorization": "Bearer certificate"})
        ).status_code == 401
    assert not web.log.leaves


async def test_a_token_that_nobody_vouches_for_is_refused_also_beside_a_good_certificate(web: ScriptedMesh) -> None:
    for certificate in (True, False):
        async with raw(web, certificate=certificate) as client:
            for value in ("Bearer eyJhbGciOiJub25lIn0.e30.", "Bearer x", "Basic YTpi"):
                response = await client.post("chat/completions", json=body(), headers={"Authorization": value})
                assert (response.status_code, code(response)) == (401, "TOKEN_INVALID")


async def test_the_certificate_says_whose_request_it_is(web: ScriptedMesh) -> None:
    async with raw(web, web.identity("broker", "bob")) as client:
        assert (await client.post("chat/completions", json=body())).status_code == 200
    context = web.log.outcomes[0].context
    assert (context.tenant, context.actor.rpartition("/")[2]) == ("broker", "bob")


async def test_services_of_the_mesh_and_strangers_are_refused(web: ScriptedMesh) -> None:
    async with raw(web, web.ca.issue("audit")) as client:
        response = await client.post("chat/completions", json=body())
        assert (response.status_code, code(response)) == (403, "CALLER_NOT_PERMITTED")
    async with raw(web, web.identity("nobody", "eve")) as client:
        response = await client.post("chat/completions", json=body())
        assert (response.status_code, code(response)) == (401, "UNKNOWN_PRINCIPAL")


async def test_headers_cannot_say_who_calls(web: ScriptedMesh) -> None:
    claims = {
        "X-Forwarded-Client-Cert": "URI=spiffe://lionrock.local/tenant/broker/user/bob",
        "OpenAI-Organization": "broker",
        "X-Tenant": "broker",
    }
    async with raw(web) as client:
        assert (await client.post("chat/completions", json=body(), headers=claims)).status_code == 200
        doubled = [("Lionrock-Purpose", "testing"), ("Lionrock-Purpose", "drafting")]
        response = await client.post("chat/completions", json=body(), headers=doubled)
        assert (response.status_code, code(response)) == (400, "INVALID_FIELD")
    assert web.log.outcomes[0].context.tenant == "bank"


async def test_rules_of_the_proto_hold_and_name_the_field_of_this_api(web: ScriptedMesh) -> None:
    cases = {
        "temperature": {"temperature": 1000},
        "top_p": {"top_p": 0},
        "max_completion_tokens": {"max_tokens": 0},
        "lionrock.case_id": {"lionrock": {"case_id": "no spaces"}},
        "lionrock.purpose": {"lionrock": {"purpose": "Not A Code"}},
        "messages": {"messages": []},
        "stop": {"stop": ["x"] * 17},
    }
    async with raw(web) as client:
        for field, members in cases.items():
            response = await client.post("chat/completions", json=body(**members))
            assert (response.status_code, code(response)) == (400, "INVALID_FIELD"), field
            assert response.json()["error"]["param"] == field
        for value in (1e300, -1e300):
            response = await client.post("chat/completions", json=body(temperature=value, logit_bias={"1": value}))
            assert response.status_code == 400


@pytest.mark.parametrize("purpose", ["trading", "testing"])
async def test_policy_is_the_same_at_both_doors(web: ScriptedMesh, ask: Any, failure: Any, purpose: str) -> None:
    async with raw(web) as client, web.calling() as stub:
        response = await client.post("chat/completions", json=body(lionrock={"purpose": purpose, "data_class": "suspicion"}))
        refused = await failure(stub.Chat(ask(purpose=purpose, data_class="DATA_CLASS_SUSPICION")))
    assert response.status_code == 403
    assert code(response) == refused.reason


async def test_a_wrong_path_method_or_kind_of_body_is_refused(web: ScriptedMesh) -> None:
    async with raw(web) as client:
        for response in (
            await client.get("chat/completions"),
            await client.post("responses", json={}),
            await client.get("../metrics"),
        ):
            assert (response.status_code, code(response)) == (404, "METHOD_NOT_FOUND")
        response = await client.post("chat/completions", content=json.dumps(body()), headers={"Content-Type": "text/plain"})
        assert (response.status_code, code(response)) == (400, "MALFORMED_REQUEST")
        document = await client.get("../openapi.json")
        assert document.json()["openapi"] == "3.1.0"


async def test_the_deadline_is_the_header_s_and_is_recorded(web: ScriptedMesh) -> None:
    web.engine.pace = asyncio.Semaphore(0)
    async with raw(web) as client:
        response = await client.post("chat/completions", json=body(), headers={"Lionrock-Timeout": "1"})
        assert (response.status_code, code(response)) == (504, "DEADLINE_EXCEEDED")
        assert response.headers["x-should-retry"] == "false"
        for value in ("0", "-1", "nan", "inf", "soon"):
            refused = await client.post("chat/completions", json=body(), headers={"Lionrock-Timeout": value})
            assert (refused.status_code, code(refused)) == (400, "INVALID_FIELD")
    await web.engine.cancelled.wait()
    assert (await web.log.outcome()).outcome.reason == "DEADLINE_EXCEEDED"


async def test_a_caller_has_one_share_of_the_concurrency_at_both_doors(idle_mesh: ScriptedMesh, ask: Any) -> None:
    idle_mesh.http = {}
    idle_mesh.max_concurrent_rpcs_per_caller = 2
    started = asyncio.Semaphore(0)

    async def prefill() -> None:
        started.release()
        await hang()

    idle_mesh.engine.faults["Generate"] = prefill
    async with idle_mesh.running(), raw(idle_mesh) as client, idle_mesh.calling() as stub:
        call = stub.Chat(ask())
        over_grpc = asyncio.ensure_future(anext(aiter(call)))
        over_http = asyncio.ensure_future(client.post("chat/completions", json=body()))
        await started.acquire()
        await started.acquire()
        response = await client.post("chat/completions", json=body())
        assert (response.status_code, code(response)) == (429, "OVERLOADED")
        assert int(response.headers["retry-after"]) >= 1
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await anext(aiter(stub.Chat(ask())))
        assert remote_error(refused.value).reason == "OVERLOADED"
        for running in (over_grpc, over_http):
            running.cancel()
        await asyncio.gather(over_grpc, over_http, return_exceptions=True)


@pytest.mark.parametrize("stream", [False, True])
async def test_the_engine_stops_when_the_client_goes(web: ScriptedMesh, stream: bool) -> None:
    prefilling, _ = held(web)
    async with raw(web) as client:
        asking = asyncio.ensure_future(client.post("chat/completions", json=body(stream=stream)))
        await prefilling.wait()
        went_at = asyncio.get_running_loop().time()
        asking.cancel()
        await web.engine.cancelled.wait()
    assert web.engine.cancelled_at[-1] - went_at < 1.0
    outcome = (await web.log.outcome()).outcome
    assert (outcome.status, outcome.reason) == (audit.OUTCOME_STATUS_ABORTED, "CLIENT_CANCELLED")


async def test_the_engine_stops_when_the_client_goes_in_mid_stream(web: ScriptedMesh) -> None:
    web.engine.pace = asyncio.Semaphore(3)
    async with official(web) as client:
        stream = await client.chat.completions.create(**body(), stream=True)
        async for chunk in stream:
            if chunk.choices[0].delta.content:
                break
        await stream.close()
        await web.engine.cancelled.wait()
    outcome = (await web.log.outcome()).outcome
    assert (outcome.status, outcome.reason) == (audit.OUTCOME_STATUS_ABORTED, "CLIENT_CANCELLED")
    assert outcome.answer


def held(mesh: ScriptedMesh) -> tuple[asyncio.Event, asyncio.Event]:
    """Let the engine wait; return events for that it does and that it may go on."""
    waiting, go = asyncio.Event(), asyncio.Event()

    async def prefill() -> None:
        waiting.set()
        await go.wait()

    mesh.engine.faults["Generate"] = prefill
    return waiting, go


async def test_a_client_that_does_not_read_holds_up_nobody_else_and_little_memory(idle_mesh: ScriptedMesh) -> None:
    idle_mesh.http = {"write_timeout_s": 60}
    idle_mesh.limits["max_delta_tokens"] = 65_536
    idle_mesh.limits["max_answer_bytes"] = 8 * 2**20 - 65_536  # more than the kernel and TLS keep for a connection
    idle_mesh.engine.text, idle_mesh.engine.chunk = "x" * 8_000_000, 50_000
    async with idle_mesh.running(), official(idle_mesh, idle_mesh.identity(who="bob")) as other:
        plain = socket.socket()
        plain.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        plain.setblocking(False)
        port = int(idle_mesh.targets["http"].rpartition(":")[2])
        await asyncio.get_running_loop().sock_connect(plain, ("127.0.0.1", port))
        tls = trusting(idle_mesh.identity())
        reader, writer = await asyncio.open_connection(sock=plain, ssl=tls, server_hostname="localhost", limit=1024)
        request = json.dumps(body(stream=True)).encode()
        head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: {len(request)}\r\n"
        writer.write(f"{head}Content-Type: application/json\r\n\r\n".encode() + request)
        assert b"200" in await reader.readline()
        answer = await other.chat.completions.create(**body(max_tokens=100_000))
        assert len(answer.choices[0].message.content or "") == 100_000
        assert [leaf.context.actor.rpartition("/")[2] for leaf in idle_mesh.log.outcomes] == ["bob"], "nobody reads the other"
        writer.transport.abort()
        assert (await idle_mesh.log.outcome(1)).outcome.status == audit.OUTCOME_STATUS_ABORTED


async def test_a_request_that_dribbles_in_is_given_up(idle_mesh: ScriptedMesh) -> None:
    idle_mesh.http = {"body_timeout_s": 0.3, "keep_alive_s": 0.3}
    async with idle_mesh.running():
        port = int(idle_mesh.targets["http"].rpartition(":")[2])
        for beginning in (b"POST /v1/chat", b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{"):
            reader, writer = await asyncio.open_connection("localhost", port, ssl=trusting(idle_mesh.identity()))
            writer.write(beginning)
            said = await asyncio.wait_for(reader.read(), timeout=10)
            assert said == b"" or said.startswith(b"HTTP/1.1 408")
            writer.close()
    assert not idle_mesh.log.leaves


async def test_a_draining_gateway_finishes_its_answer_and_takes_no_other(web: ScriptedMesh) -> None:
    prefilling, go = held(web)
    async with raw(web) as client:
        asking = asyncio.ensure_future(client.post("chat/completions", json=body()))
        await prefilling.wait()
        stopping = asyncio.ensure_future(web.servers["gateway"].stop(10))
        go.set()
        response = await asking
        assert response.json()["choices"][0]["message"]["content"] == web.engine.text
        await stopping
    async with raw(web) as client:
        with pytest.raises(httpx.ConnectError):
            await client.get("models")
