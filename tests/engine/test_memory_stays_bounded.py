"""Ten thousand requests through one engine leave nothing behind but the cache, which has its size."""

import gc
import itertools
import tracemalloc

from paged_history import PagedHistory

from lionrock.inference.engine.batch import StepBatch, StepResult
from lionrock.inference.engine.engine import Engine, EngineLimits
from lionrock.inference.engine.errors import EngineFull
from lionrock.inference.engine.sequence import Request, RequestId, Sampling

BLOCKS = 64


class Scripted:
    """Implements ModelRunner: tokens by position, nothing remembered."""

    def __init__(self) -> None:
        self.spec = PagedHistory(kv_blocks=BLOCKS, kv_block_size=4, context_window=64).spec

    def execute(self, batch: StepBatch) -> StepResult:
        return StepResult(tuple(1 + (row.end + n) % 900 for row in batch.rows for n in range(row.samples)))

    def close(self) -> None:
        """Nothing to release."""


def serve(engine: Engine, numbers: range) -> None:
    """Requests of three tenants with common prefixes; some are aborted, some preempt others, many share."""
    for number in numbers:
        prompt = tuple(range(1, 2 + number % 19)) + (number % 7 + 1,) * (number % 11)
        sampling = Sampling(max_tokens=1 + number % 3)
        salt = b"abc"[number % 3 : number % 3 + 1] if number % 10 else b""
        item = Request(RequestId(f"request-{number}"), prompt, sampling, priority=number % 13 == 0, cache_salt=salt)
        while True:
            try:
                engine.add(item)
                break
            except EngineFull:
                engine.step()
        if number % 17 == 0:
            engine.abort(item.request_id)
    while engine.has_work:
        engine.step()


def sizes(engine: Engine) -> dict[str, int]:
    """Entries of every container that the engine, its scheduler and its blocks own."""
    parts = {name: part for name, part in vars(engine).items() if type(part).__module__.startswith("lionrock.inference.engine.")}
    return {
        f"{name.strip('_')}.{attribute}": len(value)
        for name, owner in {"engine": engine, **parts}.items()
        for attribute, value in getattr(owner, "__dict__", {}).items()
        if hasattr(value, "__len__")
    }


def test_ten_thousand_requests_leave_nothing_behind() -> None:
    ticks = itertools.count()
    limits = EngineLimits(max_running=16, max_waiting=16, max_step_tokens=128)
    engine = Engine(Scripted(), limits, clock=lambda: float(next(ticks)))  # nothing depends on how fast this machine is
    serve(engine, range(5000))
    assert engine.free_kv_blocks == BLOCKS
    before = sizes(engine)
    gc.collect()
    tracemalloc.start()
    try:
        serve(engine, range(5000, 10_000))
        gc.collect()
        allocated, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    after = sizes(engine)
    # The cache has turned over: at most every block has a new hash. Sixteen bytes kept of each request would be 80,000.
    assert allocated < 60_000
    bookkeeping = {name: after[name] for name in ("blocks._by_hash", "blocks._hashes", "blocks._free", "blocks._cached")}
    assert bookkeeping["blocks._by_hash"] == bookkeeping["blocks._hashes"] == bookkeeping["blocks._cached"] <= BLOCKS
    assert bookkeeping["blocks._free"] + bookkeeping["blocks._cached"] == engine.free_kv_blocks == BLOCKS
    assert after.pop("engine._released") <= 16, "those that ended in the last step"
    assert not {name: size for name, size in after.items() if name not in bookkeeping and size > before[name]}


def test_requests_that_never_ran_are_not_named_to_the_runner() -> None:
    engine = Engine(Scripted())
    for number in range(1000):
        item = Request(RequestId(str(number)), (1, 2, 3))
        engine.add(item)
        engine.abort(item.request_id)
    assert sizes(engine)["engine._released"] == 0
    assert not engine.has_work
