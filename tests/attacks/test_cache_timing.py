"""Whether another tenant asked the same before is not told by how soon the first token comes.

A prefix cache makes the second asker of a prompt faster: where tenants share a cache, whoever guesses a prompt learns by the time
whether somebody asked it (CVE-2025-46570). Here one engine serves both tenants, with its real model and its real prefix cache, and
with the salts that a gateway gives them. Each trial takes a prompt that nobody asked before. Either the bank asks it just before
the broker does, or it asks another one of the same length; the broker's time to the first token is what is compared.

    LIONROCK_TIMING_TRIALS=2000 pytest -s tests/attacks/test_cache_timing.py
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from torch import set_num_threads

from attacks.timing import Distinguisher, distinguisher, resolution
from backends.engines import a_request, torch_engine
from backends.small_checkpoint import write_checkpoint
from lionrock.gateway.context import CacheSalts
from lionrock.gateway.tenants import TenantName
from lionrock.inference.backends.torch_engine import TorchEngine

LIMIT = 0.55
TRIALS = int(os.environ.get("LIONROCK_TIMING_TRIALS", "100"))
CONTROL_TRIALS = 40
WARM_UP = 5
PROMPT_TOKENS = 512
set_num_threads(1)
BANK, BROKER = TenantName("bank"), TenantName("broker")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("checkpoint")
    write_checkpoint(directory)
    return directory


@pytest.fixture
async def engine(checkpoint: Path) -> AsyncIterator[TorchEngine]:
    """One engine for both tenants."""
    made, _ = torch_engine(checkpoint)
    await made.start(lambda reason: pytest.fail(f"the engine was lost: {reason}"))
    yield made
    await made.close()


async def first_token_s(engine: TorchEngine, tenant: TenantName, prompt: tuple[int, ...], salt: bytes) -> float:
    """Ask, and say how long the first token took."""
    request = a_request(token_ids=prompt, max_tokens=1, tenant=tenant, cache_salt=salt)
    began = time.perf_counter()
    stream = engine.submit(request)
    try:
        async for output in stream:
            if output.token_ids:
                return time.perf_counter() - began
    finally:
        stream.close()
    raise AssertionError("no token came")


Asker = tuple[TenantName, bytes]
"""A tenant and its salt."""


async def compared(engine: TorchEngine, first: Asker, second: Asker, trials: int) -> Distinguisher:
    """Time the second asker after the first asked the same, and after it asked something else, in random order."""
    rng = random.Random(1)
    times: tuple[list[float], list[float]] = ([], [])
    for trial in range(WARM_UP + trials):
        for same in rng.sample((0, 1), 2):
            prompt, other = (tuple(rng.randrange(3, 300) for _ in range(PROMPT_TOKENS)) for _ in range(2))
            await first_token_s(engine, first[0], prompt if same else other, first[1])
            took = await first_token_s(engine, second[0], prompt, second[1])
            if trial >= WARM_UP:
                times[same].append(took)
    return distinguisher(*times)


async def test_the_first_token_does_not_tell_what_another_tenant_asked(engine: TorchEngine) -> None:
    salts = CacheSalts(bytes(range(32)))
    found = await compared(engine, (BANK, salts.of(BANK)), (BROKER, salts.of(BROKER)), TRIALS)
    print(f"after the bank asked the same: {found}")  # shown by pytest -s
    assert found.least <= LIMIT, found
    if resolution(TRIALS) <= LIMIT:
        assert found.auc <= LIMIT, found


async def test_the_attack_works_where_tenants_share_a_salt(engine: TorchEngine) -> None:
    """So the test above can fail, and what stops the attack is the salt."""
    salt = CacheSalts(bytes(range(32))).of(BANK)
    found = await compared(engine, (BANK, salt), (BROKER, salt), CONTROL_TRIALS)
    assert found.least > 0.7, found
