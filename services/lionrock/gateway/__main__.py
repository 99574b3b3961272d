"""`python -m lionrock.gateway --config FILE`: settings, channels to the inner services, serve, settle."""

from __future__ import annotations

import asyncio
import logging
import secrets
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass

import grpc

from lionrock.chassis.channel import MeshChannel, open_channel
from lionrock.chassis.http_door import HttpCalls, HttpDoor
from lionrock.chassis.http_exchange import Application
from lionrock.chassis.ids import uuid7
from lionrock.chassis.server import AnyTenant, Registration, serve
from lionrock.chassis.settings import PeerSettings, load_settings
from lionrock.chassis.telemetry import meter
from lionrock.chassis.tls import TlsFilesUnusable
from lionrock.gateway.access_policies import AccessPolicies, packaged_roles
from lionrock.gateway.admission import Admission
from lionrock.gateway.audit_access import AuditDoor
from lionrock.gateway.authorization import Authorizer
from lionrock.gateway.consents.door import open_consents
from lionrock.gateway.context import CacheSalts
from lionrock.gateway.emergencies.door import open_emergencies
from lionrock.gateway.engines import Engines
from lionrock.gateway.identity.api_key_door import open_api_keys
from lionrock.gateway.identity.authenticator import Authenticator, authenticating
from lionrock.gateway.model_stats import ModelStats
from lionrock.gateway.openai.app import OpenAiApi
from lionrock.gateway.peers import AuditLog, Guardrails, Inference, Peers, Tokenization
from lionrock.gateway.pipeline import ChatPipeline
from lionrock.gateway.policy_directory import PolicyDirectory
from lionrock.gateway.quotas.admission import QuotaAdmission
from lionrock.gateway.quotas.ledger import QuotaLedger
from lionrock.gateway.reviews.door import open_reviews
from lionrock.gateway.reviews.holding import HeldAnswers
from lionrock.gateway.reviews.servicer import ReviewServicer
from lionrock.gateway.routed_channels import RoutedChannels
from lionrock.gateway.routes import Endpoint, RoutesInvalid, RouteTable
from lionrock.gateway.routes_file import RoutesFile
from lionrock.gateway.served_models import ServedModels
from lionrock.gateway.servicer import GatewayServicer
from lionrock.gateway.settings import GatewaySettings
from lionrock.gateway.state.opening import open_state
from lionrock.gateway.state.store import StateStore, StateUnavailable
from lionrock.gateway.stats_servicer import CALLERS as STATS_CALLERS
from lionrock.gateway.stats_servicer import SERVICE_NAME as STATS_SERVICE_NAME
from lionrock.gateway.stats_servicer import StatsServicer
from lionrock.gateway.telemetry import GatewayMetrics
from lionrock.gateway.tenants import TenantDirectory
from lionrock.gateway.tenants_dir import TenantsDir
from lionrock.gateway.v1.gateway_pb2_grpc import add_GatewayServiceServicer_to_server
from lionrock.gateway.v1.stats_pb2_grpc import add_GatewayStatsServiceServicer_to_server

log = logging.getLogger("lionrock.gateway")

SERVICE_NAME = "lionrock.gateway.v1.GatewayService"
NO_TARGET = "routed"  # stands in the settings of engines for the target, which each has of its own


@dataclass(frozen=True, slots=True)
class Front:
    """What the gateway serves: services on its gRPC port, and the HTTP API if it has a port."""

    registrations: Sequence[Registration]
    http: HttpDoor | None


@asynccontextmanager
async def gateway(settings: GatewaySettings) -> AsyncIterator[Front]:
    """Open the channels and return the services. Leaving writes the outcomes that are still being written, then closes them.

    Raises OSError, ValueError (of which PoliciesInvalid), TlsFilesUnusable, RoutesInvalid and StateUnavailable.
    """
    async with AsyncExitStack() as stack:

        async def channel(peer: PeerSettings) -> grpc.aio.Channel:
            opened = await stack.enter_async_context(open_channel(peer, settings.server.tls, name="gateway"))
            opened.get_state(try_to_connect=True)  # so that the first question does not pay for the handshake
            return opened

        audit_channel = await channel(settings.audit)
        peers = Peers(
            Guardrails(await channel(settings.guardrails), settings.guardrails.timeout_s),
            AuditLog(audit_channel, settings.audit.timeout_s),
        )
        own = settings.tokenization
        tokenization = None if own is None else Tokenization(await channel(own), own.timeout_s)
        metrics, stats = GatewayMetrics(meter()), ModelStats()
        engines = await stack.enter_async_context(_engines(settings, tokenization, metrics, stats))
        authorizer = await stack.enter_async_context(_policies(settings, metrics))
        models = ServedModels(engines, settings.limits.models_fresh_s)
        admission = Admission(settings.limits.max_streams)
        state = None if settings.state is None else await stack.enter_async_context(open_state(settings.state))
        quotas = await stack.enter_async_context(_quotas(state))
        consents = await open_consents(settings.consents, state)
        salts = _cache_salts(settings)
        pipeline = ChatPipeline(
            authorizer,
            peers,
            engines,
            models,
            admission,
            quotas,
            consents.gate,
            HeldAnswers(state),
            salts,
            settings.limits,
            metrics,
            stats,
        )
        directory = await stack.enter_async_context(_tenants(settings, metrics))
        api_keys = await stack.enter_async_context(open_api_keys(settings.api_keys, state))
        emergencies = await stack.enter_async_context(open_emergencies(state, peers.audit, metrics.emergency_stepped))
        authenticator = await stack.enter_async_context(authenticating(directory, metrics.issuer_keys_unavailable, api_keys.live))
        servicer = GatewayServicer(authenticator, authorizer, pipeline, peers, engines, models, quotas)
        reviews = await stack.enter_async_context(
            open_reviews(
                state,
                peers.audit,
                authenticator,
                authorizer,
                directory,
                trust_domain=settings.server.trust_domain,
                unnotified=metrics.review_unnotified,
            )
        )
        api = None if settings.http is None else settings.http.beside(settings.server)
        registrations = (
            Registration(add_GatewayServiceServicer_to_server, servicer, SERVICE_NAME, AnyTenant(tokens=True)),
            Registration(add_GatewayStatsServiceServicer_to_server, StatsServicer(stats), STATS_SERVICE_NAME, STATS_CALLERS),
            *AuditDoor(authenticator, authorizer, audit_channel, emergencies.live, state).registrations(),
            *emergencies.registrations(authenticator, authorizer),
            *api_keys.registrations(authenticator, authorizer, peers.audit),
            consents.registration(authenticator, authorizer, peers.audit),
            *reviews.registrations(),
        )
        yield Front(
            registrations, None if api is None else HttpDoor(api, _http_api(authenticator, pipeline, servicer, reviews.servicer))
        )
        try:
            async with asyncio.timeout(2 * settings.limits.outcome_timeout_s):
                await pipeline.settle()
        except TimeoutError:
            log.error("stopped with outcomes unwritten")


