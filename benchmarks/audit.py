"""What the audit log costs: durable leaves a second by writers, the payload vault, latency of appends and proofs, memory by size.

Throughput is compared with plain group-committed inserts of the same bytes into the same kind of database (plain_inserts.py);
rounds of the two alternate, so that a slow minute of the machine hits both. Everything runs in this process but PostgreSQL, which
is the one of the tests, on this machine, by a Unix socket. Appends are intents with a commitment to a prompt, signed for by
Ed25519; a leaf counts when its append returned. The vault is that of the service with the tenant's key in a file; its rounds
alternate with rounds of a log without one. Processor time is that of this process.

    python -m benchmarks.audit [--quick] [--leaves 10000000] [--only proofs] [--store SQLite]
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import os
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import psycopg

from benchmarks.plain_inserts import GroupCommits, plain_postgres, plain_sqlite
from benchmarks.report import Row, row, write
from lionrock.audit.keys import KeyDirectory
from lionrock.audit.leaf import Context, Event, Intent, Model, Sampling, Verdict
from lionrock.audit.log import AuditLogs, Limits, open_logs
from lionrock.audit.records.opening import open_records
from lionrock.audit.signed_checkpoints import SignedCheckpoints
from lionrock.audit.store import LogStore, StoredLeaf
from lionrock.audit.store.postgres import PostgresLogStore
from lionrock.audit.store.sqlite import SqliteLogStore
from lionrock.audit.vault.settings import VaultSettings
from lionrock.chassis.ids import uuid7
from lionrock.tlog.checkpoint import Checkpoint
from lionrock.tlog.merkle import Frontier, leaf_hash
from lionrock.tlog.note import sign_note

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from postgres_server import PostgresServer, running_postgres

WRITERS = (1, 8, 32, 128)
GOAL_LEAVES_A_S = 10_000
GOAL_RATIO = 0.6
OPEN_LOOP_A_S = 1000
GOAL_P99_MS = 10.0
GOAL_PROOF_MS = 1.0
TENANT = "bank"
_BULK = 4096
"""Leaves a transaction when a large log is built."""


@dataclass(frozen=True, slots=True)
class Pace:
    """How long and how often to measure."""

    seconds: float
    rounds: int
    leaves: int


def events() -> Iterator[Event]:
    """Make intents such as a gateway records: 1.1 KB as a leaf, a prompt of 500 bytes committed to. Only their ids differ."""
    digest = "sha256:" + "5f" * 32
    verdict = Verdict("allow", {"hkid": 1}, "default", "2026.11", digest)
    sampling = Sampling(temperature="0.7", top_p="0.95", seed="7", max_tokens=512, stop_count=0)
    body = Intent("chat", Model("smollm2", tokenizer_digest=digest), sampling, verdict, 128)
    context = Context(
        request_id="",
        tenant=TENANT,
        actor=f"spiffe://lionrock.local/tenant/{TENANT}/workload/assistant",
        auth_method="mtls",
        roles=("analyst",),
        purpose="customer_support",
        case_id="CASE-2026-00117",
        conversation_id=uuid7(),
        data_class="personal",
        territory="HK",
        profile="default",
    )
    payloads = {"prompt": b"p" * 500}
    for number in itertools.count():
        of_request = replace(context, request_id=f"{number:08x}-0000-7000-8000-000000000000")
        yield Event(f"{number:08x}-0000-7000-9000-000000000000", "4bf92f3577b34da6a3ce929d0e0e4736", of_request, body, payloads)


@asynccontextmanager
async def audit_logs(directory: Path, store: LogStore, *, vault: bool = False) -> Any:
    """Open logs as the service does, with or without the payload vault, on a store that is closed at the end."""
    settings = VaultSettings(key_store_file=directory / "vault" / "keys.db", local_key_dir=directory / "tenant-keys")
    signed = SignedCheckpoints(directory / "keys" / "signed-checkpoints.jsonl")
    try:
        limits = Limits(max_pending=4096, max_batch=1024, retry_window_s=3600)
        logs = open_logs(store, KeyDirectory(directory / "keys"), signed, [TENANT], platform="bench", region="HK", limits=limits)
        async with logs, open_records(settings if vault else None, logs, [TENANT]):
            yield logs
    finally:
        signed.close()
        store.close()


def appending(logs: AuditLogs, made: Iterator[Event]) -> Callable[[], Awaitable[object]]:
    """Return what appends one event after the other."""
    return lambda: logs.append(next(made), want_receipt=False)


async def closed_loop(writers: int, seconds: float, append: Callable[[], Awaitable[object]]) -> float:
    """Count appends a second of so many writers, each of which waits for its append before it begins the next."""
    end = time.perf_counter() + seconds
    appended = 0

    async def write_on() -> None:
        nonlocal appended
        while time.perf_counter() < end:
            await append()
            appended += 1

    begin = time.perf_counter()
    await asyncio.gather(*(write_on() for _ in range(writers)))
    return appended / (time.perf_counter() - begin)


async def open_loop(rate: float, seconds: float, append: Callable[[], Awaitable[object]]) -> list[float]:
    """Return latencies in ms, sorted, from when an append was due; they begin at a fixed rate whatever becomes of those before."""
    loop = asyncio.get_running_loop()
    latencies: list[float] = []

    async def one(due: float) -> None:
        await append()
        latencies.append((loop.time() - due) * 1000)

    begin = loop.time()
    tasks = []
    for number in range(int(rate * seconds)):
        due = begin + number / rate
        if (early := due - loop.time()) > 0:
            await asyncio.sleep(early)
        tasks.append(asyncio.ensure_future(one(due)))
    await asyncio.gather(*tasks)
    return sorted(latencies)


@dataclass(frozen=True, slots=True)
class Database:
    """A kind of store, and the plain table in the same kind."""

    name: str
    open_store: Callable[[Path], LogStore]
    open_table: Callable[[Path], Any]
    settle: Callable[[Path], None]
    """Finish what the database would do in its own time after so much was written."""


def databases(server: PostgresServer) -> Sequence[Database]:
    """SQLite and PostgreSQL; what is opened in one directory again is the same one."""
    dsns: dict[Path, str] = {}

    def dsn(directory: Path) -> str:
        if directory not in dsns:
            dsns[directory] = server.new_database()
        return dsns[directory]

    def settle(directory: Path) -> None:
        with psycopg.connect(dsn(directory), autocommit=True) as administrator:
            administrator.execute("VACUUM (ANALYZE)")
            administrator.execute("CHECKPOINT")

    return (
        Database("SQLite", lambda d: SqliteLogStore(d / "audit.db"), lambda d: plain_sqlite(d / "plain.db"), lambda _: None),
        Database("PostgreSQL", lambda d: PostgresLogStore(dsn(d)), lambda d: plain_postgres(dsn(d)), settle),
    )


async def throughput(database: Database, root: Path, pace: Pace) -> list[Row]:
    """Leaves a second against plain inserts, the two alternating."""
    rows = []
    made = events()
    directory = root / database.name
    directory.mkdir()
    async with audit_logs(directory, database.open_store(directory)) as logs:
        leaf = (await sample(logs, next(made))).data
        async with GroupCommits(lambda: database.open_table(directory)) as table:
            for writers in WRITERS:
                ours, plain = [], []
                for _ in range(pace.rounds):
                    ours.append(await closed_loop(writers, pace.seconds, appending(logs, made)))
                    plain.append(await closed_loop(writers, pace.seconds, lambda: table.insert(leaf)))
                case = f"{database.name}, {writers} writer{'s' * (writers > 1)}, durable and signed for"
                rows.append(row(case, ours, "leaves/s", "higher", baseline="plain inserts", baseline_values=plain))
    return rows


async def sample(logs: AuditLogs, event: Event) -> StoredLeaf:
    """Append one event. Returns its leaf."""
    await logs.append(event, want_receipt=False)
    async for page in logs.leaves(TENANT, 0, 1):
        return page[0]
    raise AssertionError


async def vault(database: Database, root: Path, pace: Pace) -> list[Row]:
    """Return what it costs to keep the payloads, beside a log of the same kind that keeps none."""
    made = events()
    rates: dict[bool, list[float]] = {False: [], True: []}
    cpu_us: dict[bool, list[float]] = {False: [], True: []}
    async with AsyncExitStack() as opened:
        beside = {}
        for kept in (False, True):
            directory = root / f"{database.name}-{'with' if kept else 'without'}-vault"
            directory.mkdir()
            beside[kept] = await opened.enter_async_context(audit_logs(directory, database.open_store(directory), vault=kept))
        for _ in range(pace.rounds):
            for kept, logs in beside.items():
                began, size = time.process_time(), logs.size(TENANT)
                rates[kept].append(await closed_loop(WRITERS[-1], pace.seconds, appending(logs, made)))
                cpu_us[kept].append((time.process_time() - began) * 1e6 / (logs.size(TENANT) - size))
    name, without = f"{database.name}, {WRITERS[-1]} writers, with payload vault", "without the vault"
    return [
        row(name, rates[True], "leaves/s", "higher", baseline=without, baseline_values=rates[False]),
        row(f"{name}, processor time a leaf", cpu_us[True], "µs", "lower", baseline=without, baseline_values=cpu_us[False]),
    ]


async def latency(database: Database, root: Path, pace: Pace) -> list[Row]:
    """Latency of appends at a rate that leaves room."""
    directory = root / f"{database.name}-latency"
    directory.mkdir()
    made = events()
    halves: dict[str, list[float]] = {"p50": [], "p99": []}
    async with audit_logs(directory, database.open_store(directory)) as logs:
        await open_loop(OPEN_LOOP_A_S, 1, lambda: logs.append(next(made), want_receipt=True))
        for _ in range(pace.rounds):
            latencies = await open_loop(OPEN_LOOP_A_S, pace.seconds, lambda: logs.append(next(made), want_receipt=True))
            halves["p50"].append(latencies[len(latencies) // 2])
            halves["p99"].append(latencies[len(latencies) * 99 // 100])
    name = f"{database.name}, append with receipt at {OPEN_LOOP_A_S}/s"
    return [
        row(f"{name}, p50", halves["p50"], "ms", "lower"),
        row(f"{name}, p99", halves["p99"], "ms", "lower", baseline="goal", baseline_values=[GOAL_P99_MS]),
    ]


async def proofs(database: Database, root: Path, pace: Pace) -> list[Row]:
    """Latency of proofs from a large log, built in bulk through the store, and the process's memory by its size."""
    directory = root / f"{database.name}-large"
    directory.mkdir()
    store = database.open_store(directory)
    signed = SignedCheckpoints(directory / "keys" / "signed-checkpoints.jsonl")
    keys = KeyDirectory(directory / "keys")
    limits = Limits(4096, 1024, 0)
    open_logs(store, keys, signed, [TENANT], platform="bench", region="", limits=limits)
    memory = [(size, resident_mib()) for size in grow(store, f"bench/audit/{TENANT}", keys, signed, pace.leaves)]
    database.settle(directory)
    begin = time.perf_counter()
    logs = open_logs(store, keys, signed, [TENANT], platform="bench", region="", limits=limits)
    opened_ms = (time.perf_counter() - begin) * 1000
    signed.close()
    async with logs:
        times = []
        for number in range(2000):
            index = (number * 2654435761) % pace.leaves
            begin = time.perf_counter()
            await logs.receipt(TENANT, index)
            times.append((time.perf_counter() - begin) * 1000)
    store.close()
    times.sort()
    name = f"{database.name}, {pace.leaves:,} leaves"
    first, last = memory[0][1], memory[-1][1]
    return [
        row(
            f"{name}, receipt with proof, p50",
            [times[len(times) // 2]],
            "ms",
            "lower",
            baseline="goal",
            baseline_values=[GOAL_PROOF_MS],
        ),
        row(f"{name}, receipt with proof, p99", [times[len(times) * 99 // 100]], "ms", "lower"),
        row(f"{name}, start-up checks", [opened_ms], "ms", "lower"),
        row(f"{name}, memory", [last], "MiB", "lower", baseline=f"at {memory[0][0]:,} leaves", baseline_values=[first]),
    ]


def grow(store: LogStore, origin: str, keys: KeyDirectory, signed: SignedCheckpoints, leaves: int) -> Iterator[int]:
    """Append leaves of 900 bytes through the store, `_BULK` a transaction; yields the size ten times on the way."""
    stored = store.find_log(origin)
    signer = keys.load(TENANT, origin)
    assert stored is not None
    assert signer is not None
    frontier, root, size, shown = Frontier(0, []), stored.root, 0, 0
    filler = os.urandom(450).hex().encode()
    while size < leaves:
        batch = []
        for index in range(size, min(size + _BULK, leaves)):
            data = b"%020d" % index + filler
            batch.append(StoredLeaf(index, f"event-{index:020d}", index, frontier.append(leaf_hash(data)), data))
        checkpoint = sign_note(Checkpoint(origin, frontier.size, frontier.root()).text(), signer)
        with store.transaction() as transaction:
            transaction.add_leaves(stored.log_id, batch)
            transaction.advance(stored.log_id, size, root, frontier.size, frontier.root(), checkpoint)
        signed.record({origin: checkpoint})
        size, root = frontier.size, frontier.root()
        if size * 10 // leaves > shown:
            shown = size * 10 // leaves
            print(f"  {size:,} leaves", file=sys.stderr)
            yield size


def resident_mib() -> float:
    """Memory of this process that is in use."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


@contextmanager
def places() -> Iterator[tuple[Path, PostgresServer]]:
    """Make a directory and a server, both gone at the end."""
    settings = {"shared_buffers": "128MB", "max_wal_size": "2GB"}
    with tempfile.TemporaryDirectory(prefix="lionrock-bench-audit-") as root, running_postgres(settings) as server:
        yield Path(root), server


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one short round of each case")
    parser.add_argument("--leaves", type=int, default=1_000_000, help="size of the log that proofs come from")
    parser.add_argument(
        "--only", choices=["throughput", "vault", "latency", "proofs"], help="one part, which is printed and not recorded"
    )
    parser.add_argument("--store", choices=["SQLite", "PostgreSQL"], help="one kind of store, likewise")
    arguments = parser.parse_args()
    pace = Pace(1.5, 1, min(arguments.leaves, 100_000)) if arguments.quick else Pace(4, 5, arguments.leaves)
    parts = {"throughput": throughput, "vault": vault, "latency": latency, "proofs": proofs}
    rows: list[Row] = []
    with places() as (root, server):
        for name, part in parts.items():
            if arguments.only in (None, name):
                for database in databases(server):
                    if arguments.store in (None, database.name):
                        rows += asyncio.run(part(database, root, pace))
    if arguments.only is None and arguments.store is None:
        write("audit", rows)
    else:
        for entry in rows:
            print(f"{entry.case}: {entry.value:.4g} {entry.unit}, {entry.ratio or 0:.2f} against {entry.baseline_value}")


if __name__ == "__main__":
    main()
