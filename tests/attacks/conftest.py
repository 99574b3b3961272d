"""Two tenants of one gateway before the real audit service: the bank has everything that one can have, the broker attacks."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from attacks.tenants import BANK, BROKER, AttackedMesh, Belongings, belongings_of
from audit_process import AuditProcess
from mesh_ca import DevCa


@pytest.fixture(scope="module")
def audit_service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, AuditProcess]]:
    """The audit service, with a vault for both tenants."""
    directory = tmp_path_factory.mktemp("attacks")
    vault = {
        "tenants": [BANK, BROKER],
        "key_store_file": str(directory / "vault" / "keys.sqlite"),
        "local_key_dir": str(directory / "tenant-keys"),
    }
    process = AuditProcess(directory, DevCa(directory), vault=vault)
    yield directory, process
    process.stop()


@pytest.fixture
async def attacked(audit_service: tuple[Path, AuditProcess], tmp_path: Path) -> AsyncIterator[AttackedMesh]:
    """A gateway that serves all that a gateway can."""
    directory, process = audit_service
    mesh = AttackedMesh(directory, tmp_path, process.target)
    async with mesh.running():
        yield mesh


@pytest.fixture
async def theirs(attacked: AttackedMesh) -> Belongings:
    """What the bank has."""
    return await belongings_of(attacked)
