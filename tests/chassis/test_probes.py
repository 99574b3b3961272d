"""The clear-text port of a kubelet's probes: what it answers, and that nothing else is behind it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from lionrock.chassis.probes import LIVENESS
from lionrock.chassis.server import CannotListen, RunningServer
from lionrock.guardrails.v1 import guardrails_pb2_grpc as rpc

SERVICE = "lionrock.guardrails.v1.GuardrailsService"
SERVING, NOT_SERVING = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING


async def ask(running: RunningServer, service: str = "") -> Any:
    """Ask as a kubelet does: no TLS, no certificate."""
    async with grpc.aio.insecure_channel(f"127.0.0.1:{running.probe_port}") as channel:
        request = health_pb2.HealthCheckRequest(service=service)
        return (await health_pb2_grpc.HealthStub(channel).Check(request, timeout=5)).status


async def test_a_caller_without_a_certificate_learns_whether_the_service_serves(small_mesh: Any) -> None:
    async with small_mesh.serving(probe_listen="127.0.0.1:0") as running:
        assert await ask(running) == await ask(running, SERVICE) == SERVING
        running.announce(able=False)
        assert await ask(running) == await ask(running, SERVICE) == NOT_SERVING


async def test_a_server_that_drains_is_not_ready_and_still_alive(small_mesh: Any) -> None:
    async with small_mesh.serving(probe_listen="127.0.0.1:0") as running:
        running.begin_drain()
        assert await ask(running) == NOT_SERVING
        assert await ask(running, LIVENESS) == SERVING


async def test_probes_are_answered_while_running_calls_finish(small_mesh: Any, inspect: Callable[..., Any]) -> None:
    async with small_mesh.serving(probe_listen="127.0.0.1:0") as running, small_mesh.calling(running) as stub:
        call = asyncio.ensure_future(stub.Inspect(inspect("wait")))
        await small_mesh.servicer.entered.wait()
        stopping = asyncio.create_task(running.stop(grace_s=10))
        assert await ask(running, LIVENESS) == SERVING
        small_mesh.servicer.release.set()
        await asyncio.gather(call, stopping)
        with pytest.raises(grpc.aio.AioRpcError):
            await ask(running, LIVENESS)


async def test_a_part_that_stopped_is_told_and_takes_no_service_with_it(small_mesh: Any) -> None:
    async with small_mesh.serving(parts=("lionrock.guardrails.part",), probe_listen="127.0.0.1:0") as running:
        assert await ask(running, "lionrock.guardrails.part") == NOT_SERVING
        for able, said in ((True, SERVING), (False, NOT_SERVING)):
            running.announce_part("lionrock.guardrails.part", able=able)
            assert await ask(running, "lionrock.guardrails.part") == said
            assert await ask(running) == await ask(running, SERVICE) == SERVING


async def test_an_unknown_name_and_a_watch_are_refused(small_mesh: Any) -> None:
    async with small_mesh.serving(probe_listen="127.0.0.1:0") as running:
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await ask(running, "no.such.Service")
        assert refused.value.code() is grpc.StatusCode.NOT_FOUND
        async with grpc.aio.insecure_channel(f"127.0.0.1:{running.probe_port}") as channel:
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await anext(aiter(health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest(), timeout=5)))
            assert refused.value.code() is grpc.StatusCode.UNIMPLEMENTED


async def test_no_service_of_the_mesh_is_behind_the_port(small_mesh: Any, inspect: Callable[..., Any]) -> None:
    async with small_mesh.serving(probe_listen="127.0.0.1:0") as running:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{running.probe_port}") as channel:
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await rpc.GuardrailsServiceStub(channel).Inspect(inspect(), timeout=5)
        assert refused.value.code() is grpc.StatusCode.UNIMPLEMENTED


async def test_without_the_setting_there_is_no_such_port(small_mesh: Any) -> None:
    async with small_mesh.serving() as running:
        assert running.probe_port is None


async def test_a_taken_address_ends_the_start_by_name(small_mesh: Any) -> None:
    async with small_mesh.serving(probe_listen="127.0.0.1:0") as running:
        taken = f"127.0.0.1:{running.probe_port}"
        with pytest.raises(CannotListen, match=taken):
            async with small_mesh.serving(probe_listen=taken):
                pass
