"""`python -m lionrock.operator --config FILE`: settings, telemetry, the cluster, and the operator until it is told to end."""

from __future__ import annotations

import logging
import signal
import sys
import threading

import prometheus_client
from opentelemetry.exporter.prometheus import PrometheusMetricReader

from lionrock.chassis.probe_server import ProbeServer
from lionrock.chassis.settings import load_settings
from lionrock.chassis.telemetry import meter, start_telemetry
from lionrock.operator.api_errors import ApiError
from lionrock.operator.cluster import Cluster, ClusterUnknown
from lionrock.operator.front_health import FrontHealth
from lionrock.operator.gateway_stats import GatewayStats
from lionrock.operator.reports import JoinedReports, no_reports
from lionrock.operator.running_operator import GangSchedulerMissing, RunningOperator, check_gang_scheduler
from lionrock.operator.settings import OperatorSettings
from lionrock.operator.telemetry import OperatorMetrics


def main() -> int:
    """Operate until told to stop."""
    settings = load_settings(OperatorSettings, sys.argv[1:])
    told_to_end = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: told_to_end.set())
    logging.getLogger("kubernetes").setLevel(logging.ERROR)  # its informer tells what ours has told already
    telemetry = start_telemetry("operator", settings.telemetry, [PrometheusMetricReader()])
    measured = OperatorMetrics(meter())
    try:
        cluster = Cluster.connect(settings.kubeconfig, measured.call, call_timeout_s=settings.call_timeout_s)
        check_gang_scheduler(cluster, settings)
        health = FrontHealth()
        stats = (
            None
            if settings.gateways is None
            else GatewayStats(settings.gateways, settings.gateways.namespace or settings.namespace)
        )
        reports = JoinedReports(health.reports, no_reports if stats is None else stats.reports)
        operator = RunningOperator(cluster, settings, measured, account=cluster.service_account(), reports=reports)
        probes = ProbeServer(settings.listen, operator.unhealthy, operator.unready, prometheus_client.generate_latest)
    except (ApiError, ClusterUnknown, GangSchedulerMissing, OSError) as error:
        print(f"lionrock operator: {error}", file=sys.stderr)
        return 1
    probes.start()
    operator.start()
    health.start(operator.fronts, operator.look_at)
    if stats is not None:
        stats.start(operator.models, lambda: operator.leads, operator.look_at)
    told_to_end.wait()
    health.stop()
    if stats is not None:
        stats.stop()
    clean = operator.stop()
    probes.close()
    cluster.close()
    telemetry.close()
    return 0 if clean else 1


if __name__ == "__main__":
    sys.exit(main())
