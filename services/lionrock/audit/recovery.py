"""Closes intents whose requests ended without a word: the gateway died, or its outcome never arrived.

Rule
- An intent is an orphan once this process has seen it open for `orphan_after_s`, which exceeds the longest deadline of a
  request; nobody can still be answering it. Age is measured on the monotonic clock from the moment that this process saw the
  log at that size, so neither a step of the wall clock nor a quick restart closes a request that lives.
- It gets an outcome with status "failed", reason "OUTCOME_MISSING" and recorded_by "recovery", under the context of its intent. The
  event id is the request id, as the gateway's own outcome would have had it, or a new one where that is taken.
- An outcome that arrives after that is refused (EventAlreadyRecorded or IntentClosed): its gateway must not release a final frame.
"""

import asyncio
import json
import logging
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import fields
from typing import Any

from lionrock.audit.failures import AuditError, IntentClosed
from lionrock.audit.leaf import Context, Event, Outcome
from lionrock.audit.log import AuditLogs
from lionrock.chassis.ids import uuid7

log = logging.getLogger("lionrock.audit")

OUTCOME_MISSING = "OUTCOME_MISSING"
_AT_ONCE = 256


class OrphanSweep:
    """Remembers how long ago each log had which size, and closes what is older than the limit."""

    def __init__(self, logs: AuditLogs, *, orphan_after_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        """Sweep `logs`. Memory: one entry a sweep within `orphan_after_s`."""
        self._logs = logs
        self._orphan_after_s = orphan_after_s
        self._clock = clock
        self._seen: deque[tuple[float, Mapping[str, int]]] = deque()

    async def run(self, interval_s: float) -> None:
        """Sweep for ever."""
        while True:
            try:
                await self.sweep()
            except AuditError as error:
                log.warning("orphaned intents could not be closed", extra={"failure": type(error).__name__, "why": str(error)})
            await asyncio.sleep(interval_s)

    async def sweep(self) -> int:
        """Look once. Returns how many intents were closed. Raises AuditError."""
        now = self._clock()
        read_only = self._logs.read_only_reasons()
        self._seen.append((now, {tenant: self._logs.size(tenant) for tenant in self._logs.tenants if tenant not in read_only}))
        old: Mapping[str, int] = {}
        while self._seen and now - self._seen[0][0] >= self._orphan_after_s:
            old = self._seen.popleft()[1]
        if not old:
            return 0
        self._seen.appendleft((now - self._orphan_after_s, old))  # what was old enough stays so
        closed = 0
        for tenant, size in old.items():
            while orphans := await self._logs.open_intents(tenant, size, _AT_ONCE):
                for intent, leaf in orphans:
                    closed += await self._close(tenant, intent.index, json.loads(leaf.data))
        if closed:
            log.warning("closed intents without an outcome", extra={"count": closed})
        return closed

    async def _close(self, tenant: str, index: int, intent: Mapping[str, Any]) -> int:
        context = Context(**{field.name: intent.get(field.name, "") for field in fields(Context)})
        event_id = uuid7() if await self._logs.has_event(tenant, context.request_id) else context.request_id
        outcome = Outcome(intent_index=index, status="failed", reason=OUTCOME_MISSING, recorded_by="recovery")
        try:
            await self._logs.append(Event(event_id, intent.get("trace_id", ""), context, outcome, {}), want_receipt=False)
        except IntentClosed:  # its outcome came in this moment
            return 0
        return 1
