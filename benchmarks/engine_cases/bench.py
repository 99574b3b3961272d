"""What every case is given: the model, the roster of engines, how much to measure, and prompts that are the same for everyone."""

from __future__ import annotations

import contextlib
import os
import random
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.peers.process import Command, Peer, PeerFailed

KV_CACHE_BYTES = 512 << 20  # for every engine that can be told
CONTEXT = 2048  # tokens, likewise
_FIRST_ORDINARY, _LAST_ORDINARY = 1000, 40000  # token ids that are neither special nor single bytes
_WARM_UP = (tuple(range(20, 52)), tuple(range(60, 92)))  # in every vocabulary


@dataclass(slots=True)
class Bench:
    """One run of the benchmark."""

    gguf: Path
    bfloat16: Path
    """A Hugging Face directory with the same numbers."""
    logs: Path
    rounds: int
    quick: bool
    only_engines: frozenset[str] | None = None
    absent: dict[str, str] = field(default_factory=dict)
    """Peers that could not be measured, and why."""
    cores: tuple[int, ...] = field(default_factory=lambda: tuple(sorted(os.sched_getaffinity(0))))
    """What may be computed on; every engine uses one thread a core."""

    def lionrock(self, name: str, **options: object) -> Command:
        """Our engine. options: see `open_for_measurement`."""
        told = {"model": str(self.gguf), "threads": len(self.cores), "kv_cache_bytes": KV_CACHE_BYTES, **options}
        return Command(name, Path(sys.executable), "lionrock_engine", told)

    @contextlib.contextmanager
    def running(self, commands: Sequence[Command]) -> Iterator[dict[str, Peer]]:
        """Start engines one after another, and end them all. A peer that does not start is noted; ours raises PeerFailed."""
        with contextlib.ExitStack() as stack:
            peers: dict[str, Peer] = {}
            for command in commands:
                try:
                    peer = stack.enter_context(Peer(command, self.logs))
                except PeerFailed as error:
                    if command.module.startswith("lionrock"):
                        raise
                    self.note_absent(command.name, f"did not start: {error}")
                    continue
                peer.answer(_WARM_UP, 8)
                peer.look_idle()
                peer.hold()
                peers[command.name] = peer
                state = "held while others run" if peer.must_be_held else "sleeps when idle"
                print(
                    f"{peer.name}: started in {peer.start_s:.1f} s; {state} ({100 * peer.idle_share:.0f} % of a core)", flush=True
                )
            yield peers

    def note_absent(self, name: str, why: str) -> None:
        """Remember, and say at once, that a peer is not measured."""
        self.absent[name] = why
        print(f"NOT MEASURED: {name}: {why}", flush=True)

    def prompts(self, seed: int, count: int, tokens: int) -> list[list[int]]:
        """Prompts of random ordinary tokens, the same for the same seed."""
        chosen = random.Random(f"{seed}/{count}/{tokens}")
        return [[chosen.randint(_FIRST_ORDINARY, _LAST_ORDINARY) for _ in range(tokens)] for _ in range(count)]


@dataclass(frozen=True, slots=True)
class Timed:
    """One call with all of its answers."""

    tokens: int
    wall_s: float
    first_s: tuple[float, ...]
    decode_rate: float
    """Tokens a second after each stream's first, summed over streams."""

    @property
    def rate(self) -> float:
        """Output tokens a second, prefill included."""
        return self.tokens / self.wall_s


def timed(peer: Peer, prompts: Sequence[Sequence[int]], max_tokens: int, **options: Any) -> Timed:
    """Have an engine answer, which was held still before and will be after. options: what else its `answer` takes."""
    peer.release()
    try:
        answers = peer.answer(prompts, max_tokens, **options)
    finally:
        peer.hold()
    wall_s = max(answer.last_s for answer in answers)
    # An answer may come in one piece, where its reader was late.
    decoding = [(len(a.token_ids) - 1) / (a.last_s - a.first_s) for a in answers if a.last_s > a.first_s]
    return Timed(sum(len(a.token_ids) for a in answers), wall_s, tuple(a.first_s for a in answers), sum(decoding))


def counted(streams: int) -> str:
    """Return "1 stream", "8 streams"."""
    return f"{streams} stream" if streams == 1 else f"{streams} streams"


def settle() -> None:
    """Leave a moment in which an engine's threads that still spin after their work go to sleep."""
    time.sleep(0.25)
