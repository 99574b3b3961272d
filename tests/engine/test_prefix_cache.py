import itertools

import pytest
from block_audit import BlockAudit, audited
from hypothesis import given, settings
from hypothesis import strategies as st
from paged_history import PagedHistory, answer

from lionrock.inference.engine.batch import StepBatch
from lionrock.inference.engine.block_manager import BlockManager
from lionrock.inference.engine.engine import Engine, EngineLimits
from lionrock.inference.engine.prefix_cache import PrefixCache, block_hash, salt_hash
from lionrock.inference.engine.sequence import Request, RequestId, Sampling, Sequence, SequenceId, Timings

SALT, OTHER = b"a tenant", b"another tenant"
_ids = itertools.count()


def request(prompt, max_tokens=4, *, salt=SALT, **fields) -> Request:
    sampling = Sampling(max_tokens=max_tokens)
    return Request(RequestId(f"request-{next(_ids)}"), tuple(prompt), sampling, cache_salt=salt, **fields)


def run(engine: Engine, *items: Request) -> list[Timings]:
    """Run them together; checks every answer and returns their timings."""
    for item in items:
        engine.add(item)
    answers: dict[str, list[int]] = {item.request_id: [] for item in items}
    timings: dict[str, Timings] = {}
    while engine.has_work:
        for output in engine.step():
            answers[output.request_id].extend(output.token_ids)
            if output.timings is not None:
                timings[output.request_id] = output.timings
    for item in items:
        known = len(item.token_ids) - item.resumed_tokens
        whole = answer(item.token_ids[:known], item.sampling.max_tokens)
        assert item.token_ids[known:] + tuple(answers[item.request_id]) == whole
    assert engine.free_kv_blocks == engine.spec.kv_blocks
    return [timings[item.request_id] for item in items]


def cached(engine: Engine, *items: Request) -> list[int]:
    return [timings.cached_prompt_tokens for timings in run(engine, *items)]


def engine_with(limits: EngineLimits | None = None, **runner_options) -> Engine:
    return audited(lambda runner: Engine(runner, limits), **runner_options)[0]


PROMPT = list(range(1, 31))  # seven and a half blocks of four


# ---- what is shared ------------------------------------------------------------------------------------------------------


def test_full_blocks_of_an_equal_prefix_are_not_computed_again() -> None:
    engine = engine_with()
    assert cached(engine, request(PROMPT)) == [0]
    assert cached(engine, request(PROMPT)) == [28]
    assert cached(engine, request([*PROMPT[:17], 99, 98])) == [16]
    assert cached(engine, request([99, *PROMPT])) == [0]
    (last,) = engine.runner.batches[-4].rows[:1]
    assert last.start == 0


def test_answers_are_shared_too_as_the_next_turn_of_a_conversation_has_them_in_its_prompt() -> None:
    engine = engine_with()
    run(engine, request(PROMPT[:6], 11))
    # The last token was sampled and never computed: 6 + 10 tokens make four full blocks.
    assert cached(engine, request([*PROMPT[:6], *answer(PROMPT[:6], 11), 77])) == [16]


def test_no_salt_sees_what_another_one_left() -> None:
    engine = engine_with()
    assert cached(engine, request(PROMPT)) == [0]
    assert cached(engine, request(PROMPT, salt=OTHER)) == [0]
    assert cached(engine, request(PROMPT, salt=OTHER), request(PROMPT)) == [28, 28]


def test_requests_without_a_salt_share_nothing_not_even_with_each_other() -> None:
    engine = engine_with()
    for _ in range(3):
        assert cached(engine, request(PROMPT, salt=b""), request(PROMPT, salt=b"")) == [0, 0]
    assert engine.cached_kv_blocks == 0


def test_the_setting_switches_it_off() -> None:
    engine = engine_with(EngineLimits(prefix_cache=False))
    assert cached(engine, request(PROMPT)) == cached(engine, request(PROMPT)) == [0]
    assert engine.cached_kv_blocks == 0


def test_blocks_of_a_running_sequence_are_shared_while_it_runs() -> None:
    engine = engine_with()
    first, second = request(PROMPT, 40), request(PROMPT, 10)
    engine.add(first)
    engine.step()
    before = engine.free_kv_blocks
    engine.add(second)
    engine.step()
    assert before - engine.free_kv_blocks <= 2  # the half block and what the first one's answer needed
    engine.abort(first.request_id)
    engine.abort(second.request_id)
    assert engine.free_kv_blocks == engine.spec.kv_blocks


def test_only_the_prompt_counts_as_cached_prompt() -> None:
    engine = engine_with()
    whole = answer(PROMPT[:6], 20)
    run(engine, request(PROMPT[:6], 20))
    (timings,) = run(engine, request([*PROMPT[:6], *whole[:12]], 20, resumed_tokens=12))
    assert (timings.prompt_tokens, timings.cached_prompt_tokens) == (6, 6)
    assert engine.runner.batches[-8].rows[0].start == 16


