"""What the PostgreSQL store promises beyond every store (test_store.py): durable commits or none, by a server that can fail."""

from __future__ import annotations

import asyncio
import shutil
import threading
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path

import psycopg
import pytest
from audit_harness import Place, check_leaves, intent

from lionrock.audit.failures import LogReadOnly, StoreConflict, StoreFailed
from lionrock.audit.log import AuditLogs
from lionrock.audit.store import StoredLog
from lionrock.audit.store.opening import read_dsn
from lionrock.audit.store.postgres import PostgresLogStore
from postgres_server import PostgresServer, running_postgres


@contextmanager
def configured(server: PostgresServer, **settings: str) -> Iterator[None]:
    """A server whose configuration was changed and read again, as an administrator does."""
    with psycopg.connect(server.dsn(), autocommit=True) as administrator:
        before = reloads(administrator)
        for name, value in settings.items():
            administrator.execute(f"ALTER SYSTEM SET {name} = '{value}'")
        reload(administrator, before)
    try:
        yield
    finally:
        with psycopg.connect(server.dsn(), autocommit=True) as administrator:
            before = reloads(administrator)
            for name in settings:
                administrator.execute(f"ALTER SYSTEM RESET {name}")
            reload(administrator, before)


def reloads(administrator: psycopg.Connection) -> object:
    return administrator.execute("SELECT pg_conf_load_time()").fetchone()


def reload(administrator: psycopg.Connection, before: object) -> None:
    administrator.execute("SELECT pg_reload_conf()")
    while reloads(administrator) == before:
        administrator.execute("SELECT pg_sleep(0.01)")


def begin_log(store: PostgresLogStore) -> StoredLog:
    return store.create_log("platform/audit/bank", "key", b"\x00" * 32, "checkpoint 0")


def advance(store: PostgresLogStore, log: StoredLog, old: int, new: int) -> None:
    with store.transaction() as transaction:
        transaction.advance(log.log_id, old, log.root, new, log.root, f"checkpoint {new}")


def size_of(database: str) -> int:
    with psycopg.connect(database) as reader:
        row = reader.execute("SELECT size FROM lionrock_audit.logs").fetchone()
    assert row is not None
    return int(row[0])


def test_a_session_that_could_lose_commits_is_refused(database: str) -> None:
    name = psycopg.conninfo.conninfo_to_dict(database)["dbname"]
    with psycopg.connect(database, autocommit=True) as administrator:
        administrator.execute(f"ALTER DATABASE {name} SET synchronous_commit = off")
        try:
            with pytest.raises(StoreFailed, match=r"synchronous_commit is off.*set it to on"):
                PostgresLogStore(database)
        finally:
            administrator.execute(f"ALTER DATABASE {name} RESET synchronous_commit")


@pytest.mark.parametrize(("name", "value"), [("fsync", "off"), ("full_page_writes", "off")])
def test_a_server_that_could_lose_commits_is_refused(name: str, value: str) -> None:
    with running_postgres({name: value}) as server, pytest.raises(StoreFailed, match=f"{name} is {value}.*set {name} = on"):
        PostgresLogStore(server.dsn())


def test_a_reload_does_not_weaken_a_running_writer(postgres: PostgresServer, database: str) -> None:
    with closing(PostgresLogStore(database)) as store:
        log = begin_log(store)
        with configured(postgres, synchronous_commit="off"):
            advance(store, log, 0, 1)
            assert store._writer.execute("SHOW synchronous_commit").fetchone() == ("on",)


def test_a_database_that_cannot_hold_all_texts_is_refused(postgres: PostgresServer) -> None:
    with psycopg.connect(postgres.dsn(), autocommit=True) as administrator:
        administrator.execute("CREATE DATABASE ascii TEMPLATE template0 ENCODING 'SQL_ASCII'")
    with pytest.raises(StoreFailed, match="ENCODING 'UTF8'"):
        PostgresLogStore(postgres.dsn("ascii"))


def test_a_newer_schema_and_one_with_a_gap_are_refused(database: str) -> None:
    PostgresLogStore(database).close()
    with psycopg.connect(database, autocommit=True) as administrator:
        administrator.execute("INSERT INTO lionrock_audit.schema_versions VALUES (99)")
        with pytest.raises(StoreFailed, match="run the newer program"):
            PostgresLogStore(database)
        administrator.execute("DELETE FROM lionrock_audit.schema_versions")
        administrator.execute("INSERT INTO lionrock_audit.schema_versions VALUES (0), (1)")
        with pytest.raises(StoreFailed, match="records 2 steps"):
            PostgresLogStore(database)


def test_a_role_that_owns_only_its_schema_is_enough(postgres: PostgresServer, database: str) -> None:
    with psycopg.connect(database, autocommit=True) as administrator:
        administrator.execute("CREATE ROLE audit LOGIN")
        administrator.execute("REVOKE CREATE ON SCHEMA public FROM PUBLIC")
        administrator.execute("CREATE SCHEMA lionrock_audit AUTHORIZATION audit")
    with closing(PostgresLogStore(f"{database} user=audit")) as store:
        begin_log(store)
    with psycopg.connect(database, autocommit=True) as administrator:
        administrator.execute("DROP OWNED BY audit; DROP ROLE audit")


