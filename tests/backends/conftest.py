"""Both backends over one small checkpoint. vLLM takes a while to start, so a module's tests share one engine and one event loop."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
from tokenizers import Tokenizer
from torch import set_num_threads

sys.path.insert(0, str(Path(__file__).parent))

from engines import Started, start_engine
from small_checkpoint import write_checkpoint

set_num_threads(1)

HAS_VLLM = importlib.util.find_spec("vllm") is not None
NO_VLLM = "vLLM is not installed here, so its backend is NOT tested: `make test-vllm` installs it beside and runs these tests"
START_S = 600


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What vLLM's own code warns of is not for us to mend; and it starts slowly."""
    for item in items:
        if "needs_vllm" in item.keywords:
            item.add_marker(pytest.mark.filterwarnings("ignore"))
            item.add_marker(pytest.mark.timeout(START_S))
            if not HAS_VLLM:
                item.add_marker(pytest.mark.skip(reason=NO_VLLM))


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Tokenizer]:
    directory = tmp_path_factory.mktemp("checkpoint")
    return directory, write_checkpoint(directory)


@pytest.fixture(scope="session")
def tokenizer(checkpoint: tuple[Path, Tokenizer]) -> Tokenizer:
    return checkpoint[1]


@pytest_asyncio.fixture(scope="module", loop_scope="module", params=["torch", pytest.param("vllm", marks=pytest.mark.needs_vllm)])
async def started(request: pytest.FixtureRequest, checkpoint: tuple[Path, Tokenizer]) -> AsyncIterator[Started]:
    started = await start_engine(request.param, checkpoint[0])
    yield started
    await started.engine.close()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def torch(checkpoint: tuple[Path, Tokenizer]) -> AsyncIterator[Started]:
    """The torch engine, whichever backend is asked."""
    started = await start_engine("torch", checkpoint[0])
    yield started
    await started.engine.close()
