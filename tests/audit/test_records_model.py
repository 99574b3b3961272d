"""Any sequence of appending, holding, releasing, erasing, expiring, reading and restarting against a literal model."""

from __future__ import annotations

import asyncio
import json
import shutil
import tempfile
from collections import Counter
from collections.abc import Coroutine
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from audit_harness import Place, intent, outcome
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, invariant, multiple, rule
from records_harness import CLASSES, RETENTION, Clock, Opened, RecordsPlace, concerning, who

from lionrock.audit import failures
from lionrock.audit.leaf import Event
from lionrock.audit.records.holds import RecordScope
from lionrock.audit.records.permissions import CLEARED_ROLES

SUBJECTS = ("person-one", "person-two", "person-three")
CASES = ("", "CASE-1", "CASE-2")
PURPOSES = ("customer_support", "chit_chat", "advice")
OFFICERS = ("privacy_officer", "mlro+privacy_officer")
READERS = ("auditor", "regulator", "mlro", "privacy_officer")


@dataclass
class Record:
    """One request as the model remembers it."""

    request_id: str
    subjects: frozenset[str]
    case: str
    purpose: str
    restricted: bool
    payloads: list[tuple[str, bytes]]
    day: int
    state: str = "kept"
    open: bool = False

    def is_in(self, scope: RecordScope) -> bool:
        match scope.kind:
            case "subject":  # the index forgets whom a destroyed record concerned
                return scope.value in self.subjects and self.state == "kept"
            case "case":
                return scope.value == self.case != ""
            case _:
                return scope.value == self.request_id


@dataclass
class Model:
    """What there should be."""

    days: int = 0
    records: list[Record] = field(default_factory=list)
    holds: dict[str, tuple[RecordScope, bool]] = field(default_factory=dict)

    def seen(self, roles: str, scope: RecordScope) -> list[Record]:
        cleared = not CLEARED_ROLES.isdisjoint(roles.split("+"))
        return [record for record in reversed(self.records) if record.is_in(scope) and (cleared or not record.restricted)]

    def age_days(self, record: Record) -> int:
        return self.days - record.day

    def held(self, record: Record) -> bool:
        return any(record.is_in(scope) for scope, _ in self.holds.values())

    def why_kept(self, record: Record) -> str | None:
        if self.age_days(record) < CLASSES[RETENTION.class_of(record.purpose)].keep_days:
            return "RETENTION_APPLIES"
        if self.held(record):
            return "LEGAL_HOLD_APPLIES"
        return "REQUEST_OPEN" if record.open else None


REFUSALS = {
    "RETENTION_APPLIES": failures.RetentionApplies,
    "LEGAL_HOLD_APPLIES": failures.LegalHoldApplies,
    "REQUEST_OPEN": failures.RequestOpen,
}


