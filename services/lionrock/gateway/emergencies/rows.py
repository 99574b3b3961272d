"""The rows of emergencies in the state that gateways share (state/schema.py has the tables).

Knows statements, each a transaction of its own. Does not know who may do what, nor what a leaf says. No row has text that a person
wrote.

- `emergency_changes` has one row, whose number grows with every change of what is in force. Gateways ask for that number alone.
- Who decides claims the request first, so that of several exactly one goes on to write a leaf. A claim that nobody settled within
  CLAIM_US is stale: whoever wants to decide then asks the log whether its leaf is there, and settles or replaces the claim.
- What ends takes effect with its row. `owed_leaf` is the append that says so, with its event id, and stays until the log has it.
- A row says what is in force only together with its leaf (live.py): writing rows opens nothing.
"""

from __future__ import annotations

from typing import Final

from lionrock.gateway.emergencies.emergency import UNDECIDED_US, Emergency, EmergencyId, State
from lionrock.gateway.state.store import Row, StateStore, StateTransaction

MAX_OPEN_PER_TENANT: Final = 32
MAX_PER_TENANT: Final = 1000
"""Those that are over longest are forgotten; the log has them."""
CLAIM_US: Final = 30 * 1_000_000
_COLUMNS: Final = """emergency_id, tenant, state, requested_by, requested_with, requested_at_us, duration_us, suspicion, ends_at_us,
    context, decision, decided_by, decision_id, claimed_at_us, decided_at_us"""
_SELECT: Final = f"SELECT {_COLUMNS} FROM emergencies"  # noqa: S608
_ONE: Final = f"{_SELECT} WHERE tenant = ? AND emergency_id = ?"
_OPEN: Final = f"{_SELECT} WHERE tenant = ? AND state IN ('requested', 'approved')"
_IN_FORCE: Final = f"{_SELECT} WHERE state = 'approved' AND ends_at_us > ?"
_DUE: Final = f"""{_SELECT} WHERE state IN ('requested', 'approved') AND ends_at_us <= ?
    AND (state = 'approved' OR claimed_at_us IS NULL OR claimed_at_us <= ?) LIMIT 64"""
_PAGE: Final = f"{_SELECT} WHERE tenant = ? AND emergency_id < ? ORDER BY emergency_id DESC LIMIT ?"
_INSERT: Final = f"INSERT INTO emergencies ({_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"  # noqa: S608
_CLAIM: Final = """UPDATE emergencies SET decision = ?, decided_by = ?, decision_id = ?, claimed_at_us = ?
    WHERE emergency_id = ? AND state = 'requested'"""
_SETTLE: Final = """UPDATE emergencies SET state = ?, decided_at_us = ?, ends_at_us = ?
    WHERE tenant = ? AND emergency_id = ? AND state = 'requested' AND decision_id = ?"""
_CLOSE: Final = """UPDATE emergencies SET state = ?, ends_at_us = ?, owed_leaf = ? WHERE tenant = ? AND emergency_id = ?
    AND state IN ('requested', 'approved')"""
_FORGET: Final = """DELETE FROM emergencies WHERE tenant = ? AND owed_leaf IS NULL AND state NOT IN ('requested', 'approved')
    AND emergency_id NOT IN (SELECT emergency_id FROM emergencies WHERE tenant = ? ORDER BY emergency_id DESC LIMIT ?)"""
_CHANGED: Final = """INSERT INTO emergency_changes (one, changes) VALUES (1, 1)
    ON CONFLICT (one) DO UPDATE SET changes = emergency_changes.changes + 1"""


class EmergencyNotFoundError(Exception):
    """The tenant has no such emergency."""


class DecidedError(Exception):
    """It is not waiting any more, or it is over."""


class BeingDecidedError(Exception):
    """Somebody decides at this moment; it is known in CLAIM_US at the latest."""


class TooManyEmergenciesError(Exception):
    """The caller has one that is asked for or in force, or the tenant has MAX_OPEN_PER_TENANT."""


class StaleClaimError(Exception):
    """Somebody began to decide and nobody knows how that ended: ask the log."""

    def __init__(self, emergency: Emergency) -> None:
        super().__init__("a decision was begun")
        self.emergency = emergency


async def room(store: StateStore, tenant: str, requested_by: str) -> int:
    """Return the state's time, if one more may be asked for. Raises TooManyEmergenciesError, StateUnavailable."""

    def work(state: StateTransaction) -> int:
        _refuse_too_many(state, tenant, requested_by)
        return state.now_us

    return await store.read(work)


async def insert(store: StateStore, emergency: Emergency) -> None:
    """Keep a request. Raises TooManyEmergenciesError, StateConflict, StateUnavailable."""

    def work(state: StateTransaction) -> None:
        _refuse_too_many(state, emergency.tenant, emergency.requested_by)
        state.write(_FORGET, (emergency.tenant, emergency.tenant, MAX_PER_TENANT - 1))
        state.write(_INSERT, _values(emergency))

    await store.write(work)


async def find(store: StateStore, tenant: str, emergency_id: str) -> Emergency | None:
    """Return one of the tenant's. Raises StateUnavailable."""
    rows = await store.read(lambda state: state.ask(_ONE, (tenant, emergency_id)))
    return _row(rows[0]) if rows else None


