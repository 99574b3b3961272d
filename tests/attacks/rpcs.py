"""Every RPC that a gateway serves, found by the descriptors of what it registers, and requests that try each.

Knows which fields name an object of a tenant, and what the others may hold. A field or an RPC that is not known here fails the
suite: whoever adds one decides what it is.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any, Final

from google.protobuf import descriptor_pool, message_factory
from google.protobuf.descriptor import Descriptor, FieldDescriptor, MethodDescriptor
from google.protobuf.message import Message

from lionrock.audit.v1 import records_pb2 as rec
from lionrock.chassis.server import Registration
from lionrock.common.v1 import chat_pb2 as chat
from scripted_mesh import MODEL

ACTIONS: Final[Mapping[str, str | None]] = {
    "GatewayService.Chat": "chat",
    "GatewayService.CountTokens": "count_tokens",
    "GatewayService.ListModels": "list_models",
    "GatewayService.GetReceipt": "get_receipt",
    "GatewayService.ListAuditKeys": "list_audit_keys",
    "GatewayService.GetQuota": "get_quota",
    "ApiKeyService.CreateApiKey": "issue_api_keys",
    "ApiKeyService.ListApiKeys": "list_api_keys",
    "ApiKeyService.RotateApiKey": "issue_api_keys",
    "ApiKeyService.RevokeApiKey": "revoke_api_keys",
    "BreakGlassService.RequestEmergency": "request_emergency",
    "BreakGlassService.ApproveEmergency": "decide_emergency",
    "BreakGlassService.DenyEmergency": "decide_emergency",
    "BreakGlassService.EndEmergency": "end_emergency",
    "BreakGlassService.ListEmergencies": "read_emergencies",
    "ReviewService.ListReviews": "read_reviews",
    "ReviewService.GetReview": "read_reviews",
    "ReviewService.DecideReview": "decide_review",
    "ReviewService.GetHeldAnswer": "get_held_answer",
    "ConsentService.RecordConsent": "record_consent",
    "ConsentService.WithdrawConsent": "withdraw_consent",
    "ConsentService.ListConsents": "list_consents",
    "ConsentService.SetOptOut": "withdraw_consent",
    "ConsentService.ClearOptOut": "record_consent",
    "ConsentService.ListOptOuts": "list_consents",
    "ConsentService.ListNotices": "read_notices",
    "ConsentService.GetNotice": "read_notices",
    "RecordsService.ReadRecord": "read_record",
    "RecordsService.ReadReleased": None,
    "RecordsService.StreamRecord": "read_record",
    "RecordsService.SearchSubject": "search_records",
    "RecordsService.EraseSubject": "erase_records",
    "RecordsService.CorrectRecord": "correct_record",
    "RecordsService.PlaceHold": "hold_records",
    "RecordsService.ReleaseHold": "hold_records",
    "RecordsService.ListHolds": "hold_records",
    "RecordsService.LogRefusal": "log_refusal",
    "RecordsService.ListRefusals": "read_log_book",
    "RecordsService.Export": "export_records",
    "RecordsService.GetLogStats": "read_log_stats",
    "RecordsService.BeginOffboarding": "begin_offboarding",
    "RecordsService.CancelOffboarding": "begin_offboarding",
    "RecordsService.EraseTenant": "erase_tenant",
    "RecordsService.GetOffboarding": "read_log_stats",
    "AuditService.Append": None,
    "AuditService.GetReceipt": "verify_log",
    "AuditService.ProveLeaf": "verify_log",
    "AuditService.GetCheckpoint": "verify_log",
    "AuditService.GetConsistencyProof": "verify_log",
    "AuditService.ListLeaves": "read_leaves",
    "AuditService.ListKeys": "verify_log",
    "GatewayStatsService.GetModelStats": None,
}
"""What each RPC is in the table of docs/access.md; None: no tenant's."""


class Kind(Enum):
    """What an id names."""

    REQUEST = "request"
    HOLD = "hold"
    API_KEY = "API key"
    EMERGENCY = "emergency"
    LEAF = "leaf"
    CASE = "case"
    CONVERSATION = "conversation"
    SUBJECT = "subject"


OBJECTS: Final[Mapping[str, Kind]] = {
    "request_id": Kind.REQUEST,
    "event_id": Kind.REQUEST,
    "release_event_id": Kind.REQUEST,
    "hold_id": Kind.HOLD,
    "key_id": Kind.API_KEY,
    "emergency_id": Kind.EMERGENCY,
    "page_token": Kind.API_KEY,
    "leaf_index": Kind.LEAF,
    "first_size": Kind.LEAF,
    "second_size": Kind.LEAF,
    "start": Kind.LEAF,
    "case_id": Kind.CASE,
    "conversation_id": Kind.CONVERSATION,
    "subject_id": Kind.SUBJECT,
    "subject_ids": Kind.SUBJECT,
}
"""Fields whose values may be another tenant's."""

