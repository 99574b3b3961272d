"""The vLLM backend when its processes do not start, or lose their parent."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
from pathlib import Path

import psutil
import pytest
from engines import vllm_options, vllm_processes
from tokenizers import Tokenizer

from lionrock.inference.backends.vllm_engine import VllmEngine
from lionrock.inference.backends.vllm_plugin import end_with_parent
from lionrock.inference.engine.errors import ShardGroupLost


@pytest.mark.needs_vllm
async def test_vllm_that_cannot_start_says_why_and_leaves_nothing(tmp_path: Path, checkpoint: tuple[Path, Tokenizer]) -> None:
    options = vllm_options(checkpoint[0], directory=tmp_path)  # no weights there
    with pytest.raises(ShardGroupLost, match="vLLM did not start"):
        await VllmEngine(options).start(lambda _: None)
    assert vllm_processes() == []


def _outlive(connection: multiprocessing.connection.Connection) -> None:
    """A process of vLLM's kind: it loads the plugin and would wait for ever."""
    end_with_parent()
    connection.send(os.getpid())
    signal.pause()


def _spawn_and_wait(connection: multiprocessing.connection.Connection) -> None:
    multiprocessing.get_context("spawn").Process(target=_outlive, args=(connection,)).start()
    signal.pause()


def test_engine_process_ends_with_the_process_that_started_it() -> None:
    spawn = multiprocessing.get_context("spawn")
    ours, theirs = spawn.Pipe()
    parent = spawn.Process(target=_spawn_and_wait, args=(theirs,))
    parent.start()
    child = psutil.Process(ours.recv())
    assert parent.pid is not None
    os.kill(parent.pid, signal.SIGKILL)
    parent.join()
    child.wait(timeout=30)


def test_plugin_leaves_a_process_that_nobody_spawned_alone() -> None:
    before = sys._current_frames().keys()
    end_with_parent()
    assert sys._current_frames().keys() == before
