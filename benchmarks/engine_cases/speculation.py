"""What guessing from the prompt is worth where text repeats itself, and what it costs where it does not."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path

from benchmarks.engine_cases.bench import Bench, settle, timed
from benchmarks.report import Row, row
from lionrock.inference.engine.engine import EngineLimits
from lionrock.tokenization.codec import open_codec

TEXT = Path(__file__).parents[1] / "texts" / "english.txt"
OUTPUT, PROMPT = 128, 128
LEAST_ORDINARY = 0.97
"""Share of the speed without guesses that must remain on prompts of random tokens."""

_PASSAGE, _BEGINNING = 110, 12  # tokens
_ON, _OFF = "lionrock, guesses", "lionrock, no guesses"


def measure(bench: Bench) -> list[Row]:
    """Measure two engines that differ in nothing else."""
    repetitive = _repetitive(bench.gguf)
    loads: list[tuple[str, Callable[[int], Sequence[Sequence[int]]]]] = [
        *((f"repetitive prompts, {n} streams", lambda number, n=n: repetitive(number, n)) for n in (1, 8)),
        *((f"random prompts, {n} streams", lambda number, n=n: bench.prompts(7000 + number, n, PROMPT)) for n in (1, 8, 32)),
    ]
    runs: dict[str, dict[str, list[float]]] = {name: defaultdict(list) for name, _ in loads}
    with bench.running([bench.lionrock(_ON, max_drafts=EngineLimits().max_drafts), bench.lionrock(_OFF)]) as peers:
        for number in range(bench.rounds):
            for case, prompts_of in loads:
                for name, peer in peers.items():
                    for repeat in range(2 if case.endswith(", 1 streams") else 1):
                        settle()
                        runs[case][name].append(timed(peer, prompts_of(2 * number + repeat), OUTPUT).rate)
    return [
        row(
            f"with guesses, {case}" + (f", goal {LEAST_ORDINARY}" if case.startswith("random") else ""),
            values[_ON],
            "tok/s",
            "higher",
            baseline="without",
            baseline_values=values[_OFF],
        )
        for case, values in runs.items()
    ]


def _repetitive(model: Path) -> Callable[[int, int], list[list[int]]]:
    """Prompts that hold a passage twice and begin it a third time; which passage depends on the numbers."""
    codec = open_codec("model", model)
    tokens = codec.encode_text(TEXT.read_text("utf-8")).token_ids
    most = len(tokens) - _PASSAGE

    def prompts(number: int, count: int) -> list[list[int]]:
        starts = [(41 * number + 53 * stream) % most for stream in range(count)]
        passages = [list(tokens[start : start + _PASSAGE]) for start in starts]
        return [[*passage, *passage, *passage[:_BEGINNING]] for passage in passages]

    return prompts
