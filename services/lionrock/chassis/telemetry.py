"""Traces, metrics and logs of one process.

A process has one tracer provider and one meter provider (OpenTelemetry's API is made so); `start_telemetry` sets them, adds
exporters as configured, and `close` takes the exporters away again. Exporters that are not configured are not imported. Without a
collector there are no metric readers, and an instrument costs a method call.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING

from opentelemetry import metrics, trace
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import SpanLimits, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter
from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased

from lionrock.chassis import calls
from lionrock.chassis.logs import start_logs, stop_logs
from lionrock.chassis.settings import TelemetrySettings
from lionrock.chassis.spans import PayloadFreeExporter, SpanFileExporter

if TYPE_CHECKING:  # metrics cost memory, and most processes have no reader of them
    from opentelemetry.sdk.metrics.export import MetricReader

SCOPE = "lionrock"
# A trace is read within 300 ms of its end under `lionrock up`; a collector may wait longer.
FILE_DELAY_MS = 100
OTLP_DELAY_MS = 1000
QUEUE_SPANS = 4096
BATCH_SPANS = 512
EXPORT_TIMEOUT_MS = 5000
_TRACER = trace.get_tracer(SCOPE)
"""Made once: it looks for the provider at its first span, and each further one would cost as much as half a span."""


def tracer() -> trace.Tracer:
    """Return the tracer of the mesh; spans end nowhere until `start_telemetry`."""
    return _TRACER


def meter() -> metrics.Meter:
    """Return the meter of the mesh; measurements end nowhere until `start_telemetry` with a collector."""
    return metrics.get_meter(SCOPE)


def current_trace_id() -> str:
    """W3C trace id of the current span, 32 hexadecimal digits; empty without one."""
    span = trace.get_current_span().get_span_context()
    return f"{span.trace_id:032x}" if span.is_valid else ""


def set_request_id(request_id: str) -> None:
    """Make a request id part of the current span and of the log lines of this task and the tasks that it starts."""
    calls.bind_request_id(request_id)
    trace.get_current_span().set_attribute("lionrock.request_id", request_id)


def set_span_attributes(**attributes: str | int | float | bool) -> None:
    """Add attributes to the current span; underscores stand for dots in the names. Never text of a payload."""
    span = trace.get_current_span()
    for name, value in attributes.items():
        span.set_attribute(name.replace("_", "."), value)


class _Fan(SpanProcessor):
    """Hands spans to processors that come and go; the SDK's own provider can only add."""

    def __init__(self) -> None:
        self.processors: tuple[SpanProcessor, ...] = ()

    def on_end(self, span: trace.Span) -> None:  # type: ignore[override]
        for processor in self.processors:
            processor.on_end(span)  # type: ignore[arg-type]

    def force_flush(self, timeout_millis: int = 30000) -> bool:
        results = [processor.force_flush(timeout_millis) for processor in self.processors]
        return all(results)


@dataclass(slots=True)
class Telemetry:
    """What `start_telemetry` started."""

    _fan: _Fan
    _processors: tuple[SpanProcessor, ...]
    _log_handler: logging.Handler
    _meter_provider: object | None

    def flush(self, timeout_s: float = 5) -> bool:
        """Write what is held back; whether that was done in time."""
        results = [processor.force_flush(int(timeout_s * 1000)) for processor in self._processors]
        return all(results)

    def close(self) -> None:
        """Write what is held back and stop exporting."""
        self._fan.processors = tuple(known for known in self._fan.processors if known not in self._processors)
        for processor in self._processors:
            processor.shutdown()
        shutdown = getattr(self._meter_provider, "shutdown", None)
        if shutdown is not None:
            shutdown()
        stop_logs(self._log_handler)


class _Provider(TracerProvider):
    """The process's tracer provider, which remembers its fan."""

    def __init__(self, resource: Resource, sample_ratio: float) -> None:
        self.fan = _Fan()
        limits = SpanLimits(max_span_attributes=64, max_events=64, max_links=16, max_span_attribute_length=512)
        # Also where nothing is exported: the decision travels with the trace, and others may export their part of it.
        sampler = ParentBased(TraceIdRatioBased(sample_ratio))
        super().__init__(sampler=sampler, resource=resource, shutdown_on_exit=False, span_limits=limits)
        self.add_span_processor(self.fan)


def _provider_fan(resource: Resource, sample_ratio: float) -> _Fan:
    """Return the fan of the process's provider, which the first call makes. Raises RuntimeError if somebody else set one."""
    if not isinstance(trace.get_tracer_provider(), _Provider):
        trace.set_tracer_provider(_Provider(resource, sample_ratio))
    provider = trace.get_tracer_provider()
    if not isinstance(provider, _Provider):
        raise RuntimeError("another tracer provider is set in this process")
    return provider.fan


def _batched(exporter: SpanExporter, delay_ms: int) -> BatchSpanProcessor:
    return BatchSpanProcessor(
        PayloadFreeExporter(exporter),
        max_queue_size=QUEUE_SPANS,
        schedule_delay_millis=delay_ms,
        max_export_batch_size=BATCH_SPANS,
        export_timeout_millis=EXPORT_TIMEOUT_MS,
    )


def product_version() -> str | None:
    """Return the version of this product; None where it runs from a source tree that is not installed."""
    try:
        return version("lionrock")
    except PackageNotFoundError:
        return None


def _resource(name: str) -> Resource:
    attributes = {"service.name": name, "service.namespace": "lionrock", "service.instance.id": f"{name}-{os.getpid()}"}
    if (installed := product_version()) is not None:
        attributes["service.version"] = installed
    return Resource.create(attributes)


def start_telemetry(name: str, settings: TelemetrySettings, metric_readers: Sequence[MetricReader] = ()) -> Telemetry:
    """Start logs, traces and metrics of a service. Raises OSError if the span file cannot be made.

    metric_readers: whoever reads metrics beside the collector.
    In a process that already has telemetry (tests with several servers) the provider and its resource are those of the first call.
    """
    handler = start_logs(name, settings.log_level)
    resource = _resource(name)
    processors: list[SpanProcessor] = []
    if settings.span_dir is not None:
        file = SpanFileExporter(settings.span_dir / f"{name}-{os.getpid()}.jsonl", max_bytes=settings.span_file_max_bytes)
        processors.append(_batched(file, FILE_DELAY_MS))
    meter_provider: object | None = None
    if settings.otlp_endpoint is not None:
        from lionrock.chassis import otlp

        processors.append(_batched(otlp.span_exporter(settings.otlp_endpoint, settings.otlp_ca_file), OTLP_DELAY_MS))
        collector = otlp.metric_reader(settings.otlp_endpoint, settings.otlp_ca_file, interval_s=settings.metrics_interval_s)
        metric_readers = (*metric_readers, collector)
    if metric_readers:
        from opentelemetry.sdk.metrics import MeterProvider

        provider = MeterProvider(metric_readers=metric_readers, resource=resource, shutdown_on_exit=False)
        metrics.set_meter_provider(provider)
        meter_provider = provider
    fan = _provider_fan(resource, settings.sample_ratio)
    fan.processors = (*fan.processors, *processors)
    return Telemetry(fan, tuple(processors), handler, meter_provider)
