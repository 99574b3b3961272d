"""What people do with the records of one tenant during a replayed day, each call held against the model (audit_day_model.py).

A call either does what the model says or is refused for the reason that the model says; anything else is a disagreement, in words
without payloads.
"""

from __future__ import annotations

import asyncio
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from random import Random
from typing import Any, TypeVar

from benchmarks.audit_day_model import DAY_US, Held, Part, Record, TenantModel
from benchmarks.audit_day_service import ORIGIN, Service
from lionrock.audit.failures import AuditError
from lionrock.audit.leaf import Context
from lionrock.audit.records.holds import RecordScope, ScopeKind
from lionrock.audit.verify import VerificationFailed, VerifiedExport, verify_export
from lionrock.chassis.ids import uuid7

_T = TypeVar("_T")
_AT_ONCE = 256
_READERS = ("reviewer", "mlro", "privacy_officer", "regulator", "auditor")
_SEARCHERS = ("privacy_officer", "mlro", "regulator", "auditor")
_HOLDERS = ("mlro", "privacy_officer", "regulator")
_EXPORTERS = ("auditor", "regulator", "privacy_officer")
_OFFICER = ("privacy_officer",)


def context_of(
    tenant: str, roles: Sequence[str], *, purpose: str = "oversight", case_id: str = "", data_class: str = "personal"
) -> Context:
    """Who asks."""
    return Context(
        request_id=uuid7(),
        tenant=tenant,
        actor=f"spiffe://lionrock.local/tenant/{tenant}/user/{roles[0]}",
        auth_method="mtls",
        roles=tuple(roles),
        purpose=purpose,
        case_id=case_id,
        conversation_id=uuid7(),
        data_class=data_class,
        territory="HK",
        profile="default",
    )


async def gathered(calls: Sequence[Coroutine[Any, Any, _T]]) -> list[_T]:
    """Await calls side by side, not too many."""
    answers: list[_T] = []
    for start in range(0, len(calls), _AT_ONCE):
        answers += await asyncio.gather(*calls[start : start + _AT_ONCE])
    return answers


