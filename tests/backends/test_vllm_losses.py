"""The vLLM backend when its processes die, do not start, or lose their parent."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import signal
import sys
from pathlib import Path

import psutil
import pytest
from engines import a_request, answer, read, vllm_options
from tokenizers import Tokenizer

from lionrock.inference.backends.vllm_engine import VllmEngine
from lionrock.inference.backends.vllm_plugin import end_with_parent
from lionrock.inference.engine.errors import EngineDraining, ShardGroupLost


def processes(name: str) -> list[psutil.Process]:
    """vLLM's processes below this one; it titles them."""
    return [process for process in psutil.Process().children(recursive=True) if name in process.name()]


@pytest.mark.needs_vllm
async def test_lost_engine_ends_its_streams_and_starts_again(checkpoint: tuple[Path, Tokenizer]) -> None:
    engine = VllmEngine(vllm_options(checkpoint[0]))
    losses: asyncio.Queue[str] = asyncio.Queue()
    loop = asyncio.get_running_loop()
    await engine.start(lambda reason: loop.call_soon_threadsafe(losses.put_nowait, reason))
    before = await answer(engine, a_request())
    stream = engine.submit(a_request(max_tokens=4000))
    await anext(stream)
    (core,) = processes("EngineCore")
    core.kill()
    with pytest.raises(ShardGroupLost):
        await read(stream)
    assert "died" in await losses.get()
    with pytest.raises(ShardGroupLost):
        engine.submit(a_request())
    await engine.start(lambda reason: loop.call_soon_threadsafe(losses.put_nowait, reason))
    assert (await answer(engine, a_request())).tokens == before.tokens
    assert losses.empty()
    stream = engine.submit(a_request(max_tokens=4000))
    await anext(stream)
    await engine.close()
    with pytest.raises(EngineDraining):
        await read(stream)
    assert processes("VLLM::") == []


@pytest.mark.needs_vllm
async def test_vllm_that_cannot_start_says_why_and_leaves_nothing(tmp_path: Path, checkpoint: tuple[Path, Tokenizer]) -> None:
    options = vllm_options(checkpoint[0], directory=tmp_path)  # no weights there
    with pytest.raises(ShardGroupLost, match="vLLM did not start"):
        await VllmEngine(options).start(lambda _: None)
    assert processes("VLLM::") == []


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
