"""A day of 24 hours with the audit log, replayed in minutes: fifty tenants, everything that people do with records, one monitor.

The clock of the service is moved by hand, a minute or more at a time; all else is real: store, vault with its own key store, a
witness over HTTP, tiles in a directory, and the monitor, which looks at every log while tiles are written and leaves appended.
Tenants differ in size (Zipf), hours in how busy they are; the seed draws it all. Beside the service a literal model
(audit_day_model.py) says what each call must answer and what must be there in the end. A key of a tenant changes in the morning;
at noon the service ends with requests under way, starts again, and the platform's key changes.

In the end everything is checked: the store by `store_check`, the log and records of each tenant against the model, every tile by
the monitor, every export by `verify.py`; of what was said, nothing may be read from any file, and of what was erased or has
expired, nothing by any call. Exit status 1 when anything disagrees, or the monitor ever raised an alarm.

    python -m benchmarks.audit_day [--quick] [--requests 20000] [--seed 1] [--postgres]
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import psycopg

from benchmarks.audit_day_doings import Doings, context_of, gathered
from benchmarks.audit_day_ending import check_all, check_files, check_stored
from benchmarks.audit_day_model import CLASS_OF, EXPIRE_DAYS, KEEP_DAYS, Part, Record, TenantModel
from benchmarks.audit_day_service import ORIGIN, STORE_FILE, DayClock, Directory, Pace, Service, new_marker, running
from benchmarks.report import Row, row, write
from lionrock.audit.leaf import Context, Event, Intent, Model, Outcome, Sampling, Usage, Verdict
from lionrock.audit.platform_log import KEY_NAME
from lionrock.audit.records.retention import LOG_BOOK, LOG_BOOK_KEEP_DAYS, Retention, RetentionClass
from lionrock.audit.store import LogStore
from lionrock.audit.store.postgres import PostgresLogStore
from lionrock.audit.store.sqlite import SqliteLogStore
from lionrock.chassis.ids import uuid7

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from postgres_server import running_postgres

DAY_S = 86_400
START_US = 1_793_548_800_000_000
"""Midnight of a Monday in Hong Kong: 2 November 2026."""
BUSY = (2, 1, 1, 1, 1, 2, 4, 10, 25, 40, 48, 45, 30, 38, 48, 46, 40, 28, 16, 12, 10, 8, 6, 4)
"""Requests by hour, as shares."""
_CLASSES = {name: RetentionClass(KEEP_DAYS[name], EXPIRE_DAYS[name]) for name in KEEP_DAYS}
RETENTION = Retention(_CLASSES | {LOG_BOOK: RetentionClass(LOG_BOOK_KEEP_DAYS, None)}, CLASS_OF, "standard")
FILES = ("store", "key store", "full tiles", "partial tiles")
_DIGEST = "sha256:" + "5f" * 32
_VERDICT = Verdict("allow", {"hkid": 1}, "default", "2026.11", _DIGEST)
_MODEL = Model("smollm2", tokenizer_digest=_DIGEST, weights_digest=_DIGEST, engine="torch", image_digest=_DIGEST)


@dataclass(frozen=True, slots=True)
class Size:
    """How much of a day. `tick_s`: how far the clock goes at a time; `round_s`: between two looks of the monitor."""

    tenants: int
    requests: int
    doings: int
    exports: int
    tick_s: int
    round_s: int
    expiry_s: int = 3600


QUICK = Size(tenants=50, requests=1500, doings=400, exports=8, tick_s=1200, round_s=3600)


@dataclass(slots=True)
class Told:
    """What the day came to."""

    disagreements: list[str] = field(default_factory=list)
    requests: int = 0
    expired: int = 0
    recovered: int = 0
    """Requests that the restart cut off, closed by recovery."""
    wall_s: float = 0.0
    verified: list[float] = field(default_factory=list)
    """Seconds that the verification of each export took."""


@dataclass(slots=True)
class _Waiting:
    """A request under way, and when it ends."""

    tenant: str
    record: Record
    intent: Event
    index: int
    ends_us: int


class Day:
    """Yesterday in short, then the day."""

    def __init__(self, size: Size, clock: DayClock, seed: int, on_hour: Callable[[int], None]) -> None:
        self.size = size
        self._on_hour = on_hour
        self.clock = clock
        self.random = random.Random(seed)
        self.marker = new_marker()
        self.told = Told()
        self.tenants = [f"tenant-{number:02d}" for number in range(1, size.tenants + 1)]
        self.models = {tenant: TenantModel() for tenant in self.tenants}
        self.doings = {
            tenant: Doings(tenant, self.models[tenant], self.marker, random.Random(f"{seed} {tenant}")) for tenant in self.tenants
        }
        self._weights = [1 / rank for rank in range(1, size.tenants + 1)]
        self._waiting: list[_Waiting] = []
        self._lost: list[_Waiting] = []
        self._round: asyncio.Task[None] | None = None

    def plan(self, count: int, tick_s: int, weights: Sequence[float] | None = None) -> list[list[str]]:
        """Tenants by tick: who does something then, in busier hours more often. `weights`: of tenants; default: their sizes."""
        ticks: list[list[str]] = [[] for _ in range(DAY_S // tick_s)]
        hours = [BUSY[tick * tick_s // 3600] for tick in range(len(ticks))]
        drawn = self.random.choices(range(len(ticks)), hours, k=count)
        for tick, tenant in zip(drawn, self.random.choices(self.tenants, weights or self._weights, k=count), strict=True):
            ticks[tick].append(tenant)
        return ticks

    async def yesterday(self, service: Service) -> None:
        """Let some records begin on the day before, so that those of the short class expire by and by."""
        for tick, tenants in enumerate(self.plan(max(50, self.size.requests // 8), 3600)):
            await self.tick(service, START_US - DAY_S * 1_000_000 + tick * 3_600_000_000, 3600, tenants, [])
        self.clock.set(START_US)
        await self._end(service)
        await service.publish_and_look()

    async def morning(self, service: Service) -> None:
        """Until noon; the largest tenant's key changes on the way."""
        await self._ticks(service, 0, DAY_S // 2, lambda: service.rotate(self.tenants[0]))
        self._waiting += await gathered([self._begin(service, tenant) for tenant in self.tenants[:3]])
        self._lost, self._waiting = self._waiting, []  # whoever would have ended them is gone with the process

    async def afternoon(self, service: Service) -> None:
        """From noon on; the platform's key changes at once."""
        await service.rotate(None)
        await self._ticks(service, DAY_S // 2, DAY_S, None)
        self.clock.set(START_US + DAY_S * 1_000_000)
        await self._end(service)
        await self._upkeep(service)
        await self._sweep(service)
        if self._lost:
            self.told.disagreements.append(f"{len(self._lost)} intents from before the restart are still open")

    async def _ticks(self, service: Service, start_s: int, stop_s: int, at_half: Callable[[], Awaitable[None]] | None) -> None:
        size = self.size
        if start_s == 0:
            self._requests = self.plan(size.requests, size.tick_s)
            self._doings = self.plan(size.doings, size.tick_s)
            self._exports = self.plan(size.exports, 3600, [1.0] * len(self.tenants))
        for second in range(start_s, stop_s, size.tick_s):
            now_us, tick = START_US + second * 1_000_000, second // size.tick_s
            await self.tick(service, now_us, size.tick_s, self._requests[tick], self._doings[tick])
            if second % size.expiry_s < size.tick_s:
                self._on_hour(second // 3600)
                await self._upkeep(service)
                for tenant in self._exports[second // 3600]:
                    self._note(await self.doings[tenant].export(service, self.told.verified))
            if second % size.round_s < size.tick_s:
                await self._sweep(service)
                await self._settle_round()
                self._round = asyncio.create_task(service.publish_and_look())
            if at_half is not None and second - start_s >= (stop_s - start_s) // 2:
                await self._settle_round()
                self.models[self.tenants[0]].leaves["key_change"] += 1
                await at_half()
                at_half = None
        await self._settle_round()

    async def tick(self, service: Service, now_us: int, tick_s: int, arriving: Sequence[str], doing: Sequence[str]) -> None:
        """Let requests begin and end, then people do what they do; tenants side by side."""
        self.clock.set(now_us)
        self._waiting += await gathered([self._begin(service, tenant) for tenant in arriving])
        self.clock.set(now_us + tick_s * 400_000)
        await self._end(service)
        self.clock.set(now_us + tick_s * 800_000)
        for answers in await gathered([self._do(service, tenant, count) for tenant, count in Counter(doing).items()]):
            self._note(answers)

    async def _do(self, service: Service, tenant: str, count: int) -> list[str]:
        return [answer for _ in range(count) for answer in await self.doings[tenant].one(service)]

    async def _begin(self, service: Service, tenant: str) -> _Waiting:
        """Ask. Most requests end within the tick, some go on for some more, all within 3."""
        draw, model, now_us = self.random, self.models[tenant], self.clock()
        purpose = draw.choices(list(CLASS_OF), [3, 6, 2])[0]
        pool = self.size.requests // len(self.tenants) // 4 + 2
        subjects = tuple({f"customer-{draw.randrange(pool)}" for _ in range(draw.choices([0, 1, 2], [2, 7, 1])[0])})
        case_id = f"CASE-{draw.randrange(pool)}" if draw.random() < 0.3 else ""
        restricted = draw.random() < 0.02
        context = context_of(
            tenant, ("analyst",), purpose=purpose, case_id=case_id, data_class="suspicion" if restricted else "personal"
        )
        record = Record(context.request_id, subjects, case_id, CLASS_OF[purpose], restricted, now_us)
        prompt = self.marker + b"question of " + context.request_id.encode() + b" " * draw.randrange(400)
        body = Intent("chat", Model("smollm2", tokenizer_digest=_DIGEST), Sampling(temperature="0.7", seed="7"), _VERDICT, 128)
        event = Event(uuid7(), "0af7651916cd43dd8448eb211c80319c", context, body, {"prompt": prompt}, subjects)
        longer_s = draw.choices([0, 1, 2], [90, 6, 4])[0] * self.size.tick_s
        appended = await service.logs.append(event, want_receipt=True)
        record.parts.append(Part("prompt", prompt, now_us))
        model.begin(record)
        self.told.requests += 1
        return _Waiting(tenant, record, event, appended.leaf_index, now_us + longer_s * 1_000_000)

    async def _end(self, service: Service) -> None:
        due = [waiting for waiting in self._waiting if waiting.ends_us <= self.clock()]
        self._waiting = [waiting for waiting in self._waiting if waiting.ends_us > self.clock()]
        await gathered([self._answer(service, waiting) for waiting in due])

    async def _answer(self, service: Service, waiting: _Waiting) -> None:
        status = self.random.choices(["answered", "blocked", "aborted", "failed"], [90, 4, 4, 2])[0]
        payloads = {}
        if status in ("answered", "aborted"):
            payloads = {"answer": self.marker + b"answer" + b"." * self.random.randrange(1200)}
        usage = Usage(128, 60, 0) if payloads else None
        body = Outcome(waiting.index, status, "stop", model=_MODEL, answer_verdict=_VERDICT, usage=usage, total_time_ms=900)
        context: Context = waiting.intent.context
        await service.logs.append(Event(context.request_id, "", context, body, payloads), want_receipt=False)
        waiting.record.parts += [Part(kind, content, self.clock()) for kind, content in payloads.items()]
        self.models[waiting.tenant].end(waiting.record)

    async def _upkeep(self, service: Service) -> None:
        for tenant in self.tenants:
            expired, expected = await service.upkeep.expire(tenant), self.models[tenant].expire(self.clock())
            if expired != expected:
                self._note([f"{tenant}: {expired} records expired instead of {expected}"])
            self.told.expired += expired
            swept = await service.upkeep.sweep_keys(tenant)
            if swept:
                self._note([f"{tenant}: {swept} keys belonged to nothing"])

    async def _sweep(self, service: Service) -> None:
        closed = await service.sweep.sweep()
        if not closed:
            return
        if closed != len(self._lost):
            self._note([f"recovery closed {closed} intents instead of {len(self._lost)}"])
        for waiting in self._lost:
            self.models[waiting.tenant].end(waiting.record)
        self.told.recovered += closed
        self._lost = []

    async def _settle_round(self) -> None:
        if self._round is not None:
            await self._round
            self._round = None

    def _note(self, disagreements: Sequence[str]) -> None:
        self.told.disagreements += disagreements


async def replay(
    size: Size, directory: Path, open_store: Callable[[], LogStore], seed: int, on_hour: Callable[[int], None] = lambda _: None
) -> tuple[Day, dict[str, int]]:
    """Live through the day and check it. Returns the day, and leaves, looks, alarms and bytes of files by name.

    `on_hour` is called when an hour begins.
    """
    clock = DayClock(START_US - DAY_S * 1_000_000)
    at = Directory(directory, clock, open_store)
    day = Day(size, clock, seed, on_hour)
    pace = Pace(orphan_after_s=6 * size.tick_s, refresh_s=size.round_s / 2, stall_after_s=4 * size.round_s)
    counts: Counter[str] = Counter()
    begin = time.perf_counter()
    async with running(at, day.tenants, RETENTION, pace) as service:
        await day.yesterday(service)
        await day.morning(service)
        _ended(day, counts, service)
        service.keys.create_next(KEY_NAME, ORIGIN)  # witnesses are told of it before it signs
    async with running(at, day.tenants, RETENTION, pace) as service:
        await day.afternoon(service)
        await service.publish_and_look()
        day.told.wall_s = time.perf_counter() - begin
        day.told.disagreements += await check_all(service, day.models)
        counts["leaves"] = sum(service.logs.size(tenant) for tenant in day.tenants)
        counts["platform leaves"] = service.platform_log.head.size
        _ended(day, counts, service)
    stored, found = check_stored(at, day.models)
    counts["checked leaves"] = stored
    day.told.disagreements += found
    sizes, found = check_files(at, day.marker)
    day.told.disagreements += found
    return day, counts | sizes


def _ended(day: Day, counts: Counter[str], service: Service) -> None:
    counts["looks"] += service.looks
    counts["alarms"] += len(service.alarms)
    day.told.disagreements += [f"alarm: {alarm}" for alarm in service.alarms]


def table(day: Day, counts: dict[str, int]) -> list[Row]:
    """Rows of the result."""
    told, leaves = day.told, counts["leaves"]
    done: Counter[str] = Counter()
    refused: Counter[str] = Counter()
    for model in day.models.values():
        done += model.leaves
        refused += model.refused
    states = Counter(record.state for model in day.models.values() for record in model.records.values())

    def higher(case: str, value: float, unit: str = "") -> Row:
        return row(case, [value], unit, "higher")

    return [
        higher("tenants", len(day.tenants)),
        higher("requests", told.requests),
        higher("leaves of tenants", leaves),
        higher("wall time", told.wall_s, "s"),
        higher("leaves, with everything beside", leaves / told.wall_s, "leaves/s"),
        *(
            row(f"{name}", [counts[name] / leaves], "bytes a leaf", "lower")
            for name in ("store", "key store", "full tiles", "partial tiles")
        ),
        *(higher(f"calls: {kind}", done[kind]) for kind in sorted(done) if kind not in ("intent", "outcome")),
        *(higher(f"calls refused: {reason}", refused[reason]) for reason in sorted(refused)),
        *(higher(f"records {state}", states[state]) for state in sorted(states)),
        higher("requests cut off by the restart and closed", told.recovered),
        higher("exports verified", len(told.verified)),
        row("verification of an export", told.verified or [0.0], "s", "lower"),
        higher("looks of the monitor", counts["looks"]),
        row("alarms", [counts["alarms"]], "", "lower"),
        row("disagreements", [len(told.disagreements)], "", "lower"),
        row("load of the machine, by its other programs too", [os.getloadavg()[0]], "", "lower"),
    ]


@contextmanager
def stores(directory: Path, *, postgres: bool) -> Iterator[tuple[Callable[[], LogStore], Callable[[], int] | None]]:
    """Return what opens the store, and what says how large it is where that is not a file below the directory."""
    if not postgres:
        yield lambda: SqliteLogStore(directory / STORE_FILE), None
        return
    with running_postgres({"shared_buffers": "128MB", "max_wal_size": "2GB"}) as server:
        dsn = server.new_database()

        def size() -> int:
            with psycopg.connect(dsn) as connection:
                found = connection.execute("SELECT pg_database_size(current_database())").fetchone()
            assert found is not None
            return int(found[0])

        yield lambda: PostgresLogStore(dsn), size


def say_hour(hour: int) -> None:
    print(f"  {hour:02d}:00", file=sys.stderr)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer requests, coarser time; printed, not recorded")
    parser.add_argument("--requests", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--postgres", action="store_true", help="the logs in PostgreSQL instead of SQLite")
    arguments = parser.parse_args()
    requests = arguments.requests
    size = QUICK if arguments.quick else Size(50, requests, max(1000, requests // 10), 50, tick_s=60, round_s=900)
    with (
        tempfile.TemporaryDirectory(prefix="lionrock-bench-day-") as root,
        stores(Path(root), postgres=arguments.postgres) as (open_store, size_of),
    ):
        day, counts = asyncio.run(replay(size, Path(root), open_store, arguments.seed, say_hour))
        if size_of is not None:
            counts["store"] = size_of()
    rows = table(day, counts)
    if arguments.quick:
        for entry in rows:
            print(f"{entry.case}: {entry.value:.4g} {entry.unit}".rstrip())
    else:
        write("audit-day-postgres" if arguments.postgres else "audit-day", rows)
    for disagreement in day.told.disagreements[:100]:
        print(disagreement, file=sys.stderr)
    return 1 if day.told.disagreements else 0


if __name__ == "__main__":
    sys.exit(main())
