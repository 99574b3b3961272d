"""Both backends on one model in float32: what they say may not depend on which one says it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from engines import Started, a_request, answer, start_engine
from tokenizers import Tokenizer

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.needs_vllm]

OTHER_PROMPT = tuple(3 + (11 * n) % 230 for n in range(70))
SAMPLINGS: list[dict[str, Any]] = [
    {},
    {"repetition_penalty": 1.3},
    {"presence_penalty": 1.5},
    {"frequency_penalty": 0.7},
    {"repetition_penalty": 1.2, "presence_penalty": -0.5, "frequency_penalty": 0.5},
    {"logit_bias": {17: 4.0, 99: -5.0, 200: 2.5}},
    {"logit_bias": {17: 4.0, 99: -5.0}, "repetition_penalty": 1.4, "frequency_penalty": 0.3},
]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def vllm_and_torch(checkpoint: tuple[Path, Tokenizer]) -> AsyncIterator[tuple[Started, Started]]:
    pair = await start_engine("vllm", checkpoint[0]), await start_engine("torch", checkpoint[0])
    yield pair
    for started in pair:
        await started.engine.close()


@pytest.mark.parametrize("sampling", SAMPLINGS, ids=str)
async def test_greedy_answers_are_equal_token_by_token(vllm_and_torch: tuple[Started, Started], sampling: dict[str, Any]) -> None:
    for token_ids in (OTHER_PROMPT, OTHER_PROMPT[:9]):
        vllm, torch = [
            await answer(started.engine, a_request(token_ids=token_ids, max_tokens=48, sampling=sampling))
            for started in vllm_and_torch
        ]
        assert vllm.tokens == torch.tokens


async def test_log_probabilities_are_equal(vllm_and_torch: tuple[Started, Started]) -> None:
    entries = []
    for started in vllm_and_torch:
        answered = await answer(started.engine, a_request(token_ids=OTHER_PROMPT, max_tokens=12, sampling={"logprobs": 5}))
        entries.append([entry for output in answered.outputs for entry in output.logprobs])
    for vllm, torch in zip(*entries, strict=True):
        assert vllm.logprob == pytest.approx(torch.logprob, abs=1e-4)
        assert dict(vllm.top) == pytest.approx(dict(torch.top), abs=1e-4)
