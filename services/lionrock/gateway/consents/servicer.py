"""ConsentService on the wire: who may record, end and see the choices of data subjects, and what people are told.

Knows messages and the order of a change: it is a leaf of the tenant's log first, with its statement in the vault, and then a row.
Does not know what a choice does to a request (gate.py) or how it is kept (rows.py). Logs carry neither subjects nor statements.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any, Final

import grpc
from google.protobuf.timestamp_pb2 import Timestamp

from lionrock.audit.v1 import audit_pb2 as audit
from lionrock.chassis.errors import InvalidField, MethodNotFound
from lionrock.chassis.ids import uuid7
from lionrock.gateway import errors
from lionrock.gateway.authorization import AccessRequest, Action, Authorizer
from lionrock.gateway.consents import rows
from lionrock.gateway.consents.gate import counts
from lionrock.gateway.consents.purposes import NO_RULE, PurposeRule
from lionrock.gateway.consents.refusing import state_needed
from lionrock.gateway.consents.statement import notice, privacy_statement
from lionrock.gateway.consents.subjects import SubjectHashes
from lionrock.gateway.governance import context_of, governance_leaf
from lionrock.gateway.identity.authenticator import Authenticator
from lionrock.gateway.identity.grpc_caller import caller_of_rpc
from lionrock.gateway.peers import AuditLog, Deadline
from lionrock.gateway.refusals import permit
from lionrock.gateway.state.store import StateStore
from lionrock.gateway.tenants import Principal, Tenant
from lionrock.gateway.v1 import consent_pb2 as pb
from lionrock.gateway.v1.consent_pb2_grpc import ConsentServiceServicer

log = logging.getLogger("lionrock.gateway")

SERVICE_NAME: Final = "lionrock.gateway.v1.ConsentService"

Context = grpc.aio.ServicerContext[Any, Any]


@dataclass(frozen=True, slots=True)
class Choices:
    """Where choices are kept, and how subjects are called there."""

    store: StateStore
    hashes: SubjectHashes


class ConsentServicer(ConsentServiceServicer):
    """The RPCs of consent.proto."""

    def __init__(self, authenticator: Authenticator, authorizer: Authorizer, audit_log: AuditLog, kept: Choices | None) -> None:
        """`kept`: None for a gateway that keeps no choices; notices are served in any case."""
        self._authenticator = authenticator
        self._authorizer = authorizer
        self._audit = audit_log
        self._kept = kept

    async def RecordConsent(self, request: pb.RecordConsentRequest, context: Context) -> pb.RecordConsentResponse:  # noqa: N802
        """Record that a subject agreed."""
        del context
        principal, deadline, kept = await self._keeping(Action.RECORD_CONSENT)
        tenant = principal.tenant
        rule = _consentable(tenant, request.purpose, request.notice_version)
        expires_at_us = request.expires_at.ToMicroseconds() if request.HasField("expires_at") else None
        if expires_at_us is not None and expires_at_us <= _now_us():
            raise InvalidField("the consent would have ended", field_violations=[("expires_at", "in the future")])
        await self._room(kept, tenant)
        assert rule.notice is not None
        digest = rule.notice.digest if request.notice_version == rule.notice.version else ""
        details = {
            "purpose": request.purpose,
            "notice_version": str(request.notice_version),
            "notice_digest": digest,
            "language": request.language,
            "expires_at": "" if expires_at_us is None else _rfc3339(expires_at_us),
        }
        consent_id = uuid7()
        leaf = await self._decide(principal, deadline, "consent.recorded", consent_id, request, details)
        subject = kept.hashes.of(tenant.name, request.subject_id)
        which = (request.purpose, consent_id, request.notice_version, digest)
        made = rows.Choice(subject, *which, leaf.position.leaf_index, _now_us(), expires_at_us)
        with state_needed():
            made = await rows.put(kept.store, tenant.name, made)
        return pb.RecordConsentResponse(consent=_consent(rule, made, _now_us()), receipt=leaf.receipt)

    async def WithdrawConsent(self, request: pb.WithdrawConsentRequest, context: Context) -> pb.WithdrawConsentResponse:  # noqa: N802
        """End a consent."""
        del context
        principal, deadline, kept = await self._keeping(Action.WITHDRAW_CONSENT)
        tenant = principal.tenant
        consent = await self._in_effect(kept, tenant, request.subject_id, request.purpose)
        details = {"purpose": request.purpose, "notice_version": str(consent.notice_version)}
        leaf = await self._decide(principal, deadline, "consent.withdrawn", consent.choice_id, request, details)
        ended = replace(consent, leaf_index=leaf.position.leaf_index, ended_at_us=_now_us())
        with state_needed():
            ended = await rows.put(kept.store, tenant.name, ended)
        rule = tenant.purpose_rules.get(request.purpose, NO_RULE)
        return pb.WithdrawConsentResponse(consent=_consent(rule, ended, _now_us()), receipt=leaf.receipt)

    async def ListConsents(self, request: pb.ListConsentsRequest, context: Context) -> pb.ListConsentsResponse:  # noqa: N802
        """List what one subject chose."""
        del context
        principal, _, kept = await self._keeping(Action.LIST_CONSENTS)
        tenant = principal.tenant
        subject = kept.hashes.of(tenant.name, request.subject_id)
        with state_needed():
            known = await rows.all_of(kept.store, tenant.name, subject)
        consents = [
            _consent(tenant.purpose_rules.get(choice.purpose, NO_RULE), choice, known.now_us)
            for choice in known.choices.values()
            if choice.purpose != rows.OPT_OUT
        ]
        out = known.in_effect(subject, rows.OPT_OUT)
        return pb.ListConsentsResponse(consents=consents, opt_out=None if out is None else _opt_out(out))

    async def SetOptOut(self, request: pb.SetOptOutRequest, context: Context) -> pb.SetOptOutResponse:  # noqa: N802
        """Let a subject opt out."""
        del context
        principal, deadline, kept = await self._keeping(Action.WITHDRAW_CONSENT)
        tenant = principal.tenant
        await self._room(kept, tenant)
        opt_out_id = uuid7()
        leaf = await self._decide(principal, deadline, "opt_out.set", opt_out_id, request, {})
        subject = kept.hashes.of(tenant.name, request.subject_id)
        out = rows.Choice(subject, rows.OPT_OUT, opt_out_id, 0, "", leaf.position.leaf_index, _now_us())
        with state_needed():
            out = await rows.put(kept.store, tenant.name, out)
        return pb.SetOptOutResponse(opt_out=_opt_out(out), receipt=leaf.receipt)

    async def ClearOptOut(self, request: pb.ClearOptOutRequest, context: Context) -> pb.ClearOptOutResponse:  # noqa: N802
        """End an opt-out."""
        del context
        principal, deadline, kept = await self._keeping(Action.RECORD_CONSENT)
        tenant = principal.tenant
        out = await self._in_effect(kept, tenant, request.subject_id, rows.OPT_OUT)
        leaf = await self._decide(principal, deadline, "opt_out.cleared", out.choice_id, request, {})
        with state_needed():
            await rows.put(kept.store, tenant.name, replace(out, leaf_index=leaf.position.leaf_index, ended_at_us=_now_us()))
        return pb.ClearOptOutResponse(receipt=leaf.receipt)

    async def ListOptOuts(self, request: pb.ListOptOutsRequest, context: Context) -> pb.ListOptOutsResponse:  # noqa: N802
        """List the opt-outs that hold, in no order that says whose they are."""
        del context
        principal, _, kept = await self._keeping(Action.LIST_CONSENTS)
        try:
            after = bytes.fromhex(request.page_token)
        except ValueError:
            raise InvalidField("no such page", field_violations=[("page_token", "one that a page ended with")]) from None
        with state_needed():
            found = await rows.opt_outs(kept.store, principal.tenant.name, after, request.page_size + 1)
        shown = found[: request.page_size]
        token = shown[-1].subject.hex() if len(found) > len(shown) else ""
        return pb.ListOptOutsResponse(opt_outs=map(_opt_out, shown), next_page_token=token)

    async def ListNotices(self, request: pb.ListNoticesRequest, context: Context) -> pb.ListNoticesResponse:  # noqa: N802
        """Show the tenant's privacy statement."""
        del request, context
        principal, _ = await self._permitted(Action.READ_NOTICES)
        return privacy_statement(principal.tenant)

    async def GetNotice(self, request: pb.GetNoticeRequest, context: Context) -> pb.GetNoticeResponse:  # noqa: N802
        """Show the notice of one purpose."""
        del context
        principal, _ = await self._permitted(Action.READ_NOTICES)
        found = notice(principal.tenant, request.purpose)
        if found is None:
            raise errors.NoticeNotFound("the tenant has no such purpose")
        return pb.GetNoticeResponse(notice=found)

    async def _permitted(self, action: Action) -> tuple[Principal, Deadline]:
        principal, deadline = await caller_of_rpc(self._authenticator)
        permit(self._authorizer, principal, AccessRequest(action))
        return principal, deadline

    async def _keeping(self, action: Action) -> tuple[Principal, Deadline, Choices]:
        """Return who calls and until when, if they may, and where choices are kept. Raises MethodNotFound where none are."""
        principal, deadline = await self._permitted(action)
        if self._kept is None:
            raise MethodNotFound("this gateway keeps no consents")
        return principal, deadline, self._kept

    async def _room(self, kept: Choices, tenant: Tenant) -> None:
        with state_needed():
            if not await rows.has_room(kept.store, tenant.name):
                raise errors.TooManyConsents(f"the tenant has {rows.MAX_CHOICES_PER_TENANT} consents and opt-outs")

    async def _in_effect(self, kept: Choices, tenant: Tenant, subject_id: str, purpose: str) -> rows.Choice:
        """Return a choice that can be ended. Raises ConsentNotFound."""
        subject = kept.hashes.of(tenant.name, subject_id)
        with state_needed():
            known = await rows.known(kept.store, tenant.name, [subject], purpose)
        choice = known.in_effect(subject, purpose)
        if choice is None:
            raise errors.ConsentNotFound("nothing of the kind is recorded for this data subject")
        return choice

    async def _decide(
        self, principal: Principal, deadline: Deadline, operation: str, choice_id: str, request: Any, details: Mapping[str, str]
    ) -> audit.AppendResponse:
        """Put a change into the log. Raises AuditUnavailable: nothing has changed then."""
        leaf = governance_leaf(
            context_of(principal, self._authorizer.digest),
            operation,
            choice_id,
            details=details,
            statement=request.statement,
            subject_ids=[request.subject_id],
            want_receipt=True,
        )
        appended = await self._audit.append(leaf, deadline)
        log.info(operation, extra={"choice": choice_id, "tenant": principal.tenant.name, "by": principal.actor})
        return appended


