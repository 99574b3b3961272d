"""The engine against its peers: tokens a second, time to first token, what sharing, guessing and sharding change, and memory.

Every engine runs in a process of its own, peers in environments of their own that are made once under `.cache/bench`. They stay
loaded and take turns, case by case and round by round, so that a slow minute of the machine hits all of them; one that does not
sleep while it has no work is stopped by signal meanwhile. All of them hold one model, SmolLM2-135M-Instruct, and get the same
prompts of random tokens; answers are greedy and have one length. A peer that is not there is said to be missing.

    python -m benchmarks.engine [--quick] [--only CASE]... [--engine NAME]... [--rounds N]
"""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Callable

from benchmarks.engine_cases import memory, prefix_cache, profile, speculation, tensor_parallel, throughput
from benchmarks.engine_cases.bench import Bench
from benchmarks.peers.checkpoint import bfloat16_directory, gguf_path
from benchmarks.peers.environments import CACHE
from benchmarks.peers.process import PeerFailed
from benchmarks.report import Row, write

CASES: dict[str, Callable[[Bench], list[Row]]] = {
    "throughput": throughput.measure,
    "prefix-cache": prefix_cache.measure,
    "speculation": speculation.measure,
    "profile": profile.measure,
    "tensor-parallel": tensor_parallel.measure,
    "memory": memory.measure,
}
ROUNDS, QUICK_ROUNDS = 5, 1


def main() -> None:
    """Measure and report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="at most five minutes, once the peers are installed")
    parser.add_argument("--only", action="append", choices=tuple(CASES), help="measure this case; may be given again")
    parser.add_argument(
        "--engine", action="append", metavar="NAME", help="compare this engine alone, as named in the table; may be given again"
    )
    parser.add_argument("--rounds", type=int, help=f"of each case; {ROUNDS}, or {QUICK_ROUNDS} with --quick")
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that what was started is ended
    gguf = gguf_path(CACHE.with_name("models"))
    bench = Bench(
        gguf=gguf,
        bfloat16=bfloat16_directory(gguf, CACHE),
        logs=CACHE / "logs",
        rounds=arguments.rounds or (QUICK_ROUNDS if arguments.quick else ROUNDS),
        quick=arguments.quick,
        only_engines=None if arguments.engine is None else frozenset(arguments.engine),
    )
    bench.logs.mkdir(exist_ok=True)
    rows: list[Row] = []
    failed = False
    for name in arguments.only or CASES:
        print(f"== {name}", flush=True)
        try:
            rows += CASES[name](bench)
        except PeerFailed as error:
            failed = True
            bench.note_absent(name, str(error))
    if rows:
        print(write("engine", rows))
    for name, why in bench.absent.items():
        print(f"NOT MEASURED: {name}: {why}")
    sys.exit(failed)


if __name__ == "__main__":
    main()
