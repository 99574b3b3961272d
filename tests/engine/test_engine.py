import itertools

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule
from paged_history import EOS, VOCAB_SIZE, PagedHistory, answer

from lionrock.inference.engine.engine import Engine, EngineLimits
from lionrock.inference.engine.errors import EngineFull, InvalidRequest, PromptTooLong, UnknownTokenId, UnsupportedSamplingOption
from lionrock.inference.engine.sequence import FinishReason, Request, RequestId, Sampling, StepOutput

_ids = itertools.count()


class Clock:
    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def request(prompt, max_tokens=8, *, request_id=None, **options) -> Request:
    fields = {name: options.pop(name) for name in ("priority", "deadline_s", "resumed_tokens") if name in options}
    sampling = Sampling(max_tokens=max_tokens, **options)
    return Request(RequestId(request_id or f"request-{next(_ids)}"), tuple(prompt), sampling, **fields)


def run(engine: Engine, outputs: dict[str, list[StepOutput]] | None = None) -> dict[str, list[StepOutput]]:
    outputs = {} if outputs is None else outputs
    while engine.has_work:
        for output in engine.step():
            outputs.setdefault(output.request_id, []).append(output)
    return outputs


def tokens(outputs: list[StepOutput]) -> tuple[int, ...]:
    return tuple(token_id for output in outputs for token_id in output.token_ids)


def generate(engine: Engine, item: Request) -> list[StepOutput]:
    engine.add(item)
    return run(engine)[item.request_id]


def test_a_sequence_alone_gets_its_answer_one_token_a_step() -> None:
    outputs = generate(Engine(PagedHistory()), request([5, 6, 7], 8))
    assert tokens(outputs) == answer([5, 6, 7], 8)
    assert [len(output.token_ids) for output in outputs] == [1] * 8
    assert outputs[-1].finish is FinishReason.LENGTH
    assert outputs[-1].timings is not None
    assert (outputs[-1].timings.prompt_tokens, outputs[-1].timings.completion_tokens) == (3, 8)


def test_a_batch_answers_each_sequence_as_if_it_were_alone() -> None:
    engine = Engine(PagedHistory(), EngineLimits(max_running=4))
    requests = [request(range(1, 2 + n), 3 + n % 5) for n in range(12)]
    for item in requests:
        engine.add(item)
    outputs = run(engine)
    for item in requests:
        assert tokens(outputs[item.request_id]) == answer(item.token_ids, item.sampling.max_tokens)
    assert engine.free_kv_blocks == engine.spec.kv_blocks


def test_a_prefill_in_chunks_equals_a_whole_one() -> None:
    prompt = list(range(1, 60))
    runner = PagedHistory()
    chunked = generate(Engine(runner, EngineLimits(max_running=4, max_step_tokens=7)), request(prompt, 5))
    assert tokens(chunked) == answer(prompt, 5)
    assert [len(batch.rows[0].token_ids) for batch in runner.batches[:9]] == [7] * 8 + [3]


def test_decoding_goes_on_while_a_long_prompt_is_prefilled() -> None:
    engine = Engine(PagedHistory(), EngineLimits(max_running=2, max_step_tokens=8))
    short, long = request([1], 20), request(range(1, 80), 1)
    engine.add(short)
    engine.step()
    engine.add(long)
    for _ in range(8):
        assert [output.request_id for output in engine.step()] == [short.request_id]


def test_preempted_sequences_resume_with_identical_tokens() -> None:
    engine = Engine(PagedHistory(kv_blocks=8, kv_block_size=4))
    requests = [request([n] * 5, 20, request_id=f"preempted-{n}") for n in range(1, 5)]
    for item in requests:
        engine.add(item)
    outputs = run(engine)
    assert sum(outputs[item.request_id][-1].timings.preemptions for item in requests) > 0
    for item in requests:
        assert tokens(outputs[item.request_id]) == answer(item.token_ids, 20)
    assert engine.free_kv_blocks == 8


def test_a_resumed_answer_continues_as_if_undisturbed() -> None:
    whole = answer([3, 4, 5], 12, seed=9)
    outputs = generate(Engine(PagedHistory()), request((3, 4, 5, *whole[:7]), 12, resumed_tokens=7, temperature=1.0, seed=9))
    assert tokens(outputs) == whole[7:]
    assert outputs[-1].timings.prompt_tokens == 3
    assert outputs[-1].timings.completion_tokens == 12


def test_an_answer_resumed_after_its_last_token_ends_at_once() -> None:
    outputs = generate(Engine(PagedHistory()), request((3, 4, 5, *answer([3, 4, 5], 4)), 4, resumed_tokens=4))
    assert tokens(outputs) == ()
    assert outputs[-1].finish is FinishReason.LENGTH


