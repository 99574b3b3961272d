"""The tables of the SQLite store, brought forward step by step, and what a file's schema has more, less or otherwise.

Knows: every statement that ever made the schema. Does not know: what is read and written (sqlite.py, sqlite_reader.py).
"""

import sqlite3
from contextlib import closing
from datetime import UTC, datetime
from typing import Final

from lionrock.audit.failures import StoreFailed
from lionrock.audit.store.departures import departure_tables
from lionrock.audit.store.records import record_tables

MIGRATIONS: Final[tuple[tuple[str, ...], ...]] = (
    # 1: the first schema. `subtree_hashes` stands before `data`, so that proofs read no overflow page.
    (
        "CREATE TABLE sequencer (only INTEGER PRIMARY KEY CHECK (only = 1), epoch INTEGER NOT NULL, holder TEXT NOT NULL) STRICT",
        "INSERT INTO sequencer VALUES (1, 0, '')",
        """CREATE TABLE logs (
            log_id INTEGER PRIMARY KEY, origin TEXT NOT NULL UNIQUE, verifier_key TEXT NOT NULL,
            size INTEGER NOT NULL, root BLOB NOT NULL, checkpoint TEXT NOT NULL) STRICT""",
        """CREATE TABLE leaves (
            sequence INTEGER PRIMARY KEY, log_id INTEGER NOT NULL REFERENCES logs, leaf_index INTEGER NOT NULL,
            event_id TEXT NOT NULL, recorded_at_us INTEGER NOT NULL, subtree_hashes BLOB NOT NULL, data BLOB NOT NULL,
            UNIQUE (log_id, leaf_index), UNIQUE (log_id, event_id)) STRICT""",
        # Every append writes these two: their keys are chosen so that no second index (a page a commit) is needed.
        """CREATE TABLE open_intents (
            log_id INTEGER NOT NULL REFERENCES logs, request_id TEXT NOT NULL, leaf_index INTEGER NOT NULL,
            PRIMARY KEY (log_id, request_id, leaf_index)) STRICT, WITHOUT ROWID""",
        """CREATE TABLE retry_salts (
            recorded_at_us INTEGER NOT NULL, log_id INTEGER NOT NULL REFERENCES logs, leaf_index INTEGER NOT NULL,
            salt BLOB NOT NULL, PRIMARY KEY (recorded_at_us, log_id, leaf_index)) STRICT, WITHOUT ROWID""",
    ),
    # 2: records beside the leaves.
    record_tables(text="TEXT", integer="INTEGER", blob="BLOB", options=" STRICT, WITHOUT ROWID"),
    # 3: keys that signed before.
    (
        """CREATE TABLE retired_keys (
            log_id INTEGER NOT NULL REFERENCES logs, leaf_index INTEGER NOT NULL, verifier_key TEXT NOT NULL,
            checkpoint TEXT NOT NULL, PRIMARY KEY (log_id, leaf_index)) STRICT, WITHOUT ROWID""",
    ),
    # 4: tenants that leave.
    departure_tables(text="TEXT", integer="INTEGER", blob="BLOB", options=" STRICT, WITHOUT ROWID"),
)
_VERSIONS: Final = "CREATE TABLE IF NOT EXISTS schema_versions (version INTEGER PRIMARY KEY, applied_at TEXT NOT NULL)"
_SCHEMA: Final = "SELECT type, name, tbl_name, sql FROM sqlite_schema"


def migrate(connection: sqlite3.Connection) -> None:
    """Bring the schema forward, one transaction a step, never back. Raises StoreFailed, sqlite3.Error."""
    connection.execute(_VERSIONS)
    ((version,),) = connection.execute("SELECT coalesce(max(version), 0) FROM schema_versions").fetchall()
    if not isinstance(version, int):
        raise StoreFailed("the store does not say which schema it has: restore the store from its backup")
    if version > len(MIGRATIONS):
        raise StoreFailed(f"the store has schema {version}, this program knows {len(MIGRATIONS)}: run the newer program")
    for number, statements in enumerate(MIGRATIONS[version:], start=version + 1):
        connection.execute("BEGIN IMMEDIATE")
        for statement in statements:
            connection.execute(statement)
        applied_at = datetime.now(UTC).isoformat(timespec="seconds")
        connection.execute("INSERT INTO schema_versions VALUES (?, ?)", (number, applied_at))
        connection.execute("COMMIT")


def schema_differences(connection: sqlite3.Connection) -> int:
    """Count what a file's schema has more, less or otherwise than our statements make: a trigger, say. Raises sqlite3.Error."""
    ((version,),) = connection.execute("SELECT coalesce(max(version), 0) FROM schema_versions").fetchall()
    if not isinstance(version, int):
        return 1
    with closing(sqlite3.connect(":memory:", isolation_level=None)) as made:
        made.execute(_VERSIONS)
        for statements in MIGRATIONS[:version]:
            for statement in statements:
                made.execute(statement)
        return len(set(made.execute(_SCHEMA)) ^ set(connection.execute(_SCHEMA)))