class RecordsMachine(RuleBasedStateMachine):
    """The real records on real files beside the model."""

    requests = Bundle("requests")
    placed = Bundle("placed")

    def __init__(self) -> None:
        super().__init__()
        self.directory = Path(tempfile.mkdtemp())
        self.loop = asyncio.new_event_loop()
        self.clock = Clock()
        self.model = Model()
        self.intents: dict[str, tuple[Event, int]] = {}
        self._open()

    def _open(self) -> None:
        async def enter() -> Opened:
            self.stack = AsyncExitStack()
            return await self.stack.enter_async_context(
                RecordsPlace(Place(self.directory)).open(clock=self.clock, batch=2, cached_keys=2)
            )

        self.opened = self.loop.run_until_complete(enter())

    def run(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        """Await something; an AuditError is an answer."""
        try:
            return self.loop.run_until_complete(coroutine)
        except failures.AuditError as error:
            return error

    def teardown(self) -> None:
        self.loop.run_until_complete(self.stack.aclose())
        self.loop.close()
        shutil.rmtree(self.directory)

    def scope(self, of: Record | None, kind: str, subject: str, case: str) -> RecordScope:
        values = {"subject": subject, "case": case or "CASE-1", "request": of.request_id if of is not None else "0" * 36}
        return RecordScope(kind, values[kind])  # type: ignore[arg-type]

    @rule(
        target=requests,
        subjects=st.sets(st.sampled_from(SUBJECTS)),
        case=st.sampled_from(CASES),
        purpose=st.sampled_from(PURPOSES),
        restricted=st.booleans(),
        stays_open=st.integers(0, 3).map(lambda chance: chance == 0),
        text=st.binary(min_size=1, max_size=40),
    )
    def append(self, subjects: set[str], case: str, purpose: str, restricted: bool, stays_open: bool, text: bytes) -> Record:
        data_class = "suspicion" if restricted else "personal"
        asked = concerning(intent(prompt=text, case_id=case, purpose=purpose, data_class=data_class), tuple(sorted(subjects)))
        index = self.run(self.opened.logs.append(asked, want_receipt=False)).leaf_index
        record = Record(
            asked.context.request_id, frozenset(subjects), case, purpose, restricted, [("prompt", text)], self.model.days, open=True
        )
        self.intents[record.request_id] = (asked, index)
        self.model.records.append(record)
        if not stays_open:
            self.answer(record, text)
        return record

    @rule(record=requests, text=st.binary(min_size=1, max_size=40))
    def answer(self, record: Record, text: bytes) -> None:
        if record.open:
            asked, index = self.intents[record.request_id]
            appended = self.run(self.opened.logs.append(outcome(asked, index, answer=text), want_receipt=False))
            assert not isinstance(appended, Exception)
            record.payloads.append(("answer", text))
            record.open = False

    @rule(record=requests, role=st.sampled_from(OFFICERS), statement=st.text(min_size=1, max_size=10))
    def correct(self, record: Record, role: str, statement: str) -> None:
        answer = self.run(self.opened.records.correct(who(*role.split("+")), record.request_id, statement))
        if not self.model.seen(role, RecordScope("request", record.request_id)):
            assert isinstance(answer, failures.RecordNotFound)
        elif record.state != "kept":
            assert isinstance(answer, failures.RecordErased)
        else:
            record.payloads.append(("correction", statement.encode()))
            assert not isinstance(answer, Exception)

    @rule(
        target=placed,
        record=requests,
        kind=st.sampled_from(["subject", "case", "request"]),
        subject=st.sampled_from(SUBJECTS),
        case=st.sampled_from(CASES),
        role=st.sampled_from(["privacy_officer", "mlro"]),
    )
    def hold(self, record: Record, kind: str, subject: str, case: str, role: str) -> Any:
        scope = self.scope(record, kind, subject, case)
        answer = self.run(self.opened.records.place_hold(who(role), scope, "why"))
        seen = self.model.seen(role, scope)
        if kind == "request" and not seen:
            assert isinstance(answer, failures.RecordNotFound)
            return multiple()
        if kind == "request" and seen[0].state != "kept":
            assert isinstance(answer, failures.RecordErased)
            return multiple()
        restricted = bool(seen) and all(found.restricted for found in seen)
        self.model.holds[answer[0]] = (scope, restricted)
        return answer[0]

    @rule(hold_id=placed, role=st.sampled_from(["privacy_officer", "mlro"]))
    def release(self, hold_id: str, role: str) -> None:
        answer = self.run(self.opened.records.release_hold(who(role), hold_id))
        found = self.model.holds.get(hold_id)
        if found is None or (found[1] and role not in CLEARED_ROLES):
            assert isinstance(answer, failures.HoldNotFound)
        else:
            del self.model.holds[hold_id]
            assert not isinstance(answer, Exception)

    @rule(
        record=requests,
        kind=st.sampled_from(["subject", "case", "request"]),
        subject=st.sampled_from(SUBJECTS),
        case=st.sampled_from(CASES),
        role=st.sampled_from(OFFICERS),
        partly=st.booleans(),
    )
    def erase(self, record: Record, kind: str, subject: str, case: str, role: str, partly: bool) -> None:
        scope = self.scope(record, kind, subject, case)
        answer = self.run(self.opened.records.erase(who(*role.split("+")), scope, basis="asked", allow_partial=partly))
        seen = self.model.seen(role, scope)
        there = [found for found in seen if found.state == "kept"]
        if not there:
            assert isinstance(answer, failures.RecordErased if kind == "request" and seen else failures.RecordNotFound)
            return
        why = {found.request_id: self.model.why_kept(found) for found in there}
        kept = Counter(reason for reason in why.values() if reason is not None)
        if kept and not partly:
            first = next(reason for reason in REFUSALS if kept[reason])
            assert isinstance(answer, REFUSALS[first])
            return
        assert (answer.records, dict(answer.kept)) == (len(there) - kept.total(), dict(kept))
        for found in there:
            if why[found.request_id] is None:
                found.state = "erased"

    @rule()
    def expire(self) -> None:
        due = [
            record
            for record in self.model.records
            if record.state == "kept"
            and self.model.age_days(record) >= (CLASSES[RETENTION.class_of(record.purpose)].expire_days or 1 << 30)
            and not self.model.held(record)
            and not record.open
        ]
        assert self.run(self.opened.upkeep.expire("bank")) == len(due)
        for record in due:
            record.state = "expired"

    @rule(days=st.sampled_from([1, 20, 400]))
    def wait(self, days: int) -> None:
        self.clock.advance(days)
        self.model.days += days

    @rule(record=requests, role=st.sampled_from(READERS))
    def read(self, record: Record, role: str) -> None:
        answer = self.run(self.opened.records.read(who(role), record.request_id))
        if not self.model.seen(role, RecordScope("request", record.request_id)):
            assert isinstance(answer, failures.RecordNotFound)
        elif record.state != "kept":
            assert isinstance(answer, failures.RecordErased)
        else:
            assert [(part.kind, part.payload) for part in answer.payloads] == record.payloads

    @rule(
        record=requests,
        kind=st.sampled_from(["subject", "case", "request"]),
        subject=st.sampled_from(SUBJECTS),
        case=st.sampled_from(CASES),
        role=st.sampled_from(READERS),
    )
    def search(self, record: Record, kind: str, subject: str, case: str, role: str) -> None:
        scope = self.scope(record, kind, subject, case)
        found = self.run(self.opened.records.search(who(role), scope, 100))
        expected = [
            (one.request_id, one.state, one.state == "kept" and self.model.held(one)) for one in self.model.seen(role, scope)
        ]
        assert [(one.record.request_id, one.record.state, one.held) for one in found] == expected

    @rule()
    def sweep(self) -> None:
        assert self.run(self.opened.upkeep.sweep_keys("bank")) == 0

    @rule()
    def restart(self) -> None:
        self.loop.run_until_complete(self.stack.aclose())
        self._open()

    @invariant()
    def counts_agree(self) -> None:
        for role in ("regulator", "auditor"):
            _, counts = self.run(self.opened.records.stats(who(role)))
            seen = [record for record in self.model.records if role == "regulator" or not record.restricted]
            assert counts.records == dict(Counter(record.state for record in seen))
            assert counts.open_intents == sum(record.open for record in seen)
            assert counts.holds == sum(role == "regulator" or not restricted for _, restricted in self.model.holds.values())

    @invariant()
    def no_leaf_names_a_person(self) -> None:
        async def leaves() -> list[bytes]:
            return [leaf.data async for page in self.opened.logs.leaves("bank", 0, 10_000) for leaf in page]

        for leaf in self.run(leaves()):
            assert not any(subject.encode() in leaf for subject in SUBJECTS)
            assert len(leaf) < 2048
            assert json.loads(leaf)["type"] in {
                "intent", "outcome", "access", "erasure", "expiry", "hold", "hold_release", "correction"
            }  # fmt: skip


RecordsMachine.TestCase.settings = settings(
    max_examples=12, stateful_step_count=25, deadline=None, suppress_health_check=list(HealthCheck)
)
TestRecordsMachine = RecordsMachine.TestCase
