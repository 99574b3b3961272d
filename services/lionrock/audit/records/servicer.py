"""RecordsService on the wire: messages in, domain calls, messages out. Who asks comes from RequestContext alone.

Streams are bounded by their requests, and gRPC's flow control holds them back for a slow reader.
"""

from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import aclosing
from typing import Any, Final

import grpc
from google.protobuf.timestamp_pb2 import Timestamp

from lionrock.audit.asking import asker, mesh_errors, permitted
from lionrock.audit.export.exporter import PIECE_BYTES, Exporter
from lionrock.audit.records.contents import Opened, RecordSummary
from lionrock.audit.records.holds import Hold, RecordScope
from lionrock.audit.records.offboarding import DESTROYED, ELSEWHERE, NONE, Offboarding, Progress
from lionrock.audit.records.permissions import Action
from lionrock.audit.records.records import Records
from lionrock.audit.sequencer import Appended
from lionrock.audit.servicer import position_message, receipt_message
from lionrock.audit.store.departures import ENDED, ERASING, LEAVING, SEALED, SEALING
from lionrock.audit.store.records import DESTROYING, ERASED, EXPIRED, KEPT
from lionrock.audit.v1 import records_pb2 as pb
from lionrock.audit.v1.records_pb2_grpc import RecordsServiceServicer
from lionrock.chassis.errors import InvalidField, MethodNotFound

SERVICE_NAME: Final = "lionrock.audit.v1.RecordsService"
_Context = grpc.aio.ServicerContext[Any, Any]
_STATES: Final[Mapping[str, "pb.RecordState.ValueType"]] = {
    KEPT: pb.RECORD_STATE_KEPT,
    DESTROYING: pb.RECORD_STATE_ERASED,
    ERASED: pb.RECORD_STATE_ERASED,
    EXPIRED: pb.RECORD_STATE_EXPIRED,
}
_DEPARTURES: Final[Mapping[str | None, "pb.OffboardingStage.ValueType"]] = {
    None: pb.OFFBOARDING_STAGE_NONE,
    LEAVING: pb.OFFBOARDING_STAGE_LEAVING,
    ERASING: pb.OFFBOARDING_STAGE_ERASING,
    SEALING: pb.OFFBOARDING_STAGE_ERASING,
    SEALED: pb.OFFBOARDING_STAGE_ERASING,  # until its keys are gone
    ENDED: pb.OFFBOARDING_STAGE_SEALED,
}
_VAULT_KEYS: Final[Mapping[str, "pb.VaultKey.ValueType"]] = {
    "": pb.VAULT_KEY_UNSPECIFIED,
    DESTROYED: pb.VAULT_KEY_DESTROYED,
    ELSEWHERE: pb.VAULT_KEY_ELSEWHERE,
    NONE: pb.VAULT_KEY_NONE,
}
_READ_OVERHEAD_BYTES: Final = 64 * 1024
"""What a message needs beside ciphertexts' bytes, which outweigh their own openings."""
_SECONDS_END: Final = 253_402_300_800
_SCOPES: Final[Mapping[str, str]] = {"subject": "subject_id", "case": "case_id", "request": "request_id"}

WitnessedAt = Callable[[], int | None]
"""When the last checkpoint that met the witness policy was cosigned, seconds since 1970; None: never, or there are no witnesses."""


