"""Clients of the mesh that `lionrock up` runs on this machine, found by its state directory.

Reads mesh.json (endpoints.gateway.target) and certs/client/, and nothing else: no environment, no default directory.
"""

from __future__ import annotations

import json
from pathlib import Path

from lionrock.client.aio import AsyncClient
from lionrock.client.blocking import Client
from lionrock.client.connection import Tls
from lionrock.client.errors import MeshNotRunning
from lionrock.client.retry import RetryPolicy


def connect_local(state_dir: str | Path, *, deadline_s: float = 120.0, retry: RetryPolicy | None = None) -> Client:
    """Open a blocking client. Raises MeshNotRunning."""
    return Client(_gateway(Path(state_dir)), tls=_tls(Path(state_dir)), deadline_s=deadline_s, retry=retry)


def connect_local_async(state_dir: str | Path, *, deadline_s: float = 120.0, retry: RetryPolicy | None = None) -> AsyncClient:
    """Make an async client, to be opened with `async with`. Raises MeshNotRunning."""
    return AsyncClient(_gateway(Path(state_dir)), tls=_tls(Path(state_dir)), deadline_s=deadline_s, retry=retry)


def _gateway(state_dir: Path) -> str:
    try:
        target = json.loads((state_dir / "mesh.json").read_text(encoding="utf-8"))["endpoints"]["gateway"]["target"]
    except FileNotFoundError:
        raise MeshNotRunning(f"no mesh runs on {state_dir}") from None
    except (ValueError, KeyError, TypeError, OSError):
        raise MeshNotRunning(f"{state_dir / 'mesh.json'} does not describe a mesh") from None
    return str(target)


def _tls(state_dir: Path) -> Tls:
    certs = state_dir / "certs" / "client"
    return Tls(cert=certs / "tls.crt", key=certs / "tls.key", ca=certs / "ca.crt")
