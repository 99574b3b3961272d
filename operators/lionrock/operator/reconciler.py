"""The loop: take a key, decide, write; until nothing is left to write.

One thread decides, so that no two decisions see the same free chips; the writes of different keys are made by a few threads, those
of one key in order. Chips that a decision keeps are assumed until the API server has them. A failure makes the key come again after
a growing delay, or after the time that the server asked for. Only the leader takes keys; who comes to lead looks at all of them.
"""

from __future__ import annotations

import datetime as dt
import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Final

from opentelemetry import trace

from lionrock.operator.actions import Decision, Key, Kind, model_key
from lionrock.operator.api_errors import ApiError, Conflict, NotFound, Refused
from lionrock.operator.effects import Effects, NotLeading, Progress, is_uncertain
from lionrock.operator.observation import Observation, uid_of
from lionrock.operator.resources import ObjectKey, parse_model_status
from lionrock.operator.telemetry import OperatorMetrics, continued
from lionrock.operator.work_queue import ShutDown, WorkQueue
from lionrock.operator.world import World

log = logging.getLogger("lionrock.operator")

Decide = Callable[[World, Key, dt.datetime], Decision]

TICK_S: Final = 1.0
AFTER_FAILURE_S: Final = 1.0
STANDSTILL_S: Final = 60.0


def _wall_clock() -> dt.datetime:
    return dt.datetime.now(dt.UTC)


