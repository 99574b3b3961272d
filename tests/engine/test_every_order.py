"""Any order of what can happen to an engine whose requests share prefixes, in a cache that is too small for them."""

from block_audit import BlockAudit
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from paged_history import PagedHistory, answer

from lionrock.inference.engine.batch import StepBatch
from lionrock.inference.engine.engine import Engine, EngineLimits
from lionrock.inference.engine.errors import EngineFull
from lionrock.inference.engine.sequence import FinishReason, Request, RequestId, Sampling, StepOutput

TEXTS = ([1, 2, 3, 1, 2, 3, 1, 2, 3, 1, 2, 3, 1, 2, 3, 1, 2, 3], [1, 2, 3, 1, 2, 4, 1, 2, 3, 1, 2, 4, 1, 2, 3, 1, 2, 4])


class SharedPrefixes(RuleBasedStateMachine):
    """Every answer is right, nobody reads another salt's blocks or writes a shared one, nobody starves, no block leaks."""

    def __init__(self) -> None:
        super().__init__()
        self.now_s = 0.0
        self.names = 0
        self.live: dict[str, Request] = {}
        self.got: dict[str, list[int]] = {}
        self.waited: dict[str, int] = {}
        self.patience: dict[str, int] = {}
        self.in_flight: StepBatch | None = None

    @initialize(kv_blocks=st.integers(7, 14), block_size=st.sampled_from([1, 2, 3]), max_step_tokens=st.sampled_from([3, 7, 24]))
    def start(self, kv_blocks: int, block_size: int, max_step_tokens: int) -> None:
        self.audit = BlockAudit()
        self.kv_blocks, self.block_size = kv_blocks, block_size
        limits = EngineLimits(max_running=3, max_waiting=5, max_step_tokens=max_step_tokens)
        self.engine = self.audit.engine = Engine(self.runner(), limits, clock=lambda: self.now_s)

    def runner(self) -> PagedHistory:
        return PagedHistory(kv_blocks=self.kv_blocks, kv_block_size=self.block_size, context_window=40, on_execute=self.audit)

    # ---- what can happen -------------------------------------------------------------------------------------------------

    @rule(
        text=st.sampled_from(TEXTS),
        length=st.sampled_from([1, 5, 6, 6, 12, 12, 18]),
        known=st.sampled_from([0, 0, 0, 3, 6]),
        max_tokens=st.integers(1, 12),
        priority=st.integers(-1, 1),
        patience_s=st.none() | st.integers(1, 30),
        salt=st.sampled_from([b"a", b"a", b"a", b"a", b"b", b""]),
    )
    def add(self, text, length, known, max_tokens, priority, patience_s, salt) -> None:
        window = self.engine.context_window
        prompt = tuple(text[: min(length, window - 1)])
        max_tokens = min(max_tokens, window - len(prompt))
        resumed = answer(prompt, min(known, max_tokens - 1))
        request_id = RequestId(f"request-{self.names}")
        deadline_s = None if patience_s is None else self.now_s + patience_s
        item = Request(
            request_id, prompt + resumed, Sampling(max_tokens=max_tokens), len(resumed), priority, deadline_s, cache_salt=salt
        )
        try:
            self.engine.add(item)
        except EngineFull:
            assert self.engine.waiting >= 5
            return
        self.names += 1
        self.live[request_id], self.got[request_id] = item, list(resumed)
        # From now on: as many steps as those that rank before it and itself may have tokens. And so anew for those that it passes.
        for name, other in self.live.items():
            if name == request_id or other.priority < priority:
                self.grant(name)

    def grant(self, name: str) -> None:
        """A sequence may wait for all that rank before it now, each computed from its first token."""
        order = sorted(self.live, key=lambda other: (-self.live[other].priority, int(other.rpartition("-")[2])))
        before = order[: order.index(name) + 1]
        self.waited[name] = 0
        self.patience[name] = sum(
            len(item.token_ids) - item.resumed_tokens + item.sampling.max_tokens for item in map(self.live.get, before)
        )

    @precondition(lambda self: self.live)
    @rule(which=st.integers(0, 20))
    def abort(self, which: int) -> None:
        request_id = sorted(self.live)[which % len(self.live)]
        assert self.engine.abort(RequestId(request_id)).finish is FinishReason.ABORTED
        del self.live[request_id]

    @precondition(lambda self: self.in_flight is None)
    @rule()
    def step_begins(self) -> None:
        self.now_s += 1
        self.in_flight, outputs = self.engine.schedule()
        self.deliver(outputs)
        for name in self.live:
            self.waited[name] += 1
            assert self.waited[name] <= self.patience[name], "a sequence waits longer than stated"

    @precondition(lambda self: self.in_flight is not None)
    @rule()
    def step_ends(self) -> None:
        self.deliver(self.engine.postprocess(self.in_flight, self.engine.runner.execute(self.in_flight)))
        self.in_flight = None

    @rule()
    def step(self) -> None:
        if self.in_flight is not None:
            self.step_ends()
        self.step_begins()
        if self.in_flight is not None:
            self.step_ends()

    @precondition(lambda self: self.in_flight is not None)
    @rule(rarely=st.integers(0, 4))
    def the_runner_is_lost(self, rarely: int) -> None:
        if rarely:
            return
        for sequence in self.engine.lose_cache(self.in_flight):
            del self.live[sequence.request.request_id]
        self.in_flight = None
        self.audit.forget()
        assert self.engine.cached_kv_blocks == 0
        assert self.engine.replace_runner(self.runner()) == []
        for name in self.live:
            self.grant(name)

    def deliver(self, outputs: list[StepOutput]) -> None:
        for output in outputs:
            item, got = self.live[output.request_id], self.got[output.request_id]
            got.extend(output.token_ids)
            prompt = item.token_ids[: len(item.token_ids) - item.resumed_tokens]
            assert tuple(got) == answer(prompt, len(got))
            if output.finish is None:
                continue
            assert output.finish is FinishReason.EXPIRED or len(got) == item.sampling.max_tokens
            assert output.timings.cached_prompt_tokens <= output.timings.prompt_tokens
            assert item.cache_salt or output.timings.cached_prompt_tokens == 0
            del self.live[output.request_id]

    # ---- what always holds -----------------------------------------------------------------------------------------------

    @invariant()
    def every_reference_is_a_place_in_a_block_table_or_a_copy_under_way(self) -> None:
        if not hasattr(self, "engine"):
            return
        blocks, scheduler = self.engine._blocks, self.engine._scheduler
        references = [blocks.references(block) for block in range(self.kv_blocks)]
        held = [block for sequence in scheduler.running for block in sequence.block_table] + scheduler._copied
        assert references == [held.count(block) for block in range(self.kv_blocks)]
        assert blocks.free_blocks == references.count(0)
        assert blocks.published_blocks <= self.kv_blocks
        assert not any(sequence.block_table for sequence in scheduler.waiting)
        if self.in_flight is None:
            assert not scheduler._copied

    def teardown(self) -> None:
        if not hasattr(self, "engine"):
            return
        if self.in_flight is not None:
            self.step_ends()
        while self.engine.has_work:
            self.step()  # ends: the patience of each is bounded
        assert self.engine.free_kv_blocks == self.kv_blocks
        assert not self.live


SharedPrefixes.TestCase.settings = settings(max_examples=150, stateful_step_count=50, deadline=None)
test_every_order_of_events_gives_right_answers_within_the_stated_steps = SharedPrefixes.TestCase
