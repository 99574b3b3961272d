"""Clients that people have: LangChain, curl, and the official client for Node, unmodified, against a real gateway."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest
from langchain_core.messages import HumanMessage
from langchain_openai import ChatOpenAI
from pydantic import SecretStr

from http_calls import CERTIFICATE, base_url, body, trusting
from scripted_mesh import MODEL, ScriptedMesh

NODE_CLIENT = "openai@7.57.0"
NODE_MODULES = Path(__file__).parents[2] / ".cache" / "npm"


@pytest.fixture
async def web(idle_mesh: ScriptedMesh) -> AsyncIterator[ScriptedMesh]:
    """A running mesh with an HTTP port."""
    idle_mesh.http = {}
    async with idle_mesh.running():
        yield idle_mesh


async def run(*command: str, cwd: Path | None = None, **environment: str) -> tuple[int, str, str]:
    process = await asyncio.create_subprocess_exec(
        *command,
        cwd=cwd,
        env={**os.environ, **environment},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, err = await process.communicate()
    assert process.returncode is not None
    return process.returncode, out.decode(), err.decode()


async def test_langchain_asks_and_streams(web: ScriptedMesh) -> None:
    async with httpx.AsyncClient(verify=trusting(web.identity()), trust_env=False) as http:
        model = ChatOpenAI(
            model=MODEL,
            base_url=base_url(web),
            api_key=SecretStr(CERTIFICATE),
            http_async_client=http,
            temperature=0,
            max_retries=0,
            extra_body={"lionrock": {"purpose": "drafting"}},
        )
        answer = await model.ainvoke([HumanMessage("Say hello.")])
        assert answer.content == web.engine.text
        assert answer.usage_metadata is not None
        assert answer.usage_metadata["output_tokens"] == len(web.engine.text)
        streamed = [chunk async for chunk in model.astream("Say hello.")]
        assert "".join(str(chunk.content) for chunk in streamed) == web.engine.text
    assert {intent.context.purpose for intent in web.log.intents} == {"drafting"}


async def test_langchain_calls_a_tool(web: ScriptedMesh) -> None:
    def look_up(customer: str) -> str:
        """Look up a customer."""
        return customer

    web.engine.text = '{"customer": "7"}'
    async with httpx.AsyncClient(verify=trusting(web.identity()), trust_env=False) as http:
        model = ChatOpenAI(
            model=MODEL, base_url=base_url(web), api_key=SecretStr(CERTIFICATE), http_async_client=http, max_retries=0
        )
        answer = await model.bind_tools([look_up], tool_choice="look_up").ainvoke("Who is 7?")
    assert [(call["name"], call["args"]) for call in answer.tool_calls] == [("look_up", {"customer": "7"})]


@pytest.mark.parametrize("version", ["--http1.1", "--http2"])
async def test_curl_asks_and_streams(web: ScriptedMesh, version: str) -> None:
    if shutil.which("curl") is None:
        pytest.skip("curl is not installed")
    tls = web.identity()
    command = ["curl", "--silent", "--show-error", "--no-buffer", version, "--noproxy", "*", "--cacert", str(tls.ca_file)]
    command += ["--cert", str(tls.cert_file), "--key", str(tls.key_file), "-H", "Content-Type: application/json"]
    url = f"{base_url(web)}/chat/completions"
    code, out, err = await run(*command, "-d", json.dumps(body()), url)
    assert code == 0, err
    assert json.loads(out)["choices"][0]["message"]["content"] == web.engine.text
    code, out, err = await run(*command, "-d", json.dumps(body(stream=True)), url)
    assert code == 0, err
    assert out.endswith("data: [DONE]\n\n")


SCRIPT = """
import fs from "node:fs";
import https from "node:https";
import { Readable } from "node:stream";
import OpenAI from "openai";

// Node's own fetch takes no client certificate; any function with its signature will do.
function fetchWithCertificate(url, init = {}) {
  return new Promise((resolve, reject) => {
    const headers = Object.fromEntries(new Headers(init.headers));
    const request = https.request(url, {
      method: init.method, headers, signal: init.signal,
      ca: fs.readFileSync(process.env.CA), cert: fs.readFileSync(process.env.CERT), key: fs.readFileSync(process.env.KEY),
    }, (response) => {
      resolve(new Response(Readable.toWeb(response), { status: response.statusCode, headers: response.headers }));
    });
    request.on("error", reject);
    request.end(init.body);
  });
}

const client = new OpenAI({ apiKey: "certificate", baseURL: process.env.BASE_URL, maxRetries: 0, fetch: fetchWithCertificate });
const ask = { model: process.env.MODEL, messages: [{ role: "user", content: "Say hello." }] };
const whole = await client.chat.completions.create(ask);
let streamed = "";
let receipt = null;
for await (const chunk of await client.chat.completions.create({ ...ask, stream: true })) {
  streamed += chunk.choices[0]?.delta?.content ?? "";
  receipt = chunk.lionrock?.answers[0].receipt ?? receipt;
}
let code = null;
try {
  await client.chat.completions.create({ ...ask, store: true });
} catch (error) {
  code = error.code;
}
console.log(JSON.stringify({ whole: whole.choices[0].message.content, streamed, receipt, code }));
"""


@pytest.fixture
async def node_client() -> Path:
    """A directory with the official client for Node, fetched once."""
    npm = shutil.which("npm")
    if npm is None or shutil.which("node") is None:
        pytest.skip("npm is not installed")
    if not (NODE_MODULES / "node_modules" / "openai").is_dir():
        NODE_MODULES.mkdir(parents=True, exist_ok=True)
        (NODE_MODULES / "package.json").write_text('{"private": true}\n')
        code, _, err = await run(npm, "install", "--no-audit", "--no-fund", "--ignore-scripts", NODE_CLIENT, cwd=NODE_MODULES)
        if code != 0:
            pytest.skip(f"npm cannot fetch {NODE_CLIENT}: {err.strip().splitlines()[-1][:200]}")
    return NODE_MODULES


async def test_the_official_client_for_node_asks_streams_and_reads_errors(web: ScriptedMesh, node_client: Path) -> None:
    script = node_client / "ask.mjs"
    script.write_text(SCRIPT)
    tls = web.identity()
    code, out, err = await run(
        "node",
        str(script),
        BASE_URL=base_url(web),
        MODEL=MODEL,
        CA=str(tls.ca_file),
        CERT=str(tls.cert_file),
        KEY=str(tls.key_file),
    )
    assert code == 0, err
    said = json.loads(out)
    assert (said["whole"], said["streamed"], said["code"]) == (web.engine.text, web.engine.text, "UNSUPPORTED_PARAMETER")
    assert said["receipt"]["origin"] == "test/audit/bank"
