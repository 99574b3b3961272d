"""Reading span files and building trees."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lionrock.cli.spans import Node, Span, SpanFileError, parse_line, read_trace, tree

TRACE = "0af7651916cd43dd8448eb211c80319c"


def line(service: str, span_id: str, parent: str = "", *, trace: str = TRACE, **attributes: object) -> str:
    span = {
        "traceId": trace,
        "spanId": span_id,
        "parentSpanId": parent,
        "name": f"work {span_id}",
        "startTimeUnixNano": "1000000",
        "endTimeUnixNano": "3000000",
        "attributes": [{"key": key, "value": {"stringValue": value}} for key, value in attributes.items()]
        + [{"key": "n", "value": {"intValue": "7"}}],
        "status": {"code": 2},
    }
    resource = {"attributes": [{"key": "service.name", "value": {"stringValue": service}}]}
    return json.dumps({"resourceSpans": [{"resource": resource, "scopeSpans": [{"spans": [span]}]}]}) + "\n"


def test_line_of_otlp_json_is_read_with_its_types() -> None:
    (span,) = parse_line(line("gateway", "00000000000000a1", request_id="r"))
    assert span == Span(
        TRACE, "00000000000000a1", None, "gateway", "work 00000000000000a1", 1000000, 3000000, True, {"request_id": "r", "n": 7}
    )


def test_request_id_finds_the_spans_of_every_service(tmp_path: Path) -> None:
    (tmp_path / "gateway-1.jsonl").write_text(line("gateway", "a1", request_id="0190-x") + line("gateway", "ff", trace="e" * 32))
    (tmp_path / "inference-2.jsonl").write_text(line("inference", "b2", "a1"))
    for wanted in ("0190-x", TRACE, TRACE.upper()):
        assert [(span.service, span.span_id) for span in read_trace(tmp_path, wanted)] == [("gateway", "a1"), ("inference", "b2")]
    assert read_trace(tmp_path, "0190-y") == []


def test_line_that_is_still_being_written_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(line("gateway", "a1") + line("gateway", "a2")[:-20])
    assert [span.span_id for span in read_trace(tmp_path, TRACE)] == ["a1"]


def test_broken_line_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(line("gateway", "a1") + f"{TRACE} what\n")
    with pytest.raises(SpanFileError, match=r"a\.jsonl, line 2"):
        read_trace(tmp_path, TRACE)


def walk(nodes: list[Node]) -> Iterator[Span]:
    for node in nodes:
        yield node.span
        yield from walk(list(node.children))


def span(number: int, parent: int | None) -> Span:
    return Span(TRACE, str(number), None if parent is None else str(parent), "s", "n", number, number + 1, False, {})


def test_children_hang_below_their_parents_by_start() -> None:
    (root,) = tree([span(3, 1), span(1, None), span(2, 1), span(4, 2)])
    assert [child.span.span_id for child in root.children] == ["2", "3"]
    assert root.children[0].children[0].span.span_id == "4"


def test_span_whose_parent_is_unknown_is_a_root_that_says_so() -> None:
    (root,) = tree([span(3, 99)])
    assert root.parent_missing


@given(st.lists(st.tuples(st.integers(0, 9), st.none() | st.integers(0, 9)), unique_by=lambda pair: pair[0]))
def test_every_span_appears_once_whatever_the_parents_claim(pairs: list[tuple[int, int | None]]) -> None:
    spans = [span(*pair) for pair in pairs]
    assert sorted(found.span_id for found in walk(tree(spans))) == sorted(found.span_id for found in spans)


@given(
    st.text()
    | st.recursive(st.none() | st.integers() | st.text(), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner)).map(
        json.dumps
    )
)
def test_hostile_lines_are_refused_by_name(text: str) -> None:
    try:
        list(parse_line(text))
    except SpanFileError:
        return
    assert json.loads(text)["resourceSpans"] in ([], {}, "")
