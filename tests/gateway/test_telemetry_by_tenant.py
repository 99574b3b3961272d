"""What operators see of tenants in metrics and traces: each tenant by name, no caller, and nothing that joins two of them."""

from __future__ import annotations

import asyncio
import json
import re
import secrets
import signal
from collections import defaultdict
from pathlib import Path
from typing import Any

import grpc
import httpx
import yaml

from gateway.test_process import config, start
from lionrock.cli.spans import Span, parse_line
from scripted_mesh import MODEL, ScriptedMesh

LABEL = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')
QUESTIONS = 8
UNBOUNDED = ("spiffe:", "ada", "mallory", "case-", "/tenant/")
"""What grows with callers and requests."""


async def asked_by_all(mesh: ScriptedMesh, ask: Any, hear: Any) -> None:
    """Ask as both tenants at once, in many cases, for models and purposes of any name, and as callers that no tenant lists."""
    async with (
        mesh.calling() as bank,
        mesh.calling(mesh.identity("broker", "mallory")) as broker,
        mesh.calling(mesh.identity("nobody")) as stranger,
    ):
        calls = [
            stub.Chat(ask(f"question {number}", case_id=f"case-{number}", conversation_id=secrets.token_hex(8)))
            for number in range(QUESTIONS)
            for stub in (bank, broker)
        ]
        await asyncio.gather(*map(hear, calls))
        # The engine here answers for any name; what stands in metrics is the model that it says it is.
        await asyncio.gather(*(hear(bank.Chat(ask(model=f"no-such-{number}"))) for number in range(QUESTIONS)))
        refused = [stranger.Chat(ask(model=f"no-such-{number}")) for number in range(QUESTIONS)]
        refused += [bank.Chat(ask(purpose=f"purpose_{number}")) for number in range(QUESTIONS)]
        found = await asyncio.gather(*map(hear, refused), return_exceptions=True)
        assert all(isinstance(error, grpc.aio.AioRpcError) for error in found)


async def test_tenants_stand_apart_in_metrics_and_traces(mesh: ScriptedMesh, ask: Any, hear: Any, tmp_path: Path) -> None:
    path = config(mesh, tmp_path, telemetry={"span_dir": str(tmp_path / "spans")})
    settings = yaml.safe_load(path.read_text())
    settings["server"]["metrics_listen"] = "127.0.0.1:0"
    path.write_text(yaml.safe_dump(settings))
    process = await start(path)
    try:
        told = await served(process)
        mesh.targets["gateway"] = f"127.0.0.1:{told['port']}"
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{told['metrics_port']}", trust_env=False) as client:
            await asked_by_all(mesh, ask, hear)
            shown = (await client.get("/metrics")).text
            labels = labels_of(shown)
            await asked_by_all(mesh, ask, hear)
            again = labels_of((await client.get("/metrics")).text)
        process.send_signal(signal.SIGTERM)
        assert process.stderr is not None
        await process.stderr.read()
        assert await process.wait() == 0
    finally:
        if process.returncode is None:
            process.kill()

    assert labels["lionrock_tenant"] == {"bank", "broker"}
    assert labels["gen_ai_request_model"] <= {MODEL, ""}
    assert not [value for values in labels.values() for value in values for part in UNBOUNDED if part in value]
    assert {name: values for name, values in again.items() if name != "le"} == {
        name: values for name, values in labels.items() if name != "le"
    }, "asking again makes no new series"

    lines = [line for file in (tmp_path / "spans").glob("*.jsonl") for line in file.read_text().splitlines()]
    assert '"links"' not in "".join(lines)
    traces: dict[str, list[Span]] = defaultdict(list)
    for line in lines:
        for span in parse_line(line):
            traces[span.trace_id].append(span)
    answered = 0
    for spans in traces.values():
        ids = {span.span_id for span in spans}
        roots = [span for span in spans if span.attributes.get("lionrock.caller.tenant")]
        assert len({span.attributes["lionrock.caller.tenant"] for span in roots}) <= 1
        assert len(roots) <= 1, "one request a trace"
        assert all(span in roots or span.parent_id is None or span.parent_id in ids for span in spans), "and nothing of another"
        answered += any(span.name == "gateway.outcome" for span in spans)
    assert answered >= 6 * QUESTIONS


async def served(process: asyncio.subprocess.Process) -> dict[str, Any]:
    """Wait until the gateway serves; return what it said."""
    assert process.stderr is not None
    async for line in process.stderr:
        if b'"serving"' in line:
            said: dict[str, Any] = json.loads(line)
            return said
    raise AssertionError("the gateway did not start")


def labels_of(metrics: str) -> dict[str, set[str]]:
    """All values of each label."""
    found: dict[str, set[str]] = defaultdict(set)
    for line in metrics.splitlines():
        if not line.startswith("#"):
            for name, value in LABEL.findall(line):
                found[name].add(value)
    return found
