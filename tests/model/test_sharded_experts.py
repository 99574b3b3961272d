"""Latent attention and mixtures of experts over ranks: steps recorded on one, replayed on many, with the same tokens and scores."""

from dataclasses import replace
from pathlib import Path

import pytest
from checkpoints import DEEPSEEK_YARN, save_model
from rank_processes import Job, RankReport, record, run_ranks
from small_models import local_runner, mixed_requests, plan_for

from lionrock.inference.engine.batch import StepResult
from lionrock.inference.engine.sequence import Request
from lionrock.inference.model.weights import open_weights

KV_BLOCKS = 64
UNEVEN = (3.0, 1.0, 2.0)


@pytest.fixture(scope="module")
def v2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("v2")
    save_model("deepseek_v2", directory, attention_bias=True, mlp_bias=True, num_hidden_layers=4)
    return directory


@pytest.fixture(scope="module")
def v3(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("v3")
    save_model("deepseek_v3", directory, num_attention_heads=7, num_key_value_heads=7, rope_parameters=DEEPSEEK_YARN)
    return directory


def requests() -> list[Request]:
    """Greedy and seeded requests; every other one tells its scores."""
    return [
        replace(request, sampling=replace(request.sampling, logprobs=3 if n % 2 else None))
        for n, request in enumerate(mixed_requests(331, count=4, max_tokens=5))
    ]


def check(reports: list[RankReport], sampling_rank: int, expected: tuple[StepResult, ...]) -> None:
    """Tokens are the same, and the logarithms of their probabilities close."""
    scores = 0
    for found, wanted in zip(reports[sampling_rank].results, expected, strict=True):
        assert found is not None
        assert found.token_ids == wanted.token_ids
        for index, entry in wanted.logprobs.items():
            assert found.logprobs[index].logprob == pytest.approx(entry.logprob, abs=1e-4)
            scores += 1
    assert scores >= 10
    for report in reports:
        assert report.rank == sampling_rank or set(report.results) == {None}


def check_cache(reports: list[RankReport], job: Job) -> None:
    """Every rank knows what a token takes: the compressed cache as often as it is held."""
    plan = plan_for(
        open_weights(job.path).config,
        tensor_parallel=job.tensor_parallel,
        pipeline_parallel=job.pipeline_parallel,
        rank_weights=job.rank_weights,
    )
    assert {report.spec.kv_bytes_per_token for report in reports} == {plan.kv_bytes_per_token}


def test_two_ranks_give_the_same_tokens_as_one(v2: Path, v3: Path, tmp_path: Path) -> None:
    """TP=2, where each rank holds half of the experts, and PP=2; and Qwen3, whose norms of heads are on every rank."""
    jobs, wanted = [], []
    save_model("qwen3", tmp_path / "qwen3", attention_bias=True)
    for path in (v2, v3, tmp_path / "qwen3"):
        steps, expected = record(local_runner(path, kv_blocks=KV_BLOCKS), requests(), max_step_tokens=64)
        jobs += [
            Job(path, 2, 1, KV_BLOCKS, steps, shared_memory=True),
            Job(path, 2, 1, KV_BLOCKS, steps),
            Job(path, 1, 2, KV_BLOCKS, steps),
        ]
        wanted += [expected] * 3
    for job, reports, expected in zip(jobs, run_ranks(jobs, tmp_path / "store"), wanted, strict=True):
        check(reports, 0 if job.pipeline_parallel == 1 else 1, expected)
        check_cache(reports, job)


def test_three_uneven_ranks_give_the_same_tokens_as_one(v2: Path, v3: Path, tmp_path: Path) -> None:
    """Query heads, experts, shared columns and vocabulary in parts of about 3, 1 and 2."""
    jobs, wanted = [], []
    for path in (v2, v3):
        steps, expected = record(local_runner(path, kv_blocks=KV_BLOCKS), requests(), max_step_tokens=64)
        jobs.append(Job(path, 3, 1, KV_BLOCKS, steps, shared_memory=True, rank_weights=UNEVEN))
        wanted.append(expected)
    for job, reports, expected in zip(jobs, run_ranks(jobs, tmp_path / "store"), wanted, strict=True):
        check(reports, 0, expected)
        check_cache(reports, job)
    shards = plan_for(open_weights(v3).config, tensor_parallel=3, rank_weights=UNEVEN).shards
    assert [shard.query_heads for shard in shards] == [4, 1, 2]
    assert [shard.experts for shard in shards] == [6, 2, 4]
    assert len({shard.shared_columns for shard in shards}) > 1
    assert {shard.kv_heads for shard in shards} == {1}
