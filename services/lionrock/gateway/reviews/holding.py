"""Puts an answer into its tenant's queue, and says beforehand which answers go there.

Knows causes and rows. The answer itself goes into the audit vault with the request's outcome (pipeline.py), after its row is
durable: no answer waits that no reviewer can find. Where the row cannot be written, the request fails and nothing of it is kept.
"""

from __future__ import annotations

from lionrock.audit.v1 import audit_pb2 as audit
from lionrock.chassis.ids import uuid7
from lionrock.common.v1 import context_pb2 as ctx
from lionrock.gateway import errors
from lionrock.gateway.context import data_class_name
from lionrock.gateway.quota_refusals import state_needed
from lionrock.gateway.reviews import rows
from lionrock.gateway.reviews.deciding import NO_STATE
from lionrock.gateway.reviews.rows import QueueFullError, Review
from lionrock.gateway.reviews.rules import Cause
from lionrock.gateway.state.store import StateStore
from lionrock.gateway.tenants import Principal

_SUSPICION = "suspicion"


def refuse_what_nobody_keeps(intent: audit.AppendResponse) -> None:
    """Raise ReviewRequired where no vault would keep the answer: no reviewer could read it."""
    if not intent.payloads_kept:
        raise errors.ReviewRequired("a person has to decide on such answers, and the audit service keeps none of this tenant")


class HeldAnswers:
    """The queues of all tenants, as the pipeline fills them."""

    def __init__(self, store: StateStore | None) -> None:
        """`store`: None where the gateway has no state; then no tenant has a queue."""
        self._store = store

    def has_queue(self, principal: Principal) -> bool:
        """Whether a reviewer can decide on answers to this caller."""
        return self._store is not None and principal.tenant.review is not None

    def cause(self, principal: Principal, purpose: str) -> Cause | None:
        """Why this caller's answers for this purpose all wait; None where they do not. Raises ReviewRequired without a queue."""
        rules = principal.tenant.review
        cause = None if rules is None else rules.cause(purpose, principal.grant.profile)
        if cause is not None and self._store is None:
            raise errors.ReviewRequired("a person has to decide on such answers, and this gateway has no queue for them")
        return cause

    async def hold(self, principal: Principal, context: ctx.RequestContext, cause: Cause) -> Review:
        """Put the answer of a request into the queue. Raises ReviewQueueFull, SharedStateUnavailable."""
        rules = principal.tenant.review
        assert self._store is not None
        assert rules is not None
        data_class = data_class_name(context.data_class)
        review = Review(
            context.tenant,
            context.request_id,
            uuid7(),
            context.actor,
            principal.known_as,
            context.purpose,
            context.case_id,
            data_class,
            cause,
            held_at_us=0,
            expires_at_us=0,
        )
        notify = rules.notify is not None and data_class != _SUSPICION
        try:
            with state_needed(NO_STATE):
                return await rows.hold(self._store, review, rules.ttl_s * 1_000_000, notify=notify)
        except QueueFullError as full:
            raise errors.ReviewQueueFull(f"{rows.MAX_WAITING} answers wait for a reviewer") from full
