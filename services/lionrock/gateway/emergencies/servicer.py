"""BreakGlassService on the wire: who may ask for emergency access, decide on it, end it and see it.

Knows messages, and the order of leaf and effect: what opens is in the audit log before it counts, what ends counts before it is in
the log. A step that has begun is carried through, whoever stops waiting. Does not know what an emergency opens (the policies), when
it counts (live.py) or how it is kept (rows.py). What it logs names emergencies by their ids and repeats nothing that people wrote.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final, TypeVar

import grpc
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

from lionrock.audit.v1 import audit_pb2 as audit
from lionrock.chassis.calls import current_call
from lionrock.chassis.ids import uuid7
from lionrock.gateway import errors
from lionrock.gateway.authorization import AccessRequest, Action, Authorizer
from lionrock.gateway.emergencies import leaves, rows
from lionrock.gateway.emergencies.emergency import (
    EFFECTIVE_WITHIN_S,
    OPEN,
    Emergency,
    EmergencyId,
    State,
    certificate_beside,
)
from lionrock.gateway.identity.authenticator import Authenticator
from lionrock.gateway.identity.grpc_caller import caller_of_rpc
from lionrock.gateway.peers import AuditLog, Deadline
from lionrock.gateway.refusals import permit
from lionrock.gateway.state.store import StateConflict, StateStore, StateUnavailable
from lionrock.gateway.tenants import Principal
from lionrock.gateway.v1 import break_glass_pb2 as pb
from lionrock.gateway.v1.break_glass_pb2_grpc import BreakGlassServiceServicer

log = logging.getLogger("lionrock.gateway")

SERVICE_NAME: Final = "lionrock.gateway.v1.BreakGlassService"
_SOMEBODY: Final = "somebody"
"""Stands for who asked for what is not there: whoever may decide at all then learns that it is not there."""
_STEP_S: Final = 30.0
_STATES: Final = {
    State.REQUESTED: pb.EMERGENCY_STATE_REQUESTED,
    State.APPROVED: pb.EMERGENCY_STATE_APPROVED,
    State.DENIED: pb.EMERGENCY_STATE_DENIED,
    State.ENDED: pb.EMERGENCY_STATE_ENDED,
    State.EXPIRED: pb.EMERGENCY_STATE_EXPIRED,
}
Context = grpc.aio.ServicerContext[Any, Any]
Result = TypeVar("Result")
Stepped = Callable[[str, str], None]
"""Told of each step: tenant, and the step's name."""


@dataclass(frozen=True, slots=True)
class _Caller:
    principal: Principal
    certificate: str

    def asked_for(self, emergency: Emergency) -> bool:
        return emergency.is_of(self.principal.actor, self.certificate)


