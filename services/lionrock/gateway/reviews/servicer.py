"""ReviewService: the queue of held answers for those who decide, and what became of one for who asked.

Knows messages, who may know of a held answer, and that nobody decides on their own. Does not know how a decision is made durable
(deciding.py) or where texts are kept: the audit service has them, decides once more by role who reads them, and records it.

What a caller may not know of is answered as what nobody has: another tenant's answers, and those of a class of data that the
caller's grant or the tipping-off wall keeps from them.
"""

from __future__ import annotations

from typing import Any, Final

import grpc
from google.protobuf.timestamp_pb2 import Timestamp

from lionrock.chassis.errors import InvalidField
from lionrock.chassis.ids import uuid7
from lionrock.common.v1 import context_pb2 as ctx
from lionrock.gateway import errors
from lionrock.gateway.access_policies import AccessPolicies
from lionrock.gateway.authorization import AccessRequest, Action, Authorizer
from lionrock.gateway.context import data_class_of, request_context
from lionrock.gateway.identity.authenticator import Authenticator
from lionrock.gateway.identity.grpc_caller import caller_of_rpc
from lionrock.gateway.peers import AuditLog, Deadline
from lionrock.gateway.quota_refusals import state_needed
from lionrock.gateway.refusals import permit
from lionrock.gateway.reviews import rows
from lionrock.gateway.reviews.deciding import NO_STATE, Decisions
from lionrock.gateway.reviews.identities import author_for
from lionrock.gateway.reviews.rows import Review
from lionrock.gateway.reviews.rules import Decision
from lionrock.gateway.state.store import StateStore
from lionrock.gateway.tenants import AuthMethod, Principal
from lionrock.gateway.v1 import review_pb2 as pb
from lionrock.gateway.v1.review_pb2_grpc import ReviewServiceServicer
from lionrock.tenancy.vocabulary import DATA_CLASSES

SERVICE_NAME: Final = "lionrock.gateway.v1.ReviewService"
_REFUSED: Final = "A reviewer has not released this answer. / 審核人員沒有發放此回答。 / 审核人员没有发放此回答。"
_EXPIRED: Final = "Nobody reviewed this answer in time. / 沒有人及時審核此回答。 / 没有人及时审核此回答。"

Context = grpc.aio.ServicerContext[Any, Any]