# ---- copy on write -------------------------------------------------------------------------------------------------------


def test_a_prompt_that_is_wholly_cached_runs_its_last_token_in_a_copy() -> None:
    engine = engine_with()
    run(engine, request(PROMPT[:16]))
    runner = engine.runner
    steps = len(runner.batches)
    assert cached(engine, request(PROMPT[:16])) == [15]
    batch = runner.batches[steps]
    assert [len(row.token_ids) for row in batch.rows] == [1]
    ((source, copy),) = batch.copies
    assert batch.rows[0].block_table[-1] == copy != source
    assert cached(engine, request(PROMPT[:16]), request(PROMPT[:16])) == [15, 15]


def test_a_wholly_cached_prompt_runs_even_where_no_block_is_left_for_a_copy() -> None:
    engine = engine_with(kv_blocks=4, context_window=16)
    item = PROMPT[:12]
    run(engine, request(item, 4))
    assert cached(engine, request(item, 4)) == [11]
    engine = engine_with(kv_blocks=4, context_window=16)
    run(engine, request(PROMPT[:16][:15], 1))
    whole = [*PROMPT[:15], *answer(PROMPT[:15], 1)]
    engine = engine_with(kv_blocks=5, context_window=20)
    run(engine, request(whole, 4))  # fills all five blocks
    assert cached(engine, request(whole, 4)) in ([12], [15])


def test_a_copied_block_stays_until_the_step_has_run() -> None:
    engine = engine_with()
    run(engine, request(PROMPT[:8]))
    item = request(PROMPT[:8])
    engine.add(item)
    batch, _ = engine.schedule()
    ((source, _),) = batch.copies
    engine.abort(item.request_id)
    assert engine._blocks.references(source) == 1
    engine.postprocess(batch, engine.runner.execute(batch))
    assert engine._blocks.references(source) == 0
    assert engine.free_kv_blocks == engine.spec.kv_blocks


# ---- what is published ---------------------------------------------------------------------------------------------------


def test_a_step_publishes_only_once_it_has_run() -> None:
    engine = engine_with()
    first = request(PROMPT)
    engine.add(first)
    batch, _ = engine.schedule()
    assert engine.cached_kv_blocks == 0
    engine.abort(first.request_id)
    engine.postprocess(batch, engine.runner.execute(batch))
    assert engine.cached_kv_blocks == 0
    assert cached(engine, request(PROMPT)) == [0]


@pytest.mark.parametrize("computed", [8, 10, 11])
def test_chunks_of_an_aborted_prefill_are_shared_as_far_as_they_were_computed(computed: int) -> None:
    engine = engine_with(EngineLimits(max_running=2, max_step_tokens=computed))
    first = request(PROMPT)
    engine.add(first)
    engine.step()
    engine.abort(first.request_id)
    assert cached(engine, request(PROMPT)) == [8]


@pytest.mark.parametrize("how", ["drop_all", "lose_cache", "replace_runner"])
def test_the_cache_goes_with_the_runner(how: str) -> None:
    engine = engine_with()
    run(engine, request(PROMPT))
    assert engine.cached_kv_blocks > 0
    if how == "replace_runner":
        engine.replace_runner(PagedHistory())
    elif how == "lose_cache":
        engine.lose_cache(StepBatch(()))
    else:
        engine.drop_all()
    assert engine.cached_kv_blocks == 0
    assert cached(engine, request(PROMPT)) == [0]


def test_a_sequence_that_outlives_its_runner_publishes_again_on_the_next_one() -> None:
    engine = engine_with()
    engine.add(item := request(PROMPT, 8))
    engine.step()
    batch, _ = engine.schedule()
    engine.lose_cache(batch)
    engine.replace_runner(PagedHistory(kv_blocks=32, kv_block_size=8))
    got = [token_id for _ in range(7) for output in engine.step() for token_id in output.token_ids]
    assert tuple(got) == answer(PROMPT, 8)[1:]
    assert not engine.has_work
    assert item.token_ids == tuple(PROMPT)
    assert cached(engine, request(PROMPT)) == [24]


# ---- eviction and preemption ---------------------------------------------------------------------------------------------


def test_the_least_recently_used_prefix_goes_first_and_its_tail_before_its_head() -> None:
    engine = engine_with(kv_blocks=16, context_window=64)
    old, new = [1] * 17, [2] * 17
    run(engine, request(old, 1), request(new, 1))
    run(engine, request([*old, 3], 1))  # used again, so the other one is older
    run(engine, request([3] * 37, 1))  # ten blocks, of which six were free or forgotten
    left = [cached(engine, request(prompt, 1)) for prompt in ([*old, 9], [*new, 9])]
    assert left[0] == [16]
    assert left[1] in ([0], [4], [8], [12])


