"""`lionrock trace`: one request as a tree of spans, with durations and where they lie in the whole.

Prints what `lionrock.cli.spans` found. Many like spans below one parent become one line with their number, sum and longest.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path

from rich.console import Console
from rich.text import Text

from lionrock.cli.errors import CommandError
from lionrock.cli.spans import Node, Span, SpanFileError, read_trace, tree
from lionrock.cli.state import StateDir

_BAR_CELLS = 24
_FOLD_OVER = 4
_PACKAGE = re.compile(r"^(?:[a-z][a-z0-9_]*\.)+(?=[A-Z]\w*/)")
_SHOWN_ATTRIBUTES = ("lionrock.shard.rank", "lionrock.shard.chip")


def run(wanted: str, state_dir: Path | None, *, as_json: bool) -> int:
    """Find and print. Returns the exit status."""
    state = StateDir.at(state_dir)
    spans = load(state, wanted)
    if as_json:
        print_json(spans)
    else:
        print_tree(spans)
    return 0


def load(state: StateDir, wanted: str) -> list[Span]:
    """Spans of a trace or request. Raises CommandError when there are none."""
    try:
        spans = read_trace(state.traces, wanted)
    except (SpanFileError, OSError) as error:
        raise CommandError(
            f"the spans cannot be read: {error}", fix="move the named file away, or give another --state-dir"
        ) from error
    if not spans:
        raise CommandError(
            f"no span in {state.traces} belongs to {wanted}",
            fix="give the trace or request id that `lionrock chat` prints; spans are written a second or two after a request",
        )
    return spans


def print_json(spans: Sequence[Span]) -> None:
    """One object a span, parents before children. Durations in milliseconds."""
    origin = min(span.start_ns for span in spans)

    def walk(nodes: Sequence[Node], depth: int) -> None:
        for node in nodes:
            span = node.span
            fields = {
                "trace_id": span.trace_id,
                "span_id": span.span_id,
                "parent_span_id": span.parent_id,
                "depth": depth,
                "service": span.service,
                "name": span.name,
                "start_ms": (span.start_ns - origin) / 1e6,
                "duration_ms": span.duration_ns / 1e6,
                "failed": span.failed,
                "attributes": dict(span.attributes),
            }
            print(json.dumps(fields, ensure_ascii=False))
            walk(node.children, depth + 1)

    walk(tree(spans), 0)


def render(spans: Sequence[Span]) -> list[Text]:
    """Draw the tree for a terminal, a line a span: duration, place in the whole, service and name."""
    begin = min(span.start_ns for span in spans)
    whole_ns = max(1, max(span.end_ns for span in spans) - begin)
    services = len({span.service for span in spans})
    lines = [Text(f"trace {spans[0].trace_id}: {len(spans)} spans of {services} services, {whole_ns / 1e6:.1f} ms", style="bold")]

    def add(nodes: Sequence[Node], indent: str, *, root: bool) -> None:
        groups = _fold(nodes)
        for number, group in enumerate(groups):
            last = number == len(groups) - 1
            branch, below = ("", "") if root else ("└─ ", "   ") if last else ("├─ ", "│  ")
            lines.append(_line(group, begin, whole_ns, indent + branch))
            if len(group) == 1:
                add(group[0].children, indent + below, root=False)

    add(tree(spans), "", root=True)
    return lines


def _fold(nodes: Sequence[Node]) -> list[list[Node]]:
    """Keep runs of more than four childless spans of one name and service together; every other node is alone."""
    groups: list[list[Node]] = []
    for _, run_ in groupby(nodes, key=lambda node: (node.span.service, node.span.name, bool(node.children), _marks(node.span))):
        like = list(run_)
        if len(like) > _FOLD_OVER and not like[0].children:
            groups.append(like)
        else:
            groups += [[node] for node in like]
    return groups


def _line(group: Sequence[Node], begin: int, whole_ns: int, branch: str) -> Text:
    """Draw one span, or one line for like ones: their sum, number and longest."""
    span = group[0].span
    duration_ns = sum(node.span.duration_ns for node in group)
    end_ns = max(node.span.end_ns for node in group)
    first = max(0, min(int((span.start_ns - begin) / whole_ns * _BAR_CELLS), _BAR_CELLS - 1))
    cells = max(1, min(round((end_ns - span.start_ns) / whole_ns * _BAR_CELLS), _BAR_CELLS - first))
    text = Text(f"{duration_ns / 1e6:9.1f} ms ", style="bold")
    text.append(f"{' ' * first + '━' * cells:<{_BAR_CELLS}} ", style="not bold cyan")
    text.append(branch, style="not bold dim")
    text.append(f"{span.service} ", style="not bold green")
    text.append(_PACKAGE.sub("", span.name), style="not bold")
    text.append(_marks(span), style="not bold yellow")
    if len(group) > 1:
        longest_ms = max(node.span.duration_ns for node in group) / 1e6
        text.append(f" × {len(group)}, longest {longest_ms:.1f} ms", style="not bold")
    if any(node.span.failed for node in group):
        text.append("  failed", style="bold red")
    if group[0].parent_missing:
        text.append("  (its parent was not recorded here)", style="not bold dim")
    return text


def _marks(span: Span) -> str:
    """Attributes that tell like spans apart, such as a shard's rank."""
    found = [f"{name.rpartition('.')[2]} {span.attributes[name]}" for name in _SHOWN_ATTRIBUTES if name in span.attributes]
    return f"  [{', '.join(found)}]" if found else ""


def print_tree(spans: Sequence[Span]) -> None:
    """Print the tree, one unbroken line a span."""
    console = Console(highlight=False, soft_wrap=True)
    for line in render(spans):
        console.print(line)
