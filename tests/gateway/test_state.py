"""The shared state: one suite over SQLite and PostgreSQL, then what each does when things go wrong."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, closing
from pathlib import Path

import psycopg
import pytest

from lionrock.gateway.state import schema
from lionrock.gateway.state.opening import StateSettings, open_state
from lionrock.gateway.state.postgres import PostgresSession
from lionrock.gateway.state.sqlite import SqliteSession
from lionrock.gateway.state.store import MAX_WAITING, StateConflict, StateStore, StateTransaction, StateUnavailable
from postgres_server import PostgresServer, running_postgres

ADD = "INSERT INTO quota_windows (tenant, principal, quota, window_start_us, taken) VALUES (?, '', ?, 0, ?)"
INCREMENT = "UPDATE quota_windows SET taken = taken + 1 WHERE tenant = ?"
TAKEN = "SELECT taken FROM quota_windows WHERE tenant = ?"


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    with running_postgres() as server:
        yield server


class Place:
    """A database that stores are opened on, again and again."""

    def __init__(self, settings: StateSettings) -> None:
        self.settings = settings

    @asynccontextmanager
    async def opened(self, number: int = 1) -> AsyncIterator[list[StateStore]]:
        async with AsyncExitStack() as stack:
            yield [await stack.enter_async_context(open_state(self.settings)) for _ in range(number)]


def named(tmp_path: Path, dsn: str) -> StateSettings:
    file = tmp_path / "dsn"
    file.write_text(dsn)
    file.chmod(0o600)
    return StateSettings(postgres_dsn_file=file)


@pytest.fixture(params=["sqlite", "postgres"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    if request.param == "sqlite":
        return Place(StateSettings(sqlite_file=tmp_path / "state" / "gateway.sqlite"))
    return Place(named(tmp_path, request.getfixturevalue("postgres").new_database()))


@pytest.fixture
async def store(place: Place) -> AsyncIterator[StateStore]:
    async with place.opened() as (opened,):
        yield opened


async def taken(store: StateStore, tenant: str = "bank") -> list[int]:
    return [row[0] for row in await store.read(lambda t: t.ask(TAKEN, (tenant,)))]


async def test_what_was_written_is_there_after_the_store_was_opened_again(place: Place) -> None:
    async with place.opened() as (store,):
        assert await store.write(lambda t: t.write(ADD, ("bank", "tokens", 2**62))) == 1
    async with place.opened() as (store,):
        assert await taken(store) == [2**62]


async def test_work_that_raises_leaves_nothing(store: StateStore) -> None:
    def work(transaction: StateTransaction) -> None:
        transaction.write(ADD, ("bank", "tokens", 1))
        raise RuntimeError("no")

    with pytest.raises(RuntimeError):
        await store.write(work)
    assert await taken(store) == []
    await store.write(lambda t: t.write(ADD, ("bank", "tokens", 2)))  # the session is usable again
    assert await taken(store) == [2]


async def test_a_second_row_with_the_same_key_is_a_conflict_and_nothing_of_its_transaction_stays(store: StateStore) -> None:
    await store.write(lambda t: t.write(ADD, ("bank", "tokens", 1)))

    def work(transaction: StateTransaction) -> None:
        transaction.write(ADD, ("broker", "tokens", 1))
        transaction.write(ADD, ("bank", "tokens", 2))

    with pytest.raises(StateConflict):
        await store.write(work)
    assert (await taken(store), await taken(store, "broker")) == ([1], [])


async def test_values_come_back_as_they_were(store: StateStore) -> None:
    tenant = "香港\u2028'; DROP TABLE quota_windows; -- %s ?"
    await store.write(lambda t: t.write(ADD, (tenant, "", -1)))
    assert await store.read(lambda t: t.ask("SELECT tenant, quota, taken FROM quota_windows")) == [(tenant, "", -1)]


async def test_statements_say_how_many_rows_they_touched_and_return_what_they_changed(store: StateStore) -> None:
    await store.write(lambda t: t.write(ADD, ("bank", "tokens", 1)))
    assert await store.write(lambda t: t.write(INCREMENT, ("nobody",))) == 0
    assert await store.write(lambda t: t.ask(INCREMENT + " RETURNING taken", ("bank",))) == [(2,)]


async def test_reading_work_cannot_write(store: StateStore) -> None:
    with pytest.raises(StateUnavailable):
        await store.read(lambda t: t.write(ADD, ("bank", "tokens", 1)))
    assert await taken(store) == []


async def test_the_time_is_the_same_within_a_transaction_and_does_not_stand_still(store: StateStore) -> None:
    first, again = await store.read(lambda t: (t.now_us, t.now_us))
    later = await store.read(lambda t: t.now_us)
    assert first == again < later
    assert 1_700_000_000_000_000 < first < 4_000_000_000_000_000


async def test_gateways_that_read_and_then_write_lose_no_update(place: Place) -> None:
    def add_one(transaction: StateTransaction) -> None:
        ((now,),) = transaction.ask(TAKEN, ("bank",))
        transaction.write("UPDATE quota_windows SET taken = ? WHERE tenant = ?", (now + 1, "bank"))

    async def add_ten(store: StateStore) -> None:
        for _ in range(10):
            await store.write(add_one)

    async with place.opened(4) as stores:
        await stores[0].write(lambda t: t.write(ADD, ("bank", "tokens", 0)))
        await asyncio.gather(*(add_ten(store) for store in stores))
        assert await taken(stores[1]) == [40]


async def test_two_who_each_look_before_they_add_do_not_both_find_room(place: Place) -> None:
    def add_where_there_is_none(name: str) -> Callable[[StateTransaction], bool]:
        def work(transaction: StateTransaction) -> bool:
            if transaction.ask("SELECT 1 FROM quota_windows"):
                return False
            return transaction.write(ADD, (name, "tokens", 1)) == 1

        return work

    async with place.opened(4) as stores:
        added = await asyncio.gather(*(store.write(add_where_there_is_none(f"t{n}")) for n, store in enumerate(stores)))
    assert sum(added) == 1


async def test_gateways_that_start_together_make_the_schema_once(place: Place) -> None:
    async with AsyncExitStack() as stack:
        stores = await asyncio.gather(*(stack.enter_async_context(open_state(place.settings)) for _ in range(4)))
        versions = await stores[0].read(lambda t: t.ask("SELECT version FROM schema_versions ORDER BY version"))
    assert versions == [(number,) for number in range(1, len(schema.migrations(schema.SQLITE)) + 1)]


async def test_a_schema_newer_than_the_program_is_refused(place: Place) -> None:
    newer = len(schema.migrations(schema.SQLITE)) + 1
    async with place.opened() as (store,):
        await store.write(lambda t: t.write("INSERT INTO schema_versions VALUES (?, '2030-01-01')", (newer,)))
    with pytest.raises(StateUnavailable, match="run the newer program"):
        async with place.opened():
            pass


async def test_an_older_schema_is_brought_forward_and_keeps_its_rows(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    async with place.opened() as (store,):
        await store.write(lambda t: t.write(ADD, ("bank", "tokens", 7)))
    known = schema.migrations
    monkeypatch.setattr(schema, "migrations", lambda d: (*known(d), (f"CREATE TABLE more (id {d.text} PRIMARY KEY){d.options}",)))
    async with place.opened() as (store,):
        assert await store.write(lambda t: t.write("INSERT INTO more VALUES ('x')")) == 1
        assert await taken(store) == [7]


async def test_a_closed_store_says_so(place: Place) -> None:
    async with place.opened() as (store,):
        pass
    with pytest.raises(StateUnavailable, match="closed"):
        await taken(store)


async def test_work_that_takes_too_long_fails_its_caller_and_what_waits_behind_it_is_bounded(tmp_path: Path) -> None:
    store = StateStore(SqliteSession(tmp_path / "s.sqlite", busy_timeout_s=1), deadline_s=0.3)
    going_on = threading.Event()
    slow = asyncio.create_task(store.write(lambda t: going_on.wait()))
    behind = [asyncio.create_task(taken(store)) for _ in range(MAX_WAITING - 1)]
    await asyncio.sleep(0)  # lets the tasks begin
    with pytest.raises(StateUnavailable, match="calls wait"):
        await taken(store)
    ends = await asyncio.gather(slow, *behind, return_exceptions=True)
    assert all(isinstance(end, StateUnavailable) for end in ends)
    going_on.set()
    await store.close()


def test_sqlite_is_private_and_durable(tmp_path: Path) -> None:
    path = tmp_path / "state" / "s.sqlite"
    with closing(SqliteSession(path, busy_timeout_s=1)) as session:
        assert path.stat().st_mode & 0o777 == 0o600
        assert session.run(lambda t: t.ask("PRAGMA synchronous"), read_only=True) == [(2,)]  # FULL
        assert session.run(lambda t: t.ask("PRAGMA journal_mode"), read_only=True) == [("wal",)]


def test_a_file_that_is_no_database_is_refused_by_name_of_the_error(tmp_path: Path) -> None:
    (tmp_path / "s.sqlite").write_bytes(b"secret text " * 1000)
    with pytest.raises(StateUnavailable, match="SQLITE_NOTADB") as refused:
        SqliteSession(tmp_path / "s.sqlite", busy_timeout_s=1)
    assert "secret" not in str(refused.value)


def test_a_writer_that_waits_too_long_for_another_process_fails(tmp_path: Path) -> None:
    with closing(SqliteSession(tmp_path / "s.sqlite", busy_timeout_s=0.05)) as session:
        with closing(sqlite3.connect(tmp_path / "s.sqlite", isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            with pytest.raises(StateUnavailable, match="SQLITE_BUSY"):
                session.run(lambda t: t.write(ADD, ("bank", "tokens", 1)), read_only=False)
            other.execute("ROLLBACK")
        assert session.run(lambda t: t.write(ADD, ("bank", "tokens", 1)), read_only=False) == 1


async def test_a_restarted_server_is_found_again_without_an_error_to_anybody(tmp_path: Path) -> None:
    with running_postgres() as server:
        async with open_state(named(tmp_path, server.new_database())) as store:
            await store.write(lambda t: t.write(ADD, ("bank", "tokens", 1)))
            server.kill()
            with pytest.raises(StateUnavailable):
                await taken(store)
            server.start()
            assert await taken(store) == [1]
            server.stop()
            server.start()
            assert await taken(store) == [1]  # the session was lost while it was idle


def test_a_session_that_is_lost_in_a_transaction_fails_it_and_keeps_nothing(postgres: PostgresServer) -> None:
    database = postgres.new_database()
    with closing(PostgresSession(database, deadline_s=5)) as session:

        def work(transaction: StateTransaction) -> None:
            transaction.write(ADD, ("bank", "tokens", 1))
            session.cut_off()
            transaction.write(ADD, ("bank", "more", 1))

        with pytest.raises(StateUnavailable):
            session.run(work, read_only=False)
        assert session.run(lambda t: t.ask(TAKEN, ("bank",)), read_only=True) == []


def test_a_statement_beyond_its_deadline_is_ended_by_the_server(postgres: PostgresServer) -> None:
    with closing(PostgresSession(postgres.new_database(), deadline_s=0.2)) as session:
        with pytest.raises(StateUnavailable, match="57014"):  # query_canceled
            session.run(lambda t: t.ask("SELECT pg_sleep(10)"), read_only=True)
        assert session.run(lambda t: t.ask("SELECT 1"), read_only=True) == [(1,)]


def test_a_role_that_commits_carelessly_is_made_to_commit_durably(postgres: PostgresServer) -> None:
    database = postgres.new_database()
    with closing(PostgresSession(database + " options='-c synchronous_commit=off'", deadline_s=5)) as session:
        assert session.run(lambda t: t.ask("SHOW synchronous_commit"), read_only=True) == [("on",)]
        assert session.run(lambda t: t.ask("SHOW transaction_isolation"), read_only=True) == [("serializable",)]


def test_a_server_that_may_lose_commits_is_refused() -> None:
    with running_postgres({"fsync": "off"}) as server, pytest.raises(StateUnavailable, match="fsync is off"):
        PostgresSession(server.dsn(), deadline_s=5)


async def test_a_connection_string_is_kept_out_of_messages_and_read_from_private_files_alone(tmp_path: Path) -> None:
    settings = named(tmp_path, "host=/nowhere password=hunter2 =")
    with pytest.raises(StateUnavailable) as refused:
        async with open_state(settings):
            pass
    assert "hunter2" not in str(refused.value)
    assert settings.postgres_dsn_file is not None
    settings.postgres_dsn_file.chmod(0o644)
    with pytest.raises(StateUnavailable, match="open to others"):
        async with open_state(settings):
            pass


def test_exactly_one_place_is_named(tmp_path: Path) -> None:
    for given in ({}, {"sqlite_file": tmp_path, "postgres_dsn_file": tmp_path}):
        with pytest.raises(ValueError, match="exactly one"):
            StateSettings(**given)


def test_both_schemas_have_the_same_tables_and_columns(tmp_path: Path, postgres: PostgresServer) -> None:
    database = postgres.new_database()
    with closing(PostgresSession(database, deadline_s=5)), psycopg.connect(database) as connection:
        found = connection.execute(
            "SELECT table_name, column_name FROM information_schema.columns WHERE table_schema = 'lionrock_gateway' ORDER BY 1, 2"
        ).fetchall()
    with closing(SqliteSession(tmp_path / "s.sqlite", busy_timeout_s=1)) as session:
        ours = session.run(
            lambda t: t.ask(
                "SELECT m.name, c.name FROM sqlite_schema m, pragma_table_info(m.name) c WHERE m.type = 'table' ORDER BY 1, 2"
            ),
            read_only=True,
        )
    assert found == ours
