"""`python -m lionrock.gateway --config FILE`: settings, channels to the inner services, serve, settle."""

from __future__ import annotations

import asyncio
import logging
import secrets
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

import grpc

from lionrock.chassis.channel import open_channel
from lionrock.chassis.server import AnyTenant, Registration, serve
from lionrock.chassis.settings import PeerSettings, load_settings
from lionrock.chassis.telemetry import meter
from lionrock.chassis.tls import TlsFilesUnusable
from lionrock.gateway.admission import Admission
from lionrock.gateway.context import CacheSalts
from lionrock.gateway.peers import AuditLog, Guardrails, Inference, Peers, Tokenization
from lionrock.gateway.pipeline import ChatPipeline
from lionrock.gateway.served_models import ServedModels
from lionrock.gateway.servicer import GatewayServicer
from lionrock.gateway.settings import GatewaySettings
from lionrock.gateway.telemetry import GatewayMetrics
from lionrock.gateway.v1.gateway_pb2_grpc import add_GatewayServiceServicer_to_server

log = logging.getLogger("lionrock.gateway")

SERVICE_NAME = "lionrock.gateway.v1.GatewayService"


@asynccontextmanager
async def gateway(settings: GatewaySettings) -> AsyncIterator[Registration]:
    """Open the channels and return the service. Leaving writes the outcomes that are still being written, then closes them."""
    async with AsyncExitStack() as stack:

        async def channel(peer: PeerSettings) -> grpc.aio.Channel:
            opened = await stack.enter_async_context(open_channel(peer, settings.server.tls, name="gateway"))
            opened.get_state(try_to_connect=True)  # so that the first question does not pay for the handshake
            return opened

        peers = Peers(
            Guardrails(await channel(settings.guardrails), settings.guardrails.timeout_s),
            Tokenization(await channel(settings.tokenization), settings.tokenization.timeout_s),
            Inference(await channel(settings.inference), settings.inference.timeout_s),
            AuditLog(await channel(settings.audit), settings.audit.timeout_s),
        )
        models = ServedModels(peers.inference, settings.limits.models_fresh_s)
        pipeline = ChatPipeline(
            peers, models, Admission(settings.limits.max_streams), _cache_salts(settings), settings.limits, GatewayMetrics(meter())
        )
        servicer = GatewayServicer(settings.directory(), pipeline, peers, models)
        yield Registration(add_GatewayServiceServicer_to_server, servicer, SERVICE_NAME, AnyTenant())
        try:
            async with asyncio.timeout(2 * settings.limits.outcome_timeout_s):
                await pipeline.settle()
        except TimeoutError:
            log.error("stopped with outcomes unwritten")


def _cache_salts(settings: GatewaySettings) -> CacheSalts:
    """Read or draw the secret. Raises OSError, ValueError."""
    if settings.cache_salt_file is None:
        return CacheSalts(secrets.token_bytes(32))
    return CacheSalts(settings.cache_salt_file.read_bytes())


async def main() -> None:
    """Serve until told to stop."""
    settings = load_settings(GatewaySettings, sys.argv[1:])
    async with AsyncExitStack() as stack:
        try:
            registration = await stack.enter_async_context(gateway(settings))
        except (OSError, ValueError, TlsFilesUnusable) as error:
            sys.exit(f"lionrock gateway: {error}")
        await serve(settings, "gateway", [registration])


if __name__ == "__main__":
    asyncio.run(main())
