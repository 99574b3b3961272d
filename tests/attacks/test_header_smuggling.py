"""What a client writes in the head of an HTTP request never says who it is, and never hides a second request.

How requests are cut apart in general is tested where the server is (tests/chassis/test_http_server.py), as are clients that dribble
(there, and in tests/gateway/test_openai_door.py); quota races from 200 clients are in tests/gateway/test_quotas.py, and bad tokens
in tests/gateway/test_oidc.py.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest

from http_calls import body, raw, trusting
from lionrock.common.v1 import context_pb2 as ctx
from scripted_mesh import ScriptedMesh, tenant

BROKER = "spiffe://lionrock.local/tenant/broker/user/bob"
CLAIMS = {
    "X-Forwarded-For": "127.0.0.1",
    "X-Forwarded-Host": "broker.example",
    "X-Forwarded-Proto": "http",
    "X-Forwarded-User": BROKER,
    "X-Forwarded-Client-Cert": f"Hash=0;URI={BROKER}",
    "Forwarded": f'for="{BROKER}";host=broker',
    "X-Real-IP": "127.0.0.1",
    "X-Client-Cert": BROKER,
    "X-SSL-Client-S-DN": "CN=bob,O=broker",
    "X-SPIFFE-ID": BROKER,
    "X-Tenant": "broker",
    "X-Roles": "regulator",
    "Tenant": "broker",
    "Lionrock-Tenant": "broker",
    "Lionrock-Role": "regulator",
    "Lionrock-Roles": "regulator,privacy_officer",
    "Lionrock-Actor": BROKER,
    "Lionrock-Auth-Method": "oidc",
    "Lionrock-Territory": "US",
    "Lionrock-Profile": "none",
    "Lionrock_Tenant": "broker",
    "Lionrock_Purpose": "drafting",
    "Lionrock_Data_Class": "public",
    "Lionrock_Case": "smuggled",
    "HTTP_LIONROCK_PURPOSE": "drafting",
    "Authorization_": "Bearer x",
    "Proxy-Authorization": "Bearer x",
    "X-Original-URL": "/v1/embeddings",
    "X-Rewrite-URL": "/v1/embeddings",
    "X-HTTP-Method-Override": "GET",
    "OpenAI-Organization": "broker",
    "OpenAI-Project": "broker",
    "grpc-metadata-tenant": "broker",
    "Cookie": "tenant=broker; role=regulator",
    "baggage": "tenant=broker",
}
SMUGGLED_CASE = "smuggled"


@pytest.fixture
async def web(idle_mesh: ScriptedMesh) -> AsyncIterator[ScriptedMesh]:
    """A gateway with an HTTP port."""
    idle_mesh.http = {}
    async with idle_mesh.running():
        yield idle_mesh


@pytest.fixture
def idle_mesh(tmp_path: Any) -> ScriptedMesh:
    """Two tenants; what the bank's users may do differs from what the broker's may."""
    mesh = ScriptedMesh(tmp_path)
    mesh.tenants = [tenant("bank"), tenant("broker", roles=["regulator"], not_after="2100-01-01T00:00:00Z")]
    return mesh


def recorded(web: ScriptedMesh) -> ctx.RequestContext:
    """Whose the last request was, without what is drawn for each."""
    context = ctx.RequestContext()
    context.CopyFrom(web.log.intents[-1].context)
    context.ClearField("request_id")
    return context


async def test_no_header_says_who_asks_or_what_for_unless_it_is_documented(web: ScriptedMesh) -> None:
    async with raw(web) as client:
        await client.post("chat/completions", json=body())
        plain = recorded(web)
        assert (plain.tenant, plain.purpose, plain.actor.rpartition("/")[2]) == ("bank", "testing", "ada")
        for name, value in CLAIMS.items():
            for spelled in (name, name.upper(), name.lower()):
                response = await client.post("chat/completions", json=body(), headers={spelled: value})
                assert response.status_code == 200, spelled
                assert recorded(web) == plain, spelled
        response = await client.post("chat/completions", json=body(), headers=CLAIMS)
        assert (response.status_code, recorded(web)) == (200, plain)


@pytest.mark.parametrize("http2", [False, True], ids=["HTTP/1.1", "HTTP/2"])
@pytest.mark.parametrize("name", ["Authorization", "Lionrock-Purpose", "Lionrock-Timeout", "Content-Type", "Lionrock-Case"])
async def test_a_header_that_decides_is_there_once(web: ScriptedMesh, name: str, http2: bool) -> None:
    values = {
        "Authorization": ("Bearer certificate", "Bearer eyJhbGciOiJub25lIn0.e30."),
        "Lionrock-Purpose": ("testing", "drafting"),
        "Lionrock-Timeout": ("5", "500"),
        "Content-Type": ("application/json", "text/plain"),
        "Lionrock-Case": ("a", "b"),
    }[name]
    content = json.dumps(body()).encode()
    others = {"Content-Type": "application/json"} if name != "Content-Type" else {}
    async with raw(web, http1=not http2, http2=http2) as client:
        for first, second in (values, values[::-1], (values[0], values[0])):
            for names in ((name, name), (name.lower(), name.upper())):
                doubled = [*others.items(), (names[0], first), (names[1], second)]
                response = await client.post("chat/completions", content=content, headers=doubled)
                assert response.status_code in (400, 401), (response.text, names)
    assert not web.log.leaves


async def test_one_header_with_two_tokens_is_no_token(web: ScriptedMesh) -> None:
    async with raw(web) as client:
        for value in (
            "Bearer certificate, Bearer x",
            "Bearer certificate,Basic YTpi",
            "Bearer certificate\tx",
            "Bearer  x certificate",
        ):
            response = await client.post("chat/completions", json=body(), headers={"Authorization": f"Bearer {value}"})
            assert (response.status_code, response.json()["error"]["code"]) == (401, "TOKEN_INVALID"), value
    assert not web.log.leaves


def chat_request(case: str, *extra: str, target: str = "/v1/chat/completions", length: int | None = None) -> bytes:
    """A chat as bytes; its case says in the log which one it was."""
    content = json.dumps(body(lionrock={"case_id": case})).encode()
    head = [f"POST {target} HTTP/1.1", "Host: gateway", "Content-Type: application/json", *extra]
    if length is None:
        length = len(content)
    if length >= 0:
        head.append(f"Content-Length: {length}")
    return "\r\n".join([*head, "", ""]).encode() + content


async def said_to(web: ScriptedMesh, sent: bytes) -> bytes:
    """Send bytes on a connection with the bank's certificate, and read until the server has nothing more to say."""
    port = int(web.targets["http"].rpartition(":")[2])
    reader, writer = await asyncio.open_connection("localhost", port, ssl=trusting(web.identity()))
    writer.write(sent)
    answered = bytearray()
    try:
        async with asyncio.timeout(10):
            while piece := await reader.read(65536):
                answered += piece
    except OSError:
        pass
    finally:
        writer.transport.abort()
    return bytes(answered)


