"""A few faults of each sort; shard_faults.py puts hundreds from one seed."""

from __future__ import annotations

from pathlib import Path

import pytest
from shard_faults import Fault, Report, ShardFaults, save_tiny

SEED = 20260415


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("tiny"))


async def put(faults: list[Fault], model: Path, tensor_parallel: int, pipeline_parallel: int, clients: int) -> Report:
    async with ShardFaults(model, tensor_parallel, pipeline_parallel, SEED, pool=12) as chaos:
        await chaos.run(faults, clients)
    return chaos.report


def judge(report: Report) -> None:
    assert report.wrong == [], f"seed {SEED}"
    assert report.identical > 0
    print(f"{report.identical} identical, {report.lost.total()} UNAVAILABLE, found {report.detected_s}, back {report.restart_s}")


@pytest.mark.slow
@pytest.mark.timeout(300)
async def test_streams_over_tensor_parallel_ranks_outlive_double_and_total_losses(tiny: Path) -> None:
    faults = [Fault("freeze", (0,), "prefill", 0.2), Fault("kill", (1,), "rebuild", 0.1), Fault("kill", (0, 1), "load", 0.5)]
    judge(await put(faults, tiny, 2, 1, clients=8))


@pytest.mark.slow
@pytest.mark.timeout(300)
async def test_streams_over_pipeline_stages_outlive_losses_while_the_queue_is_full(tiny: Path) -> None:
    faults = [Fault("kill", (1,), "load", 0.5), Fault("kill", (0,), "prefill", 0.2)]
    report = await put(faults, tiny, 1, 2, clients=18)
    judge(report)
    assert report.refused > 0
