"""Power cuts, full disks, failing fsyncs and clock steps under a real audit process, from one seed, every answer held against it.

    python tests/chaos/audit_faults.py --faults 1000 --seed 1
    python tests/chaos/audit_faults.py --faults 200 --seed 1 --store postgres

The victim is `python -m lionrock.audit`, unmodified, over mutual TLS, with concurrent writers; between it and the disk stands
fault_disk.c. Every start after a fault first serves as the check of the one before: what was acknowledged must be there, once,
where it was; what was signed must be a prefix of what is signed now. A log lives through a number of faults (`--life`) and is
then closed: clients repeat what was not answered, recovery ends the streams that nobody ended, and all leaves are read back from
the file with a literal RFC 6962. Exits 1 when anything acknowledged was lost, doubled or forked, a stream stayed open, or the
service refused to go on.
"""

from __future__ import annotations

import argparse
import asyncio
import datetime as dt
import errno
import json
import os
import random
import shutil
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    os.environ["GRPC_ENABLE_FORK_SUPPORT"] = "0"  # its fork handlers abort a child in which a server of PostgreSQL is to start
    sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1] / "audit"), str(Path(__file__).parents[1])]

import grpc
from audit_harness import PLATFORM, check_store
from audit_history import Ledger, Verdicts, Writers, context
from fault_disk import SURVIVALS, Action, FaultDisk, OperationClass, Survival, build_layer, compiler
from rfc6962_reference import tree_hash

from lionrock.audit.v1 import audit_pb2 as pb
from lionrock.audit.v1.audit_pb2_grpc import AuditServiceStub
from lionrock.chassis.channel import open_channel
from lionrock.chassis.settings import PeerSettings
from lionrock.tlog.merkle import leaf_hash
from mesh_ca import TRUST_DOMAIN, DevCa

PROGRAM = ("-m", "lionrock.audit")
START_TIMEOUT_S = 60.0
STOP_TIMEOUT_S = 30.0
CALL_TIMEOUT_S = 10.0
FAULT_TIMEOUT_S = 1.5
"""A fault that was not met by then is replaced by a kill."""
CLOSING_TIMEOUT_S = 60.0
AHEAD_NS = 120 * 86400 * 10**9
"""The service's clock runs so far ahead of ours, so that it can step back without leaving its certificates' time."""
DAY_NS = 86400 * 10**9
KINDS: dict[str, float] = {
    "power cut": 0.34,
    "power cut while starting": 0.12,
    "kill": 0.10,
    "disk full": 0.10,
    "write error": 0.07,
    "short write": 0.05,
    "failed fsync": 0.12,
    "read error": 0.02,
    "clock step": 0.08,
}
"""Kinds of faults and how often each is drawn."""
_WRITING = OperationClass.WRITE | OperationClass.SYNC | OperationClass.NAME
_SUFFIXES = ("", "-wal", ".db", ".jsonl")


@dataclass(frozen=True, slots=True)
class Fault:
    """One fault."""

    kind: str
    countdown: int
    """Operations to let pass."""
    suffix: str
    """Of the files that are hit; empty: any."""
    end: str
    """How the process ends: "power cut", "kill" (what was written stays), "stop" (SIGTERM), "stop, power cut"."""
    survival: Survival
    seed: int


def faults_from(chance: random.Random, count: int) -> list[Fault]:
    """Draw a sequence of faults."""
    faults = []
    for _ in range(count):
        kind = chance.choices(list(KINDS), list(KINDS.values()))[0]
        suffix = chance.choices(_SUFFIXES, (0.4, 0.25, 0.1, 0.25))[0]
        end = chance.choices(("power cut", "kill", "stop", "stop, power cut"), (0.6, 0.2, 0.1, 0.1))[0]
        countdown = chance.randrange(60) if kind == "power cut while starting" else int(chance.expovariate(1 / 60))
        if kind.startswith("power cut"):
            end = "power cut"
        elif kind == "kill":
            end = "kill"
        faults.append(Fault(kind, countdown, suffix, end, chance.choice(SURVIVALS), chance.randrange(2**32)))
    return faults


@dataclass(slots=True)
class Tally:
    """What was seen of one kind of fault."""

    faults: int = 0
    met: int = 0
    """Faults that hit an operation; the others became kills."""
    acknowledged: int = 0
    refused: list[str] = field(default_factory=list)
    writing_again_s: list[float] = field(default_factory=list)


