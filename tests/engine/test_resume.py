"""The runner is lost while sequences run: they pause, and the next runner computes them anew with the same tokens."""

import asyncio
import itertools
import threading

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule
from paged_history import PagedHistory, answer

from lionrock.inference.engine.async_engine import AsyncEngine
from lionrock.inference.engine.batch import StepBatch, StepResult
from lionrock.inference.engine.engine import MAX_FAILED_STEPS, Engine, EngineLimits
from lionrock.inference.engine.errors import EngineError, EngineFull, RequestExpired, ShardGroupLost
from lionrock.inference.engine.sequence import FinishReason, Request, RequestId, Sampling, StepOutput
from lionrock.inference.engine.stream import Stream

_ids = itertools.count()


class Clock:
    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


class LosableHistory(PagedHistory):
    """Executes steps until the test loses it, before or after the step was computed; and then never again."""

    def __init__(self, *, steps: int | None = None, paused: bool = False, **options) -> None:
        """steps: how many succeed. paused: whether each step waits until the test lets it go."""
        super().__init__(**options)
        self.steps = steps
        self.lost = threading.Event()
        self.entered = threading.Semaphore(0)
        self.allowed = threading.Semaphore(0) if paused else None

    def execute(self, batch: StepBatch) -> StepResult:
        self.entered.release()
        if self.allowed is not None:
            assert self.allowed.acquire(timeout=20), "the test let the runner hang"
        result = super().execute(batch)
        if self.lost.is_set() or (self.steps is not None and len(self.batches) > self.steps):
            self.lost.set()
            raise ShardGroupLost("rank 1 is gone")
        return result

    def lose(self) -> None:
        self.lost.set()
        self.let(1)

    def let(self, steps: int) -> None:
        if self.allowed is not None:
            self.allowed.release(steps)

    async def step_begins(self) -> None:
        assert await asyncio.to_thread(self.entered.acquire, timeout=20)


def request(prompt, max_tokens: int = 8, *, name: str | None = None, seed: int | None = None, **fields) -> Request:
    sampling = Sampling(max_tokens=max_tokens, temperature=0.0 if seed is None else 1.0, seed=seed)
    return Request(RequestId(name or f"request-{next(_ids)}"), tuple(prompt), sampling, **fields)


def expected(item: Request) -> tuple[int, ...]:
    assert item.sampling.max_tokens is not None
    return answer(item.token_ids, item.sampling.max_tokens, item.sampling.seed or 0)


def tokens(outputs: list[StepOutput]) -> tuple[int, ...]:
    return tuple(token_id for output in outputs for token_id in output.token_ids)


async def collect(stream: Stream) -> list[StepOutput]:
    return [output async for output in stream]


async def cut_off(stream: Stream) -> tuple[tuple[int, ...], EngineError]:
    """What came before a stream's error, and the error."""
    got: tuple[int, ...] = ()
    try:
        async for output in stream:
            got += output.token_ids
    except EngineError as error:
        return got, error
    raise AssertionError("the stream ended well")


class Told:
    """An `on_lost` that can be waited for."""

    def __init__(self) -> None:
        self.losses: list[ShardGroupLost] = []
        self._event = asyncio.Event()

    def __call__(self, error: ShardGroupLost) -> None:
        self.losses.append(error)
        self._event.set()

    async def wait(self) -> None:
        await asyncio.wait_for(self._event.wait(), 20)


# ---- the engine by itself ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("lost_after", range(11))
def test_a_sequence_computed_anew_goes_on_with_identical_tokens_greedy_and_seeded(lost_after: int) -> None:
    engine = Engine(LosableHistory(steps=lost_after), EngineLimits(max_running=4, max_step_tokens=4))
    items = [request([1, 2, 3, 4, 5], 6), request([6], 7, seed=3), request(range(1, 12), 3, priority=1), request([9, 9], 5, seed=4)]
    outputs: dict[str, list[StepOutput]] = {item.request_id: [] for item in items}
    for item in items:
        engine.add(item)
    losses = 0
    while engine.has_work:
        try:
            for output in engine.step():
                outputs[output.request_id].append(output)
        except ShardGroupLost:
            losses += 1
            assert engine.lose_cache(engine.runner.batches[-1]) == []
            assert engine.running == 0
            assert engine.replace_runner(PagedHistory(kv_blocks=48)) == []
    assert losses == 1
    for item in items:
        assert tokens(outputs[item.request_id]) == expected(item)
    resumptions = [outputs[item.request_id][-1].timings.resumptions for item in items]
    assert max(resumptions) == 1
    assert all(outputs[item.request_id][-1].timings.preemptions == 0 for item in items)
    assert engine.free_kv_blocks == 48