class ReviewServicer(ReviewServiceServicer):
    """The RPCs of review.proto."""

    def __init__(
        self, authenticator: Authenticator, authorizer: Authorizer, store: StateStore, log: AuditLog, decisions: Decisions
    ) -> None:
        self._authenticator = authenticator
        self._authorizer = authorizer
        self._store = store
        self._log = log
        self._decisions = decisions

    async def ListReviews(self, request: pb.ListReviewsRequest, context: Context) -> pb.ListReviewsResponse:  # noqa: N802
        """List the held answers of the tenant that the caller may know of."""
        del context
        principal, _ = await caller_of_rpc(self._authenticator)
        policies = self._authorizer.policies
        permit(policies, principal, AccessRequest(Action.READ_REVIEWS))
        classes = [name for name in DATA_CLASSES if _may_know(policies, principal, name)]
        after = _after(request.page_token)
        with state_needed(NO_STATE):
            tenant, most = principal.tenant.name, request.page_size + 1
            found = await rows.page(self._store, tenant, classes, after, most, decided=request.include_decided)
        shown = found[: request.page_size]
        token = f"{shown[-1].held_at_us}.{shown[-1].request_id}" if len(found) > len(shown) else ""
        return pb.ListReviewsResponse(reviews=map(_message, shown), next_page_token=token)

    async def GetReview(self, request: pb.GetReviewRequest, context: Context) -> pb.GetReviewResponse:  # noqa: N802
        """Show one with its texts; the audit log says that they were read."""
        del context
        principal, deadline = await caller_of_rpc(self._authenticator)
        policies = self._authorizer.policies
        review = await self._known(policies, principal, request.request_id)
        author = author_for(review, principal)
        permit(policies, principal, AccessRequest(Action.READ_REVIEWS, data_class=review.data_class, author=author))
        asked = self._context(policies, principal, review)
        review = await self._decisions.current(review, asked, deadline)
        record = await self._log.record(asked, review.request_id, deadline)
        if not record.answer:  # its request ended otherwise after it was put here
            raise _not_found()
        return pb.GetReviewResponse(review=_message(review), prompt=record.prompt.decode(), answer=record.answer.decode())

    async def DecideReview(self, request: pb.DecideReviewRequest, context: Context) -> pb.DecideReviewResponse:  # noqa: N802
        """Release or refuse."""
        del context
        principal, deadline = await caller_of_rpc(self._authenticator)
        if principal.auth_method is AuthMethod.API_KEY:
            raise errors.RoleNotPermitted("not permitted: a person decides, and no API key")
        policies = self._authorizer.policies
        review = await self._known(policies, principal, request.request_id)
        author = author_for(review, principal)
        permit(policies, principal, AccessRequest(Action.DECIDE_REVIEW, data_class=review.data_class, author=author))
        asked = self._context(policies, principal, review)
        review = await self._decisions.current(review, asked, deadline)
        decision = Decision(request.decision)
        if review.decision is not Decision.WAITING:
            return pb.DecideReviewResponse(receipt=await self._decisions.repeated(review, decision, asked, deadline))
        if self._decisions.now_us() >= review.expires_at_us:
            raise errors.AlreadyDecided("the time to decide is up")
        if not await self._decisions.is_held(review, asked, deadline):
            raise _not_found()
        receipt = await self._decisions.decide(review, decision, asked, request.reason, deadline)
        return pb.DecideReviewResponse(receipt=receipt)

    async def GetHeldAnswer(self, request: pb.GetHeldAnswerRequest, context: Context) -> pb.GetHeldAnswerResponse:  # noqa: N802
        """Say what became of the caller's own held answer."""
        del context
        return await self.get_held_answer(request, *await caller_of_rpc(self._authenticator))

    async def get_held_answer(
        self, request: pb.GetHeldAnswerRequest, principal: Principal, deadline: Deadline
    ) -> pb.GetHeldAnswerResponse:
        """Say what became of the caller's own held answer, by whichever door they came."""
        policies = self._authorizer.policies
        permit(policies, principal, AccessRequest(Action.GET_HELD_ANSWER))
        with state_needed(NO_STATE):
            review = await rows.find(self._store, principal.tenant.name, request.request_id)
        if review is None or review.author != principal.actor:
            raise _not_found()
        permit(policies, principal, AccessRequest(Action.GET_HELD_ANSWER, data_class=review.data_class))
        asked = self._context(policies, principal, review)
        review = await self._decisions.current(review, asked, deadline)
        response = pb.GetHeldAnswerResponse(
            decision=pb.ReviewDecision.ValueType(review.decision), expires_at=_timestamp(review.expires_at_us)
        )
        if review.decided_at_us is not None:
            response.decided_at.CopyFrom(_timestamp(review.decided_at_us))
        if review.decision is Decision.RELEASE:
            released = await self._log.released(asked, review.request_id, review.event_id, deadline)
            response.answer, response.answer_salt = released.answer.decode(), released.salt
        elif review.decision is not Decision.WAITING:
            response.safe_message = _EXPIRED if review.decision is Decision.EXPIRED else _REFUSED
        return response

    async def _known(self, policies: AccessPolicies, principal: Principal, request_id: str) -> Review:
        """Return a held answer that the caller may know of. Raises RoleNotPermitted, ReviewNotFound, SharedStateUnavailable."""
        permit(policies, principal, AccessRequest(Action.READ_REVIEWS))
        with state_needed(NO_STATE):
            review = await rows.find(self._store, principal.tenant.name, request_id)
        if review is None or not _may_know(policies, principal, review.data_class):
            raise _not_found()
        return review

    @staticmethod
    def _context(policies: AccessPolicies, principal: Principal, review: Review) -> ctx.RequestContext:
        return request_context(
            principal,
            uuid7(),
            purpose=review.purpose,
            case_id=review.case_id,
            data_class=data_class_of(review.data_class),
            access_policy_digest=policies.digest,
        )


def _may_know(policies: AccessPolicies, principal: Principal, data_class: str) -> bool:
    return policies.decide(principal, AccessRequest(Action.READ_REVIEWS, data_class=data_class)).allowed


def _not_found() -> errors.ReviewNotFound:
    return errors.ReviewNotFound("no answer of this request is held")


def _after(page_token: str) -> tuple[int, str]:
    """Read a token that ListReviews gave. Raises InvalidField."""
    if not page_token:
        return 0, ""
    held_at_us, dot, request_id = page_token.partition(".")
    if not dot or not (held_at_us.isascii() and held_at_us.isdigit() and len(held_at_us) <= 18):
        raise InvalidField("no such page", field_violations=[("page_token", "not one that ListReviews returned")])
    return int(held_at_us), request_id


def _message(review: Review) -> pb.Review:
    message = pb.Review(
        request_id=review.request_id,
        author=review.author,
        purpose=review.purpose,
        case_id=review.case_id,
        held_since=_timestamp(review.held_at_us),
        decision=pb.ReviewDecision.ValueType(review.decision),
        expires_at=_timestamp(review.expires_at_us),
        cause=pb.HoldCause.ValueType(review.cause),
        data_class=data_class_of(review.data_class),
        decided_by=review.decided_by,
    )
    if review.decided_at_us is not None:
        message.decided_at.CopyFrom(_timestamp(review.decided_at_us))
    return message


def _timestamp(time_us: int) -> Timestamp:
    value = Timestamp()
    value.FromMicroseconds(time_us)
    return value
