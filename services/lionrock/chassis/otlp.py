"""OTLP over gRPC to a collector. Imported only when one is configured: the exporters cost memory."""

from __future__ import annotations

from pathlib import Path

import grpc
from opentelemetry.exporter.otlp.proto.grpc.metric_exporter import OTLPMetricExporter
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader

TIMEOUT_S = 5


def _credentials(endpoint: str, ca_file: Path | None) -> grpc.ChannelCredentials | None:
    """Credentials for an https endpoint; None for http, which the exporter then sends in clear text."""
    if endpoint.startswith("http://"):
        return None
    return grpc.ssl_channel_credentials(None if ca_file is None else ca_file.read_bytes())


def span_exporter(endpoint: str, ca_file: Path | None) -> OTLPSpanExporter:
    """Make the exporter of spans."""
    return OTLPSpanExporter(
        endpoint, insecure=endpoint.startswith("http://"), credentials=_credentials(endpoint, ca_file), timeout=TIMEOUT_S
    )


def metric_reader(endpoint: str, ca_file: Path | None, *, interval_s: float) -> PeriodicExportingMetricReader:
    """Make the reader that exports metrics at an interval."""
    exporter = OTLPMetricExporter(
        endpoint, insecure=endpoint.startswith("http://"), credentials=_credentials(endpoint, ca_file), timeout=TIMEOUT_S
    )
    return PeriodicExportingMetricReader(exporter, export_interval_millis=interval_s * 1000, export_timeout_millis=TIMEOUT_S * 1000)
