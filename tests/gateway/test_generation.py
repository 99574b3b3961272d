"""The engine's stream as the pipeline takes it: in order, gathered, bounded."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from lionrock.common.v1 import sampling_pb2 as sampling
from lionrock.gateway.generation import Generation, ResumePolicy
from lionrock.inference.v1 import inference_pb2 as inf


class Call:
    """What Generation uses of a gRPC call: it is iterated, and it can be cancelled."""

    def __init__(self, chunks: list[list[int]]) -> None:
        self.sent = 0
        self.cancelled = False
        self._chunks = chunks

    async def __aiter__(self) -> AsyncIterator[inf.GenerateResponse]:
        yield inf.GenerateResponse(started=inf.GenerateResponse.Started())
        for chunk in self._chunks:
            self.sent += len(chunk)
            yield inf.GenerateResponse(tokens=inf.GenerateResponse.Tokens(token_ids=chunk))
        yield inf.GenerateResponse(finished=inf.GenerateResponse.Finished(reason=sampling.FINISH_REASON_STOP))

    def cancel(self) -> None:
        self.cancelled = True


def generation(call: Call, max_pending: int = 1000) -> Generation:
    start: Any = lambda request: call  # noqa: E731
    return Generation(start, inf.GenerateRequest(token_ids=[1, 2]), ResumePolicy(0, 0), max_pending)


@given(st.lists(st.lists(st.integers(0, 9), min_size=1, max_size=9), max_size=9), st.integers(1, 7))
def test_all_ids_are_taken_once_in_order(chunks: list[list[int]], most: int) -> None:
    async def take_all() -> None:
        taken: list[int] = []
        async with generation(Call(chunks)) as tokens:
            while ids := await tokens.take(most):
                assert len(ids) <= most
                taken.extend(ids)
            assert tokens.usage.completion_tokens == len(taken)
        assert taken == [token for chunk in chunks for token in chunk]

    asyncio.run(take_all())


async def test_an_engine_is_not_read_further_than_the_bound_ahead_of_a_slow_client() -> None:
    call = Call([[0] * 10 for _ in range(100)])
    async with generation(call, max_pending=30) as tokens:
        for _ in range(1000):
            await asyncio.sleep(0)
        assert call.sent == 30
        await tokens.take(30)
        for _ in range(1000):
            await asyncio.sleep(0)
        assert call.sent == 60
    assert call.cancelled


async def test_tokens_gather_until_the_time_given_unless_the_end_comes_first() -> None:
    loop = asyncio.get_running_loop()
    async with generation(Call([[1], [2], [3]])) as tokens:
        began = loop.time()
        assert list(await tokens.take(100, not_before=began + 60)) == [1, 2, 3]
        assert loop.time() - began < 30
        assert list(await tokens.take(100)) == []