def test_stop_tokens_end_the_answer_and_are_not_in_it() -> None:
    expected = answer([5, 6], 10)
    outputs = generate(Engine(PagedHistory()), request([5, 6], 10, stop_token_ids=(expected[4],)))
    assert tokens(outputs) == expected[:4]
    assert outputs[-1].finish is FinishReason.STOP


def test_the_answer_ends_with_the_context_window() -> None:
    outputs = generate(Engine(PagedHistory(context_window=16)), request([1] * 10, None))
    assert tokens(outputs) == answer([1] * 10, 6)
    assert outputs[-1].finish is FinishReason.LENGTH


def test_abort_frees_the_blocks_at_once_and_leaves_others_undisturbed() -> None:
    engine = Engine(PagedHistory())
    kept, aborted = request([1, 2, 3], 10), request([4] * 30, 50)
    engine.add(kept)
    engine.add(aborted)
    outputs: dict[str, list[StepOutput]] = {}
    for _ in range(3):
        for output in engine.step():
            outputs.setdefault(output.request_id, []).append(output)
    before = engine.free_kv_blocks
    last = engine.abort(aborted.request_id)
    assert last is not None
    assert last.finish is FinishReason.ABORTED
    assert engine.free_kv_blocks >= before + 8
    assert engine.abort(aborted.request_id) is None
    assert tokens(run(engine, outputs)[kept.request_id]) == answer([1, 2, 3], 10)


def test_a_sequence_aborted_during_a_step_gets_nothing_from_it() -> None:
    engine = Engine(PagedHistory())
    kept, aborted = request([1, 2], 2), request([3, 4], 2)
    engine.add(aborted)
    engine.add(kept)
    batch, _ = engine.schedule()
    engine.abort(aborted.request_id)
    replacement = engine.add(request([9], 2, request_id=aborted.request_id))
    outputs = engine.postprocess(batch, engine.runner.execute(batch))
    assert [output.request_id for output in outputs] == [kept.request_id]
    later = run(engine)
    assert tokens(later[aborted.request_id]) == answer([9], 2)
    assert later[aborted.request_id][0].sequence_id == replacement


def test_an_expired_request_leaves_at_the_next_step_whether_running_or_waiting() -> None:
    clock = Clock()
    engine = Engine(PagedHistory(), EngineLimits(max_running=1), clock=clock)
    running, waiting = request([1], 50, deadline_s=5.0), request([2], 50, deadline_s=4.0)
    engine.add(running)
    engine.add(waiting)
    engine.step()
    clock.now_s = 4.5
    assert [(o.request_id, o.finish) for o in engine.step() if o.finish] == [(waiting.request_id, FinishReason.EXPIRED)]
    clock.now_s = 5.0
    assert [(o.request_id, o.finish) for o in engine.step()] == [(running.request_id, FinishReason.EXPIRED)]
    assert not engine.has_work
    assert engine.free_kv_blocks == engine.spec.kv_blocks


def test_larger_priority_is_served_first_and_equals_in_order_of_arrival() -> None:
    engine = Engine(PagedHistory(), EngineLimits(max_running=1))
    order = [request([1], 2, priority=priority, request_id=f"{priority}-{n}") for n, priority in enumerate((0, -5, 7, 0, 7))]
    for item in order:
        engine.add(item)
    finished = [output.request_id for output in itertools.chain.from_iterable(iter_steps(engine)) if output.finish]
    assert finished == ["7-2", "7-4", "0-0", "0-3", "-5-1"]


def iter_steps(engine: Engine):
    while engine.has_work:
        yield engine.step()


def test_a_more_urgent_request_takes_the_place_of_a_lesser_one_which_then_resumes() -> None:
    engine = Engine(PagedHistory(), EngineLimits(max_running=1))
    lesser, urgent = request([1], 10), request([2], 3, priority=1)
    outputs: dict[str, list[StepOutput]] = {}
    engine.add(lesser)
    for output in engine.step():
        outputs.setdefault(output.request_id, []).append(output)
    engine.add(urgent)
    assert [output.request_id for output in engine.step()] == [urgent.request_id]
    run(engine, outputs)
    assert tokens(outputs[lesser.request_id]) == answer([1], 10)
    assert outputs[lesser.request_id][-1].timings.preemptions == 1


def test_a_full_queue_refuses_and_says_when_to_try_again() -> None:
    engine = Engine(PagedHistory(), EngineLimits(max_waiting=2))
    engine.add(request([1]))
    engine.add(request([2]))
    with pytest.raises(EngineFull) as refused:
        engine.add(request([3]))
    assert 0 < refused.value.retry_after_s <= 30


