"""Lionrock's engine over rank processes of this machine, as many as the tensor-parallel plan has, without Ray.

Every rank leaves spans of the sequences that it saw, which say how long it was in its steps and, of that, in collectives. The trace
that they belong to is the number of prompts that were answered together.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.peers.lionrock_engine import LionrockEngine
from benchmarks.peers.protocol import Answer, serve
from lionrock.chassis.settings import TelemetrySettings
from lionrock.inference.engine.async_engine import AsyncEngine
from lionrock.inference.engine.engine import Engine, EngineLimits
from lionrock.inference.engine.sequence import SequenceId
from lionrock.inference.engine.stream import Coalescing
from lionrock.inference.local_ranks import local_group_builder
from lionrock.inference.model.weights import open_weights
from lionrock.inference.served_model import shape_of
from lionrock.inference.settings import HealthSettings
from lionrock.inference.shard_process import RankSettings
from lionrock.planner.chips import chip
from lionrock.planner.plan import plan_shards


class RanksEngine(LionrockEngine):
    """See Engine."""

    def __init__(self, engine: AsyncEngine, group: Any, builder: Any) -> None:
        super().__init__(engine)
        self._group, self._builder = group, builder
        self._trace = 0

    async def answer(self, prompts: Sequence[Sequence[int]], max_tokens: int, *options: Any, **named: Any) -> list[Answer]:
        """See Engine."""
        self._trace = len(prompts)
        return await super().answer(prompts, max_tokens, *options, **named)

    async def close(self) -> None:
        """See Engine."""
        await super().close()
        await self._builder.close()

    def ended(self, sequence_id: SequenceId) -> None:
        """Have the ranks report what they did for a sequence."""
        self._group.sequence_ended(sequence_id, f"00-{self._trace:032x}-{sequence_id + 1:016x}-01")


async def start(options: dict[str, Any]) -> RanksEngine:
    """Start the ranks. options: model, tensor_parallel, threads (of each), kv_cache_bytes (of all), span_dir."""
    model, ranks = Path(options["model"]), options["tensor_parallel"]
    plan = plan_shards(shape_of(open_weights(model).config), chip("cpu"), dtype="bfloat16", tensor_parallel=ranks)
    health = HealthSettings(warm_spares=0)
    settings = RankSettings(
        chip=chip("cpu"),
        plan=plan,
        source=model,
        collective=None,
        collective_interface="lo",
        collective_timeout_s=health.collective_timeout_s,
        threads=options["threads"],
        kv_cache_bytes=options["kv_cache_bytes"] // ranks,
        heartbeat_interval_s=health.heartbeat_interval_s,
        telemetry=TelemetrySettings(span_dir=Path(options["span_dir"]), log_level="WARNING"),
        tls=None,
    )
    builder = local_group_builder(settings, health)
    group = await builder.build(lambda _, reason: print(f"the ranks are lost: {reason}", file=sys.stderr))
    limits = EngineLimits(max_drafts=0, prefix_cache=False)
    engine = AsyncEngine(Engine(group, limits), coalescing=Coalescing(per_stream_s=0, ceiling_s=0))
    engine.start()
    return RanksEngine(engine, group, builder)


@dataclass(frozen=True, slots=True)
class RankSpan:
    """What one rank did for one sequence, of those that ran `together`."""

    rank: int
    together: int
    prefill_ms: float
    decode_ms: float
    collective_ms: float
    steps: int


def read_spans(directory: Path) -> list[RankSpan]:
    """Read what the ranks of an engine that has ended left in its span_dir."""
    found = []
    for path in sorted(directory.glob("*.jsonl")):
        for line in path.read_text().splitlines():
            found += [_rank_span(span) for span in _spans_in(json.loads(line)) if span["name"] == "shard.execute"]
    return found


def _spans_in(document: Any) -> list[Any]:
    """Find the spans of one line of OTLP/JSON."""
    scopes = [scope for resource in document["resourceSpans"] for scope in resource["scopeSpans"]]
    return [span for scope in scopes for span in scope["spans"]]


def _rank_span(span: Any) -> RankSpan:
    told = {item["key"]: next(iter(item["value"].values())) for item in span["attributes"]}
    return RankSpan(
        rank=int(told["lionrock.shard.rank"]),
        together=int(span["traceId"], 16),
        prefill_ms=float(told["lionrock.shard.prefill_ms"]),
        decode_ms=float(told["lionrock.shard.decode_ms"]),
        collective_ms=float(told["lionrock.shard.collective_ms"]),
        steps=int(told["lionrock.shard.steps"]),
    )


if __name__ == "__main__":
    serve(start(json.loads(sys.argv[1])))
