"""One caller's flood uses up that caller's share: the counting."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lionrock.chassis.admission import Admission
from lionrock.chassis.errors import Overloaded


@given(steps=st.lists(st.tuples(st.booleans(), st.integers(0, 3)), max_size=200), limit=st.integers(1, 8), share=st.integers(1, 8))
def test_counts_never_pass_a_bound_and_return_to_zero(steps: list[tuple[bool, int]], limit: int, share: int) -> None:
    admission = Admission(limit=limit, limit_per_caller=share)
    running: list[int] = []
    for arrives, caller in steps:
        if arrives:
            full = len(running) >= limit or running.count(caller) >= share
            if full:
                with pytest.raises(Overloaded) as refused:
                    admission.enter(caller)
                assert refused.value.retry_after_s
            else:
                admission.enter(caller)
                running.append(caller)
        elif caller in running:
            running.remove(caller)
            admission.leave(caller)
        assert admission.running == len(running)
    for caller in running:
        admission.leave(caller)
    assert admission.running == 0
    assert not admission._running, "nothing is kept about a caller who has gone"


async def test_idle_means_that_no_call_runs() -> None:
    admission = Admission(limit=2, limit_per_caller=2)
    await admission.idle()
    admission.enter("a")
    waiting = asyncio.ensure_future(admission.idle())
    admission.enter("b")
    admission.leave("a")
    await asyncio.sleep(0)
    assert not waiting.done()
    admission.leave("b")
    await asyncio.wait_for(waiting, 1)
