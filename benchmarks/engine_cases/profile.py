"""Where the time of a decoding step of 32 streams goes: the model's kernels, scheduling, and everything between."""

from __future__ import annotations

from dataclasses import replace

from benchmarks.engine_cases.bench import Bench
from benchmarks.report import Row, row

STREAMS, PROMPT, OUTPUT = 32, 128, 128
MOST_OUTSIDE = 10.0  # per cent


def measure(bench: Bench) -> list[Row]:
    """Measure rounds of full decoding steps."""
    name = "lionrock bf16, timed"
    command = replace(bench.lionrock(name), module="lionrock_profile")
    shares: dict[str, list[float]] = {}
    step_ms: list[float] = []
    with bench.running([command]) as peers:
        for number in range(bench.rounds):
            told = peers[name].call("profile", prompts=bench.prompts(8000 + number, STREAMS, PROMPT), max_tokens=OUTPUT)
            step_ms.append(1000 * told["step_s"])
            for part, share in told["shares"].items():
                shares.setdefault(part, []).append(100 * share)
    kernels = told["kernels"]
    outside, limit = [100 - share for share in shares["kernels"]], [MOST_OUTSIDE]
    return [
        row(f"decoding step of {STREAMS} streams ({kernels} kernels)", step_ms, "ms", "lower"),
        row(f"outside the kernels, decoding {STREAMS} streams", outside, "%", "lower", baseline="limit", baseline_values=limit),
        *(row(f"  of a step: {part}", values, "%", "lower") for part, values in shares.items()),
    ]
