"""The schema of logs in PostgreSQL, and how it moves forward.

Knows: tables, migrations, that they are applied once, in order, each in one transaction. Does not know: what is written when.

Columns and layout
- Texts compare by bytes (COLLATE "C"): a new version of the C library may order other collations anew, which breaks indexes.
- A leaf stays in its page whatever its size (below 8 KB): nothing is compressed, and only what a page cannot hold moves out.
- `logs` and `sequencer` are updated by every batch; half-empty pages let PostgreSQL do that in place.
- There are no foreign keys: each would cost every leaf a look at its log, and `advance` finds a log that is not there.
- `logs.timeline` says on which history of the server a head was committed; a fail-over begins a new one.
"""

from typing import Final

import psycopg

from lionrock.audit.failures import StoreFailed
from lionrock.audit.store.departures import departure_tables
from lionrock.audit.store.records import record_tables

SCHEMA: Final = "lionrock_audit"
MIGRATIONS: Final[tuple[tuple[str, ...], ...]] = (
    # 1: the first schema.
    (
        """CREATE TABLE sequencer (
            single boolean PRIMARY KEY CHECK (single), epoch bigint NOT NULL, holder text NOT NULL) WITH (fillfactor = 50)""",
        "INSERT INTO sequencer VALUES (true, 0, '')",
        """CREATE TABLE logs (
            log_id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, origin text COLLATE "C" NOT NULL UNIQUE,
            verifier_key text NOT NULL, size bigint NOT NULL, root bytea NOT NULL, checkpoint text NOT NULL,
            timeline bigint NOT NULL) WITH (fillfactor = 50)""",
        """CREATE TABLE leaves (
            log_id bigint NOT NULL, leaf_index bigint NOT NULL, recorded_at_us bigint NOT NULL,
            event_id text COLLATE "C" NOT NULL, subtree_hashes bytea NOT NULL, data bytea NOT NULL,
            PRIMARY KEY (log_id, leaf_index), UNIQUE (log_id, event_id)) WITH (toast_tuple_target = 8160)""",
        "ALTER TABLE leaves ALTER subtree_hashes SET STORAGE EXTERNAL, ALTER data SET STORAGE EXTERNAL",
        """CREATE TABLE open_intents (
            log_id bigint NOT NULL, request_id text COLLATE "C" NOT NULL, leaf_index bigint NOT NULL,
            PRIMARY KEY (log_id, request_id, leaf_index))""",
        """CREATE TABLE retry_salts (
            recorded_at_us bigint NOT NULL, log_id bigint NOT NULL, leaf_index bigint NOT NULL, salt bytea NOT NULL,
            PRIMARY KEY (recorded_at_us, log_id, leaf_index))""",
    ),
    # 2: records beside the leaves. What is sealed does not compress.
    (
        *record_tables(text='text COLLATE "C"', integer="bigint", blob="bytea", options=""),
        "ALTER TABLE payloads ALTER sealed SET STORAGE EXTERNAL",
    ),
    # 3: keys that signed before.
    (
        """CREATE TABLE retired_keys (
            log_id bigint NOT NULL, leaf_index bigint NOT NULL, verifier_key text NOT NULL, checkpoint text NOT NULL,
            PRIMARY KEY (log_id, leaf_index))""",
    ),
    # 4: tenants that leave.
    departure_tables(text='text COLLATE "C"', integer="bigint", blob="bytea", options=""),
)


def migrate(connection: psycopg.Connection) -> None:
    """Bring the schema forward, one transaction a step, never back. The caller holds the store's lock.

    Raises StoreFailed for a schema newer than this program, psycopg.Error.
    """
    if connection.execute("SELECT to_regnamespace(%s)", (SCHEMA,)).fetchone() == (None,):
        connection.execute(f"CREATE SCHEMA {SCHEMA}")  # apart from the question, because it needs a right that may be missing
    connection.execute(
        "CREATE TABLE IF NOT EXISTS schema_versions (version bigint PRIMARY KEY, applied_at timestamptz NOT NULL DEFAULT now())"
    )
    row = connection.execute("SELECT coalesce(max(version), 0), count(*) FROM schema_versions").fetchone()
    assert row is not None
    version, steps = row
    if version > len(MIGRATIONS):
        raise StoreFailed(f"the store has schema {version}, this program knows {len(MIGRATIONS)}: run the newer program")
    if version != steps:
        raise StoreFailed(f"the store has schema {version} but records {steps} steps to it: restore the store from its backup")
    for number, statements in enumerate(MIGRATIONS[version:], start=version + 1):
        with connection.transaction():
            for statement in statements:
                connection.execute(statement)
            connection.execute("INSERT INTO schema_versions VALUES (%s)", (number,))
