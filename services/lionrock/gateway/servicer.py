"""GatewayService on the wire: who calls, until when, and what the inner services say. Chat is the pipeline's, the rest is here.

Knows messages and the current call; decides nothing itself. Errors leave as they come, the chassis puts them on the wire.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import grpc

from lionrock.chassis.ids import uuid7
from lionrock.common.v1 import context_pb2 as ctx
from lionrock.gateway.authorization import AccessRequest, Action, Authorizer
from lionrock.gateway.consents.statement import notice, privacy_statement
from lionrock.gateway.context import request_context
from lionrock.gateway.engines import Engines
from lionrock.gateway.identity.authenticator import Authenticator
from lionrock.gateway.identity.grpc_caller import caller_of_rpc
from lionrock.gateway.peers import Deadline, Peers
from lionrock.gateway.pipeline import ChatPipeline
from lionrock.gateway.quota_refusals import state_needed
from lionrock.gateway.quotas.admission import QuotaAdmission
from lionrock.gateway.refusals import permit
from lionrock.gateway.responses import quota_use
from lionrock.gateway.served_models import ServedModels
from lionrock.gateway.tenants import Principal
from lionrock.gateway.v1 import consent_pb2 as consent
from lionrock.gateway.v1 import gateway_pb2 as gw
from lionrock.gateway.v1.gateway_pb2_grpc import GatewayServiceServicer

Context = grpc.aio.ServicerContext[Any, Any]


class GatewayServicer(GatewayServiceServicer):
    """The RPCs of gateway.proto."""

    def __init__(
        self,
        authenticator: Authenticator,
        authorizer: Authorizer,
        pipeline: ChatPipeline,
        peers: Peers,
        engines: Engines,
        models: ServedModels,
        quotas: QuotaAdmission,
    ) -> None:
        self._authenticator = authenticator
        self._authorizer = authorizer
        self._pipeline = pipeline
        self._peers = peers
        self._engines = engines
        self._models = models
        self._quotas = quotas

    async def Chat(self, request: gw.ChatRequest, context: Context) -> None:  # type: ignore[override]  # noqa: N802
        """Stream one answer. Written through the context, so that a cancelled call interrupts the pipeline wherever it is."""
        principal, deadline = await caller_of_rpc(self._authenticator)
        send: Callable[[gw.ChatResponse], Awaitable[None]] = context.write
        await self._pipeline.answer(principal, request, deadline, send)

    async def CountTokens(self, request: gw.CountTokensRequest, context: Context) -> gw.CountTokensResponse:  # noqa: N802
        """Count the tokens of a conversation."""
        del context
        principal, deadline = await caller_of_rpc(self._authenticator)
        asked = AccessRequest(Action.COUNT_TOKENS, model=request.model or None)
        permit(self._authorizer, principal, asked)
        model = await self._models.resolve(self._authorizer.policies, principal, asked, deadline)
        with self._engines.tokenizing(model, principal.tenant.share) as tokenization:
            tokens = await tokenization.count(self._context(principal), model, request.messages, deadline)
        return gw.CountTokensResponse(tokens=tokens)

    async def ListModels(self, request: gw.ListModelsRequest, context: Context) -> gw.ListModelsResponse:  # noqa: N802
        """List what is served and permitted."""
        del request, context
        return await self.list_models(*await caller_of_rpc(self._authenticator))

    async def list_models(self, principal: Principal, deadline: Deadline) -> gw.ListModelsResponse:
        """List what is served to a caller and permitted, by whichever door it came."""
        asked = AccessRequest(Action.LIST_MODELS)
        permit(self._authorizer, principal, asked)
        served = await self._models.usable_by(self._authorizer.policies, principal, asked, deadline)
        models = [
            gw.Model(identity=model.identity, plan=model.plan, context_window=model.context_window, ready=model.ready)
            for model in served
        ]
        return gw.ListModelsResponse(models=models)

    async def GetReceipt(self, request: gw.GetReceiptRequest, context: Context) -> gw.GetReceiptResponse:  # noqa: N802
        """Fetch the proof of an answer."""
        del context
        return await self.get_receipt(request, *await caller_of_rpc(self._authenticator))

    async def get_receipt(self, request: gw.GetReceiptRequest, principal: Principal, deadline: Deadline) -> gw.GetReceiptResponse:
        """Fetch the proof of an answer of the caller's tenant, by whichever door it came: its log is the only one that is asked."""
        permit(self._authorizer, principal, AccessRequest(Action.GET_RECEIPT))
        receipt = await self._peers.audit.receipt(self._context(principal), request.request_id, deadline)
        return gw.GetReceiptResponse(receipt=receipt)

    async def ListAuditKeys(self, request: gw.ListAuditKeysRequest, context: Context) -> gw.ListAuditKeysResponse:  # noqa: N802
        """List the verifier keys."""
        del request, context
        return await self.list_audit_keys(*await caller_of_rpc(self._authenticator))

    async def list_audit_keys(self, principal: Principal, deadline: Deadline) -> gw.ListAuditKeysResponse:
        """List the verifier keys of the caller's log, by whichever door it came."""
        permit(self._authorizer, principal, AccessRequest(Action.LIST_AUDIT_KEYS))
        keys = await self._peers.audit.verifier_keys(self._context(principal), deadline)
        # A signed note's key is named after the log that it signs: "<origin>+<hash>+<key>" (C2SP signed-note).
        return gw.ListAuditKeysResponse(verifier_keys=keys, origin=keys[0].split("+", 1)[0] if keys else "")

    def privacy_statement(self, principal: Principal) -> tuple[consent.ListNoticesResponse, Sequence[consent.Notice]]:
        """Return the statement of the caller's tenant, and the notices of its purposes with their texts."""
        permit(self._authorizer, principal, AccessRequest(Action.READ_NOTICES))
        told = privacy_statement(principal.tenant)
        found = [notice(principal.tenant, each.purpose) for each in told.notices]
        return told, [each for each in found if each is not None]

    async def GetQuota(self, request: gw.GetQuotaRequest, context: Context) -> gw.GetQuotaResponse:  # noqa: N802
        """Say what is taken of the quotas of the caller and its tenant."""
        del request, context
        principal, _ = await caller_of_rpc(self._authenticator)
        permit(self._authorizer, principal, AccessRequest(Action.GET_QUOTA))
        with state_needed():
            return gw.GetQuotaResponse(quotas=map(quota_use, await self._quotas.use(principal)))

    def _context(self, principal: Principal) -> ctx.RequestContext:
        """Return the envelope of a call that is not a question."""
        return request_context(principal, uuid7(), access_policy_digest=self._authorizer.digest)