class BreakGlassServicer(BreakGlassServiceServicer):
    """The RPCs of break_glass.proto."""

    def __init__(
        self, authenticator: Authenticator, authorizer: Authorizer, store: StateStore, audit_log: AuditLog, stepped: Stepped
    ) -> None:
        self._authenticator = authenticator
        self._authorizer = authorizer
        self._store = store
        self._audit_log = audit_log
        self._stepped = stepped
        self._steps: set[asyncio.Task[Any]] = set()

    async def RequestEmergency(  # noqa: N802
        self, request: pb.RequestEmergencyRequest, context: Context
    ) -> pb.RequestEmergencyResponse:
        """Ask for the caller's own emergency."""
        del context
        caller = await self._caller()
        permit(self._authorizer, caller.principal, AccessRequest(Action.REQUEST_EMERGENCY))
        return await self._carried_through(self._request(caller, request))

    async def ApproveEmergency(  # noqa: N802
        self, request: pb.ApproveEmergencyRequest, context: Context
    ) -> pb.ApproveEmergencyResponse:
        """Open it."""
        del context
        caller, found = await self._to_decide(request.emergency_id)
        decided, receipt = await self._carried_through(self._decide(caller, found, State.APPROVED, request.reason))
        return pb.ApproveEmergencyResponse(
            emergency=_message(decided), receipt=receipt, effective_at=_everywhere(decided.decided_at_us)
        )

    async def DenyEmergency(self, request: pb.DenyEmergencyRequest, context: Context) -> pb.DenyEmergencyResponse:  # noqa: N802
        """Refuse it."""
        del context
        caller, found = await self._to_decide(request.emergency_id)
        decided, receipt = await self._carried_through(self._decide(caller, found, State.DENIED, request.reason))
        return pb.DenyEmergencyResponse(emergency=_message(decided), receipt=receipt)

    async def EndEmergency(self, request: pb.EndEmergencyRequest, context: Context) -> pb.EndEmergencyResponse:  # noqa: N802
        """End it."""
        del context
        caller = await self._caller()
        permit(self._authorizer, caller.principal, AccessRequest(Action.END_EMERGENCY))
        found = await self._seen(caller, request.emergency_id)
        if found is None:
            raise errors.EmergencyNotFound("no such emergency")
        return await self._carried_through(self._end(caller, found))

    async def ListEmergencies(  # noqa: N802
        self, request: pb.ListEmergenciesRequest, context: Context
    ) -> pb.ListEmergenciesResponse:
        """List what the caller may know of."""
        del context
        caller = await self._caller()
        permit(self._authorizer, caller.principal, AccessRequest(Action.READ_EMERGENCIES))
        with _explained():
            tenant = caller.principal.tenant.name
            found = await rows.page(self._store, tenant, request.page_token, request.page_size + 1)
        page, cleared = found[: request.page_size], self._cleared(caller)
        known = [one for one in page if _exists(one, caller, cleared=cleared)]
        shown = [one for one in known if request.include_closed or one.state in OPEN]
        token = page[-1].emergency_id if len(found) > len(page) else ""
        return pb.ListEmergenciesResponse(emergencies=map(_message, shown), next_page_token=token)

    async def _caller(self) -> _Caller:
        principal, _ = await caller_of_rpc(self._authenticator)
        call = current_call()
        presented = None if call is None or call.caller is None else str(call.caller)
        return _Caller(principal, certificate_beside(principal, presented))

    async def _to_decide(self, emergency_id: str) -> tuple[_Caller, Emergency]:
        """Return who decides and on what. Raises AccessDenied before EmergencyNotFound."""
        caller = await self._caller()
        found = await self._seen(caller, emergency_id)
        author = _SOMEBODY if found is None else found.requested_by
        if found is not None and caller.asked_for(found):
            author = caller.principal.actor
        data_class = "suspicion" if found is not None and found.suspicion else None
        permit(self._authorizer, caller.principal, AccessRequest(Action.DECIDE_EMERGENCY, data_class=data_class, author=author))
        if found is None:
            raise errors.EmergencyNotFound("no such emergency")
        return caller, found

    async def _seen(self, caller: _Caller, emergency_id: str) -> Emergency | None:
        """Return one of the tenant's that exists for the caller."""
        cleared = self._cleared(caller)  # decided whether or not anything is found: the time that it takes tells nothing
        with _explained():
            found = await rows.find(self._store, caller.principal.tenant.name, emergency_id)
        return found if found is not None and _exists(found, caller, cleared=cleared) else None

    def _cleared(self, caller: _Caller) -> bool:
        """Whether emergencies that open suspicion exist for the caller."""
        asked = AccessRequest(Action.READ_EMERGENCIES, data_class="suspicion")
        return self._authorizer.decide(caller.principal, asked).allowed

    async def _request(self, caller: _Caller, request: pb.RequestEmergencyRequest) -> pb.RequestEmergencyResponse:
        principal, new_id = caller.principal, uuid7()
        tenant = principal.tenant.name
        with _explained():
            now_us = await rows.room(self._store, tenant, principal.actor)
        who = leaves.context(principal, self._authorizer.digest, new_id, suspicion=request.suspicion, request_id=new_id)
        emergency = Emergency(
            EmergencyId(new_id),
            tenant,
            State.REQUESTED,
            principal.actor,
            caller.certificate,
            now_us,
            request.duration.ToMicroseconds(),
            request.suspicion,
            rows.lapses_at_us(now_us),
            who.SerializeToString(deterministic=True),
        )
        appended = await self._append(leaves.leaf(who, State.REQUESTED, emergency, reason=request.reason, event_id=new_id))
        with _explained():
            await rows.insert(self._store, emergency)
        self._say("requested", caller, emergency)
        return pb.RequestEmergencyResponse(emergency=_message(emergency), position=appended.position)

    async def _decide(self, caller: _Caller, found: Emergency, what: State, reason: str) -> tuple[Emergency, audit.Receipt]:
        decision_id = uuid7()
        await self._claim(caller, found, what, decision_id)
        who = leaves.context(
            caller.principal,
            self._authorizer.digest,
            found.emergency_id,
            suspicion=found.suspicion,
            request_id=decision_id,
        )
        appended = await self._append(leaves.leaf(who, what, found, reason=reason, event_id=decision_id, receipt=True))
        with _explained():
            decided = await rows.settle(self._store, found.tenant, found.emergency_id, decision_id)
        self._say(what.value, caller, decided)
        return decided, appended.receipt

    async def _claim(self, caller: _Caller, found: Emergency, what: State, decision_id: str) -> None:
        """Be the only one who decides, or finish what somebody began whose gateway was lost."""

        async def claim(instead_of: str = "") -> None:
            await rows.claim(
                self._store,
                found.tenant,
                found.emergency_id,
                decision=what,
                by=caller.principal.actor,
                decision_id=decision_id,
                instead_of=instead_of,
            )

        with _explained():
            try:
                await claim()
            except rows.StaleClaimError as stale:
                begun = stale.emergency
                if await self._in_log(begun):
                    await rows.settle(self._store, begun.tenant, begun.emergency_id, begun.decision_id)
                    raise rows.DecidedError("it was decided") from None
                await claim(instead_of=begun.decision_id)

    async def _in_log(self, begun: Emergency) -> bool:
        try:
            await self._audit_log.receipt(leaves.asking_context(begun), begun.decision_id, Deadline.after(_STEP_S))
        except errors.ReceiptNotFound:
            return False
        return True

    async def _end(self, caller: _Caller, found: Emergency) -> pb.EndEmergencyResponse:
        event_id = uuid7()
        who = leaves.context(
            caller.principal,
            self._authorizer.digest,
            found.emergency_id,
            suspicion=found.suspicion,
            request_id=event_id,
        )
        leaf = leaves.leaf(who, State.ENDED, found, event_id=event_id)
        with _explained():
            if not await rows.close(self._store, found, State.ENDED, leaf.SerializeToString(deterministic=True)):
                raise rows.DecidedError("it is over")
        self._say("ended", caller, found)
        leaf.want_receipt = True
        appended = await self._append(leaf)
        with _explained():
            await rows.paid(self._store, found.emergency_id)
            ended = await rows.find(self._store, found.tenant, found.emergency_id) or found
        effective_at = _everywhere(ended.ends_at_us)
        return pb.EndEmergencyResponse(emergency=_message(ended), receipt=appended.receipt, effective_at=effective_at)

    async def _append(self, leaf: audit.AppendRequest) -> audit.AppendResponse:
        return await self._audit_log.append(leaf, Deadline.after(_STEP_S))

    async def _carried_through(self, step: Coroutine[Any, Any, Result]) -> Result:
        """Run a step to its end, also when its caller goes away."""
        task = asyncio.create_task(step)
        self._steps.add(task)
        task.add_done_callback(self._step_ended)
        return await asyncio.shield(task)

    def _step_ended(self, task: asyncio.Task[Any]) -> None:
        self._steps.discard(task)
        if not task.cancelled():
            task.exception()  # seen, also where the caller went away

    def _say(self, step: str, caller: _Caller, emergency: Emergency) -> None:
        """Tell operators, in words that say nothing of why."""
        self._stepped(emergency.tenant, step)
        told = {"emergency": emergency.emergency_id, "tenant": emergency.tenant, "by": caller.principal.actor}
        log.warning(f"emergency access {step}", extra=told)