FILLED: Final[Mapping[str, Any]] = {
    "messages": [chat.ChatMessage(role=chat.CHAT_ROLE_USER, content="hello")],
    "description": "a key",
    "roles": ["user"],
    "purposes": ["testing"],
    "purpose": "testing",
    "notice_version": 1,
    "language": "en",
    "models": [MODEL],
    "page_size": 100,
    "limit": 1000,
    "first_size": 1,
    "tenant": "nobody",  # a tenant ends only when its own name is written out
    "basis": "asked",
    "reason": "inquiry",
    "statement": "not so",
    "ground": "PDPO s.20",
    "particulars": "because",
    "request": rec.REFUSED_REQUEST_ACCESS,
    "decision": 1,
}
"""What fields without a default that passes hold."""

UNSET: Final = frozenset(
    (
        *("context", "model", "sampling", "constraint", "expires_at", "data_class", "data_classes", "allow_partial", "from", "to"),
        *(
            "with_payloads",
            "include_decided",
            "trace_id",
            "intent",
            "outcome",
            "governance",
            "want_receipt",
            "suspicion",
            "include_closed",
        ),
    )
)
"""Fields that are left alone: they name nothing that belongs to a tenant, or, `context`, are attacked on their own."""

DURATIONS: Final[Mapping[str, int]] = {"lifetime": 3600, "overlap": 0, "duration": 3600}
NOBODY: Final = "nobody"
NO_ID: Final = "01930000-0000-7000-8000-000000000000"


def name_of(method: MethodDescriptor) -> str:
    """Service and method, without the package."""
    return f"{method.containing_service.name}.{method.name}"


def path_of(method: MethodDescriptor) -> str:
    """The method on the wire."""
    return f"/{method.containing_service.full_name}/{method.name}"


def methods_of(registrations: Iterable[Registration]) -> list[MethodDescriptor]:
    """All methods of the services that are registered, served or not."""
    pool = descriptor_pool.Default()
    return [method for entry in registrations for method in pool.FindServiceByName(entry.service_name).methods]


def unknown_fields(method: MethodDescriptor) -> list[str]:
    """Fields of the request of which nobody has said what they are."""
    known = {*OBJECTS, *FILLED, *UNSET, *DURATIONS, "scope"}
    return [f"{method.input_type.name}.{field.name}" for field in method.input_type.fields if field.name not in known]


def sensible(method: MethodDescriptor) -> Message:
    """A request that passes its rules and names nothing that anybody has."""
    request = message_factory.GetMessageClass(method.input_type)()
    for field in method.input_type.fields:
        if field.name == "scope":
            request.scope.subject_id = NOBODY  # type: ignore[attr-defined]
        elif field.name in DURATIONS:
            getattr(request, field.name).FromSeconds(DURATIONS[field.name])
        elif field.name in FILLED:
            _set(request, field, FILLED[field.name])
        elif OBJECTS.get(field.name) in (Kind.REQUEST, Kind.HOLD, Kind.EMERGENCY):
            _set(request, field, NO_ID)
        elif field.name in ("key_id", "subject_id"):
            _set(request, field, NOBODY)
    return request


@dataclass(frozen=True, slots=True)
class Way:
    """One field by which an RPC can be asked for an object."""

    method: MethodDescriptor
    fields: tuple[FieldDescriptor, ...]

    @property
    def kind(self) -> Kind:
        """What it names."""
        return OBJECTS[self.fields[-1].name]

    def __str__(self) -> str:
        return f"{name_of(self.method)} by {'.'.join(field.name for field in self.fields)}"

    def request(self, value: str | int) -> Message:
        """A request that names this object."""
        request = sensible(self.method)
        holder = request
        for field in self.fields[:-1]:
            holder = getattr(holder, field.name)
        _set(holder, self.fields[-1], [value] if self.fields[-1].is_repeated else value)
        return request


def ways_of(method: MethodDescriptor) -> list[Way]:
    """All ways to name an object in a request."""
    return [Way(method, fields) for fields in _objects(method.input_type)]


def _objects(message: Descriptor) -> Iterator[tuple[FieldDescriptor, ...]]:
    for field in message.fields:
        if field.name == "scope":
            assert field.message_type is not None
            yield from ((field, *fields) for fields in _objects(field.message_type))
        elif field.name in OBJECTS:
            yield (field,)


def _set(message: Message, field: FieldDescriptor, value: Any) -> None:
    if field.is_repeated:
        message.ClearField(field.name)
        getattr(message, field.name).extend(value)
    else:
        setattr(message, field.name, value)
