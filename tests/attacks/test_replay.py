"""What was sent once and is sent again is another request: with an id, leaves and a receipt of its own, at both doors.

A request id names the leaf of an outcome, so whoever could choose it could stand in another's place in the log. Tokens that are
used again where they do not belong are in test_bearer_tokens.py; keys that were revoked, in tests/gateway/test_api_keys.py.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest

from http_calls import body, raw
from lionrock.common.v1 import chat_pb2 as chat
from lionrock.gateway.v1 import gateway_pb2 as gw
from scripted_mesh import ScriptedMesh

NAMES = ("x-request-id", "request-id", "lionrock-request-id", "idempotency-key", "x-idempotency-key", "traceparent")


@pytest.fixture
async def web(tmp_path: Any) -> AsyncIterator[ScriptedMesh]:
    """A gateway with both doors."""
    mesh = ScriptedMesh(tmp_path)
    mesh.http = {}
    async with mesh.running():
        yield mesh


def chosen(request_id: str) -> dict[str, str]:
    """Headers by which a caller would choose the id of a request."""
    return dict.fromkeys(NAMES[:-1], request_id) | {"traceparent": f"00-{request_id.replace('-', '')}-00f067aa0ba902b7-01"}


async def test_a_request_that_is_sent_again_is_another_request(web: ScriptedMesh) -> None:
    ids: list[str] = []
    async with raw(web) as ada, raw(web, web.identity("broker")) as broker:
        first = (await ada.post("chat/completions", json=body())).headers["x-request-id"]
        for client in (ada, broker, ada):
            response = await client.post("chat/completions", json=body(), headers=chosen(first))
            assert response.status_code == 200
            ids.append(response.headers["x-request-id"])
    question = gw.ChatRequest(messages=[chat.ChatMessage(role=chat.CHAT_ROLE_USER, content="Say hello.")])
    async with web.calling(web.identity("broker")) as stub:
        for _ in range(2):
            said = [response async for response in stub.Chat(question, metadata=[*chosen(first).items()])]
            ids.append(said[0].started.request_id)
    assert len({first, *ids}) == 6
    assert [leaf.event_id for leaf in web.log.outcomes] == [first, *ids]
    assert len({leaf.event_id for leaf in web.log.leaves}) == 12
    assert [leaf.context.tenant for leaf in web.log.outcomes] == ["bank", "bank", "broker", "bank", "broker", "broker"]
