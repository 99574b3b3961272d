"""An OTLP collector that keeps spans as the services' own span files do, so that `lionrock trace` shows a trace of the cluster."""

from __future__ import annotations

import base64
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Lock
from typing import Any

import grpc
from google.protobuf.json_format import MessageToDict
from opentelemetry.proto.collector.metrics.v1 import metrics_service_pb2, metrics_service_pb2_grpc
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc

_IDS = ("traceId", "spanId", "parentSpanId")


class Collector(trace_service_pb2_grpc.TraceServiceServicer, metrics_service_pb2_grpc.MetricsServiceServicer):
    """Writes what comes in to one file. Metrics are taken and dropped."""

    def __init__(self, address: str, file: Path) -> None:
        """Listen on `address`, host:port, in clear text."""
        file.parent.mkdir(parents=True, exist_ok=True)
        self._file = file
        self._lock = Lock()
        self._server = grpc.server(ThreadPoolExecutor(2), maximum_concurrent_rpcs=32)
        trace_service_pb2_grpc.add_TraceServiceServicer_to_server(self, self._server)
        metrics_service_pb2_grpc.add_MetricsServiceServicer_to_server(self, self._server)
        self._server.add_insecure_port(address)
        self._server.start()

    def Export(self, request: Any, context: grpc.ServicerContext) -> Any:
        """Take spans or metrics; both services call their only method so."""
        del context
        if isinstance(request, metrics_service_pb2.ExportMetricsServiceRequest):
            return metrics_service_pb2.ExportMetricsServiceResponse()
        document = MessageToDict(request)
        for resource in document.get("resourceSpans", ()):
            for scope in resource.get("scopeSpans", ()):
                for span in scope.get("spans", ()):
                    # OTLP/JSON writes ids in hexadecimal, where JSON of Protocol Buffers has Base64.
                    span.update({key: base64.b64decode(span[key]).hex() for key in _IDS if key in span})
        with self._lock, self._file.open("a") as file:
            file.write(json.dumps(document) + "\n")
        return trace_service_pb2.ExportTraceServiceResponse()

    def stop(self) -> None:
        """Take no more."""
        self._server.stop(grace=1).wait()
