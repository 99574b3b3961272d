"""Steps that tenants share stay short, and nothing else changes for anybody."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lionrock.inference.engine.block_manager import BlockManager
from lionrock.inference.engine.scheduler import Scheduler
from lionrock.inference.engine.sequence import Request, RequestId, Sequence, SequenceId
from lionrock.inference.engine.step_budget import StepBudget

FLOOR = 16


def test_without_an_aim_there_is_no_budget() -> None:
    budget = StepBudget(0, FLOOR)
    budget.note(512, 10)
    assert budget.tokens is None


def test_the_budget_is_what_fits_the_aim_by_the_time_that_tokens_took() -> None:
    budget = StepBudget(0.1, FLOOR)
    for _ in range(100):
        budget.note(50, 0.05)
    assert budget.tokens == pytest.approx(100, abs=1)


@given(st.lists(st.tuples(st.integers(0, 4096), st.floats(0, 100))))
def test_whatever_steps_took_the_first_in_line_has_tokens_in_each(steps: list[tuple[int, float]]) -> None:
    budget = StepBudget(0.1, FLOOR)
    for tokens, took in steps:
        budget.note(tokens, took)
        assert budget.tokens is not None
        assert budget.tokens >= FLOOR


def test_a_step_of_few_prompt_tokens_says_nothing_of_them() -> None:
    budget = StepBudget(0.1, FLOOR)
    budget.note(200, 0.05)
    before = budget.tokens
    budget.note(1, 5.0)
    assert budget.tokens == before


def scheduler_of(*tenants: str) -> Scheduler:
    """A scheduler whose queue has one prompt of 100 tokens of each tenant."""
    scheduler = Scheduler(BlockManager(64, 16), max_running=8, max_step_tokens=512)
    for number, tenant in enumerate(tenants):
        ids = tuple(range(100))
        request = Request(RequestId(f"request-{number}"), ids, tenant=tenant)
        scheduler.add(Sequence(SequenceId(number), request, list(ids), len(ids), 200, frozenset(), 0.0))
    return scheduler


def test_prompts_of_a_step_that_tenants_share_are_cut_and_go_to_whose_turn_it_is() -> None:
    step = scheduler_of("flood", "flood", "flood", "bank").schedule(0.0, None, 40)
    assert [(chunk.sequence.request.tenant, chunk.tokens) for chunk in step.chunks] == [("flood", 40)]
    step = scheduler_of("flood", "bank").schedule(0.0, None, 140)
    assert [(chunk.sequence.request.tenant, chunk.tokens) for chunk in step.chunks] == [("flood", 100), ("bank", 40)]


def test_a_tenant_alone_has_the_whole_step() -> None:
    step = scheduler_of("bank", "bank").schedule(0.0, None, 40)
    assert [chunk.tokens for chunk in step.chunks] == [100, 100]


def test_no_budget_is_the_whole_step_for_all() -> None:
    step = scheduler_of("flood", "bank").schedule(0.0)
    assert [chunk.tokens for chunk in step.chunks] == [100, 100]
