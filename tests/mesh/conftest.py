"""One mesh for all tests of this directory."""

from __future__ import annotations

from collections.abc import Iterator

import psutil
import pytest

from models import Unavailable, smollm2_path
from running_mesh import Mesh, running_mesh


@pytest.fixture(scope="session")
def mesh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mesh]:
    try:
        smollm2_path()
    except Unavailable as error:
        pytest.skip(str(error))
    with running_mesh(tmp_path_factory.mktemp("mesh") / "state") as mesh:
        yield mesh
        processes = mesh.processes()
        mesh.process.terminate()
        assert mesh.process.wait(90) == 0, mesh.output
        assert [process for process in processes if process.is_running() and process.status() != psutil.STATUS_ZOMBIE] == []
