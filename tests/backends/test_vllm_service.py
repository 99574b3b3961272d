"""A served model on vLLM: Ray Serve's replica, its engine's processes, and what becomes of them when the replica is killed."""

from __future__ import annotations

import asyncio
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml
from tokenizers import Tokenizer

from models import Unavailable, smollm2_path

sys.path.insert(0, str(Path(__file__).parent.parent / "inference"))

import inference_service
from inference_service import InferenceService, generate_request, process_title

START_S = 400


def wait_for_end(process: psutil.Process) -> None:
    """Return once a process runs no more. Ray's daemon adopts the dead ones and buries them when it likes."""
    end_s = time.monotonic() + 30
    while process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < end_s, f"{process_title(process)} lives on"
        time.sleep(0.05)


def serve(directory: Path, model: Path, **changed: Any) -> InferenceService:
    """Start the service of tests/inference with another backend."""
    written = inference_service.write_configuration

    def write(ca: Any, directory: Path, model: Path) -> Path:
        path = written(ca, directory, model)
        configuration = yaml.safe_load(path.read_text())
        configuration["models"][inference_service.MODEL] |= {"backend": "vllm", "tensor_parallel": 1, **changed}
        path.write_text(yaml.safe_dump(configuration))
        return path

    inference_service.write_configuration = write
    try:
        return InferenceService(directory, model)
    finally:
        inference_service.write_configuration = written


@pytest.mark.needs_vllm
async def test_model_is_served_by_vllm_and_a_killed_replica_leaves_no_process(
    tmp_path: Path, checkpoint: tuple[Path, Tokenizer]
) -> None:
    service = serve(tmp_path, checkpoint[0], kv_cache_bytes=16 << 20, vllm={"enforce_eager": True})
    try:
        await service.wait_ready(within_s=START_S)
        async with service.stub() as stub:
            answer = await service.answer(stub, generate_request(token_ids=(1, 40, 50, 60), max_tokens=12))
        assert answer.error is None
        assert len(answer.tokens) == 12
        assert answer.started is not None
        assert answer.started.model.engine.startswith("lionrock-vllm/")
        engine = service.descendants("VLLM::")
        assert {process_title(process).split()[0] for process in engine} == {"VLLM::EngineCore", "VLLM::Worker"}
        (replica,) = {process.parent() for process in engine if "EngineCore" in process_title(process)}
        assert replica is not None
        replica.kill()
        for process in engine:
            await asyncio.to_thread(wait_for_end, process)
    finally:
        assert service.stop() == []


def test_gguf_file_is_refused_before_anything_starts(tmp_path: Path) -> None:
    try:
        model = smollm2_path()
    except Unavailable as error:
        pytest.skip(str(error))
    service = serve(tmp_path, model)
    assert service.process.wait(timeout=60) == 1
    assert "safetensors" in service.log_file.read_text()
