"""`lionrock up`: the mesh of one machine in the foreground. This part runs before anything of the mesh exists.

Reads settings, takes the lock, brings the model in, and hands over to mesh.py inside the guard. It imports neither gRPC nor a
service: the process that it becomes only waits (guard.py).
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lionrock.cli.errors import report
from lionrock.cli.guard import guarded
from lionrock.cli.models import explained, pull_with_progress
from lionrock.cli.settings import MeshSettings, load_mesh_settings
from lionrock.cli.state import StateDir
from lionrock.modelstore.errors import ModelNameInvalid, ModelStoreError, UnknownModel
from lionrock.modelstore.source import ModelSource
from lionrock.modelstore.store import ModelStore


def run(state_dir: Path | None, config: Path | None, given: Mapping[str, Any]) -> int:
    """Run the mesh until it is told to stop. Returns the exit status. Raises CommandError when it cannot start."""
    settings = load_mesh_settings(config, given)
    state = StateDir.at(state_dir)
    state.create()
    # Until the guard takes over, SIGTERM unwinds like Ctrl-C, so that a download ends with us.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with state.locked():
        # What a mesh that was killed has left must not be taken for this one.
        state.mesh_file.unlink(missing_ok=True)
        model = bring_model(state, settings.model)
        pid = os.getpid()
        return guarded(lambda: _supervised(settings, state, model, pid))


def bring_model(state: StateDir, wanted: str) -> ModelSource:
    """Take the model from the store; pull it first when it is not there. Raises CommandError."""
    try:
        return ModelStore(state.models).get(wanted)
    except (UnknownModel, ModelNameInvalid):  # not an entry: a catalogue name, a package or a path
        return pull_with_progress(state, wanted)
    except ModelStoreError as error:
        raise explained(error) from error


def _supervised(settings: MeshSettings, state: StateDir, model: ModelSource, pid: int) -> int:
    """In the guarded child. Errors are printed here, because the waiting parent sees only an exit status."""
    import asyncio

    from lionrock.cli.mesh import Mesh

    try:
        return asyncio.run(Mesh(settings, state, model, pid).run())
    except Exception as error:  # noqa: BLE001 - the last frame of this process
        return report(error, debug="--debug" in sys.argv[1:])