class RecordsServicer(RecordsServiceServicer):
    """lionrock.audit.v1.RecordsService over Records."""

    def __init__(
        self,
        records: Records,
        witnessed_at: WitnessedAt = lambda: None,
        exporter: Exporter | None = None,
        *,
        offboarding: Offboarding | None = None,
        max_message_bytes: int = 8 * 2**20,
    ) -> None:
        """Serve `records`. `exporter`: None where nothing is exported. `max_message_bytes`: the server's limit.

        `offboarding`: None where no tenant can leave.
        """
        self._records = records
        self._departures = offboarding
        self._read_max_bytes = max_message_bytes - _READ_OVERHEAD_BYTES
        self._exporter = exporter
        self._witnessed_at = witnessed_at

    async def ReadRecord(self, request: pb.ReadRecordRequest, context: _Context) -> pb.ReadRecordResponse:  # noqa: N802
        """Return what was said."""
        del context
        with mesh_errors():
            read = await self._records.read(asker(request.context), request.request_id, self._read_max_bytes)
        response = pb.ReadRecordResponse(position=position_message(read.access))
        for part in read.payloads:
            _add(response, part)
            response.openings.add(kind=part.kind, leaf_index=part.leaf_index, salt=part.salt)
        return response

    async def ReadReleased(self, request: pb.ReadReleasedRequest, context: _Context) -> pb.ReadReleasedResponse:  # noqa: N802
        """Return a held answer that was released."""
        del context
        with mesh_errors():
            opened, access = await self._records.released(asker(request.context), request.request_id, request.release_event_id)
        return pb.ReadReleasedResponse(answer=opened.payload, salt=opened.salt, position=position_message(access))

    async def StreamRecord(  # noqa: N802
        self, request: pb.StreamRecordRequest, context: _Context
    ) -> AsyncIterator[pb.StreamRecordResponse]:
        """Return what was said, piece by piece."""
        del context
        with mesh_errors():
            async with aclosing(self._records.stream(asker(request.context), request.request_id)) as parts:
                async for part in parts:
                    if isinstance(part, Appended):
                        yield pb.StreamRecordResponse(position=position_message(part))
                        continue
                    opening = pb.Opening(kind=part.kind, leaf_index=part.leaf_index, salt=part.salt)
                    head = pb.RecordPart(opening=opening, recorded_at=_timestamp(part.recorded_at_us), size_bytes=len(part.payload))
                    yield pb.StreamRecordResponse(part=head)
                    for start in range(0, len(part.payload), PIECE_BYTES):
                        yield pb.StreamRecordResponse(data=part.payload[start : start + PIECE_BYTES])

    async def SearchSubject(  # noqa: N802
        self, request: pb.SearchSubjectRequest, context: _Context
    ) -> AsyncIterator[pb.SearchSubjectResponse]:
        """List records."""
        del context
        with mesh_errors():
            found = await self._records.search(asker(request.context), _scope(request.scope), request.limit)
        for summary in found:
            yield _summary(summary)

    async def EraseSubject(self, request: pb.EraseSubjectRequest, context: _Context) -> pb.EraseSubjectResponse:  # noqa: N802
        """Destroy keys and salts."""
        del context
        with mesh_errors():
            erased = await self._records.erase(
                asker(request.context), _scope(request.scope), basis=request.basis, allow_partial=request.allow_partial
            )
        return pb.EraseSubjectResponse(
            erased_records=erased.records,
            receipt=receipt_message(erased.leaf),
            kept_records=erased.kept,
            scope_salt=erased.scope_salt,
        )

    async def CorrectRecord(self, request: pb.CorrectRecordRequest, context: _Context) -> pb.CorrectRecordResponse:  # noqa: N802
        """Add a statement."""
        del context
        with mesh_errors():
            appended = await self._records.correct(asker(request.context), request.request_id, request.statement)
        return pb.CorrectRecordResponse(position=position_message(appended))

    async def PlaceHold(self, request: pb.PlaceHoldRequest, context: _Context) -> pb.PlaceHoldResponse:  # noqa: N802
        """Keep records."""
        del context
        with mesh_errors():
            hold_id, appended = await self._records.place_hold(asker(request.context), _scope(request.scope), request.reason)
        return pb.PlaceHoldResponse(hold_id=hold_id, position=position_message(appended))

    async def ReleaseHold(self, request: pb.ReleaseHoldRequest, context: _Context) -> pb.ReleaseHoldResponse:  # noqa: N802
        """End a hold."""
        del context
        with mesh_errors():
            appended = await self._records.release_hold(asker(request.context), request.hold_id)
        return pb.ReleaseHoldResponse(position=position_message(appended))

    async def ListHolds(  # noqa: N802
        self, request: pb.ListHoldsRequest, context: _Context
    ) -> AsyncIterator[pb.ListHoldsResponse]:
        """List holds in force."""
        del context
        with mesh_errors():
            holds = await self._records.holds(asker(request.context))
        for hold in holds:
            yield _hold(hold)

    async def LogRefusal(self, request: pb.LogRefusalRequest, context: _Context) -> pb.LogRefusalResponse:  # noqa: N802
        """Enter a refusal."""
        del context
        with mesh_errors():
            appended = await self._records.log_refusal(
                asker(request.context),
                request=pb.RefusedRequest.Name(request.request).removeprefix("REFUSED_REQUEST_").lower(),
                subject_id=request.subject_id,
                ground=request.ground,
                particulars=request.particulars,
            )
        return pb.LogRefusalResponse(position=position_message(appended))

    async def ListRefusals(  # noqa: N802
        self, request: pb.ListRefusalsRequest, context: _Context
    ) -> AsyncIterator[pb.ListRefusalsResponse]:
        """Read the log book."""
        del context
        with mesh_errors():
            entries = await self._records.refusals(asker(request.context), request.limit)
        for entry in entries:
            yield pb.ListRefusalsResponse(
                entered_at=_timestamp(entry.entered_at_us),
                request=pb.RefusedRequest.Value(f"REFUSED_REQUEST_{entry.request.upper()}"),
                subject_id=entry.subject_id,
                ground=entry.ground,
                particulars=entry.particulars,
                actor=entry.actor,
                leaf_index=entry.leaf_index,
            )

    async def Export(  # noqa: N802
        self, request: pb.ExportRequest, context: _Context
    ) -> AsyncIterator[pb.ExportResponse]:
        """Stream an archive."""
        del context
        who = permitted(request.context, Action.EXPORT_RECORDS)
        if self._exporter is None:
            raise MethodNotFound("this service exports nothing")
        start_us = _microseconds(getattr(request, "from"), "from") if request.HasField("from") else None
        end_us = _microseconds(request.to, "to") if request.HasField("to") else None
        if start_us is not None and end_us is not None and start_us > end_us:
            raise InvalidField("the time ends before it begins", field_violations=[("to", "not before from")])
        with mesh_errors():
            pieces = self._exporter.export(
                who, from_us=start_us, to_us=end_us, case_id=request.case_id, with_payloads=request.with_payloads
            )
            async with aclosing(pieces):
                async for piece in pieces:
                    yield pb.ExportResponse(data=piece.data, leaves_done=piece.leaves_done, leaves_total=piece.leaves_total)

    async def GetLogStats(self, request: pb.GetLogStatsRequest, context: _Context) -> pb.GetLogStatsResponse:  # noqa: N802
        """Count."""
        del context
        who = asker(request.context)
        with mesh_errors():
            leaves, counts = await self._records.stats(who)
        response = pb.GetLogStatsResponse(
            leaves=leaves,
            open_intents=counts.open_intents,
            records=_by_state(counts.records),
            vault_bytes=counts.payload_bytes,
            holds=counts.holds,
        )
        witnessed_at_s = self._witnessed_at()
        if witnessed_at_s is not None:
            response.witnessed_at.CopyFrom(_timestamp(witnessed_at_s * 1_000_000))
        return response

    async def BeginOffboarding(  # noqa: N802
        self, request: pb.BeginOffboardingRequest, context: _Context
    ) -> pb.BeginOffboardingResponse:
        """Let nothing new be asked."""
        del context
        who, offboarding = asker(request.context), self._offboarding()
        with mesh_errors():
            begun = await offboarding.begin(who, request.tenant)
            progress = await offboarding.progress(who)
        return pb.BeginOffboardingResponse(offboarding=_offboarding(progress), receipt=receipt_message(begun))

    async def CancelOffboarding(  # noqa: N802
        self, request: pb.CancelOffboardingRequest, context: _Context
    ) -> pb.CancelOffboardingResponse:
        """Let the tenant ask again."""
        del context
        with mesh_errors():
            cancelled = await self._offboarding().cancel(asker(request.context), request.tenant)
        return pb.CancelOffboardingResponse(position=position_message(cancelled))

    async def EraseTenant(self, request: pb.EraseTenantRequest, context: _Context) -> pb.EraseTenantResponse:  # noqa: N802
        """Destroy what may be destroyed, and seal the log if that was all."""
        del context
        with mesh_errors():
            progress = await self._offboarding().erase(asker(request.context), request.tenant, request.basis)
        return pb.EraseTenantResponse(offboarding=_offboarding(progress))

    async def GetOffboarding(self, request: pb.GetOffboardingRequest, context: _Context) -> pb.GetOffboardingResponse:  # noqa: N802
        """Say how far it is."""
        del context
        with mesh_errors():
            return pb.GetOffboardingResponse(offboarding=_offboarding(await self._offboarding().progress(asker(request.context))))

    def _offboarding(self) -> Offboarding:
        if self._departures is None:
            raise MethodNotFound("no tenant leaves this service")
        return self._departures