def test_a_writer_whose_epoch_passed_commits_nothing(database: str) -> None:
    with closing(PostgresLogStore(database)) as store:
        log = begin_log(store)
        with psycopg.connect(database) as usurper:
            usurper.execute("UPDATE lionrock_audit.sequencer SET epoch = epoch + 1")
        with pytest.raises(StoreConflict, match="taken over"):
            advance(store, log, 0, 1)
        with pytest.raises(StoreConflict, match="taken over"):
            store.heartbeat()
    assert size_of(database) == 0


def test_the_next_writer_waits_for_a_transaction_that_passed_the_fence(database: str) -> None:
    with closing(PostgresLogStore(database)) as store, ExitStack() as later:
        log = begin_log(store)
        with store.transaction() as transaction:
            transaction.open_intents_of(log.log_id, ["none"])  # sends the fence
            usurper = later.enter_context(psycopg.connect(database))
            usurper.execute("SET lock_timeout = 100")
            with pytest.raises(psycopg.errors.LockNotAvailable):
                usurper.execute("UPDATE lionrock_audit.sequencer SET epoch = epoch + 1")
            transaction.advance(log.log_id, 0, log.root, 1, log.root, "checkpoint 1")
    assert size_of(database) == 1


def end_when_committing(database: str, how: str) -> threading.Thread:
    """End or cancel the writer's session as soon as it waits for a replica, which is after its commit is on the disk."""

    def watch() -> None:
        with psycopg.connect(database, autocommit=True) as administrator:
            while not administrator.execute(
                f"SELECT {how}(pid) FROM pg_stat_activity WHERE datname = current_database() AND wait_event = 'SyncRep'"
            ).fetchall():
                administrator.execute("SELECT pg_sleep(0.01)")

    thread = threading.Thread(target=watch)
    thread.start()
    return thread


@pytest.mark.parametrize("how", ["pg_terminate_backend", "pg_cancel_backend"])
def test_a_commit_whose_end_is_not_learnt_stops_the_writer_and_the_stored_head_decides(
    postgres: PostgresServer, database: str, how: str
) -> None:
    with closing(PostgresLogStore(database)) as store:
        log = begin_log(store)
        with configured(postgres, synchronous_standby_names="a_replica_that_is_not_there"):
            thread = end_when_committing(database, how)
            with pytest.raises(StoreFailed, match="unknown outcome"):
                advance(store, log, 0, 1)
            thread.join()
        for _ in range(2):
            with pytest.raises(StoreFailed, match="restart, and the stored head decides"):
                advance(store, log, 0, 1)
        with pytest.raises(StoreFailed):
            store.heartbeat()
    with closing(PostgresLogStore(database)) as store:
        found = store.find_log(log.origin)
        assert found is not None
        assert found.size == 1  # it was on the disk all the time
        advance(store, log, 1, 2)


def test_a_commit_that_takes_too_long_is_cut_off(postgres: PostgresServer, database: str) -> None:
    with closing(PostgresLogStore(database, deadline_s=1)) as store:
        log = begin_log(store)
        with configured(postgres, synchronous_standby_names="a_replica_that_is_not_there"):
            with pytest.raises(StoreFailed, match="unknown outcome"):
                advance(store, log, 0, 1)
            with psycopg.connect(database, autocommit=True) as administrator:
                administrator.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE wait_event = 'SyncRep'")


def test_a_statement_that_takes_too_long_is_ended_and_rolled_back(database: str) -> None:
    with closing(PostgresLogStore(database, deadline_s=1)) as store, psycopg.connect(database) as other:
        log = begin_log(store)
        other.execute("LOCK TABLE lionrock_audit.logs IN ACCESS EXCLUSIVE MODE")
        with pytest.raises(StoreFailed, match="lock timeout"):
            advance(store, log, 0, 1)
        other.rollback()
        advance(store, log, 0, 1)


def test_messages_quote_no_values(database: str) -> None:
    with closing(PostgresLogStore(database)) as store:
        begin_log(store)
        with pytest.raises(StoreFailed) as refusal:
            begin_log(store)
    assert "23505" in str(refusal.value)
    assert "platform/audit/bank" not in str(refusal.value)


def test_the_reader_comes_back_after_the_server_was_killed_and_the_writer_does_not() -> None:
    with running_postgres() as server, closing(PostgresLogStore(server.dsn())) as store:
        log = begin_log(store)
        advance(store, log, 0, 1)
        server.kill()
        with pytest.raises(StoreFailed):
            store.find_log(log.origin)
        server.start()
        found = store.find_log(log.origin)
        assert found is not None
        assert found.size == 1
        for _ in range(2):
            with pytest.raises(StoreFailed):
                advance(store, log, 1, 2)


