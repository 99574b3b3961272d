"""One format for all benchmark results: a table for people, JSON for machines.

A row holds the runs of one case; when a baseline ran interleaved with it, `ratio` says how much better we are (> 1 is better,
whichever way "better" points). Rows quote the median and the spread, because machines are noisy.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import statistics
import subprocess
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

RESULTS = Path(__file__).parent / "results"
PACKAGES = ("grpcio", "protobuf", "ray", "torch", "tokenizers")


@dataclass(frozen=True, slots=True)
class Row:
    """One case: median of `runs` values in `unit`, their extremes, and what it is compared with."""

    case: str
    value: float
    unit: str
    better: Literal["higher", "lower"]
    runs: int
    min: float
    max: float
    baseline: str | None = None
    baseline_value: float | None = None
    ratio: float | None = None


def row(
    case: str,
    values: Sequence[float],
    unit: str,
    better: Literal["higher", "lower"],
    *,
    baseline: str | None = None,
    baseline_values: Sequence[float] | None = None,
) -> Row:
    """Summarise the runs of a case. `baseline_values` come from the same interleaved run, or are a limit given as one value."""
    value = statistics.median(values)
    reference = statistics.median(baseline_values) if baseline_values else None
    ratio = None
    if reference and value:
        ratio = value / reference if better == "higher" else reference / value
    return Row(case, value, unit, better, len(values), min(values), max(values), baseline, reference, ratio)


def machine() -> str:
    """Processor, cores and memory in words."""
    model = next(
        (line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line),
        platform.machine(),
    )
    memory_gib = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return f"{model}, {os.cpu_count()} cores, {memory_gib:.0f} GiB"


def write(benchmark: str, rows: Sequence[Row]) -> Path:
    """Print the table and write `results/<benchmark>.json`. Returns the file's path."""
    width = max(len(entry.case) for entry in rows)
    print(f"{'case':<{width}}  {'median':>10}  {'min':>10}  {'max':>10}  {'unit':<8}  {'ratio':>6}  against")
    for entry in rows:
        ratio = f"{entry.ratio:.2f}" if entry.ratio is not None else "-"
        against = f"{entry.baseline} ({entry.baseline_value:.4g})" if entry.baseline and entry.baseline_value is not None else "-"
        figures = f"{entry.value:>10.4g}  {entry.min:>10.4g}  {entry.max:>10.4g}"
        print(f"{entry.case:<{width}}  {figures}  {entry.unit:<8}  {ratio:>6}  {against}")
    commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False).stdout.strip()
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{benchmark}.json"
    versions = {name: importlib.metadata.version(name) for name in PACKAGES}
    result = {
        "benchmark": benchmark,
        "commit": commit,
        "machine": machine(),
        "versions": versions,
        "rows": [asdict(entry) for entry in rows],
    }
    path.write_text(json.dumps(result, indent=2) + "\n")
    return path
