"""One inference service for this directory's tests: SmolLM2 in float32 over two shard actors."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from models import Unavailable, smollm2_path

sys.path.insert(0, str(Path(__file__).parent))

from inference_service import InferenceService


@pytest.fixture(scope="session")
def model_path() -> Path:
    try:
        return smollm2_path()
    except Unavailable as error:
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def running_service(tmp_path_factory: pytest.TempPathFactory, model_path: Path) -> Iterator[InferenceService]:
    service = InferenceService(tmp_path_factory.mktemp("inference"), model_path)
    try:
        asyncio.run(service.wait_ready())
        yield service
    finally:
        left = service.stop()
    assert left == [], "processes outlive the service"


@pytest.fixture
async def service(running_service: InferenceService) -> InferenceService:
    """The service, ready: a test before may have broken its shards on purpose."""
    await running_service.wait_ready()
    return running_service