@pytest.mark.parametrize(
    ("item", "error", "field"),
    [
        (request([1] * 128), PromptTooLong, None),
        (request([1, VOCAB_SIZE]), UnknownTokenId, None),
        (request([1, -1]), UnknownTokenId, None),
        (request([]), InvalidRequest, "token_ids"),
        (request([1, 2], resumed_tokens=2), InvalidRequest, "resumed_tokens"),
        (request([1], temperature=1.0), InvalidRequest, "sampling.seed"),
        (request([1], temperature=float("nan"), seed=1), InvalidRequest, "sampling.temperature"),
        (request([1], seed=1 << 64), InvalidRequest, "sampling.seed"),
        (request([1], max_tokens=0), InvalidRequest, "sampling.max_tokens"),
        (request([1], top_k=0), InvalidRequest, "sampling.top_k"),
        (request([1], top_p=0.5), UnsupportedSamplingOption, "top_p"),
        (request([1], stop=("x",)), UnsupportedSamplingOption, "stop"),
        (request([1], repetition_penalty=1.1), UnsupportedSamplingOption, "repetition_penalty"),
        (request([1], logit_bias={1: 1.0}), UnsupportedSamplingOption, "logit_bias"),
        (request([1], logprobs=0), UnsupportedSamplingOption, "logprobs"),
    ],
)
def test_what_cannot_run_is_refused_by_name_and_changes_nothing(item: Request, error: type[Exception], field: str | None) -> None:
    engine = Engine(PagedHistory())
    with pytest.raises(error) as refused:
        engine.add(item)
    assert not engine.has_work
    assert field is None or refused.value.field == field


def test_a_request_id_in_use_is_refused() -> None:
    engine = Engine(PagedHistory())
    engine.add(request([1], request_id="twice"))
    with pytest.raises(InvalidRequest):
        engine.add(request([2], request_id="twice"))


def test_ended_sequences_are_named_to_the_runner_once() -> None:
    runner = PagedHistory()
    engine = Engine(runner)
    ended = engine.add(request([1], 1))
    engine.step()
    engine.add(request([2], 2))
    run(engine)
    assert [batch.released for batch in runner.batches] == [(), (ended,), ()]


class AnyOrder(RuleBasedStateMachine):
    """Any order of add, abort, step and time: every answer is right, no block leaks, everything ends."""

    def __init__(self) -> None:
        super().__init__()
        self.clock = Clock()
        limits = EngineLimits(max_running=3, max_waiting=5, max_step_tokens=6)
        self.engine = Engine(PagedHistory(kv_blocks=7, kv_block_size=3, context_window=40), limits, clock=self.clock)
        self.live: dict[str, Request] = {}
        self.got: dict[str, list[int]] = {}

    @rule(
        length=st.integers(1, 18),
        max_tokens=st.none() | st.integers(1, 12),
        priority=st.integers(-1, 1),
        patience_s=st.none() | st.integers(1, 30),
    )
    def add(self, length: int, max_tokens: int | None, priority: int, patience_s: int | None) -> None:
        deadline_s = None if patience_s is None else self.clock.now_s + patience_s
        item = request([length % 7 + 1] * length, max_tokens, priority=priority, deadline_s=deadline_s)
        try:
            self.engine.add(item)
        except EngineFull:
            assert self.engine.waiting >= 5
            return
        self.live[item.request_id], self.got[item.request_id] = item, []

    @rule(which=st.integers(0, 20))
    def abort(self, which: int) -> None:
        if self.live:
            request_id = sorted(self.live)[which % len(self.live)]
            assert self.engine.abort(RequestId(request_id)).finish is FinishReason.ABORTED
            del self.live[request_id]

    @rule()
    def step(self) -> None:
        self.clock.now_s += 1
        for output in self.engine.step():
            item, got = self.live[output.request_id], self.got[output.request_id]
            got.extend(output.token_ids)
            assert tuple(got) == answer(item.token_ids, len(got))
            if output.finish is not None:
                limit = min(item.sampling.max_tokens or 100, 21 - len(item.token_ids))
                assert (output.finish is FinishReason.EXPIRED) or len(got) == limit
                del self.live[output.request_id]

    @invariant()
    def blocks_are_held_by_live_sequences_alone(self) -> None:
        assert self.engine.has_work == bool(self.live)
        if not self.live:
            assert self.engine.free_kv_blocks == 7

    def teardown(self) -> None:
        steps = 0
        while self.engine.has_work:
            self.step()
            steps += 1
            assert steps < 2000, "somebody starves"
        assert self.engine.free_kv_blocks == 7


AnyOrder.TestCase.settings = settings(max_examples=120, stateful_step_count=40, deadline=None)
test_every_order_of_add_abort_and_step_gives_right_answers_and_ends = AnyOrder.TestCase
assert EOS == 0
