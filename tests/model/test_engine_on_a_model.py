from dataclasses import replace
from pathlib import Path

import pytest
from checkpoints import save_llama
from small_models import engine_over, local_runner, mixed_requests, run_requests

from lionrock.inference.engine.sequence import Request, RequestId, Sampling
from lionrock.inference.model.worker import LocalRunner

VOCAB_SIZE = 331


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("small")
    save_llama(directory)
    return directory


@pytest.fixture
def runner(checkpoint: Path) -> LocalRunner:
    return local_runner(checkpoint)


@pytest.fixture(scope="module")
def alone(checkpoint: Path) -> dict[str, tuple[int, ...]]:
    """Each request's answer when it has the engine to itself."""
    engine = engine_over(local_runner(checkpoint))
    answers: dict[str, tuple[int, ...]] = {}
    for request in mixed_requests(VOCAB_SIZE):
        answers |= run_requests(engine, [request])
    assert len(set(answers.values())) == len(answers)
    return answers


def test_greedy_and_seeded_answers_are_the_same_in_a_batch_as_alone(runner: LocalRunner, alone: dict[str, tuple[int, ...]]) -> None:
    assert run_requests(engine_over(runner), mixed_requests(VOCAB_SIZE)) == alone


def test_answers_do_not_depend_on_how_prompts_are_cut(runner: LocalRunner, alone: dict[str, tuple[int, ...]]) -> None:
    assert run_requests(engine_over(runner, max_running=6, max_step_tokens=11), mixed_requests(VOCAB_SIZE)) == alone


def test_preempted_sequences_resume_with_identical_tokens(checkpoint: Path, alone: dict[str, tuple[int, ...]]) -> None:
    engine = engine_over(local_runner(checkpoint, kv_blocks=7), max_running=6)
    preemptions = 0
    requests = mixed_requests(VOCAB_SIZE)
    for request in requests:
        engine.add(request)
    answers: dict[str, list[int]] = {request.request_id: [] for request in requests}
    while engine.has_work:
        for output in engine.step():
            answers[output.request_id].extend(output.token_ids)
            preemptions += output.timings.preemptions if output.timings else 0
    assert preemptions > 0
    assert {name: tuple(ids) for name, ids in answers.items()} == alone


@pytest.mark.parametrize("released", [1, 5, 11])
def test_a_resumed_answer_equals_the_undisturbed_one(runner: LocalRunner, alone: dict[str, tuple[int, ...]], released: int) -> None:
    resumed = [
        replace(request, token_ids=request.token_ids + alone[request.request_id][:released], resumed_tokens=released)
        for request in mixed_requests(VOCAB_SIZE)
    ]
    answers = run_requests(engine_over(runner), resumed)
    assert answers == {name: ids[released:] for name, ids in alone.items()}


def test_answers_do_not_depend_on_what_a_block_held_before(runner: LocalRunner, alone: dict[str, tuple[int, ...]]) -> None:
    engine = engine_over(runner)
    for _ in range(3):
        assert run_requests(engine, mixed_requests(VOCAB_SIZE)) == alone
    assert engine.free_kv_blocks == runner.spec.kv_blocks


def test_logprobs_are_reported_for_each_token(runner: LocalRunner) -> None:
    engine = engine_over(runner)
    engine.add(Request(RequestId("scored"), (5, 6, 7), Sampling(max_tokens=4, logprobs=3, ignore_eos=True)))
    outputs = []
    while engine.has_work:
        outputs += engine.step()
    for output in outputs:
        (entry,) = output.logprobs
        assert entry.top[0] == (output.token_ids[0], entry.logprob)
        assert len(entry.top) == 3


def test_a_worker_tells_what_each_sequence_saw_of_it_once(runner: LocalRunner) -> None:
    engine = engine_over(runner)
    sequence_id = engine.add(Request(RequestId("timed"), tuple(range(3, 40)), Sampling(max_tokens=5, ignore_eos=True)))
    while engine.has_work:
        engine.step()
    timings = runner.worker.finished_timings(sequence_id)
    assert timings is not None
    assert (timings.prefill_steps, timings.decode_steps) == (1, 4)
    assert timings.prefill_s > 0
    assert timings.collective_s == 0
    assert timings.ended_unix_s >= timings.started_unix_s
    assert runner.worker.finished_timings(sequence_id) is None


def test_the_kv_cache_takes_the_bytes_that_the_formula_says(runner: LocalRunner) -> None:
    worker = runner.worker
    assert worker.kv_bytes_per_token == 2 * 3 * 8 * 3 * 4
    assert runner.spec.kv_bytes_per_token == worker.kv_bytes_per_token
    assert worker.kv_blocks_within(worker.kv_bytes_per_token * 16 * 10 + 5) == 10
