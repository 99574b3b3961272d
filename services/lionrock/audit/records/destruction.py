"""Destroying records: decided durably, said in the log, then done; and done to the end, whatever happens in between.

    1  list    one transaction: the plan and its records, which take nothing any more
    2  leaf    an ERASURE or EXPIRY leaf, under the event id of the plan
    3  keys    keys of records, and of scopes to which nothing else belongs, out of the key store and its write-ahead log
    4  data    ciphertexts and retry salts out of the store; the records are "erased" or "expired"
    5  end     the plan is forgotten, deleted rows are overwritten

Knows: this order. Does not know: what may be destroyed (records.py, upkeep.py). A crash before 1 leaves everything as it was; after
it, `finish` goes on from the list: every later step can be repeated. The plan holds the leaf's content and no secret: neither a
person's id nor the salt of the commitment to it.
"""

import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import asdict
from hashlib import sha256
from typing import Final

from lionrock.audit.canonical_json import canonical_json
from lionrock.audit.failures import RecordErased, RequestOpen
from lionrock.audit.leaf import Context, Erasure, Event, Expiry
from lionrock.audit.log import AuditLogs
from lionrock.audit.sequencer import Appended
from lionrock.audit.store import LogId, Transaction
from lionrock.audit.store.records import ERASED, EXPIRED, KEPT, StoredDestruction
from lionrock.audit.vault.record_keys import RecordKeys

log = logging.getLogger("lionrock.audit")

AT_ONCE: Final = 256
STEPS: Final = ("listed", "logged", "keys_destroyed", "data_destroyed", "ended")
"""What is durable when `at` is called with the name."""


def go_on(step: str) -> None:
    """Do nothing after a step."""
    del step


class Destruction:
    """Carries plans out. The caller sees to it that one tenant has one at a time."""

    def __init__(self, logs: AuditLogs, keys: RecordKeys, at: Callable[[str], None] = go_on) -> None:
        """`at` is called after each durable step: where a test ends the process."""
        self._logs = logs
        self._keys = keys
        self._at = at

    async def destroy(self, event: Event, request_ids: Sequence[str]) -> Appended:
        """Destroy records and record it by `event`, an Erasure or an Expiry. Returns its leaf with its proof.

        Raises RequestOpen and RecordErased before anything is decided; after that only what makes `finish` necessary.
        """
        tenant = event.context.tenant
        plan = StoredDestruction(event.event_id, _plan(event))

        def begin(transaction: Transaction, log_id: LogId) -> None:
            waiting = {intent.request_id for intent in transaction.open_intents_of(log_id, request_ids)} if request_ids else ()
            if waiting:
                raise RequestOpen(len(waiting))
            found = transaction.records.records(log_id, request_ids)
            if len(found) != len(request_ids) or any(record.state != KEPT for record in found.values()):
                raise RecordErased("a record is destroyed already")
            transaction.records.begin_destruction(log_id, plan, request_ids)

        await self._logs.write(tenant, begin)
        self._at("listed")
        return await self._carry_out(event)

    async def finish(self, tenant: str) -> int:
        """Carry out what was decided and not done. Returns how many plans that were. Raises AuditError."""
        plans = await self._logs.read_records(tenant, lambda reader, log_id: reader.destructions(log_id))
        for plan in plans:
            await self._carry_out(_event(plan))
        if plans:
            log.warning("finished destructions that were decided before", extra={"tenant": tenant, "count": len(plans)})
        return len(plans)

    async def _carry_out(self, event: Event) -> Appended:
        tenant, destruction_id = event.context.tenant, event.event_id
        state = ERASED if isinstance(event.body, Erasure) else EXPIRED
        appended = await self._logs.append(event, want_receipt=True)
        self._at("logged")
        while listed := await self._logs.read_records(
            tenant, lambda reader, log_id: reader.listed_for(log_id, destruction_id, AT_ONCE)
        ):
            await self._destroy(tenant, listed, state)
        await self._logs.write(tenant, lambda transaction, log_id: transaction.records.end_destruction(log_id, destruction_id))
        self._at("ended")
        why = await self._logs.forget_deleted()
        if why is not None:  # what is left of ciphertexts is worth nothing without its keys
            log.warning("deleted ciphertexts were not overwritten yet", extra={"why": why})
        return appended

    async def _destroy(self, tenant: str, request_ids: Sequence[str], state: str) -> None:
        await self._keys.destroy(tenant, request_ids)
        self._keys.metrics.destroyed(len(request_ids), "erasure" if state == ERASED else "expiry")
        self._at("keys_destroyed")
        await self._logs.write(tenant, lambda transaction, log_id: transaction.records.destroy(log_id, request_ids, state))
        self._at("data_destroyed")


def _plan(event: Event) -> bytes:
    return json.dumps(
        {"event_id": event.event_id, "type": event.type, "context": asdict(event.context), "body": asdict(event.body)}
    ).encode()


def _event(plan: StoredDestruction) -> Event:
    said = json.loads(plan.plan)
    context = Context(**said["context"] | {"roles": tuple(said["context"]["roles"])})
    body = Erasure(**said["body"]) if said["type"] == "erasure" else Expiry(**said["body"])
    return Event(said["event_id"], "", context, body, {})


def records_digest(request_ids: Sequence[str]) -> str:
    """SHA-256 over the canonical JSON of request ids, sorted."""
    return f"sha256:{sha256(canonical_json(sorted(request_ids))).hexdigest()}"
