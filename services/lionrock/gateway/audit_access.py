"""The gateway's door to the audit service: its records, and what reads its logs, for tenants' own identities.

Knows: which call is which action, that the gateway alone says who asks, how a call is passed on and its answer back. Does not
know: what a call does; the audit service decides again by role (docs/audit.md), and by what it alone knows. One forwarder
serves all calls of records.proto and those of audit.proto that read. Append is not among them: nobody outside writes.

A unary call is answered when the audit service has answered; a stream is passed on message by message, the next one read when
the last one is written, so a slow reader holds the stream back and nothing gathers here. The caller's deadline and cancellation
go with the call.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from typing import Any, Final

import grpc
from google.protobuf import message_factory
from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor
from google.protobuf.message import Message

from lionrock.audit.v1 import audit_pb2, records_pb2
from lionrock.chassis.errors import InvalidField
from lionrock.chassis.ids import uuid7
from lionrock.chassis.server import AnyTenant, Registration
from lionrock.gateway.authorization import AccessRequest, Action, Authorizer
from lionrock.gateway.context import request_context
from lionrock.gateway.identity.authenticator import Authenticator
from lionrock.gateway.identity.grpc_caller import caller_of_rpc
from lionrock.gateway.peer_errors import passed_on, translated
from lionrock.gateway.peers import Deadline
from lionrock.gateway.refusals import permit

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


class AuditDoor:
    """Forwards calls of tenants' identities to the audit service."""

    def __init__(self, authenticator: Authenticator, authorizer: Authorizer, channel: grpc.aio.Channel) -> None:
        self._authenticator = authenticator
        self._authorizer = authorizer
        self._channel = channel

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
            deadline = await self._admit(request, action)
            with translated(passed_on):
                return await forward(request, timeout=deadline.left_s())

        async def stream(request: Any, context: Context) -> AsyncIterator[Any]:
            del context
            deadline = await self._admit(request, action)
            call = forward(request, timeout=deadline.left_s())
            try:
                with translated(passed_on):
                    async for response in call:
                        yield response
            finally:
                call.cancel()  # does nothing to a call that has ended

        make = grpc.unary_stream_rpc_method_handler if method.server_streaming else grpc.unary_unary_rpc_method_handler
        return make(
            stream if method.server_streaming else unary,
            request_deserializer=request_class.FromString,
            response_serializer=response_class.SerializeToString,
        )

    async def _admit(self, request: Message, action: Action) -> Deadline:
        """Say in the request who asks, if they may. Raises what refuses a credential (refusing.py), AccessDenied, InvalidField."""
        principal, deadline = await caller_of_rpc(self._authenticator)
        permit(self._authorizer, principal, AccessRequest(action))
        if request.HasField("context"):
            rule = "unset: the gateway writes it from the credential"
            raise InvalidField("a caller does not say who asks", field_violations=[("context", rule)])
        context = request_context(principal, uuid7(), access_policy_digest=self._authorizer.digest)
        request.context.CopyFrom(context)  # type: ignore[attr-defined]
        return deadline


def _add(handlers: grpc.GenericRpcHandler, server: grpc.aio.Server) -> None:
    server.add_generic_rpc_handlers((handlers,))
