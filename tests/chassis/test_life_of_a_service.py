"""A service as a process: ready, serving, draining, gone; what it logs and what it weighs."""

from __future__ import annotations

import asyncio
import json
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
import yaml
from grpc_health.v1 import health_pb2, health_pb2_grpc
from opentelemetry.proto.collector.metrics.v1 import metrics_service_pb2_grpc
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceResponse
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2_grpc
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceResponse

from lionrock.chassis.channel import MeshChannel
from lionrock.chassis.errors import remote_error
from lionrock.chassis.settings import PeerSettings
from lionrock.guardrails.v1 import guardrails_pb2 as pb
from lionrock.guardrails.v1 import guardrails_pb2_grpc as rpc

PROGRAM = Path(__file__).with_name("small_service.py")
START_S = 20.0
MAX_IDLE_BYTES = 80 * 2**20


IDLE_STREAMS = 10_000
BATCH = 500
UNHARMED_S = 2.0


def resident_bytes(pid: int) -> int:
    """Memory of a process that is in RAM."""
    status = Path(f"/proc/{pid}/status").read_text()
    return next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmRSS"))


class Service:
    """A running process, its port and its callers' channel."""

    def __init__(self, process: asyncio.subprocess.Process, channel: MeshChannel) -> None:
        self.process = process
        self.channel = channel
        self.stub = rpc.GuardrailsServiceStub(channel)
        self.health = health_pb2_grpc.HealthStub(channel)

    async def open_stream(self) -> Any:
        stream = self.stub.InspectStream()
        await stream.write(chunk("first"))
        assert (await stream.read()).released == "first"
        return stream

    async def ended(self, timeout_s: float) -> tuple[int | None, list[dict[str, Any]]]:
        """Wait for the end of the process; its exit status and its log lines."""
        _, logged = await asyncio.wait_for(self.process.communicate(), timeout_s)
        return self.process.returncode, [json.loads(line) for line in logged.decode().splitlines()]


def chunk(text: str) -> Any:
    return pb.InspectStreamRequest(chunk=pb.StreamChunk(text=text))


def write_config(
    mesh: Any, *, for_tenants: bool = False, telemetry: dict[str, Any] | None = None, **server: Any
) -> tuple[Path, Path]:
    tls = mesh.ca.issue("guardrails")
    ready = mesh.directory / "ready"
    config = mesh.directory / "config.yaml"
    content = {
        "server": {
            "tls": {"cert_file": str(tls.cert_file), "key_file": str(tls.key_file), "ca_file": str(tls.ca_file)},
            "trust_domain": "lionrock.local",
            "ready_file": str(ready),
            **server,
        },
        "for_tenants": for_tenants,
        "telemetry": {"span_dir": str(mesh.directory / "traces"), **(telemetry or {})},
    }
    config.write_text(yaml.safe_dump(content))
    return config, ready


@asynccontextmanager
async def service(mesh: Any, **server: Any) -> AsyncIterator[Service]:
    config, ready = write_config(mesh, **server)
    arguments = [sys.executable, str(PROGRAM), "--config", str(config)]
    process = await asyncio.create_subprocess_exec(*arguments, stderr=asyncio.subprocess.PIPE)
    try:
        async with asyncio.timeout(START_S):
            while not ready.exists():
                assert process.returncode is None, (await process.communicate())[1].decode()
                await asyncio.sleep(0.02)
        peer = PeerSettings(target=f"127.0.0.1:{ready.read_text().strip()}", service="guardrails", timeout_s=60)
        caller = mesh.ca.issue_tenant("acme") if server.get("for_tenants") else mesh.ca.issue("gateway")
        async with MeshChannel(peer, caller) as channel:
            yield Service(process, channel)
    finally:
        if process.returncode is None:
            process.kill()
            await process.communicate()


