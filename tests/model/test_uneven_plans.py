"""Odd chip counts and unlike chips: uneven ranks and stages give the tokens of one rank, and hold what the plan says."""

from __future__ import annotations

from pathlib import Path

from checkpoints import save_model
from rank_processes import Job, RankReport, record, run_ranks
from small_models import local_runner, mixed_requests

from lionrock.inference.engine.batch import StepResult

KV_BLOCKS = 64


def check(job: Job, reports: list[RankReport], expected: tuple[StepResult, ...]) -> None:
    plan = job.plan
    sampling_rank = plan.ranks - plan.tensor_parallel
    found = tuple(result.token_ids for result in reports[sampling_rank].results if result is not None)
    assert found == tuple(result.token_ids for result in expected)
    for report, shard in zip(reports, plan.shards, strict=True):
        assert 0 <= report.weight_bytes - shard.weight_bytes <= shard.packed_bytes
    assert {report.spec.kv_bytes_per_token for report in reports} == {plan.kv_bytes_per_token}


def test_three_ranks_give_the_same_tokens_as_one(smollm2: Path, tmp_path: Path) -> None:
    """SmolLM2 with a KV head a rank; then ranks, and stages, of about 1, 3 and 2 parts."""
    small = tmp_path / "small"
    save_model("qwen2", small, num_hidden_layers=6, num_attention_heads=12, num_key_value_heads=6)
    real_steps, real = record(local_runner(smollm2, kv_blocks=KV_BLOCKS), mixed_requests(49152, count=2, max_tokens=3))
    steps, expected = record(local_runner(small, kv_blocks=KV_BLOCKS), mixed_requests(331, count=4, max_tokens=6))
    uneven = (1.0, 3.0, 2.0)
    jobs = [
        Job(smollm2, 3, 1, KV_BLOCKS, real_steps, shared_memory=True),
        Job(small, 3, 1, KV_BLOCKS, steps, rank_weights=uneven),
        Job(small, 1, 3, KV_BLOCKS, steps, stage_weights=uneven),
    ]
    for job, reports, wanted in zip(jobs, run_ranks(jobs, tmp_path / "store"), [real, expected, expected], strict=True):
        check(job, reports, wanted)
    assert [shard.kv_heads for shard in jobs[0].plan.shards] == [1, 1, 1]
    assert [shard.kv_heads for shard in jobs[1].plan.shards] == [1, 3, 2]
    assert len({shard.mlp_columns for shard in jobs[1].plan.shards}) == 3
    assert [shard.layers for shard in jobs[2].plan.shards] == [1, 3, 2]