def _exists(emergency: Emergency, caller: _Caller, *, cleared: bool) -> bool:
    return cleared or not emergency.suspicion or caller.asked_for(emergency)


@contextmanager
def _explained() -> Iterator[None]:
    """Turn what the rows raise into what the caller sees."""
    try:
        yield
    except rows.EmergencyNotFoundError as error:
        raise errors.EmergencyNotFound("no such emergency") from error
    except rows.DecidedError as error:
        raise errors.EmergencyDecided("the emergency is decided or over") from error
    except rows.BeingDecidedError as error:
        raise errors.EmergencyDecided("somebody decides on the emergency", retry_after_s=rows.CLAIM_US / 1e6) from error
    except rows.TooManyEmergenciesError as error:
        raise errors.TooManyEmergencies("an emergency is open already") from error
    except (StateUnavailable, StateConflict) as error:
        raise errors.SharedStateUnavailable("emergencies cannot be changed or listed", retry_after_s=1.0) from error


def _message(emergency: Emergency) -> pb.Emergency:
    message = pb.Emergency(
        emergency_id=emergency.emergency_id,
        state=_STATES[emergency.state],
        requested_by=emergency.requested_by,
        requested_at=_timestamp(emergency.requested_at_us),
        suspicion=emergency.suspicion,
        ends_at=_timestamp(emergency.ends_at_us),
    )
    duration = Duration()
    duration.FromMicroseconds(emergency.duration_us)
    message.duration.CopyFrom(duration)
    if emergency.decided_at_us is not None:
        message.decided_by, message.decision_id = emergency.decided_by, emergency.decision_id
        message.decided_at.CopyFrom(_timestamp(emergency.decided_at_us))
    return message


def _everywhere(since_us: int | None) -> Timestamp:
    assert since_us is not None, "it took effect"
    return _timestamp(since_us + round(EFFECTIVE_WITHIN_S * 1e6))


def _timestamp(time_us: int) -> Timestamp:
    value = Timestamp()
    value.FromMicroseconds(time_us)
    return value
