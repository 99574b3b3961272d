"""Edits at random what an audit service keeps or hands out, and looks whether an auditor's full check finds every edit.

    python tests/audit/tamper.py --edits 10000 --seed 1

A target is a kind of thing that can be edited: it makes a pristine copy, edits one at random, says what a reader gets out of it
(`meaning`), and checks it as an auditor does. An edit is judged by comparing the meaning before and after, never by the check:

    found              the meaning changed, and the check says so
    without meaning    the meaning is the same (a free page, a byte of a header that nothing reads); found or not
    MISSED             the meaning changed, and the check is silent
    CRASHED            the check ended in anything but an answer

Exits 1 when an edit was missed or a check crashed.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import shutil
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

if __name__ == "__main__":
    sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1])]

from export_edits import ExportBytes, ForgedExport, PristineExport, make_export
from tamper_targets import Pristine, make_pristine, targets_of


class Target(Protocol):
    """A kind of thing that can be edited."""

    name: str

    def restore(self) -> None:
        """Make it pristine again."""

    def edit(self, chance: random.Random) -> str:
        """Edit it once. Returns what was done, in words."""

    def meaning(self) -> object:
        """What a reader gets out of it, compared by ==; must not raise."""

    def check(self) -> Sequence[str]:
        """What an auditor finds wrong. Whatever it raises is a crash."""


@dataclass(slots=True)
class Result:
    """What became of the edits of one target."""

    verdicts: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    unaltered_findings: int = 0
    """Edits without meaning that the check reports all the same."""
    seconds: float = 0.0


def tamper(target: Target, edits: int, seed: int) -> Result:
    """Edit `target` again and again. Raises AssertionError when it is not clean to begin with."""
    result = Result()
    target.restore()
    pristine = target.meaning()
    assert not target.check(), f"{target.name} is not clean before any edit: {target.check()}"
    begun = time.monotonic()
    for number in range(edits):
        chance = random.Random(f"{seed} {target.name} {number}")
        target.restore()
        what = target.edit(chance)
        changed = target.meaning() != pristine
        try:
            found = list(target.check())
        except BaseException:  # noqa: BLE001
            result.verdicts["CRASHED"] += 1
            result.wrong.append(f"{target.name} {number}: {what}\n{traceback.format_exc()}")
            continue
        if changed and not found:
            result.wrong.append(f"{target.name} {number}: {what} was missed")
        result.verdicts["without meaning" if not changed else "found" if found else "MISSED"] += 1
        result.unaltered_findings += bool(found) and not changed
    result.seconds = time.monotonic() - begun
    return result


def table(results: dict[str, Result]) -> str:
    """What was seen, a row a target."""
    lines = ["| Edited | Edits | found | without meaning (reported all the same) | missed | crashed |", "|---" * 6 + "|"]
    for name, result in results.items():
        seen = result.verdicts
        unaltered = f"{seen['without meaning']} ({result.unaltered_findings})"
        lines.append(f"| {name} | {seen.total()} | {seen['found']} | {unaltered} | {seen['MISSED']} | {seen['CRASHED']} |")
    return "\n".join(lines)


def run(
    pristine: Pristine,
    scratch: Path,
    *,
    edits: int,
    seed: int,
    export: PristineExport | None = None,
    on_done: Callable[[str], None] | None = None,
) -> dict[str, Result]:
    """Spread `edits` over all targets. `export`: None leaves exports out, which test_export_hostile.py edits."""
    results = {}
    targets = targets_of(pristine, scratch)
    if export is not None:
        targets += [(ExportBytes(export), 0.15), (ForgedExport(export), 0.15)]
    weight = sum(share for _, share in targets)
    for target, share in targets:
        results[target.name] = tamper(target, max(1, round(edits * share / weight)), seed)
        if on_done is not None:
            on_done(target.name)
    return results


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--edits", type=int, default=10_000)
    parser.add_argument("--leaves", type=int, default=300)
    parser.add_argument("--seed", type=int, default=time.time_ns() % 10**9)
    arguments = parser.parse_args()
    print(f"seed {arguments.seed}", flush=True)
    memory = Path("/dev/shm")
    scratch = Path(tempfile.mkdtemp(prefix="tamper-", dir=memory if memory.is_dir() else None))
    pristine = asyncio.run(make_pristine(scratch / "pristine", leaves=arguments.leaves))
    results = run(
        pristine,
        scratch,
        edits=arguments.edits,
        seed=arguments.seed,
        export=asyncio.run(make_export(scratch / "export", requests=12)),
        on_done=lambda name: print(name, file=sys.stderr, flush=True),
    )
    shutil.rmtree(scratch)
    print(table(results))
    wrong = [line for result in results.values() for line in result.wrong]
    for line in wrong[:20]:
        print(line)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