@asynccontextmanager
async def _quotas(state: StateStore | None) -> AsyncIterator[QuotaAdmission]:
    """Count on quotas together with the gateways that share the state."""
    quotas = QuotaAdmission(None if state is None else QuotaLedger(state, gateway=uuid7()))
    async with quotas.running():
        yield quotas


@asynccontextmanager
async def _policies(settings: GatewaySettings, metrics: GatewayMetrics) -> AsyncIterator[Authorizer]:
    """Know the access policies, and, where a directory holds them, follow it. Raises PoliciesInvalid, OSError."""
    if settings.policy_dir is None:
        yield Authorizer(AccessPolicies(packaged_roles(), served_in=settings.served_in))
        return
    directory = PolicyDirectory(settings.policy_dir, served_in=settings.served_in, refused=metrics.policies_refused)
    authorizer = directory.start()
    looking = asyncio.create_task(directory.keep_looking(settings.limits.policies_poll_s), name="lionrock-policies")
    try:
        yield authorizer
    finally:
        looking.cancel()


@asynccontextmanager
async def _tenants(settings: GatewaySettings, metrics: GatewayMetrics) -> AsyncIterator[TenantDirectory]:
    """Know the tenants, and, where a directory names them, follow it. Raises OSError, GatewayLacksState."""
    directory = settings.directory()
    if settings.tenants_dir is None:
        yield directory
        return
    files = TenantsDir(
        settings.tenants_dir,
        settings.named_tenants(),
        directory,
        trust_domain=settings.server.trust_domain,
        counts_quotas=settings.state is not None,
        divides_engines=settings.routes_file is not None,
        keeps_consents=settings.consents is not None,
        refused=metrics.tenants_refused,
    )
    files.start()
    looking = asyncio.create_task(files.keep_looking(settings.limits.tenants_poll_s), name="lionrock-tenants")
    try:
        yield directory
    finally:
        looking.cancel()


@asynccontextmanager
async def _engines(
    settings: GatewaySettings, own_tokenization: Tokenization | None, metrics: GatewayMetrics, stats: ModelStats
) -> AsyncIterator[Engines]:
    """Open the channels to the engines that are named and to their tokenization, and, where a file names them, follow it."""
    peer = settings.inference or PeerSettings(target=NO_TARGET, service="inference")
    beside = settings.tokenization or PeerSettings(target=NO_TARGET, service="tokenization")

    def opening(peer: PeerSettings) -> Callable[[str], MeshChannel]:
        return lambda target: MeshChannel(peer.model_copy(update={"target": target}), settings.server.tls)

    def follow(table: RouteTable) -> None:
        engines.follow(table)
        stats.keep(table.revisions)

    engines = Engines(
        RoutedChannels(opening(peer), lambda channel: Inference(channel, peer.timeout_s)),
        RoutedChannels(opening(beside), lambda channel: Tokenization(channel, beside.timeout_s)),
        own_tokenization,
    )
    async with AsyncExitStack() as stack:
        stack.push_async_callback(engines.close)
        if settings.routes_file is None:
            engines.follow(RouteTable(only=Endpoint(peer.target)))
        else:
            file = RoutesFile(settings.routes_file, follow, metrics.routes_refused)
            file.start()
            looking = asyncio.create_task(file.keep_looking(settings.limits.routes_poll_s), name="lionrock-routes")
            stack.callback(looking.cancel)
        yield engines


def _http_api(
    authenticator: Authenticator, pipeline: ChatPipeline, servicer: GatewayServicer, reviews: ReviewServicer | None
) -> Callable[[HttpCalls], Application]:
    return lambda calls: OpenAiApi(calls, authenticator, pipeline, servicer, reviews).application()


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
            front = await stack.enter_async_context(gateway(settings))
        except (OSError, ValueError, TlsFilesUnusable, RoutesInvalid, StateUnavailable) as error:
            sys.exit(f"lionrock gateway: {error}")
        await serve(settings, "gateway", front.registrations, http=front.http)


if __name__ == "__main__":
    asyncio.run(main())