class Campaign:
    """One campaign in a directory of its own."""

    def __init__(self, scratch: Path, layer: Path, *, seed: int, writers: int, life: int, program: Sequence[str] = PROGRAM) -> None:
        self._chance = random.Random(seed)
        self._scratch = scratch
        self._layer = layer
        self._writers = writers
        self._life = life
        self._program = program
        ca = DevCa(scratch / "mesh")
        half_a_year = dt.timedelta(days=300)
        self._tls, self._gateway = ca.issue("audit", lifetime=half_a_year), ca.issue("gateway", lifetime=half_a_year)
        self.verdicts = Verdicts()
        self.tallies: dict[str, Tally] = {}
        self.leaves = 0
        self.repeated = 0
        self.recovered = 0
        self._disk: FaultDisk | None = None
        self._ledger = Ledger(self.verdicts)
        self._root = scratch
        self._before: Tally | None = None
        self._unsettled = False
        self._fired = 0
        self._stopped = False
        self._ending = asyncio.Event()

    async def run(self, faults: Sequence[Fault]) -> None:
        """Inflict the faults one after the other. SIGINT ends the run after the fault that is on."""
        lived: list[Fault] = []
        asyncio.get_running_loop().add_signal_handler(signal.SIGINT, self._ending.set)
        for number, fault in enumerate(faults):
            if self._ending.is_set():
                break
            if self._disk is None:
                self._begin_life(number)
                lived = []
            lived.append(fault)
            wrong = self.verdicts.total
            await self._inflict(fault)
            if self.verdicts.total > wrong:
                self.verdicts.said.append(f"    before fault {number}, the last of this log: {lived}")
                self._give_up()
            elif len(lived) == self._life:
                await self._end_life()
            if sys.stderr.isatty() or number % 50 == 49:
                end = "\r" if sys.stderr.isatty() else "\n"
                told = self.leaves + len(self._ledger.acknowledged)
                said = f"fault {number + 1}, {told} acknowledged, {self.verdicts.total} wrong"
                print(said, end=end, file=sys.stderr, flush=True)
        if self._disk is not None:
            await self._end_life()

    # ---- one log, from its first leaf to its last ------------------------------------------------------------------------

    def _begin_life(self, number: int) -> None:
        self._root = self._scratch / f"life-{number}"
        disk = self._root / "disk"
        disk.mkdir(parents=True)
        self._disk = FaultDisk(disk, self._layer, self._root)
        self._ledger = Ledger(self.verdicts)
        self._unsettled = False
        self._before = None
        self._offset_ns = AHEAD_NS

    def _give_up(self) -> None:
        """Leave a log behind in which something is wrong, with all its files."""
        assert self._disk is not None
        self.leaves += len(self._ledger.acknowledged)
        self._disk.close()
        self._disk = None

    async def _end_life(self) -> None:
        """Let the clients finish, recovery close what is open, and read everything back literally."""
        assert self._disk is not None
        disk, ledger = self._disk, self._ledger
        chance = random.Random(self._chance.random())
        writable = False
        async with self._process(closing=True) as (process, port):
            if port is None:
                self.verdicts.add("other", f"the last start was refused: {self._said()}")
            else:
                async with self._channel(port) as stub:
                    writable = await self._check(stub, chance, proofs=200)
                    if writable:
                        await self._settle_all(stub, chance)
                        await ledger.compare(stub, chance, proofs=50)
                process.send_signal(signal.SIGTERM)
                if await asyncio.wait_for(process.wait(), STOP_TIMEOUT_S) != 0:
                    self.verdicts.add("other", f"the service did not stop as it should: {self._said()}")
        if not writable:
            self._give_up()
            return
        if ledger.intents:
            self.verdicts.add("open_streams", f"{len(ledger.intents)} intents were never closed")
        leaves = await asyncio.to_thread(self.read_store)
        if [leaf_hash(leaf) for leaf in leaves] != ledger.hashes:
            self.verdicts.add("forked", "the file holds other leaves than were served")
        for size in chance.sample(sorted(ledger.checkpoints), min(20, len(ledger.checkpoints))):
            if tree_hash(leaves[:size]) != ledger.checkpoints[size]:
                self.verdicts.add("forked", f"the root of {size} leaves is another than was shown, says RFC 6962")
        self.leaves += len(ledger.acknowledged)
        self.repeated += ledger.repeated
        self.recovered += sum(json.loads(leaf).get("recorded_by") == "recovery" for leaf in leaves)
        self._ledger = Ledger(self.verdicts)
        disk.close()
        self._disk = None
        shutil.rmtree(self._root)

    async def _settle_all(self, stub: Any, chance: random.Random) -> None:
        """Repeat what was not answered (some clients are gone), then wait for recovery."""
        waiting, self._ledger.unanswered = self._ledger.unanswered, []
        writers = Writers(self._ledger, stub, chance, on_first=lambda: None)
        for request in waiting:
            if chance.random() < 0.7:
                await writers.repeat(request)
        end = time.monotonic() + CLOSING_TIMEOUT_S
        while time.monotonic() < end:
            await self._ledger.compare(stub, chance, proofs=0)
            if not self._ledger.intents:
                return
            await asyncio.sleep(0.2)  # recovery looks by the clock

    # ---- one fault -------------------------------------------------------------------------------------------------------

    async def _inflict(self, fault: Fault) -> None:
        assert self._disk is not None
        disk, chance, tally = self._disk, random.Random(fault.seed), self.tallies.setdefault(fault.kind, Tally())
        tally.faults += 1
        early = (
            (lambda: disk.control.arm(Action.KILL, _WRITING, fault.countdown))
            if fault.kind == "power cut while starting"
            else (lambda: None)
        )
        fired = 0
        async with self._process(early=early) as (process, port):
            if port is None:
                if not disk.control.fired:
                    self._refused(self._said())
            else:
                async with self._channel(port) as stub:
                    await self._under_load(fault, process, stub, chance, tally)
            fired = self._fired or disk.control.fired
            disk.control.disarm()
            if fault.end.startswith("stop"):
                self._stop(process)
                with suppress(TimeoutError):
                    await asyncio.wait_for(process.wait(), STOP_TIMEOUT_S)
        tally.met += bool(fired) or fault.kind in {"kill", "clock step"}
        if fault.end.endswith("power cut"):
            disk.cut_power(fault.survival, chance)
            self._unsettled = False
        self._before = tally

    async def _under_load(
        self, fault: Fault, process: asyncio.subprocess.Process, stub: Any, chance: random.Random, tally: Tally
    ) -> None:
        """Check the last fault, then let the writers run into this one."""
        assert self._disk is not None
        control = self._disk.control
        try:
            if not await self._check(stub, chance, proofs=4):
                return
        except grpc.aio.AioRpcError as error:
            if process.returncode is None and not control.fired:
                self.verdicts.add("other", f"the check was not answered: {error.code()}")
            return
        before = self._before

        def writing_again() -> None:
            if before is not None:
                before.writing_again_s.append(time.monotonic() - self._started_s)

        writers = Writers(self._ledger, stub, chance, on_first=writing_again)
        self._arm(fault, chance)
        load = asyncio.create_task(writers.run(self._writers))
        try:
            await self._until_met(fault, process, load, chance)
        finally:
            if fault.end.startswith("stop"):
                self._stop(process)
            else:
                await self._kill(process)
            await asyncio.wait_for(load, CALL_TIMEOUT_S * 4)
        tally.acknowledged += writers.acknowledged

    def _arm(self, fault: Fault, chance: random.Random) -> None:
        assert self._disk is not None
        control = self._disk.control
        match fault.kind:
            case "power cut":
                control.arm(Action.KILL, _WRITING, fault.countdown, suffix=fault.suffix)
            case "disk full":
                full = OperationClass.WRITE | OperationClass.NAME
                control.arm(Action.FAIL, full, fault.countdown, error=errno.ENOSPC, repeat=-1, suffix=fault.suffix)
            case "write error":
                control.arm(Action.FAIL, OperationClass.WRITE, fault.countdown, error=errno.EIO, suffix=fault.suffix)
            case "short write":
                control.arm(Action.SHORT, OperationClass.WRITE, fault.countdown, repeat=chance.randint(1, 3), suffix=fault.suffix)
            case "failed fsync":
                # Once: the next one "succeeds", and must not be believed.
                control.arm(Action.FAIL, OperationClass.SYNC, fault.countdown // 3, error=errno.EIO, suffix=fault.suffix)
            case "read error":
                control.arm(Action.FAIL, OperationClass.READ, fault.countdown, error=errno.EIO, repeat=3)

    async def _until_met(
        self, fault: Fault, process: asyncio.subprocess.Process, load: asyncio.Task[None], chance: random.Random
    ) -> None:
        """Wait until the fault was met, and a little longer where the process lives on."""
        assert self._disk is not None
        control = self._disk.control
        if fault.kind == "clock step":
            await asyncio.sleep(chance.uniform(0.0, 0.2))
            self._offset_ns = AHEAD_NS + chance.choice((-90, -1, 1, 90)) * int(DAY_NS * chance.random())
            control.step_clock(self._offset_ns)
            self._ledger.window_passed = True
            await asyncio.sleep(chance.uniform(0.0, 0.3))
        elif fault.kind == "kill":
            await asyncio.sleep(chance.uniform(0.0, 0.4))  # the moment of the fault, not a wait for something
        elif fault.kind not in KINDS:
            await asyncio.sleep(chance.uniform(0.0, 0.4))
            await self.disturb(fault, chance)
            self._fired = 1
            await asyncio.sleep(chance.uniform(0.0, 0.2))
        else:
            end = time.monotonic() + FAULT_TIMEOUT_S
            while not control.fired and process.returncode is None and time.monotonic() < end and not load.done():  # noqa: ASYNC110
                await asyncio.sleep(0.005)  # the process says so in shared memory alone
            if not fault.kind.startswith("power cut"):
                await asyncio.sleep(chance.uniform(0.0, 0.2))

    async def _check(self, stub: Any, chance: random.Random, *, proofs: int) -> bool:
        """Hold the log against the ledger. Returns whether it can be written to."""
        if "a log is read-only" in self._said():
            self._refused(self._said())
            with suppress(grpc.aio.AioRpcError):
                await self._ledger.compare(stub, chance, proofs=proofs)
            return False
        asked = pb.ListKeysRequest(context=context())
        keys = list((await stub.ListKeys(asked)).verifier_keys)
        if self._ledger.keys not in ([], keys) and self._ledger.acknowledged:
            self.verdicts.add("forked", "the log has another key than before")
        self._ledger.keys = keys
        await self._ledger.compare(stub, chance, proofs=proofs)
        return True

    def _refused(self, why: str) -> None:
        """A start after a fault did not lead to a log that can be written to."""
        if self._before is not None:
            self._before.refused.append(why)
        self.verdicts.add("other", f"refused to go on: {why}")

    async def disturb(self, fault: Fault, chance: random.Random) -> None:
        """Do what a kind of fault does that is not the disk's; here: nothing."""

    def read_store(self) -> list[bytes]:
        """Leaves as the store holds them after the last stop, checked literally."""
        return check_store(self._store_file)

    def store_settings(self) -> dict[str, str]:
        """Settings that name the store."""
        return {"store_file": str(self._store_file)}

    # ---- the process -----------------------------------------------------------------------------------------------------

    @property
    def _store_file(self) -> Path:
        assert self._disk is not None
        return self._disk.root / "store" / "audit.db"

    def _said(self) -> str:
        """What the process wrote on stderr since it started."""
        return (self._root / "audit.log").read_text(encoding="utf-8", errors="replace")[-2000:].strip()

    def _config(self, *, closing: bool) -> Path:
        assert self._disk is not None
        server = {
            "tls": {name: str(path) for name, path in self._tls.model_dump().items()},
            "trust_domain": TRUST_DOMAIN,
            "ready_file": str(self._root / "ready"),
            "drain_grace_s": 0.2,
            "default_deadline_s": 2,
            "max_deadline_s": 2 if closing else 600,
        }
        config = {
            "server": server,
            "platform": PLATFORM,
            "tenants": ["bank"],
            **self.store_settings(),
            "key_dir": str(self._disk.root / "keys"),
            "telemetry": {"log_level": "ERROR"},
            "orphan_after_s": 2 if closing else 660,
            "sweep_interval_s": 0.2 if closing else 15,
        }
        path = self._root / "audit.yaml"
        path.write_text(json.dumps(config), encoding="utf-8")
        return path

    @asynccontextmanager
    async def _process(
        self, *, closing: bool = False, early: Any = lambda: None
    ) -> AsyncIterator[tuple[asyncio.subprocess.Process, int | None]]:
        """Start the service over the fault disk; its port, or None when it ended before it listened. Killed at the end."""
        assert self._disk is not None
        ready = self._root / "ready"
        ready.unlink(missing_ok=True)
        environment = self._disk.go_on() if self._unsettled else self._disk.begin()
        self._unsettled = True
        self._fired = 0
        self._stopped = False
        self._disk.control.step_clock(self._offset_ns)
        early()
        self._started_s = time.monotonic()
        with (self._root / "audit.log").open("wb") as log:
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                *self._program,
                "--config",
                str(self._config(closing=closing)),
                stderr=log,
                env=os.environ | dict(environment),
            )
        try:
            async with asyncio.timeout(START_TIMEOUT_S):
                while not ready.exists() and process.returncode is None:  # noqa: ASYNC110
                    await asyncio.sleep(0.01)
            yield process, int(ready.read_text(encoding="ascii")) if process.returncode is None else None
        finally:
            await self._kill(process)

    def _stop(self, process: asyncio.subprocess.Process) -> None:
        """Ask the process to end, once: a second SIGTERM, when it has put its handler away, would be a kill."""
        if process.returncode is None and not self._stopped:
            process.send_signal(signal.SIGTERM)
            self._stopped = True

    async def _kill(self, process: asyncio.subprocess.Process) -> None:
        """Kill the process, never between an operation and its record in the journal."""
        assert self._disk is not None
        self._fired = self._fired or self._disk.control.fired
        if process.returncode is None:
            self._disk.control.arm(Action.STOP, _WRITING, 0, repeat=-1)
            while process.returncode is None and self._disk.control.busy:  # noqa: ASYNC110
                await asyncio.sleep(0.002)
        if process.returncode is None:
            with suppress(ProcessLookupError):
                os.kill(process.pid, signal.SIGKILL)  # not process.kill(), which reaps what asyncio waits for
        await process.wait()

    @asynccontextmanager
    async def _channel(self, port: int) -> AsyncIterator[Any]:
        peer = PeerSettings(target=f"127.0.0.1:{port}", service="audit", timeout_s=CALL_TIMEOUT_S)
        async with open_channel(peer, self._gateway, name="gateway") as channel:
            yield AuditServiceStub(channel)


