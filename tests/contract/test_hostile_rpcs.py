"""Whatever arrives on any RPC, the answer is a precise status: never INTERNAL, never UNKNOWN, and others go on being served.

The methods are read from the registered services' descriptors, so that a new RPC cannot be forgotten. Each failure names the seed;
`fuzz_rpcs.py` beside this file runs the same thing for as long as it is told. The inference front has the same in
tests/inference/test_hostile.py.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest
import pytest_asyncio

sys.path.insert(0, str(Path(__file__).parent))

from real_services import METHODS, Served, serve_all

SEEDS = range(40)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def served(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Served]:
    """Every service that needs no Ray."""
    async with serve_all(tmp_path_factory.mktemp("hostile")) as running:
        yield running


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.full_name)
async def test_hostile_requests_get_a_precise_status_and_harm_nobody(served: Served, method: object) -> None:
    imprecise = []
    for seed in SEEDS:
        code, details = await served.call(method, seed)
        if code in (grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN) or (code is not grpc.StatusCode.OK and not details):
            imprecise.append((seed, code))
    assert not imprecise, f"imprecise statuses of {method.full_name} by seed"  # type: ignore[attr-defined]
    await served.still_serves(method)


@pytest.mark.asyncio(loop_scope="module")
async def test_a_prompt_of_a_million_characters_is_answered_or_refused_by_name(served: Served) -> None:
    for text in ("a" * 1_000_000, "字" * 1_000_000, " " * 1_000_000, "1" * 1_000_000, "😀" * 500_000):
        for code, reason in await asyncio.gather(*served.whole_text(text)):
            assert code is grpc.StatusCode.OK or reason, f"{code} without a reason for {len(text)} × {text[0]!r}"
            assert code not in (grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN, grpc.StatusCode.DEADLINE_EXCEEDED)
