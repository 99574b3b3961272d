"""Makes the helpers of this room importable: `audit_harness`, `rfc6962_reference`, `kill_rounds`."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from audit_harness import Place

from postgres_server import PostgresServer, running_postgres


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    """A PostgreSQL server, started when the first test asks for it."""
    with running_postgres() as server:
        yield server


@pytest.fixture
def database(postgres: PostgresServer) -> str:
    """Connection string of an empty database."""
    return postgres.new_database()


@pytest.fixture
def place(tmp_path: Path) -> Place:
    """Directories of a store and its keys; nothing is open yet."""
    return Place(tmp_path)


@pytest.fixture
async def logs(place: Place) -> AsyncIterator[object]:
    """Open logs of the tenants "bank" and "broker"."""
    async with place.open() as opened:
        yield opened
