"""The rows of data subjects' choices in the state that gateways share (state/schema.py has the tables).

A choice is a consent to a purpose, or, with an empty purpose, an opt-out: one row a tenant, subject and purpose. A row has the
index of its leaf, and a choice takes the place of another only when its leaf is later, so that the log's order holds wherever two
gateways write at once. What has ended stays for KEPT_US, to hold back any earlier leaf, and is then forgotten.

Knows statements, each a transaction of its own. Does not know subjects: a row has a keyed hash (subjects.py).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from lionrock.gateway.state.store import Row, StateStore, StateTransaction, Value

OPT_OUT: Final = ""
"""The purpose of an opt-out."""
MAX_CHOICES_PER_TENANT: Final = 1_000_000
KEPT_US: Final = 400 * 24 * 3600 * 1_000_000
_COLUMNS: Final = "subject, purpose, choice_id, notice_version, notice_digest, leaf_index, made_at_us, expires_at_us, ended_at_us"
_SELECT: Final = f"SELECT {_COLUMNS} FROM consents WHERE tenant = ?"  # noqa: S608
_INSERT: Final = f"INSERT INTO consents (tenant, {_COLUMNS}, forget_at_us) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"  # noqa: S608
_REPLACE: Final = """UPDATE consents SET choice_id = ?, notice_version = ?, notice_digest = ?, leaf_index = ?, made_at_us = ?,
    expires_at_us = ?, ended_at_us = ?, forget_at_us = ? WHERE tenant = ? AND subject = ? AND purpose = ? AND leaf_index < ?"""
_FORGET: Final = "DELETE FROM consents WHERE tenant = ? AND forget_at_us < ?"
_COUNT: Final = "SELECT choices FROM consent_counts WHERE tenant = ?"
_COUNTED: Final = """INSERT INTO consent_counts (tenant, choices) VALUES (?, ?)
    ON CONFLICT (tenant) DO UPDATE SET choices = consent_counts.choices + excluded.choices"""


class OtherSecretError(Exception):
    """The rows were written under another secret: nobody would be found, and no opt-out heeded."""


@dataclass(frozen=True, slots=True)
class Choice:
    """What one subject chose, microseconds since 1970. `notice_version` is 0 for an opt-out.

    `notice_digest`: of the text that the consent is to, where it was the one in force when it was recorded; else empty.
    `expires_at_us`: when it ends by itself; `ended_at_us`: when it was withdrawn, or the opt-out cleared.
    """

    subject: bytes
    purpose: str
    choice_id: str
    notice_version: int
    notice_digest: str
    leaf_index: int
    made_at_us: int
    expires_at_us: int | None = None
    ended_at_us: int | None = None

    def holds(self, now_us: int) -> bool:
        """Whether it is in effect."""
        return self.ended_at_us is None and (self.expires_at_us is None or now_us < self.expires_at_us)

    @property
    def forget_at_us(self) -> int | None:
        """When the row may go; None while it holds."""
        ends = [end + KEPT_US for end in (self.expires_at_us, self.ended_at_us) if end is not None]
        return max(ends, default=None)


@dataclass(frozen=True, slots=True)
class Known:
    """What is known of some subjects at one moment: choices by subject and purpose, those that have ended too."""

    now_us: int
    choices: Mapping[tuple[bytes, str], Choice]

    def in_effect(self, subject: bytes, purpose: str) -> Choice | None:
        """Return a choice that holds; None: there is none."""
        choice = self.choices.get((subject, purpose))
        return choice if choice is not None and choice.holds(self.now_us) else None


async def adopt_secret(store: StateStore, check: bytes) -> None:
    """Bind the rows to a secret, the first time. Raises OtherSecretError, StateUnavailable."""

    def work(state: StateTransaction) -> None:
        found = state.ask("SELECT secret_check FROM consent_secret WHERE one = 1")
        if not found:
            state.write("INSERT INTO consent_secret (one, secret_check) VALUES (1, ?)", (check,))
        elif bytes(found[0][0]) != check:
            raise OtherSecretError("the consents were recorded under another secret")

    await store.write(work)


async def known(store: StateStore, tenant: str, subjects: Sequence[bytes], purpose: str) -> Known:
    """Return what these subjects, at most 16, chose about a purpose, and whether they opted out. Raises StateUnavailable."""
    marks = ", ".join("?" * len(subjects))
    asked = f"{_SELECT} AND subject IN ({marks}) AND purpose IN (?, ?)"
    parameters: tuple[Value, ...] = (tenant, *subjects, purpose, OPT_OUT)
    return await store.read(lambda state: _known(state, asked, parameters))


async def all_of(store: StateStore, tenant: str, subject: bytes) -> Known:
    """Return everything that one subject chose. Raises StateUnavailable."""
    asked = f"{_SELECT} AND subject = ? ORDER BY purpose"
    return await store.read(lambda state: _known(state, asked, (tenant, subject)))


async def opt_outs(store: StateStore, tenant: str, after: bytes, size: int) -> list[Choice]:
    """Return opt-outs that hold, of subjects that follow `after`, in their order. Raises StateUnavailable."""
    asked = f"{_SELECT} AND purpose = ? AND ended_at_us IS NULL AND subject > ? ORDER BY subject LIMIT ?"
    return [_choice(row) for row in await store.read(lambda state: state.ask(asked, (tenant, OPT_OUT, after, size)))]


async def has_room(store: StateStore, tenant: str) -> bool:
    """Whether the tenant may have one more row. Raises StateUnavailable."""
    return await store.read(lambda state: _count(state, tenant) < MAX_CHOICES_PER_TENANT)


async def put(store: StateStore, tenant: str, choice: Choice) -> Choice:
    """Keep a choice, unless one whose leaf is later is there. Returns the one that is. Raises StateUnavailable, StateConflict."""

    def work(state: StateTransaction) -> Choice:
        key: tuple[Value, ...] = (tenant, choice.subject, choice.purpose)
        rest: tuple[Value, ...] = (choice.choice_id, choice.notice_version, choice.notice_digest, choice.leaf_index)
        rest = (*rest, choice.made_at_us, choice.expires_at_us, choice.ended_at_us, choice.forget_at_us)
        gone = state.write(_FORGET, (tenant, state.now_us))
        found = state.ask(f"{_SELECT} AND subject = ? AND purpose = ?", key)
        if not found:
            state.write(_INSERT, (*key, *rest))
        elif not state.write(_REPLACE, (*rest, *key, choice.leaf_index)):
            return _choice(found[0])
        if change := (not found) - gone:
            state.write(_COUNTED, (tenant, change))
        return choice

    return await store.write(work)


def _known(state: StateTransaction, asked: str, parameters: Sequence[Value]) -> Known:
    choices = [_choice(row) for row in state.ask(asked, parameters)]
    return Known(state.now_us, {(choice.subject, choice.purpose): choice for choice in choices})


def _count(state: StateTransaction, tenant: str) -> int:
    rows = state.ask(_COUNT, (tenant,))
    return int(rows[0][0]) if rows else 0


def _choice(row: Row) -> Choice:
    columns: tuple[Any, ...] = row
    return Choice(bytes(columns[0]), *columns[1:])
