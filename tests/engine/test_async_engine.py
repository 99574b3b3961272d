import asyncio
import threading
from contextlib import aclosing

import pytest
from paged_history import PagedHistory, answer

from lionrock.inference.engine.async_engine import AsyncEngine
from lionrock.inference.engine.batch import StepBatch
from lionrock.inference.engine.engine import Engine, EngineLimits
from lionrock.inference.engine.errors import EngineDraining, EngineFull, InvalidRequest, RequestExpired, ShardGroupLost
from lionrock.inference.engine.sequence import FinishReason, Request, RequestId, Sampling, StepOutput
from lionrock.inference.engine.stream import Coalescing


def request(name: str, prompt, max_tokens: int = 8, **fields) -> Request:
    return Request(RequestId(name), tuple(prompt), Sampling(max_tokens=max_tokens), **fields)


async def collect(engine: AsyncEngine, item: Request) -> list[StepOutput]:
    return [output async for output in engine.generate(item)]


def tokens(outputs: list[StepOutput]) -> tuple[int, ...]:
    return tuple(token_id for output in outputs for token_id in output.token_ids)


class Gate:
    """Holds the runner before each step until the test lets it go."""

    def __init__(self) -> None:
        self.entered = threading.Semaphore(0)
        self.allowed = threading.Semaphore(0)
        self.steps = 0

    def __call__(self, batch: StepBatch) -> None:
        self.entered.release()
        assert self.allowed.acquire(timeout=10), "the test let the runner hang"
        self.steps += 1

    async def step_begins(self) -> None:
        assert await asyncio.to_thread(self.entered.acquire, timeout=10)

    def let(self, steps: int) -> None:
        self.allowed.release(steps)


async def test_streams_of_one_loop_get_their_own_answers() -> None:
    async with AsyncEngine(Engine(PagedHistory())) as engine:
        items = [request(f"r{n}", [n + 1] * (n + 1), 5 + n) for n in range(6)]
        answers = await asyncio.gather(*(collect(engine, item) for item in items))
        for item, outputs in zip(items, answers, strict=True):
            assert tokens(outputs) == answer(item.token_ids, item.sampling.max_tokens)
            assert outputs[-1].finish is FinishReason.LENGTH
        assert engine.active_streams == 0


async def test_a_lone_stream_gets_every_token_as_it_comes() -> None:
    gate = Gate()
    async with AsyncEngine(Engine(PagedHistory(on_execute=gate))) as engine:
        stream = engine.submit(request("lone", [1, 2], 5))
        for expected in answer([1, 2], 5):
            gate.let(1)
            assert (await anext(stream)).token_ids == (expected,)


async def test_under_load_the_first_token_comes_at_once_and_later_ones_together() -> None:
    gate = Gate()
    policy = Coalescing(per_stream_s=3600, ceiling_s=3600)
    async with AsyncEngine(Engine(PagedHistory(on_execute=gate)), coalescing=policy) as engine:
        streams, firsts = [engine.submit(request("r0", [1], 9))], []
        await gate.step_begins()  # with the first alone; the second joins in the next step
        streams.append(engine.submit(request("r1", [2], 9)))
        for stream in streams:
            gate.let(1)  # one step, and what it gave is read before the next
            firsts.append(await anext(stream))
        assert [len(output.token_ids) for output in firsts] == [1, 1]
        gate.let(20)
        for n, stream in enumerate(streams):
            (rest,) = [output async for output in stream]
            assert firsts[n].token_ids + rest.token_ids == answer([n + 1], 9)


def test_the_interval_grows_with_the_streams_up_to_a_ceiling() -> None:
    policy = Coalescing()
    assert policy.interval_s(1) == 0
    assert policy.interval_s(11) == pytest.approx(0.25)
    assert policy.interval_s(1000) == 0.4


async def test_gathered_tokens_are_delivered_when_their_time_comes_though_no_further_step_ends() -> None:
    gate = Gate()
    policy = Coalescing(per_stream_s=0.02, ceiling_s=0.02)
    async with AsyncEngine(Engine(PagedHistory(on_execute=gate)), coalescing=policy) as engine:
        other = engine.submit(request("other", [7], 50))
        stream = engine.submit(request("watched", [8], 50))
        gate.let(2)
        await anext(stream)
        gate.let(1)
        assert len((await anext(stream)).token_ids) >= 1
        gate.let(200)
        other.close()
        stream.close()


