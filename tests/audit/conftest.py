"""Makes the helpers of this room importable: `audit_harness`, `rfc6962_reference`, `kill_rounds`."""

from __future__ import annotations

import shutil
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[2] / "tools"))

import cluster_tools
from audit_harness import Place
from checked_stores import CheckedStore

from lionrock.audit.store import LogStore, StoredLog
from lionrock.audit.store.postgres import PostgresLogStore
from lionrock.audit.store.sqlite import SqliteLogStore
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


@pytest.fixture(params=["sqlite", "postgres"])
async def logs(request: pytest.FixtureRequest, place: Place) -> AsyncIterator[object]:
    """Open logs of the tenants "bank" and "broker", on both kinds of store."""
    store = PostgresLogStore(request.getfixturevalue("database")) if request.param == "postgres" else None
    async with place.open(store) as opened:
        yield opened


@pytest.fixture(params=["sqlite", "postgres"])
def open_store(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[], LogStore]:
    """Open one and the same store again and again, of both kinds."""
    if request.param == "sqlite":
        return lambda: SqliteLogStore(tmp_path / "audit.db")
    database = request.getfixturevalue("database")
    return lambda: PostgresLogStore(database)


@pytest.fixture(params=["sqlite", "postgres"])
def checked(request: pytest.FixtureRequest, place: Place) -> CheckedStore:
    """Make room for a store of each kind, as an auditor gets it."""
    return CheckedStore(place, request.getfixturevalue("database") if request.param == "postgres" else None)


@pytest.fixture
def store(open_store: Callable[[], LogStore]) -> Iterator[LogStore]:
    """Open an empty store."""
    with closing(open_store()) as opened:
        yield opened


@pytest.fixture
def bank(store: LogStore) -> StoredLog:
    """Make an empty log in it."""
    return store.create_log("platform/audit/bank", "key", b"\x00" * 32, "checkpoint 0")


NOT_RUN = pytest.StashKey[set[str]]()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Say loudly what was not verified by code that is not ours."""
    if reasons := config.stash.get(NOT_RUN, None):
        terminalreporter.section("NOT RUN: verification of audit logs by other projects' code", sep="!", red=True, bold=True)
        for reason in sorted(reasons):
            terminalreporter.line(reason)


@pytest.fixture(scope="session")
def log_verifier(request: pytest.FixtureRequest) -> Path:
    """Program that checks published logs with the code of other projects (tools/log-verifier); built when it is not there."""
    if shutil.which("go") is not None:
        cluster_tools.build("log-verifier")
    try:
        return cluster_tools.find("log-verifier")
    except cluster_tools.ToolMissing as missing:
        request.config.stash.setdefault(NOT_RUN, set()).add(str(missing))
        pytest.skip(str(missing))