def _scope(scope: pb.RecordScope) -> RecordScope:
    match scope.WhichOneof("scope"):
        case "subject_id":
            return RecordScope("subject", scope.subject_id)
        case "case_id":
            return RecordScope("case", scope.case_id)
        case "request_id":
            return RecordScope("request", scope.request_id)
    raise InvalidField("a scope is needed", field_violations=[("scope", "exactly one of subject_id, case_id and request_id")])


def _add(response: pb.ReadRecordResponse, part: Opened) -> None:
    match part.kind:
        case "prompt":
            response.prompt = part.payload
        case "stop":
            response.stop = part.payload
        case "answer":
            response.answer = part.payload
        case "correction":
            entered_at = _timestamp(part.recorded_at_us)
            response.corrections.add(entered_at=entered_at, statement=part.payload.decode(), leaf_index=part.leaf_index)
        case "statement":
            recorded_at = _timestamp(part.recorded_at_us)
            response.statements.add(recorded_at=recorded_at, text=part.payload.decode(), leaf_index=part.leaf_index)


def _summary(found: RecordSummary) -> pb.SearchSubjectResponse:
    response = pb.SearchSubjectResponse(
        request_id=found.record.request_id,
        leaf_indices=found.other_leaves,
        state=_STATES[found.record.state],
        retention_class=found.record.retention_class,
        held=found.held,
    )
    if found.outcome is not None:
        response.position.CopyFrom(position_message(found.outcome))
    if found.kept_until_us is not None and found.kept_until_us > found.record.recorded_at_us:
        response.retained_until.CopyFrom(_timestamp(found.kept_until_us))
    if found.expires_at_us is not None:
        response.expires_at.CopyFrom(_timestamp(found.expires_at_us))
    return response


