"""Steps recorded on one rank, replayed on many: every sampled token must be the same, and so, by induction, is a free run."""

from dataclasses import replace
from pathlib import Path

import pytest
from checkpoints import save_llama
from rank_processes import Job, record, run_ranks
from small_models import adjusted_requests, local_runner, mixed_requests, plan_for

from lionrock.inference.engine.batch import StepResult
from lionrock.inference.engine.sequence import RequestId
from lionrock.inference.model.weights import open_weights

KV_BLOCKS = 64


def whole_results(results: tuple[StepResult | None, ...]) -> tuple[tuple[int, ...], ...]:
    return tuple(result.token_ids for result in results if result is not None)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("small")
    save_llama(directory, attention_bias=True, mlp_bias=True, num_hidden_layers=4)
    return directory


def test_two_ranks_give_the_same_tokens_as_one(smollm2: Path, small: Path, tmp_path: Path) -> None:
    """TP=2 (SmolLM2 unevenly: 6 + 3 query heads, 2 + 1 KV heads) and PP=2, greedy and seeded; then a rank is lost."""
    real_requests, small_requests = mixed_requests(49152, count=4, max_tokens=6), mixed_requests(331, max_tokens=8)
    real_steps, real = record(local_runner(smollm2, kv_blocks=KV_BLOCKS), real_requests, max_step_tokens=64)
    small_steps, expected = record(local_runner(small, kv_blocks=KV_BLOCKS), small_requests, max_step_tokens=64)
    jobs = [
        Job(smollm2, 2, 1, KV_BLOCKS, real_steps),
        Job(smollm2, 1, 2, KV_BLOCKS, real_steps),
        Job(small, 2, 1, KV_BLOCKS, small_steps),
        Job(small, 1, 2, KV_BLOCKS, small_steps),
        Job(smollm2, 2, 1, KV_BLOCKS, real_steps, shared_memory=True),
        Job(small, 2, 1, KV_BLOCKS, small_steps, lose_rank=1),
    ]
    tensor, pipeline, small_tensor, small_pipeline, shared, losing = run_ranks(jobs, tmp_path / "store")

    assert whole_results(tensor[0].results) == whole_results(real)
    assert whole_results(pipeline[1].results) == whole_results(real)
    assert whole_results(shared[0].results) == whole_results(real)
    assert whole_results(small_tensor[0].results) == whole_results(expected)
    assert whole_results(small_pipeline[1].results) == whole_results(expected)
    for silent in (tensor[1], pipeline[0]):
        assert set(silent.results) == {None}

    plan = plan_for(open_weights(smollm2).config, tensor_parallel=2)
    assert [(shard.query_heads, shard.kv_heads) for shard in plan.shards] == [(6, 2), (3, 1)]
    for report, shard in zip(tensor, plan.shards, strict=True):
        assert shard.weight_bytes <= report.weight_bytes <= shard.weight_bytes + shard.packed_bytes
    assert tensor[0].spec == tensor[1].spec
    assert tensor[0].spec.kv_bytes_per_token == plan.kv_bytes_per_token
    assert all(report.timings is not None and 0 < report.timings.collective_s < 60 for report in tensor)

    assert losing[0].lost
    assert whole_results(losing[0].results) == whole_results(expected)[:-1]


def test_adjusted_logits_are_whole_on_many_ranks(small: Path, tmp_path: Path) -> None:
    """Penalties, bias and log-probabilities, which count over the whole vocabulary, beside rows that need none of it."""
    plain = [replace(request, request_id=RequestId(f"plain-{request.request_id}")) for request in mixed_requests(331, count=2)]
    requests = [*adjusted_requests(331), *plain]
    steps, expected = record(local_runner(small, kv_blocks=KV_BLOCKS), requests, max_step_tokens=64)
    tensor, pipeline = run_ranks([Job(small, 2, 1, KV_BLOCKS, steps), Job(small, 1, 2, KV_BLOCKS, steps)], tmp_path / "store")
    assert whole_results(tensor[0].results) == whole_results(expected)
    assert whole_results(pipeline[1].results) == whole_results(expected)


def test_a_rank_that_ends_is_noticed_over_shared_memory(small: Path, tmp_path: Path) -> None:
    steps, expected = record(local_runner(small, kv_blocks=KV_BLOCKS), mixed_requests(331, max_tokens=4), max_step_tokens=64)
    (losing,) = run_ranks([Job(small, 2, 1, KV_BLOCKS, steps, lose_rank=1, shared_memory=True)], tmp_path / "store")
    assert losing[0].lost
    assert whole_results(losing[0].results) == whole_results(expected)[:-1]


def test_four_ranks_give_the_same_tokens_as_one(small: Path, tmp_path: Path) -> None:
    """TP=2 × PP=2, and TP=4 where two ranks share a replicated KV head."""
    steps, expected = record(local_runner(small, kv_blocks=KV_BLOCKS), mixed_requests(331, max_tokens=10))
    jobs = [
        Job(small, 2, 2, KV_BLOCKS, steps),
        Job(small, 4, 1, KV_BLOCKS, steps),
        Job(small, 2, 2, KV_BLOCKS, steps, shared_memory=True),
        Job(small, 4, 1, KV_BLOCKS, steps, shared_memory=True),
    ]
    both, wide, both_shared, wide_shared = run_ranks(jobs, tmp_path / "store")
    for stages in (both, both_shared):
        assert whole_results(stages[2].results) == whole_results(expected)
    for ranks in (wide, wide_shared):
        assert whole_results(ranks[0].results) == whole_results(expected)
    plan = plan_for(open_weights(small).config, tensor_parallel=4)
    assert sum(shard.kv_heads for shard in plan.shards) == 4
