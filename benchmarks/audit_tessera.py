"""The audit log beside Tessera's POSIX storage on the same machine, the same writers and bytes.

Tessera (github.com/transparency-dev/tessera) is a library in Go for logs of the same formats. It publishes a checkpoint ten times
a second at most; here every batch has one, and an append returns with it. So there are two cases: an entry that has its index,
durably, and an entry that a checkpoint covers. Its deduplication is off; ours cannot be. Rounds of the two alternate.

    python -m benchmarks.audit_tessera [--quick]        needs Go
"""

from __future__ import annotations

import argparse
import asyncio
import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from benchmarks.audit import Pace, audit_logs, closed_loop, events
from benchmarks.report import Row, row, write
from lionrock.audit.store.sqlite import SqliteLogStore

SOURCE = Path(__file__).parent / "peers" / "tessera"
BUILT = Path(__file__).parents[1] / ".cache" / "benchmarks" / "tessera"
WRITERS = 128
LEAF_BYTES = 1100


def build() -> Path:
    """Build the program that drives Tessera, from the versions that its go.mod pins."""
    BUILT.parent.mkdir(parents=True, exist_ok=True)
    subprocess.run(["go", "build", "-o", str(BUILT), "."], cwd=SOURCE, check=True)
    return BUILT


def tessera(program: Path, directory: Path, seconds: float, *, signed: bool) -> float:
    """One round on a new log. Returns entries a second."""
    command = [program, "-directory", directory, "-writers", str(WRITERS), "-size", str(LEAF_BYTES), "-seconds", str(seconds)]
    done = subprocess.run([*command, "-rounds=1", f"-signed={signed}"], capture_output=True, text=True, check=True)
    shutil.rmtree(directory)
    (rate,) = json.loads(done.stdout)
    return float(rate)


async def compare(root: Path, pace: Pace) -> Sequence[Row]:
    """Alternate rounds of Tessera's two cases and ours."""
    program = build()
    ours, durable, covered = [], [], []
    made = events()
    async with audit_logs(root / "ours", SqliteLogStore(root / "ours" / "audit.db")) as logs:
        for _ in range(pace.rounds):
            ours.append(await closed_loop(WRITERS, pace.seconds, lambda: logs.append(next(made), want_receipt=False)))
            durable.append(await asyncio.to_thread(tessera, program, root / "log", pace.seconds, signed=False))
            covered.append(await asyncio.to_thread(tessera, program, root / "log", pace.seconds, signed=True))
    case = f"SQLite, {WRITERS} writers, durable and signed for"
    return [
        row(case, ours, "leaves/s", "higher", baseline="Tessera POSIX, durable", baseline_values=durable),
        row(case, ours, "leaves/s", "higher", baseline="Tessera POSIX, signed for", baseline_values=covered),
        row(f"Tessera POSIX, {WRITERS} writers, durable", durable, "leaves/s", "higher"),
        row(f"Tessera POSIX, {WRITERS} writers, signed for", covered, "leaves/s", "higher"),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one short round of each case")
    arguments = parser.parse_args()
    if shutil.which("go") is None:
        sys.exit("this needs Go, to build Tessera")
    pace = Pace(1.5, 1, 0) if arguments.quick else Pace(4, 5, 0)
    with tempfile.TemporaryDirectory(prefix="lionrock-bench-tessera-") as root:
        write("audit-tessera", asyncio.run(compare(Path(root), pace)))


if __name__ == "__main__":
    main()