async def test_after_sigterm_running_calls_finish_and_new_ones_are_sent_elsewhere(small_mesh: Any) -> None:
    async with service(small_mesh) as running:
        stream = await running.open_stream()
        watch = running.health.Watch(health_pb2.HealthCheckRequest())
        assert (await watch.read()).status == health_pb2.HealthCheckResponse.SERVING
        running.process.send_signal(signal.SIGTERM)
        assert (await watch.read()).status == health_pb2.HealthCheckResponse.NOT_SERVING
        assert (await running.health.Check(health_pb2.HealthCheckRequest())).status == health_pb2.HealthCheckResponse.NOT_SERVING
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await running.stub.Inspect(pb.InspectRequest())
        error = remote_error(caught.value)
        assert (error.status, error.reason) == (grpc.StatusCode.UNAVAILABLE, "SHUTTING_DOWN")
        assert error.retry_after_s is not None
        await stream.write(chunk("last"))
        assert (await stream.read()).released == "last"
        await stream.done_writing()
        assert await stream.code() is grpc.StatusCode.OK
        status, lines = await running.ended(5)
    assert status == 0
    said = [line["message"] for line in lines]
    assert "draining" in said
    assert said[-1] == "stopped"


async def test_a_drain_ends_when_its_grace_is_over(small_mesh: Any) -> None:
    async with service(small_mesh, drain_grace_s=0.3) as running:
        stream = await running.open_stream()
        running.process.send_signal(signal.SIGTERM)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stream.read()
        assert remote_error(caught.value).reason == "SHUTTING_DOWN"
        status, lines = await running.ended(5)
    assert status == 0
    assert [line for line in lines if line["level"] == "ERROR"] == []


async def test_a_second_signal_ends_at_once(small_mesh: Any) -> None:
    async with service(small_mesh, drain_grace_s=60) as running:
        stream = await running.open_stream()
        watch = running.health.Watch(health_pb2.HealthCheckRequest())
        await watch.read()
        running.process.send_signal(signal.SIGTERM)
        assert (await watch.read()).status == health_pb2.HealthCheckResponse.NOT_SERVING
        running.process.send_signal(signal.SIGTERM)
        status, lines = await running.ended(5)
        assert await stream.code() is grpc.StatusCode.UNAVAILABLE
    assert status == 0
    assert "stopping at once" in [line["message"] for line in lines]
    assert [line for line in lines if line["level"] == "ERROR"] == []


async def test_logs_are_json_with_the_ids_of_the_trace_and_without_payload(small_mesh: Any) -> None:
    async with service(small_mesh) as running:
        stream = await running.open_stream()
        await stream.write(chunk("raise"))
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stream.read()
        running.process.send_signal(signal.SIGTERM)
        _, lines = await running.ended(5)
    (error,) = [line for line in lines if line["level"] == "ERROR"]
    assert error["error_id"] == remote_error(caught.value).metadata["error_id"]
    assert error["exception"] == "builtins.ValueError"
    assert error["raised_at"][-1].startswith("__main__:InspectStream:")
    assert error["service"] == "guardrails"
    traces = "".join(file.read_text() for file in (small_mesh.directory / "traces").iterdir())
    assert error["trace_id"] in traces
    assert error["span_id"] in traces
    assert "canary" not in json.dumps(lines) + traces


class Collector(trace_service_pb2_grpc.TraceServiceServicer, metrics_service_pb2_grpc.MetricsServiceServicer):
    """An OTLP collector that keeps what it gets. The two services have a method of one name, so each has its own object."""

    def __init__(self, response: Any) -> None:
        self.response = response
        self.received: list[Any] = []

    async def Export(self, request: Any, context: Any) -> Any:
        self.received.append(request)
        return self.response