def test_a_sequence_that_may_break_the_runner_is_given_up_and_one_that_waits_is_not() -> None:
    engine = Engine(LosableHistory(steps=1), EngineLimits(max_running=1))
    first, second = request([1], 9), request([2], 3)
    engine.add(first)
    engine.add(second)
    engine.step()
    for loss in range(1, MAX_FAILED_STEPS + 1):
        with pytest.raises(ShardGroupLost):
            engine.step()
        given_up = engine.lose_cache(engine.runner.batches[-1])
        assert [sequence.request for sequence in given_up] == ([first] if loss == MAX_FAILED_STEPS else [])
        engine.replace_runner(LosableHistory(steps=0))
    engine.replace_runner(PagedHistory())
    outputs = []
    while engine.has_work:
        outputs += engine.step()
    assert tokens(outputs) == expected(second)


def test_progress_between_losses_keeps_a_sequence_alive_for_ever() -> None:
    engine = Engine(LosableHistory(steps=1))
    item = request([1, 2], 20)
    engine.add(item)
    outputs: list[StepOutput] = []
    while engine.has_work:
        try:
            outputs += engine.step()
        except ShardGroupLost:
            assert engine.lose_cache(engine.runner.batches[-1]) == []
            engine.replace_runner(LosableHistory(steps=1))
    assert tokens(outputs) == expected(item)
    assert outputs[-1].timings is not None
    assert outputs[-1].timings.resumptions == 19


def test_a_smaller_cache_gives_up_exactly_the_sequences_that_it_cannot_hold() -> None:
    engine = Engine(PagedHistory(kv_blocks=16))  # 64 tokens
    long, short, growing = request(range(1, 50), 4), request([1, 2], 6), request([3], 50)
    for item in (long, short, growing):
        engine.add(item)
    outputs = engine.step()
    given_up = engine.replace_runner(PagedHistory(kv_blocks=8))  # 32 tokens
    assert [sequence.request for sequence in given_up] == [long]
    while engine.has_work:
        outputs += engine.step()
    by_request = {item.request_id: [o for o in outputs if o.request_id == item.request_id] for item in (short, growing)}
    assert tokens(by_request[short.request_id]) == expected(short)
    assert tokens(by_request[growing.request_id]) == expected(growing)[:31]
    assert by_request[growing.request_id][-1].finish is FinishReason.LENGTH


class Losses(RuleBasedStateMachine):
    """Every order of add, abort, step, expiry, loss and replacement, against the answers by definition."""

    def __init__(self) -> None:
        super().__init__()
        self.clock = Clock()
        self.runner = LosableHistory(kv_blocks=12)
        self.engine = Engine(self.runner, EngineLimits(max_running=3, max_waiting=4, max_step_tokens=6), self.clock)
        self.items: dict[str, Request] = {}
        self.got: dict[str, tuple[int, ...]] = {}

    def take(self, outputs: list[StepOutput]) -> None:
        for output in outputs:
            got = self.got[output.request_id] = self.got[output.request_id] + output.token_ids
            item = self.items[output.request_id]
            assert got == expected(item)[: len(got)]
            if output.finish is not None:
                del self.items[output.request_id]
                assert output.finish is FinishReason.EXPIRED or got == expected(item)

    @rule(prompt=st.lists(st.integers(1, 50), min_size=1, max_size=20), max_tokens=st.integers(1, 12),
          seed=st.none() | st.integers(0, 5), priority=st.integers(0, 2), expires=st.booleans())  # fmt: skip
    def add(self, prompt: list[int], max_tokens: int, seed: int | None, priority: int, expires: bool) -> None:
        deadline_s = self.clock.now_s + 3 if expires else None
        item = request(prompt, max_tokens, seed=seed, priority=priority, deadline_s=deadline_s)
        try:
            self.engine.add(item)
        except EngineFull:
            return
        self.items[item.request_id], self.got[item.request_id] = item, ()

    @rule()
    def step(self) -> None:
        try:
            self.take(self.engine.step())
        except ShardGroupLost:
            for sequence in self.engine.lose_cache(self.runner.batches[-1]):
                assert sequence.failed_steps == MAX_FAILED_STEPS
                del self.items[sequence.request.request_id]

    @rule()
    def expire(self) -> None:
        self.clock.now_s += 1
        self.take(self.engine.expire())

    @rule()
    def lose(self) -> None:
        self.runner.lost.set()

    @rule(kv_blocks=st.integers(12, 20))
    def replace(self, kv_blocks: int) -> None:
        self.runner = LosableHistory(kv_blocks=kv_blocks)
        assert self.engine.replace_runner(self.runner) == []

    @rule(which=st.integers(0, 20))
    def abort(self, which: int) -> None:
        if self.items:
            request_id = sorted(self.items)[which % len(self.items)]
            assert self.engine.abort(RequestId(request_id)) is not None
            del self.items[request_id]

    @invariant()
    def nothing_is_forgotten(self) -> None:
        assert self.engine.running + self.engine.waiting == len(self.items)
        if self.engine.running == 0:
            assert self.engine.free_kv_blocks == self.engine.spec.kv_blocks

    def teardown(self) -> None:
        self.replace(12)
        while self.engine.has_work:
            self.take(self.engine.step())
        assert not self.items


