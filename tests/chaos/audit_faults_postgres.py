"""Faults of a PostgreSQL server under a real audit process: killed, ended at once, sessions cut, failed over to its replica.

The server is real, syncs what it commits, and has a synchronous replica on another directory. A fail-over kills the primary with
SIGKILL, all its processes at once, promotes the replica and makes a new one of it; the service finds the new primary by its
connection string. Under the second place stands the fault disk, as it does with SQLite. What PostgreSQL itself does when its disk
fails is PostgreSQL's to prove and not tried here.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
import time
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import psycopg
from audit_faults import Campaign, Fault
from audit_harness import check_leaves
from fault_disk import SURVIVALS, build_layer

from lionrock.audit.store.postgres import PostgresLogStore
from postgres_server import PostgresServer

POSTGRES_KINDS: dict[str, float] = {
    "server killed": 0.3,
    "server ended at once": 0.1,
    "sessions cut": 0.15,
    "failed over": 0.05,
    "kill": 0.2,
    "power cut": 0.1,
    "failed fsync": 0.05,
    "clock step": 0.05,
}
_REPLICA_TIMEOUT_S = 60.0


def postgres_faults_from(chance: random.Random, count: int) -> list[Fault]:
    """Draw a sequence of faults."""
    faults = []
    for _ in range(count):
        kind = chance.choices(list(POSTGRES_KINDS), list(POSTGRES_KINDS.values()))[0]
        end = "power cut" if kind == "power cut" else "kill" if kind == "kill" else chance.choice(("kill", "stop", "power cut"))
        countdown = int(chance.expovariate(1 / 30))
        faults.append(Fault(kind, countdown, ".jsonl", end, chance.choice(SURVIVALS), chance.randrange(2**32)))
    return faults


class Cluster:
    """A primary and its synchronous replica."""

    def __init__(self) -> None:
        self.primary = PostgresServer()
        self.primary.initialise()
        self.primary.start()
        self.timeline = 1
        self.replica = self._new_replica()

    def _new_replica(self) -> PostgresServer:
        self._require_replica("")
        replica = PostgresServer()
        replica.copy_of(self.primary, "-R")
        replica.start()
        end = time.monotonic() + _REPLICA_TIMEOUT_S
        with psycopg.connect(self.primary.dsn(), autocommit=True) as connection:
            while connection.execute("SELECT 1 FROM pg_stat_replication WHERE state = 'streaming'").fetchone() is None:
                assert time.monotonic() < end, "the replica does not follow"
                time.sleep(0.02)
        self._require_replica("*")
        return replica

    def _require_replica(self, names: str) -> None:
        """Say whether a commit waits for a replica."""
        with psycopg.connect(self.primary.dsn(), autocommit=True) as connection:
            connection.execute(f"ALTER SYSTEM SET synchronous_standby_names = '{names}'")
            connection.execute("SELECT pg_reload_conf()")

    def kill_primary(self) -> None:
        """End every process of the primary with SIGKILL."""
        processes = [self.primary.pid, *_children(self.primary.pid)]
        for process in processes:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
        self.primary.kill()  # reaps it

    def start_primary(self) -> None:
        """Start it again; it recovers from its own log."""
        self.primary.start()

    def fail_over(self) -> None:
        """Lose the primary for ever; the replica takes its place, and gets a replica of its own."""
        self.kill_primary()
        lost, self.primary = self.primary, self.replica
        self.primary.run("pg_ctl", "-D", str(self.primary.data), "-w", "promote")
        self.timeline += 1
        lost.delete()
        self.replica = self._new_replica()

    def cut_sessions(self) -> None:
        """End all sessions of clients."""
        with psycopg.connect(self.primary.dsn(), autocommit=True) as connection:
            connection.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                " WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()"
            )

    def delete(self) -> None:
        self.replica.delete()
        self.primary.delete()


class PostgresCampaign(Campaign):
    """A campaign whose stores are databases of one cluster."""

    def __init__(self, cluster: Cluster, scratch: Path, layer: Path, **options: Any) -> None:
        super().__init__(scratch, layer, **options)
        self._cluster = cluster
        self._database = ""
        self._accepted = 1

    def _begin_life(self, number: int) -> None:
        super()._begin_life(number)
        self._database = f"life_{number}"
        self._accepted = 1
        with psycopg.connect(self._cluster.primary.dsn(), autocommit=True) as connection:
            connection.execute(f"CREATE DATABASE {self._database} TEMPLATE template0")

    @property
    def _dsn(self) -> str:
        return self._cluster.primary.dsn(self._database)

    def store_settings(self) -> dict[str, str]:
        """Settings that name the store."""
        path = self._root / "dsn"
        path.write_text(self._dsn, encoding="utf-8")
        path.chmod(0o600)
        return {"store_dsn_file": str(path), "store_accept_timeline": str(self._accepted)}

    def read_store(self) -> list[bytes]:
        """Leaves as the database holds them."""
        with closing(PostgresLogStore(self._dsn, accept_timeline=self._cluster.timeline)) as store:
            return check_leaves(store)

    async def disturb(self, fault: Fault, chance: random.Random) -> None:
        """Hit the server, and bring it back."""
        cluster = self._cluster
        match fault.kind:
            case "server killed":
                await asyncio.to_thread(cluster.kill_primary)
                await asyncio.sleep(chance.uniform(0.0, 0.3))
                await asyncio.to_thread(cluster.start_primary)
            case "server ended at once":
                await asyncio.to_thread(cluster.primary.kill)
                await asyncio.to_thread(cluster.start_primary)
            case "sessions cut":
                await asyncio.to_thread(cluster.cut_sessions)
            case "failed over":
                await asyncio.to_thread(cluster.fail_over)
                # A batch in doubt at that moment leaves the file behind the log, and the service asks an operator who knows of the
                # database. This one knows that the replica is synchronous; that nothing is lost, the ledger sees.
                self._accepted = cluster.timeline


def _children(process: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{process}/task/{process}/children").read_text(encoding="ascii").split()]


async def run_postgres_campaign(scratch: Path, faults: Sequence[Fault], *, seed: int, writers: int, life: int) -> Campaign:
    """Start a cluster, build the layer and run."""
    cluster = await asyncio.to_thread(Cluster)
    try:
        campaign = PostgresCampaign(cluster, scratch, build_layer(scratch), seed=seed, writers=writers, life=life)
        await campaign.run(faults)
    finally:
        await asyncio.to_thread(cluster.delete)
    return campaign
