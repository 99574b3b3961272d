"""What a tenant's records and log must be after everything that a day did to them: rules in their plainest form.

Nothing of the service is used here but names of its failures, retention classes and roles. The model is asked what a call must
answer before the call is made, and told what was done.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final, Literal

CLEARED: Final = frozenset({"mlro", "regulator"})
DAY_US: Final = 86_400_000_000
KEEP_DAYS: Final = {"short": 0, "standard": 0, "regulated": 365}
EXPIRE_DAYS: Final = {"short": 1, "standard": None, "regulated": 730}
CLASS_OF: Final = {"chit_chat": "short", "customer_support": "standard", "advice": "regulated"}
"""By purpose."""


@dataclass(frozen=True, slots=True)
class Part:
    """One payload of a record."""

    kind: str
    content: bytes
    at_us: int


@dataclass(slots=True)
class Record:
    """What one request said."""

    request_id: str
    subjects: Sequence[str]
    case_id: str
    retention_class: str
    restricted: bool
    at_us: int
    parts: list[Part] = field(default_factory=list)
    state: str = "kept"
    open: bool = True

    def covered_by(self, kind: str, value: str) -> bool:
        """Whether a person, a case or a request is that of the record."""
        if kind == "subject":
            return value in self.subjects
        return value in {"case": (self.case_id,), "request": (self.request_id,)}[kind]


@dataclass(frozen=True, slots=True)
class Held:
    """A hold in force."""

    kind: Literal["subject", "case", "request"]
    value: str
    restricted: bool


@dataclass(slots=True)
class TenantModel:
    """One tenant."""

    records: dict[str, Record] = field(default_factory=dict)
    holds: dict[str, Held] = field(default_factory=dict)
    leaves: Counter[str] = field(default_factory=Counter)
    """By type, without those of expiry: how many records one of them covers is the service's business."""
    log_book: list[bytes] = field(default_factory=list)
    refused: Counter[str] = field(default_factory=Counter)
    """Calls that were refused as they had to be, by reason."""

    def begin(self, record: Record) -> None:
        """Let a request in."""
        self.records[record.request_id] = record
        self.leaves["intent"] += 1

    def end(self, record: Record) -> None:
        """Give a request its outcome."""
        record.open = False
        self.leaves["outcome"] += 1

    def matching(self, roles: Sequence[str], kind: str, value: str) -> list[Record]:
        """List records of a scope that exist for somebody; of a person, only those that are kept: nothing names the others."""
        cleared = not CLEARED.isdisjoint(roles)
        found = [record for record in self._of(kind, value) if cleared or not record.restricted]
        return [record for record in found if kind != "subject" or record.state == "kept"]

    def reading(self, roles: Sequence[str], request_id: str) -> str | None:
        """Why a record cannot be read; None: it can."""
        found = self.matching(roles, "request", request_id)
        if not found:
            return "RecordNotFound"
        return None if found[0].state == "kept" else "RecordErased"

    def holding(self, roles: Sequence[str], kind: str, value: str) -> tuple[str | None, bool]:
        """Why a hold cannot be placed; and whether it exists only for those who are cleared."""
        if kind == "request" and (refusal := self.reading(roles, value)) is not None:
            return refusal, False
        covered = self.matching(roles, kind, value)
        return None, bool(covered) and all(record.restricted for record in covered)

    def erasing(
        self, roles: Sequence[str], kind: str, value: str, now_us: int, *, partial: bool
    ) -> tuple[str | None, list[Record], Counter[str]]:
        """Why nothing is erased, or which records are, and how many are not, by reason."""
        if kind == "request" and (refusal := self.reading(roles, value)) is not None:
            return refusal, [], Counter()
        found = [record for record in self.matching(roles, kind, value) if record.state == "kept"]
        if not found:
            return "RecordNotFound", [], Counter()
        kept: Counter[str] = Counter()
        doomed = []
        for record in found:
            if now_us < record.at_us + KEEP_DAYS[record.retention_class] * DAY_US:
                kept["RETENTION_APPLIES"] += 1
            elif self.is_held(record):
                kept["LEGAL_HOLD_APPLIES"] += 1
            elif record.open:
                kept["REQUEST_OPEN"] += 1
            else:
                doomed.append(record)
        if kept and not partial:
            failures = {"RETENTION_APPLIES": "RetentionApplies", "LEGAL_HOLD_APPLIES": "LegalHoldApplies"}
            first = next(reason for reason in (*failures, "REQUEST_OPEN") if kept[reason])
            return failures.get(first, "RequestOpen"), [], kept
        return None, doomed, kept

    def expire(self, now_us: int) -> int:
        """Destroy what is due. Returns how many records."""
        due = [record for record in self.records.values() if self._is_due(record, now_us)]
        for record in due:
            record.state = "expired"
        return len(due)

    def is_held(self, record: Record) -> bool:
        """Whether a hold keeps a record."""
        return any(record.covered_by(hold.kind, hold.value) for hold in self.holds.values())

    def visible_holds(self, roles: Sequence[str]) -> list[str]:
        """List holds that exist for somebody, oldest first."""
        cleared = not CLEARED.isdisjoint(roles)
        return [hold_id for hold_id, hold in self.holds.items() if cleared or not hold.restricted]

    def states(self) -> dict[str, int]:
        """Count records by state."""
        return dict(Counter(record.state for record in self.records.values()))

    def parts(self, roles: Sequence[str], case_id: str, from_us: int, to_us: int) -> int:
        """Count the payloads that an export must hold."""
        found = self.records.values() if not case_id else self._of("case", case_id)
        cleared = not CLEARED.isdisjoint(roles)
        chosen = [record for record in found if record.state == "kept" and (cleared or not record.restricted)]
        return sum(from_us <= part.at_us < to_us for record in chosen for part in record.parts)

    def _of(self, kind: str, value: str) -> Iterator[Record]:
        return (record for record in self.records.values() if record.covered_by(kind, value))

    def _is_due(self, record: Record, now_us: int) -> bool:
        days = EXPIRE_DAYS[record.retention_class]
        due = days is not None and record.state == "kept" and record.at_us < now_us - days * DAY_US
        return due and not record.open and not self.is_held(record)