HIDDEN = chat_request(SMUGGLED_CASE, "Connection: close")
CUT_TWO_WAYS = {
    "two lengths": chat_request("front", "Content-Length: 0") + HIDDEN,
    "the same length twice, then another": chat_request("front", "Content-Length: 5", "Content-Length: 5") + HIDDEN,
    "a length and chunks": chat_request("front", "Transfer-Encoding: chunked") + b"0\r\n\r\n" + HIDDEN,
    "chunks by another name": chat_request("front", "Transfer-Encoding: \x0bchunked", length=-1) + HIDDEN,
    "chunks after all": chat_request("front", "Transfer-Encoding: identity, chunked", length=-1) + HIDDEN,
    "a space before the colon": chat_request("front", "Content-Length : 0", length=-1) + HIDDEN,
    "a length with a sign": chat_request("front", "Content-Length: +0", length=-1) + HIDDEN,
    "a list of lengths": chat_request("front", "Content-Length: 0, 5", length=-1) + HIDDEN,
    "a bare line feed in a value": chat_request("front", "X: a\nContent-Length: 0") + HIDDEN,
    "a carriage return in a value": chat_request("front", "X: a\rContent-Length: 0", length=-1) + HIDDEN,
    "two hosts": chat_request("front", "Host: broker") + HIDDEN,
    "no header name": chat_request("front", ": x") + HIDDEN,
}


@pytest.mark.parametrize("attack", CUT_TWO_WAYS)
async def test_a_request_that_two_readers_would_cut_apart_differently_asks_nothing(web: ScriptedMesh, attack: str) -> None:
    answered = await said_to(web, CUT_TWO_WAYS[attack])
    assert answered.count(b"HTTP/1.1 ") <= 1, answered
    assert b"HTTP/1.1 2" not in answered
    assert b"HTTP/1.1 500" not in answered, answered
    assert not web.log.leaves


@pytest.mark.parametrize(
    "target",
    [
        "https://broker.example/v1/chat/completions",
        "http://localhost/v1/chat/completions",
        "//v1/chat/completions",
        "/v1//chat/completions",
        "/v1/x/../chat/completions",
        "/v1/%2e%2e/v1/chat/completions",
        "/v1/chat%2fcompletions/..",
        "/V1/CHAT/COMPLETIONS",
        "/v1/chat/completions/",
        "/v1/chat/completions;tenant=broker",
        "*",
    ],
)
async def test_another_form_of_the_path_leads_nowhere(web: ScriptedMesh, target: str) -> None:
    answered = await said_to(web, chat_request("other-form", "Connection: close", target=target))
    assert answered.startswith((b"HTTP/1.1 404", b"HTTP/1.1 400")), answered[:200]
    assert not web.log.leaves


async def test_a_query_and_a_folded_header_say_nothing(web: ScriptedMesh) -> None:
    await said_to(web, chat_request("query", "Connection: close", target="/v1/chat/completions?tenant=broker&purpose=drafting"))
    assert (recorded(web).tenant, recorded(web).purpose) == ("bank", "testing")
    answered = await said_to(web, chat_request("folded", "Lionrock-Purpose: testing\r\n drafting", "Connection: close"))
    assert answered.startswith(b"HTTP/1.1 400"), answered[:200]
    assert len(web.log.intents) == 1


async def test_nothing_of_one_request_is_left_for_the_next_on_its_connection(web: ScriptedMesh) -> None:
    first = chat_request("first", "Lionrock-Purpose: drafting")
    answered = await said_to(web, first + chat_request("second", "Connection: close"))
    assert answered.count(b"HTTP/1.1 200") == 2
    assert [(leaf.context.case_id, leaf.context.purpose) for leaf in web.log.intents] == [
        ("first", "drafting"),
        ("second", "testing"),
    ]
