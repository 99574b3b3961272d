"""Spans as OTLP/JSON, one `ExportTraceServiceRequest` a line, in a file of bounded size.

Knows the span model of the OpenTelemetry SDK and the JSON encoding of OTLP (ids in hex, 64-bit integers as strings, enums as
numbers: opentelemetry.io/docs/specs/otlp, "JSON Protobuf Encoding"). The encoder writes JSON directly, because building protobuf
messages and converting them costs several times as much of a core that also serves; a test compares the two. Every exporter is
wrapped in `PayloadFreeExporter`: OpenTelemetry copies exception texts into spans by default.
"""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import Event, ReadableSpan
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult
from opentelemetry.trace import Status

_TEXT_OF_EXCEPTIONS = frozenset({"exception.message", "exception.stacktrace"})
_NOT_FINITE = {"inf": "Infinity", "-inf": "-Infinity", "nan": "NaN"}
_HAS_IS_REMOTE, _IS_REMOTE = 0x100, 0x200


def _value(value: Any) -> dict[str, Any]:
    match value:
        case bool():
            return {"boolValue": value}
        case int():
            return {"intValue": str(value)}
        case float():
            return {"doubleValue": value if math.isfinite(value) else _NOT_FINITE[str(value)]}
        case str():
            return {"stringValue": value}
        case bytes():
            return {"bytesValue": base64.b64encode(value).decode()}
        case Mapping():
            return {"kvlistValue": {"values": _attributes(value)}}
        case Sequence():
            return {"arrayValue": {"values": [_value(item) for item in value]}}
    return {}


def _attributes(attributes: Mapping[str, Any] | None) -> list[dict[str, Any]]:
    return [{"key": key, "value": _value(value)} for key, value in (attributes or {}).items()]


def _span(span: ReadableSpan) -> dict[str, Any]:
    context = span.context
    assert context is not None, "an ended span has a context"
    flags = int(context.trace_flags) | _HAS_IS_REMOTE | (_IS_REMOTE if span.parent is not None and span.parent.is_remote else 0)
    encoded: dict[str, Any] = {
        "traceId": format(context.trace_id, "032x"),
        "spanId": format(context.span_id, "016x"),
        "name": span.name,
        "kind": span.kind.value + 1,
        "startTimeUnixNano": str(span.start_time),
        "endTimeUnixNano": str(span.end_time),
        "flags": flags,
        "status": {"code": span.status.status_code.value} if span.status.status_code.value else {},
    }
    if span.parent is not None:
        encoded["parentSpanId"] = format(span.parent.span_id, "016x")
    if context.trace_state:
        encoded["traceState"] = context.trace_state.to_header()
    if span.attributes:
        encoded["attributes"] = _attributes(span.attributes)
    if span.events:
        encoded["events"] = [
            {"timeUnixNano": str(event.timestamp), "name": event.name, "attributes": _attributes(event.attributes)}
            for event in span.events
        ]
    if span.links:
        encoded["links"] = [
            {
                "traceId": format(link.context.trace_id, "032x"),
                "spanId": format(link.context.span_id, "016x"),
                "attributes": _attributes(link.attributes),
            }
            for link in span.links
        ]
    return encoded


def encode_line(spans: Sequence[ReadableSpan]) -> str:
    """Encode spans as one line of OTLP/JSON, without its end. Spans of one resource and scope stand together."""
    groups: dict[Resource, dict[tuple[str, str], list[dict[str, Any]]]] = {}
    for span in spans:
        scope = span.instrumentation_scope
        key = (scope.name, scope.version or "") if scope is not None else ("", "")
        groups.setdefault(span.resource, {}).setdefault(key, []).append(_span(span))
    request = {
        "resourceSpans": [
            {
                "resource": {"attributes": _attributes(resource.attributes)},
                "scopeSpans": [
                    {"scope": {"name": name, "version": version} if version else {"name": name}, "spans": encoded}
                    for (name, version), encoded in scopes.items()
                ],
            }
            for resource, scopes in groups.items()
        ]
    }
    return json.dumps(request, separators=(",", ":"))


class SpanFileExporter(SpanExporter):
    """Appends lines to a file; one that reaches max_bytes becomes `<name>.1`, replacing the one before, and a new one begins."""

    def __init__(self, path: Path, *, max_bytes: int) -> None:
        """Create the directory and the file. Raises OSError."""
        path.parent.mkdir(parents=True, exist_ok=True)
        self._path = path
        self._max_bytes = max_bytes
        self._file = path.open("ab", buffering=0)

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Write one line with a single system call, so that a reader never sees half of it under a lock-free tail."""
        line = encode_line(spans).encode() + b"\n"
        try:
            if self._file.tell() + len(line) > self._max_bytes and self._file.tell():
                self._file.close()
                self._path.replace(self._path.with_name(self._path.name + ".1"))
                self._file = self._path.open("ab", buffering=0)
            self._file.write(line)
        except (OSError, ValueError):
            return SpanExportResult.FAILURE
        return SpanExportResult.SUCCESS

    def shutdown(self) -> None:
        """Close the file."""
        self._file.close()

    def force_flush(self, timeout_millis: int = 30000) -> bool:
        """Nothing is held back here."""
        del timeout_millis
        return True


def without_texts(span: ReadableSpan) -> ReadableSpan:
    """Return a span without exception texts and without a status description; the span itself if it has none."""
    dirty = bool(span.status.description) or any(_TEXT_OF_EXCEPTIONS & (event.attributes or {}).keys() for event in span.events)
    if not dirty:
        return span
    events = [
        Event(event.name, {k: v for k, v in (event.attributes or {}).items() if k not in _TEXT_OF_EXCEPTIONS}, event.timestamp)
        for event in span.events
    ]
    return ReadableSpan(
        name=span.name,
        context=span.context,
        parent=span.parent,
        resource=span.resource,
        attributes=span.attributes,
        events=events,
        links=span.links,
        kind=span.kind,
        status=Status(span.status.status_code),
        start_time=span.start_time,
        end_time=span.end_time,
        instrumentation_scope=span.instrumentation_scope,
    )


class PayloadFreeExporter(SpanExporter):
    """Strips exception texts from spans before another exporter gets them."""

    def __init__(self, exporter: SpanExporter) -> None:
        self._exporter = exporter

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Export the stripped spans."""
        return self._exporter.export([without_texts(span) for span in spans])

    def shutdown(self) -> None:
        """Shut the other exporter down."""
        self._exporter.shutdown()

    def force_flush(self, timeout_millis: int = 30000) -> bool:
        """Flush the other exporter."""
        return self._exporter.force_flush(timeout_millis)
