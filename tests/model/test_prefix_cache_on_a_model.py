"""Answers from blocks that others computed, on small models in float32: keys and values are what they would have been."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from checkpoints import DEEPSEEK_YARN, save_llama, save_model
from small_models import local_runner, mixed_requests

from lionrock.inference.engine.engine import Engine, EngineLimits
from lionrock.inference.engine.sequence import Request, Timings
from lionrock.inference.model.worker import KV_BLOCK_SIZE, LocalRunner

VOCAB_SIZE = 331
SALT = b"a tenant"


@pytest.fixture(scope="module", params=["llama", "deepseek_v3"])
def checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp(request.param)
    if request.param == "llama":
        save_llama(directory)
    else:
        save_model("deepseek_v3", directory, rope_parameters=DEEPSEEK_YARN)
    return directory


@pytest.fixture
def runner(checkpoint: Path) -> LocalRunner:
    return local_runner(checkpoint)


def run(engine: Engine, requests: Sequence[Request], salt: bytes = SALT) -> dict[str, tuple[tuple[int, ...], Timings]]:
    """Answer and timings of each."""
    for request in requests:
        engine.add(replace(request, cache_salt=salt))
    tokens: dict[str, list[int]] = {request.request_id: [] for request in requests}
    timings: dict[str, Timings] = {}
    while engine.has_work:
        for output in engine.step():
            tokens[output.request_id].extend(output.token_ids)
            if output.timings is not None:
                timings[output.request_id] = output.timings
    return {name: (tuple(ids), timings[name]) for name, ids in tokens.items()}


def answers(outputs: dict[str, tuple[tuple[int, ...], Timings]]) -> dict[str, tuple[int, ...]]:
    return {name: ids for name, (ids, _) in outputs.items()}


def cached(outputs: dict[str, tuple[tuple[int, ...], Timings]]) -> dict[str, int]:
    return {name: timings.cached_prompt_tokens for name, (_, timings) in outputs.items()}


def reusable(length: int) -> int:
    """Tokens of a prompt whose full blocks are cached that need not run: all but the last one where they fill whole blocks."""
    return min(length // KV_BLOCK_SIZE * KV_BLOCK_SIZE, length - 1)


@pytest.fixture(scope="module")
def cold(checkpoint: Path) -> dict[str, tuple[int, ...]]:
    """Answers of an engine that shares nothing."""
    engine = Engine(local_runner(checkpoint), EngineLimits(prefix_cache=False))
    outputs = run(engine, mixed_requests(VOCAB_SIZE))
    assert set(cached(outputs).values()) == {0}
    return answers(outputs)


def test_answers_with_a_warm_cache_equal_those_with_a_cold_one(runner: LocalRunner, cold: dict[str, tuple[int, ...]]) -> None:
    engine = Engine(runner)
    requests = mixed_requests(VOCAB_SIZE)
    assert answers(run(engine, requests)) == cold
    warm = run(engine, requests)
    assert answers(warm) == cold
    assert cached(warm) == {request.request_id: reusable(len(request.token_ids)) for request in requests}
    alone = [run(engine, [request]) for request in requests]
    assert {name: ids for outputs in alone for name, ids in answers(outputs).items()} == cold


def test_a_wholly_cached_prompt_continues_from_copies(checkpoint: Path) -> None:
    requests = [
        replace(request, token_ids=request.token_ids[:KV_BLOCK_SIZE])
        for request in mixed_requests(VOCAB_SIZE, prompt=KV_BLOCK_SIZE)
    ]
    unshared = answers(run(Engine(local_runner(checkpoint), EngineLimits(prefix_cache=False)), requests))
    engine = Engine(local_runner(checkpoint))
    run(engine, requests)
    warm = run(engine, requests)
    assert answers(warm) == unshared
    assert set(cached(warm).values()) == {KV_BLOCK_SIZE - 1}


def test_preempted_sequences_take_up_cached_blocks_with_identical_tokens(
    checkpoint: Path, cold: dict[str, tuple[int, ...]]
) -> None:
    engine = Engine(local_runner(checkpoint, kv_blocks=7), EngineLimits(max_running=6))
    outputs = run(engine, mixed_requests(VOCAB_SIZE))
    assert sum(timings.preemptions for _, timings in outputs.values()) > 0
    assert answers(outputs) == cold
    assert answers(run(engine, mixed_requests(VOCAB_SIZE))) == cold
    assert engine.free_kv_blocks == 7


def test_tenants_share_nothing(runner: LocalRunner, cold: dict[str, tuple[int, ...]]) -> None:
    engine = Engine(runner)
    requests = mixed_requests(VOCAB_SIZE)[:3]
    run(engine, requests, b"one")
    for salt in (b"another", b""):
        outputs = run(engine, requests, salt)
        assert set(cached(outputs).values()) == {0}
        assert answers(outputs).items() <= cold.items()
    assert min(cached(run(engine, requests, b"one")).values()) > 0


def test_the_cache_takes_no_byte_more_than_the_formula_says(runner: LocalRunner) -> None:
    cache = runner.worker._cache
    assert cache is not None
    held = sum(tensor.numel() * tensor.element_size() for layer in cache.layers for tensor in layer)
    assert held == runner.spec.kv_bytes_per_token * runner.spec.kv_block_size * runner.spec.kv_blocks
