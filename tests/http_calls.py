"""Clients of the gateway's HTTP API: the official `openai` client, and requests by hand, over TLS with a certificate."""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
from openai import AsyncOpenAI

from lionrock.chassis.settings import TlsSettings
from scripted_mesh import MODEL, ScriptedMesh

CERTIFICATE = "certificate"
"""The API key of clients that must have one and show a certificate."""


def trusting(tls: TlsSettings, *, certificate: bool = True) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=str(tls.ca_file))
    if certificate:
        context.load_cert_chain(tls.cert_file, tls.key_file)
    return context


def base_url(mesh: ScriptedMesh) -> str:
    port = mesh.targets["http"].rpartition(":")[2]
    return f"https://localhost:{port}/v1"


@asynccontextmanager
async def raw(mesh: ScriptedMesh, identity: TlsSettings | None = None, **options: Any) -> AsyncIterator[httpx.AsyncClient]:
    """A client that sends what it is told. `certificate=False`: without one."""
    context = trusting(identity or mesh.identity(), certificate=options.pop("certificate", True))
    async with httpx.AsyncClient(base_url=base_url(mesh), verify=context, trust_env=False, timeout=20, **options) as client:
        yield client


@asynccontextmanager
async def official(
    mesh: ScriptedMesh, identity: TlsSettings | None = None, *, api_key: str = CERTIFICATE, **options: Any
) -> AsyncIterator[AsyncOpenAI]:
    """The official client, as its user makes it."""
    async with raw(mesh, identity, certificate=options.pop("certificate", True)) as http:
        yield AsyncOpenAI(api_key=api_key, base_url=base_url(mesh), http_client=http, max_retries=0, **options)


def body(text: str = "Say hello.", **members: Any) -> dict[str, Any]:
    """A chat completion request."""
    return {"model": MODEL, "messages": [{"role": "user", "content": text}], **members}
