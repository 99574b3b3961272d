"""Writes the table of values into each chart's README.md, from the comments of its values.yaml.

    python tools/chart_readme.py            write
    python tools/chart_readme.py --check    fail when a table is not current, or a value has no words of its own

A comment that begins with "# --" documents the value below it, with everything under that value unless it is documented itself. The
table stands between two marks in README.md; the rest of the file is written by hand.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parent.parent
CHARTS = (ROOT / "charts" / "lionrock", ROOT / "charts" / "lionrock-crds")
BEGIN, END = "<!-- values: written by tools/chart_readme.py -->", "<!-- end of values -->"
LONGEST_DEFAULT = 60
_KEY = re.compile(r"^(?P<indent> *)(?P<key>[A-Za-z_][\w.-]*):(?: |$)")
_COMMENT = re.compile(r"^ *# ?(?P<text>.*)$")


class Undocumented(Exception):
    """Values without a comment. The message names them."""


@dataclass(frozen=True, slots=True)
class Value:
    """One row of the table."""

    path: tuple[str, ...]
    description: str
    default: Any

    def row(self) -> str:
        """As Markdown."""
        default = json.dumps(self.default, ensure_ascii=False)
        shown = f"`{default}`" if len(default) <= LONGEST_DEFAULT else "see values.yaml"
        description = self.description.replace("|", "\\|").replace("<", "&lt;")
        return f"| `{'.'.join(self.path)}` | {shown} | {description} |"


def descriptions(text: str) -> dict[tuple[str, ...], str]:
    """Comments that begin with "--", by the path of the key that they stand above."""
    found: dict[tuple[str, ...], str] = {}
    path: list[tuple[int, str]] = []
    words: list[str] | None = None
    for line in text.splitlines():
        if (comment := _COMMENT.match(line)) is not None:
            said = comment["text"]
            if said.startswith("--"):
                words = [said.removeprefix("--").strip()]
            elif words is not None:
                words.append(said.strip())
        elif (key := _KEY.match(line)) is not None:
            indent = len(key["indent"])
            path = [(depth, name) for depth, name in path if depth < indent]
            path.append((indent, key["key"]))
            if words is not None:
                found[tuple(name for _, name in path)] = " ".join(words)
            words = None
        else:
            words = None
    return found


def rows(values: Any, documented: dict[tuple[str, ...], str], path: tuple[str, ...] = ()) -> Iterator[Value]:
    """Documented values in their order. Raises Undocumented."""
    if path in documented:
        yield Value(path, documented[path], values)
    below = isinstance(values, dict) and [(*path, key) for key in values]
    if below and any(known[: len(path)] == path and len(known) > len(path) for known in documented):
        for child in below:
            if path not in documented or any(known[: len(child)] == child for known in documented):
                yield from rows(values[child[-1]], documented, child)
    elif path and path not in documented:
        raise Undocumented(".".join(path))


def table(chart: Path) -> str:
    """Return the table of a chart. Raises Undocumented."""
    text = (chart / "values.yaml").read_text(encoding="utf-8")
    values = yaml.safe_load(text) or {}
    lines = [value.row() for value in rows(values, descriptions(text))] if values else []
    if not lines:
        return "There is nothing to set."
    return "\n".join(["| Value | Default | What it is |", "|---|---|---|", *lines])


def readme(chart: Path) -> str:
    """Return the chart's README with its table. Raises Undocumented, ValueError when the marks are missing."""
    text = (chart / "README.md").read_text(encoding="utf-8")
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"{chart.name}/README.md: the marks of the table are missing")
    return f"{before}{BEGIN}\n\n{table(chart)}\n\n{END}{after}"


def main() -> int:
    """Write or check both."""
    stale = []
    for chart in CHARTS:
        path = chart / "README.md"
        try:
            wanted = readme(chart)
        except Undocumented as value:
            print(f"{chart.name}/values.yaml: {value} has no comment that begins with '# --'", file=sys.stderr)
            return 1
        if wanted != path.read_text(encoding="utf-8"):
            stale.append(path)
            if "--check" not in sys.argv[1:]:
                path.write_text(wanted, encoding="utf-8")
    if stale and "--check" in sys.argv[1:]:
        print(f"run python tools/chart_readme.py: {', '.join(path.parent.name for path in stale)}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
