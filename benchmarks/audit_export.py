"""What an export costs: leaves a second into an archive and through verify.py, and memory by the size of the archive.

Leaves are intents and outcomes of some 900 bytes, written through the store in bulk; the export takes all of them, with a proof a
leaf, as the audit service streams it. Verification is that of services/lionrock/audit/verify.py as a program of its own, Python's
start included, on one core.

    python -m benchmarks.audit_export [--quick] [--leaves 200000]
"""

from __future__ import annotations

import argparse
import asyncio
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from importlib.resources import files
from pathlib import Path

from benchmarks.report import Row, row, write
from lionrock.audit.export.exporter import Exporter
from lionrock.audit.keys import KeyDirectory
from lionrock.audit.leaf import Context, Event, Intent, Model, Outcome, Sampling, Usage, Verdict, build_leaf
from lionrock.audit.log import Limits, open_logs
from lionrock.audit.platform_log import PlatformLog, open_platform_log
from lionrock.audit.records.records import Records
from lionrock.audit.signed_checkpoints import SignedCheckpoints
from lionrock.audit.store import LogStore, StoredLeaf
from lionrock.audit.store.sqlite import SqliteLogStore
from lionrock.chassis.ids import uuid7
from lionrock.tlog.checkpoint import Checkpoint
from lionrock.tlog.merkle import Frontier, leaf_hash
from lionrock.tlog.note import sign_note

GOAL_VERIFIED_A_S = 20_000
TENANT = "bank"
_BULK = 4096


def leaves(count: int) -> Iterator[tuple[Event, int]]:
    """Events such as a gateway records, with their times: an intent and its outcome by turns."""
    digest = "sha256:" + "5f" * 32
    verdict = Verdict("allow", {"hkid": 1}, "default", "2026.11", digest)
    model = Model("smollm2", tokenizer_digest=digest, weights_digest=digest, engine="torch", image_digest=digest)
    asked = Intent("chat", Model("smollm2", tokenizer_digest=digest), Sampling(temperature="0.7", seed="7"), verdict, 128)
    answered = Outcome(0, "answered", "stop", model=model, answer_verdict=verdict, usage=Usage(128, 60, 0), total_time_ms=900)
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
    start_us = time.time_ns() // 1000 - count * 100
    for number in range(0, count, 2):
        who = replace(context, request_id=uuid7())
        yield Event(uuid7(), "0af7651916cd43dd8448eb211c80319c", who, asked, {"prompt": b"question"}), start_us + number * 100
        yield Event(uuid7(), "", who, replace(answered, intent_index=number), {"answer": b"answer"}), start_us + number * 100 + 50


def grow(store: LogStore, keys: KeyDirectory, signed: SignedCheckpoints, count: int) -> None:
    """Write the leaves of a log that is there and empty."""
    origin = f"bench/audit/{TENANT}"
    stored, signer = store.find_log(origin), keys.load(TENANT, origin)
    assert stored is not None
    assert signer is not None
    frontier, size, root, batch = Frontier(0, []), 0, stored.root, []
    for event, at_us in leaves(count):
        data = build_leaf(event, recorded_at_us=at_us, salt=bytes(32))
        batch.append(StoredLeaf(frontier.size, event.event_id, at_us, frontier.append(leaf_hash(data)), data))
        if len(batch) == _BULK or frontier.size >= count:
            checkpoint = sign_note(Checkpoint(origin, frontier.size, frontier.root()).text(), signer)
            with store.transaction() as transaction:
                transaction.add_leaves(stored.log_id, batch)
                transaction.advance(stored.log_id, size, root, frontier.size, frontier.root(), checkpoint)
            signed.record({origin: checkpoint})
            size, root, batch = frontier.size, frontier.root(), []


async def export(directory: Path, count: int, runs: int) -> tuple[list[float], list[str]]:
    """Export a log of so many leaves to export.zip, some times. Returns leaves a second of each run, and the verifier keys."""
    keys = KeyDirectory(directory / "keys")
    limits = Limits(4096, 1024, 0)
    with (
        closing(SqliteLogStore(directory / "audit.db")) as store,
        closing(SignedCheckpoints(directory / "keys" / "signed-checkpoints.jsonl")) as signed,
    ):
        open_logs(store, keys, signed, [TENANT], platform="bench", region="", limits=limits)
        grow(store, keys, signed, count)
        logs = open_logs(store, keys, signed, [TENANT], platform="bench", region="", limits=limits)
        platform_log = PlatformLog(open_platform_log("bench", store, keys, signed), logs, store, signed)
        async with logs:
            await platform_log.begin(None)
            exporter = Exporter(logs, Records(logs, None), platform_log)
            asker = replace(next(leaves(2))[0].context, roles=("auditor",), purpose="oversight", request_id=uuid7())
            rates = []
            for _ in range(runs):
                platform_log.attest(*await platform_log.advance())
                begin = time.perf_counter()
                with (directory / "export.zip").open("wb") as archive:
                    async for piece in exporter.export(asker, from_us=None, to_us=None, case_id="", with_payloads=False):
                        archive.write(piece.data)
                rates.append(count / (time.perf_counter() - begin))
            return rates, [*logs.verifier_keys(TENANT), platform_log.verifier_key]


def verify(directory: Path, keys: list[str], count: int, runs: int) -> tuple[list[float], list[float], float]:
    """Verify the archive as an auditor does. Returns leaves a second and a second of processor time of each run, and MiB."""
    program = directory / "verify.py"
    program.write_bytes(files("lionrock.audit").joinpath("verify.py").read_bytes())
    command = [sys.executable, str(program), str(directory / "export.zip"), *keys]
    rates, of_processor = [], []
    for _ in range(runs):
        begin, begin_cpu = time.perf_counter(), _processor_s()
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        rates.append(count / (time.perf_counter() - begin))
        of_processor.append(count / (_processor_s() - begin_cpu))
    return rates, of_processor, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024


def _processor_s() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def measure(count: int, runs: int) -> list[Row]:
    """Measure a log of so many leaves."""
    with tempfile.TemporaryDirectory(prefix="lionrock-bench-export-") as root:
        directory = Path(root)
        written, keys = asyncio.run(export(directory, count, runs))
        verified, of_processor, memory_mib = verify(directory, keys, count, runs)
        size = (directory / "export.zip").stat().st_size
    name = f"{count:,} leaves"
    return [
        row(f"{name}, exported", written, "leaves/s", "higher"),
        row(f"{name}, verified", verified, "leaves/s", "higher", baseline="goal", baseline_values=[GOAL_VERIFIED_A_S]),
        row(f"{name}, verified, a second of processor time", of_processor, "leaves/s", "higher"),
        row(f"{name}, memory of the verifier", [memory_mib], "MiB", "lower"),
        row(f"{name}, archive", [size / count], "bytes a leaf", "lower"),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one run of each case, of a short log; printed, not recorded")
    parser.add_argument("--leaves", type=int, default=200_000)
    arguments = parser.parse_args()
    sizes = [20_000] if arguments.quick else [arguments.leaves // 10, arguments.leaves]
    rows = [entry for size in sizes for entry in measure(size, 1 if arguments.quick else 3)]
    if arguments.quick:
        for entry in rows:
            print(f"{entry.case}: {entry.value:.4g} {entry.unit}")
    else:
        write("audit-export", rows)


if __name__ == "__main__":
    main()
