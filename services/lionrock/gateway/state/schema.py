"""The tables of the shared state, brought forward step by step and never back, for both kinds of database.

Knows: every statement that ever made the schema. Does not know: what rows mean; that is said where they are read and written.
A step that was released is never changed; what is new is a further step at the end.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from lionrock.gateway.state.store import StateUnavailable


@dataclass(frozen=True, slots=True)
class Dialect:
    """How a database writes the types of columns and the end of a table."""

    text: str
    integer: str
    blob: str
    options: str


SQLITE: Final = Dialect("TEXT", "INTEGER", "BLOB", " STRICT, WITHOUT ROWID")
POSTGRES: Final = Dialect('text COLLATE "C"', "bigint", "bytea", "")
VERSIONS_TABLE: Final = "schema_versions"


def migrations(d: Dialect) -> tuple[tuple[str, ...], ...]:
    """Return the steps, oldest first."""
    return (
        # 1: quotas (quotas/store.py). `principal` is empty where a row is the whole tenant's.
        (
            f"""CREATE TABLE quota_windows (
                tenant {d.text} NOT NULL, principal {d.text} NOT NULL, quota {d.text} NOT NULL,
                window_start_us {d.integer} NOT NULL, taken {d.integer} NOT NULL,
                PRIMARY KEY (tenant, principal, quota, window_start_us)){d.options}""",
            "CREATE INDEX quota_windows_by_age ON quota_windows (window_start_us)",
            f"""CREATE TABLE quota_places (
                tenant {d.text} NOT NULL, principal {d.text} NOT NULL, gateway {d.text} NOT NULL,
                places {d.integer} NOT NULL, expires_at_us {d.integer} NOT NULL,
                PRIMARY KEY (tenant, principal, gateway)){d.options}""",
        ),
        # 2: API keys (identity/api_key_rows.py). `mark` is a keyed hash; `scope` is JSON.
        (
            f"""CREATE TABLE api_keys (
                key_id {d.text} PRIMARY KEY, tenant {d.text} NOT NULL, mark {d.blob} NOT NULL, description {d.text} NOT NULL,
                scope {d.text} NOT NULL, created_by {d.text} NOT NULL, created_at_us {d.integer} NOT NULL,
                expires_at_us {d.integer} NOT NULL, retires_at_us {d.integer}, revoked_at_us {d.integer}){d.options}""",
            "CREATE INDEX api_keys_by_tenant ON api_keys (tenant, key_id)",
            f"""CREATE TABLE api_key_changes (
                one {d.integer} PRIMARY KEY, changes {d.integer} NOT NULL){d.options}""",
        ),
        # Choices of data subjects (consents/rows.py). `subject` is a keyed hash; an empty `purpose` is an opt-out.
        (
            f"""CREATE TABLE consents (
                tenant {d.text} NOT NULL, subject {d.blob} NOT NULL, purpose {d.text} NOT NULL, choice_id {d.text} NOT NULL,
                notice_version {d.integer} NOT NULL, notice_digest {d.text} NOT NULL, leaf_index {d.integer} NOT NULL,
                made_at_us {d.integer} NOT NULL, expires_at_us {d.integer}, ended_at_us {d.integer}, forget_at_us {d.integer},
                PRIMARY KEY (tenant, subject, purpose)){d.options}""",
            "CREATE INDEX consents_by_purpose ON consents (tenant, purpose, subject)",
            "CREATE INDEX consents_by_end ON consents (tenant, forget_at_us)",
            f"CREATE TABLE consent_counts (tenant {d.text} PRIMARY KEY, choices {d.integer} NOT NULL){d.options}",
            f"CREATE TABLE consent_secret (one {d.integer} PRIMARY KEY, secret_check {d.blob} NOT NULL){d.options}",
        ),
        # Held answers (reviews/rows.py), without a word of them. `decision` is 0 while one waits; `known_as` is JSON.
        (
            f"""CREATE TABLE reviews (
                tenant {d.text} NOT NULL, request_id {d.text} NOT NULL, event_id {d.text} NOT NULL, author {d.text} NOT NULL,
                known_as {d.text} NOT NULL, purpose {d.text} NOT NULL, case_id {d.text} NOT NULL, data_class {d.text} NOT NULL,
                cause {d.integer} NOT NULL, held_at_us {d.integer} NOT NULL, expires_at_us {d.integer} NOT NULL,
                decision {d.integer} NOT NULL, decided_by {d.text} NOT NULL, decided_at_us {d.integer}, claimed_at_us {d.integer},
                notify_at_us {d.integer}, notified {d.integer} NOT NULL,
                PRIMARY KEY (tenant, request_id)){d.options}""",
            "CREATE INDEX reviews_by_end ON reviews (decision, expires_at_us)",
            "CREATE INDEX reviews_to_notify ON reviews (notify_at_us)",
        ),
        # emergencies (emergencies/rows.py). `context` and `owed_leaf` are messages; no column has text that a person wrote.
        (
            f"""CREATE TABLE emergencies (
                emergency_id {d.text} PRIMARY KEY, tenant {d.text} NOT NULL, state {d.text} NOT NULL,
                requested_by {d.text} NOT NULL, requested_with {d.text} NOT NULL, requested_at_us {d.integer} NOT NULL,
                duration_us {d.integer} NOT NULL, suspicion {d.integer} NOT NULL, ends_at_us {d.integer} NOT NULL,
                context {d.blob} NOT NULL, decision {d.text} NOT NULL, decided_by {d.text} NOT NULL, decision_id {d.text} NOT NULL,
                claimed_at_us {d.integer}, decided_at_us {d.integer}, owed_leaf {d.blob}){d.options}""",
            "CREATE INDEX emergencies_by_tenant ON emergencies (tenant, emergency_id)",
            "CREATE INDEX emergencies_by_end ON emergencies (state, ends_at_us)",
            f"""CREATE TABLE emergency_changes (
                one {d.integer} PRIMARY KEY, changes {d.integer} NOT NULL){d.options}""",
        ),
    )


def steps_from(found: tuple[object, ...], d: Dialect) -> tuple[tuple[int, tuple[str, ...]], ...]:
    """Return the steps that a database still needs, with their numbers. `found`: its version, and how many steps it records.

    Raises StateUnavailable for a schema newer than this program, and one that does not say how it came about.
    """
    all_steps = migrations(d)
    version, steps = found
    if not isinstance(version, int) or version != steps:
        raise StateUnavailable("the state does not say which schema it has: restore it from its backup")
    if version > len(all_steps):
        raise StateUnavailable(f"the state has schema {version}, this program knows {len(all_steps)}: run the newer program")
    return tuple(enumerate(all_steps[version:], start=version + 1))
