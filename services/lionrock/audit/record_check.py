"""An auditor's check of what lies beside the leaves of a log: records, their payloads, holds and destructions.

    1. a leaf that belongs to a record is noted under it, and the record says of class, case and time what its first leaf says
    2. a record that is kept has the payloads that its leaves commit to, no more and no fewer; one that was destroyed has none
    3. nothing is noted that no leaf says: every row was met on the way through the leaves
    4. so many records are erased and expired as ERASURE and EXPIRY leaves say, those listed for destruction taken into account
    5. the holds in force are those of HOLD leaves without a HOLD_RELEASE
    6. the departure of the tenant is as far as its leaves say

Knows: what has to hold between leaves and rows. Does not know: SQL, keys. That a ciphertext opens, and to what, takes the record's
key: `lionrock audit show` and exports check it against the leaf. Memory: a page of leaves, the holds in force.

An outcome whose record began before it is noted with it. Where the vault was switched off between the two, that it is not noted is
reported, for it cannot be told from a row that somebody removed.
"""

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol

from lionrock.audit.findings import Flaw
from lionrock.audit.leaf import SALT_BYTES
from lionrock.audit.records.recording import SUSPICION
from lionrock.audit.records.retention import LOG_BOOK
from lionrock.audit.store import LogId, OpenIntent, StoredLeaf
from lionrock.audit.store.departures import ERASING, LEAVING, SEALED, SEALING, DepartureReader, Stages
from lionrock.audit.store.records import DESTROYING, ERASED, EXPIRED, KEPT, PayloadPlace, RecordReader, StoredRecord

_SEALED_MIN_BYTES: Final = 12 + SALT_BYTES + 16
"""Nonce, salt and tag of AES-256-GCM."""
_HOLD_APART_US: Final = 3_600_000_000
"""How far the times of a hold and of its leaf may lie apart: a hold is sealed before its leaf is asked for."""
_OPEN_AT_ONCE: Final = 128
_RECORD_TYPES: Final = frozenset({"intent", "outcome", "governance", "correction", "refusal"})
BEGUN: Final = "tenant.offboarding_begun"
CANCELLED: Final = "tenant.offboarding_cancelled"
TENANT_ERASED: Final = "tenant.erased"
_DEPARTURES: Final = frozenset({BEGUN, CANCELLED, TENANT_ERASED})
_DESTRUCTIONS: Final = {"erasure": ERASED, "expiry": EXPIRED}


class RecordsStore(Protocol):
    """What the check reads."""

    @property
    def records(self) -> RecordReader:
        """Records beside the leaves."""

    @property
    def departures(self) -> DepartureReader:
        """Tenants that leave."""

    def leaves_of_events(self, log_id: LogId, event_ids: Sequence[str]) -> dict[str, StoredLeaf]:
        """Leaves of those events that are there, by event id."""


@dataclass(frozen=True, slots=True)
class _RecordLeaf:
    """What a leaf says of the record that it belongs to."""

    index: int
    event_id: str
    recorded_at_us: int
    type: str
    record_id: str
    kinds: Sequence[str]
    retention_class: str
    case_id: str
    restricted: bool


