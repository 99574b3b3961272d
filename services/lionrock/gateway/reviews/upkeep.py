"""What happens to held answers while nobody asks: notices go out, what nobody decided in time is refused, old rows are forgotten.

Every gateway does all of it; which of them does what makes no difference, since the log takes one decision for an answer and a
notice is taken by one gateway at a time. A notice is tried NOTIFY_TRIES times over half an hour, then the queue alone tells. Of
suspicion nobody is told: a notice goes to more people than those who are cleared.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Final

from lionrock.chassis.errors import MeshError
from lionrock.chassis.ids import uuid7
from lionrock.common.v1 import context_pb2 as ctx
from lionrock.gateway.context import data_class_of
from lionrock.gateway.peers import Deadline
from lionrock.gateway.reviews import rows
from lionrock.gateway.reviews.deciding import Decisions
from lionrock.gateway.reviews.notices import NotNotified, tell
from lionrock.gateway.reviews.rows import Review
from lionrock.gateway.state.store import StateStore, StateUnavailable
from lionrock.gateway.tenants import Tenant, TenantDirectory

log = logging.getLogger("lionrock.gateway")

LOOK_S: Final = 2.0
_FORGET_EVERY: Final = 1800
"""Looks between two times of forgetting: an hour."""
_AT_ONCE: Final = 16
_NOTICE_TIMEOUT_S: Final = 5.0
_DECISION_TIMEOUT_S: Final = 5.0


class Upkeep:
    """Looks after the held answers of all tenants."""

    def __init__(
        self,
        store: StateStore,
        decisions: Decisions,
        directory: TenantDirectory,
        *,
        gateway_id: str,
        policies_digest: Callable[[], str],
        unnotified: Callable[[str], None],
    ) -> None:
        """`gateway_id`: SPIFFE id, the actor of leaves that no caller causes. `unnotified`: told the tenant of a failed notice."""
        self._store = store
        self._decisions = decisions
        self._directory = directory
        self._gateway_id = gateway_id
        self._policies_digest = policies_digest
        self._unnotified = unnotified
        self._looks = 0

    async def keep_looking(self) -> None:
        """Look until cancelled."""
        while True:
            await asyncio.sleep(LOOK_S)
            try:
                await self.look()
            except (StateUnavailable, MeshError) as error:
                log.error("held answers cannot be looked after", extra={"why": str(error)})

    async def look(self) -> None:
        """Do what is due now. Raises StateUnavailable, AuditUnavailable, SharedStateUnavailable."""
        notices = await rows.to_notify(self._store, _AT_ONCE)
        await asyncio.gather(*map(self._notify, notices))
        for review in await rows.overdue(self._store, _AT_ONCE):
            await self._expire(review)
        if self._looks % _FORGET_EVERY == 0:
            await rows.forget(self._store)
        self._looks += 1

    async def _notify(self, review: Review) -> None:
        tenant = self._directory.tenant(review.tenant)
        notify = None if tenant is None or tenant.review is None else tenant.review.notify
        if notify is None:
            await rows.notified(self._store, review)
            return
        try:
            async with asyncio.timeout(_NOTICE_TIMEOUT_S):
                await tell(notify, review, self._decisions.now_us() // 1_000_000)
        except (NotNotified, TimeoutError) as error:
            why = "no answer in time" if isinstance(error, TimeoutError) else str(error)
            log.error(
                "nobody could be told that an answer waits",
                extra={"tenant": review.tenant, "request_id": review.request_id, "why": why},
            )
            self._unnotified(review.tenant)
        else:
            await rows.notified(self._store, review)

    async def _expire(self, review: Review) -> None:
        tenant = self._directory.tenant(review.tenant)
        if tenant is None:
            return  # its log takes no leaves; who is gone is shown nothing
        deadline = Deadline.after(_DECISION_TIMEOUT_S)
        if await self._decisions.expire(review, self._context(tenant, review), deadline):
            log.info("a held answer expired", extra={"tenant": review.tenant, "request_id": review.request_id})
        else:
            await rows.claim(self._store, review)  # decided by a gateway that could not say so here: who asks next is told

    def _context(self, tenant: Tenant, review: Review) -> ctx.RequestContext:
        return ctx.RequestContext(
            request_id=uuid7(),
            tenant=tenant.name,
            actor=self._gateway_id,
            auth_method=ctx.AUTH_METHOD_MTLS,
            purpose=review.purpose,
            case_id=review.case_id,
            data_class=data_class_of(review.data_class),
            territory=tenant.territory,
            profile="default",
            access_policy_digest=self._policies_digest(),
        )
