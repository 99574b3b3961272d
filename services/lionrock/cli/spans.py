"""Reads the span files of a mesh and arranges one trace as a tree.

A span file holds one OTLP/JSON `TracesData` a line (OpenTelemetry protocol 1.x, "JSON File Exporter"). Ids are hexadecimal, times
are nanoseconds since the epoch as strings. A file may be in the middle of being written: its last line counts only when it ends.
Knows the format and trees. Does not print.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_ERROR_STATUS = 2  # opentelemetry.proto.trace.v1.Status.STATUS_CODE_ERROR
_VALUE_KINDS = ("stringValue", "boolValue", "intValue", "doubleValue")


class SpanFileError(ValueError):
    """A line of a span file is not OTLP/JSON."""


@dataclass(frozen=True, slots=True)
class Span:
    """One span. Times in nanoseconds since the epoch."""

    trace_id: str
    span_id: str
    parent_id: str | None
    service: str
    name: str
    start_ns: int
    end_ns: int
    failed: bool
    attributes: Mapping[str, str | bool | int | float]

    @property
    def duration_ns(self) -> int:
        """Never negative: clocks of two processes may differ, those of one span do not."""
        return max(0, self.end_ns - self.start_ns)


@dataclass(frozen=True, slots=True)
class Node:
    """A span with those that it caused, by start time. `parent_missing`: the span names a parent that no file holds."""

    span: Span
    children: tuple[Node, ...]
    parent_missing: bool = False


def _attributes(entries: Iterable[Mapping[str, Any]]) -> dict[str, str | bool | int | float]:
    values: dict[str, str | bool | int | float] = {}
    for entry in entries:
        for kind in _VALUE_KINDS:
            if kind in entry["value"]:
                value = entry["value"][kind]
                values[entry["key"]] = int(value) if kind == "intValue" else value
    return values


def parse_line(line: str) -> Iterator[Span]:
    """Yield the spans of one line. Raises SpanFileError."""
    try:
        for resource_spans in json.loads(line)["resourceSpans"]:
            service = str(_attributes(resource_spans.get("resource", {}).get("attributes", ())).get("service.name", "?"))
            for scope_spans in resource_spans.get("scopeSpans", ()):
                for span in scope_spans.get("spans", ()):
                    yield Span(
                        trace_id=span["traceId"].lower(),
                        span_id=span["spanId"].lower(),
                        parent_id=span.get("parentSpanId", "").lower() or None,
                        service=service,
                        name=span["name"],
                        start_ns=int(span["startTimeUnixNano"]),
                        end_ns=int(span["endTimeUnixNano"]),
                        failed=span.get("status", {}).get("code") in (_ERROR_STATUS, "STATUS_CODE_ERROR"),
                        attributes=_attributes(span.get("attributes", ())),
                    )
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise SpanFileError("not a line of OTLP/JSON") from error


def read_trace(directory: Path, wanted: str) -> list[Span]:
    """All spans of one trace. `wanted` is a trace id or the value of any span's attribute, such as a request id.

    Returns no spans when nothing is found. Raises SpanFileError naming file and line.
    """
    wanted = wanted.strip().lower()
    files = sorted(directory.glob("*.jsonl*"))
    trace_ids = {wanted}
    spans: dict[str, Span] = {}
    # Lines that cannot belong are not parsed: a long run leaves many. A request id leads to its trace in a first pass.
    for line in _lines(files, trace_ids):
        trace_ids |= {span.trace_id for span in line if wanted in (span.trace_id, *map(str, span.attributes.values()))}
    for line in _lines(files, trace_ids):
        spans |= {span.span_id: span for span in line if span.trace_id in trace_ids}
    return sorted(spans.values(), key=lambda span: (span.start_ns, span.span_id))


def _lines(files: Sequence[Path], needles: Iterable[str]) -> Iterator[list[Span]]:
    needles = tuple(needles)
    for path in files:
        with path.open(encoding="utf-8", errors="replace") as file:
            for number, line in enumerate(file, start=1):
                if not line.endswith("\n") or not any(needle in line.lower() for needle in needles):
                    continue
                try:
                    yield list(parse_line(line))
                except SpanFileError as error:
                    raise SpanFileError(f"{path}, line {number}: {error}") from error


def tree(spans: Sequence[Span]) -> list[Node]:
    """Return the roots of a trace, by start. A span whose parent is unknown is a root. Every span appears once."""
    by_id = {span.span_id: span for span in spans}
    children: dict[str | None, list[Span]] = {}
    for span in sorted(by_id.values(), key=lambda span: (span.start_ns, span.span_id)):
        parent = span.parent_id if span.parent_id in by_id and span.parent_id != span.span_id else None
        children.setdefault(parent, []).append(span)
    placed: set[str] = set()

    def node(span: Span) -> Node:
        placed.add(span.span_id)
        below = tuple(node(child) for child in children.get(span.span_id, ()) if child.span_id not in placed)
        return Node(span, below, parent_missing=span.parent_id is not None and span.parent_id not in by_id)

    roots = [node(span) for span in children.get(None, ())]
    # Spans left now hang on a circle of parents, which only a broken writer makes: show them instead of losing them.
    roots += [node(span) for span in by_id.values() if span.span_id not in placed]
    return roots
