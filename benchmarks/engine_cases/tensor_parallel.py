"""Two ranks of one thread each against one rank of two threads, on the same two cores: what sharding costs, and where.

Both run as rank processes behind the same links, so that only the sharding differs. The ranks' own spans say how long their steps
were and how much of that they spent in collectives, waiting for each other included.
"""

from __future__ import annotations

import sys
import tempfile
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from benchmarks.engine_cases.bench import KV_CACHE_BYTES, Bench, counted, settle, timed
from benchmarks.peers.lionrock_ranks import RankSpan, read_spans
from benchmarks.peers.process import Command
from benchmarks.report import Row, row

STREAMS, PROMPT, OUTPUT = (1, 8, 32), 128, 128
RANKS = 2
DECODED = OUTPUT - 1  # steps; the prompt's last step gives the first token
_ONE, _TWO = "lionrock, one rank", f"lionrock, {RANKS} ranks"


def measure(bench: Bench) -> list[Row]:
    """Measure both in turns, then read what the ranks say."""
    if len(bench.cores) < RANKS:
        bench.note_absent(_TWO, f"there is only {len(bench.cores)} core")
        return []
    rates: dict[int, dict[str, list[float]]] = {streams: defaultdict(list) for streams in STREAMS[: 2 if bench.quick else None]}
    with tempfile.TemporaryDirectory(prefix="lionrock-bench-") as directory:
        spans = {name: Path(directory) / str(ranks) for name, ranks in ((_ONE, 1), (_TWO, RANKS))}
        commands = [_command(bench, name, ranks, spans[name]) for name, ranks in ((_ONE, 1), (_TWO, RANKS))]
        with bench.running(commands) as peers:
            for number in range(bench.rounds):
                for streams in rates:
                    for name, peer in peers.items():
                        settle()
                        rates[streams][name].append(timed(peer, bench.prompts(9000 + number, streams, PROMPT), OUTPUT).rate)
        told = {name: read_spans(path) for name, path in spans.items()}
    rows: list[Row] = []
    for streams, values in rates.items():
        case = f"{counted(streams)}, TP={RANKS} with a thread each"
        rows.append(row(case, values[_TWO], "tok/s", "higher", baseline="TP=1, two threads", baseline_values=values[_ONE]))
        one, two = _of(told[_ONE], streams), _of(told[_TWO], streams)
        step, alone = [span.decode_ms / DECODED for span in two], [span.decode_ms / DECODED for span in one]
        rows.append(row(f"  a decoding step on a rank, {counted(streams)}, TP={RANKS}", step, "ms", "lower",
                        baseline="TP=1", baseline_values=alone))  # fmt: skip
        rows.append(row(f"  of a step in collectives, {counted(streams)}", [s.collective_ms / s.steps for s in two], "ms", "lower"))
        shares = [100 * span.collective_ms / (span.prefill_ms + span.decode_ms) for span in two]
        rows.append(row(f"  of a rank's time in collectives, {counted(streams)}", shares, "%", "lower"))
    return rows


def _command(bench: Bench, name: str, ranks: int, spans: Path) -> Command:
    told = {
        "model": str(bench.gguf),
        "tensor_parallel": ranks,
        "threads": RANKS // ranks,
        "kv_cache_bytes": KV_CACHE_BYTES,
        "span_dir": str(spans),
    }
    return Command(name, Path(sys.executable), "lionrock_ranks", told)


def _of(spans: Sequence[RankSpan], streams: int) -> list[RankSpan]:
    return [span for span in spans if span.together == streams]
