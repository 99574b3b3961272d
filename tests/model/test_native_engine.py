"""Answers in bfloat16, where nearly equal logits abound, do not depend on how the work was cut: they are equal to the last bit."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import small_models
import torch
from checkpoints import save_llama, save_model
from small_models import engine_over, local_runner, logits_of, mixed_requests, plan_for, run_requests

from lionrock.inference.model.native.build import KernelsUnavailable
from lionrock.inference.model.weights import open_weights
from lionrock.inference.model.worker import ShardWorker

VOCAB_SIZE = 331


@pytest.fixture(autouse=True)
def native(monkeypatch: pytest.MonkeyPatch) -> None:
    if small_models.DEVICE != "cpu":
        pytest.skip("native kernels are for CPUs")
    monkeypatch.setattr(small_models, "KERNELS", "required")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("small")
    save_llama(directory, head_dim=20)
    return directory


@pytest.fixture
def alone(checkpoint: Path) -> dict[str, tuple[int, ...]]:
    engine = engine_over(local_runner(checkpoint, dtype="bfloat16"))
    return {name: ids for request in mixed_requests(VOCAB_SIZE) for name, ids in run_requests(engine, [request]).items()}


@pytest.fixture(params=[1, 2])
def threads(request: pytest.FixtureRequest) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize(
    ("kv_blocks", "limits"),
    [
        pytest.param(64, {}, id="in a batch"),
        pytest.param(64, {"max_running": 6, "max_step_tokens": 11}, id="prompts in chunks"),
        pytest.param(7, {"max_running": 6}, id="preempted and computed anew"),
    ],
)
def test_answers_are_the_same_as_alone(
    checkpoint: Path, alone: dict[str, tuple[int, ...]], kv_blocks: int, limits: dict[str, int]
) -> None:
    runner = local_runner(checkpoint, kv_blocks=kv_blocks, dtype="bfloat16")
    assert run_requests(engine_over(runner, **limits), mixed_requests(VOCAB_SIZE)) == alone


@pytest.mark.parametrize("released", [1, 5, 11])
def test_a_resumed_answer_is_the_undisturbed_one(checkpoint: Path, alone: dict[str, tuple[int, ...]], released: int) -> None:
    resumed = [
        replace(request, token_ids=request.token_ids + alone[request.request_id][:released], resumed_tokens=released)
        for request in mixed_requests(VOCAB_SIZE)
    ]
    answers = run_requests(engine_over(local_runner(checkpoint, dtype="bfloat16")), resumed)
    assert answers == {name: ids[released:] for name, ids in alone.items()}


@pytest.mark.parametrize("architecture", ["llama", "qwen3", "deepseek_v2"])
def test_both_kernels_give_nearly_the_same_logits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, architecture: str) -> None:
    save_model(architecture, tmp_path)
    token_ids = torch.randint(3, VOCAB_SIZE, (70,), generator=torch.Generator().manual_seed(2)).tolist()
    chunks = [33, 1, 1, 35]
    found = logits_of(tmp_path, token_ids, chunks=chunks)
    monkeypatch.setattr(small_models, "KERNELS", "off")
    assert (found - logits_of(tmp_path, token_ids, chunks=chunks)).abs().max() < 1e-4


def test_a_rank_says_whose_kernels_it_runs(checkpoint: Path) -> None:
    plan = plan_for(open_weights(checkpoint).config)
    assert ShardWorker(checkpoint, plan, 0, native_kernels="required").kernels == "native"
    assert ShardWorker(checkpoint, plan, 0, native_kernels="off").kernels == "torch"


def test_without_a_compiler_pytorch_does_the_work_unless_kernels_are_required(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    plan, nowhere = plan_for(open_weights(checkpoint).config), tmp_path / "kernels"
    assert ShardWorker(checkpoint, plan, 0, native_directory=nowhere).kernels == "torch"
    with pytest.raises(KernelsUnavailable, match="no C\\+\\+ compiler"):
        ShardWorker(checkpoint, plan, 0, native_kernels="required", native_directory=nowhere)