async def claim(
    store: StateStore, tenant: str, emergency_id: str, *, decision: State, by: str, decision_id: str, instead_of: str = ""
) -> None:
    """Be the one who decides. `instead_of`: decision id of a stale claim that is known to have left no leaf.

    Raises EmergencyNotFoundError, DecidedError, BeingDecidedError, StaleClaimError, StateUnavailable.
    """

    def work(state: StateTransaction) -> None:
        rows = state.ask(_ONE, (tenant, emergency_id))
        if not rows:
            raise EmergencyNotFoundError("no such emergency")
        found = _row(rows[0])
        if found.state is not State.REQUESTED or found.ends_at_us <= state.now_us:
            raise DecidedError("it is decided or over")
        if found.claimed_at_us is not None and found.decision_id != instead_of:
            if state.now_us - found.claimed_at_us < CLAIM_US:
                raise BeingDecidedError("somebody decides")
            raise StaleClaimError(found)
        state.write(_CLAIM, (decision.value, by, decision_id, state.now_us, emergency_id))

    await store.write(work)


async def settle(store: StateStore, tenant: str, emergency_id: str, decision_id: str) -> Emergency:
    """Let a decision take effect whose leaf is in the log. Doing it again changes nothing.

    Raises DecidedError when it ended or lapsed meanwhile, EmergencyNotFoundError, StateUnavailable.
    """

    def work(state: StateTransaction) -> Emergency:
        rows = state.ask(_ONE, (tenant, emergency_id))
        if not rows:
            raise EmergencyNotFoundError("no such emergency")
        found = _row(rows[0])
        decision = State(found.decision) if found.decision else None
        if found.state is decision and found.decision_id == decision_id:
            return found
        if found.state is not State.REQUESTED or found.decision_id != decision_id or decision is None:
            raise DecidedError("it is over")
        ends_at_us = state.now_us + (found.duration_us if decision is State.APPROVED else 0)
        state.write(_SETTLE, (decision.value, state.now_us, ends_at_us, tenant, emergency_id, decision_id))
        state.write(_CHANGED)
        return _row(state.ask(_ONE, (tenant, emergency_id))[0])

    return await store.write(work)


async def close(store: StateStore, emergency: Emergency, state_after: State, owed_leaf: bytes) -> bool:
    """End one that is asked for or in force, and owe its leaf. Returns whether this call did it. Raises StateUnavailable."""

    def work(state: StateTransaction) -> bool:
        ends_at_us = min(emergency.ends_at_us, state.now_us)
        at = (state_after.value, ends_at_us, owed_leaf, emergency.tenant, emergency.emergency_id)
        if not state.write(_CLOSE, at):
            return False
        state.write(_CHANGED)
        return True

    return await store.write(work)


async def paid(store: StateStore, emergency_id: str) -> None:
    """Note that the log has the leaf that was owed. Raises StateUnavailable."""
    await store.write(lambda state: state.write("UPDATE emergencies SET owed_leaf = NULL WHERE emergency_id = ?", (emergency_id,)))


async def due(store: StateStore) -> tuple[list[Emergency], list[tuple[EmergencyId, bytes]]]:
    """Return some whose time is up, and some leaves that are owed with their emergencies' ids. Raises StateUnavailable."""

    def work(state: StateTransaction) -> tuple[list[Row], list[Row]]:
        owed = "SELECT emergency_id, owed_leaf FROM emergencies WHERE owed_leaf IS NOT NULL LIMIT 64"
        return state.ask(_DUE, (state.now_us, state.now_us - CLAIM_US)), state.ask(owed)

    over, owed = await store.read(work)
    return [_row(row) for row in over], [(EmergencyId(name), bytes(leaf)) for name, leaf in owed]


async def page(store: StateStore, tenant: str, before: str, size: int) -> list[Emergency]:
    """Return emergencies of the tenant, newest first, from `before` on; empty: from the newest. Raises StateUnavailable."""
    return [_row(row) for row in await store.read(lambda state: state.ask(_PAGE, (tenant, before or "~", size)))]


async def changes(store: StateStore) -> tuple[int, int]:
    """Return the number of changes, and the state's time. Raises StateUnavailable."""
    return await store.read(lambda state: (_changes(state), state.now_us))


async def approved(store: StateStore) -> tuple[int, int, list[Emergency]]:
    """Return the number of changes, the state's time, and what rows say is in force. Raises StateUnavailable."""
    number, now_us, found = await store.read(lambda state: (_changes(state), state.now_us, state.ask(_IN_FORCE, (state.now_us,))))
    return number, now_us, [_row(row) for row in found]


def lapses_at_us(requested_at_us: int) -> int:
    """When a request lapses on which nobody decides."""
    return requested_at_us + UNDECIDED_US


def _refuse_too_many(state: StateTransaction, tenant: str, requested_by: str) -> None:
    found = [_row(row) for row in state.ask(_OPEN, (tenant,))]
    if len(found) >= MAX_OPEN_PER_TENANT or any(
        one.requested_by == requested_by and one.ends_at_us > state.now_us for one in found
    ):
        raise TooManyEmergenciesError("one is open already")


def _changes(state: StateTransaction) -> int:
    rows = state.ask("SELECT changes FROM emergency_changes WHERE one = 1")
    return int(rows[0][0]) if rows else 0


def _values(one: Emergency) -> tuple[str | int | bytes | None, ...]:
    who = (one.emergency_id, one.tenant, one.state.value, one.requested_by, one.requested_with)
    what = (one.requested_at_us, one.duration_us, int(one.suspicion), one.ends_at_us, one.context)
    return (*who, *what, one.decision, one.decided_by, one.decision_id, one.claimed_at_us, one.decided_at_us)


def _row(row: Row) -> Emergency:
    name, tenant, state, by, certificate, at_us, duration_us, suspicion, ends_at_us, context, *decided = row
    who = (EmergencyId(name), tenant, State(state), by, certificate)
    return Emergency(*who, at_us, duration_us, bool(suspicion), ends_at_us, bytes(context), *decided)