def _consentable(tenant: Tenant, purpose: str, version: int) -> PurposeRule:
    """Return the rule of a purpose that has a notice of this version. Raises NoticeNotFound, InvalidField."""
    rule = tenant.purpose_rules.get(purpose, NO_RULE)
    if rule.notice is None:
        raise errors.NoticeNotFound("the tenant has no such purpose with a notice")
    if not rule.notice.consent_since <= version <= rule.notice.version:
        rule_told = f"{rule.notice.consent_since} to {rule.notice.version}"
        raise InvalidField("a consent to this version does not count", field_violations=[("notice_version", rule_told)])
    return rule


def _consent(rule: PurposeRule, choice: rows.Choice, now_us: int) -> pb.Consent:
    message = pb.Consent(
        consent_id=choice.choice_id,
        purpose=choice.purpose,
        notice_version=choice.notice_version,
        recorded_at=_timestamp(choice.made_at_us),
        holds=choice.holds(now_us) and counts(rule, choice),
        leaf_index=choice.leaf_index,
    )
    if choice.expires_at_us is not None:
        message.expires_at.CopyFrom(_timestamp(choice.expires_at_us))
    if choice.ended_at_us is not None:
        message.withdrawn_at.CopyFrom(_timestamp(choice.ended_at_us))
    return message


def _opt_out(choice: rows.Choice) -> pb.OptOut:
    return pb.OptOut(opt_out_id=choice.choice_id, set_at=_timestamp(choice.made_at_us), leaf_index=choice.leaf_index)


def _timestamp(time_us: int) -> Timestamp:
    value = Timestamp()
    value.FromMicroseconds(time_us)
    return value


def _rfc3339(time_us: int) -> str:
    return datetime.fromtimestamp(time_us // 1_000_000, UTC).isoformat().replace("+00:00", "Z")


def _now_us() -> int:
    return round(datetime.now(UTC).timestamp() * 1e6)