async def append_many(logs: AuditLogs, count: int) -> None:
    await asyncio.gather(*(logs.append(intent(), want_receipt=False) for _ in range(count)))


@pytest.mark.slow
async def test_after_a_fail_over_that_lost_commits_nothing_is_signed(place: Place) -> None:
    with running_postgres() as primary, ExitStack() as later:
        replica = PostgresServer()
        later.callback(replica.delete)
        lagging, reaching = Place(place.root / "lagging"), Place(place.root / "reaching")
        async with place.open(PostgresLogStore(primary.dsn()), tenants=("bank",)) as logs:
            await append_many(logs, 3)
            shutil.copytree(place.key_dir, lagging.key_dir)
            await append_many(logs, 3)
            shutil.copytree(place.key_dir, reaching.key_dir)
            replica.copy_of(primary)
            await append_many(logs, 3)
            primary.kill()
        (replica.data / "standby.signal").touch()
        replica.start()
        replica.run("pg_ctl", "-D", str(replica.data), "-w", "promote")
        for pod, reason in ((place, "rolled back"), (lagging, "from timeline 1 to 2")):
            async with pod.open(PostgresLogStore(replica.dsn()), tenants=("bank",)) as logs:
                assert reason in logs.read_only_reasons()["bank"]
                with pytest.raises(LogReadOnly):
                    await logs.append(intent(), want_receipt=False)
        async with lagging.open(PostgresLogStore(replica.dsn(), accept_timeline=2), tenants=("bank",)) as logs:
            await append_many(logs, 1)
        async with lagging.open(PostgresLogStore(replica.dsn()), tenants=("bank",)) as logs:
            await append_many(logs, 1)
        with closing(PostgresLogStore(replica.dsn())) as store:
            assert len(check_leaves(store)) == 8


async def test_the_file_of_signed_checkpoints_of_another_service_may_lag_but_not_lead(place: Place, database: str) -> None:
    lagging = Place(place.root / "lagging")
    async with place.open(PostgresLogStore(database), tenants=("bank",)) as logs:
        await append_many(logs, 2)
        shutil.copytree(place.key_dir, lagging.key_dir)
        await append_many(logs, 3)
        note = logs.checkpoint("bank")
    async with lagging.open(PostgresLogStore(database), tenants=("bank",)) as logs:
        assert logs.read_only_reasons() == {}
        await append_many(logs, 1)
    with psycopg.connect(database) as administrator:  # put back to before the second service's leaf
        administrator.execute("DELETE FROM lionrock_audit.leaves WHERE leaf_index = 5")
        administrator.execute("DELETE FROM lionrock_audit.open_intents WHERE leaf_index = 5")
        update = "UPDATE lionrock_audit.logs SET size = 5, root = decode(%s, 'base64'), checkpoint = %s WHERE origin LIKE '%%/bank'"
        administrator.execute(update, (note.split("\n")[2], note))
    async with lagging.open(PostgresLogStore(database), tenants=("bank",)) as logs:
        assert "rolled back" in logs.read_only_reasons()["bank"]
    async with place.open(PostgresLogStore(database), tenants=("bank",)) as logs:
        assert logs.read_only_reasons() == {}


@pytest.mark.parametrize(
    "content", ["host=db password=hunter2 oops", "postgresql://audit:hunter2@[::1", "host=/nowhere password=hunter2"]
)
def test_the_connection_string_stays_out_of_messages(content: str) -> None:
    with pytest.raises(StoreFailed) as refusal:
        PostgresLogStore(content)
    assert "hunter2" not in str(refusal.value)
    assert refusal.value.__cause__ is None
    assert refusal.value.__suppress_context__


def test_over_tcp_a_server_without_tls_is_refused_unless_the_connection_string_allows_it(unused_tcp_port: int) -> None:
    with running_postgres({"listen_addresses": "127.0.0.1", "port": str(unused_tcp_port)}) as server:
        dsn = f"host=127.0.0.1 port={unused_tcp_port} user=postgres dbname=postgres"
        with pytest.raises(StoreFailed, match=r"SSL|root certificate"):
            PostgresLogStore(dsn)
        PostgresLogStore(f"{dsn} sslmode=disable").close()
        assert server.pid


@pytest.mark.parametrize(
    ("content", "mode", "reason"),
    [(b"host=db", 0o644, "open to others"), (b" \n", 0o600, "empty"), (b"\xff\xfe", 0o600, "not text")],
)
def test_a_file_that_holds_no_private_connection_string_is_refused(tmp_path: Path, content: bytes, mode: int, reason: str) -> None:
    path = tmp_path / "dsn"
    path.write_bytes(content)
    path.chmod(mode)
    with pytest.raises(StoreFailed, match=reason):
        read_dsn(path)
    with pytest.raises(StoreFailed, match="not readable"):
        read_dsn(tmp_path / "absent")
    path.write_bytes(b"host=db\n")
    path.chmod(0o640)
    assert read_dsn(path) == "host=db"
