"""Metrics for Prometheus to fetch: a registry of this process, what OpenTelemetry's instruments write to it, and the process's own.

Imported only where a port for them is set.
"""

from __future__ import annotations

import prometheus_client
from opentelemetry.exporter.prometheus import PrometheusMetricReader
from prometheus_client import CollectorRegistry, GCCollector, PlatformCollector, ProcessCollector


class PrometheusMetrics:
    """What one scrape reads. `reader` goes to `start_telemetry`."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        for collector in (ProcessCollector, PlatformCollector, GCCollector):
            collector(registry=self._registry)
        self.reader = PrometheusMetricReader(registry=self._registry)

    def text(self) -> bytes:
        """Return all metrics in Prometheus' text format."""
        return prometheus_client.generate_latest(self._registry)