class RecordCheck:
    """The check beside one log. `take` and `check_page` go through all leaves, in order; `check_ends` comes last."""

    def __init__(self, store: RecordsStore, log_id: LogId, find: Callable[[Flaw, str], None]) -> None:
        self._store = store
        self._log_id = log_id
        self._find = find
        self._page: list[_RecordLeaf] = []
        self._noted = 0
        self._begun = 0
        self._destroyed: Counter[str] = Counter()
        self._holds: dict[str, tuple[int, int, bool]] = {}
        self._departure: list[str] = []

    def take(self, leaf: StoredLeaf, fields: Mapping[str, Any]) -> None:
        """Note what a leaf says."""
        kind = fields.get("type")
        if not isinstance(kind, str):
            return
        if kind == "governance" and fields.get("operation") in _DEPARTURES:
            self._departure.append(str(fields["operation"]))
        if kind in _RECORD_TYPES:
            self._take_record_leaf(leaf, kind, fields)
        elif kind in _DESTRUCTIONS:
            count = fields.get("record_count")
            self._destroyed[_DESTRUCTIONS[kind]] += count if isinstance(count, int) else 0
        elif kind == "hold":
            restricted = fields.get("data_class") == SUSPICION
            self._holds[str(fields.get("hold_id", ""))] = (leaf.index, leaf.recorded_at_us, restricted)
        elif kind == "hold_release":
            placed = self._holds.pop(str(fields.get("hold_id", "")), None)
            if placed is None or placed[0] != fields.get("hold_index"):
                self._find(Flaw.HOLDS_MISMATCH, f"leaf {leaf.index} releases a hold that was not in force")

    def _take_record_leaf(self, leaf: StoredLeaf, kind: str, fields: Mapping[str, Any]) -> None:
        named = {"correction": fields.get("record_id"), "refusal": leaf.event_id}.get(kind, fields.get("request_id"))
        commitments = fields.get("commitments")
        self._page.append(
            _RecordLeaf(
                leaf.index,
                leaf.event_id,
                leaf.recorded_at_us,
                kind,
                str(named),
                sorted(map(str, commitments)) if isinstance(commitments, dict) else [],
                LOG_BOOK if kind == "refusal" else str(fields.get("retention_class", "")),
                "" if kind == "refusal" else str(fields.get("case_id", "")),
                fields.get("data_class") == SUSPICION,
            )
        )

    def check_page(self) -> None:
        """Hold the leaves that were taken against the rows, in the state in which they were read. Raises StoreFailed."""
        page, self._page = self._page, []
        ids = {leaf.record_id for leaf in page}
        if not ids:
            return
        reader = self._store.records
        records = reader.records(self._log_id, ids)
        noted = reader.leaves_by_record(self._log_id, ids)
        payloads: dict[tuple[str, int], list[PayloadPlace]] = {}
        for place in reader.payload_places(self._log_id, ids):
            payloads.setdefault((place.request_id, place.leaf_index), []).append(place)
        for leaf in page:
            its_leaves = noted.get(leaf.record_id, {})
            record = records.get(leaf.record_id)
            if leaf.index not in its_leaves:
                self._check_absence(leaf, record, its_leaves)
                continue
            self._noted += 1
            first = leaf.index == min(its_leaves)
            self._begun += first
            if record is None:
                self._find(Flaw.RECORD_MISSING, f"the one that leaf {leaf.index} belongs to")
                continue
            if wrong := _differs(leaf, record, its_leaves[leaf.index], first=first):
                self._find(Flaw.RECORD_MISMATCH, f"leaf {leaf.index}: {wrong}")
            self._check_payloads(leaf, record, payloads.get((leaf.record_id, leaf.index), []))

    def _check_absence(self, leaf: _RecordLeaf, record: StoredRecord | None, its_leaves: Mapping[int, str]) -> None:
        must = leaf.type in ("correction", "refusal") or leaf.retention_class
        if record is None and must:
            self._find(Flaw.RECORD_MISSING, f"the one that leaf {leaf.index} belongs to")
        elif record is not None and (must or any(index < leaf.index for index in its_leaves)):
            self._find(Flaw.RECORD_MISMATCH, f"leaf {leaf.index} is not noted under its record")

    def _check_payloads(self, leaf: _RecordLeaf, record: StoredRecord, there: Sequence[PayloadPlace]) -> None:
        kinds = sorted(place.kind for place in there)
        if record.state in (ERASED, EXPIRED):
            if there:
                self._find(Flaw.PAYLOAD_NOT_GONE, f"{len(there)} of leaf {leaf.index}, whose record is {record.state}")
        elif record.state == KEPT and (missing := len(set(leaf.kinds) - set(kinds))):
            self._find(Flaw.PAYLOAD_MISSING, f"{missing} of leaf {leaf.index}")
        elif len(set(kinds)) != len(kinds) or set(kinds) - set(leaf.kinds):
            self._find(Flaw.RECORD_SURPLUS, f"payloads that leaf {leaf.index} does not commit to")
        if any(place.event_id != leaf.event_id or place.size < _SEALED_MIN_BYTES for place in there):
            self._find(Flaw.RECORD_MISMATCH, f"a payload of leaf {leaf.index} is of another event, or is cut off")

    def check_ends(self, open_intents: Sequence[OpenIntent]) -> None:
        """Check what must hold when all leaves were taken, in the state to which they lead. Raises StoreFailed."""
        reader = self._store.records
        states = reader.states(self._log_id)
        if (surplus := reader.all_leaves_of_records(self._log_id) - self._noted) > 0:
            self._find(Flaw.RECORD_SURPLUS, f"{surplus} leaves are noted under records that they do not belong to")
        if (surplus := sum(states.values()) - self._begun) > 0:
            self._find(Flaw.RECORD_SURPLUS, f"{surplus} records have no leaf")
        if surplus := reader.payloads_of_no_leaf(self._log_id):
            self._find(Flaw.RECORD_SURPLUS, f"{surplus} payloads belong to no leaf of a record")
        self._check_destructions(reader, states)
        self._check_holds(reader)
        for flaw in departure_flaws(self._store.departures.stages(self._log_id), self._departure):
            self._find(Flaw.DEPARTURE_MISMATCH, flaw)
        for start in range(0, len(open_intents), _OPEN_AT_ONCE):
            ids = {intent.request_id for intent in open_intents[start : start + _OPEN_AT_ONCE]}
            if any(record.state != KEPT for record in reader.records(self._log_id, ids).values()):
                self._find(Flaw.DESTRUCTIONS_MISMATCH, "a record of a request without an outcome is destroyed, or about to be")

    def _check_destructions(self, reader: RecordReader, states: Mapping[tuple[str, str], int]) -> None:
        plans = {plan.destruction_id: _plan_of(plan.plan) for plan in reader.destructions(self._log_id)}
        logged = self._store.leaves_of_events(self._log_id, list(plans))
        for (state, destruction_id), count in states.items():
            if state not in (KEPT, ERASED, EXPIRED, DESTROYING) or (state == DESTROYING) != bool(destruction_id):
                self._find(Flaw.RECORD_MISMATCH, f"{count} records are in a state that there is not")
            elif state == DESTROYING and destruction_id not in plans:
                self._find(Flaw.DESTRUCTIONS_MISMATCH, f"{count} records are listed for a destruction that is not there")
        pending: Counter[str] = Counter()
        for destruction_id, (event_id, ends_as, planned) in plans.items():
            listed = states.get((DESTROYING, destruction_id), 0)
            wrong = event_id != destruction_id or ends_as is None
            if destruction_id in logged:
                pending[ends_as or ""] += listed
                wrong = wrong or listed > planned
            else:
                wrong = wrong or listed != planned
            if wrong:
                self._find(Flaw.DESTRUCTIONS_MISMATCH, "what was decided is not of its records or of its leaf")
        for state in (ERASED, EXPIRED):
            if (done := states.get((state, ""), 0) + pending[state]) != self._destroyed[state]:
                self._find(Flaw.DESTRUCTIONS_MISMATCH, f"{done} records are {state}, leaves say {self._destroyed[state]}")

    def _check_holds(self, reader: RecordReader) -> None:
        stored = reader.holds(self._log_id)
        if {hold.hold_id: (hold.leaf_index, hold.restricted) for hold in stored} != {
            hold_id: (index, restricted) for hold_id, (index, _, restricted) in self._holds.items()
        }:
            self._find(Flaw.HOLDS_MISMATCH, f"{len(stored)} are kept, leaves say {len(self._holds)}, or others")
        for hold in stored:
            _, at_us, _ = self._holds.get(hold.hold_id, (0, hold.placed_at_us, False))
            if abs(hold.placed_at_us - at_us) > _HOLD_APART_US or len(hold.sealed) < _SEALED_MIN_BYTES:
                self._find(Flaw.HOLDS_MISMATCH, f"that of leaf {hold.leaf_index} names another time, or is cut off")


