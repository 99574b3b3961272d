"""Kills a real audit process again and again while writers are at it, and checks that no acknowledged leaf was lost.

    python tests/audit/kill_rounds.py --rounds 1000 --writers 32 --seed 7 [--postgres]

One store lives through all rounds. On PostgreSQL every third round kills the database's server instead, after which the process
must end by itself. Writers append intents and outcomes with receipts; what was not acknowledged is sent again under the same event
id in the next round, as a gateway does. At the end every acknowledged leaf must be at its index with its hash, once; checkpoints
ever shown must be prefixes of the last one; every receipt must verify. The seed is printed, so a failure can be replayed (up to
scheduling).
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import signal
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager, closing, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc

if __name__ == "__main__":
    sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1])]

from audit_harness import PLATFORM, Place, check_leaves

from lionrock.audit.store.postgres import PostgresLogStore
from lionrock.audit.store.sqlite import SqliteLogStore
from lionrock.audit.v1 import audit_pb2 as pb
from lionrock.audit.v1.audit_pb2_grpc import AuditServiceStub
from lionrock.audit.verify import verify_receipt
from lionrock.chassis.channel import open_channel
from lionrock.chassis.ids import uuid7
from lionrock.chassis.settings import PeerSettings, TlsSettings
from lionrock.common.v1 import context_pb2
from lionrock.tlog.checkpoint import Checkpoint
from lionrock.tlog.keys import VerifierKey
from lionrock.tlog.merkle import Frontier, leaf_hash, verify_consistency
from lionrock.tlog.note import open_note
from mesh_ca import TRUST_DOMAIN, DevCa
from postgres_server import PostgresServer, running_postgres

START_TIMEOUT_S = 30.0
CALL_TIMEOUT_S = 10.0


def context() -> context_pb2.RequestContext:
    return context_pb2.RequestContext(
        request_id=uuid7(),
        tenant="bank",
        actor=f"spiffe://{TRUST_DOMAIN}/tenant/bank/user/ada",
        auth_method=context_pb2.AUTH_METHOD_MTLS,
        roles=["auditor"],
        purpose="customer_support",
        territory="HK",
        profile="default",
    )


def write_config(place: Place, tls: TlsSettings, **changes: object) -> Path:
    """Settings of a process on `place`, as JSON, which is YAML."""
    server = {
        "tls": {name: str(path) for name, path in tls.model_dump().items()},
        "trust_domain": TRUST_DOMAIN,
        "ready_file": str(place.root / "ready"),
    }
    config: dict[str, object] = {"server": server, "platform": PLATFORM, "tenants": ["bank"], "store_file": str(place.store_file)}
    path = place.root / "audit.yaml"
    path.write_text(
        json.dumps(config | {"key_dir": str(place.key_dir), "telemetry": {"log_level": "ERROR"}} | changes), encoding="utf-8"
    )
    return path


@asynccontextmanager
async def audit_process(place: Place, config: Path) -> AsyncIterator[tuple[asyncio.subprocess.Process, int]]:
    """A real process and its port; killed at the end of the block if it still runs."""
    ready = place.root / "ready"
    ready.unlink(missing_ok=True)
    with (place.root / "audit.log").open("ab") as log:
        process = await asyncio.create_subprocess_exec(sys.executable, "-m", "lionrock.audit", "--config", str(config), stderr=log)
    try:
        async with asyncio.timeout(START_TIMEOUT_S):
            while not ready.exists():
                if process.returncode is not None:
                    raise AssertionError((place.root / "audit.log").read_text(encoding="utf-8")[-2000:])
                await asyncio.sleep(0.01)
        yield process, int(ready.read_text(encoding="ascii"))
    finally:
        if process.returncode is None:
            with suppress(ProcessLookupError):
                os.kill(process.pid, signal.SIGKILL)  # not process.kill(), which reaps what asyncio waits for
        await process.wait()


@dataclass(slots=True)
class History:
    """What the writers were told, and what they still wait for."""

    acknowledged: dict[str, tuple[int, bytes]] = field(default_factory=dict)
    checkpoints: dict[int, bytes] = field(default_factory=dict)
    unanswered: list[pb.AppendRequest] = field(default_factory=list)
    repeated: int = 0
    keys: list[str] = field(default_factory=list)

    def acknowledge(self, request: pb.AppendRequest, response: pb.AppendResponse) -> None:
        told = (response.position.leaf_index, response.position.leaf_hash)
        assert self.acknowledged.setdefault(request.event_id, told) == told
        leaf = verify_receipt(response.receipt.tlog_proof, self.keys)
        assert (leaf.fields["event_id"], leaf.leaf_index, leaf.leaf_hash) == (request.event_id, *told)
        assert self.checkpoints.setdefault(leaf.tree_size, leaf.root) == leaf.root


async def write(stub: Any, history: History) -> None:
    """Append intents and outcomes until the process is gone."""
    request = pb.AppendRequest()
    try:
        while True:
            if history.unanswered:
                request = history.unanswered.pop()
                history.repeated += 1
            else:
                intent = pb.Intent(action="chat", model="smollm2", prompt=b"prompt")
                request = pb.AppendRequest(context=context(), event_id=uuid7(), intent=intent, want_receipt=True)
            response = await stub.Append(request)
            history.acknowledge(request, response)
            if request.WhichOneof("event") == "intent":
                outcome = pb.Outcome(intent_index=response.position.leaf_index, status=pb.OUTCOME_STATUS_ANSWERED, answer=b"answer")
                request = pb.AppendRequest(context=request.context, event_id=uuid7(), outcome=outcome, want_receipt=True)
                history.acknowledge(request, await stub.Append(request))
    except grpc.aio.AioRpcError as error:
        if error.code() not in {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED, grpc.StatusCode.UNKNOWN}:
            raise
        history.unanswered.append(request)


async def kill_rounds(place: Place, *, rounds: int, writers: int, seed: int, server: PostgresServer | None = None) -> History:
    """Run the rounds, then the checks; on PostgreSQL where there is a `server`. Raises AssertionError."""
    chance = random.Random(seed)
    ca = DevCa(place.root / "mesh")
    gateway, changes = ca.issue("gateway"), {"platform_interval_s": 0.02}
    if server is not None:
        dsn_file = place.root / "dsn"
        dsn_file.write_text(server.dsn(), encoding="utf-8")
        dsn_file.chmod(0o600)
        changes |= {"store_file": None, "store_dsn_file": str(dsn_file)}
    config = write_config(place, ca.issue("audit"), **changes)
    history = History()
    for number in range(rounds):
        async with audit_process(place, config) as (process, port):
            peer = PeerSettings(target=f"127.0.0.1:{port}", service="audit", timeout_s=CALL_TIMEOUT_S)
            async with open_channel(peer, gateway, name="gateway") as channel:
                stub: Any = AuditServiceStub(channel)
                keys = list((await stub.ListKeys(pb.ListKeysRequest(context=context()))).verifier_keys)
                assert history.keys in ([], keys)
                history.keys = keys
                writing = [asyncio.ensure_future(write(stub, history)) for _ in range(writers)]
                await asyncio.sleep(chance.uniform(0.0, 0.4))  # the moment of the crash, not a wait for something
                if server is not None and number % 3 == 2:
                    server.kill()
                    async with asyncio.timeout(START_TIMEOUT_S):
                        assert await process.wait() == 1
                    await asyncio.to_thread(server.start)
                else:
                    os.kill(process.pid, signal.SIGKILL)
                await asyncio.gather(*writing)
        if sys.stderr.isatty():
            print(f"\rround {number + 1}, {len(history.acknowledged)} acknowledged", end="", file=sys.stderr)
    await check(place, config, gateway, history, server)
    return history


async def check(place: Place, config: Path, gateway: TlsSettings, history: History, server: PostgresServer | None) -> None:
    """Compare the store with what the writers were told."""
    async with audit_process(place, config) as (process, port):
        peer = PeerSettings(target=f"127.0.0.1:{port}", service="audit", timeout_s=CALL_TIMEOUT_S)
        async with open_channel(peer, gateway, name="gateway") as channel:
            stub: Any = AuditServiceStub(channel)
            last = await stub.Append(
                pb.AppendRequest(context=context(), event_id=uuid7(), intent=pb.Intent(action="chat", model="m"), want_receipt=True)
            )
            end = verify_receipt(last.receipt.tlog_proof, history.keys)
            for size, root in history.checkpoints.items():
                request = pb.GetConsistencyProofRequest(context=context(), first_size=size, second_size=end.tree_size)
                proof = await stub.GetConsistencyProof(request)
                verify_consistency(size, end.tree_size, root, end.root, list(proof.hashes))
            history.keys += (await stub.ListKeys(pb.ListKeysRequest(context=context()))).platform_verifier_keys
        process.send_signal(signal.SIGTERM)
        assert await process.wait() == 0
    with closing(PostgresLogStore(server.dsn()) if server is not None else SqliteLogStore(place.store_file)) as store:
        leaves, of_platform = check_leaves(store), check_leaves(store, None)
    index_of = {json.loads(leaf)["event_id"]: index for index, leaf in enumerate(leaves)}
    assert len(index_of) == len(leaves)
    for event_id, (index, hash_) in history.acknowledged.items():
        assert index_of[event_id] == index
        assert leaf_hash(leaves[index]) == hash_
    check_platform_log(of_platform, leaves, history.keys)


def check_platform_log(of_platform: list[bytes], leaves: list[bytes], keys: list[str]) -> None:
    """Each leaf of the platform's log is a checkpoint of the one history that there is, each larger than the one before."""
    frontier, last = Frontier(0, []), 0
    for data in of_platform:
        checkpoint = Checkpoint.parse(open_note(data.decode(), [VerifierKey.parse(key) for key in keys]).text)
        assert checkpoint.origin == f"{PLATFORM}/audit/bank"
        assert last < checkpoint.size <= len(leaves)
        for leaf in leaves[last : checkpoint.size]:
            frontier.append(leaf_hash(leaf))
        assert frontier.root() == checkpoint.root
        last = checkpoint.size
    assert last


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=1000)
    parser.add_argument("--writers", type=int, default=32)
    parser.add_argument("--seed", type=int, default=time.time_ns() % 10**9)
    parser.add_argument("--postgres", action="store_true", help="keep the logs in PostgreSQL, and kill its server too")
    arguments = parser.parse_args()
    print(f"seed {arguments.seed}")
    with tempfile.TemporaryDirectory() as directory, ExitStack() as servers:
        server = servers.enter_context(running_postgres()) if arguments.postgres else None
        rounds, writers, seed = arguments.rounds, arguments.writers, arguments.seed
        history = asyncio.run(kill_rounds(Place(Path(directory)), rounds=rounds, writers=writers, seed=seed, server=server))
    print(f"\n{arguments.rounds} kills: {len(history.acknowledged)} acknowledged, none lost, {history.repeated} sent again")


if __name__ == "__main__":
    main()