TestLosses = Losses.TestCase
TestLosses.settings = settings(max_examples=40, stateful_step_count=40, deadline=None)


# ---- streams ----------------------------------------------------------------------------------------------------------------


async def test_streams_pause_with_the_lost_runner_and_go_on_with_the_next() -> None:
    losing = LosableHistory(steps=3)
    told = Told()
    async with AsyncEngine(Engine(losing), resume_timeout_s=60, on_lost=told) as engine:
        items = [request([n + 1] * (n + 1), 20, seed=n if n % 2 else None) for n in range(4)]
        streams = [engine.submit(item) for item in items]
        await told.wait()
        assert engine.active_streams == 4
        engine.replace_runner(PagedHistory())
        assert engine.lost is None
        for item, stream in zip(items, streams, strict=True):
            assert tokens(await collect(stream)) == expected(item)
        assert [str(error) for error in told.losses] == ["rank 1 is gone"]


async def test_requests_queue_without_a_runner_within_the_bound_and_run_on_the_next() -> None:
    told = Told()
    async with AsyncEngine(
        Engine(LosableHistory(steps=0), EngineLimits(max_waiting=3)), resume_timeout_s=60, on_lost=told
    ) as engine:
        items = [request([n + 1], 5) for n in range(3)]
        streams = [engine.submit(items[0])]
        await told.wait()
        streams += [engine.submit(item) for item in items[1:]]
        with pytest.raises(EngineFull):
            engine.submit(request([9]))
        engine.replace_runner(PagedHistory())
        for item, stream in zip(items, streams, strict=True):
            assert tokens(await collect(stream)) == expected(item)


async def test_deadlines_pass_and_streams_can_be_left_while_there_is_no_runner() -> None:
    told = Told()
    clock = Clock()
    async with AsyncEngine(Engine(LosableHistory(steps=1), clock=clock), resume_timeout_s=60, on_lost=told) as engine:
        late, left = engine.submit(request([1], 50, deadline_s=5.0)), engine.submit(request([2], 50))
        stays = request([3], 9)
        staying = engine.submit(stays)
        await told.wait()
        left.close()
        clock.now_s = 6.0
        got, error = await cut_off(late)
        assert isinstance(error, RequestExpired)
        assert got == answer([1], 50)[: len(got)]
        assert engine.active_streams == 1
        engine.replace_runner(PagedHistory())
        assert tokens(await collect(staying)) == expected(stays)


async def test_streams_that_no_runner_comes_for_end_after_their_tokens() -> None:
    told = Told()
    clock = Clock()
    async with AsyncEngine(Engine(LosableHistory(steps=2), clock=clock), resume_timeout_s=10, on_lost=told) as engine:
        item = request([1], 50)
        stream = engine.submit(item)
        await told.wait()
        clock.now_s = 9.0
        late = engine.submit(request([2], 50))
        clock.now_s = 10.0
        got, error = await cut_off(stream)
        assert isinstance(error, ShardGroupLost)
        assert str(error) == "rank 1 is gone"
        assert got == expected(item)[:2]
        with pytest.raises(ShardGroupLost):
            await collect(late)
        with pytest.raises(ShardGroupLost):
            engine.submit(request([3]))
        engine.replace_runner(PagedHistory())
        assert tokens(await collect(engine.submit(item))) == expected(item)


