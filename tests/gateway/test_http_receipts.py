"""What a client of the HTTP API saves verifies with `lionrock verify`, against a real audit service and keys from the same API."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from audit_process import AuditProcess
from http_calls import body, raw
from lionrock.chassis.ids import uuid7
from lionrock.cli import verify
from lionrock.cli.errors import CommandError
from lionrock.cli.http_receipts import shown_receipts
from mesh_ca import DevCa
from scripted_mesh import ScriptedMesh


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, AuditProcess]]:
    directory = tmp_path_factory.mktemp("receipts")
    process = AuditProcess(directory, DevCa(directory))
    yield directory, process
    process.stop()


@pytest.fixture
async def web(service: tuple[Path, AuditProcess]) -> AsyncIterator[ScriptedMesh]:
    directory, process = service
    mesh = ScriptedMesh(directory)
    mesh.targets = {"audit": process.target}
    mesh.http = {}
    mesh.engine.text = "天空係藍色嘅。 🌊"
    async with mesh.running():
        yield mesh


@pytest.fixture
async def keys(web: ScriptedMesh, tmp_path: Path) -> Path:
    """The answer of the endpoint, saved as it is."""
    async with raw(web) as client:
        answered = await client.get("lionrock/audit-keys")
    assert answered.status_code == 200
    file = tmp_path / "audit-keys.json"
    file.write_bytes(answered.content)
    return file


def checked(content: bytes, keys: Path, capsys: pytest.CaptureFixture[str]) -> tuple[int, list[dict[str, Any]]]:
    file = keys.with_name("saved")
    file.write_bytes(content)
    status = verify.run(file, [], keys, None, keys.parent / "state", as_json=True)
    return status, [json.loads(line) for line in capsys.readouterr().out.splitlines()]


@pytest.mark.parametrize(("path", "members"), [("chat/completions", {}), ("completions", {"prompt": "Hello?"})])
async def test_a_saved_completion_verifies_and_its_text_opens_the_leaf(
    web: ScriptedMesh, keys: Path, capsys: pytest.CaptureFixture[str], path: str, members: dict[str, Any]
) -> None:
    request = body(n=2)
    if members:
        request = {"model": request["model"], "n": 2, "max_tokens": 64, **members}
    async with raw(web) as client:
        answered = await client.post(path, json=request)
    status, shown = checked(answered.content, keys, capsys)
    assert status == 0
    assert [(each["verified"], each["answer_opened"], each["leaf"]["status"]) for each in shown] == [(True, True, "answered")] * 2
    assert [each["leaf"]["request_id"] for each in shown] == [each["request_id"] for each in answered.json()["lionrock"]["answers"]]


async def test_a_completion_that_somebody_changed_does_not_verify(
    web: ScriptedMesh, keys: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    async with raw(web) as client:
        first = (await client.post("chat/completions", json=body())).json()
        second = (await client.post("chat/completions", json=body())).json()
    altered = json.loads(json.dumps(first))
    altered["choices"][0]["message"]["content"] += "！"
    swapped = json.loads(json.dumps(first))
    swapped["lionrock"]["answers"][0]["receipt"] = second["lionrock"]["answers"][0]["receipt"]
    for body_ in (altered, swapped):
        status, shown = checked(json.dumps(body_).encode(), keys, capsys)
        assert (status, shown[0]["reason"]) == (1, "OPENING_INVALID")


async def test_a_saved_stream_and_a_tool_call_verify(web: ScriptedMesh, keys: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tools = [{"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}]
    asked = body(tools=tools, tool_choice={"type": "function", "function": {"name": "look"}})
    async with raw(web) as client:
        streamed = await client.post("chat/completions", json=body(stream=True, n=2))
        web.engine.text = '{"at":"海"}'
        called = await client.post("chat/completions", json=asked)
        called_in_stream = await client.post("chat/completions", json={**asked, "stream": True})
    for answered, count in ((streamed, 2), (called, 1), (called_in_stream, 1)):
        status, shown = checked(answered.content, keys, capsys)
        assert (status, [each["answer_opened"] for each in shown]) == (0, [True] * count)


async def test_the_header_verifies_alone_and_among_the_others(
    web: ScriptedMesh, keys: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    async with raw(web) as client:
        answered = await client.post("chat/completions", json=body())
    value = answered.headers["lionrock-receipt"]
    dumped = "HTTP/2 200\r\n" + "".join(f"{name}: {text}\r\n" for name, text in answered.headers.items()) + "\r\n"
    for content in (value, value + "\n", dumped):
        status, shown = checked(content.encode(), keys, capsys)
        assert (status, shown[0]["leaf"]["request_id"]) == (0, answered.headers["x-request-id"])
        assert not shown[0]["answer_opened"]


async def test_a_receipt_is_fetched_again_by_its_tenant_and_by_no_other(
    web: ScriptedMesh, keys: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    async with raw(web) as client:
        request_id = (await client.post("chat/completions", json=body())).headers["x-request-id"]
        again = await client.get(f"lionrock/receipts/{request_id}")
        unknown = await client.get(f"lionrock/receipts/{uuid7()}")
        malformed = await client.get("lionrock/receipts/x")
    assert (again.status_code, again.json()["request_id"]) == (200, request_id)
    status, shown = checked(again.content, keys, capsys)
    assert (status, shown[0]["leaf"]["request_id"]) == (0, request_id)
    async with raw(web, web.identity("broker", "bob")) as client:
        others = await client.get(f"lionrock/receipts/{request_id}")
        other_keys = await client.get("lionrock/audit-keys")
    told = others.json()["error"]
    assert (
        (others.status_code, told["code"]) == (unknown.status_code, unknown.json()["error"]["code"]) == (404, "RECEIPT_NOT_FOUND")
    )
    assert (malformed.status_code, malformed.json()["error"]["code"]) == (400, "INVALID_FIELD")
    foreign = keys.with_name("foreign.json")
    foreign.write_bytes(other_keys.content)
    status, shown = checked(again.content, foreign, capsys)
    assert (status, shown[0]["reason"]) == (1, "SIGNER_UNKNOWN")


async def test_nobody_without_a_credential_gets_keys_or_receipts(web: ScriptedMesh) -> None:
    async with raw(web, certificate=False) as client:
        for path in ("lionrock/audit-keys", f"lionrock/receipts/{uuid7()}"):
            assert (await client.get(path)).status_code == 401


async def test_the_command_itself_takes_what_the_api_answered(web: ScriptedMesh, keys: Path) -> None:
    async with raw(web) as client:
        answered = await client.post("chat/completions", json=body())
    saved = keys.with_name("completion.json")
    saved.write_bytes(answered.content)
    command = [sys.executable, "-m", "lionrock.cli", "verify", str(saved), "--keys-file", str(keys)]
    ran = await asyncio.to_thread(subprocess.run, command, capture_output=True, text=True, timeout=60, check=False)
    assert ran.returncode == 0, ran.stderr
    assert "VERIFIED" in ran.stdout
    assert "the stored text is the one that this leaf commits to" in ran.stdout


MEMBERS = ("receipt", "tlog_proof", "request_id", "choices", "lionrock", "answers", "index", "message", "step")
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(MEMBERS), inner),
    max_leaves=12,
)
SAVED = JSON.map(json.dumps) | st.text().map("data:{}".format)
FILES = st.binary(max_size=200) | SAVED.map(str.encode)


@given(FILES)
def test_a_file_of_any_kind_has_receipts_or_is_refused(content: bytes) -> None:
    with suppress(CommandError):
        assert shown_receipts(content)
