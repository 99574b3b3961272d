"""The scheduler on its own: what it grants to drafts, and whose blocks it counts on."""

import itertools

from lionrock.inference.engine.block_manager import BlockManager
from lionrock.inference.engine.prefix_cache import PrefixCache
from lionrock.inference.engine.scheduler import ScheduledStep, Scheduler
from lionrock.inference.engine.sequence import Request, RequestId, Sequence, SequenceId

_ids = itertools.count()


def sequence(tokens, *, priority: int = 0, salt: bytes = b"a tenant", room: int = 100) -> Sequence:
    number, ids = next(_ids), tuple(tokens)
    request = Request(RequestId(f"request-{number}"), ids, priority=priority, cache_salt=salt)
    return Sequence(SequenceId(number), request, list(ids), len(ids), room, frozenset(), 0.0)


def scheduler_over(blocks: BlockManager, max_running: int = 8, max_step_tokens: int = 64) -> Scheduler:
    return Scheduler(blocks, max_running=max_running, max_step_tokens=max_step_tokens, prefix_cache=PrefixCache(blocks))


def run(scheduler: Scheduler, step: ScheduledStep, sample: int = 9) -> None:
    """What the engine does when nothing ends: note what was computed, append a token."""
    scheduler.step_ended()
    for chunk in step.chunks:
        scheduler.advance(chunk.sequence, chunk.sequence.computed_tokens + chunk.tokens)
        if chunk.sequence.pending_tokens == 0:
            chunk.sequence.tokens.append(sample)


def offer(count: int):
    return lambda decoding: {item.sequence_id: count for item in decoding}


def drafts(step: ScheduledStep) -> list[int]:
    return [chunk.drafts for chunk in step.chunks]


def test_drafts_get_blocks_that_nobody_else_wants() -> None:
    blocks = BlockManager(8, 4)
    scheduler = scheduler_over(blocks)
    only = sequence([1, 2, 3])
    scheduler.add(only)
    run(scheduler, scheduler.schedule(0.0, offer(5)))
    step = scheduler.schedule(0.0, offer(5))
    assert drafts(step) == [5]
    assert len(only.block_table) == 3  # of 4 known tokens and 5 guesses


def test_no_drafts_are_asked_of_a_prefill() -> None:
    scheduler = scheduler_over(BlockManager(8, 4))
    scheduler.add(sequence([1, 2, 3]))
    assert drafts(scheduler.schedule(0.0, lambda decoding: {}[decoding])) == [0]


def test_drafts_preempt_nobody_and_take_no_block_from_who_is_admitted() -> None:
    blocks = BlockManager(4, 4)
    scheduler = scheduler_over(blocks)
    first, second = sequence([1, 2, 3]), sequence([5, 6, 7])
    scheduler.add(first)
    scheduler.add(second)
    run(scheduler, scheduler.schedule(0.0))
    third = sequence([1] * 5)
    scheduler.add(third)
    step = scheduler.schedule(0.0, offer(6))
    assert [(chunk.sequence, chunk.tokens) for chunk in step.chunks] == [(first, 1), (second, 1), (third, 5)]
    assert drafts(step) == [0, 0, 0], "the fourth block is the third sequence's"
    assert first.preemptions == second.preemptions == 0


def test_drafts_stay_within_the_budget_and_the_length_of_the_answer() -> None:
    scheduler = scheduler_over(BlockManager(16, 4), max_step_tokens=9)
    first, second = sequence([1, 2, 3], room=6), sequence([4, 5, 6])
    for item in (first, second):
        scheduler.add(item)
    run(scheduler, scheduler.schedule(0.0))
    assert drafts(scheduler.schedule(0.0, offer(7))) == [2, 5]


def test_guesses_are_never_shared() -> None:
    blocks = BlockManager(8, 4)
    scheduler = scheduler_over(blocks)
    only = sequence([1, 2, 3])
    scheduler.add(only)
    run(scheduler, scheduler.schedule(0.0))
    scheduler.schedule(0.0, offer(4))
    scheduler.advance(only, 4)
    only.tokens.append(5)
    assert blocks.published_blocks == 1
    scheduler.advance(only, 5)
    assert blocks.published_blocks == 1


def test_blocks_that_a_lesser_sequence_shares_with_an_equal_one_are_not_within_reach() -> None:
    blocks = BlockManager(6, 4)
    scheduler = scheduler_over(blocks)
    prefix = [1] * 12
    equal, lesser = sequence([*prefix, 2], priority=1), sequence([*prefix, 3])
    scheduler.add(equal)
    run(scheduler, scheduler.schedule(0.0))
    scheduler.add(lesser)
    run(scheduler, scheduler.schedule(0.0))
    assert equal.block_table[:3] == lesser.block_table[:3]
    assert blocks.free_blocks == 1
    urgent = sequence([7] * 12, priority=1)  # three blocks: one is free, one more would be without the lesser sequence
    scheduler.add(urgent)
    step = scheduler.schedule(0.0)
    assert [chunk.sequence for chunk in step.chunks] == [equal, lesser]
    assert lesser.preemptions == 0, "to no avail"
    run(scheduler, step)
    scheduler.remove(equal)
    assert urgent in [chunk.sequence for chunk in scheduler.schedule(0.0).chunks]


def test_a_prefix_that_others_use_costs_no_block() -> None:
    blocks = BlockManager(5, 4)
    scheduler = scheduler_over(blocks)
    first, second = sequence([1] * 13), sequence([*[1] * 12, 2])
    scheduler.add(first)
    run(scheduler, scheduler.schedule(0.0))
    scheduler.add(second)
    assert len(scheduler.schedule(0.0).chunks) == 2
    assert blocks.free_blocks == 0


def test_an_unused_prefix_counts_as_free_once_and_not_twice() -> None:
    blocks = BlockManager(5, 4)
    scheduler = scheduler_over(blocks)
    first = sequence([1] * 13)
    scheduler.add(first)
    run(scheduler, scheduler.schedule(0.0))
    scheduler.remove(first)
    holder = sequence([5] * 5, priority=1, salt=b"")
    scheduler.add(holder)
    run(scheduler, scheduler.schedule(0.0))  # takes what was forgotten
    assert blocks.free_blocks == blocks.published_blocks == 3
    scheduler.add(sequence([1] * 16))  # three blocks are there, but a fourth is not
    assert [chunk.sequence for chunk in scheduler.schedule(0.0).chunks] == [holder]