async def test_an_owner_that_gives_up_ends_every_stream_at_once() -> None:
    told = Told()
    async with AsyncEngine(Engine(LosableHistory(steps=2)), resume_timeout_s=3600, on_lost=told) as engine:
        streams = [engine.submit(request([n + 1], 50)) for n in range(3)]
        await told.wait()
        engine.give_up("the shard group cannot be built")
        for stream in streams:
            with pytest.raises(ShardGroupLost, match="cannot be built"):
                await collect(stream)
        with pytest.raises(ShardGroupLost, match="cannot be built"):
            engine.submit(request([1]))


async def test_a_mistake_of_the_engine_itself_ends_streams_instead_of_going_on_with_a_state_that_nobody_knows() -> None:
    engine = Engine(PagedHistory())
    told = Told()

    def broken(*_: object) -> list[StepOutput]:
        raise ZeroDivisionError("canary")

    engine.postprocess = broken  # type: ignore[method-assign]
    async with AsyncEngine(engine, resume_timeout_s=60, on_lost=told) as front:
        with pytest.raises(ShardGroupLost, match="ZeroDivisionError") as lost:
            await collect(front.submit(request([1])))
        assert "canary" not in str(lost.value)
        assert len(told.losses) == 1


async def test_closing_while_there_is_no_runner_ends_streams_and_the_thread() -> None:
    told = Told()
    engine = AsyncEngine(Engine(LosableHistory(steps=1)), resume_timeout_s=60, on_lost=told)
    engine.start()
    engine.submit(request([1], 50))
    await told.wait()
    await asyncio.wait_for(engine.close(), 10)


OPERATIONS = st.lists(
    st.one_of(
        st.tuples(st.just("submit"), st.integers(1, 12)),
        st.tuples(st.just("steps"), st.integers(1, 4)),
        st.tuples(st.just("leave"), st.integers(0, 9)),
        st.tuples(st.just("clock"), st.integers(1, 3)),
        st.tuples(st.sampled_from(["lose", "replace", "give up", "look"]), st.just(0)),
    ),
    max_size=25,
)


@settings(max_examples=40, deadline=None)
@given(OPERATIONS)
def test_every_order_of_events_around_a_loss_ends_every_stream_with_its_own_tokens(operations: list[tuple[str, int]]) -> None:
    asyncio.run(asyncio.wait_for(play(operations), 60))


async def play(operations: list[tuple[str, int]]) -> None:
    clock = Clock()
    runner = LosableHistory(paused=True)
    front = AsyncEngine(Engine(runner, EngineLimits(max_running=3, max_waiting=5), clock), resume_timeout_s=1000)
    front.start()
    readers: list[tuple[Request, Stream, asyncio.Task[tuple[int, ...]]]] = []
    given_up = False
    errors: list[BaseException] = []

    async def read(item: Request, stream: Stream) -> tuple[int, ...]:
        got: tuple[int, ...] = ()
        try:
            async for output in stream:
                got += output.token_ids
                assert got == expected(item)[: len(got)]
        except (ShardGroupLost, RequestExpired) as error:
            errors.append(error)
            return got
        return got

    async def replace() -> LosableHistory:
        runner.lose()  # a step in flight ends
        runner.let(100)
        following = LosableHistory(paused=True)
        while True:
            try:
                front.replace_runner(following)
            except RuntimeError:
                await asyncio.sleep(0)
            else:
                return following

    losses = 0
    for name, number in operations:
        match name:
            case "submit":
                seed = number if number % 3 == 0 else None
                item = request([number], number, seed=seed, deadline_s=clock.now_s + 4 if number % 4 == 0 else None)
                try:
                    stream = front.submit(item)
                except (EngineFull, ShardGroupLost):
                    continue
                readers.append((item, stream, asyncio.create_task(read(item, stream))))
            case "steps":
                runner.let(number)
                await asyncio.sleep(0)
            case "leave" if readers:
                readers[number % len(readers)][1].close()
            case "clock":
                clock.now_s += number
            case "lose":
                losses += 1
                runner.lose()
            case "replace":
                losses += 1
                runner = await replace()
            case "give up":
                front.give_up("no hope")
                given_up = True
            case _:
                await asyncio.sleep(0)
    runner = await replace()
    runner.let(10_000)
    for item, stream, reader in readers:
        got = await reader
        assert got == expected(item)[: len(got)]
        del stream
    assert front.active_streams == 0
    assert not front.engine.has_work or front.engine.running + front.engine.waiting == 0
    assert given_up or losses >= MAX_FAILED_STEPS - 1 or not any(isinstance(error, ShardGroupLost) for error in errors)
    runner.let(10)
    await front.close()
