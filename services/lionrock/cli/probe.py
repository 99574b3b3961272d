"""Asks the services of a mesh how they are over mutual TLS, as `lionrock up` does: grpc.health.v1, and for models the gateway.

A channel a question: one that stays open would, after a refusal, wait before it tries again, and the service would seem late.
"""

from __future__ import annotations

import secrets
from collections.abc import Awaitable, Callable

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from lionrock.chassis.channel import open_channel
from lionrock.chassis.settings import PeerSettings, TlsSettings
from lionrock.chassis.tls import TlsFilesUnusable
from lionrock.cli.supervisor import Health
from lionrock.gateway.v1 import gateway_pb2, gateway_pb2_grpc

PROBE_TIMEOUT_S = 3.0
# W3C trace context with the sampled flag off: questions that are asked ten times a second must not fill the span files.
_UNTRACED = (("traceparent", f"00-{secrets.token_hex(16)}-{secrets.token_hex(8)}-00"),)


def health_probe(service: str, target: str, tls: TlsSettings) -> Callable[[], Awaitable[Health]]:
    """Make a probe of one service, which must show that service's certificate. What cannot be asked is unreachable."""
    peer = PeerSettings(target=target, service=service, timeout_s=PROBE_TIMEOUT_S)

    async def probe() -> Health:
        try:
            async with open_channel(peer, tls, name="supervisor") as channel:
                answer = await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest())
        except (grpc.RpcError, TlsFilesUnusable):
            return Health.UNREACHABLE
        return Health.SERVING if answer.status == health_pb2.HealthCheckResponse.SERVING else Health.NOT_SERVING

    return probe


def models_probe(health: Callable[[], Awaitable[Health]], gateway: str, client: TlsSettings) -> Callable[[], Awaitable[Health]]:
    """Make a probe of inference, which serves before its models do: SERVING when the gateway lists every model as ready."""
    peer = PeerSettings(target=gateway, service="gateway", timeout_s=PROBE_TIMEOUT_S)

    async def probe() -> Health:
        answer = await health()
        if answer is not Health.SERVING:
            return answer
        try:
            async with open_channel(peer, client, name="supervisor") as channel:
                stub = gateway_pb2_grpc.GatewayServiceStub(channel)
                listed = await stub.ListModels(gateway_pb2.ListModelsRequest(), metadata=_UNTRACED)
        except (grpc.RpcError, TlsFilesUnusable):
            return Health.NOT_SERVING
        return Health.SERVING if listed.models and all(model.ready for model in listed.models) else Health.NOT_SERVING

    return probe