def table(campaign: Campaign) -> str:
    """What a campaign saw, a row a kind."""
    lines = [
        "| Fault | Faults | met | Acknowledged | Refused to go on | Writing again, s: p50 | max |",
        "|---|---|---|---|---|---|---|",
    ]
    for kind, tally in sorted(campaign.tallies.items()):
        again = sorted(tally.writing_again_s)
        times = f"{statistics.median(again):.2f} | {again[-1]:.2f}" if again else "— | —"
        lines.append(f"| {kind} | {tally.faults} | {tally.met} | {tally.acknowledged} | {len(tally.refused)} | {times} |")
    verdicts = campaign.verdicts
    lines.append("")
    lines.append(
        f"{campaign.leaves} acknowledged: {verdicts.lost} lost, {verdicts.duplicated} duplicated, {verdicts.forked} forked, "
        f"{verdicts.open_streams} logs with open streams, {verdicts.other} other; {campaign.repeated} calls repeated, "
        f"{campaign.recovered} streams ended by recovery"
    )
    return "\n".join(lines)


async def run_campaign(
    scratch: Path, faults: Sequence[Fault], *, seed: int, writers: int, life: int, program: Sequence[str] = PROGRAM
) -> Campaign:
    """Build the layer and run. `program`: what Python is to run in the service's place."""
    campaign = Campaign(scratch, build_layer(scratch), seed=seed, writers=writers, life=life, program=program)
    await campaign.run(faults)
    return campaign


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--faults", type=int, default=1000)
    parser.add_argument("--writers", type=int, default=32)
    parser.add_argument("--life", type=int, default=50, help="faults that one log lives through")
    parser.add_argument("--store", choices=("sqlite", "postgres"), default="sqlite")
    parser.add_argument("--seed", type=int, default=time.time_ns() % 10**9)
    arguments = parser.parse_args()
    if compiler() is None:
        sys.exit("there is no C compiler (cc, gcc or clang) on this machine, and without one no fault disk")
    print(f"seed {arguments.seed}", flush=True)
    memory = Path("/dev/shm")
    scratch = Path(tempfile.mkdtemp(prefix="audit-faults-", dir=memory if memory.is_dir() else None))
    chance = random.Random(arguments.seed)
    if arguments.store == "postgres":
        from audit_faults_postgres import postgres_faults_from, run_postgres_campaign

        running = run_postgres_campaign(
            scratch,
            postgres_faults_from(chance, arguments.faults),
            seed=arguments.seed,
            writers=arguments.writers,
            life=arguments.life,
        )
    else:
        faults = faults_from(chance, arguments.faults)
        running = run_campaign(scratch, faults, seed=arguments.seed, writers=arguments.writers, life=arguments.life)
    campaign = asyncio.run(running)
    if not campaign.verdicts.total:
        shutil.rmtree(scratch)
    print(table(campaign))
    if campaign.verdicts.total:
        print(f"what was left is in {scratch}")
    for line in campaign.verdicts.said[:40]:
        print(line[-1500:])
    return 1 if campaign.verdicts.total else 0


if __name__ == "__main__":
    sys.exit(main())
