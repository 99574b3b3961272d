"""What the shared state holds of a tenant, table by table, and its end.

Knows: which tables have rows of tenants, as the schema says, so that none is forgotten; that whoever follows a table by its
number of changes must see one. Does not know: what rows mean, when a tenant leaves.
"""

from __future__ import annotations

import re
from functools import cache
from typing import Final

from lionrock.gateway.state.schema import SQLITE, migrations
from lionrock.gateway.state.store import StateStore, StateTransaction

UNTIL_SEALED: Final = frozenset({"emergencies"})
"""Tables whose rows stay while records of the tenant are kept: an emergency ends within hours, and its end is recorded."""
_TABLE: Final = re.compile(r"CREATE TABLE (\w+) \((.*)\)", re.DOTALL)


async def forget_tenant(store: StateStore, tenant: str, *, sealed: bool) -> int:
    """Delete the rows of a tenant that leaves; doing it again does no harm. Returns how many there were.

    `sealed`: nothing of the tenant is kept any more. Raises StateUnavailable.
    """
    deleted = 0
    for table in tenant_tables() if sealed else tenant_tables() - UNTIL_SEALED:
        deleted += await store.write(lambda state, table=table: _delete(state, table, tenant))  # type: ignore[misc]
    return deleted


def _delete(state: StateTransaction, table: str, tenant: str) -> int:
    deleted = state.write(f"DELETE FROM {table} WHERE tenant = ?", (tenant,))  # noqa: S608  tables of our own schema
    if deleted:
        for counter in change_counters():
            state.write(f"UPDATE {counter} SET changes = changes + 1")  # noqa: S608  tables of our own schema
    return deleted


@cache
def tenant_tables() -> frozenset[str]:
    """Tables whose rows each belong to a tenant."""
    return frozenset(table for table, columns in _tables().items() if "tenant" in columns)


@cache
def change_counters() -> frozenset[str]:
    """Tables of one row that counts changes of another."""
    return frozenset(table for table, columns in _tables().items() if columns == {"one", "changes"})


@cache
def _tables() -> dict[str, set[str]]:
    """Columns by table. A constraint begins with a word in capitals, which no column does."""
    found = {}
    for statement in (statement for step in migrations(SQLITE) for statement in step):
        if match := _TABLE.match(statement):
            definitions = re.split(r",(?![^(]*\))", match[2])
            names = {definition.split()[0] for definition in definitions}
            found[match[1]] = {name for name in names if name.islower()}
    return found
