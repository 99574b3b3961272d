"""What a collector hears: metrics by model and revision, and of failures by the revision whose engines failed."""

from __future__ import annotations

from typing import Any

from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader

from lionrock.gateway.telemetry import GatewayMetrics


def points(reader: InMemoryMetricReader) -> dict[str, list[Any]]:
    data = reader.get_metrics_data()
    assert data is not None
    scopes = [scope for resource in data.resource_metrics for scope in resource.scope_metrics]
    return {metric.name: list(metric.data.data_points) for scope in scopes for metric in scope.metrics}


def test_answers_times_and_failures_are_told_by_model_and_revision() -> None:
    reader = InMemoryMetricReader()
    metrics = GatewayMetrics(MeterProvider([reader]).get_meter("test"))
    usual: dict[str, Any] = {
        "outcome": "answered",
        "reason": "",
        "total_s": 1.0,
        "first_token_s": 0.3,
        "tokens": 5,
        "resumptions": 1,
    }
    metrics.closed("bank", model="m", revision="new", lost_by=frozenset({"old"}), **usual)
    metrics.closed("bank", model="m", revision="", lost_by=frozenset(), **usual)
    metrics.routes_refused()
    told = points(reader)
    for name in ("gen_ai.server.time_to_first_token", "gen_ai.server.request.duration"):
        revisions = {(point.attributes["gen_ai.request.model"], point.attributes.get("lionrock.revision")) for point in told[name]}
        assert revisions == {("m", "new"), ("m", None)}
    (failed,) = told["lionrock.gateway.failed_answers"]
    assert (failed.attributes["lionrock.revision"], failed.value) == ("old", 1)
    assert told["lionrock.gateway.routes_refused"][0].value == 1
