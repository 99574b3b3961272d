"""Decides on held answers: the leaf first, then the row, and of two decisions the first that is in the log.

Every held answer has one event in the tenant's log for its decision, whose id was drawn when it was held. The log takes an event
once: whoever comes second learns so, and a row that a crash left behind is told by the log what was decided. Nothing takes effect
that is not a leaf. Knows leaves and rows; does not know who may decide (servicer.py).
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Final

from lionrock.audit.v1 import audit_pb2 as audit
from lionrock.common.v1 import context_pb2 as ctx
from lionrock.gateway import errors
from lionrock.gateway.governance import governance_leaf
from lionrock.gateway.peers import AuditLog, Deadline
from lionrock.gateway.quota_refusals import state_needed
from lionrock.gateway.reviews import rows
from lionrock.gateway.reviews.rows import Review
from lionrock.gateway.reviews.rules import Decision
from lionrock.gateway.state.store import StateStore
from lionrock.tlog.proof import TlogProof

_OPERATIONS: Final = {
    Decision.RELEASE: "review.released",
    Decision.REFUSE: "review.refused",
    Decision.EXPIRED: "review.expired",
}
_DECISIONS: Final = {operation: decision for decision, operation in _OPERATIONS.items()}
NO_STATE: Final = "the queue of held answers cannot be reached"
_TAKEN: Final = "EVENT_ALREADY_RECORDED"
_UNDER_WAY_US: Final = 1_000_000
"""A decision that was begun so long ago and is in no row yet may be in the log alone."""


@dataclass(frozen=True, slots=True)
class Recorded:
    """A decision as the log has it."""

    decision: Decision
    actor: str
    receipt: audit.Receipt


class Decisions:
    """Decides on the held answers of all tenants."""

    def __init__(self, store: StateStore, log: AuditLog, wall_clock: Callable[[], float] = time.time) -> None:
        """`wall_clock`: seconds since 1970."""
        self._store = store
        self._log = log
        self._wall_clock = wall_clock

    def now_us(self) -> int:
        """Tell the time in microseconds since 1970."""
        return round(self._wall_clock() * 1e6)

    async def decide(
        self, review: Review, decision: Decision, context: ctx.RequestContext, statement: str, deadline: Deadline
    ) -> audit.Receipt:
        """Record a decision, then say it in the row; return the proof of its leaf.

        A decision that the same actor has made already is proven again. Raises AlreadyDecided, AuditUnavailable,
        SharedStateUnavailable: after the last two nobody knows whether it was made, and deciding again tells.
        """
        with state_needed(NO_STATE):
            await rows.claim(self._store, review)
        leaf = governance_leaf(
            context,
            _OPERATIONS[decision],
            review.request_id,
            details={"cause": review.cause.name.lower()},
            statement=statement,
            event_id=review.event_id,
            want_receipt=True,
        )
        try:
            appended = await self._log.append(leaf, deadline)
        except errors.AuditUnavailable as error:
            if error.metadata.get("peer_reason") != _TAKEN:
                raise
        else:
            await self._settle(review, Recorded(decision, context.actor, appended.receipt))
            return appended.receipt
        recorded = await self.recorded(review, context, deadline)
        assert recorded is not None, "the log said that it has the event"
        await self._settle(review, recorded)
        return _same(recorded, decision, context.actor)

    async def repeated(self, review: Review, decision: Decision, context: ctx.RequestContext, deadline: Deadline) -> audit.Receipt:
        """Return the proof of a decision that the row knows. Raises AlreadyDecided unless it is this one of this actor."""
        recorded = await self.recorded(review, context, deadline)
        if recorded is None:
            raise _decided()
        return _same(recorded, decision, context.actor)

    async def current(self, review: Review, context: ctx.RequestContext, deadline: Deadline) -> Review:
        """Return the row as it should be: what the log knows and the row does not is written down. Raises as `decide`."""
        begun = review.claimed_at_us
        if review.decision is not Decision.WAITING or begun is None or self.now_us() - begun < _UNDER_WAY_US:
            return review
        recorded = await self.recorded(review, context, deadline)
        if recorded is None:
            return review
        return await self._settle(review, recorded)

    async def expire(self, review: Review, context: ctx.RequestContext, deadline: Deadline) -> bool:
        """Refuse an answer whose time is up; False when the log has a decision already. Raises as `decide`."""
        leaf = governance_leaf(
            context,
            _OPERATIONS[Decision.EXPIRED],
            review.request_id,
            details={"cause": review.cause.name.lower()},
            event_id=review.event_id,
        )
        try:
            await self._log.append(leaf, deadline)
        except errors.AuditUnavailable as error:
            if error.metadata.get("peer_reason") != _TAKEN:
                raise
            return False
        with state_needed(NO_STATE):
            await rows.decide(self._store, review, Decision.EXPIRED, "", self.now_us())
        return True

    async def recorded(self, review: Review, context: ctx.RequestContext, deadline: Deadline) -> Recorded | None:
        """Ask the log for the decision; None while it has none. Raises AuditUnavailable."""
        try:
            receipt = await self._log.receipt(context, review.event_id, deadline)
        except errors.ReceiptNotFound:
            return None
        leaf = leaf_of(receipt)
        return Recorded(_DECISIONS[leaf["operation"]], leaf["actor"], receipt)

    async def is_held(self, review: Review, context: ctx.RequestContext, deadline: Deadline) -> bool:
        """Whether the log says of the request that its answer waits. Raises AuditUnavailable."""
        try:
            receipt = await self._log.receipt(context, review.request_id, deadline)
        except errors.ReceiptNotFound:
            return False
        return bool(leaf_of(receipt).get("status") == "held")

    async def _settle(self, review: Review, recorded: Recorded) -> Review:
        by = "" if recorded.decision is Decision.EXPIRED else recorded.actor
        at_us = recorded.receipt.position.recorded_at.ToMicroseconds()
        with state_needed(NO_STATE):
            await rows.decide(self._store, review, recorded.decision, by, at_us)
        return replace(review, decision=recorded.decision, decided_by=by, decided_at_us=at_us)


def leaf_of(receipt: audit.Receipt) -> dict[str, Any]:
    """Return the leaf in a receipt of our own audit service, whose proof is not checked here."""
    leaf = TlogProof.parse(receipt.tlog_proof).leaf
    assert leaf is not None, "our receipts carry their leaves"
    said: dict[str, Any] = json.loads(leaf)
    return said


def _same(recorded: Recorded, decision: Decision, actor: str) -> audit.Receipt:
    if (recorded.decision, recorded.actor) != (decision, actor):
        raise _decided()
    return recorded.receipt


def _decided() -> errors.AlreadyDecided:
    return errors.AlreadyDecided("somebody has decided, or the time to decide is up")
