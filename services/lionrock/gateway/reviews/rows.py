"""The rows of held answers in the state that gateways share (state/schema.py has the table).

Knows statements, each a transaction of its own. A row holds who asked, why and until when, and no word of question or answer: those
are in the audit vault. Does not know who may see or decide what (servicer.py).

- `event_id` is the event of the decision's leaf, drawn when the answer is held. The audit log takes one content for an event: of
  two decisions the log has one, whatever gateways and crashes do, and a row that does not know it is told by the log (deciding.py).
- A tenant has MAX_WAITING answers that wait, and a row is forgotten KEPT_US after its time to decide was up.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import Final

from lionrock.gateway.reviews.rules import Cause, Decision
from lionrock.gateway.state.store import Row, StateStore, StateTransaction, Value

MAX_WAITING: Final = 1000
KEPT_US: Final = 30 * 24 * 3600 * 1_000_000
NOTIFY_TRIES: Final = 6
_FIRST_RETRY_US: Final = 5_000_000
_DECIDING_US: Final = 60_000_000
"""So long somebody who began to decide may take: meanwhile nothing expires."""
_COLUMNS: Final = (
    "tenant, request_id, event_id, author, known_as, purpose, case_id, data_class, cause, held_at_us, expires_at_us, decision, "
    "decided_by, decided_at_us, claimed_at_us"
)
_INSERT: Final = (
    f"INSERT INTO reviews ({_COLUMNS}, notify_at_us, notified) "  # noqa: S608
    "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, 0, '', NULL, NULL, ?, 0)"
)
_ONE: Final = f"SELECT {_COLUMNS} FROM reviews WHERE tenant = ? AND request_id = ?"  # noqa: S608
_WAITING: Final = "SELECT count(*) FROM reviews WHERE tenant = ? AND decision = 0"
_CLAIM: Final = "UPDATE reviews SET claimed_at_us = ? WHERE tenant = ? AND request_id = ? AND decision = 0"
_DECIDE: Final = """UPDATE reviews SET decision = ?, decided_by = ?, decided_at_us = ?, notify_at_us = NULL
    WHERE tenant = ? AND request_id = ? AND decision = 0"""
_OVERDUE: Final = (
    f"SELECT {_COLUMNS} FROM reviews WHERE decision = 0 AND expires_at_us <= ? "  # noqa: S608
    "AND (claimed_at_us IS NULL OR claimed_at_us <= ?) ORDER BY expires_at_us LIMIT ?"
)
_FORGET: Final = "DELETE FROM reviews WHERE decision = ? AND expires_at_us < ?"
_TO_NOTIFY: Final = f"SELECT {_COLUMNS}, notified FROM reviews WHERE notify_at_us <= ? ORDER BY notify_at_us LIMIT ?"  # noqa: S608
_TRY_AGAIN: Final = "UPDATE reviews SET notify_at_us = ?, notified = notified + 1 WHERE tenant = ? AND request_id = ?"
_NOTIFIED: Final = "UPDATE reviews SET notify_at_us = NULL WHERE tenant = ? AND request_id = ?"


class QueueFullError(Exception):
    """MAX_WAITING answers of the tenant wait already."""


@dataclass(frozen=True, slots=True)
class Review:
    """A held answer. `author`: the actor who asked; `known_as`: every name under which that caller is known, theirs among them.

    `data_class` as in grants. Times: microseconds since 1970. `claimed_at_us`: when somebody last began to decide.
    """

    tenant: str
    request_id: str
    event_id: str
    author: str
    known_as: frozenset[str]
    purpose: str
    case_id: str
    data_class: str
    cause: Cause
    held_at_us: int
    expires_at_us: int
    decision: Decision = Decision.WAITING
    decided_by: str = ""
    decided_at_us: int | None = None
    claimed_at_us: int | None = None


async def hold(store: StateStore, review: Review, ttl_us: int, *, notify: bool) -> Review:
    """Put an answer into the queue from now on, and return it with its times. Raises QueueFullError, StateUnavailable."""

    def work(state: StateTransaction) -> tuple[int, int]:
        ((waiting,),) = state.ask(_WAITING, (review.tenant,))
        if waiting >= MAX_WAITING:
            raise QueueFullError(f"{MAX_WAITING} answers wait")
        now_us = state.now_us
        facts = (review.tenant, review.request_id, review.event_id, review.author, json.dumps(sorted(review.known_as)))
        why = (review.purpose, review.case_id, review.data_class, int(review.cause))
        state.write(_INSERT, (*facts, *why, now_us, now_us + ttl_us, now_us if notify else None))
        return now_us, now_us + ttl_us

    held_at_us, expires_at_us = await store.write(work)
    return replace(review, held_at_us=held_at_us, expires_at_us=expires_at_us)


async def find(store: StateStore, tenant: str, request_id: str) -> Review | None:
    """Return a held answer of the tenant. Raises StateUnavailable."""
    rows = await store.read(lambda state: state.ask(_ONE, (tenant, request_id)))
    return _row(rows[0]) if rows else None


async def page(
    store: StateStore, tenant: str, classes: Collection[str], after: tuple[int, str], size: int, *, decided: bool
) -> list[Review]:
    """Return held answers of these classes of data that follow (held at, request id), oldest first. Raises StateUnavailable."""
    if not classes:
        return []
    listed = sorted(classes)
    sql = (
        f"SELECT {_COLUMNS} FROM reviews WHERE tenant = ? AND data_class IN ({', '.join('?' * len(listed))})"  # noqa: S608
        " AND (held_at_us > ? OR (held_at_us = ? AND request_id > ?))"
        f"{'' if decided else ' AND decision = 0'} ORDER BY held_at_us, request_id LIMIT ?"
    )
    parameters: tuple[Value, ...] = (tenant, *listed, after[0], after[0], after[1], size)
    return [_row(row) for row in await store.read(lambda state: state.ask(sql, parameters))]


async def claim(store: StateStore, review: Review) -> None:
    """Note that somebody is about to decide: whoever looks later asks the log what came of it. Raises StateUnavailable."""
    await store.write(lambda state: state.write(_CLAIM, (state.now_us, review.tenant, review.request_id)))


async def decide(store: StateStore, review: Review, decision: Decision, decided_by: str, decided_at_us: int) -> None:
    """Say what the log says; a row that knows already stays as it is. Raises StateUnavailable."""
    parameters = (int(decision), decided_by, decided_at_us, review.tenant, review.request_id)
    await store.write(lambda state: state.write(_DECIDE, parameters))


async def overdue(store: StateStore, most: int) -> Sequence[Review]:
    """Return answers whose time to decide is up, the longest first. Raises StateUnavailable."""

    def work(state: StateTransaction) -> list[Row]:
        return state.ask(_OVERDUE, (state.now_us, state.now_us - _DECIDING_US, most))

    return [_row(row) for row in await store.read(work)]


async def forget(store: StateStore) -> None:
    """Delete rows that were decided on and are old. Raises StateUnavailable."""

    def work(state: StateTransaction) -> None:
        for decision in (Decision.RELEASE, Decision.REFUSE, Decision.EXPIRED):
            state.write(_FORGET, (int(decision), state.now_us - KEPT_US))

    await store.write(work)


async def to_notify(store: StateStore, most: int) -> Sequence[Review]:
    """Take answers of which somebody is to be told now; each comes again later until `notified`. Raises StateUnavailable."""
    if not await store.read(lambda state: state.ask(_TO_NOTIFY, (state.now_us, 1))):
        return []

    def work(state: StateTransaction) -> list[Row]:
        rows = state.ask(_TO_NOTIFY, (state.now_us, most))
        for row in rows:
            tries = int(row[-1])
            later = state.now_us + _FIRST_RETRY_US * 4**tries if tries + 1 < NOTIFY_TRIES else None
            state.write(_TRY_AGAIN, (later, row[0], row[1]))
        return rows

    return [_row(row[:-1]) for row in await store.write(work)]


async def notified(store: StateStore, review: Review) -> None:
    """Note that they were told. Raises StateUnavailable."""
    await store.write(lambda state: state.write(_NOTIFIED, (review.tenant, review.request_id)))


def _row(row: Row) -> Review:
    (
        tenant, request_id, event_id, author, known_as, purpose, case_id, data_class, cause, held_at_us, expires_at_us, decision,
        decided_by, decided_at_us, claimed_at_us,
    ) = row  # fmt: skip
    return Review(
        tenant, request_id, event_id, author, frozenset(json.loads(known_as)), purpose, case_id, data_class, Cause(cause),
        held_at_us, expires_at_us, Decision(decision), decided_by, decided_at_us, claimed_at_us,
    )  # fmt: skip