def test_a_preempted_sequence_takes_up_what_is_still_cached() -> None:
    engine, _ = audited(lambda runner: Engine(runner, EngineLimits(max_running=1)))
    lesser, urgent = request(PROMPT, 10), request([7, 8, 9], 2, priority=1)
    engine.add(lesser)
    for _ in range(3):
        engine.step()
    engine.add(urgent)
    steps = len(engine.runner.batches)
    answers: dict[str, list[int]] = {lesser.request_id: [], urgent.request_id: []}
    timings = {}
    while engine.has_work:
        for output in engine.step():
            answers[output.request_id].extend(output.token_ids)
            timings[output.request_id] = output.timings
    assert tuple(answers[lesser.request_id]) == answer(PROMPT, 10)[3:]
    resumed = engine.runner.batches[steps + 2].rows[0]
    assert (resumed.start, resumed.end) == (32, 33)
    assert timings[lesser.request_id].preemptions == 1
    assert timings[lesser.request_id].cached_prompt_tokens == 0, "its own blocks are no hit"


def test_sequences_that_crowd_each_other_out_still_answer_as_if_alone() -> None:
    engine = engine_with(kv_blocks=12, kv_block_size=4, context_window=40)
    items = [request([*PROMPT[:9], n], 20) for n in range(1, 7)]
    assert sum(timings.preemptions for timings in run(engine, *items)) > 0


# ---- at the same time ----------------------------------------------------------------------------------------------------


def test_of_many_requests_that_come_at_once_one_computes_the_prefix_and_the_others_share_it() -> None:
    engine = engine_with(EngineLimits(max_running=32, max_step_tokens=48), kv_blocks=128, context_window=64)
    prefix = [5, 6, 7, 8] * 10
    assert cached(engine, *(request([*prefix, 100 + n]) for n in range(12))) == [0] + [40] * 11
    computed = sum(len(row.token_ids) for batch in engine.runner.batches for row in batch.rows)
    assert computed == 40 + 12 * 4


def test_a_prefill_follows_another_one_chunk_by_chunk() -> None:
    engine = engine_with(EngineLimits(max_running=8, max_step_tokens=12), kv_blocks=128)
    first, second = run(engine, request([*PROMPT * 2, 1]), request([*PROMPT * 2, 2]))
    assert (first.cached_prompt_tokens, second.cached_prompt_tokens) == (0, 60)


def test_a_small_common_prefix_does_not_hold_a_large_prompt_back() -> None:
    engine = engine_with()
    start = [1, 2, 3, 4]
    engine.add(request([*start, 50]))
    engine.add(request([*start, *range(100, 130)]))
    batch, _ = engine.schedule()
    assert [len(row.token_ids) for row in batch.rows] == [5, 34]


def test_who_sat_out_for_a_request_that_is_aborted_computes_the_prefix_itself() -> None:
    engine = engine_with()
    first, second = request(PROMPT), request(PROMPT)
    engine.add(first)
    engine.add(second)
    batch, _ = engine.schedule()
    assert len(batch.rows) == 1
    engine.abort(first.request_id)
    engine.postprocess(batch, engine.runner.execute(batch))
    got = [token_id for _ in range(4) for output in engine.step() for token_id in output.token_ids]
    assert tuple(got) == answer(PROMPT, 4)


# ---- names ---------------------------------------------------------------------------------------------------------------


@settings(max_examples=200, deadline=None)
@given(
    texts=st.lists(
        st.tuples(st.sampled_from([b"a", b"b", b"ab"]), st.lists(st.sampled_from([0, 1, 256, 2**32 - 1]), max_size=12)),
        min_size=2,
        max_size=6,
    )
)
def test_blocks_have_equal_names_only_with_equal_salts_and_prefixes(texts: list[tuple[bytes, list[int]]]) -> None:
    cache = PrefixCache(BlockManager(4, 2))
    named: dict[bytes, tuple[bytes, tuple[int, ...]]] = {}
    for n, (salt, tokens) in enumerate(texts):
        item = Request(RequestId(str(n)), tuple(tokens), cache_salt=salt)
        sequence = Sequence(SequenceId(n), item, list(tokens), len(tokens), 100, frozenset(), 0.0)
        for index in reversed(range(len(tokens) // 2)):
            stands_for = (salt, tuple(tokens[: 2 * index + 2]))
            assert named.setdefault(cache.hash_of(sequence, index), stands_for) == stands_for
    assert len(set(named.values())) == len(named)


def test_a_salt_cannot_be_mistaken_for_a_block() -> None:
    parent = salt_hash(b"salt")
    block = block_hash(parent, [1, 2])
    assert salt_hash(parent + b"\x01\x00\x00\x00\x02\x00\x00\x00") != block
    assert len(block) == 32


def test_the_audit_notices_a_block_that_is_written_while_others_hold_it() -> None:
    """The watch over all tests above is itself awake."""
    audit = BlockAudit()
    audit.engine = engine = Engine(PagedHistory(on_execute=audit))
    engine.add(request(PROMPT))
    engine.step()
    (sequence,) = engine._scheduler.running
    engine._blocks.share(sequence.block_table[-1:])
    with pytest.raises(AssertionError, match="others hold"):
        engine.step()