async def test_traces_and_metrics_go_to_a_collector_when_one_is_named(small_mesh: Any) -> None:
    traces, metrics = Collector(ExportTraceServiceResponse()), Collector(ExportMetricsServiceResponse())
    collector = grpc.aio.server()
    trace_service_pb2_grpc.add_TraceServiceServicer_to_server(traces, collector)
    metrics_service_pb2_grpc.add_MetricsServiceServicer_to_server(metrics, collector)
    port = collector.add_insecure_port("127.0.0.1:0")
    await collector.start()
    async with service(small_mesh, telemetry={"otlp_endpoint": f"http://127.0.0.1:{port}"}) as running:
        with pytest.raises(grpc.aio.AioRpcError):
            await running.stub.Inspect(pb.InspectRequest(profile="Canary 4f1d"))
        running.process.send_signal(signal.SIGTERM)
        status, _ = await running.ended(10)
    await collector.stop(None)
    assert status == 0
    spans = [span for request in traces.received for r in request.resource_spans for s in r.scope_spans for span in s.spans]
    assert [span.name for span in spans] == ["lionrock.guardrails.v1.GuardrailsService/Inspect"]
    names = {m.name for request in metrics.received for r in request.resource_metrics for s in r.scope_metrics for m in s.metrics}
    assert {"rpc.server.duration", "rpc.server.active_requests"} <= names
    assert "Canary" not in str(traces.received) + str(metrics.received)


async def test_an_idle_service_weighs_no_more_than_eighty_mebibytes(small_mesh: Any) -> None:
    async with service(small_mesh) as running:
        for _ in range(50):
            with pytest.raises(grpc.aio.AioRpcError):
                await running.stub.Inspect(pb.InspectRequest())
        resident = resident_bytes(running.process.pid)
    assert resident <= MAX_IDLE_BYTES, f"{resident / 2**20:.1f} MiB"


async def test_ten_thousand_idle_streams_of_one_caller_leave_the_others_unharmed(small_mesh: Any) -> None:
    share = 16  # a quarter of the server for one identity
    async with service(small_mesh, for_tenants=True, max_concurrent_rpcs=4 * share) as running:
        stream = await running.open_stream()
        before = resident_bytes(running.process.pid)
        async with MeshChannel(running.channel.peer, small_mesh.ca.issue_tenant("flood")) as flooding:
            flooder = rpc.GuardrailsServiceStub(flooding)
            held: list[Any] = []
            for _ in range(IDLE_STREAMS // BATCH):
                batch = [flooder.InspectStream() for _ in range(BATCH)]
                still_open = await all_but(batch, 0 if held else share)
                if not held:
                    held = still_open
                    assert len(held) == share
                async with asyncio.timeout(UNHARMED_S):
                    await stream.write(chunk("others"))
                    assert (await stream.read()).released == "others"
            assert resident_bytes(running.process.pid) - before <= 64 * 2**20
            for call in held:
                await call.write(chunk("mine"))
                assert (await call.read()).released == "mine"


async def all_but(opened: list[Any], rest: int) -> list[Any]:
    """Wait until no more than `rest` calls are open; the others must have been refused as OVERLOADED. Return the open ones."""
    pending = {asyncio.ensure_future(call.code()): call for call in opened}
    async with asyncio.timeout(30):
        while sum(not task.done() for task in pending) > rest:
            await asyncio.wait([task for task in pending if not task.done()], return_when=asyncio.FIRST_COMPLETED)
    still_open = []
    for task, call in pending.items():
        if not task.done():
            still_open.append(call)
            task.cancel()
            continue
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call.read()
        assert remote_error(caught.value).reason == "OVERLOADED"
    return still_open


async def test_a_service_that_cannot_start_says_why_and_leaves(small_mesh: Any) -> None:
    config, _ = write_config(small_mesh)
    (small_mesh.directory / "certs" / "guardrails" / "tls.key").unlink()
    arguments = [sys.executable, str(PROGRAM), "--config", str(config)]
    process = await asyncio.create_subprocess_exec(*arguments, stderr=asyncio.subprocess.PIPE)
    _, said = await asyncio.wait_for(process.communicate(), START_S)
    assert process.returncode == 1
    assert "lionrock guardrails:" in said.decode()
    assert "Traceback" not in said.decode()