def _hold(hold: Hold) -> pb.ListHoldsResponse:
    return pb.ListHoldsResponse(
        hold_id=hold.hold_id,
        scope=pb.RecordScope(**{_SCOPES[hold.scope.kind]: hold.scope.value}),
        reason=hold.reason,
        placed_at=_timestamp(hold.placed_at_us),
        placed_by=hold.placed_by,
        leaf_index=hold.leaf_index,
    )


def _offboarding(progress: Progress) -> pb.Offboarding:
    message = pb.Offboarding(
        stage=_DEPARTURES[progress.stage],
        begun_by=progress.begun_by,
        decided_by=progress.decided_by,
        basis=progress.basis,
        open_requests=progress.open_requests,
        records=_by_state(progress.records or {}),
        holds=progress.holds,
        vault_key=_VAULT_KEYS[progress.vault_key],
    )
    if progress.begun is not None:
        message.begun.CopyFrom(position_message(progress.begun))
    if progress.erased is not None:
        message.erased.CopyFrom(receipt_message(progress.erased))
    for kept in progress.kept:
        counted = message.kept.add(reason=kept.reason, retention_class=kept.retention_class, records=kept.records)
        if kept.until_us is not None:
            counted.until.CopyFrom(_timestamp(kept.until_us))
    return message


def _by_state(records: Mapping[str, int]) -> dict[str, int]:
    """Count by the state that callers know."""
    states: dict[str, int] = {}
    for state, count in records.items():
        name = pb.RecordState.Name(_STATES[state]).removeprefix("RECORD_STATE_").lower()
        states[name] = states.get(name, 0) + count
    return states


def _microseconds(value: Timestamp, name: str) -> int:
    """Microseconds since 1970. Raises InvalidField outside of 1970 to 9999."""
    if not (0 <= value.seconds < _SECONDS_END and 0 <= value.nanos < 1_000_000_000):
        raise InvalidField("a time is out of its range", field_violations=[(name, "from 1970 to 9999")])
    return value.ToMicroseconds()


def _timestamp(at_us: int) -> Timestamp:
    """Microseconds since 1970 as the protobuf type, which ends with the year 9999."""
    value = Timestamp()
    value.FromMicroseconds(min(at_us, 253_402_300_799_000_000))
    return value
