"""What gateways share of a tenant that leaves goes, from whichever table, and nothing of another's."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import closing
from pathlib import Path

import pytest

from lionrock.gateway.state.departures import UNTIL_SEALED, change_counters, forget_tenant, tenant_tables
from lionrock.gateway.state.schema import VERSIONS_TABLE
from lionrock.gateway.state.sqlite import SqliteSession
from lionrock.gateway.state.store import StateStore, StateTransaction

OF_NO_TENANT = {"consent_secret"}
"""Tables with rows of nobody: say here of a new one that it has nothing of a tenant."""


@pytest.fixture
async def state(tmp_path: Path) -> AsyncIterator[StateStore]:
    store = StateStore(SqliteSession(tmp_path / "state.db", busy_timeout_s=5), 10)
    yield store
    await store.close()


async def columns(state: StateStore) -> dict[str, dict[str, str]]:
    """Types of columns by table, as the database says."""

    def look(transaction: StateTransaction) -> dict[str, dict[str, str]]:
        named = transaction.ask("SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite_%'")
        return {name: {row[1]: row[2] for row in transaction.ask(f"PRAGMA table_info({name})")} for (name,) in named}

    return await state.read(look)


async def test_every_table_is_a_tenant_s_or_said_to_be_nobody_s(state: StateStore) -> None:
    there = await columns(state)
    assert tenant_tables() == {table for table, its in there.items() if "tenant" in its}
    assert change_counters() == {table for table, its in there.items() if its.keys() == {"one", "changes"}}
    assert there.keys() - tenant_tables() - change_counters() - {VERSIONS_TABLE} <= OF_NO_TENANT
    assert tenant_tables() >= UNTIL_SEALED


async def test_rows_of_the_tenant_go_and_those_of_others_stay(state: StateStore) -> None:
    there = await columns(state)

    def fill(transaction: StateTransaction) -> None:
        for table in tenant_tables():
            for tenant in ("bank", "broker"):
                values = [tenant if name == "tenant" else _value(kind, tenant) for name, kind in there[table].items()]
                transaction.write(f"INSERT INTO {table} VALUES ({', '.join('?' * len(values))})", values)
        for counter in change_counters():
            transaction.write(f"INSERT INTO {counter} VALUES (1, 7)")

    await state.write(fill)
    assert await forget_tenant(state, "bank", sealed=False) == len(tenant_tables() - UNTIL_SEALED)
    assert await forget_tenant(state, "bank", sealed=True) == len(UNTIL_SEALED)
    assert await forget_tenant(state, "bank", sealed=True) == 0
    for table in tenant_tables():
        rows = await state.read(lambda transaction, table=table: transaction.ask(f"SELECT tenant FROM {table}"))  # type: ignore[misc]
        assert rows == [("broker",)], table
    for counter in change_counters():
        ((changes,),) = await state.read(lambda transaction, counter=counter: transaction.ask(f"SELECT changes FROM {counter}"))  # type: ignore[misc]
        assert changes > 7


def _value(kind: str, tenant: str) -> str | int | bytes:
    return {"TEXT": f"of {tenant}", "INTEGER": 1, "BLOB": tenant.encode()}[kind]


def test_deleted_rows_are_overwritten(tmp_path: Path) -> None:
    with closing(SqliteSession(tmp_path / "state.db", busy_timeout_s=5)) as session:
        insert = "INSERT INTO quota_windows VALUES ('bank', 'somebody-by-name', 'q', 0, 1)"
        session.run(lambda transaction: transaction.write(insert), read_only=False)
        session.run(lambda transaction: transaction.write("DELETE FROM quota_windows WHERE tenant = 'bank'"), read_only=False)
    assert b"somebody-by-name" not in (tmp_path / "state.db").read_bytes()
