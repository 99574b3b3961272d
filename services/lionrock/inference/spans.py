"""Spans of one sequence, made after the fact: queue, prefill and decode in the engine, and one span on every rank.

Times are measured where the work is done and spans are made when a sequence ends, so that a step pays nothing for them. Attributes
are counts, names and durations; never token ids.
"""

from __future__ import annotations

import struct
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.trace import Span, SpanKind, Status, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from lionrock.chassis.telemetry import tracer
from lionrock.inference.engine.sequence import Timings

if TYPE_CHECKING:
    from lionrock.inference.model.worker import ShardTimings

# Sequence id and traceparent (55 ASCII characters) of a traced sequence that has ended.
ENDED: Final = struct.Struct("<q55s")

_PROPAGATOR = TraceContextTextMapPropagator()
_NS = 1_000_000_000


def current_traceparent() -> str | None:
    """W3C traceparent of the current span, None outside of a trace."""
    carrier: dict[str, str] = {}
    _PROPAGATOR.inject(carrier)
    return carrier.get("traceparent")


def _context(traceparent: str | None) -> Context:
    return _PROPAGATOR.extract({} if traceparent is None else {"traceparent": traceparent})


@dataclass(slots=True)
class SequenceSpan:
    """The span `engine.sequence` while it runs."""

    span: Span
    started_ns: int

    @property
    def traceparent(self) -> str | None:
        """Context for what ranks report; None when the trace is not recorded."""
        if not self.span.is_recording():
            return None
        carrier: dict[str, str] = {}
        _PROPAGATOR.inject(carrier, trace.set_span_in_context(self.span))
        return carrier.get("traceparent")

    def finish(self, timings: Timings, reason: str) -> None:
        """End the span with its parts as children."""
        if not self.span.is_recording():
            return
        queue_ns = self.started_ns + int(timings.queue_s * _NS)
        first_ns = None if timings.first_token_s is None else self.started_ns + int(timings.first_token_s * _NS)
        end_ns = self.started_ns + int(timings.total_s * _NS)
        self._part("engine.queue", self.started_ns, queue_ns)
        self._part("engine.prefill", queue_ns, end_ns if first_ns is None else first_ns)
        if first_ns is not None and end_ns > first_ns:
            self._part("engine.decode", first_ns, end_ns)
        self.span.set_attributes(
            {
                "gen_ai.usage.input_tokens": timings.prompt_tokens,
                "gen_ai.usage.output_tokens": timings.completion_tokens,
                "gen_ai.response.finish_reasons": (reason,),
                "lionrock.cached_prompt_tokens": timings.cached_prompt_tokens,
                "lionrock.preemptions": timings.preemptions,
                "lionrock.resumptions": timings.resumptions,
            }
        )
        self.span.end(end_ns)

    def fail(self, reason: str) -> None:
        """End the span of a sequence that got no answer."""
        self.span.set_status(Status(StatusCode.ERROR))
        self.span.set_attribute("error.type", reason)
        self.span.end()

    def _part(self, name: str, start_ns: int, end_ns: int) -> None:
        tracer().start_span(name, trace.set_span_in_context(self.span), start_time=start_ns).end(end_ns)


def start_sequence_span(traceparent: str | None, model: str, replica: str) -> SequenceSpan:
    """Begin `engine.sequence` under the front's span; recorded only when that one is."""
    now_ns = time.time_ns()
    attributes = {"gen_ai.request.model": model, "lionrock.replica": replica}
    span = tracer().start_span(
        "engine.sequence", _context(traceparent), kind=SpanKind.INTERNAL, attributes=attributes, start_time=now_ns
    )
    return SequenceSpan(span, now_ns)


def emit_shard_span(timings: ShardTimings, traceparent: str, rank: int, chip: str) -> None:
    """Make `shard.execute` of one sequence on one rank, with the times of its first and last step there."""
    span = tracer().start_span(
        "shard.execute",
        _context(traceparent),
        start_time=int(timings.started_unix_s * _NS),
        attributes={
            "lionrock.shard.rank": rank,
            "lionrock.shard.chip": chip,
            "lionrock.shard.prefill_ms": timings.prefill_s * 1e3,
            "lionrock.shard.decode_ms": timings.decode_s * 1e3,
            "lionrock.shard.collective_ms": timings.collective_s * 1e3,
            "lionrock.shard.steps": timings.prefill_steps + timings.decode_steps,
        },
    )
    span.end(int(timings.ended_unix_s * _NS))
