"""What guessing from the prompt is worth where text repeats itself, and what it costs where it does not.

Greedy answers of a small model soon go round in circles, which guesses foresee too; answers at temperature 1 do not.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from benchmarks.engine_cases.bench import Bench, counted, settle, timed
from benchmarks.report import Row, row
from lionrock.inference.engine.engine import EngineLimits
from lionrock.tokenization.codec import open_codec

TEXT = Path(__file__).parents[1] / "texts" / "english.txt"
OUTPUT, PROMPT = 128, 128
MOST_ROUNDS, REPEATS = 3, 3  # repeats of a single stream, in each round
LEAST_ORDINARY = 0.97
"""Share of the speed without guesses that must remain where nothing can be guessed."""

_PASSAGE, _BEGINNING = 110, 12  # tokens
_ON, _OFF = "lionrock, guesses", "lionrock, no guesses"


@dataclass(frozen=True, slots=True)
class Load:
    """Requests of one kind."""

    case: str
    streams: int
    temperature: float = 0.0


_REPETITIVE, _LOOPING, _ORDINARY = "repetitive prompts", "greedy after random prompts", "sampled after random prompts"
LOADS = (
    *(Load(_REPETITIVE, streams) for streams in (1, 8)),
    *(Load(_LOOPING, streams) for streams in (1, 8, 32)),
    *(Load(_ORDINARY, streams, temperature=1.0) for streams in (1, 8, 32)),
)


def measure(bench: Bench) -> list[Row]:
    """Measure two engines that differ in nothing else."""
    repetitive = _repetitive(bench.gguf)
    loads = [load for load in LOADS if not bench.quick or load.streams < 32]
    runs: dict[Load, dict[str, list[float]]] = {load: defaultdict(list) for load in loads}
    with bench.running([bench.lionrock(_ON, max_drafts=EngineLimits().max_drafts), bench.lionrock(_OFF)]) as peers:
        for number in range(min(bench.rounds, MOST_ROUNDS)):
            for load, values in runs.items():
                for repeat in range(REPEATS if load.streams == 1 else 1):
                    seed = REPEATS * number + repeat
                    prompts = repetitive(seed, load.streams)
                    if load.case != _REPETITIVE:
                        prompts = bench.prompts(7000 + seed, load.streams, PROMPT)
                    for name, peer in peers.items():
                        settle()
                        values[name].append(timed(peer, prompts, OUTPUT, temperature=load.temperature).rate)
    return [
        row(
            f"with guesses, {load.case}, {counted(load.streams)}" + (f", goal {LEAST_ORDINARY}" if load.case == _ORDINARY else ""),
            values[_ON],
            "tok/s",
            "higher",
            baseline="without",
            baseline_values=values[_OFF],
        )
        for load, values in runs.items()
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
