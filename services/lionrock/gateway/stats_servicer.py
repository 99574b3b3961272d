"""GatewayStatsService on the wire: the figures of model_stats.py for the operator."""

from __future__ import annotations

from typing import Any

import grpc
from google.protobuf import timestamp_pb2

from lionrock.gateway.model_stats import TTFT_BOUNDS_S, WINDOW_S, ModelStats, RevisionFigures
from lionrock.gateway.record import duration
from lionrock.gateway.v1 import stats_pb2 as pb
from lionrock.gateway.v1.stats_pb2_grpc import GatewayStatsServiceServicer

Context = grpc.aio.ServicerContext[Any, Any]

SERVICE_NAME = "lionrock.gateway.v1.GatewayStatsService"
CALLERS = frozenset({"operator"})


class StatsServicer(GatewayStatsServiceServicer):
    """The RPC of stats.proto."""

    def __init__(self, stats: ModelStats) -> None:
        self._stats = stats
        self._since = timestamp_pb2.Timestamp()
        self._since.GetCurrentTime()

    async def GetModelStats(self, request: pb.GetModelStatsRequest, context: Context) -> pb.GetModelStatsResponse:  # noqa: N802
        """Tell how each revision answers."""
        del request, context
        return pb.GetModelStatsResponse(
            counting_since=self._since,
            window=duration(WINDOW_S),
            ttft_bounds_seconds=TTFT_BOUNDS_S,
            revisions=[_message(figures) for figures in self._stats.figures()],
        )


def _message(figures: RevisionFigures) -> pb.RevisionStats:
    message = pb.RevisionStats(
        model=figures.model,
        revision=figures.revision,
        waiting=figures.waiting,
        open=figures.open,
        answers=figures.answers,
        failed_answers=figures.failed_answers,
        window_answers=figures.window_answers,
        window_failed_answers=figures.window_failed_answers,
    )
    if any(figures.ttft_counts):
        message.ttft_counts.extend(figures.ttft_counts)
    if figures.window_ttft_p95_s is not None:
        message.window_ttft_counts.extend(figures.window_ttft_counts)
        message.window_ttft_p95.CopyFrom(duration(figures.window_ttft_p95_s))
    return message