def departure_flaws(stages: Stages, operations: Sequence[str]) -> list[str]:
    """Say where the rows of a departure are not what its leaves say, given the latter's operations in their order.

    A row comes before its leaf, so the first stage may be without one for as long as a crash has not been followed by a start.
    """
    leaving, left = BEGUN in operations and operations[-1] != CANCELLED, TENANT_ERASED in operations
    flaws = []
    if leaving and LEAVING not in stages:
        flaws.append("its tenant leaves, say leaves, and no row does")
    if not leaving and (ERASING in stages or (LEAVING in stages and BEGUN in operations)):
        flaws.append("its tenant leaves, says a row, and no leaf does, or one that it stays")
    if left and SEALING not in stages:
        flaws.append("it is sealed, say leaves, and no row does")
    if not left and SEALED in stages:
        flaws.append("it is sealed, says a row, and no leaf does")
    return flaws


def _differs(leaf: _RecordLeaf, record: StoredRecord, noted_as: str, *, first: bool) -> str | None:
    """Say where a row differs from a leaf of its record, without quoting it."""
    if noted_as != leaf.type:
        return "it is noted as another type"
    if leaf.type == "intent" and not leaf.retention_class:
        return "its payloads are not kept, says the leaf"
    if not first:
        return None
    if leaf.restricted != record.restricted or (leaf.type == "refusal") != record.log_book:
        return "its record is of another class of data, or of the log book"
    if leaf.retention_class and leaf.retention_class != record.retention_class:
        return "its record has another class of retention"
    if leaf.case_id != record.case_id:
        return "its record is of another case"
    return None if leaf.recorded_at_us == record.recorded_at_us else "its record begins at another time"


def _plan_of(plan: bytes) -> tuple[str, str | None, int]:
    """Event id, state that it leads to (None: none), and number of records of a destruction."""
    try:
        said = json.loads(plan)
        return str(said["event_id"]), _DESTRUCTIONS.get(said["type"]), int(said["body"]["record_count"])
    except (ValueError, KeyError, TypeError, RecursionError):
        return "", None, 0