class Reconciler:
    """Works keys off for as long as `may_act` says so."""

    def __init__(
        self,
        observation: Observation,
        queue: WorkQueue[Key],
        effects: Effects,
        decide: Decide,
        may_act: Callable[[], bool],
        tracer: trace.Tracer,
        measured: OperatorMetrics,
        *,
        writers: int = 4,
        resync_s: float = 600.0,
        clock: Callable[[], float] = time.monotonic,
        wall_clock: Callable[[], dt.datetime] = _wall_clock,
    ) -> None:
        self._observation = observation
        self._queue = queue
        self._effects = effects
        self._decide = decide
        self._may_act = may_act
        self._tracer = tracer
        self._metrics = measured
        self._resync_s = resync_s
        self._clock = clock
        self._wall_clock = wall_clock
        self._writers = ThreadPoolExecutor(writers, thread_name_prefix="writer")
        self._free_writers = threading.Semaphore(2 * writers)
        self._uncertain: set[Key] = set()
        self._next_resync = 0.0
        self._ticked_at = clock()
        self._thread = threading.Thread(target=self._run, name="reconciler", daemon=True)

    def start(self) -> None:
        """Begin to work."""
        self._thread.start()

    def look_at_everything(self) -> None:
        """Look at every key, as after a hand-over."""
        self._next_resync = self._clock() + self._resync_s
        for key in self._observation.all_keys():
            self._queue.add(key)

    def stop(self, drain_s: float) -> bool:
        """Take no more keys and finish the writes that were begun. Returns whether all ended in time."""
        drained = self._queue.shut_down(drain_s)
        self._writers.shutdown(wait=drained, cancel_futures=True)
        self._thread.join(drain_s if drained else 0)
        return drained

    @property
    def is_alive(self) -> bool:
        """Whether the loop goes round."""
        return self._thread.is_alive() and self._clock() - self._ticked_at < STANDSTILL_S

    def _run(self) -> None:
        while True:
            self._ticked_at = self._clock()
            try:
                key = self._queue.take(TICK_S)
            except ShutDown:
                return
            if key is not None:
                self._work(key)
            if self._may_act() and (self._queue.take_overflow() or self._clock() >= self._next_resync):
                self.look_at_everything()

    def _work(self, key: Key) -> None:
        if not self._may_act():
            self._queue.succeed(key)  # whoever leads next looks at every key
            return
        begun = self._clock()
        span = self._tracer.start_span(
            "reconcile", attributes={"lionrock.kind": str(key.kind), "lionrock.namespace": key.namespace, "lionrock.name": key.name}
        )
        try:
            if key in self._uncertain:
                self._settle(key)
            decision, uid = self._decided(key)
        except ApiError as error:
            self._failed(key, error, begun, span)
            span.end()
            return
        except Exception:
            log.exception("%s could not be decided", key)
            self._ended(key, "undecided", begun, span)
            self._queue.fail(key)
            span.end()
            return
        if decision.quiet and not decision.events:
            self._ended(key, "quiet", begun, span)
            self._queue.succeed(key, again_after_s=decision.requeue_after_s)
            span.end()
            return
        while not self._free_writers.acquire(timeout=TICK_S):
            self._ticked_at = self._clock()  # the API server is slow, the loop is not dead
        self._writers.submit(self._write, key, uid, decision, begun, span)

    def _decided(self, key: Key) -> tuple[Decision, str | None]:
        with self._observation.world() as world:
            begun = time.perf_counter()
            decision = self._decide(world, key, self._wall_clock())
            self._metrics.decided(key, time.perf_counter() - begun)
            uid = uid_of(world, key)
            if key.kind is Kind.MODEL and decision.status is not None:
                placement = parse_model_status(decision.status).placement
                if placement is not None:
                    self._observation.touch(world.assume(_model(key), placement))
            return decision, uid

    def _write(self, key: Key, uid: str | None, decision: Decision, begun: float, span: trace.Span) -> None:
        try:
            with continued(span):
                self._write_in_order(key, uid, decision, begun, span)
        finally:
            self._free_writers.release()

    def _write_in_order(self, key: Key, uid: str | None, decision: Decision, begun: float, span: trace.Span) -> None:
        progress = Progress()
        try:
            if decision.status is not None and uid is not None:
                self._write_status(key, uid, decision, progress)
            self._effects.carry_out(decision, progress)
        except NotLeading:
            self._ended(key, "not leading", begun, span)
            self._queue.fail(key)
        except ApiError as error:
            if progress.writes:  # it gets on, if not without trouble
                self._queue.forget(key)
            self._failed(key, error, begun, span)
        except Exception:
            log.exception("%s could not be written", key)
            self._ended(key, "unwritten", begun, span)
            self._queue.fail(key)
        else:
            self._ended(key, "written", begun, span)
            self._queue.succeed(key, again_after_s=decision.requeue_after_s)

    def _write_status(self, key: Key, uid: str, decision: Decision, progress: Progress) -> None:
        assert decision.status is not None, "asked by the caller"
        try:
            self._effects.write_status(key, uid, decision.status, progress)
        except ApiError as error:
            if is_uncertain(error):
                self._uncertain.add(key)  # the chips stay assumed until the object has been read
            else:
                self._withdraw(key, after_s=AFTER_FAILURE_S)
            raise
        except NotLeading:
            self._withdraw(key, after_s=AFTER_FAILURE_S)
            raise
        self._withdraw(key)

    def _settle(self, key: Key) -> None:
        """Find out what became of a status whose write had no answer. Raises ApiError."""
        self._effects.refresh(key)
        self._uncertain.discard(key)
        self._withdraw(key)

    def _withdraw(self, key: Key, *, after_s: float = 0.0) -> None:
        """Give up what was assumed. after_s: when to look at those who might use it: failures must not chase each other."""
        if key.kind is Kind.MODEL:
            with self._observation.world() as world:
                touched = world.withdraw(_model(key))
            if after_s:
                for other in touched.models:
                    self._queue.add_after(model_key(*other), after_s)
            else:
                self._observation.touch(touched)

    def _failed(self, key: Key, error: ApiError, begun: float, span: trace.Span) -> None:
        self._ended(key, type(error).__name__, begun, span)
        delay_s = self._queue.fail(key, at_least_s=error.retry_after_s or 0.0)
        level = logging.INFO if isinstance(error, Conflict | NotFound) else logging.WARNING
        if isinstance(error, Refused):
            level = logging.ERROR
        log.log(level, "%s: %s; again in %.2f s", key, error, delay_s)

    def _ended(self, key: Key, outcome: str, begun: float, span: trace.Span) -> None:
        span.set_attribute("lionrock.outcome", outcome)
        self._metrics.reconciled(key, outcome, self._clock() - begun)


def _model(key: Key) -> ObjectKey:
    return ObjectKey(key.namespace, key.name)
