"""`lionrock trace`: one request as a tree of spans, with durations and where they lie in the whole.

Prints what `lionrock.cli.spans` found. Many like spans below one parent become one line with their number, sum and longest.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path

from rich.console import Console
from rich.text import Text
from rich.tree import Tree

from lionrock.cli.errors import CommandError
from lionrock.cli.spans import Node, Span, SpanFileError, read_trace, tree
from lionrock.cli.state import StateDir

_BAR_CELLS = 24
_FOLD_OVER = 4
_SHOWN_ATTRIBUTES = ("lionrock.shard.rank", "lionrock.shard.chip")


def run(wanted: str, state_dir: Path | None, *, as_json: bool) -> int:
    """Find and print. Returns the exit status."""
    state = StateDir.at(state_dir)
    spans = load(state, wanted)
    if as_json:
        print_json(spans)
    else:
        Console(highlight=False, soft_wrap=True).print(render(spans))
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


def render(spans: Sequence[Span]) -> Tree:
    """Draw the tree for a terminal."""
    begin = min(span.start_ns for span in spans)
    whole_ns = max(1, max(span.end_ns for span in spans) - begin)
    services = len({span.service for span in spans})
    top = Tree(Text(f"trace {spans[0].trace_id}: {len(spans)} spans of {services} services, {whole_ns / 1e6:.1f} ms", style="bold"))

    def add(parent: Tree, nodes: Sequence[Node]) -> None:
        for group in _fold(nodes):
            if len(group) > 1:
                parent.add(_folded(group))
                continue
            add(parent.add(_line(group[0], begin, whole_ns)), group[0].children)

    add(top, tree(spans))
    return top


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


def _line(node: Node, begin: int, whole_ns: int) -> Text:
    span = node.span
    first = int((span.start_ns - begin) / whole_ns * _BAR_CELLS)
    cells = max(1, round(span.duration_ns / whole_ns * _BAR_CELLS))
    first = max(0, min(first, _BAR_CELLS - 1))
    bar = " " * first + "━" * min(cells, _BAR_CELLS - first)
    text = Text(f"{bar:<{_BAR_CELLS}} ", style="dim cyan")
    text.append(f"{span.duration_ns / 1e6:9.1f} ms  ", style="bold")
    text.append(f"{span.service} ", style="green")
    text.append(span.name, style="default not dim")
    text.append(_marks(span), style="yellow")
    if span.failed:
        text.append("  failed", style="bold red")
    if node.parent_missing:
        text.append("  (its parent was not recorded here)", style="dim")
    return text


def _folded(group: Sequence[Node]) -> Text:
    durations = [node.span.duration_ns / 1e6 for node in group]
    span = group[0].span
    text = Text(f"{'':<{_BAR_CELLS}} {sum(durations):9.1f} ms  ", style="dim")
    text.append(f"{span.service} ", style="green")
    return text.append(f"{span.name}{_marks(span)} × {len(group)}, longest {max(durations):.1f} ms", style="default")


def _marks(span: Span) -> str:
    """Attributes that tell like spans apart, such as a shard's rank."""
    found = [f"{name.rpartition('.')[2]} {span.attributes[name]}" for name in _SHOWN_ATTRIBUTES if name in span.attributes]
    return f"  [{', '.join(found)}]" if found else ""


def print_tree(spans: Sequence[Span], *, file: object = None) -> None:
    """Print the tree for `lionrock demo`."""
    Console(highlight=False, soft_wrap=True, file=file or sys.stdout).print(render(spans))  # type: ignore[arg-type]