@pytest.mark.parametrize("way", ["close the generator", "cancel the consumer"])
async def test_leaving_a_stream_takes_the_sequence_out_within_one_step(way: str) -> None:
    gate = Gate()
    runner = PagedHistory(on_execute=gate)
    async with AsyncEngine(Engine(runner)) as engine:
        reached = asyncio.Event()

        async def consume() -> None:
            async with aclosing(engine.generate(request("left", [1], 100))) as outputs:
                async for _ in outputs:
                    reached.set()
                    if way == "close the generator":
                        return

        task = asyncio.create_task(consume())
        gate.let(1)
        await reached.wait()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        assert engine.engine.free_kv_blocks == runner.spec.kv_blocks
        assert engine.active_streams == 0
        gate.let(1)  # the step that was under way
        outputs_task = asyncio.create_task(collect(engine, request("next", [2], 1)))
        gate.let(2)
        assert tokens(await outputs_task) == answer([2], 1)
        assert gate.steps <= 3


async def test_refusals_reach_the_caller_before_any_stream_exists() -> None:
    gate = Gate()
    async with AsyncEngine(Engine(PagedHistory(on_execute=gate), EngineLimits(max_running=1, max_waiting=1))) as engine:
        stream = engine.submit(request("running", [1], 3))
        await gate.step_begins()
        engine.submit(request("waiting", [2], 3))
        with pytest.raises(EngineFull):
            engine.submit(request("third", [3], 3))
        with pytest.raises(InvalidRequest):
            engine.submit(request("running", [1], 3))
        gate.let(20)
        assert tokens([output async for output in stream]) == answer([1], 3)


async def test_an_expired_stream_raises_after_its_tokens() -> None:
    now_s = 0.0
    gate = Gate()
    async with AsyncEngine(Engine(PagedHistory(on_execute=gate), clock=lambda: now_s)) as engine:
        stream = engine.submit(request("late", [1], 50, deadline_s=1.0))
        gate.let(1)
        assert len((await anext(stream)).token_ids) == 1
        await gate.step_begins()
        await gate.step_begins()
        now_s = 2.0
        gate.let(1)
        assert len((await anext(stream)).token_ids) == 1
        with pytest.raises(RequestExpired):
            await anext(stream)


async def test_a_lost_runner_ends_every_stream_and_another_one_goes_on() -> None:
    losing = PagedHistory()
    told: list[ShardGroupLost] = []

    def lose(batch: StepBatch) -> None:
        if len(losing.batches) == 3:
            raise ShardGroupLost("rank 1 is gone")

    losing._on_execute = lose
    async with AsyncEngine(Engine(losing), on_lost=told.append) as engine:
        streams = [engine.submit(request(f"r{n}", [n + 1], 50)) for n in range(3)]
        for stream in streams:
            with pytest.raises(ShardGroupLost, match="rank 1 is gone"):
                async for _ in stream:
                    pass
        assert [str(error) for error in told] == ["rank 1 is gone"]
        with pytest.raises(ShardGroupLost):
            engine.submit(request("meanwhile", [1]))
        engine.replace_runner(PagedHistory())
        assert engine.lost is None
        assert tokens(await collect(engine, request("r0", [1], 50))) == answer([1], 50)


async def test_a_failing_runner_is_a_lost_one_and_its_message_stays_inside() -> None:
    def fail(batch: StepBatch) -> None:
        raise ZeroDivisionError("canary")

    async with AsyncEngine(Engine(PagedHistory(on_execute=fail))) as engine:
        with pytest.raises(ShardGroupLost, match="ZeroDivisionError") as lost:
            await collect(engine, request("unlucky", [1]))
        assert "canary" not in str(lost.value)


async def test_a_runner_in_use_is_not_replaced() -> None:
    gate = Gate()
    async with AsyncEngine(Engine(PagedHistory(on_execute=gate))) as engine:
        stream = engine.submit(request("busy", [1], 2))
        await gate.step_begins()
        with pytest.raises(RuntimeError):
            engine.replace_runner(PagedHistory())
        gate.let(5)
        assert len(tokens([output async for output in stream])) == 2


async def test_draining_refuses_new_requests_and_waits_for_the_old_ones() -> None:
    gate = Gate()
    async with AsyncEngine(Engine(PagedHistory(on_execute=gate))) as engine:
        stream = engine.submit(request("old", [1], 3))
        await gate.step_begins()
        drained = asyncio.create_task(engine.drain())
        await asyncio.sleep(0)
        with pytest.raises(EngineDraining):
            engine.submit(request("new", [1]))
        assert not drained.done()
        gate.let(10)
        await asyncio.wait_for(drained, 10)
        assert tokens([output async for output in stream]) == answer([1], 3)


async def test_closing_ends_streams_and_closes_the_runner() -> None:
    gate = Gate()
    runner = PagedHistory(on_execute=gate)
    engine = AsyncEngine(Engine(runner))
    engine.start()
    stream = engine.submit(request("open", [1], 100))
    await gate.step_begins()
    closing = asyncio.create_task(engine.close())
    with pytest.raises(EngineDraining):
        await anext(stream)
    gate.let(1)
    await asyncio.wait_for(closing, 10)
    assert runner.closed