class Doings:
    """One tenant's people."""

    def __init__(self, tenant: str, model: TenantModel, marker: bytes, draw: Random) -> None:
        self._tenant = tenant
        self._model = model
        self._marker = marker
        self._draw = draw

    async def one(self, service: Service) -> list[str]:
        """Do one thing. Returns what disagrees with the model."""
        kinds: dict[Callable[[Service], Awaitable[list[str]]], int] = {
            self._read: 30,
            self._search: 12,
            self._stats: 8,
            self._list_holds: 4,
            self._list_refusals: 4,
            self._correct: 8,
            self._refuse: 5,
            self._place_hold: 10,
            self._release_hold: 8,
            self._erase: 25,
            self._outsider: 4,
        }
        return await self._draw.choices(list(kinds), list(kinds.values()))[0](service)

    def _who(self, *roles: str) -> Context:
        return context_of(self._tenant, (self._draw.choice(roles),))

    def _some_record(self) -> Record | None:
        records = self._model.records
        return records[self._draw.choice(list(records))] if records else None

    def _some_scope(self) -> RecordScope:
        """Scope of something that was said, or of nothing."""
        record = self._some_record()
        kind: ScopeKind = self._draw.choices(("subject", "case", "request"), (5, 3, 2))[0]
        value = {"subject": "nobody", "case": "CASE-NONE", "request": uuid7()}[kind]
        if record is not None:
            of_record: dict[str, str] = {"case": record.case_id, "request": record.request_id}
            of_record["subject"] = record.subjects[0] if record.subjects else ""
            value = of_record[kind] or value
        return RecordScope(kind, value)

    async def _answer(self, call: Awaitable[_T], expected: str | None, what: str) -> tuple[_T | None, list[str]]:
        """Await a call. Returns what it answered unless it was refused, and what disagrees."""
        try:
            answer = await call
        except AuditError as refusal:
            name = type(refusal).__name__
            if name == expected:
                self._model.refused[name] += 1
                return None, []
            return None, [f"{self._tenant}: {what} was refused by {name}; expected: {expected or 'an answer'}"]
        if expected is not None:
            return answer, [f"{self._tenant}: {what} was answered; expected: {expected}"]
        return answer, []

    def _differ(self, differs: bool, what: str) -> list[str]:
        return [f"{self._tenant}: {what}"] if differs else []

    async def _read(self, service: Service) -> list[str]:
        record, asker = self._some_record(), self._who(*_READERS)
        request_id = uuid7() if record is None else record.request_id
        expected = self._model.reading(asker.roles, request_id)
        content, wrong = await self._answer(service.records.read(asker, request_id), expected, "reading")
        if content is None or record is None:
            return wrong
        self._model.leaves["access"] += 1
        read = [Part(part.kind, part.payload, part.recorded_at_us) for part in content.payloads]
        return wrong + self._differ(read != record.parts, "a record was read otherwise than it was written")

    async def _search(self, service: Service) -> list[str]:
        scope, asker = self._some_scope(), self._who(*_SEARCHERS)
        found, wrong = await self._answer(service.records.search(asker, scope, 10_000), None, "searching")
        if found is None:
            return wrong
        self._model.leaves["access"] += 1
        expected = {
            record.request_id: (record.state, record.state == "kept" and self._model.is_held(record))
            for record in self._model.matching(asker.roles, scope.kind, scope.value)
        }
        got = {summary.record.request_id: (summary.record.state, summary.held) for summary in found}
        return wrong + self._differ(got != expected, f"a search by {scope.kind} found other records")

    async def _stats(self, service: Service) -> list[str]:
        asker = self._who("regulator")
        answer, wrong = await self._answer(service.records.stats(asker), None, "statistics")
        return wrong if answer is None else wrong + self.differs_from(answer[1])

    def differs_from(self, counts: Any) -> list[str]:
        """Compare the counts that exist for a regulator."""
        model = self._model
        wrong = self._differ(dict(counts.records) != model.states(), "statistics count other records")
        waiting = sum(record.open for record in model.records.values())
        wrong += self._differ(counts.open_intents != waiting, f"{counts.open_intents} open intents instead of {waiting}")
        return wrong + self._differ(counts.holds != len(model.holds), f"{counts.holds} holds instead of {len(model.holds)}")

    async def _list_holds(self, service: Service) -> list[str]:
        asker = self._who(*_HOLDERS)
        holds, wrong = await self._answer(service.records.holds(asker), None, "listing holds")
        if holds is None:
            return wrong
        self._model.leaves["access"] += 1
        differs = [hold.hold_id for hold in holds] != self._model.visible_holds(asker.roles)
        return wrong + self._differ(differs, "other holds are in force")

    async def _list_refusals(self, service: Service) -> list[str]:
        entries, wrong = await self._answer(service.records.refusals(self._who("auditor"), 10_000), None, "the log book")
        if entries is None:
            return wrong
        self._model.leaves["access"] += 1
        got = sorted(entry.particulars.encode() for entry in entries)
        return wrong + self._differ(got != sorted(self._model.log_book), "the log book holds other entries")

    async def _correct(self, service: Service) -> list[str]:
        record, asker = self._some_record(), self._who(*_OFFICER)
        if record is None:
            return []
        statement = self._marker + b"correction " + uuid7().encode()
        expected = self._model.reading(asker.roles, record.request_id)
        call = service.records.correct(asker, record.request_id, statement.decode())
        answer, wrong = await self._answer(call, expected, "a correction")
        if answer is not None:
            record.parts.append(Part("correction", statement, answer.recorded_at_us))
            self._model.leaves["correction"] += 1
        return wrong

    async def _refuse(self, service: Service) -> list[str]:
        particulars = self._marker + b"particulars " + uuid7().encode()
        call = service.records.log_refusal(
            self._who(*_OFFICER), request="access", subject_id="customer-1", ground="PDPO s.20(1)", particulars=particulars.decode()
        )
        answer, wrong = await self._answer(call, None, "an entry of the log book")
        if answer is not None:
            self._model.log_book.append(particulars)
            self._model.leaves["refusal"] += 1
        return wrong

    async def _place_hold(self, service: Service) -> list[str]:
        scope, asker = self._some_scope(), self._who(*_HOLDERS)
        expected, restricted = self._model.holding(asker.roles, scope.kind, scope.value)
        answer, wrong = await self._answer(service.records.place_hold(asker, scope, "proceedings"), expected, "a hold")
        if answer is not None:
            self._model.holds[answer[0]] = Held(scope.kind, scope.value, restricted)
            self._model.leaves["hold"] += 1
        return wrong

    async def _release_hold(self, service: Service) -> list[str]:
        asker, holds = self._who(*_HOLDERS), list(self._model.holds)
        hold_id = self._draw.choice(holds) if holds else uuid7()
        expected = None if hold_id in self._model.visible_holds(asker.roles) else "HoldNotFound"
        answer, wrong = await self._answer(service.records.release_hold(asker, hold_id), expected, "the end of a hold")
        if answer is not None:
            del self._model.holds[hold_id]
            self._model.leaves["hold_release"] += 1
        return wrong

    async def _erase(self, service: Service) -> list[str]:
        scope, asker, partial = self._some_scope(), self._who(*_OFFICER), self._draw.random() < 0.5
        if self._model.holds and self._draw.random() < 0.25:  # what is under dispute is asked for more often
            held = self._draw.choice(list(self._model.holds.values()))
            scope = RecordScope(held.kind, held.value)
        now_us = service.logs.now_us()
        expected, doomed, kept = self._model.erasing(asker.roles, scope.kind, scope.value, now_us, partial=partial)
        call = service.records.erase(asker, scope, basis="PDPO s.26", allow_partial=partial)
        answer, wrong = await self._answer(call, expected, "an erasure")
        if answer is None:
            return wrong
        for record in doomed:
            record.state = "erased"
        self._model.leaves["erasure"] += 1
        differs = (answer.records, Counter(answer.kept)) != (len(doomed), kept)
        return wrong + self._differ(differs, "an erasure destroyed other records")

    async def _outsider(self, service: Service) -> list[str]:
        """Somebody who may not."""
        asker = self._who("platform_operator", "user", "security")
        answer, wrong = await self._answer(service.records.read(asker, uuid7()), "RoleNotPermitted", "reading as an outsider")
        return wrong + self._differ(answer is not None, "an outsider read a record")

    async def export(self, service: Service, verified_s: list[float]) -> list[str]:
        """Export, and verify as who got it. Appends the seconds that verification took."""
        asker = self._who(*_EXPORTERS)
        now_us = service.logs.now_us()
        from_us = self._draw.choice([0, now_us - now_us % DAY_US, now_us - 6 * 3_600_000_000])
        cases = sorted({record.case_id for record in self._model.records.values() if record.case_id})
        case_id = self._draw.choice(cases) if cases and self._draw.random() < 0.3 else ""
        size = service.logs.size(self._tenant)
        with tempfile.TemporaryFile() as archive:

            async def write() -> None:
                async for piece in service.exporter.export(
                    asker, from_us=from_us, to_us=now_us + 1, case_id=case_id, with_payloads=True
                ):
                    archive.write(piece.data)

            writing = asyncio.create_task(write())
            while not (await asyncio.wait([writing], timeout=0.02))[0]:
                await service.attest()  # the exporter waits until the platform's log has what it exports
            _, wrong = await self._answer(writing, None, "an export")
            if wrong:
                return wrong
            self._model.leaves["export"] += 1
            at, begin = service.at, time.perf_counter()
            keys = [*at.trusted[f"{ORIGIN}/{self._tenant}"], *at.trusted[ORIGIN]]
            try:
                verified = await asyncio.to_thread(verify_export, archive, keys, [at.witness_key], 1)
            except VerificationFailed as failure:
                return [f"{self._tenant}: an export does not verify: {failure}"]
            verified_s.append(time.perf_counter() - begin)
        expected = self._model.parts(asker.roles, case_id, from_us, now_us + 1)
        return self._of_export(verified, expected, whole=not case_id, from_start=from_us == 0, size=size)

    def _of_export(self, verified: VerifiedExport, opened: int, *, whole: bool, from_start: bool, size: int) -> list[str]:
        wrong = self._differ(verified.platform is None, "an export without the platform's proof")
        wrong += self._differ(verified.opened != opened, f"an export opens {verified.opened} payloads instead of {opened}")
        if whole:
            # A neighbour of the run that is withheld shows no time, so nothing is claimed of the span's ends.
            shown = verified.whole_time or verified.withheld > 0
            wrong += self._differ(not (verified.without_gap and shown), "an export has a gap")
        if whole and from_start:
            wrong += self._differ(verified.first_index not in (0, None), "an export from the beginning begins later")
            wrong += self._differ(verified.tree_size < size, "an export is proven against an older tree")
        return wrong
