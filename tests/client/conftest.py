"""A real gateway before scripted inner services (tests/scripted_mesh.py), and the client's view of it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from lionrock.client import Tls
from scripted_mesh import ScriptedMesh


@pytest.fixture
def idle_mesh(tmp_path: Path) -> ScriptedMesh:
    """Not started, so that a test can change it first."""
    return ScriptedMesh(tmp_path)


@pytest.fixture
async def mesh(idle_mesh: ScriptedMesh) -> AsyncIterator[ScriptedMesh]:
    """A running mesh."""
    async with idle_mesh.running():
        yield idle_mesh


@pytest.fixture
def tls(idle_mesh: ScriptedMesh) -> Tls:
    """A user of the bank."""
    files = idle_mesh.identity()
    return Tls(files.cert_file, files.key_file, files.ca_file)
