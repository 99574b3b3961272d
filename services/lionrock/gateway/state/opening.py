"""Opens the shared state that the settings name: a file of SQLite, or a database whose connection string a file holds.

The connection string is a secret: it comes in a file that others cannot read, never as a setting, an argument or in a message.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from lionrock.chassis.private_files import PrivateFileUnusable, read_private
from lionrock.gateway.state.sqlite import SqliteSession
from lionrock.gateway.state.store import StateSession, StateStore, StateUnavailable

DSN_MAX_BYTES: Final = 16 * 1024
_DEADLINE_SLACK_S: Final = 1.0
"""A session ends its own waits before the store cuts it off."""


class StateSettings(BaseModel):
    """Where gateways keep what they share."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    sqlite_file: Path | None = Field(
        default=None, description="SQLite file, for gateways on one machine; either this or postgres_dsn_file"
    )
    postgres_dsn_file: Path | None = Field(
        default=None, description="file that holds the connection string of a PostgreSQL database, readable by its owner alone"
    )
    deadline_s: float = Field(default=5.0, gt=0, le=60, description="time for one transaction, in seconds")

    @model_validator(mode="after")
    def _one_place(self) -> Self:
        if (self.sqlite_file is None) == (self.postgres_dsn_file is None):
            raise ValueError("exactly one of sqlite_file and postgres_dsn_file must be set")
        return self


@asynccontextmanager
async def open_state(settings: StateSettings) -> AsyncIterator[StateStore]:
    """Open the store, and close it at the end of the block. Raises StateUnavailable."""
    store = StateStore(await asyncio.to_thread(_session, settings), settings.deadline_s + _DEADLINE_SLACK_S)
    try:
        yield store
    finally:
        await store.close()


def _session(settings: StateSettings) -> StateSession:
    if settings.sqlite_file is not None:
        return SqliteSession(settings.sqlite_file, busy_timeout_s=settings.deadline_s)
    from lionrock.gateway.state.postgres import PostgresSession  # where SQLite serves, the driver is not loaded

    assert settings.postgres_dsn_file is not None
    return PostgresSession(_read_dsn(settings.postgres_dsn_file), deadline_s=settings.deadline_s)


def _read_dsn(path: Path) -> str:
    try:
        dsn = read_private(path, DSN_MAX_BYTES)
    except FileNotFoundError:
        raise StateUnavailable(f"{path}, which should hold the connection string of the state, is not there") from None
    except PrivateFileUnusable as error:
        raise StateUnavailable(str(error)) from None
    if not dsn:
        raise StateUnavailable(f"{path} is empty; it holds the connection string of the state")
    return dsn
