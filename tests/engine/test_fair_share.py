"""Tenants that share an engine: who goes first, who gives way, and that nobody is shut out."""

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from paged_history import PagedHistory, answer

from lionrock.inference.engine.engine import Engine, EngineLimits
from lionrock.inference.engine.errors import EngineFull
from lionrock.inference.engine.fair_share import FairShares
from lionrock.inference.engine.sequence import FinishReason, Request, RequestId, Sampling

_numbers = itertools.count()


def ask(engine: Engine, tenant: str, prompt: tuple[int, ...] = (1, 2, 3), tokens: int = 8, **fields) -> Request:
    name, sampling = RequestId(f"{tenant}-{next(_numbers)}"), Sampling(max_tokens=tokens)
    item = Request(name, prompt, sampling, tenant=tenant, cache_salt=tenant.encode(), **fields)
    engine.add(item)
    return item


def run(engine: Engine, steps: int | None = None) -> tuple[list[str], dict[str, list[int]]]:
    """Run so many steps, or to the end. Returns who finished, in order, and what each was given."""
    finished, got = [], {}
    for _ in itertools.count() if steps is None else range(steps):
        if not engine.has_work:
            break
        for output in engine.step():
            got.setdefault(output.request_id, []).extend(output.token_ids)
            if output.finish is not None:
                finished.append(output.request_id)
    return finished, got


def tenant_of(request_id: str) -> str:
    return request_id.rpartition("-")[0]


def test_a_newcomer_is_not_behind_the_queue_of_another_tenant() -> None:
    engine = Engine(PagedHistory(), EngineLimits(max_running=2))
    for _ in range(10):
        ask(engine, "flood")
    engine.step()
    late = ask(engine, "late")
    finished, got = run(engine)
    assert finished.index(late.request_id) <= 2, "at most those that were running come before"
    assert got[late.request_id] == list(answer(late.token_ids, 8))


def test_a_newcomer_takes_a_place_of_a_tenant_that_has_all_of_them() -> None:
    engine = Engine(PagedHistory(kv_blocks=512), EngineLimits(max_running=4))
    flood = [ask(engine, "flood", tokens=30) for _ in range(8)]
    engine.step()
    late = ask(engine, "late")
    engine.step()  # it starts level with the flood, whose own queue was there before it
    assert late.request_id in [output.request_id for output in engine.step()]
    _, got = run(engine)
    assert all(got[item.request_id] == list(answer(item.token_ids, 30))[3:] for item in flood[:3]), "who keeps a place goes on"
    assert all(got[item.request_id][-20:] == list(answer(item.token_ids, 30))[-20:] for item in flood), "who gave way, too"


def test_a_place_never_passes_back() -> None:
    engine = Engine(PagedHistory(kv_blocks=512), EngineLimits(max_running=3))
    for tenant in ("one", "two", "one", "two", "one", "two"):
        ask(engine, tenant, tokens=20)
    preemptions = 0
    while engine.has_work:
        preemptions += sum(output.timings.preemptions for output in engine.step() if output.timings is not None)
    assert preemptions <= 1


def test_a_larger_priority_of_its_own_keeps_a_place() -> None:
    engine = Engine(PagedHistory(), EngineLimits(max_running=2))
    urgent = [ask(engine, "flood", tokens=10, priority=1) for _ in range(2)]
    engine.step()
    late = ask(engine, "late")
    finished, _ = run(engine)
    assert finished == [*(item.request_id for item in urgent), late.request_id]


@pytest.mark.parametrize("weight", [1, 2, 4])
def test_tenants_that_always_want_more_get_tokens_by_weight(weight: int) -> None:
    engine = Engine(PagedHistory(kv_blocks=512), EngineLimits(max_running=5, max_waiting=1000))
    for _ in range(100):
        ask(engine, "plain", tokens=10)
        ask(engine, "heavy", tokens=10, weight=weight)
    finished, _ = run(engine, 120)
    count = [sum(tenant_of(name) == tenant for name in finished) for tenant in ("plain", "heavy")]
    assert count[1] / count[0] == pytest.approx(weight, rel=0.2)


def test_nobody_saves_up_turns_by_staying_away() -> None:
    engine = Engine(PagedHistory(kv_blocks=512), EngineLimits(max_running=1, max_waiting=1000))
    for _ in range(20):
        ask(engine, "steady")
    run(engine, 100)
    for _ in range(20):
        ask(engine, "back")
    finished, _ = run(engine, 64)
    count = [sum(tenant_of(name) == tenant for name in finished) for tenant in ("steady", "back")]
    assert abs(count[0] - count[1]) <= 1


def test_nobody_sheds_what_was_served_by_leaving_and_coming_back() -> None:
    shares = FairShares()
    shares.enter("present", 1)
    shares.enter("leaver", 1)
    shares.charge("leaver", 100)
    shares.charge("present", 10)
    shares.leave("leaver")
    shares.enter("leaver", 1)
    assert shares.served("leaver") == 100
    shares.charge("present", 200)
    shares.leave("leaver")
    shares.enter("leaver", 1)
    assert shares.served("leaver") == 210
    assert shares.tenants == 2


def test_a_full_queue_still_takes_a_tenant_below_its_share_and_stays_bounded() -> None:
    engine = Engine(PagedHistory(), EngineLimits(max_running=1, max_waiting=8))
    for _ in range(8):
        ask(engine, "flood")
    with pytest.raises(EngineFull):
        ask(engine, "flood")
    for _ in range(4):
        ask(engine, "late")
    with pytest.raises(EngineFull):
        ask(engine, "late")
    for tenant in range(100):
        for _ in range(3):
            try:
                ask(engine, f"tenant{tenant}")
            except EngineFull:
                break
    assert engine.waiting <= 16


@settings(deadline=None, max_examples=200)
@given(
    asked=st.lists(
        st.tuples(st.sampled_from("abc"), st.integers(1, 12), st.integers(1, 12), st.integers(0, 1), st.integers(0, 4)),
        min_size=1,
        max_size=20,
    ),
    kv_blocks=st.integers(8, 20),
    weights=st.fixed_dictionaries({name: st.integers(1, 3) for name in "abc"}),
)
def test_whoever_gives_way_gets_the_same_answer_and_everybody_ends(asked, kv_blocks, weights) -> None:
    engine = Engine(
        PagedHistory(kv_blocks=kv_blocks, kv_block_size=3, context_window=24), EngineLimits(max_running=3, max_step_tokens=5)
    )
    expected, got = {}, {}
    bound = 0
    for tenant, length, tokens, priority, pause in asked:
        item = ask(engine, tenant, tuple(range(1, length + 1)), tokens, priority=priority, weight=weights[tenant])
        expected[item.request_id] = list(answer(item.token_ids, tokens))
        bound += 8 * (length + tokens)
        for name, tokens_ in run(engine, pause)[1].items():
            got.setdefault(name, []).extend(tokens_)
    for _ in range(bound):
        for output in engine.step() if engine.has_work else ():
            got.setdefault(output.request_id, []).extend(output.token_ids)
            assert output.finish in (None, FinishReason.LENGTH)
    assert not engine.has_work
    assert got == expected
    assert engine.free_kv_blocks == engine.spec.kv_blocks
