"""The gateway's door to the audit service: its records, and what reads its logs, for tenants' own identities.

Knows: which call is which action, that the gateway alone says who asks, how a call is passed on and its answer back. Does not
know: what a call does; the audit service decides again by role (docs/audit.md), and by what it alone knows. One forwarder
serves all calls of records.proto and those of audit.proto that read. Append is not among them: nobody outside writes.

When the erasure of a tenant is decided, what gateways share of it is deleted before that is answered.

Where an emergency of the caller is in force, calls that it can open carry its id and the roles that stand for it; a stream under
one ends with it.

A unary call is answered when the audit service has answered; a stream is passed on message by message, the next one read when
the last one is written, so a slow reader holds the stream back and nothing gathers here. The caller's deadline and cancellation
go with the call.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

import grpc
from google.protobuf import message_factory
from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor
from google.protobuf.message import Message

from lionrock.audit.v1 import audit_pb2, records_pb2
from lionrock.chassis.errors import InvalidField
from lionrock.chassis.ids import uuid7
from lionrock.chassis.server import AnyTenant, Registration
from lionrock.gateway.access_policies import AccessPolicies
from lionrock.gateway.authorization import EMERGENCY_ACTIONS, AccessRequest, Action, Authorizer, BreakGlass
from lionrock.gateway.context import request_context
from lionrock.gateway.emergencies.leaves import CLEARED_ROLE, READER_ROLE
from lionrock.gateway.emergencies.live import EmergenciesUnknownError, LiveEmergencies
from lionrock.gateway.errors import RoleNotPermitted, SharedStateUnavailable
from lionrock.gateway.identity.authenticator import Authenticator
from lionrock.gateway.identity.grpc_caller import caller_of_rpc
from lionrock.gateway.peer_errors import passed_on, translated
from lionrock.gateway.peers import Deadline
from lionrock.gateway.quota_refusals import state_needed
from lionrock.gateway.refusals import permit
from lionrock.gateway.state.departures import forget_tenant
from lionrock.gateway.state.store import StateStore
from lionrock.gateway.tenants import Principal

log = logging.getLogger("lionrock.gateway")

Context = grpc.aio.ServicerContext[Any, Any]

CALL_ACTIONS: Final[Mapping[str, Mapping[str, Action]]] = {
    "RecordsService": {
        "ReadRecord": Action.READ_RECORD,
        "StreamRecord": Action.READ_RECORD,
        "SearchSubject": Action.SEARCH_RECORDS,
        "EraseSubject": Action.ERASE_RECORDS,
        "CorrectRecord": Action.CORRECT_RECORD,
        "PlaceHold": Action.HOLD_RECORDS,
        "ReleaseHold": Action.HOLD_RECORDS,
        "ListHolds": Action.HOLD_RECORDS,
        "LogRefusal": Action.LOG_REFUSAL,
        "ListRefusals": Action.READ_LOG_BOOK,
        "Export": Action.EXPORT_RECORDS,
        "GetLogStats": Action.READ_LOG_STATS,
        "BeginOffboarding": Action.BEGIN_OFFBOARDING,
        "CancelOffboarding": Action.BEGIN_OFFBOARDING,
        "EraseTenant": Action.ERASE_TENANT,
        "GetOffboarding": Action.READ_LOG_STATS,
    },
    "AuditService": {
        "GetReceipt": Action.VERIFY_LOG,
        "ProveLeaf": Action.VERIFY_LOG,
        "GetCheckpoint": Action.VERIFY_LOG,
        "GetConsistencyProof": Action.VERIFY_LOG,
        "ListLeaves": Action.READ_LEAVES,
        "ListKeys": Action.VERIFY_LOG,
    },
}
"""By service and method. What is missing here is not forwarded."""
_SERVICES: Final[tuple[ServiceDescriptor, ...]] = (
    records_pb2.DESCRIPTOR.services_by_name["RecordsService"],
    audit_pb2.DESCRIPTOR.services_by_name["AuditService"],
)


@dataclass(frozen=True, slots=True)
class _Admitted:
    """A call that goes on, and the emergency under which it does."""

    principal: Principal
    deadline: Deadline
    emergency: BreakGlass | None


class AuditDoor:
    """Forwards calls of tenants' identities to the audit service."""

    def __init__(
        self,
        authenticator: Authenticator,
        authorizer: Authorizer,
        channel: grpc.aio.Channel,
        emergencies: LiveEmergencies | None = None,
        state: StateStore | None = None,
    ) -> None:
        """`emergencies`: None where gateways share no state, and there are none. `state`: what they share."""
        self._state = state
        self._authenticator = authenticator
        self._authorizer = authorizer
        self._channel = channel
        self._emergencies = emergencies

    def registrations(self) -> tuple[Registration, ...]:
        """Return the services as the chassis registers them."""
        return tuple(
            Registration(_add, self._handlers(service), service.full_name, AnyTenant(tokens=True)) for service in _SERVICES
        )

    def _handlers(self, service: ServiceDescriptor) -> grpc.GenericRpcHandler:
        methods = {name: self._handler(service.methods_by_name[name]) for name in CALL_ACTIONS[service.name]}
        return grpc.method_handlers_generic_handler(service.full_name, methods)

    def _handler(self, method: MethodDescriptor) -> grpc.RpcMethodHandler[Any, Any]:
        action = CALL_ACTIONS[method.containing_service.name][method.name]
        request_class, response_class = (message_factory.GetMessageClass(kind) for kind in (method.input_type, method.output_type))
        kind = "unary_stream" if method.server_streaming else "unary_unary"
        forward = getattr(self._channel, kind)(
            f"/{method.containing_service.full_name}/{method.name}",
            request_serializer=request_class.SerializeToString,
            response_deserializer=response_class.FromString,
        )

        async def unary(request: Any, context: Context) -> Any:
            del context
            admitted = await self._admit(request, action)
            with translated(passed_on):
                response = await forward(request, timeout=admitted.deadline.left_s())
            if isinstance(response, records_pb2.EraseTenantResponse):
                await self._forget(admitted.principal, response.offboarding)
            return response

        async def stream(request: Any, context: Context) -> AsyncIterator[Any]:
            del context
            admitted = await self._admit(request, action)
            call = forward(request, timeout=admitted.deadline.left_s())
            try:
                with translated(passed_on):
                    async for response in call:
                        self._refuse_if_over(admitted)
                        yield response
            finally:
                call.cancel()  # does nothing to a call that has ended

        make = grpc.unary_stream_rpc_method_handler if method.server_streaming else grpc.unary_unary_rpc_method_handler
        return make(
            stream if method.server_streaming else unary,
            request_deserializer=request_class.FromString,
            response_serializer=response_class.SerializeToString,
        )

    async def _forget(self, principal: Principal, offboarding: records_pb2.Offboarding) -> None:
        """Delete what gateways share of a tenant whose erasure is decided. Raises SharedStateUnavailable: the call is repeated."""
        if self._state is None:
            return
        sealed = offboarding.stage == records_pb2.OFFBOARDING_STAGE_SEALED
        with state_needed("what gateways share of the tenant cannot be deleted"):
            deleted = await forget_tenant(self._state, principal.tenant.name, sealed=sealed)
        log.info("shared rows of a tenant that leaves are deleted", extra={"tenant": principal.tenant.name, "rows": deleted})

    async def _admit(self, request: Message, action: Action) -> _Admitted:
        """Say in the request who asks, if they may.

        Raises what refuses a credential (refusing.py), AccessDenied, InvalidField, SharedStateUnavailable.
        """
        principal, deadline = await caller_of_rpc(self._authenticator)
        policies = self._authorizer.policies
        emergency = self._emergency(policies, principal, action)
        permit(policies, principal, AccessRequest(action, break_glass=emergency))
        if request.HasField("context"):
            rule = "unset: the gateway writes it from the credential"
            raise InvalidField("a caller does not say who asks", field_violations=[("context", rule)])
        context = request_context(principal, uuid7(), access_policy_digest=policies.digest)
        if emergency is not None:
            context.break_glass_id = emergency.id
            context.roles[:] = sorted({*context.roles, READER_ROLE, *((CLEARED_ROLE,) if emergency.suspicion else ())})
        request.context.CopyFrom(context)  # type: ignore[attr-defined]
        return _Admitted(principal, deadline, emergency)

    def _emergency(self, policies: AccessPolicies, principal: Principal, action: Action) -> BreakGlass | None:
        """Return the emergency that counts for a call. Raises SharedStateUnavailable where nothing else could permit it."""
        if self._emergencies is None or action not in EMERGENCY_ACTIONS:
            return None
        try:
            return self._emergencies.of(principal)
        except EmergenciesUnknownError as unknown:
            if policies.decide(principal, AccessRequest(action)).allowed:
                return None
            message = "whether the emergency is in force cannot be known"
            raise SharedStateUnavailable(message, retry_after_s=1.0) from unknown

    def _refuse_if_over(self, admitted: _Admitted) -> None:
        """Cut a stream whose emergency is not in force any more. Raises RoleNotPermitted."""
        if admitted.emergency is None or self._emergencies is None:
            return
        try:
            if self._emergencies.of(admitted.principal) == admitted.emergency:
                return
        except EmergenciesUnknownError as unknown:
            raise RoleNotPermitted("whether the emergency is in force cannot be known") from unknown
        raise RoleNotPermitted("the emergency is over")


def _add(handlers: grpc.GenericRpcHandler, server: grpc.aio.Server) -> None:
    server.add_generic_rpc_handlers((handlers,))
