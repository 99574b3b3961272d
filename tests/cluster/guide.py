"""The commands of docs/kubernetes.md: what its fenced blocks hold, and where each of them is run.

A block of YAML is a file, named in its first line. A block of sh is commands, run in order; one that needs a kubelet is announced
by `<!-- runs in: make cluster-demo, as NAME -->`, and the demonstration runs it under that name. Nothing else is let through, so
that no command of the page is forgotten.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

PAGE = Path(__file__).resolve().parents[2] / "docs" / "kubernetes.md"
_FENCE = re.compile(r"^```(?P<language>\S*)\s*$")
_ELSEWHERE = re.compile(r"^<!-- runs in: make cluster-demo, as (?P<name>[a-z-]+) -->$")
_FILE = re.compile(r"^# (?P<name>[a-z0-9-]+\.yaml)$")


class PageUnreadable(Exception):
    """A block of the page cannot be accounted for; says which line."""


@dataclass(frozen=True, slots=True)
class Block:
    """One fenced block. line: of its first line, from 1."""

    line: int
    language: str
    text: str
    in_demo_as: str | None
    """Name under which the demonstration runs it; None: it is run here."""

    @property
    def file(self) -> str | None:
        """Name of the file that a block of YAML is; None for commands."""
        named = _FILE.match(self.text.partition("\n")[0])
        return named["name"] if self.language == "yaml" and named is not None else None


def blocks(page: Path = PAGE) -> list[Block]:
    """Return the page's blocks of commands and files, in order. Raises PageUnreadable."""
    found: list[Block] = []
    elsewhere: str | None = None
    opened: tuple[int, str] | None = None
    lines: list[str] = []
    for number, line in enumerate(page.read_text(encoding="utf-8").splitlines(), 1):
        fence = _FENCE.match(line)
        if opened is None and fence is None:
            announced = _ELSEWHERE.match(line)
            if elsewhere is not None or (announced is None and "runs in:" in line):
                raise PageUnreadable(f"line {number}: what is announced as run elsewhere is followed by its block")
            elsewhere = announced["name"] if announced is not None else None
        elif opened is None and fence is not None:
            opened, lines = (number, fence["language"]), []
        elif opened is not None and fence is not None and not fence["language"]:
            block = Block(opened[0], opened[1], "\n".join(lines) + "\n", elsewhere)
            if block.language not in ("sh", "yaml") or (block.language == "yaml" and (block.file is None or elsewhere)):
                raise PageUnreadable(f"line {block.line}: neither commands nor a named file")
            found.append(block)
            opened = elsewhere = None
        else:
            lines.append(line)
    if opened is not None or elsewhere is not None:
        raise PageUnreadable("the last block does not end")
    return found


def in_demo() -> dict[str, str]:
    """Commands that the demonstration runs, by name."""
    return {block.in_demo_as: block.text for block in blocks() if block.in_demo_as is not None}
