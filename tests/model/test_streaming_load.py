"""A rank reads its own slices and no more, one tensor at a time: the kernel refuses it any memory beyond shard and one tensor."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from load_within import LIMIT_REACHED, LoadJob
from shape_checkpoints import R1_DISTILL_LLAMA_70B, llama_tensors, write_shapes

MIB = 1 << 20
SLACK = 12 * MIB  # of allocator, interpreter and rotary tables

CONFIG = R1_DISTILL_LLAMA_70B | {
    "hidden_size": 1024,
    "intermediate_size": 8192,
    "max_position_embeddings": 1024,
    "num_attention_heads": 16,
    "num_hidden_layers": 4,
    "num_key_value_heads": 4,
    "head_dim": 64,
    "vocab_size": 8192,
}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """253 MB of bfloat16, of which the largest tensor of a rank alone is 34 MB."""
    directory = tmp_path_factory.mktemp("streamed")
    write_shapes(directory, CONFIG, llama_tensors(CONFIG))
    return directory


def load(job: LoadJob) -> subprocess.CompletedProcess[str]:
    script = Path(__file__).parent / "load_within.py"
    environment = dict(os.environ, OMP_NUM_THREADS="1", PYTHONPATH=os.pathsep.join(sys.path))
    return subprocess.run(
        [sys.executable, str(script), job.encode()], env=environment, capture_output=True, text=True, timeout=120, check=False
    )


@pytest.mark.parametrize(
    "job",
    [
        LoadJob("", 0),
        LoadJob("", 0, rank=2, tensor_parallel=2, pipeline_parallel=2),
        LoadJob("", 0, rank=1, pipeline_parallel=2, dtype="float32"),
    ],
    ids=["alone", "tensor-and-pipeline-parallel", "stage-converted"],
)
def test_a_rank_loads_within_its_shard_and_one_tensor(checkpoint: Path, job: LoadJob) -> None:
    job = replace(job, path=str(checkpoint))
    shard = job.plan.shards[job.rank]
    done = load(replace(job, more_bytes=job.largest_bytes() + SLACK))
    assert done.returncode == 0, done.stderr
    assert shard.weight_bytes <= int(done.stdout) <= shard.weight_bytes + shard.packed_bytes


def test_a_rank_does_not_load_with_less_than_its_shard(checkpoint: Path) -> None:
    """The limit is a limit."""
    done = load(LoadJob(str(checkpoint), more_bytes=-32 * MIB))
    assert done.returncode == LIMIT_REACHED, done.stderr
