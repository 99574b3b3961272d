"""A store of either kind, and what an auditor and somebody who edits its rows do with it."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass

import psycopg
from audit_harness import Place

from lionrock.audit.findings import Check, Flaw
from lionrock.audit.signed_checkpoints import read_batches
from lionrock.audit.store import LogStore
from lionrock.audit.store.opening import Reader
from lionrock.audit.store.postgres import PostgresLogStore
from lionrock.audit.store.postgres_reader import PostgresLogReader
from lionrock.audit.store.sqlite import SqliteLogStore
from lionrock.audit.store.sqlite_reader import SqliteLogReader
from lionrock.audit.store_check import check_store
from lionrock.tlog.keys import VerifierKey

_SQLITE = {"zeros": "zeroblob(32)", "altered": "CAST(replace(data, 'chat', 'tahc') AS BLOB)", "one": "zeroblob(1)"}
_POSTGRES = {
    "zeros": "decode(repeat('00', 32), 'hex')",
    "altered": "convert_to(replace(convert_from(data, 'UTF8'), 'chat', 'tahc'), 'UTF8')",
    "one": "decode('00', 'hex')",
}


@dataclass(frozen=True, slots=True)
class CheckedStore:
    """A store beside its keys. `database`: a connection string, or None for a file of SQLite."""

    place: Place
    database: str | None

    def open(self) -> LogStore:
        """Open it as the service does."""
        return SqliteLogStore(self.place.store_file) if self.database is None else PostgresLogStore(self.database)

    def reader(self) -> Reader:
        """Open it as a check does."""
        return SqliteLogReader.open(self.place.store_file) if self.database is None else PostgresLogReader.open(self.database)

    def keys(self) -> list[VerifierKey]:
        """Keys of all its logs."""
        with closing(self.reader()) as reader:
            return [VerifierKey.parse(log.verifier_key) for log in reader.logs()]

    def signed(self) -> Sequence[tuple[str, str]]:
        """Read the second place."""
        return [pair for batch in read_batches(self.place.signed_file) for pair in batch.items()]

    def check(self, keys: Sequence[VerifierKey], trusted: Sequence[str] = ()) -> Check:
        """Check it as an auditor does."""
        with closing(self.reader()) as reader:
            return check_store(reader, keys, self.signed, trusted=trusted)

    def edit(self, sql: str, *parameters: object) -> int:
        """Run a statement in which {zeros}, {one} and {altered} stand for what each kind writes otherwise. Returns rows changed."""
        if self.database is None:
            with closing(sqlite3.connect(self.place.store_file)) as connection:
                changed = connection.execute(sql.format(**_SQLITE), parameters).rowcount
                connection.commit()
                return changed
        with psycopg.connect(self.database, options="-c search_path=lionrock_audit") as session:
            return session.execute(sql.format(**_POSTGRES).replace("?", "%s"), parameters).rowcount

    def ask(self, sql: str) -> list[tuple[object, ...]]:
        """Ask with plain SQL."""
        if self.database is None:
            with closing(sqlite3.connect(self.place.store_file)) as connection:
                return connection.execute(sql).fetchall()
        with psycopg.connect(self.database, options="-c search_path=lionrock_audit") as session:
            return session.execute(sql).fetchall()


def flaws(found: Check) -> set[Flaw]:
    """What was found, by name."""
    return {finding.flaw for finding in found.findings}
