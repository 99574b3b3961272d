"""The state directory: one holder at a time, and a mesh.json that is whole or absent."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lionrock.cli.errors import CommandError, MeshLocked, MeshNotRunning
from lionrock.cli.state import Endpoint, MeshInfo, StateDir, default_state_dir

INFO = MeshInfo(1, "2026-11-23T00:00:00+00:00", "lionrock.local", {"gateway": Endpoint("127.0.0.1:7450", 2)}, ["m"])


@pytest.fixture
def state(tmp_path: Path) -> StateDir:
    directory = StateDir(tmp_path / "state")
    directory.create()
    return directory


def test_default_follows_the_xdg_specification() -> None:
    assert default_state_dir({"XDG_STATE_HOME": "/var/x"}) == Path("/var/x/lionrock")
    for unset in ({}, {"XDG_STATE_HOME": ""}, {"XDG_STATE_HOME": "relative"}):
        assert default_state_dir(unset) == Path.home() / ".local/state/lionrock"


def test_directories_are_for_their_owner_alone(state: StateDir) -> None:
    assert {oct(path.stat().st_mode & 0o777) for path in (state.root, *state.root.iterdir())} == {"0o700"}


def test_second_holder_is_refused_with_the_pid_of_the_first(state: StateDir) -> None:
    with state.locked():
        with pytest.raises(MeshLocked, match=rf"pid {os.getpid()}") as refused, state.locked():
            pytest.fail("two holders")
        assert "--state-dir" in (refused.value.fix or "")
    with state.locked():
        assert state.lock_file.read_text() == f"{os.getpid()}\n"


def test_lock_of_a_killed_process_is_free_again(state: StateDir) -> None:
    hold = (
        "import sys, pathlib\nfrom lionrock.cli.state import StateDir\n"
        "with StateDir(pathlib.Path(sys.argv[1])).locked():\n print(1, flush=True)\n input()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", hold, str(state.root)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout is not None
        holder.stdout.readline()
        assert state.is_locked()
        holder.kill()
        holder.wait()
    assert not state.is_locked()


def test_mesh_is_read_back_as_written(state: StateDir) -> None:
    with state.locked():
        state.write_mesh(INFO)
        assert state.read_mesh() == INFO


def test_mesh_that_nobody_holds_does_not_run(state: StateDir) -> None:
    state.write_mesh(INFO)
    with pytest.raises(MeshNotRunning, match="no mesh runs"):
        state.read_mesh()


def test_mesh_that_is_starting_is_said_to_be(state: StateDir) -> None:
    with state.locked(), pytest.raises(MeshNotRunning, match="still starting"):
        state.read_mesh()


@given(text=st.text() | st.just("{}") | st.just('{"endpoints": []}'))
def test_unreadable_mesh_is_a_message(text: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    state = StateDir(tmp_path_factory.mktemp("state"))
    with state.locked():
        state.mesh_file.write_text(text, encoding="utf-8")
        with pytest.raises(CommandError, match="not readable"):
            state.read_mesh()


def test_directory_that_cannot_be_made_is_a_message_with_a_fix(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(CommandError, match="cannot create") as refused:
        StateDir(tmp_path / "file" / "below").create()
    assert refused.value.fix
